//! Whatever befalls a session, another one follows, or an operator is called.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::{
    ConnectionChange, ConnectionPhase, Health, StreamError,
    config::{Secret, TokenSource},
    message::{Lane, NodeStatus, Outcome},
    proto,
    simulator::{Simulator, SimulatorConfig},
};
use support::{Node, PATIENCE, assert_in_order, config, governance, governance_with};

#[tokio::test(flavor = "multi_thread")]
async fn cut_again_and_again_under_load_nothing_is_lost_or_doubled() {
    let simulator = governance_with(2).await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let mut handles = Vec::new();
    for part in 0..5 {
        handles.extend(node.request(&federation, part * 30..part * 30 + 30).await);
        node.until("connected", |status| status.is_connected())
            .await;
        simulator.cut();
    }
    for handle in &handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let view = support::ledger(&simulator, |view| view.unacknowledged == 0).await;
    assert_eq!((view.requests.len(), view.duplicates), (150, 0));
    assert_in_order(&node.bridge.so_far(), Lane::Signing);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_service_is_left_and_found_again() {
    let simulator = governance().await;
    let mut config = config(&simulator.endpoints());
    config.connection.heartbeat_interval = Duration::from_millis(50);
    config.connection.registration_deadline = Duration::from_millis(100);
    let node = Node::with(config).await;
    node.until("connected", |status| status.is_connected())
        .await;
    simulator.go_silent();
    // What comes of the next attempt is soon told instead: the change keeps the cause.
    node.until("silent", |status| {
        let lost = |change: &ConnectionChange| {
            change.from == ConnectionPhase::Connected && change.cause.contains("silent")
        };
        status.changes.iter().any(lost)
    })
    .await;
    simulator.speak();
    node.until("connected again", |s| {
        s.is_connected() && s.connection.sessions >= 2
    })
    .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_an_endpoint_is_healed_by_the_other_one() {
    let mut simulator = governance_with(2).await;
    let endpoints = simulator.endpoints();
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    node.until("at the first", |status| {
        status.is_connected() && status.connection.endpoint.as_ref() == endpoints.first()
    })
    .await;
    simulator.stop_endpoint(0).await;
    let handle = node.request(&federation, [1]).await.remove(0);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert_eq!(
        node.stream.status().connection.endpoint.as_ref(),
        endpoints.get(1)
    );
    simulator
        .start_endpoint(0)
        .await
        .expect("its address is free");
    simulator.stop_endpoint(1).await;
    let handle = node.request(&federation, [2]).await.remove(0);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert_eq!(
        node.stream.status().connection.endpoint.as_ref(),
        endpoints.first()
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_is_taken_at_the_nodes_word_and_kept() {
    let simulator = governance_with(2).await;
    let endpoints = simulator.endpoints();
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    let second = endpoints[1].parse().expect("an endpoint");
    node.stream.connect(second).expect("running");
    let at_second = |status: &governance_stream::StreamStatus| {
        status.is_connected() && status.connection.endpoint.as_ref() == endpoints.get(1)
    };
    node.until("moved", at_second).await;
    let sessions = node.stream.status().connection.sessions;
    simulator.cut();
    node.until("back", |status| {
        status.connection.sessions > sessions && at_second(status)
    })
    .await;
    let plaintext = "http://192.0.2.1:1".parse::<governance_stream::config::Endpoint>();
    assert!(plaintext.is_err(), "plaintext beyond loopback");
    let tls = "https://192.0.2.1:1".parse().expect("an endpoint");
    assert!(
        matches!(node.stream.connect(tls), Err(StreamError::Config(_))),
        "no CA"
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_endpoint_is_left_for_another_session() {
    let simulator = governance_with(2).await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    simulator.drain("maintenance");
    node.until("moved", |s| s.is_connected() && s.connection.sessions >= 2)
        .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_wait_for_the_registration_are_no_deadlock() {
    let config = SimulatorConfig {
        hold_headers: true,
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(config).await.expect("starts");
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_retried_or_wait_for_an_operator_as_their_code_says() {
    use ConnectionPhase::{Connected, Failed, Quarantined};
    use proto::ErrorCode;
    for (code, phase) in [
        (ErrorCode::Unavailable, Connected),
        (ErrorCode::Internal, Connected),
        (ErrorCode::RateLimited, Connected),
        (ErrorCode::Fenced, Quarantined),
        (ErrorCode::UnknownOutbox, Quarantined),
        (ErrorCode::UnsupportedVersion, Failed),
        (ErrorCode::WrongChain, Failed),
    ] {
        let simulator = governance().await;
        simulator.refuse_next_registration(code);
        let node = Node::start(&simulator).await;
        node.until(code.as_str_name(), |status| {
            status.connection.phase == phase
        })
        .await;
        let unhealthy = matches!(node.stream.status().health, Health::Unhealthy(_));
        assert_eq!(unhealthy, phase != Connected, "{code:?}");
        node.stop().await;
        simulator.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_journal_waits_for_an_operator_and_accepts_meanwhile() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let first = Node::start(&simulator).await;
    first
        .until("connected", |status| status.is_connected())
        .await;
    first.stop().await;
    let mut config = config(&simulator.endpoints());
    // Nothing will take what is left.
    config.drain_deadline = Duration::from_millis(50);
    let second = Node::with(config).await;
    second
        .until("quarantined", |status| {
            status.connection.phase == ConnectionPhase::Quarantined
        })
        .await;
    second.request(&federation, [1]).await;
    assert_eq!(second.stream.status().open_requests, 1);
    second.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_read_at_each_dial() {
    let config_of_service = SimulatorConfig {
        token: Some("right".to_owned()),
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(config_of_service).await.expect("starts");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("token");
    std::fs::write(&path, "wrong\n").expect("written");
    let mut config = config(&simulator.endpoints());
    config.connection.token = Some(TokenSource::File(path.clone()));
    let node = Node::with(config).await;
    node.until("refused", |status| {
        let fault = status.connection.last_fault.as_deref();
        fault.is_some_and(|fault| fault.contains("Unauthenticated"))
    })
    .await;
    std::fs::write(&path, "right\n").expect("written");
    // At the slow cadence it would find out for itself; a person does not wait for that.
    node.stream
        .connect(simulator.endpoints()[0].parse().expect("one"))
        .expect("running");
    node.until("connected", |status| status.is_connected())
        .await;
    node.stop().await;
    simulator.assert_clean();
    let inline = TokenSource::Inline(Secret::new("right"));
    assert!(!format!("{inline:?}").contains("right"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_becomes_dead_letters_and_the_lanes_go_on() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    for lane in [
        proto::Lane::Signing,
        proto::Lane::Federation,
        proto::Lane::Pegin,
        proto::Lane::Proposal,
    ] {
        simulator.send_garbage(lane);
    }
    let view = support::ledger(&simulator, |view| view.rejects.len() == 4).await;
    assert!(
        view.rejects.iter().all(|reason| reason.contains("payload")),
        "{:?}",
        view.rejects
    );
    node.until("counted", |status| status.dead_letters == 4)
        .await;
    let handle = node.request(&federation, [1]).await.remove(0);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert_eq!(
        node.stream.status().connection.sessions,
        1,
        "not even the session ended"
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_does_not_end_the_session_does_not_end_it() {
    let simulator = governance().await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    simulator.report_error(proto::ErrorCode::RateLimited, "slower, please");
    let status = NodeStatus {
        chain_height: 7,
        synced: true,
        ..NodeStatus::default()
    };
    node.stream.report_status(status).await.expect("connected");
    let view = support::ledger(&simulator, |view| !view.statuses.is_empty()).await;
    assert_eq!(view.statuses[0].chain_height, 7);
    assert_eq!(node.stream.status().connection.sessions, 1);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_calls_are_accepted_and_status_reports_are_not() {
    let mut simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let config = config(&simulator.endpoints());
    simulator.stop_endpoint(0).await;
    let node = Node::with(config).await;
    let handle = node.request(&federation, [1]).await.remove(0);
    let refused = node.stream.report_status(NodeStatus::default()).await;
    assert!(
        matches!(refused, Err(StreamError::NotConnected { .. })),
        "{refused:?}"
    );
    simulator
        .start_endpoint(0)
        .await
        .expect("its address is free");
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    node.stop().await;
    simulator.assert_clean();
}
