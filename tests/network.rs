//! A network that misbehaves between node and governance: everything arrives, once and in order.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::{
    RequestHandle, StreamStatus,
    config::TlsConfig,
    message::{Lane, Outcome},
    simulator::{
        FederationView, Simulator, SimulatorConfig,
        proxy::{Cut, Direction, Proxy},
    },
};
use support::{
    Node, PATIENCE, assert_in_order,
    certificates::{Authority, Files, served},
    config, governance,
};

const PART: u64 = 20;

/// A node under load, behind a proxy.
struct Scene {
    simulator: Simulator,
    federation: FederationView,
    proxy: Proxy,
    node: Node,
    handles: Vec<RequestHandle>,
}

impl Scene {
    async fn new() -> Self {
        Self::with(governance().await, None).await
    }

    async fn with(simulator: Simulator, tls: Option<TlsConfig>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let proxy = Proxy::start_seeded(simulator.addresses()[0], 3).await;
        let proxy = proxy.expect("listens");
        let mut config = config(&[format!("{scheme}://{}", proxy.address())]);
        config.connection.tls = tls;
        config.connection.heartbeat_interval = Duration::from_millis(100);
        config.connection.registration_deadline = Duration::from_millis(500);
        let node = Node::with(config).await;
        node.until("connected", StreamStatus::is_connected).await;
        let mut scene = Self {
            federation: simulator.federation(1).expect("the first"),
            simulator,
            proxy,
            node,
            handles: Vec::new(),
        };
        scene.more().await;
        scene
    }

    async fn more(&mut self) {
        let first = self.handles.len() as u64;
        let numbers = first..first + PART;
        let more = self.node.request(&self.federation, numbers).await;
        self.handles.extend(more);
    }

    /// Another session than the first `sessions`.
    async fn connected_after(&self, sessions: u64) {
        self.node
            .until("connected again", |status| {
                status.is_connected() && status.connection.sessions > sessions
            })
            .await;
    }

    fn sessions(&self) -> u64 {
        self.node.stream.status().connection.sessions
    }

    async fn complete(&self) {
        for handle in &self.handles {
            assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
        }
    }

    async fn end(mut self) {
        self.more().await;
        self.complete().await;
        let settled = support::ledger(&self.simulator, |view| view.unacknowledged == 0).await;
        assert_eq!(settled.requests.len(), self.handles.len());
        assert_eq!(settled.duplicates, 0);
        assert_in_order(&self.node.bridge.so_far(), Lane::Signing);
        self.node.stop().await;
        self.simulator.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_or_ended_at_any_byte_are_replaced() {
    let mut scene = Scene::new().await;
    for (number, direction) in [Direction::ToTarget, Direction::FromTarget]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        let how = if number % 4 < 2 {
            Cut::Reset
        } else {
            Cut::Finish
        };
        let sessions = scene.sessions();
        // In the middle of a frame, of a header, or of nothing.
        scene
            .proxy
            .cut_after(direction, 1 + 997 * number as u64, how);
        scene.more().await;
        scene.connected_after(sessions).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_quiet_in_one_direction_or_both_is_left() {
    let mut scene = Scene::new().await;
    for directions in [
        &[Direction::ToTarget][..],
        &[Direction::FromTarget],
        &[Direction::ToTarget, Direction::FromTarget],
    ] {
        let sessions = scene.sessions();
        for direction in directions {
            scene.proxy.stall(*direction, true);
        }
        scene.more().await;
        scene
            .node
            .until("silent", |status| !status.is_connected())
            .await;
        // What was held up comes late, at a session that is over.
        scene.proxy.heal();
        scene.connected_after(sessions).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direction_that_is_closed_alone_ends_the_session() {
    let mut scene = Scene::new().await;
    for direction in [Direction::ToTarget, Direction::FromTarget] {
        let sessions = scene.sessions();
        scene.proxy.half_close(direction);
        scene.more().await;
        scene.connected_after(sessions).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_and_uneven_network_delays_and_nothing_else() {
    let mut scene = Scene::new().await;
    let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(20));
    scene.proxy.delay(delay, jitter);
    scene.proxy.throttle(Some(200_000));
    scene.more().await;
    scene.complete().await;
    assert_eq!(scene.sessions(), 1, "slow is not lost");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_on_the_way_ends_the_session_and_is_never_taken_for_a_word() {
    let ca = Authority::new("governance");
    let simulator = Simulator::start(SimulatorConfig {
        tls: Some(served(&ca.server(&["127.0.0.1"]), None)),
        ..SimulatorConfig::default()
    });
    let files = Files::new(&ca, None);
    let simulator = simulator.await.expect("starts");
    let mut scene = Scene::with(simulator, Some(files.tls())).await;
    for direction in [Direction::ToTarget, Direction::FromTarget] {
        let sessions = scene.sessions();
        scene.proxy.corrupt(direction, 0.001);
        scene.more().await;
        scene
            .node
            .until("lost", |status| {
                !status.is_connected() || status.connection.sessions > sessions
            })
            .await;
        scene.proxy.heal();
        scene.connected_after(sessions).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_tried_again_until_it_does_not() {
    let mut scene = Scene::new().await;
    let sessions = scene.sessions();
    scene.proxy.refuse(true);
    scene.proxy.cut(Cut::Reset);
    scene.more().await;
    scene
        .node
        .until("refused", |status| !status.is_connected())
        .await;
    scene.proxy.refuse(false);
    scene.connected_after(sessions).await;
    scene.end().await;
}
