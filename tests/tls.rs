//! TLS and identity: nobody is believed without a certificate, and whoever is refused is told why.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{net::SocketAddr, time::Duration};

use governance_stream::storage::Store;
use governance_stream::{
    GovernanceStream, StreamArguments,
    config::{Config, TlsConfig, TlsVersion, TokenSource},
    message::{Lane, Outcome},
    simulator::{Simulator, SimulatorConfig, SimulatorTls},
};
use support::{
    Node, PATIENCE, assert_in_order,
    certificates::{Authority, Files, served},
    config,
};
use tokio::net::TcpListener;

const HERE: &[&str] = &["127.0.0.1"];

async fn governance(tls: SimulatorTls) -> Simulator {
    let config = SimulatorConfig {
        tls: Some(tls),
        ..SimulatorConfig::default()
    };
    Simulator::start(config).await.expect("starts")
}

fn node_config(simulator: &Simulator, tls: TlsConfig) -> Config {
    let mut config = config(&simulator.endpoints());
    config.connection.tls = Some(tls);
    config
}

async fn connected(node: &Node) {
    node.until("connected", |status| status.is_connected())
        .await;
}

/// Why a node does not come to a session; the fault names its endpoint.
async fn fault_of(config: Config) -> String {
    let endpoint = config.connection.endpoints[0].to_string();
    let node = Node::with(config).await;
    node.until("faulty", |status| status.connection.last_fault.is_some())
        .await;
    let status = node.stream.status();
    assert_eq!(status.connection.sessions, 0, "{status:#?}");
    node.stop().await;
    let fault = status.connection.last_fault.expect("as waited for");
    assert!(fault.contains(&endpoint), "{fault}");
    fault
}

fn assert_says(fault: &str, words: &str) {
    assert!(fault.contains(words), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_over_mutual_tls_gets_its_signatures() {
    let (ca, nodes) = (Authority::new("governance"), Authority::new("nodes"));
    let simulator = governance(served(&ca.server(HERE), Some(&nodes))).await;
    assert!(simulator.endpoints()[0].starts_with("https://127.0.0.1:"));
    let federation = simulator.federation(1).expect("the first");
    let files = Files::new(&ca, Some(&nodes.client()));
    let node = Node::with(node_config(&simulator, files.tls())).await;
    let handles = node.request(&federation, 0..20).await;
    for handle in &handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    assert_in_order(&node.bridge.so_far(), Lane::Signing);
    assert_eq!(node.stream.status().connection.last_fault, None);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn governance_that_the_ca_does_not_vouch_for_is_not_believed() {
    let (ca, other) = (Authority::new("governance"), Authority::new("governance"));
    let simulator = governance(served(&other.server(HERE), None)).await;
    let files = Files::new(&ca, None);
    let fault = fault_of(node_config(&simulator, files.tls())).await;
    // Both are of the same name: the signature tells them apart.
    assert_says(&fault, "unknown issuer");
    let simulator = governance(served(&Authority::new("stranger").server(HERE), None)).await;
    let fault = fault_of(node_config(&simulator, files.tls())).await;
    assert_says(&fault, "unknown issuer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_of_governance_is_not_believed() {
    let ca = Authority::new("governance");
    let simulator = governance(served(&ca.expired_server(HERE), None)).await;
    let files = Files::new(&ca, None);
    let fault = fault_of(node_config(&simulator, files.tls())).await;
    assert_says(&fault, "its certificate has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_believed_only_where_that_name_is_configured() {
    let ca = Authority::new("governance");
    let simulator = governance(served(&ca.server(&["governance.example"]), None)).await;
    let files = Files::new(&ca, None);
    let fault = fault_of(node_config(&simulator, files.tls())).await;
    assert_says(&fault, "its certificate is for another name");
    assert_says(&fault, "governance.example");
    let named = TlsConfig {
        server_name: Some("governance.example".to_owned()),
        ..files.tls()
    };
    let node = Node::with(node_config(&simulator, named)).await;
    connected(&node).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_spoken_only_where_it_is_allowed() {
    let ca = Authority::new("governance");
    let old = SimulatorTls {
        only: Some(TlsVersion::V1_2),
        ..served(&ca.server(HERE), None)
    };
    let simulator = governance(old).await;
    let files = Files::new(&ca, None);
    let fault = fault_of(node_config(&simulator, files.tls())).await;
    assert_says(
        &fault,
        "no version of TLS that connection.tls.min_version allows",
    );
    let allowed = TlsConfig {
        min_version: TlsVersion::V1_2,
        ..files.tls()
    };
    let node = Node::with(node_config(&simulator, allowed)).await;
    connected(&node).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_certificate_is_told_that_it_needs_one() {
    let (ca, nodes) = (Authority::new("governance"), Authority::new("nodes"));
    let simulator = governance(served(&ca.server(HERE), Some(&nodes))).await;
    let files = Files::new(&ca, None);
    let fault = fault_of(node_config(&simulator, files.tls())).await;
    assert_says(&fault, "it wants a certificate of ours");
    assert_eq!(simulator.ledger().registrations, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_governance_does_not_know_is_told_that_it_is_refused() {
    let (ca, nodes) = (Authority::new("governance"), Authority::new("nodes"));
    let stranger = Authority::new("strangers").client();
    let files = Files::new(&ca, Some(&stranger));
    for only in [None, Some(TlsVersion::V1_2)] {
        let tls = SimulatorTls {
            only,
            ..served(&ca.server(HERE), Some(&nodes))
        };
        let simulator = governance(tls).await;
        let any = TlsConfig {
            min_version: TlsVersion::V1_2,
            ..files.tls()
        };
        let fault = fault_of(node_config(&simulator, any)).await;
        assert_says(&fault, "it refuses our certificate");
        assert_eq!(simulator.ledger().registrations, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_without_a_ca_does_not_start() {
    let config = config(&["https://127.0.0.1:1".to_owned()]);
    let arguments = StreamArguments::new(config, Store::in_memory());
    let refused = GovernanceStream::start(arguments).await.map(|_| ());
    let refused = refused.expect_err("no CA").to_string();
    assert_says(&refused, "https is never dialled without a CA");
    assert_says(&refused, "https://127.0.0.1:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_fit_is_never_used_and_a_rotation_that_ends_well_is_taken_up() {
    let (ca, nodes) = (Authority::new("governance"), Authority::new("nodes"));
    let simulator = governance(served(&ca.server(HERE), Some(&nodes))).await;
    let files = Files::new(&ca, Some(&nodes.client()));
    let next = nodes.client();
    files.write("node.key", &next.key);
    let node = Node::with(node_config(&simulator, files.tls())).await;
    node.until("faulty", |status| status.connection.last_fault.is_some())
        .await;
    let fault = node.stream.status().connection.last_fault;
    let fault = fault.expect("as waited for");
    assert_says(&fault, "connection.tls.key_file");
    assert_says(&fault, "node.key (another one's key)");
    files.write("node.pem", &next.certificate);
    node.stream.resume().expect("running");
    connected(&node).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_certificate_of_governance_is_believed() {
    let ca = Authority::new("governance");
    let simulator = governance(served(&ca.server(HERE), None)).await;
    let files = Files::new(&ca, None);
    let node = Node::with(node_config(&simulator, files.tls())).await;
    connected(&node).await;
    let next = served(&ca.server(HERE), None);
    simulator.set_tls(&next).expect("a certificate");
    simulator.cut();
    node.until("connected again", |status| {
        status.is_connected() && status.connection.sessions >= 2
    })
    .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_midstream_ends_the_session_and_another_one_begins_it_anew() {
    let ca = Authority::new("governance");
    let simulator = Simulator::start(SimulatorConfig {
        tls: Some(served(&ca.server(HERE), None)),
        token: Some("first-token".to_owned()),
        ..SimulatorConfig::default()
    });
    let simulator = simulator.await.expect("starts");
    let files = Files::new(&ca, None);
    files.write("token", "first-token\n");
    let mut config = node_config(&simulator, files.tls());
    config.connection.token = Some(TokenSource::File(files.path("token")));
    let endpoint = config.connection.endpoints[0].to_string();
    let node = Node::with(config).await;
    connected(&node).await;
    simulator.set_token(Some("second-token"), true);
    node.until("refused", |status| {
        let fault = status.connection.last_fault.as_deref().unwrap_or_default();
        !status.is_connected() && fault.contains("Unauthenticated")
    })
    .await;
    let fault = node.stream.status().connection.last_fault;
    let fault = fault.expect("as waited for");
    assert_says(&fault, &endpoint);
    assert!(!fault.contains("first-token"), "{fault}");
    files.write("token", "second-token\n");
    node.stream.resume().expect("running");
    node.until("connected again", |status| status.is_connected())
        .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_and_one_that_is_none_are_given_up() {
    let mute = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address: SocketAddr = mute.local_addr().expect("bound");
    let ca = Authority::new("governance");
    let files = Files::new(&ca, None);
    let mut config = config(&[format!("https://{address}")]);
    config.connection.tls = Some(TlsConfig {
        handshake_deadline: Duration::from_millis(50),
        ..files.tls()
    });
    let fault = fault_of(config).await;
    assert_says(&fault, "no end of the TLS handshake within 50ms");
    drop(mute);

    let plain = support::governance().await;
    let endpoint = plain.endpoints()[0].replace("http", "https");
    let mut config = support::config(&[endpoint]);
    config.connection.tls = Some(files.tls());
    let fault = fault_of(config).await;
    assert_says(&fault, "TLS");
}
