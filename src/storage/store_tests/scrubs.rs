//! Damage that is found before somebody needs what it hit.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use super::{super::*, support::*};

/// Flips a bit in the middle of the value of 20 000 sevens, under a store that writes elsewhere.
fn flip(file: &Path) {
    let bytes = fs::read(file).expect("read");
    let at = bytes.windows(2000).position(|part| part == [7; 2000]);
    let at = at.expect("the value is there") + 1000;
    let file = fs::File::options().write(true).open(file);
    let file = file.expect("opened");
    file.write_all_at(&[bytes[at] ^ 1], at as u64)
        .expect("written");
}

#[test]
fn damage_on_the_disk_shows_until_it_is_left_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (_faulty, store) = disk_store(&home);
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put_bytes(generation, "key", 20_000);
    a.committed(generation, ticket);
    let mut told = 0;
    let report = store.scrub(&mut |blocks| told = blocks).expect("read");
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.blocks, told);
    assert!(store.condition().scrubbed_at.is_some());
    flip(&home.join("store.redb"));
    let report = store.scrub(&mut |_| {}).expect("read");
    assert_eq!(report.suspects.len(), 1, "{report:?}");
    assert!(store.condition().damage.is_some());
    // What was written a moment ago is in memory still: a copy has it whole.
    assert!(report.is_mendable(), "{report:?}");
    store.compact(&mut go_on).expect("done");
    assert!(store.scrub(&mut |_| {}).expect("read").is_sound());
    assert_eq!(store.condition().damage, None);
    assert_eq!(a.look_up(generation, "key").recv(), Ok(Ok(true)));
}

#[test]
fn damage_that_nothing_mends_is_told_by_a_scrub_and_refused_by_a_copy() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (faulty, store) = disk_store(&home);
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put_bytes(generation, "key", 20_000);
    a.committed(generation, ticket);
    drop((store, a, faulty));
    flip(&home.join("store.redb"));
    let store = reopened(&home);
    let report = store.scrub(&mut |_| {}).expect("read");
    assert!(matches!(
        report.unreadable,
        Some(StoreError::Damaged { .. })
    ));
    assert!(!report.is_mendable());
    assert_eq!(store.condition().damage, report.unreadable);
    let damaged = |error| matches!(error, BackupError::Store(StoreError::Damaged { .. }));
    let copy = store.compact(&mut go_on);
    assert!(copy.is_err_and(damaged));
    let backup = store.backup(&directory.path().join("backup"), &mut go_on);
    assert!(backup.is_err_and(damaged));
}
