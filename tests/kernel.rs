//! The faults of a real network, made by the kernel: packets are dropped, connections reset, an
//! address moves. Each test needs a network and a mount namespace of its own, as root; the script
//! `scripts/network-faults` makes them.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(target_os = "linux")]

mod support;

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use governance_stream::{
    RequestHandle, StreamStatus,
    config::{Config, TlsConfig},
    message::{Lane, Outcome},
    simulator::{FederationView, Simulator, SimulatorConfig, SimulatorTls},
};
use support::{
    Node, PATIENCE, accepted, assert_in_order,
    certificates::{Authority, Files, served},
    pegout,
};

/// Where governance listens, so that a rule can tell its packets.
const PORT: u16 = 50051;
/// Requests before, during and after a fault.
const PART: u64 = 20;
const NAME: &str = "governance.test";

/// Fails unless the network is this test's own: nothing here may touch another one's.
fn own_network() {
    let own = std::env::var("NETWORK_FAULTS").is_ok_and(|value| value == "own-namespace");
    assert!(
        own,
        "run scripts/network-faults: it makes a namespace first"
    );
    iptables("-F");
}

fn iptables(rule: &str) {
    let done = Command::new("iptables")
        .args(["-w"])
        .args(rule.split_whitespace())
        .output()
        .expect("iptables is installed");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "iptables {rule}: {said}");
}

/// Packets that rules have taken so far.
fn taken() -> u64 {
    let done = Command::new("iptables")
        .args(["-w", "-nvxL", "INPUT"])
        .output()
        .expect("iptables is installed");
    let shown = String::from_utf8_lossy(&done.stdout).into_owned();
    // The chain's line and the headings come first.
    let rules = shown.lines().skip(2);
    let packets = rules.filter_map(|rule| rule.split_whitespace().next()?.parse::<u64>().ok());
    packets.sum()
}

async fn governance(addresses: &[&str], tls: Option<SimulatorTls>) -> Simulator {
    let listen = addresses.iter().map(|address| {
        let address = address.parse().expect("an address");
        SocketAddr::new(address, PORT)
    });
    let config = SimulatorConfig {
        listen: listen.collect(),
        tls,
        heartbeat_interval: Duration::from_millis(200),
        ..SimulatorConfig::default()
    };
    Simulator::start(config).await.expect("starts")
}

/// Short intervals: a fault is noticed within a second.
fn config(endpoints: &[String]) -> Config {
    let mut config = support::config(endpoints);
    let connection = &mut config.connection;
    connection.heartbeat_interval = Duration::from_millis(200);
    connection.keepalive_interval = Duration::from_millis(300);
    connection.keepalive_timeout = Duration::from_millis(300);
    connection.connect_deadline = Duration::from_millis(800);
    connection.registration_deadline = Duration::from_millis(800);
    config
}

/// A node under load.
struct Load {
    node: Node,
    federation: FederationView,
    handles: Vec<RequestHandle>,
}

impl Load {
    async fn start(simulator: &Simulator, config: Config) -> Self {
        let mut load = Self {
            node: Node::with(config).await,
            federation: simulator.federation(1).expect("the first"),
            handles: Vec::new(),
        };
        load.node
            .until("connected", StreamStatus::is_connected)
            .await;
        load.more().await;
        load
    }

    /// Asks for some more, which is accepted whatever the network does.
    async fn more(&mut self) {
        let first = self.handles.len() as u64;
        for number in first..first + PART {
            let request = pegout(&self.federation, number);
            self.handles
                .push(accepted(&self.node.stream, request).await);
        }
    }

    /// The session ends, by a fault.
    async fn is_lost(&self, sessions: u64) {
        self.node
            .until("lost", |status| {
                !status.is_connected() || status.connection.sessions > sessions
            })
            .await;
    }

    /// Everything that was accepted is complete, nothing is doubled, and every lane is in order.
    async fn end(mut self, simulator: &Simulator) {
        self.more().await;
        for handle in &self.handles {
            let outcome = handle.outcome(PATIENCE).await;
            assert_eq!(outcome, Ok(Outcome::Complete), "{}", handle.id());
        }
        let view = support::ledger(simulator, |view| view.unacknowledged == 0).await;
        assert_eq!(view.requests.len(), self.handles.len());
        assert_eq!(view.duplicates, 0);
        assert_in_order(&self.node.bridge.so_far(), Lane::Signing);
        self.node.stop().await;
        simulator.assert_clean();
    }

    fn sessions(&self) -> u64 {
        self.node.stream.status().connection.sessions
    }
}

/// A load through a fault that ends the session, made by `on` and ended by flushing every rule.
async fn through(on: &[&str]) {
    own_network();
    let simulator = governance(&["127.0.0.2"], None).await;
    let mut load = Load::start(&simulator, config(&simulator.endpoints())).await;
    let sessions = load.sessions();
    on.iter().for_each(|rule| iptables(rule));
    load.more().await;
    load.is_lost(sessions).await;
    load.more().await;
    assert!(taken() > 0, "the fault has met no packet");
    iptables("-F");
    load.node
        .until("connected again", |status| {
            status.is_connected() && status.connection.sessions > sessions
        })
        .await;
    load.end(&simulator).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn a_partition_is_noticed_and_healed() {
    through(&[
        "-A INPUT -p tcp --dport 50051 -j DROP",
        "-A INPUT -p tcp --sport 50051 -j DROP",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn a_partition_towards_governance_alone_is_noticed_and_healed() {
    through(&["-A INPUT -p tcp --dport 50051 -j DROP"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn a_partition_from_governance_alone_is_noticed_and_healed() {
    through(&["-A INPUT -p tcp --sport 50051 -j DROP"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn a_reset_is_noticed_and_healed() {
    through(&["-A INPUT -p tcp --dport 50051 -j REJECT --reject-with tcp-reset"]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn a_connection_that_dies_midway_is_replaced() {
    own_network();
    // Every connection goes dead once it has carried so much, and a new one lives as long: the
    // load needs several.
    iptables(
        "-A INPUT -p tcp --dport 50051 -m connbytes --connbytes 40000: --connbytes-dir both \
         --connbytes-mode bytes -j DROP",
    );
    let simulator = governance(&["127.0.0.2"], None).await;
    let mut load = Load::start(&simulator, config(&simulator.endpoints())).await;
    for _ in 0..3 {
        load.more().await;
    }
    load.is_lost(1).await;
    load.node
        .until("connected again", |status| {
            status.is_connected() && status.connection.sessions > 1
        })
        .await;
    iptables("-F");
    load.end(&simulator).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn under_loss_of_every_third_packet_everything_arrives() {
    own_network();
    let simulator = governance(&["127.0.0.2"], None).await;
    let mut load = Load::start(&simulator, config(&simulator.endpoints())).await;
    for port in ["--dport", "--sport"] {
        iptables(&format!(
            "-A INPUT -p tcp {port} 50051 -m statistic --mode random --probability 0.3 -j DROP"
        ));
    }
    // Sessions may come and go meanwhile.
    while taken() < 30 {
        load.more().await;
        let last = load.handles.last().expect("asked for");
        assert_eq!(last.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    iptables("-F");
    load.end(&simulator).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "scripts/network-faults runs it in a network namespace of its own"]
async fn a_name_that_moves_to_another_address_is_followed() {
    own_network();
    let moved = |address: &str| {
        // It is bound over the host's file in this mount namespace alone.
        let hosts = format!("127.0.0.1 localhost\n{address} {NAME}\n");
        fs::write("/etc/hosts", hosts).expect("our own file");
    };
    moved("127.0.0.2");
    let ca = Authority::new("governance");
    let tls = served(&ca.server(&[NAME]), None);
    let simulator = governance(&["127.0.0.2", "127.0.0.3"], Some(tls)).await;
    let files = Files::new(&ca, None);
    let mut config = config(&[format!("https://{NAME}:{PORT}")]);
    config.connection.tls = Some(TlsConfig {
        handshake_deadline: Duration::from_millis(800),
        ..files.tls()
    });
    let mut load = Load::start(&simulator, config).await;
    let at = |index| {
        let sessions = simulator.ledger().sessions;
        sessions.iter().all(|(_, endpoint)| *endpoint == index)
    };
    assert!(at(0));
    iptables("-A INPUT -d 127.0.0.2 -p tcp -j DROP");
    iptables("-A INPUT -s 127.0.0.2 -p tcp -j DROP");
    moved("127.0.0.3");
    load.more().await;
    load.node
        .until("connected at the new address", |status| {
            status.is_connected() && status.connection.sessions > 1
        })
        .await;
    assert!(at(1), "{:?}", simulator.ledger().sessions);
    load.end(&simulator).await;
}
