//! Damage that is found before somebody needs what it hit.

use std::sync::mpsc;

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
    store.shared().look();
    eventually("it is in the tables", || flip(&home.join("store.redb")));
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

#[test]
fn sound_blocks_say_nothing_of_rows_that_a_read_found_damaged() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_faulty, store) = disk_store(&directory.path().join("store"));
    let a = register(&store, "a");
    let generation = a.opened();
    let fault = StoreError::Damaged {
        place: "a/rows".to_owned(),
        reason: "a row of another length".to_owned(),
    };
    let (tell, told) = mpsc::channel();
    let found = fault.clone();
    a.user.look_up(
        generation,
        move |_| Err::<(), _>(found),
        move |answer| {
            let _ = tell.send(answer);
        },
    );
    let answer = told.recv_timeout(PATIENCE).expect("answered");
    assert_eq!(answer, Err(fault.clone()));
    eventually("it shows", || store.condition().damage.is_some());
    assert!(store.scrub(&mut |_| {}).expect("read").is_sound());
    assert!(store.condition().scrubbed_at.is_some());
    assert_eq!(store.condition().damage, Some(fault));
}

#[test]
fn a_scrub_that_the_store_failed_meanwhile_or_is_closed_records_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (faulty, store) = disk_store(&directory.path().join("store"));
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put_bytes(generation, "key", 1_000_000);
    a.committed(generation, ticket);
    let mut is_told = false;
    let scrubbed = store.scrub(&mut |_| {
        if !is_told {
            is_told = true;
            faulty.fail_commit(1, Kept::Nothing);
            a.put(generation, "lost");
            a.failed();
            a.opened();
        }
    });
    assert_eq!(scrubbed, Err(StoreError::Ended));
    assert_eq!(store.condition().scrubbed_at, None);
    // Nor is a file read that was refused.
    let confirmed = store.condition().confirmed;
    faulty.claim(Some(confirmed - 1));
    faulty.fail_commit(1, Kept::Nothing);
    let generation = Generation(generation.0 + 1);
    a.put(generation, "lost");
    a.failed();
    let went_back = |fault: StoreError| matches!(fault.cause(), StoreError::WentBack { .. });
    eventually("it is refused", || {
        store.condition().fault.is_some_and(went_back)
    });
    assert!(store.scrub(&mut |_| {}).is_err_and(went_back));
    assert_eq!(store.condition().scrubbed_at, None);
    eventually("its file is let go of", || {
        matches!(faulty.snapshot(), Err(StoreError::Closed { .. }))
    });
    faulty.claim(None);
    let generation = a.opened();
    a.settles(generation);
    assert!(store.scrub(&mut |_| {}).expect("read").is_sound());
}
