use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bitcoin::OutPoint;
use proptest::{collection::vec, prelude::*};
use prost::bytes::Bytes as Payload;

use super::*;
use crate::{
    buffer::{
        journal::{Identity, RowKey},
        record::{DeadLetter, Entry, Expects, OpenRequest},
        retained::{Cancel, Counters, RequestRecord, Standing},
    },
    message::{
        BurnId, CancelReason, FailureCode, LedgerId, MessageId, OccurrenceId, Outcome, Progress,
        TransactionType,
    },
    proto,
    telemetry::TraceContext,
};

/// A disk that has written what was synced, and may or may not have written the rest.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    synced: Vec<u8>,
    current: Vec<u8>,
    /// Since the last sync, in order.
    unsynced: Vec<Write>,
    /// Whether syncing is left out, as by a mistake.
    never_syncs: bool,
    /// So many operations from now on, writes and syncs fail.
    fails_after: Option<usize>,
}

#[derive(Debug, Clone)]
enum Write {
    Data(usize, Vec<u8>),
    Length(usize),
}

impl Write {
    fn apply(&self, disk: &mut Vec<u8>) {
        match self {
            Self::Data(offset, data) => {
                if disk.len() < offset + data.len() {
                    disk.resize(offset + data.len(), 0);
                }
                disk[*offset..offset + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => disk.resize(*length, 0),
        }
    }
}

impl Disk {
    fn lock(&self) -> std::sync::MutexGuard<'_, DiskState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_through(&self, write: Write) -> io::Result<()> {
        let mut disk = self.lock();
        disk.fail()?;
        write.apply(&mut disk.current);
        disk.unsynced.push(write);
        Ok(())
    }

    /// The power goes: of what was not synced the disk holds what `choose` picks, in the order of
    /// `choose`'s numbers, so that later writes may be there and earlier ones not.
    fn lose_power(&self, choose: &[u8]) {
        let mut disk = self.lock();
        let mut written = disk.synced.clone();
        let mut survivors: Vec<(u8, Write)> = disk
            .unsynced
            .drain(..)
            .enumerate()
            .map(|(index, write)| (choose[index % choose.len()], write))
            .filter(|(choice, _)| choice.is_multiple_of(2))
            .collect();
        survivors.sort_by_key(|(choice, _)| *choice);
        for (_, write) in survivors {
            write.apply(&mut written);
        }
        disk.synced.clone_from(&written);
        disk.current = written;
        disk.fails_after = None;
    }
}

impl DiskState {
    fn fail(&mut self) -> io::Result<()> {
        match &mut self.fails_after {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().current.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("fits");
        let disk = self.lock();
        let data = disk.current.get(offset..offset + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.write_through(Write::Length(usize::try_from(length).expect("fits")))
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.fail()?;
        if !disk.never_syncs {
            disk.synced = disk.current.clone();
            disk.unsynced.clear();
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("fits");
        self.write_through(Write::Data(offset, data.to_vec()))
    }
}

fn micros(micros: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

fn lanes() -> impl Strategy<Value = Lane> {
    prop::sample::select(Lane::ALL.to_vec())
}

fn entry(lane: Lane, sequence: u64, size: usize, expects: u8) -> Entry {
    Entry {
        lane,
        sequence,
        message_id: MessageId::generate(),
        kind: proto::Kind::SignatureRequest,
        payload: Payload::from(vec![size as u8; size]),
        trace: TraceContext {
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            tracestate: String::new(),
        },
        accepted_at: micros(sequence),
        deadline: size.is_multiple_of(2).then(|| micros(size as u64)),
        expects: match expects % 4 {
            0 => Expects::Nothing,
            1 => Expects::Answered,
            2 => Expects::Outcome("request".parse().expect("valid")),
            _ => Expects::PeginAck(OutPoint::null()),
        },
    }
}

fn standing(choice: u8) -> Standing {
    let settled = |outcome| Standing::Settled {
        outcome,
        at: micros(7),
    };
    let reason = "why".to_owned();
    match choice % 10 {
        0 => Standing::Open {
            progress: Progress::default(),
            cancel: None,
            parked: None,
        },
        1 => Standing::Open {
            progress: Progress {
                signers: Some((0, 3)),
                deadline_passed: true,
            },
            cancel: Some(Cancel {
                reason: CancelReason::Deadline,
                sequence: 4,
            }),
            parked: Some(String::new()),
        },
        2 => settled(Outcome::Complete),
        3 => settled(Outcome::Failed {
            code: Some(FailureCode::Policy),
            reason,
        }),
        4 => settled(Outcome::Failed { code: None, reason }),
        5 => settled(Outcome::Rejected { reason }),
        6 => settled(Outcome::Cancelled {
            signatures_released: true,
        }),
        7 => settled(Outcome::Cancelled {
            signatures_released: false,
        }),
        8 => settled(Outcome::ExpiredUnsent),
        _ => Standing::Forgotten,
    }
}

fn row() -> impl Strategy<Value = Row> {
    prop_oneof![
        (any::<u64>(), any::<bool>()).prop_map(|(epoch, known)| Row::Identity(Identity {
            epoch,
            ledger_id: known.then(LedgerId::generate),
            reconciling: known,
            ..Identity::default()
        })),
        (lanes(), 1..9_u64, any::<bool>()).prop_map(|(lane, next_new, known)| {
            let id = known.then(MessageId::generate);
            let counters = Counters {
                next_new,
                first_unacknowledged: next_new,
                last_acknowledged: id.map(|id| (next_new - 1, id)),
                sent_through: next_new - 1,
                handled_through: 3,
                last_handled: id,
            };
            Row::Lane(lane, counters)
        }),
        (lanes(), 1..9_u64, 0..3000_usize, any::<u8>()).prop_map(|(lane, sequence, size, what)| {
            Row::Entry {
                lane,
                sequence,
                entry: (what % 3 > 0).then(|| entry(lane, sequence, size, what)),
            }
        }),
        (0..9_u64, any::<u8>()).prop_map(|(number, choice)| Row::Request {
            number,
            request: Box::new(RequestRecord {
                number,
                request: OpenRequest {
                    request_id: format!("request-{number}").parse().expect("valid"),
                    payload_hash: [choice; 32],
                    tx_type: TransactionType::Pegout,
                    sequence: 1,
                    burns: vec![BurnId {
                        tx_hash: [choice; 32],
                        log_index: 1,
                    }],
                    spends: vec![OutPoint::null()],
                    accepted_at: micros(1),
                    deadline: micros(2),
                },
                sent_before: choice.is_multiple_of(2),
                aside: choice
                    .is_multiple_of(3)
                    .then(|| entry(Lane::Signing, 1, 9, choice)),
                standing: standing(choice),
            }),
        }),
        (0..9_u64, any::<bool>()).prop_map(|(number, kept)| Row::Pegin {
            number,
            settled: kept.then(|| (OutPoint::null(), micros(number))),
        }),
        (0..9_u64, any::<bool>(), lanes()).prop_map(|(number, kept, lane)| Row::DeadLetter {
            number,
            letter: kept.then(|| DeadLetter {
                lane,
                sequence: number,
                message_id: MessageId::generate(),
                occurrence_id: Some(OccurrenceId::generate()),
                kind: 99,
                payload: Payload::from_static(&[0xff; 40]),
                reason: "why".to_owned(),
                at: micros(number),
            }),
        }),
    ]
}

type Rows = BTreeMap<RowKey, Row>;

fn fold(kept: &mut Rows, rows: &[Row]) {
    for row in rows {
        if row.is_removal() {
            kept.remove(&row.key());
        } else {
            kept.insert(row.key(), row.clone());
        }
    }
}

fn load(journal: &DiskJournal) -> Result<Rows, JournalError> {
    let rows = journal.load()?;
    Ok(rows.into_iter().map(|row| (row.key(), row)).collect())
}

fn journal(disk: &Disk) -> DiskJournal {
    let disk = disk.clone();
    DiskJournal::with_storage(move || disk.clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_committed_is_read(commits in vec(vec(row(), 0..12), 0..6)) {
        let disk = Disk::default();
        let journal = journal(&disk);
        let mut kept = Rows::new();
        prop_assert_eq!(load(&journal), Ok(Rows::new()));
        for rows in commits {
            journal.commit(&rows).expect("a good disk");
            fold(&mut kept, &rows);
            let found = load(&journal);
            prop_assert_eq!(found.as_ref(), Ok(&kept));
        }
    }

    /// Whatever the disk makes of what was not synced, every commit that returned is there, and
    /// the one that did not is there wholly or not at all.
    #[test]
    fn the_loss_of_power_loses_nothing_that_was_confirmed(
        commits in vec((vec(row(), 1..8), any::<Option<u8>>(), vec(any::<u8>(), 1..32)), 1..8),
    ) {
        let disk = Disk::default();
        let mut journal = journal(&disk);
        let mut kept = load(&journal).expect("new");
        for (rows, crash, choices) in commits {
            let Some(moment) = crash else {
                journal.commit(&rows).expect("a good disk");
                fold(&mut kept, &rows);
                continue;
            };
            disk.lock().fails_after = Some(usize::from(moment % 24));
            let confirmed = journal.commit(&rows).is_ok();
            drop(journal);
            disk.lose_power(&choices);
            journal = self::journal(&disk);
            let found = load(&journal);
            let mut with = kept.clone();
            fold(&mut with, &rows);
            let found = found.expect("a valid state is found");
            prop_assert!(found == with || (!confirmed && found == kept), "confirmed: {confirmed}");
            kept = found;
        }
    }
}

/// The test above must notice when nothing is synced.
#[test]
fn without_syncing_confirmed_rows_are_lost() {
    let disk = Disk::default();
    let journal = journal(&disk);
    load(&journal).expect("new");
    disk.lock().never_syncs = true;
    let row = Row::Identity(Identity::default());
    journal
        .commit(std::slice::from_ref(&row))
        .expect("it says so");
    drop(journal);
    disk.lose_power(&[1]);
    let found = load(&self::journal(&disk)).expect("the state before");
    assert!(found.is_empty(), "it was never on the disk");
}

#[test]
fn a_failed_sync_is_a_failed_commit_and_the_next_load_finds_what_there_is() {
    let disk = Disk::default();
    let journal = journal(&disk);
    load(&journal).expect("new");
    let row = Row::Identity(Identity::default());
    for moment in 0..40 {
        disk.lock().fails_after = Some(moment);
        let Err(error) = journal.commit(std::slice::from_ref(&row)) else {
            assert!(moment > 1, "some operation was tried");
            return;
        };
        let shown = error.to_string();
        assert!(shown.contains("make room on that disk"), "{shown}");
        let again = journal.commit(std::slice::from_ref(&row));
        assert!(again.is_err(), "nothing is committed before it is loaded");
        disk.lock().fails_after = None;
        load(&journal).expect("it is opened again");
    }
    panic!("a commit takes fewer operations");
}

/// A journal as a node leaves it, small.
fn small() -> (Vec<u8>, Rows) {
    let disk = Disk::default();
    let journal = journal(&disk);
    let mut kept = load(&journal).expect("new");
    let rows = [
        Row::Identity(Identity::default()),
        Row::Entry {
            lane: Lane::Signing,
            sequence: 1,
            entry: Some(entry(Lane::Signing, 1, 100, 2)),
        },
    ];
    journal.commit(&rows).expect("a good disk");
    fold(&mut kept, &rows);
    drop(journal);
    let bytes = disk.lock().current.clone();
    (bytes, kept)
}

/// Reads what is left of a journal: a state that was committed, or an error that says what to do.
fn check_damaged(bytes: Vec<u8>, kept: &Rows, what: &str) -> bool {
    let path = Path::new("journal.redb");
    match DiskJournal::read_copy(path, &bytes) {
        Ok(rows) => {
            let found: Rows = rows.into_iter().map(|row| (row.key(), row)).collect();
            assert!(
                found == *kept || found.is_empty(),
                "{what}: {found:?} was invented"
            );
            true
        }
        Err(error) => {
            assert!(
                error.to_string().contains("journal.redb"),
                "{what}: {error}"
            );
            false
        }
    }
}

fn quietly<T>(work: impl FnOnce() -> T) -> T {
    // The engine's own assertions panic in debug builds; they are caught, and need not be shown.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = work();
    std::panic::set_hook(hook);
    result
}

/// Damages the file in every way that `damage` makes, on two threads.
fn each_byte(damage: impl Fn(&mut Vec<u8>, usize) + Sync) -> (usize, usize) {
    let (bytes, kept) = small();
    assert!(check_damaged(bytes.clone(), &kept, "whole"));
    let half = |from: usize| {
        (from..bytes.len()).step_by(2).filter(|place| {
            let mut damaged = bytes.clone();
            damage(&mut damaged, *place);
            check_damaged(damaged, &kept, &format!("byte {place}"))
        })
    };
    let read = std::thread::scope(|threads| {
        let even = threads.spawn(|| half(0).count());
        half(1).count() + even.join().expect("no panic")
    });
    (read, bytes.len())
}

#[test]
fn a_file_cut_at_any_byte_is_a_valid_state_or_an_error() {
    let (read, all) = quietly(|| each_byte(|bytes, place| bytes.truncate(place)));
    assert!(
        read < all,
        "a file that is cut short is found out: {read} of {all}"
    );
}

#[test]
fn a_file_damaged_at_any_byte_is_a_valid_state_or_an_error() {
    let (read, all) = quietly(|| each_byte(|bytes, place| bytes[place] ^= 1 << (place % 8)));
    assert!(read < all, "damage is found out: {read} of {all}");
}
