//! Users that come, go and follow each other.

use std::sync::{Arc, Mutex, mpsc};

use super::{super::*, support::*};

#[test]
fn what_is_committed_is_told_and_seen() {
    let store = Store::in_memory();
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put(generation, "key");
    a.committed(generation, ticket);
    assert_eq!(a.look_up(generation, "key").recv(), Ok(Ok(true)));
    assert_eq!(a.look_up(generation, "other").recv(), Ok(Ok(false)));
}

#[test]
fn a_user_that_dies_leaves_its_batches_and_another_one_goes_on() {
    let (faulty, store) = faulty_store();
    let (a, b) = (register(&store, "a"), register(&store, "b"));
    let generation = a.opened();
    b.opened();
    faulty.hang(Hang::Commits);
    a.put(generation, "one");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    a.put(generation, "two");
    let ticket = b.put(generation, "three");
    drop(a);
    faulty.release(Hang::Commits);
    b.committed(generation, ticket);
    assert_eq!(keys(&store, "a"), ["one", "one'", "two", "two'"]);
    assert_eq!(keys(&store, "b"), ["three", "three'"]);
}

#[test]
fn a_successor_is_welcomed_only_after_its_predecessors_hung_batch() {
    let (faulty, store) = faulty_store();
    let old = register(&store, "a");
    let generation = old.opened();
    faulty.hang(Hang::Commits);
    old.put(generation, "one");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    old.put(generation, "two");
    let new = register(&store, "a");
    assert_eq!(old.next(), StoreEvent::Replaced);
    new.is_told_nothing();
    assert!(new.user.waiting_for() > std::time::Duration::ZERO);
    let refused = old.user.commit(generation, old.batch("three", 1));
    assert_eq!(refused, Err(StoreError::Ended));
    faulty.release(Hang::Commits);
    let generation = new.opened();
    assert_eq!(new.look_up(generation, "two'").recv(), Ok(Ok(true)));
    assert_eq!(new.look_up(generation, "three").recv(), Ok(Ok(false)));
    new.settles(generation);
    old.is_told_nothing();
    // The predecessor's end is not its successor's.
    drop(old);
    new.settles(generation);
}

#[test]
fn a_successor_of_a_batch_that_fails_is_welcomed_once_to_the_next_generation() {
    let (faulty, store) = faulty_store();
    let old = register(&store, "a");
    let first = old.opened();
    faulty.hang(Hang::Commits);
    faulty.fail_commit(1, Kept::Nothing);
    old.put(first, "one");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    let new = register(&store, "a");
    faulty.release(Hang::Commits);
    let second = new.opened();
    assert!(second > first);
    new.settles(second);
    new.is_told_nothing();
    assert_eq!(old.next(), StoreEvent::Replaced);
    old.is_told_nothing();
    assert!(keys(&store, "a").is_empty());
}

#[test]
fn one_user_waits_for_at_most_one_commit_of_the_others() {
    let (faulty, store) = faulty_store();
    let (tell, told) = mpsc::channel();
    let name = |name: &'static str| {
        let tell = tell.clone();
        store.register(name, move |event| {
            let _ = tell.send((name, event));
        })
    };
    let (a, b) = (name("a"), name("b"));
    let mut generation = None;
    for _ in 0..2 {
        if let (_, StoreEvent::Opened(opened)) = told.recv_timeout(PATIENCE).expect("told") {
            generation = Some(opened);
        }
    }
    let generation = generation.expect("opened");
    let batch = |user: &str, bytes: usize| {
        let mut batch = Batch::new();
        batch.put(table(user), *b"key", vec![0; bytes]);
        batch
    };
    faulty.hang(Hang::Commits);
    a.commit(generation, batch("a", 1)).expect("taken");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    for _ in 0..3 {
        a.commit(generation, batch("a", 4 << 20)).expect("taken");
    }
    b.commit(generation, batch("b", 1)).expect("taken");
    faulty.release(Hang::Commits);
    let order: Vec<&str> = (0..5)
        .map(|_| told.recv_timeout(PATIENCE).expect("told").0)
        .collect();
    assert_eq!(order, ["a", "b", "a", "a", "a"]);
}

#[test]
fn what_the_engine_could_never_take_is_refused_and_nothing_fails() {
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    faulty.limit(Limits {
        batch_bytes: 100,
        value_bytes: 50,
        key_bytes: 10,
    });
    let refused = |change: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        change(&mut batch);
        a.user.commit(generation, batch).expect_err("refused")
    };
    let too_large = |error| match error {
        StoreError::TooLarge { what, .. } => what,
        other => panic!("{other:?}"),
    };
    let rows = table("a");
    assert_eq!(
        too_large(refused(&|b| b.put(rows, *b"k", [0; 99]))),
        "a batch"
    );
    assert_eq!(
        too_large(refused(&|b| b.put(rows, *b"k", [0; 51]))),
        "a value"
    );
    assert_eq!(too_large(refused(&|b| b.remove(rows, [0; 11]))), "a key");
    assert!(matches!(
        refused(&|b| b.put(rows, [], [0])),
        StoreError::EmptyKey { .. }
    ));
    for table in ["b/rows", "ab/rows", "a", "store/meta"] {
        let refused = refused(&|batch| batch.put(Table::new(table), *b"k", *b"v"));
        assert!(
            matches!(refused, StoreError::ForeignTable { .. }),
            "{table}"
        );
    }
    // The store's own tables are nobody's, and a name does not reach into another one's.
    for (name, table) in [("store", "store/meta"), ("a/rows", "a/rows/x")] {
        let user = store.register(name, |_| {});
        let mut batch = Batch::new();
        batch.put(Table::new(table), *b"k", *b"v");
        let refused = user.commit(generation, batch);
        assert!(matches!(refused, Err(StoreError::ForeignTable { .. })));
    }
    let ticket = a.put(generation, "fits");
    a.committed(generation, ticket);
    assert_eq!(store.condition().fault, None);
}

#[test]
fn a_user_that_panics_when_it_is_told_keeps_nobody_else_from_being_told() {
    let (_, store) = faulty_store();
    let panicking = store.register("a", |_| panic!("a panic that was asked for"));
    let b = register(&store, "b");
    let generation = b.opened();
    let mut batch = Batch::new();
    batch.put(table("a"), *b"key", *b"value");
    panicking.commit(generation, batch).expect("taken");
    b.settles(generation);
    assert_eq!(keys(&store, "a"), ["key"]);
}

#[test]
fn a_read_or_an_answer_that_panics_keeps_nobody_else_from_an_answer() {
    let (_, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    // More than there are threads.
    for _ in 0..4 {
        let panics = |_: &dyn Snapshot| -> Result<(), StoreError> { panic!("asked for") };
        let (tell, told) = mpsc::channel();
        a.user.look_up(generation, panics, move |answer| {
            let _ = tell.send(answer);
        });
        let answer = told.recv_timeout(PATIENCE).expect("answered");
        assert!(matches!(answer, Err(StoreError::Io { .. })));
        a.user
            .look_up(generation, |_| Ok(()), |_| panic!("asked for"));
    }
    assert_eq!(a.look_up(generation, "key").recv(), Ok(Ok(false)));
    eventually("nothing waits", || a.user.waiting_for().is_zero());
    // It may be whoever reads.
    assert_eq!(store.condition().damage, None);
}

#[test]
fn a_thread_of_the_store_that_drops_the_last_handle_does_not_wait_for_itself() {
    let (_, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    let kept = Arc::new(Mutex::new(None));
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let taken = Arc::clone(&kept);
    a.user.look_up(
        generation,
        move |_| {
            let _ = gone.recv_timeout(PATIENCE);
            Ok(())
        },
        move |_| {
            let since = std::time::Instant::now();
            drop(taken.lock().expect("whole").take());
            let _ = tell.send(since.elapsed());
        },
    );
    *kept.lock().expect("whole") = Some(a.user);
    drop(store);
    go.send(()).expect("it waits");
    let took = told.recv_timeout(PATIENCE).expect("dropped");
    assert!(took < std::time::Duration::from_secs(1), "{took:?}");
}
