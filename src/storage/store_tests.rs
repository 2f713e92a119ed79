use std::sync::{Arc, mpsc};

use super::*;

const ROWS: Table = Table::new("a/rows");

#[test]
fn what_is_committed_is_told_and_seen() {
    let store = Store::in_memory();
    let (tell, told) = mpsc::channel();
    let user = store.register("a", move |event| {
        let _ = tell.send(event);
    });
    let Ok(StoreEvent::Opened(generation)) = told.recv() else {
        panic!("it is open");
    };
    let mut batch = Batch::new();
    batch.put(ROWS, *b"key", *b"value");
    let ticket = user.commit(generation, batch).expect("taken");
    assert_eq!(told.recv(), Ok(StoreEvent::Committed(generation, ticket)));
    let (tell, found) = mpsc::channel();
    user.look_up(
        generation,
        |snapshot| snapshot.get(ROWS.name(), b"key"),
        move |answer| {
            let _ = tell.send(answer);
        },
    );
    assert_eq!(found.recv(), Ok(Ok(Some(b"value".to_vec()))));
    let mut foreign = Batch::new();
    foreign.put(Table::new("ab/rows"), *b"key", *b"value");
    assert!(matches!(
        user.commit(generation, foreign),
        Err(StoreError::ForeignTable { .. })
    ));
}

#[test]
fn a_store_that_is_another_nodes_is_refused() {
    let owner = |node: &str| Owner {
        node_id: node.to_owned(),
        chain_id: "alys".to_owned(),
        network: "regtest".to_owned(),
        first_federation: None,
    };
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    drop(Store::create_on(Arc::clone(&engine), &owner("one")).expect("made"));
    assert!(matches!(
        Store::create_on(Arc::clone(&engine), &owner("one")),
        Err(StoreError::Occupied { .. })
    ));
    assert!(matches!(
        Store::open_on(Arc::clone(&engine), &owner("two")),
        Err(StoreError::Foreign { what: "node", .. })
    ));
    Store::open_on(engine, &owner("one")).expect("its own");
}
