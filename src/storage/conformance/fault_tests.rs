//! The redb engine on a disk that fails.

use proptest::{collection::vec, prelude::*};

use super::faults::{Kept, Rig, Start};
use crate::storage::{
    blocks,
    embedded::{Discipline, RedbEngine},
    engine::Engine,
    error::StoreError,
    faulty_disk::{Fault, FaultyDisk, SECTOR},
};

const FULL: Start = |place, disk| Box::new(RedbEngine::with_storage(place, move || disk.open()));
const PLAIN: Start = |place, disk| Box::new(RedbEngine::plain(place, move || disk.open()));

fn rig(discipline: Discipline) -> Rig {
    let disk = FaultyDisk::default();
    let storage = disk.open().expect("there");
    match discipline {
        Discipline::Full => RedbEngine::format("new", storage).expect("made"),
        Discipline::Plain => RedbEngine::format_plain(storage),
    }
    let start = match discipline {
        Discipline::Full => FULL,
        Discipline::Plain => PLAIN,
    };
    Rig::new(disk, start)
}

/// Numbers that look like chance, the same ones at each run.
fn chance(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }
}

/// S1: a sync fails once, the store is read again through the cache and goes on, the power goes.
/// Says how often the store broke its word or could not be opened.
fn a_failed_sync(discipline: Discipline) -> Vec<String> {
    let mut broken = Vec::new();
    let mut start = rig(discipline);
    start.commits(30);
    for round in 0..12 {
        start.commits(1);
        for sync in 0..3 {
            let mut rig = start.copy();
            assert_eq!(rig.open(), Ok(Kept::Whole));
            rig.disk.plan_failing_sync(sync);
            let _may_fail = rig.commit();
            if rig.disk.is_planned() {
                break;
            }
            let mut judge = |kept: Result<Kept, String>| {
                let is_whole = kept == Ok(Kept::Whole);
                if !is_whole {
                    broken.push(format!("round {round}, sync {sync}: {kept:?}"));
                }
                is_whole
            };
            if !judge(rig.recover()) {
                continue;
            }
            rig.commits(100);
            let mut chance = chance(round);
            rig.lose_power(|_| round % 2 == 0 && chance().is_multiple_of(2));
            rig.restart();
            if judge(rig.open()) {
                judge(rig.recover());
            }
        }
    }
    broken
}

#[test]
fn a_failed_sync_loses_nothing_that_was_confirmed_later() {
    assert_eq!(a_failed_sync(Discipline::Full), Vec::<String>::new());
}

#[test]
fn one_phase_commits_on_a_bare_file_lose_it() {
    assert_ne!(a_failed_sync(Discipline::Plain), Vec::<String>::new());
}

/// S2: one bit flips after `kill -9`. Says how often the store broke its word, and how often it was
/// refused.
fn flipped_bits(discipline: Discipline, every: usize) -> (Vec<String>, usize, usize) {
    let mut rig = rig(discipline);
    rig.commits(60);
    rig.engine.close();
    let before = rig.disk.bytes();
    assert_eq!(rig.open(), Ok(Kept::Whole));
    // Enough to fill an area of the log, and have it written to the tables.
    rig.commits(12);
    rig.engine.close();
    let after = rig.disk.bytes();
    let mut bits: Vec<usize> = Vec::new();
    let headers: Vec<std::ops::Range<usize>> = match discipline {
        Discipline::Full => {
            let copies = [blocks::places(0), blocks::places(1)].concat();
            let copies = copies.into_iter().map(|at| at as usize);
            copies.map(|at| at..at + blocks::HEADER).collect()
        }
        Discipline::Plain => std::iter::once(0..320).collect(),
    };
    for header in headers {
        bits.extend(header.start * 8..header.end * 8);
    }
    if discipline == Discipline::Full {
        for at in blocks::PREAMBLES {
            let at = at as usize;
            bits.extend(at * 8..(at + blocks::PREAMBLE) * 8);
        }
    }
    let mut chance = chance(1);
    for page in 1..after.len() / 4096 {
        let range = page * 4096..(page + 1) * 4096;
        if before.get(range.clone()) != after.get(range.clone()) {
            bits.extend(range.map(|byte| byte * 8 + chance() as usize % 8));
        }
    }
    let chosen: Vec<usize> = bits.into_iter().step_by(every).collect();
    let judge = |bit: usize| {
        let mut flipped = rig.copy();
        flipped.disk.flip(bit);
        let kept = flipped.open();
        // A damaged page that nobody has read yet must not come back at the next commit either.
        match kept {
            Ok(Kept::Whole) => match flipped.recover() {
                Ok(Kept::Whole) => flipped.look(),
                other => other,
            },
            other => other,
        }
        .map_err(|broken| format!("bit {bit}: {broken}"))
    };
    let halves = chosen.split_at(chosen.len() / 2);
    let judged: Vec<_> = std::thread::scope(|scope| {
        let other = scope.spawn(|| halves.1.iter().map(|bit| judge(*bit)).collect::<Vec<_>>());
        let mut judged: Vec<_> = halves.0.iter().map(|bit| judge(*bit)).collect();
        judged.extend(other.join().expect("no panic"));
        judged
    });
    let refused = judged
        .iter()
        .filter(|kept| matches!(kept, Ok(Kept::Refused(_))))
        .count();
    let total = judged.len();
    let broken = judged.into_iter().filter_map(Result::err).collect();
    (broken, refused, total)
}

/// `STORE_BITS=1` flips all of them, which takes minutes in release; by default it is a sample.
fn every() -> usize {
    let every = std::env::var("STORE_BITS").ok();
    every.and_then(|every| every.parse().ok()).unwrap_or(601)
}

#[test]
fn a_flipped_bit_never_leads_to_an_older_state() {
    let (broken, refused, total) = flipped_bits(Discipline::Full, every());
    assert_eq!(broken, Vec::<String>::new());
    assert!(refused > 0 && refused < total, "{refused} of {total}");
}

#[test]
fn a_flipped_bit_in_a_bare_file_does() {
    let (broken, ..) = flipped_bits(Discipline::Plain, 211);
    assert_ne!(broken, Vec::<String>::new());
}

/// Every change of a commit and of an opening fails in its turn, in each way; the store goes on, and
/// survives the loss of power.
#[test]
fn a_change_that_fails_loses_nothing() {
    let mut start = rig(Discipline::Full);
    start.commits(45);
    for fault in [Fault::Fails, Fault::FailsHalfway] {
        for change in 0..60 {
            let mut rig = start.copy();
            rig.disk.plan(change, fault);
            // The opening, a commit after it, or its way into the tables.
            let opened = rig.open();
            assert!(opened.is_ok(), "{fault:?} {change}: {opened:?}");
            while opened == Ok(Kept::Whole) && rig.disk.is_planned() {
                if rig.commit().is_err() {
                    break;
                }
            }
            assert_eq!(rig.recover(), Ok(Kept::Whole), "{fault:?} {change}");
            rig.commits(5);
            let mut chance = chance(change);
            rig.lose_power(|_| chance().is_multiple_of(2));
            rig.restart();
            assert_eq!(rig.recover(), Ok(Kept::Whole), "{fault:?} {change}");
            assert_eq!(rig.look(), Ok(Kept::Whole));
        }
    }
}

#[derive(Debug, Clone)]
struct Round {
    commits: u64,
    /// The power goes at this change, counted from the opening before.
    after: u64,
    keeps: Vec<bool>,
    restarts: bool,
}

fn round() -> impl Strategy<Value = Round> {
    let keeps = prop_oneof![
        Just(vec![false]),
        Just(vec![true]),
        vec(any::<bool>(), 1..97)
    ];
    (0..8_u64, 0..120_u64, keeps, any::<bool>()).prop_map(|(commits, after, keeps, restarts)| {
        Round {
            commits,
            after,
            keeps,
            restarts,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whenever the power goes, in an opening too, and whatever of what was not synced is there:
    /// the store opens, with every confirmed commit, and its blocks are whole but for free ones.
    #[test]
    fn a_power_loss_at_any_point_loses_nothing(rounds in vec(round(), 1..6)) {
        let mut rig = rig(Discipline::Full);
        for round in rounds {
            rig.disk.plan(round.after, Fault::PowerFails);
            let mut works = matches!(rig.open(), Ok(Kept::Whole));
            for _ in 0..round.commits {
                works = works && rig.commit().is_ok();
            }
            let mut index = 0;
            rig.lose_power(|_| {
                index += 1;
                round.keeps[index % round.keeps.len()]
            });
            if round.restarts {
                rig.restart();
            }
            prop_assert_eq!(rig.recover(), Ok(Kept::Whole));
        }
        prop_assert_eq!(rig.look(), Ok(Kept::Whole));
        let disk = rig.disk.copy();
        let engine = RedbEngine::with_storage("copy", move || disk.open());
        let verified = engine.verify(&mut |_, _| {}).expect("readable");
        prop_assert_eq!(verified.damage, Vec::<String>::new());
    }
}

#[test]
fn a_full_disk_is_told_and_goes_on_once_there_is_room() {
    let mut rig = rig(Discipline::Full);
    rig.commits(3);
    rig.disk.set_full(true);
    let error = (0..4000).find_map(|_| {
        let big = [super::put(super::ONE, vec![1; 8], vec![1; 1 << 20])];
        let number = rig.engine.snapshot().expect("open").commit() + 1;
        rig.engine.commit(number, &big).err()
    });
    let Some(StoreError::Io { advice, .. }) = error else {
        panic!("{error:?}");
    };
    assert!(advice.starts_with("make room"), "{advice}");
    assert!(matches!(rig.commit(), Err(StoreError::Closed { .. })));
    let found = rig.engine.open().expect("it opens on a full disk");
    rig.disk.set_full(false);
    let big = [super::put(super::TWO, "k", vec![1; 4 << 20])];
    assert_eq!(rig.engine.commit(found + 1, &big), Ok(()));
}

#[test]
fn a_disk_that_may_not_be_written_is_refused_by_name() {
    let mut rig = rig(Discipline::Full);
    rig.commits(3);
    rig.disk.set_read_only(true);
    assert!(matches!(rig.commit(), Err(StoreError::Io { .. })));
    assert!(matches!(
        rig.open(),
        Ok(Kept::Refused(StoreError::Io { .. }))
    ));
    rig.disk.set_read_only(false);
    assert_eq!(rig.recover(), Ok(Kept::Whole));
    rig.disk.set_unreadable(true);
    assert!(matches!(rig.open(), Ok(Kept::Refused(_))));
    rig.disk.set_unreadable(false);
    assert_eq!(rig.recover(), Ok(Kept::Whole));
}

#[test]
fn a_file_that_vanishes_is_not_made_again() {
    let mut rig = rig(Discipline::Full);
    rig.commits(3);
    rig.disk.set_vanished(true);
    assert!(matches!(
        rig.open(),
        Ok(Kept::Refused(StoreError::Absent { .. }))
    ));
    assert!(matches!(rig.commit(), Err(StoreError::Closed { .. })));
    rig.disk.set_vanished(false);
    assert_eq!(rig.recover(), Ok(Kept::Whole));
    let disk = rig.disk.copy();
    rig.disk.cut(0);
    assert!(matches!(
        rig.open(),
        Ok(Kept::Refused(StoreError::Damaged { .. }))
    ));
    rig.disk.become_copy_of(&disk);
    assert_eq!(rig.recover(), Ok(Kept::Whole));
}

#[test]
fn an_older_copy_says_its_number() {
    let mut rig = rig(Discipline::Full);
    rig.commits(3);
    let older = rig.disk.copy();
    rig.commits(3);
    rig.disk.become_copy_of(&older);
    // What the store above refuses by, and all that an engine can say.
    assert_eq!(rig.engine.open(), Ok(3));
}

#[test]
fn a_file_that_is_cut_off_is_refused_at_once() {
    let mut rig = rig(Discipline::Full);
    rig.commits(3);
    let length = rig.disk.bytes().len();
    for cut in [1, SECTOR, blocks::STORED, 5 * blocks::STORED, length - 1] {
        let mut cut_off = rig.copy();
        cut_off.disk.cut(length - cut);
        let opened = cut_off.open();
        assert!(
            matches!(&opened, Ok(Kept::Refused(StoreError::Damaged { .. }))),
            "{cut}: {opened:?}"
        );
    }
}

#[test]
fn a_disk_that_hangs_holds_up_the_commit_and_no_reader() {
    let mut rig = rig(Discipline::Full);
    rig.commits(3);
    let (disk, engine) = (rig.disk.clone(), &rig.engine);
    disk.set_hanging(true);
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| engine.commit(4, &[super::put(super::ONE, "a", "b")]));
        for _ in 0..100 {
            assert_eq!(engine.snapshot().expect("open").commit(), 3);
        }
        assert!(!commit.is_finished());
        disk.set_hanging(false);
        assert_eq!(commit.join().expect("no panic"), Ok(()));
    });
    assert_eq!(engine.snapshot().expect("open").commit(), 4);
}

/// A write that the disk confirmed and lost leaves an older block, which fits its place. Only the
/// engine's own check of the whole file finds it.
#[test]
fn verifying_finds_a_write_that_the_disk_lost() {
    let mut start = rig(Discipline::Full);
    start.commits(45);
    let mut found = 0;
    for change in 0..60 {
        let mut rig = start.copy();
        assert_eq!(rig.open(), Ok(Kept::Whole));
        rig.disk.plan(change, Fault::IsLost);
        while rig.disk.is_planned() && rig.commit().is_ok() {}
        // Until the area after the next one is full, what was on its way is in the tables.
        let works = (0..20).all(|_| rig.commit().is_ok());
        rig.engine.close();
        let disk = rig.disk.copy();
        let engine = RedbEngine::with_storage("copy", move || disk.open());
        match engine.verify(&mut |_, _| {}) {
            Ok(verified) if verified.is_sound() => {
                rig.restart();
                assert_eq!(rig.open(), Ok(Kept::Whole), "change {change}, {works}");
            }
            Ok(_) | Err(StoreError::Damaged { .. }) => found += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(found > 0);
}

/// Both copies of an entry are one write. If that is lost, and was the last one, the number that is
/// noted after it tells.
#[test]
fn a_lost_write_of_the_last_entry_is_refused() {
    let mut rig = rig(Discipline::Full);
    rig.commits(5);
    rig.disk.plan(0, Fault::IsLost);
    rig.commits(1);
    rig.restart();
    let Ok(Kept::Refused(StoreError::Damaged { reason, .. })) = rig.open() else {
        panic!("it is refused");
    };
    assert!(
        reason.contains("ends with commit 5, and commit 6"),
        "{reason}"
    );
}

#[test]
fn a_log_that_is_wiped_is_refused() {
    let mut rig = rig(Discipline::Full);
    rig.commits(5);
    rig.engine.close();
    for wiped in [
        24_576..24_576 + 2 * 65_536,
        24_576 + 2 * 8192..24_576 + 65_536,
    ] {
        let wiped_out = rig.disk.copy();
        wiped_out.scribble(wiped.start, &vec![0; wiped.len()]);
        let engine = RedbEngine::with_storage("copy", move || wiped_out.open());
        let opened = engine.open();
        assert!(
            matches!(opened, Err(StoreError::Damaged { .. })),
            "{opened:?}"
        );
    }
}

/// What cannot be read may be an entry that was confirmed: it is no end of the log.
#[test]
fn an_entry_that_cannot_be_read_is_read_from_its_other_copy_or_refused() {
    const LOG: std::ops::Range<usize> = 24_576..24_576 + 2 * 65_536;
    let mut rig = rig(Discipline::Full);
    rig.commits(13);
    rig.engine.close();
    let (mut refused, mut whole) = (0, 0);
    for block in LOG.step_by(4096) {
        rig.disk.set_bad(block..block + 1);
        match rig.open() {
            Ok(Kept::Whole) => whole += 1,
            Ok(Kept::Refused(StoreError::Io { operation, .. })) => {
                assert_eq!(operation, "read its log");
                refused += 1;
            }
            other => panic!("block at {block}: {other:?}"),
        }
        rig.engine.close();
        rig.disk.set_bad(block..(block + 8192).min(LOG.end));
        let opened = rig.open();
        assert!(opened.is_ok(), "blocks at {block}: {opened:?}");
        rig.engine.close();
    }
    assert!(refused > 0 && whole > refused, "{refused} {whole}");
    rig.disk.set_bad(0..0);
    assert_eq!(rig.recover(), Ok(Kept::Whole));
}

/// What an opening has found is as durable as what was confirmed, whatever the power left of the note.
#[test]
fn what_an_opening_found_is_noted() {
    let mut rig = rig(Discipline::Full);
    rig.commits(5);
    rig.lose_power(|_| false);
    rig.restart();
    assert_eq!(rig.engine.open(), Ok(5));
    rig.engine.close();
    // Both copies of the last entry: commits 2 to 5 have two blocks each.
    for copy in [6, 7] {
        rig.disk.flip((24_576 + copy * 4096) * 8 + 3);
    }
    rig.restart();
    let opened = rig.open();
    assert!(
        matches!(opened, Ok(Kept::Refused(StoreError::Damaged { .. }))),
        "{opened:?}"
    );
}
