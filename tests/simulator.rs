//! What tests may ask of governance: each hook does what it says, and a node copes with it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use governance_stream::{
    BridgeEvent, ConnectionPhase, RequestStanding, Restoration, history,
    message::{Outcome, Progress},
    proto::{self, stream_client::StreamClient, stream_response::Control},
    simulator::{Simulator, SimulatorConfig},
};
use support::{
    Node, PATIENCE, client::NODE, config, governance, governance_with, process, request_id,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

async fn channel(endpoint: &str) -> tonic::transport::Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint.to_owned());
    endpoint.expect("a URI").connect().await.expect("listens")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_tells_its_health() {
    let mut simulator = governance_with(2).await;
    let mut clients = Vec::new();
    for endpoint in simulator.endpoints() {
        clients.push(HealthClient::new(channel(&endpoint).await));
    }
    simulator.set_serving(1, false).await;
    for (client, expected) in clients
        .iter_mut()
        .zip([ServingStatus::Serving, ServingStatus::NotServing])
    {
        for service in ["", "governance.v1.Stream"] {
            let service = service.to_owned();
            let answer = client.check(HealthCheckRequest { service }).await;
            assert_eq!(answer.expect("answers").into_inner().status(), expected);
        }
        let service = "another".to_owned();
        let unknown = client.check(HealthCheckRequest { service }).await;
        assert_eq!(unknown.expect_err("unknown").code(), Code::NotFound);
    }
    simulator.set_serving(1, true).await;
    let answer = clients[1].check(HealthCheckRequest::default()).await;
    let status = answer.expect("answers").into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    // Who watches does not keep it from ending, and sees its end.
    let watched = clients[0].watch(HealthCheckRequest::default()).await;
    let mut watched = watched.expect("answers").into_inner();
    assert!(watched.message().await.expect("tells").is_some());
    simulator.stop_endpoint(0).await;
    assert!(!matches!(watched.message().await, Ok(Some(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_rotated_is_demanded_of_new_calls_alone_or_of_all() {
    let simulator = governance().await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    let mut client = StreamClient::new(channel(&simulator.endpoints()[0]).await);
    simulator.set_token(Some("new"), false);
    let refused = client.get_capabilities(proto::CapabilitiesRequest::default());
    let refused = refused.await.expect_err("without a token").code();
    assert_eq!(refused, Code::Unauthenticated);
    assert_eq!(simulator.ledger().sessions.len(), 1, "the old one goes on");
    simulator.set_token(Some("newer"), true);
    node.until("refused", |status| {
        let fault = status.connection.last_fault.as_deref();
        fault.is_some_and(|fault| fault.contains("Unauthenticated"))
    })
    .await;
    simulator.set_token(None, false);
    let any = client.get_capabilities(proto::CapabilitiesRequest::default());
    any.await.expect("none is demanded");
    node.stream.resume().expect("running");
    node.until("connected again", |status| status.is_connected())
        .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_injected_arrives_as_it_is_and_a_node_outlives_it() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    // Nothing of ours has this sequence.
    let acknowledgement = proto::Acknowledgement {
        lane: proto::Lane::Signing.into(),
        through_sequence: 1 << 40,
    };
    simulator.inject(&proto::StreamResponse {
        acknowledgements: vec![acknowledgement],
        ..Default::default()
    });
    node.until("connected again", |status| {
        status.is_connected() && status.connection.sessions >= 2
    })
    .await;
    let fault = node.stream.status().connection.last_fault;
    let fault = fault.expect("the first session ended");
    assert!(fault.contains("broke the protocol"), "{fault}");
    let handle = node.request(&federation, [1]).await.remove(0);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_may_be_answered_with_anything() {
    let simulator = governance().await;
    let heartbeat = proto::HeartbeatAck {
        number: 1,
        sent_unix_ms: 0,
    };
    simulator.answer_next_registration_with(proto::StreamResponse {
        control: Some(Control::HeartbeatAck(heartbeat)),
        ..Default::default()
    });
    let mut config = config(&simulator.endpoints());
    config.connection.registration_deadline = Duration::from_millis(200);
    let node = Node::with(config).await;
    node.until("connected at the second try", |status| {
        status.is_connected() && status.connection.last_fault.is_some()
    })
    .await;
    assert!(simulator.ledger().registrations >= 2);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_may_be_silent_alone() {
    let simulator = governance_with(2).await;
    let endpoints = simulator.endpoints();
    let mut config = config(&endpoints);
    config.connection.heartbeat_interval = Duration::from_millis(50);
    config.connection.registration_deadline = Duration::from_millis(100);
    let node = Node::with(config).await;
    node.until("connected", |status| status.is_connected())
        .await;
    simulator.silence(0, true);
    node.until("at the second", |status| {
        status.is_connected() && status.connection.endpoint.as_ref() == endpoints.get(1)
    })
    .await;
    // It does not say what it could do either, until it speaks again.
    let mut client = StreamClient::new(channel(&endpoints[0]).await);
    let question = proto::CapabilitiesRequest::default();
    let mut asked = Box::pin(client.get_capabilities(question));
    let moment = Duration::from_millis(50);
    assert!(tokio::time::timeout(moment, &mut asked).await.is_err());
    simulator.silence(0, false);
    asked.await.expect("it speaks");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_may_be_drained_alone() {
    let simulator = governance_with(2).await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    simulator.drain_endpoint(1, Duration::from_secs(2), "not this one");
    assert_eq!(node.stream.status().connection.last_fault, None);
    simulator.drain_endpoint(0, Duration::from_secs(2), "maintenance");
    node.until("moved", |status| {
        status.is_connected() && status.connection.sessions >= 2
    })
    .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_who_are_away_sign_what_waits_when_they_are_back() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    // Nobody, one, and with one more enough: each signs once.
    simulator.set_offline_members(3);
    let handles = node.request(&federation, [1, 2]).await;
    support::ledger(&simulator, |view| view.requests.len() == 2).await;
    assert!(node.bridge.so_far().is_empty());
    simulator.set_offline_members(2);
    for handle in &handles {
        let progress = handle.progress_beyond(Progress::default(), PATIENCE).await;
        let Ok(RequestStanding::Open(progress)) = progress else {
            panic!("{progress:?}");
        };
        assert_eq!(progress.signers, Some((1, 2)));
    }
    // Who is cancelled meanwhile is signed by nobody.
    node.stream.cancel(request_id(2)).await.expect("known");
    let cancelled = Outcome::Cancelled {
        signatures_released: true,
    };
    assert_eq!(handles[1].outcome(PATIENCE).await, Ok(cancelled));
    simulator.set_offline_members(1);
    assert_eq!(handles[0].outcome(PATIENCE).await, Ok(Outcome::Complete));
    simulator.set_offline_members(0);
    let events = node.bridge.recorded(4).await;
    let signatures = events.iter().map(|message| match &message.event {
        BridgeEvent::SignatureResponse { response, .. } => response.signatures.len(),
        _ => 0,
    });
    assert_eq!(signatures.collect::<Vec<_>>(), [1, 1, 0, 1]);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_members_who_are_away_waits_through_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let governed = |listen: SocketAddr, offline_members| SimulatorConfig {
        listen: vec![listen],
        offline_members,
        directory: Some(directory.path().to_owned()),
        ..SimulatorConfig::default()
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = Simulator::start(governed(any, 2)).await.expect("starts");
    let federation = simulator.federation(1).expect("the first");
    let address = simulator.addresses()[0];
    let node = Node::start(&simulator).await;
    let handle = node.request(&federation, [1]).await.remove(0);
    let progress = handle.progress_beyond(Progress::default(), PATIENCE).await;
    assert!(matches!(progress, Ok(RequestStanding::Open(_))));
    let restarted = |before: Simulator, offline_members| async move {
        before.shutdown().await;
        let after = Simulator::start(governed(address, offline_members)).await;
        after.expect("starts on its old address")
    };
    let simulator = restarted(simulator, 2).await;
    let view = support::ledger(&simulator, |view| !view.sessions.is_empty()).await;
    assert_eq!(view.requests[0].settled, None);
    let simulator = restarted(simulator, 0).await;
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    let events = node.bridge.recorded(2).await;
    assert_eq!(events.len(), 2, "each of the two has signed once");
    node.stop().await;
    simulator.assert_clean();
}

/// The operator of the governance that is a process of its own permits a lost store by starting it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_permits_the_outbox_that_it_is_told_of() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().to_str().expect("text");
    let (process, endpoint) = process::governance(0, &["--directory", ledger]);
    let of_here = |endpoint: &String| {
        let mut config = config(std::slice::from_ref(endpoint));
        config.drain_deadline = Duration::from_millis(50);
        config
    };
    let first = Node::with(of_here(&endpoint)).await;
    first
        .until("connected", |status| status.is_connected())
        .await;
    first.stop().await;
    let node = Node::with(of_here(&endpoint)).await;
    node.until("refused", |status| {
        status.connection.phase == ConnectionPhase::Quarantined
    })
    .await;
    let store = node.stream.store().expect("open");
    let facts = history::view(&store, |history| history.facts()).await;
    let identity = facts.expect("readable").identity.expect("committed");
    assert!(process.terminate(), "nothing was wrong");
    let port = endpoint.rsplit(':').next().expect("a port");
    let port = port.parse().expect("a port");
    let permitted = format!("{NODE}:{}", identity.outbox_id);
    let args = ["--directory", ledger, "--permit", &permitted];
    let (process, same) = process::governance(port, &args);
    assert_eq!(same, endpoint);
    node.stream.resume_restored().await.expect("store lost");
    node.until("recalled", |status| {
        status.restoration == Restoration::None && status.is_connected()
    })
    .await;
    node.stop().await;
    assert!(process.terminate(), "nothing was wrong");
}
