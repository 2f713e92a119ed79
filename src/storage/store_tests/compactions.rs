//! A copy that takes the store's place while others use it.

use std::{ops::ControlFlow, path::Path, sync::mpsc, time::Duration};

use super::{super::*, support::*};

/// A store that has much free space between its rows, and a user of it.
fn bloated(directory: &Path) -> (FaultyEngine, Store, Told, Generation) {
    let (faulty, store) = disk_store(directory);
    let a = register(&store, "a");
    let generation = a.opened();
    for number in 0..200 {
        let ticket = a.put_bytes(generation, &format!("{number:03}"), 100_000);
        a.committed(generation, ticket);
    }
    let mut removal = Batch::new();
    for number in (0..200).filter(|number| number % 20 != 19) {
        removal.remove(table("a"), format!("{number:03}"));
        removal.remove(table("a"), format!("{number:03}'"));
    }
    let ticket = a.user.commit(generation, removal).expect("taken");
    a.committed(generation, ticket);
    (faulty, store, a, generation)
}

#[test]
fn users_go_on_while_free_space_is_given_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (faulty, store, a, generation) = bloated(&home);
    let before = store.condition().confirmed;
    let mut number = 0;
    let done = store.compact(&mut |_| {
        number += 1;
        let ticket = a.put(generation, &format!("meanwhile {number}"));
        a.committed(generation, ticket);
        ControlFlow::Continue(())
    });
    let done = done.expect("done").expect("it is a file");
    assert!(done.after < done.before / 2, "{done:?}");
    assert!(number > 0);
    assert_eq!(store.condition().confirmed, before + number);
    // No generation has ended, and what comes then is kept too.
    let ticket = a.put(generation, "then");
    a.committed(generation, ticket);
    a.is_told_nothing();
    let there = keys(&store, "a");
    assert_eq!(there.len() as u64, 2 * (10 + number + 1));
    drop((store, a, faulty));
    assert_eq!(keys(&reopened(&home), "a"), there);
    assert!(!home.join("store.redb.new").exists());
}

#[test]
fn a_copy_that_is_damaged_is_found_before_it_takes_the_stores_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (_faulty, store, a, generation) = bloated(&home);
    let copy = home.join("store.redb.new");
    let mut is_flipped = false;
    let done = store.compact(&mut |told| {
        // Beside the copy, whose blocks are read a stretch at a time and all of them again by the
        // engine.
        if told.stage == CopyStage::Checking && !is_flipped {
            is_flipped = true;
            assert!(flip(&copy));
        }
        ControlFlow::Continue(())
    });
    assert!(
        matches!(
            done,
            Err(BackupError::Damaged { .. } | BackupError::Store(StoreError::Damaged { .. }))
        ),
        "{done:?}"
    );
    assert!(is_flipped && !copy.exists());
    a.settles(generation);
    a.is_told_nothing();
    assert_eq!(a.look_up(generation, "199").recv(), Ok(Ok(true)));
    store.compact(&mut go_on).expect("done");
}

#[test]
fn a_read_that_does_not_end_puts_it_off_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_faulty, store, a, generation) = bloated(&directory.path().join("store"));
    let (go, gone) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    a.user.scan(
        generation,
        move |shown| {
            let _ = gone.recv_timeout(PATIENCE);
            shown.get("a/rows", b"199")
        },
        move |answer| {
            let _ = tell.send(answer);
        },
    );
    assert_eq!(store.compact(&mut go_on), Err(BackupError::Reading));
    let ticket = a.put(generation, "then");
    a.committed(generation, ticket);
    assert_eq!(a.look_up(generation, "then").recv(), Ok(Ok(true)));
    go.send(()).expect("it reads");
    let answer = told.recv_timeout(PATIENCE).expect("answered");
    assert!(answer.expect("read").is_some());
    store.compact(&mut go_on).expect("done");
    a.is_told_nothing();
}

#[test]
fn a_copy_that_cannot_take_its_place_ends_the_generation_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let (faulty, store, a, generation) = bloated(&directory.path().join("store"));
    let fault = FaultyEngine::full();
    faulty.fail_replacing(Some(fault.clone()));
    let failed = store.compact(&mut go_on);
    assert_eq!(failed, Err(BackupError::Store(fault)));
    a.failed();
    faulty.fail_replacing(None);
    let next = a.opened();
    assert!(next > generation);
    assert_eq!(a.look_up(next, "199").recv(), Ok(Ok(true)));
    a.settles(next);
    store.compact(&mut go_on).expect("done");
    a.settles(next);
}

#[test]
fn a_store_that_is_looked_after_gives_space_back_and_is_scrubbed_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (faulty, store, a, generation) = bloated(&home);
    store.shared().look();
    let before = store.condition().usage.bytes;
    let settings = UpkeepSettings {
        look_every: Duration::from_millis(20),
        scrub_every: Duration::from_secs(3600),
        scrub_bytes_per_second: 1 << 30,
        compaction: CompactionPolicy {
            free_percent: 50,
            least_bytes: 1 << 20,
        },
    };
    store.start_upkeep(settings).expect("started");
    eventually("space is given back", || {
        store.condition().usage.bytes < before / 2
    });
    eventually("it is scrubbed", || store.condition().scrubbed_at.is_some());
    a.settles(generation);
    a.is_told_nothing();
    let scrubbed_at = store.condition().scrubbed_at;
    drop((store, a, faulty));
    // Both are remembered.
    assert_eq!(reopened(&home).condition().scrubbed_at, scrubbed_at);
}

#[test]
fn what_is_left_of_a_copy_goes_when_it_fails_and_at_the_next_opening() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (faulty, store, a, _) = bloated(&home);
    let copy = home.join("store.redb.new");
    // Nobody catches it: what is in the way of a copy may be a bug of its own.
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.compact(&mut |_| {
            assert!(!copy.exists(), "a panic in the middle of it");
            ControlFlow::Continue(())
        })
    }));
    assert!(died.is_err() && !copy.exists());
    drop((faulty, store, a));
    std::fs::write(&copy, vec![0; 1 << 20]).expect("written");
    drop(reopened(&home));
    assert!(!copy.exists());
}

#[test]
fn an_engine_that_is_no_file_is_left_to_itself() {
    let store = Store::in_memory();
    assert_eq!(store.compact(&mut go_on), Ok(None));
    assert!(store.scrub(&mut |_| {}).expect("nothing to do").is_sound());
}
