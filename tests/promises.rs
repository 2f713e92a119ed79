//! What the store costs and promises while it is slow, gone or hangs, within one process.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use governance_stream::{
    GovernanceStream, Health, StreamArguments, StreamError,
    message::Outcome,
    storage::{
        Engine, FaultyEngine, Generation, Hang, Kept, MemoryEngine, Owner, Store, StoreError,
        StoreEvent,
    },
};
use support::{PATIENCE, config, governance, pegout, rows, until};

/// Rows that a start reads when so many requests are settled and three are open.
async fn rows_of_a_start(settled: u64) -> u64 {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let engine = rows::rows();
    let mut configured = config(&simulator.endpoints());
    configured.buffer.acknowledged_for = Duration::ZERO;
    let bridge = support::recorder::Bridge::start(&configured.subscribers.bridge).await;
    let chain = support::recorder::Chain::start(&configured.subscribers.chain).await;
    let arguments = StreamArguments::new(configured.clone(), rows::open(&engine));
    let stream = GovernanceStream::start(arguments).await.expect("starts");
    for number in 0..settled {
        let handle = support::accepted(&stream, pegout(&federation, number)).await;
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    simulator.hold_responses();
    for number in settled..settled + 3 {
        support::accepted(&stream, pegout(&federation, number)).await;
    }
    until(&stream, "sent", |status| {
        status.lanes.iter().all(|lane| lane.unacknowledged == 0)
    })
    .await;
    configured.drain_deadline = Duration::from_millis(100);
    stream.shutdown().await.expect("shuts down");
    drop(stream);
    let store = rows::open(&engine);
    let before = engine.rows_read();
    let stream = GovernanceStream::start(StreamArguments::new(configured, store)).await;
    let stream = stream.expect("starts");
    until(&stream, "loaded", |status| status.open_requests == 3).await;
    let read = engine.rows_read() - before;
    stream.shutdown().await.expect("shuts down");
    bridge.stop().await;
    chain.stop().await;
    read
}

/// S3: what is settled is on disk, and nobody reads it at a start.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_reads_what_is_open_and_nothing_of_what_is_settled() {
    let few = rows_of_a_start(5).await;
    let many = rows_of_a_start(305).await;
    assert!(
        many <= few + 20,
        "{few} rows with 5 settled, {many} with 305"
    );
}

fn faulty() -> (FaultyEngine, Store) {
    let engine = FaultyEngine::new(Arc::new(MemoryEngine::new()));
    let disk = engine.handle();
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let owner = Owner::of(&config(&["http://127.0.0.1:1".to_owned()]).node);
    (disk, Store::create_on(engine, &owner).expect("made"))
}

/// S8: while what is open is being read, callers are held within the bounds of any other time.
#[tokio::test(flavor = "multi_thread")]
async fn intake_is_bounded_while_the_store_loads() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let (disk, store) = faulty();
    disk.hang(Hang::Reads);
    let mut configured = config(&simulator.endpoints());
    configured.buffer.lane_messages = 10;
    let arguments = StreamArguments::new(configured.clone(), store);
    let stream = GovernanceStream::start(arguments).await.expect("starts");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..40 {
        let (stream, tell) = (stream.clone(), tell.clone());
        let request = pegout(&federation, number);
        tokio::spawn(async move { tell.send(stream.request_signatures(request).await.map(drop)) });
    }
    for _ in 0..30 {
        let refused = tokio::time::timeout(PATIENCE, told.recv())
            .await
            .expect("at once");
        assert!(
            matches!(refused, Some(Err(StreamError::BufferFull { .. }))),
            "{refused:?}"
        );
    }
    disk.release(Hang::Reads);
    for _ in 0..10 {
        let accepted = tokio::time::timeout(PATIENCE, told.recv())
            .await
            .expect("it goes on");
        assert_eq!(accepted, Some(Ok(())));
    }
    stream.shutdown().await.expect("shuts down");
}

/// P4: a disk that hangs gathers no queue of readers without an end.
#[tokio::test(flavor = "multi_thread")]
async fn more_reads_than_may_wait_are_refused_at_once() {
    let (disk, store) = faulty();
    disk.hang(Hang::Reads);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let view = || {
        let (store, tell) = (store.clone(), tell.clone());
        let read = |snapshot: &dyn governance_stream::storage::Snapshot| snapshot.tables();
        tokio::spawn(async move { tell.send(store.view(read).await.map(drop)) });
    };
    (0..300).for_each(|_| view());
    // One may be on its way to the disk.
    let mut refused = 0;
    while refused < 300 - 257 {
        let told = tokio::time::timeout(PATIENCE, told.recv()).await;
        let told = told.expect("at once").expect("is told");
        assert!(
            matches!(told, Err(StoreError::Busy { waiting: 256, .. })),
            "{told:?}"
        );
        refused += 1;
    }
    disk.release(Hang::Reads);
    let mut read = 0;
    for _ in refused..300 {
        let told = tokio::time::timeout(PATIENCE, told.recv()).await;
        read += u32::from(told.expect("it goes on") == Some(Ok(())));
    }
    assert!(read >= 256, "{read} of those that waited");
}

/// S8: what dead users asked of a disk that hung is not done when it comes back.
#[test]
fn nobody_loads_for_the_dead_when_a_disk_comes_back() {
    let (disk, store) = faulty();
    let loads = Arc::new(AtomicU64::new(0));
    let register = || {
        let (tell, told) = mpsc::channel();
        let user = store.register("load", move |event| {
            let _ = tell.send(event);
        });
        let Ok(StoreEvent::Opened(generation)) = told.recv_timeout(PATIENCE) else {
            panic!("it is open");
        };
        (user, generation)
    };
    let load = |user: &governance_stream::storage::User, generation: Generation| {
        let (tell, told) = mpsc::channel();
        let loads = Arc::clone(&loads);
        let count = move |_: &dyn governance_stream::storage::Snapshot| {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        user.scan(generation, count, move |answer| {
            let _ = tell.send(answer);
        });
        told
    };
    disk.hang(Hang::Reads);
    for _ in 0..5 {
        let (user, generation) = register();
        drop(load(&user, generation));
        assert!(disk.await_hung(Hang::Reads, PATIENCE));
    }
    let (user, generation) = register();
    let answered = load(&user, generation);
    disk.release(Hang::Reads);
    assert_eq!(answered.recv_timeout(PATIENCE), Ok(Ok(())));
    let loads = loads.load(Ordering::SeqCst);
    assert!(
        loads <= 2,
        "{loads}: the one that hung, and the one that is waited for"
    );
}

/// S9: a buffer that cannot tell what is left is not one that has nothing left.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_without_a_store_says_that_it_is_not_known_what_is_left() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let (disk, store) = faulty();
    let mut configured = config(&simulator.endpoints());
    configured.drain_deadline = Duration::from_millis(100);
    let arguments = StreamArguments::new(configured, store);
    let stream = GovernanceStream::start(arguments).await.expect("starts");
    support::accepted(&stream, pegout(&federation, 1)).await;
    disk.fail_opens(Some(FaultyEngine::full()));
    disk.fail_commit(1, Kept::Nothing);
    let _ = stream.request_signatures(pegout(&federation, 2)).await;
    until(&stream, "unhealthy", |status| {
        matches!(status.health, Health::Unhealthy(_))
    })
    .await;
    let unknown = stream.shutdown().await.expect_err("one was accepted");
    assert_eq!(unknown, StreamError::LeftoverUnknown);
    assert!(unknown.to_string().contains("store stats"), "{unknown}");
}
