//! Governance may lose its ledger, restore it or lag behind: nothing is sent on a guess, and what
//! was accepted comes to its end all the same.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::{
    ConnectionChange, ConnectionPhase, Health,
    message::Outcome,
    simulator::{Simulator, SimulatorConfig, record},
};
use support::{Node, PATIENCE, config, deposit, governance, governance_with, ledger, request_id};

/// Waits until the connection is quarantined and has been so `times` in all. What is between two
/// of them is too short to be looked for.
async fn quarantined(node: &Node, times: usize) {
    node.until("quarantined", |status| {
        let entered = |change: &&ConnectionChange| change.to == ConnectionPhase::Quarantined;
        status.connection.phase == ConnectionPhase::Quarantined
            && status.changes.iter().filter(entered).count() == times
    })
    .await;
}

/// A node with settled, open and cancelled requests and peg-ins, whose governance then goes back
/// to the state in which it knew only the first half of them.
async fn with_half_forgotten(same_id: bool) -> (Simulator, Node) {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    for handle in node.request(&federation, 0..5).await {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    simulator.hold_responses();
    node.request(&federation, 5..10).await;
    node.stream
        .notify_pegin(deposit(1))
        .await
        .expect("accepted");
    ledger(&simulator, |view| {
        view.requests.len() == 10 && view.pegins == 1
    })
    .await;
    let checkpoint = simulator.checkpoint();
    node.request(&federation, 10..15).await;
    node.stream
        .notify_pegin(deposit(2))
        .await
        .expect("accepted");
    ledger(&simulator, |view| {
        view.requests.len() == 15 && view.pegins == 2
    })
    .await;
    node.stream.cancel(request_id(14)).await.expect("open");
    node.until("flushed, and the deposits answered", |status| {
        status.lanes.iter().all(|lane| lane.unacknowledged == 0)
            && status.lanes[2].handled_through == 2
    })
    .await;
    simulator.restore(checkpoint, same_id);
    simulator.release_responses();
    quarantined(&node, 1).await;
    (simulator, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_ledger_waits_for_an_operator_and_is_then_adopted() {
    let (simulator, node) = with_half_forgotten(false).await;
    let federation = simulator.federation(1).expect("the first");
    let status = node.stream.status();
    assert!(
        matches!(&status.health, Health::Unhealthy(why) if why[0].contains("another ledger")),
        "{:?}",
        status.health
    );
    // Meanwhile callers are served.
    let meanwhile = node.request(&federation, [20]).await.remove(0);
    node.stream
        .notify_pegin(deposit(3))
        .await
        .expect("accepted");
    // An operator's word that is not about the ledger changes nothing.
    node.stream.resume().expect("running");
    quarantined(&node, 2).await;

    node.stream.adopt_ledger().await.expect("running");
    assert_eq!(meanwhile.outcome(PATIENCE).await, Ok(Outcome::Complete));
    for number in 0..14 {
        let handle = node.stream.request(request_id(number));
        assert_eq!(
            handle.outcome(PATIENCE).await,
            Ok(Outcome::Complete),
            "{number}"
        );
    }
    let cancelled = node.stream.request(request_id(14)).outcome(PATIENCE).await;
    assert!(
        matches!(cancelled, Ok(Outcome::Cancelled { .. })),
        "what was cancelled is not asked for again: {cancelled:?}"
    );
    // The second deposit was answered by the ledger that is gone, and is notified again.
    let view = ledger(&simulator, |view| view.pegins == 3).await;
    assert_eq!(view.requests.len(), 16);
    node.until("everything settled", |status| {
        status.open_requests == 0 && status.lanes.iter().all(|lane| lane.unacknowledged == 0)
    })
    .await;
    // The next session begins as any other does.
    simulator.cut();
    let after = node.request(&federation, [30]).await.remove(0);
    assert_eq!(after.outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert_eq!(simulator.ledger().violations, [""; 0]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_ledger_is_filled_again_from_what_is_open() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut config = config(&simulator.endpoints());
    config.buffer.adopt_ledger = true;
    let node = Node::with(config).await;
    simulator.hold_responses();
    let open = node.request(&federation, 0..2000).await;
    ledger(&simulator, |view| view.requests.len() == 2000).await;
    simulator.lose_ledger();
    simulator.release_responses();
    for handle in open {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let view = simulator.ledger();
    assert_eq!((view.requests.len(), view.duplicates), (2000, 0));
    assert_eq!(view.violations, [""; 0]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconciliation_that_stands_still_ends_its_session() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut config = config(&simulator.endpoints());
    config.buffer.adopt_ledger = true;
    config.connection.stall_deadline = Duration::from_millis(200);
    let node = Node::with(config).await;
    simulator.hold_responses();
    let open = node.request(&federation, 0..10).await;
    ledger(&simulator, |view| view.requests.len() == 10).await;
    simulator.leave_reconciliation_unanswered(true);
    simulator.lose_ledger();
    simulator.release_responses();
    node.until("the exchange stood still", |status| {
        let fault = status.connection.last_fault.as_deref();
        fault.is_some_and(|fault| fault.contains("no answer of a reconciliation within 200ms"))
    })
    .await;
    simulator.leave_reconciliation_unanswered(false);
    for handle in open {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    assert_eq!(simulator.ledger().violations, [""; 0]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_went_back_under_its_old_name_is_never_sent_to() {
    let (simulator, node) = with_half_forgotten(true).await;
    let status = node.stream.status();
    assert!(
        matches!(&status.health, Health::Unhealthy(why) if why[0].contains("behind")),
        "{:?}",
        status.health
    );
    let before = simulator.ledger();
    // Not even an adoption helps: it is the same ledger by its name.
    node.stream.adopt_ledger().await.expect("running");
    quarantined(&node, 2).await;
    let after = simulator.ledger();
    assert_eq!(before.requests, after.requests, "nothing was sent");
    node.stream.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_lags_behind_is_left_for_its_sibling() {
    let simulator = governance_with(2).await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let checkpoint = simulator.checkpoint();
    for handle in node.request(&federation, 0..5).await {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let used = simulator.ledger().sessions[0].1;
    simulator.lag(used, Some(checkpoint));
    simulator.cut();
    let more = node.request(&federation, 5..10).await;
    for handle in more {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    assert_ne!(simulator.ledger().sessions[0].1, used);
    let (requests, duplicates) = {
        let view = simulator.ledger();
        (view.requests.len(), view.duplicates)
    };
    assert_eq!((requests, duplicates), (10, 0));
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn governance_that_is_killed_goes_on_from_its_record() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = SimulatorConfig {
        directory: Some(directory.path().to_owned()),
        heartbeat_interval: Duration::from_millis(200),
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(config.clone()).await;
    let mut simulator = simulator.expect("starts");
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let mut handles = Vec::new();
    for round in 0..5 {
        handles.extend(
            node.request(&federation, round * 20..(round + 1) * 20)
                .await,
        );
        let again = SimulatorConfig {
            listen: simulator.addresses(),
            ..config.clone()
        };
        simulator.shutdown().await;
        simulator = Simulator::start(again).await.expect("starts again");
    }
    for handle in handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let view = simulator.ledger();
    assert_eq!((view.requests.len(), view.duplicates), (100, 0));
    let facts = record::read(directory.path()).expect("readable");
    assert!(facts.len() > 100);
    node.stop().await;
    simulator.assert_clean();
}
