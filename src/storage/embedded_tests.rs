use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::storage::{
    batch::Table,
    engine::Scan,
    faulty_disk::{Fault, FaultyDisk},
};

const ROWS: Table = Table::new("test/rows");
/// Bytes of a file's log.
const LOG: u64 = 16 << 20;

fn row(key: u64, size: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put(ROWS, key.to_be_bytes(), vec![key as u8; size]);
    batch
}

fn rows(engine: &RedbEngine) -> u64 {
    let snapshot = engine.snapshot().expect("open");
    let tables = snapshot.tables().expect("readable");
    tables.iter().map(|(_, rows)| rows).sum()
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::metadata(path).expect("there");
    metadata.permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

#[test]
fn a_store_is_made_for_its_owner_only() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("deep").join("store");
    let engine = RedbEngine::create(&directory, false).expect("made");
    assert_eq!(engine.open(), Ok(0));
    assert_eq!(mode(&directory), 0o700);
    for name in ["store.redb", "LOCK"] {
        assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
    }
    assert!(engine.usage().expect("known").available_bytes.is_some());
    drop(engine);
    set_mode(&directory.join("store.redb"), 0o640);
    let engine = RedbEngine::at(&directory).expect("a directory");
    let error = engine.open().expect_err("others may read it");
    assert!(matches!(
        error,
        StoreError::Permissions {
            mode: 0o640,
            wanted: 0o600,
            ..
        }
    ));
    set_mode(&directory.join("store.redb"), 0o600);
    set_mode(&directory, 0o750);
    let error = engine.open().expect_err("others may enter");
    assert!(matches!(
        error,
        StoreError::Permissions {
            mode: 0o750,
            wanted: 0o700,
            ..
        }
    ));
    drop(engine);
    assert!(matches!(
        RedbEngine::at(&directory),
        Err(StoreError::Permissions { .. })
    ));
}

#[test]
fn a_store_is_made_where_there_is_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("store");
    fs::create_dir(&directory).expect("made");
    set_mode(&directory, 0o755);
    for name in ["LOCK", "operator.sock", "store.redb.new"] {
        fs::write(directory.join(name), "left").expect("written");
    }
    fs::write(directory.join("letter"), "").expect("written");
    let refused = RedbEngine::create(&directory, false).expect_err("something is there");
    assert!(matches!(&refused, StoreError::Occupied { found, .. } if found == "`letter`"));
    fs::remove_file(directory.join("letter")).expect("removed");
    RedbEngine::create(&directory, false).expect("made");
    assert_eq!(mode(&directory), 0o700, "closed to others");
    for anything in [false, true] {
        let refused = RedbEngine::create(&directory, anything).expect_err("a store is there");
        assert!(matches!(&refused, StoreError::Occupied { found, .. } if found == "`store.redb`"));
    }
    fs::remove_file(directory.join("store.redb")).expect("removed");
    fs::write(directory.join("letter"), "").expect("written");
    RedbEngine::create(&directory, true).expect("made beside it");
}

#[test]
fn opening_creates_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("store");
    assert!(matches!(
        RedbEngine::at(&directory),
        Err(StoreError::Absent { .. })
    ));
    assert!(!directory.exists());
    let engine = RedbEngine::create(&directory, false).expect("made");
    assert_eq!(engine.open(), Ok(0));
    let file = directory.join("store.redb");
    let elsewhere = parent.path().join("elsewhere");
    fs::rename(&file, &elsewhere).expect("moved");
    // What is open is not what is there by name; the next opening tells.
    assert!(matches!(engine.open(), Err(StoreError::Absent { .. })));
    assert!(matches!(
        engine.commit(1, &[]),
        Err(StoreError::Closed { .. })
    ));
    assert!(!file.exists());
    fs::write(&file, "").expect("written");
    set_mode(&file, 0o600);
    assert!(matches!(engine.open(), Err(StoreError::Damaged { .. })));
    fs::write(&file, vec![7; 1 << 20]).expect("written");
    assert!(matches!(engine.open(), Err(StoreError::Damaged { .. })));
    fs::rename(&elsewhere, &file).expect("moved");
    assert_eq!(engine.open(), Ok(0), "another inode is fine");
}

#[test]
fn a_directory_has_one_owner() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("store");
    let engine = RedbEngine::create(&directory, false).expect("made");
    let refused = RedbEngine::at(&directory).expect_err("held");
    let me = format!("process {}", std::process::id());
    assert!(matches!(&refused, StoreError::Held { holder, .. } if *holder == me));
    assert!(matches!(
        ReadOnlyFile::inspect(&directory),
        Err(StoreError::Held { .. })
    ));
    drop(engine);
    RedbEngine::at(&directory).expect("free again");
    ReadOnlyFile::inspect(&directory).expect("free again");
}

#[test]
fn a_stopped_store_is_read_without_a_change() {
    let parent = tempfile::tempdir().expect("a directory");
    let engine = RedbEngine::create(parent.path(), false).expect("made");
    assert_eq!(engine.open(), Ok(0));
    for number in 1..=20 {
        engine
            .commit(number, &[row(number, 300)])
            .expect("committed");
    }
    drop(engine);
    let path = parent.path().join("store.redb");
    let before = fs::read(&path).expect("readable");
    let file = ReadOnlyFile::inspect(parent.path()).expect("whole");
    let snapshot = file.snapshot().expect("readable");
    assert_eq!(snapshot.commit(), 20);
    let all = snapshot
        .scan(ROWS.name(), Scan::first(99))
        .expect("readable");
    assert_eq!(all.len(), 20);
    drop((snapshot, file));
    let mut told = Vec::new();
    let verified = verify_file(&path, &mut |done, all| told.push((done, all))).expect("told");
    assert!(verified.is_sound(), "{verified:?}");
    assert_eq!((verified.commit, verified.harmless), (20, Vec::new()));
    assert_eq!(told.last(), Some(&(verified.blocks, verified.blocks)));
    assert!(verified.used_blocks > 3 && verified.used_blocks < verified.blocks);
    assert!(fs::read(&path).expect("readable") == before, "unchanged");
}

#[test]
fn old_readers_and_old_handles_never_touch_a_file_that_is_opened_again() {
    let disk = FaultyDisk::default();
    RedbEngine::format("disk", disk.open().expect("there")).expect("made");
    let ours = disk.clone();
    let engine = RedbEngine::with_storage("disk", move || ours.open());
    assert_eq!(engine.open(), Ok(0));
    engine.commit(1, &[row(1, 300)]).expect("committed");
    let old = engine.snapshot().expect("open");
    disk.plan(0, Fault::Fails);
    engine.commit(2, &[row(2, 300)]).expect_err("it fails");
    assert!(matches!(
        engine.commit(2, &[]),
        Err(StoreError::Closed { .. })
    ));
    assert!(matches!(engine.snapshot(), Err(StoreError::Closed { .. })));
    assert_eq!(engine.open(), Ok(1));
    let before = disk.bytes();
    // It may read what is in memory; it may also fail.
    let _either = old.get(ROWS.name(), b"key");
    drop(old);
    assert!(disk.bytes() == before, "nothing was written late");
    engine.commit(2, &[row(2, 300)]).expect("committed");
    assert_eq!(rows(&engine), 2);
}

#[test]
fn damage_is_told_with_file_block_and_place() {
    let disk = FaultyDisk::default();
    RedbEngine::format("disk", disk.open().expect("there")).expect("made");
    let ours = disk.clone();
    let engine = RedbEngine::with_storage("disk", move || ours.open());
    assert_eq!(engine.open(), Ok(0));
    let mut batches: Vec<Batch> = (0..2000).map(|key| row(key, 300)).collect();
    let needle = b"a value that no other row has";
    let mut marked = Batch::new();
    marked.put(ROWS, 77_u64.to_be_bytes(), needle);
    batches.push(marked);
    engine.commit(1, &batches).expect("committed");
    assert_eq!(engine.open(), Ok(1));
    let mut bytes = disk.bytes();
    let at = bytes
        .windows(needle.len())
        .position(|bytes| bytes == needle);
    let at = at.expect("row 77 is there");
    bytes[at] ^= 1;
    disk.scribble(at, &bytes[at..=at]);
    let start = 24576 + 2 * SMALL_AREA;
    let block = (at as u64 - start) / 4104 + 1;
    let says = format!("block {block} at byte {}", start + (block - 1) * 4104);
    // A debug build of redb reads every page at the opening.
    let fails = || {
        let read = || {
            let snapshot = engine.snapshot()?;
            snapshot.get(ROWS.name(), &77_u64.to_be_bytes())
        };
        engine.open()?;
        // Once the engine has given up it still says why.
        read().expect_err("damage");
        read()
    };
    for _ in 0..2 {
        let StoreError::Damaged { place, reason } = fails().expect_err("damage") else {
            panic!("it is damaged");
        };
        assert_eq!(place, "disk");
        assert!(reason.contains(&says), "{reason}");
    }
    let verified = engine.verify(&mut |_, _| {}).expect("told");
    assert_eq!(verified.damage.len(), 1, "{verified:?}");
    assert!(verified.damage[0].contains(&says));
    // What is open already goes on until it comes to that block.
    let damaged = disk.copy();
    bytes[at] ^= 1;
    disk.scribble(at, &bytes[at..=at]);
    assert_eq!(engine.open(), Ok(1));
    disk.become_copy_of(&damaged);
    let scrubbed = engine.scrub(0, u64::MAX).expect("open");
    assert_eq!(scrubbed.suspects.len(), 1);
    assert!(scrubbed.suspects[0].1.contains(&says));
}

#[test]
fn what_a_cut_short_write_left_in_free_space_is_harmless() {
    let disk = FaultyDisk::default();
    RedbEngine::format("disk", disk.open().expect("there")).expect("made");
    let ours = disk.clone();
    let engine = RedbEngine::with_storage("disk", move || ours.open());
    assert_eq!(engine.open(), Ok(0));
    for number in 1..=20 {
        engine
            .commit(number, &[row(number, 300)])
            .expect("committed");
    }
    engine.close();
    let big: Vec<Batch> = (0..200).map(|key| row(key, 300)).collect();
    // Before the first sync of the tables each second sector of what it is to cover is there.
    let mut found = 0;
    for change in 0..40 {
        let disk = disk.copy();
        let ours = disk.clone();
        let engine = RedbEngine::with_storage("disk", move || ours.open());
        assert_eq!(engine.open(), Ok(20));
        disk.plan(change, Fault::PowerFails);
        if engine.commit(21, &big).is_ok() {
            break;
        }
        disk.lose_power(|sector| sector % 2 == 0);
        let last = engine.open().expect("whole");
        assert!([20, 21].contains(&last), "{last}");
        let suspects = engine.scrub(0, u64::MAX).expect("open").suspects;
        let verified = engine.verify(&mut |_, _| {}).expect("told");
        assert!(verified.is_sound(), "{verified:?}");
        assert_eq!(verified.harmless.is_empty(), suspects.is_empty());
        found += usize::from(!suspects.is_empty());
    }
    assert!(found > 3, "{found}");
}

#[test]
fn a_copy_takes_the_place_of_the_store() {
    let parent = tempfile::tempdir().expect("a directory");
    let engine = RedbEngine::create(parent.path().join("store"), false).expect("made");
    assert_eq!(engine.open(), Ok(0));
    let mut number = 0;
    let mut commit = |batches: &[Batch]| {
        number += 1;
        engine.commit(number, batches).expect("committed");
        number
    };
    commit(&(0..20_000).map(|key| row(key, 300)).collect::<Vec<_>>());
    let mut removal = Batch::new();
    for key in 0..19_000_u64 {
        removal.remove(ROWS, key.to_be_bytes());
    }
    commit(&[removal]);
    let last = commit(&[row(5, 3)]);
    engine.checkpoint();
    engine
        .opened()
        .expect("open")
        .wait_for_checkpoint()
        .expect("done");
    let before = engine.usage().expect("known");
    assert!(before.free_bytes > (before.bytes - LOG) / 2, "{before:?}");

    let path = parent.path().join("store").join("copy");
    let copy = |commit| {
        let snapshot = engine.snapshot().expect("open");
        let mut writer = CopyWriter::create(&path).expect("made");
        for (table, _) in snapshot.tables().expect("readable") {
            let rows = snapshot.scan(&table, Scan::first(usize::MAX));
            for (key, value) in rows.expect("readable") {
                writer.put(&table, key, value).expect("written");
            }
        }
        writer.finish(commit).expect("finished");
    };
    copy(last - 1);
    assert!(matches!(
        engine.replace_with(&path),
        Err(StoreError::WentBack { .. })
    ));
    assert_eq!(rows(&engine), 1001, "it is still open");
    copy(last);
    assert_eq!(mode(&path), 0o600);
    let verified = verify_file(&path, &mut |_, _| {}).expect("told");
    assert!(verified.is_sound(), "{verified:?}");
    assert_eq!(engine.replace_with(&path), Ok(last));
    assert!(!path.exists());
    assert_eq!(rows(&engine), 1001);
    let after = engine.usage().expect("known");
    assert!(
        after.bytes - LOG < (before.bytes - LOG) / 4,
        "{after:?} after {before:?}"
    );
    assert!(after.free_bytes < (after.bytes - LOG) / 2, "{after:?}");
    engine.commit(last + 1, &[row(6, 3)]).expect("committed");
    assert_eq!(engine.open(), Ok(last + 1));
}

#[test]
fn a_file_comes_into_being_with_its_identity_in_it() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("store");
    let owner = crate::storage::Owner {
        node_id: "node".to_owned(),
        chain_id: "chain".to_owned(),
        network: "regtest".to_owned(),
        first_federation: None,
    };
    drop(crate::storage::Store::create(&directory, &owner, false).expect("made"));
    // As the first moment left it: nothing is in the log, and nothing is noted.
    let file = directory.join("store.redb");
    let log = File::options().write(true).open(&file).expect("there");
    let zeros = vec![0; usize::try_from(LOG).expect("small")];
    let write = |bytes: &[u8], at| std::os::unix::fs::FileExt::write_all_at(&log, bytes, at);
    write(&zeros, 24_576).expect("written");
    for place in crate::storage::blocks::WATERMARKS {
        write(&[0; 16], place).expect("written");
    }
    drop(crate::storage::Store::open(&directory, &owner).expect("a whole store"));
}

/// A copy of a directory may lack the lock's file.
#[test]
fn nobody_takes_a_directory_while_its_store_is_read() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("store");
    let engine = RedbEngine::create(&directory, false).expect("made");
    assert_eq!(engine.open(), Ok(0));
    engine.commit(1, &[row(1, 300)]).expect("committed");
    drop(engine);
    fs::remove_file(directory.join("LOCK")).expect("there");
    let read = ReadOnlyFile::inspect(&directory).expect("whole");
    let second = ReadOnlyFile::inspect(&directory).expect("others may read");
    let refused = RedbEngine::at(&directory).expect_err("it is read");
    assert!(
        matches!(&refused, StoreError::Held { holder, .. } if holder.contains("reads it")),
        "{refused}"
    );
    drop((read, second));
    let engine = RedbEngine::at(&directory).expect("nobody reads it");
    assert!(matches!(
        ReadOnlyFile::inspect(&directory),
        Err(StoreError::Held { .. })
    ));
    assert_eq!(engine.open(), Ok(1));
}
