//! The tree heals, gives up when it must, and leaves nothing behind.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::storage::Store;
use governance_stream::{
    GovernanceStream, Health, StreamArguments, StreamError,
    message::{Lane, Outcome},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use support::{Node, PATIENCE, assert_in_order, config, governance, kill};
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn every_child_may_be_killed_under_load_and_nothing_is_lost() {
    const PART: u64 = 60;
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let instance = node.config.instance.clone();
    let mut handles = Vec::new();
    for (part, victim) in ["request.pegout-10", "connection", "buffer", "connection"]
        .iter()
        .enumerate()
    {
        let part = part as u64;
        simulator.hold_responses();
        let numbers = part * PART..(part + 1) * PART;
        // Half are open when it dies, half are asked for meanwhile.
        let middle = part * PART + PART / 2;
        handles.extend(node.request(&federation, numbers.start..middle).await);
        let victim = format!("{instance}.{victim}");
        let (_, more) = tokio::join!(
            kill(&victim),
            node.request(&federation, middle..numbers.end)
        );
        handles.extend(more);
        simulator.release_responses();
    }
    for handle in &handles {
        assert_eq!(
            handle.outcome(PATIENCE).await,
            Ok(Outcome::Complete),
            "{}",
            handle.id()
        );
    }
    let view = support::ledger(&simulator, |view| view.unacknowledged == 0).await;
    assert_eq!(view.requests.len(), 4 * PART as usize);
    assert_eq!(view.duplicates, 0);
    assert_in_order(&node.bridge.so_far(), Lane::Signing);
    let restarts = node.stream.status().actor_restarts;
    assert!(restarts >= 4, "{restarts} restarts");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_an_outcome_survives_the_trackers_death() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.hold_responses();
    let handle = node.request(&federation, [1]).await.remove(0);
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.outcome(PATIENCE).await }
    });
    for _ in 0..2 {
        kill(&format!("{}.request.pegout-1", node.config.instance)).await;
    }
    simulator.release_responses();
    assert_eq!(waiting.await.expect("no panic"), Ok(Outcome::Complete));
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_tracker_keeps_dying_is_parked_and_the_tree_lives() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.hold_responses();
    let handles = node.request(&federation, [1, 2]).await;
    for _ in 0..4 {
        kill(&format!("{}.request.pegout-1", node.config.instance)).await;
    }
    node.until("parked", |status| status.parked_requests == 1)
        .await;
    let parked = handles[0].outcome(PATIENCE).await;
    assert!(
        matches!(parked, Err(StreamError::NeedsOperator { .. })),
        "{parked:?}"
    );
    assert!(matches!(node.stream.status().health, Health::Degraded(_)));
    simulator.release_responses();
    assert_eq!(handles[1].outcome(PATIENCE).await, Ok(Outcome::Complete));
    node.stop().await;
    simulator.assert_clean();
}

/// A node's supervisor that tells what it sees.
struct Parent;

impl Actor for Parent {
    type Msg = ();
    type State = mpsc::UnboundedSender<(String, bool)>;
    type Arguments = mpsc::UnboundedSender<(String, bool)>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        seen: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(seen)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        seen: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, failed) = match event {
            SupervisionEvent::ActorFailed(who, _) => (who, true),
            SupervisionEvent::ActorTerminated(who, _, _) => (who, false),
            _ => return Ok(()),
        };
        let _ = seen.send((who.get_name().unwrap_or_default(), failed));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_limit_the_tree_fails_for_all_to_see_and_another_one_goes_on() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut config = config(&simulator.endpoints());
    config.supervision.max_restarts = 2;
    let instance = config.instance.to_string();
    let bridge = support::recorder::Bridge::start(&config.subscribers.bridge).await;
    let arguments = StreamArguments::new(config.clone(), Store::in_memory());
    let (seen, mut events) = mpsc::unbounded_channel();
    let (parent, _) = Actor::spawn(None, Parent, seen).await.expect("starts");
    let stream = GovernanceStream::start_linked(arguments.clone(), parent.get_cell())
        .await
        .expect("starts");
    simulator.hold_responses();
    let handle = support::accepted(&stream, support::pegout(&federation, 1)).await;
    for _ in 0..3 {
        kill(&format!("{instance}.connection")).await;
    }
    let seen = tokio::time::timeout(PATIENCE, events.recv())
        .await
        .expect("is seen");
    assert_eq!(
        seen,
        Some((instance.clone(), true)),
        "the parent sees it fail"
    );
    stream
        .supervisor()
        .wait(Some(PATIENCE))
        .await
        .expect("is gone");
    support::assert_nothing_left_within(&instance, &[&config.subscribers.bridge]).await;
    support::until(&stream, "shown as gone", |status| !status.running).await;
    assert!(matches!(
        handle.standing().await,
        Err(StreamError::NotRunning { .. })
    ));

    // The same store: nothing that was accepted is lost. The old handle finds the new tree.
    let again = GovernanceStream::start_linked(arguments, parent.get_cell())
        .await
        .expect("starts");
    simulator.release_responses();
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert!(again.shutdown().await.expect("shuts down").is_empty());
    parent
        .stop_and_wait(None, Some(PATIENCE))
        .await
        .expect("stops");
    bridge.stop().await;
    support::assert_nothing_left(&instance);
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn children_do_not_outlive_a_killed_supervisor() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.hold_responses();
    node.request(&federation, 0..5).await;
    node.stream.supervisor().kill();
    node.stream
        .supervisor()
        .wait(Some(PATIENCE))
        .await
        .expect("dies");
    node.bridge.stop().await;
    node.chain.stop().await;
    support::assert_nothing_left_within(node.config.instance.as_str(), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_live_side_by_side() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let one = Node::start(&simulator).await;
    let mut other = config(&simulator.endpoints());
    other.node.node_id = "node-2".parse().expect("valid");
    let two = Node::with(other).await;
    let (ones, twos) = tokio::join!(
        one.request(&federation, 0..10),
        two.request(&federation, 100..110)
    );
    for handle in ones.iter().chain(&twos) {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    assert_eq!(one.bridge.so_far().len(), 20);
    one.stop().await;
    assert!(
        two.stream.status().is_connected(),
        "one's end is not the other's"
    );
    two.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_a_taken_name_does_not_start_and_disturbs_nobody() {
    let simulator = governance().await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    let second = GovernanceStream::start(StreamArguments::new(
        node.config.clone(),
        Store::in_memory(),
    ))
    .await;
    assert!(
        matches!(second, Err(StreamError::Startup { .. })),
        "{second:?}"
    );
    assert!(node.stream.status().is_connected());
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_does_not_wait_for_deliveries_that_only_an_operator_could_allow() {
    use governance_stream::{ConnectionPhase, proto::ErrorCode};
    for (code, phase) in [
        (ErrorCode::Fenced, ConnectionPhase::Quarantined),
        (ErrorCode::WrongChain, ConnectionPhase::Failed),
    ] {
        let simulator = governance().await;
        let federation = simulator.federation(1).expect("the first");
        simulator.refuse_next_registration(code);
        let mut config = config(&simulator.endpoints());
        config.drain_deadline = 10 * PATIENCE;
        let node = Node::with(config).await;
        node.until("stopped", |status| status.connection.phase == phase)
            .await;
        node.request(&federation, 0..3).await;
        let shutdown = tokio::time::timeout(PATIENCE, node.stream.shutdown()).await;
        let leftover = shutdown.expect("without the drain deadline");
        assert_eq!(leftover.expect("shuts down").open_requests, 3);
        node.bridge.stop().await;
        node.chain.stop().await;
        support::assert_nothing_left(node.config.instance.as_str());
        simulator.assert_clean();
    }
}

/// Not an actor, not a task, not a registry name.
#[test]
fn a_shutdown_leaves_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("starts");
    let instance = runtime.block_on(async {
        let simulator = governance().await;
        let federation = simulator.federation(1).expect("the first");
        let node = Node::start(&simulator).await;
        let instance = node.config.instance.to_string();
        for handle in node.request(&federation, 0..10).await {
            handle.outcome(PATIENCE).await.expect("an outcome");
        }
        kill(&format!("{instance}.connection")).await;
        node.until("connected again", |s| {
            s.connection.sessions >= 2 && s.is_connected()
        })
        .await;
        // One that stays open keeps its tracker until the end.
        simulator.hold_responses();
        let handle = node.request(&federation, [99]).await;
        support::ledger(&simulator, |view| view.requests.len() == 11).await;
        let leftover = node.stream.shutdown().await.expect("shuts down");
        assert_eq!(leftover.open_requests, 1, "what is left is reported");
        assert!(matches!(
            handle[0].standing().await,
            Err(StreamError::NotRunning { .. })
        ));
        assert!(matches!(
            node.stream.shutdown().await,
            Err(StreamError::NotRunning { .. })
        ));
        node.bridge.stop().await;
        node.chain.stop().await;
        simulator.shutdown().await;
        instance
    });
    support::assert_nothing_left(&instance);
    // The tasks of closed sockets end a moment after them.
    let metrics = runtime.metrics();
    let patience = std::time::Instant::now() + Duration::from_secs(20);
    while metrics.num_alive_tasks() > 0 {
        assert!(
            std::time::Instant::now() < patience,
            "{} tasks live on",
            metrics.num_alive_tasks()
        );
        runtime.block_on(tokio::task::yield_now());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_outlives_the_tree() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.hold_responses();
    let handles = node.request(&federation, 0..5).await;
    let leftover = node.stream.shutdown().await.expect("shuts down");
    assert_eq!(leftover.open_requests, 5);
    simulator.release_responses();
    let arguments = StreamArguments::new(node.config.clone(), node.store.clone());
    let again = GovernanceStream::start(arguments).await.expect("starts");
    for handle in handles {
        let handle = again.request(handle.id().clone());
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    again.shutdown().await.expect("shuts down");
    node.bridge.stop().await;
    node.chain.stop().await;
    simulator.assert_clean();
}
