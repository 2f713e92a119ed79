//! Backups of a store that others use, and checks of them.

use std::{fs, ops::ControlFlow, os::unix::fs::PermissionsExt as _, path::Path};

use super::{super::*, support::*};

/// More than a few pages of rows.
const ROWS: u64 = 6000;

/// A user whose rows always are: `count` and, of what it counted, the last ten numbers; and in another
/// table one row for each hundred.
struct Counting {
    told: Told,
    generation: Generation,
    count: u64,
}

fn key(number: u64) -> Vec<u8> {
    // All over the table, so that copied parts change and parts to come do.
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .to_be_bytes()
        .to_vec()
}

impl Counting {
    fn begin(store: &Store) -> Self {
        let told = register(store, "a");
        let generation = told.opened();
        let mut fixed = Batch::new();
        for number in 0..ROWS {
            let key = [b"fixed".as_slice(), &key(number)].concat();
            fixed.put(Table::new("a/fixed"), key, [1; 700]);
        }
        let ticket = told.user.commit(generation, fixed).expect("taken");
        told.committed(generation, ticket);
        Self {
            told,
            generation,
            count: 0,
        }
    }

    fn hand_in(&mut self) -> Ticket {
        self.count += 1;
        let count = self.count;
        let mut batch = Batch::new();
        batch.put(Table::new("a/count"), *b"count", count.to_be_bytes());
        batch.put(Table::new("a/rows"), key(count), count.to_be_bytes());
        if count > 10 {
            batch.remove(Table::new("a/rows"), key(count - 10));
        }
        if count.is_multiple_of(100) {
            batch.put(Table::new("a/new"), key(count), *b"new");
        }
        self.told
            .user
            .commit(self.generation, batch)
            .expect("taken")
    }

    fn count_on(&mut self, by: u64) {
        for _ in 0..by {
            let ticket = self.hand_in();
            self.told.committed(self.generation, ticket);
        }
    }
}

/// That what is there is the state after exactly one of the counts; which.
fn check_counted(shown: &dyn Snapshot) -> u64 {
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("a number"));
    let count = shown.get("a/count", b"count").expect("read");
    let count = count.map_or(0, |count| number(&count));
    let rows = shown.scan("a/rows", Scan::first(usize::MAX)).expect("read");
    let mut found: Vec<u64> = rows.iter().map(|(_, value)| number(value)).collect();
    found.sort_unstable();
    let expected: Vec<u64> = (count.saturating_sub(9).max(1)..=count).collect();
    assert_eq!(found, expected);
    let tables = shown.tables().expect("read");
    let rows = |name: &str| {
        let table = tables.iter().find(|(table, _)| table == name);
        table.map_or(0, |(_, rows)| *rows)
    };
    assert_eq!(rows("a/fixed"), ROWS);
    assert_eq!(rows("a/new"), count / 100);
    count
}

fn check_backup(file: &Path) -> (Backup, u64) {
    let backup = verify_backup(file, &mut go_on).expect("sound");
    let opened = ReadOnlyFile::open(file).expect("opened");
    let shown = opened.snapshot().expect("read");
    assert_eq!(shown.commit(), backup.commit);
    (backup, check_counted(&*shown))
}

#[test]
fn a_backup_is_the_state_of_one_commit_while_others_commit() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = [disk_store(&directory.path().join("store")), faulty_store()];
    for (number, (_, store)) in stores.into_iter().enumerate() {
        let mut counting = Counting::begin(&store);
        counting.count_on(5);
        let file = directory.path().join(format!("backup-{number}"));
        let mut told = 0;
        let backup = store.backup(&file, &mut |_| {
            told += 1;
            // More at each page than the last copy may hold.
            if told < 12 {
                counting.count_on(101);
            }
            ControlFlow::Continue(())
        });
        let backup = backup.expect("made");
        assert!(told > 4, "it told how far it had come");
        let (checked, count) = check_backup(&file);
        assert_eq!(checked, backup);
        assert!(count > 300, "{count}");
        assert_eq!(backup.store_id, store.identity().store_id);
        for path in [file.clone(), Backup::place(&file)] {
            let mode = fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        // It is remembered, and the store goes on.
        assert_eq!(store.condition().backed_up_at, Some(backup.made_at));
        counting.count_on(3);
    }
}

#[test]
fn a_backup_outlasts_a_failure_of_the_store() {
    for kept in [Kept::Nothing, Kept::All] {
        let directory = tempfile::tempdir().expect("a directory");
        let (faulty, store) = faulty_store();
        let mut counting = Counting::begin(&store);
        let file = directory.path().join("backup");
        let mut told = 0;
        let backup = store.backup(&file, &mut |_| {
            told += 1;
            if told == 2 {
                counting.count_on(3);
                faulty.fail_commit(1, kept);
                counting.hand_in();
                counting.told.failed();
                counting.generation = counting.told.opened();
                counting.count -= u64::from(kept == Kept::Nothing);
                counting.count_on(3);
            }
            ControlFlow::Continue(())
        });
        backup.expect("made");
        let (_, count) = check_backup(&file);
        assert_eq!(count, counting.count, "{kept:?}");
    }
}

#[test]
fn a_closed_store_refuses_a_backup_at_once_and_one_that_waits_for_it_can_be_cancelled() {
    let directory = tempfile::tempdir().expect("a directory");
    let (faulty, store) = faulty_store();
    let mut counting = Counting::begin(&store);
    let file = directory.path().join("backup");
    let mut told = 0;
    let cancelled = store.backup(&file, &mut |_| {
        told += 1;
        if told == 2 {
            faulty.fail_opens(Some(FaultyEngine::full()));
            faulty.fail_commit(1, Kept::Nothing);
            counting.hand_in();
            counting.told.failed();
        }
        if told > 4 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(cancelled, Err(BackupError::Cancelled));
    let refused = store.backup(&file, &mut |_| panic!("nothing is copied"));
    let refused = refused.expect_err("it is closed").to_string();
    assert!(
        refused.starts_with("the store is closed since it failed")
            && refused.contains("no space left on device"),
        "{refused}"
    );
    assert!(store.compact(&mut go_on).is_ok_and(|done| done.is_none()));
    assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 0);
    faulty.fail_opens(None);
    counting.told.opened();
    store.backup(&file, &mut go_on).expect("made");
}

#[test]
fn a_backup_that_is_cancelled_leaves_nothing_under_its_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let (faulty, store) = faulty_store();
    let mut counting = Counting::begin(&store);
    let file = directory.path().join("backup");
    for stage in [CopyStage::Copying, CopyStage::Checking] {
        let cancelled = store.backup(&file, &mut |told| {
            if told.stage == stage {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(cancelled, Err(BackupError::Cancelled));
        assert!(!file.exists() && !Backup::place(&file).exists());
    }
    // So does one that waits for a disk that hangs.
    faulty.hang(Hang::Commits);
    counting.hand_in();
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    let mut told = 0;
    let cancelled = store.backup(&file, &mut |_| {
        told += 1;
        if told > 10 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(cancelled, Err(BackupError::Cancelled));
    faulty.release(Hang::Commits);
    store.backup(&file, &mut go_on).expect("made");
    check_backup(&file);
    let names = fs::read_dir(directory.path()).expect("read");
    let names = names.map(|entry| entry.expect("read").file_name());
    let mut names: Vec<String> = names
        .map(|name| name.into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, ["backup", "backup.json"]);
}

#[test]
fn a_backup_takes_nobodys_place_and_one_is_made_at_a_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_, store) = faulty_store();
    let _counting = Counting::begin(&store);
    let (file, other) = (directory.path().join("one"), directory.path().join("two"));
    let mut second = None;
    store
        .backup(&file, &mut |_| {
            second.get_or_insert_with(|| store.backup(&other, &mut go_on));
            ControlFlow::Continue(())
        })
        .expect("made");
    assert_eq!(second, Some(Err(BackupError::Busy)));
    let before = fs::read(&file).expect("there");
    let again = store.backup(&file, &mut go_on);
    assert!(
        matches!(again, Err(BackupError::Exists { .. })),
        "{again:?}"
    );
    assert_eq!(fs::read(&file).expect("there"), before);
    // Nor that of one, or of a description, that comes meanwhile.
    for name in ["three", "three.json"] {
        let (file, there) = (directory.path().join("three"), directory.path().join(name));
        let refused = store.backup(&file, &mut |told| {
            if told.stage == CopyStage::Checking {
                fs::write(&there, "another's").expect("written");
            }
            ControlFlow::Continue(())
        });
        let exists = |error| matches!(error, BackupError::Exists { .. });
        assert!(refused.is_err_and(exists));
        assert_eq!(fs::read(&there).expect("there"), b"another's");
        fs::remove_file(&there).expect("removed");
        let left = fs::read_dir(directory.path()).expect("read").count();
        assert_eq!(left, 2, "the first backup and its description");
    }
}

#[test]
fn a_stopped_store_is_backed_up_as_well_and_a_live_one_is_not_taken_for_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let (home, file) = (directory.path().join("store"), directory.path().join("one"));
    let (faulty, store) = disk_store(&home);
    let mut counting = Counting::begin(&store);
    counting.count_on(20);
    let refused = backup_stopped(&home, &file, &mut go_on);
    let held = |error| matches!(error, BackupError::Store(StoreError::Held { .. }));
    assert!(refused.is_err_and(held));
    let commit = store.condition().confirmed;
    drop((store, counting, faulty));
    let backup = backup_stopped(&home, &file, &mut go_on).expect("made");
    assert_eq!(backup.commit, commit);
    assert_eq!(check_backup(&file).1, 20);
    let absent = backup_stopped(&directory.path().join("no"), &home.join("x"), &mut go_on);
    let absent = absent.expect_err("there is none");
    assert!(matches!(
        absent,
        BackupError::Store(StoreError::Absent { .. })
    ));
}

#[test]
fn a_backup_that_is_not_what_was_made_is_told_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put_bytes(generation, "key", 20_000);
    a.committed(generation, ticket);
    let file = directory.path().join("backup");
    let sidecar = Backup::place(&file);
    store.backup(&file, &mut go_on).expect("made");
    let (sound, described) = (
        fs::read(&file).expect("read"),
        fs::read(&sidecar).expect("read"),
    );
    let wrong = |what: &str| {
        let wrong = verify_backup(&file, &mut go_on).expect_err(what);
        fs::write(&file, &sound).expect("written");
        fs::write(&sidecar, &described).expect("written");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&file, private).expect("set");
        verify_backup(&file, &mut go_on).expect("sound again");
        wrong
    };
    let described_as = |change: &dyn Fn(&mut Backup)| {
        let mut backup: Backup = serde_json::from_slice(&described).expect("JSON");
        change(&mut backup);
        fs::write(&sidecar, serde_json::to_vec(&backup).expect("JSON")).expect("written");
    };

    fs::remove_file(&sidecar).expect("removed");
    assert!(matches!(wrong("alone"), BackupError::NoSidecar { .. }));
    fs::write(&sidecar, "{}").expect("written");
    assert!(matches!(wrong("no sidecar"), BackupError::Sidecar { .. }));
    fs::remove_file(&file).expect("removed");
    let absent = wrong("without a file");
    assert!(matches!(absent, BackupError::File { .. }), "{absent}");
    fs::write(&file, &sound[..sound.len() - 1]).expect("written");
    assert!(matches!(wrong("cut short"), BackupError::Checksum { .. }));
    let at = sound.windows(1000).position(|part| part == [7; 1000]);
    let mut changed = sound.clone();
    changed[at.expect("the value is there") + 500] ^= 1;
    fs::write(&file, &changed).expect("written");
    assert!(matches!(wrong("changed"), BackupError::Checksum { .. }));
    // Were the description changed with it, the file's own checksums tell.
    fs::write(&file, &changed).expect("written");
    let sha256 = sidecar::sum(&file).expect("read").sha256;
    described_as(&|backup| backup.sha256.clone_from(&sha256));
    let damaged = wrong("damaged");
    assert!(
        matches!(
            damaged,
            BackupError::Damaged { .. } | BackupError::Store(StoreError::Damaged { .. })
        ),
        "{damaged}"
    );
    type Edit = fn(&mut Backup);
    let edits: [(&str, Edit); 4] = [
        ("last commit", |backup| backup.commit += 1),
        ("store id", |backup| backup.store_id = uuid::Uuid::nil()),
        ("node", |backup| backup.node_id = "two".to_owned()),
        ("rows by table", |backup| backup.tables.clear()),
    ];
    for (expected, edit) in edits {
        described_as(&edit);
        match wrong(expected) {
            BackupError::Mismatch { what, .. } => assert_eq!(what, expected),
            other => panic!("{other}"),
        }
    }
}
