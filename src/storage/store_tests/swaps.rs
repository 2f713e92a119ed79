//! An engine that is not what it was, while the node runs and when it is opened.

use std::sync::Arc;

use super::{super::*, support::*};

/// Has the store open its engine again, by a commit that fails.
fn reopen(faulty: &FaultyEngine, a: &Told, generation: Generation) -> StoreError {
    faulty.fail_commit(1, Kept::Nothing);
    a.put(generation, "last");
    a.failed()
}

#[test]
fn a_store_that_is_another_nodes_is_refused() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    let open = |node: &str| Store::open_on(Arc::clone(&engine), &owner(node));
    assert!(matches!(open("one"), Err(StoreError::Absent { .. })));
    drop(Store::create_on(Arc::clone(&engine), &owner("one")).expect("made"));
    assert!(matches!(
        Store::create_on(Arc::clone(&engine), &owner("one")),
        Err(StoreError::Occupied { .. })
    ));
    assert!(matches!(
        open("two"),
        Err(StoreError::Foreign { what: "node", .. })
    ));
    open("one").expect("its own");
}

#[test]
fn an_engine_that_went_back_is_refused_by_name_until_the_right_one_is_back() {
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put(generation, "one");
    a.committed(generation, ticket);
    let confirmed = store.condition().confirmed;
    faulty.claim(Some(confirmed - 1));
    reopen(&faulty, &a, generation);
    eventually("health says so", || {
        let went_back = StoreError::WentBack {
            place: store.place().to_owned(),
            confirmed,
            found: confirmed - 1,
        };
        store.condition().fault == Some(went_back)
    });
    a.is_told_nothing();
    faulty.claim(None);
    let generation = a.opened();
    a.settles(generation);
    assert_eq!(keys(&store, "a"), ["one", "one'"]);
}

#[test]
fn another_store_in_its_place_is_refused_by_name_until_the_right_one_is_back() {
    let other = MemoryEngine::new();
    // As far as its commits go, it might be the same.
    let (_, store) = faulty_store_on(other.fork());
    drop(store);
    let other = Arc::new(other);
    {
        let engine: Arc<dyn Engine> = Arc::clone(&other) as Arc<dyn Engine>;
        let store = Store::create_on(engine, &owner("one")).expect("made");
        let b = register(&store, "b");
        let generation = b.opened();
        (0..10).for_each(|_| b.settles(generation));
    }
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put(generation, "one");
    a.committed(generation, ticket);
    let right = faulty.swap(other);
    a.put(generation, "two");
    a.failed();
    eventually("health says so", || {
        let what = |fault| {
            matches!(
                fault,
                StoreError::Foreign {
                    what: "store id",
                    ..
                }
            )
        };
        store.condition().fault.is_some_and(what)
    });
    a.is_told_nothing();
    faulty.swap(right);
    let generation = a.opened();
    a.settles(generation);
    assert_eq!(keys(&store, "a"), ["one", "one'"]);
}

#[test]
fn a_copy_that_went_its_own_way_is_refused_though_it_is_no_older() {
    let engine = Arc::new(MemoryEngine::new());
    let faulty = FaultyEngine::new(Arc::clone(&engine) as Arc<dyn Engine>);
    let store = Store::create_on(Arc::new(faulty.handle()), &owner("one")).expect("made");
    let a = register(&store, "a");
    let generation = a.opened();
    let ticket = a.put(generation, "one");
    a.committed(generation, ticket);
    let copy: Arc<dyn Engine> = Arc::new(engine.fork());
    {
        let elsewhere = Store::open_on(Arc::clone(&copy), &owner("one")).expect("opened");
        let b = register(&elsewhere, "b");
        let generation = b.opened();
        b.settles(generation);
    }
    let right = faulty.swap(copy);
    a.put(generation, "two");
    a.failed();
    eventually("health says so", || {
        let what = |fault| {
            matches!(
                fault,
                StoreError::Foreign {
                    what: "last opener",
                    ..
                }
            )
        };
        store.condition().fault.is_some_and(what)
    });
    faulty.swap(right);
    let generation = a.opened();
    a.settles(generation);
}
