//! Damage that is found before somebody needs what it hit.

use super::{super::*, support::*};

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
    let (faulty, store) = disk_store(&directory.path().join("store"));
    let a = register(&store, "a");
    let generation = a.opened();
    a.settles(generation);
    // The engine reads its whole file when it is opened in a debug build: damage comes later.
    let fault = StoreError::Damaged {
        place: store.place().to_owned(),
        reason: "block 25 (injected)".to_owned(),
    };
    faulty.claim_scrubbed(Some(Scrubbed {
        blocks: 1,
        suspects: vec![(25, "block 25 (injected)".to_owned())],
        next: None,
    }));
    faulty.fail_reads_of_rows(Some(fault.clone()));
    let report = store.scrub(&mut |_| {}).expect("read");
    assert_eq!(report.unreadable, Some(fault.clone()));
    assert!(!report.is_mendable() && !report.is_sound());
    assert_eq!(store.condition().damage, Some(fault.clone()));
    let damaged = BackupError::Store(fault);
    assert_eq!(store.compact(&mut go_on), Err(damaged.clone()));
    let backup = store.backup(&directory.path().join("backup"), &mut go_on);
    assert_eq!(backup, Err(damaged));
    // Until a scrub finds nothing.
    faulty.claim_scrubbed(None);
    faulty.fail_reads_of_rows(None);
    assert!(store.scrub(&mut |_| {}).expect("read").is_sound());
    assert_eq!(store.condition().damage, None);
    a.settles(generation);
}
