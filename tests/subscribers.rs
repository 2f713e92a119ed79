//! Whatever subscribers do, they get every message in order, and no one waits for another.
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
    GovernanceStream, Health, StreamArguments,
    message::{Lane, Outcome},
    proto,
};
use support::{
    Node, PATIENCE, assert_in_order, config, deposit, governance,
    recorder::{Bridge, Chain, Mood},
};

fn proposal(number: u64) -> proto::ProposalNotification {
    proto::ProposalNotification {
        proposal_id: format!("proposal-{number}"),
        proposal_type: "fee-policy".to_owned(),
        data: b"{\"fee\":1}".to_vec().into(),
        voting_deadline_unix_ms: 1_800_000_000_000,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_absent_at_first_gets_everything_and_the_other_does_not_wait() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let config = config(&simulator.endpoints());
    let mut bridge = Bridge::absent(&config.subscribers.bridge, |_| None);
    let chain = Chain::start(&config.subscribers.chain).await;
    let stream = GovernanceStream::start(StreamArguments::new(config.clone(), Store::in_memory()))
        .await
        .expect("starts");
    support::until(&stream, "connected", |status| status.is_connected()).await;
    let mut handles = Vec::new();
    for number in 0..10 {
        handles.push(support::accepted(&stream, support::pegout(&federation, number)).await);
    }
    for number in 0..10 {
        simulator.propose(&proposal(number));
    }
    chain.recorded(10).await;
    support::until(&stream, "degraded", |status| {
        let lane = status.lanes.iter().find(|lane| lane.lane == Lane::Signing);
        lane.is_some_and(|lane| lane.blocked.is_some())
            && matches!(status.health, Health::Degraded(_))
    })
    .await;
    assert!(bridge.so_far().is_empty());
    bridge.appear().await;
    let events = bridge.recorded(20).await;
    assert_in_order(&events, Lane::Signing);
    for handle in &handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    support::until(&stream, "healthy again", |status| {
        status.health == Health::Healthy
    })
    .await;
    assert!(stream.shutdown().await.expect("shuts down").is_empty());
    bridge.stop().await;
    chain.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_panics_gets_the_message_again_and_everything_after_it() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = Node::start(&simulator).await;
    node.bridge.mood(Mood::PanicsAt(3));
    let handles = node.request(&federation, 0..10).await;
    for number in 0..5 {
        simulator.propose(&proposal(number));
    }
    node.bridge.death().await;
    node.chain.recorded(5).await;
    node.bridge.appear().await;
    for handle in &handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let events = node.bridge.so_far();
    assert_in_order(&events, Lane::Signing);
    assert_eq!(events.iter().map(|event| event.sequence).max(), Some(20));
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_refuses_gets_the_message_again() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    node.bridge.mood(Mood::FailsAt(5));
    for handle in node.request(&federation, 0..10).await {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    assert_in_order(&node.bridge.so_far(), Lane::Signing);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_stuck_holds_its_own_lanes_only_and_the_session_lives() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = Node::start(&simulator).await;
    node.bridge.mood(Mood::Stuck);
    let handle = node.request(&federation, [1]).await.remove(0);
    node.stream
        .notify_pegin(deposit(1))
        .await
        .expect("accepted");
    for number in 0..5 {
        simulator.propose(&proposal(number));
    }
    node.chain.recorded(5).await;
    // Longer than governance would wait for a heartbeat: the reader reads on.
    let beats = node.stream.status().connection.last_heartbeat;
    node.until("two more heartbeats", |status| {
        let since = |then: std::time::SystemTime| {
            status.connection.last_heartbeat?.duration_since(then).ok()
        };
        beats.map_or(status.connection.last_heartbeat.is_some(), |then| {
            since(then).is_some_and(|passed| passed > Duration::from_millis(900))
        })
    })
    .await;
    assert_eq!(node.stream.status().connection.sessions, 1);
    assert!(node.bridge.so_far().is_empty());
    node.bridge.mood(Mood::Well);
    node.bridge.stop().await;
    node.bridge.appear().await;
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    node.bridge.recorded(3).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_reach_governance_once_across_a_restart_of_the_tree() {
    let simulator = governance().await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    for number in 0..3 {
        simulator.propose(&proposal(number));
    }
    support::ledger(&simulator, |view| view.proposal_acks.len() == 3).await;
    node.stream.shutdown().await.expect("shuts down");
    let arguments = StreamArguments::new(node.config.clone(), node.store.clone());
    let again = GovernanceStream::start(arguments).await.expect("starts");
    simulator.propose(&proposal(3));
    let view = support::ledger(&simulator, |view| {
        view.proposal_acks.len() == 4 && view.unacknowledged == 0
    })
    .await;
    assert_eq!(
        view.proposal_acks,
        ["proposal-0", "proposal-1", "proposal-2", "proposal-3"]
    );
    assert_eq!(node.chain.so_far().len(), 4, "each was delivered once");
    again.shutdown().await.expect("shuts down");
    node.bridge.stop().await;
    node.chain.stop().await;
    simulator.assert_clean();
}
