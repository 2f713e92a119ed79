//! The session is where it should be, and moves without losing anything.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::{
    ConnectionPhase, Reachability, StreamStatus,
    config::{Config, Endpoint, TokenSource},
    message::{Lane, Outcome},
    simulator::{Simulator, SimulatorConfig},
};
use support::{Node, PATIENCE, assert_in_order, governance_with};

const MS: Duration = Duration::from_millis(1);

/// A configuration that probes often and returns soon.
fn config(simulator: &Simulator) -> Config {
    let mut config = support::config(&simulator.endpoints());
    config.connection.probe_interval = 20 * MS;
    config.connection.failback_after = 60 * MS;
    config.connection.credentials_interval = 20 * MS;
    config
}

fn endpoint(simulator: &Simulator, index: usize) -> Endpoint {
    simulator.endpoints()[index].parse().expect("loopback")
}

fn is_at(simulator: &Simulator, index: usize) -> impl Fn(&StreamStatus) -> bool + use<> {
    let endpoint = simulator.endpoints()[index].clone();
    move |status| {
        status.connection.phase == ConnectionPhase::Connected
            && status.connection.endpoint.as_ref() == Some(&endpoint)
    }
}

/// Asks for `numbers`, has `meanwhile` happen, and shows that everything came to its end once and
/// in order.
async fn under_load(
    simulator: &Simulator,
    node: &Node,
    numbers: std::ops::Range<u64>,
    meanwhile: impl Future<Output = ()>,
) {
    let federation = simulator.federation(1).expect("the first");
    let (handles, ()) = tokio::join!(node.request(&federation, numbers.clone()), meanwhile);
    for handle in &handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let settled = |view: &governance_stream::simulator::LedgerView| view.unacknowledged == 0;
    let view = support::ledger(simulator, settled).await;
    assert_eq!(view.duplicates, 0);
    assert_in_order(&node.bridge.so_far(), Lane::Signing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_endpoint_takes_the_session_back_once_it_is_well_again() {
    let mut simulator = governance_with(2).await;
    let node = Node::with(config(&simulator)).await;
    node.until("at the first", is_at(&simulator, 0)).await;
    simulator.stop_endpoint(0).await;
    node.until("at the second", is_at(&simulator, 1)).await;
    simulator
        .start_endpoint(0)
        .await
        .expect("its address is free");
    let back = async { node.until("back", is_at(&simulator, 0)).await };
    under_load(&simulator, &node, 0..200, back).await;
    let connection = node.stream.status().connection;
    assert_eq!(connection.switches, 1, "without a gap");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_find_out_what_is_well_and_never_register() {
    let mut simulator = governance_with(3).await;
    let node = Node::with(config(&simulator)).await;
    node.until("connected", is_at(&simulator, 0)).await;
    simulator.stop_endpoint(1).await;
    simulator.set_serving(2, false).await;
    let reachability = |status: &StreamStatus| -> Vec<Reachability> {
        let endpoints = status.connection.endpoints.iter();
        endpoints.map(|endpoint| endpoint.reachability).collect()
    };
    node.until("known to be down", |status| {
        reachability(status) == [Reachability::Up, Reachability::Down, Reachability::Down]
    })
    .await;
    let endpoints = node.stream.status().connection.endpoints;
    let fault = |index: usize| endpoints[index].last_fault.clone().unwrap_or_default();
    assert!(fault(2).contains("not serving"), "{}", fault(2));
    simulator
        .start_endpoint(1)
        .await
        .expect("its address is free");
    simulator.set_serving(2, true).await;
    node.until("known to be well", |status| {
        reachability(status)
            .iter()
            .all(|known| *known == Reachability::Up)
    })
    .await;
    assert_eq!(simulator.ledger().registrations, 1);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_moves_the_session_without_a_gap() {
    let simulator = governance_with(2).await;
    let node = Node::with(config(&simulator)).await;
    node.until("connected", is_at(&simulator, 0)).await;
    let mut changes = node.stream.watch_connection();
    let drained = async {
        simulator.drain_endpoint(0, Duration::from_secs(60), "maintenance");
        node.until("moved", is_at(&simulator, 1)).await;
    };
    under_load(&simulator, &node, 0..200, drained).await;
    let mut phases = Vec::new();
    while let Ok(change) = changes.try_recv() {
        phases.push(change.to);
    }
    assert!(
        !phases.contains(&ConnectionPhase::BackingOff),
        "it was never without a session for longer than a handshake: {phases:?}"
    );
    assert_eq!(node.stream.status().connection.switches, 1);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_goes_away_or_stops_serving_is_left_before_it_ends() {
    for goes_away in [true, false] {
        let mut simulator = governance_with(2).await;
        let node = Node::with(config(&simulator)).await;
        node.until("connected", is_at(&simulator, 0)).await;
        let left = async {
            if goes_away {
                simulator.go_away(0);
            } else {
                simulator.set_serving(0, false).await;
            }
            node.until("moved", is_at(&simulator, 1)).await;
        };
        under_load(&simulator, &node, 0..100, left).await;
        assert_eq!(node.stream.status().connection.switches, 1, "without a gap");
        simulator.stop_endpoint(0).await;
        node.stop().await;
        simulator.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_endpoint_without_a_sibling_gets_the_next_session_too() {
    let simulator = governance_with(1).await;
    let node = Node::with(config(&simulator)).await;
    node.until("connected", is_at(&simulator, 0)).await;
    simulator.drain("another server behind the same name takes over");
    node.until("switched", |status| status.connection.switches == 1)
        .await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_to_and_fro_at_any_moment_of_traffic_nothing_is_lost_or_reordered() {
    let simulator = governance_with(2).await;
    let node = Node::with(config(&simulator)).await;
    node.until("connected", is_at(&simulator, 0)).await;
    let to_and_fro = async {
        for round in 0..30 {
            let index = (round + 1) % 2;
            node.stream
                .connect(endpoint(&simulator, index))
                .expect("running");
            node.until("moved", is_at(&simulator, index)).await;
        }
    };
    under_load(&simulator, &node, 0..600, to_and_fro).await;
    let connection = node.stream.status().connection;
    assert_eq!(connection.switches, 30, "{connection:#?}");
    assert!(connection.endpoints.iter().any(|known| known.pinned));
    node.stream.connect_by_preference().expect("running");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_left_for_an_endpoint_that_is_down_or_behind() {
    let mut simulator = governance_with(2).await;
    let beginning = simulator.checkpoint();
    let node = Node::with(config(&simulator)).await;
    node.until("connected", is_at(&simulator, 0)).await;
    under_load(&simulator, &node, 0..10, async {}).await;
    for word in ["not serving", "behind"] {
        match word {
            "behind" => simulator.lag(1, Some(beginning)),
            _ => simulator.set_serving(1, false).await,
        }
        node.stream
            .connect(endpoint(&simulator, 1))
            .expect("running");
        node.until(word, |status| {
            let fault = status.connection.last_fault.as_deref();
            fault.is_some_and(|fault| fault.contains(word))
        })
        .await;
        assert!(node.stream.status().is_connected());
        assert_eq!(simulator.ledger().registrations, 1, "it never registered");
        node.stream.connect_by_preference().expect("running");
        simulator.set_serving(1, true).await;
        simulator.lag(1, None);
    }
    under_load(&simulator, &node, 10..20, async {}).await;
    simulator.stop_endpoint(1).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_acknowledges_nothing_is_left_though_its_heart_beats() {
    let simulator = governance_with(2).await;
    let mut config = config(&simulator);
    config.connection.heartbeat_interval = 200 * MS;
    config.connection.stall_deadline = 100 * MS;
    let node = Node::with(config).await;
    node.until("connected", is_at(&simulator, 0)).await;
    simulator.withhold_acknowledgements(true);
    let federation = simulator.federation(1).expect("the first");
    let handle = node.request(&federation, [1]).await.remove(0);
    node.until("stalled", |status| {
        let fault = status.connection.last_fault.as_deref();
        fault.is_some_and(|fault| fault.contains("acknowledged nothing of lane signing"))
    })
    .await;
    simulator.withhold_acknowledgements(false);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    node.until("well", StreamStatus::is_connected).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_token_is_taken_up_by_a_session_of_its_own() {
    let simulator = Simulator::start(SimulatorConfig {
        token: Some("first".to_owned()),
        ..SimulatorConfig::default()
    })
    .await
    .expect("starts");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("token");
    std::fs::write(&path, "first").expect("written");
    let mut config = config(&simulator);
    config.connection.token = Some(TokenSource::File(path.clone()));
    let node = Node::with(config).await;
    node.until("connected", is_at(&simulator, 0)).await;
    // Calls that begin from now on need the new one; the session that is there goes on.
    let rotated = async {
        simulator.set_token(Some("second"), false);
        std::fs::write(&path, "second").expect("written");
        node.until("switched", |status| status.connection.switches == 1)
            .await;
    };
    under_load(&simulator, &node, 0..100, rotated).await;

    // A file that cannot be used is told, and changes nothing.
    std::fs::write(&path, "").expect("written");
    node.until("told", |status| {
        status.connection.credentials_fault.is_some()
    })
    .await;
    assert!(node.stream.status().is_connected());

    // Revoked at once: the file is read once more, and has the right one.
    std::fs::write(&path, "third").expect("written");
    simulator.set_token(Some("third"), true);
    node.until("connected again", |status| {
        status.is_connected() && status.connection.credentials_fault.is_none()
    })
    .await;
    under_load(&simulator, &node, 100..110, async {}).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pace_that_governance_asks_for_is_kept() {
    let simulator = Simulator::start(SimulatorConfig {
        max_messages_per_second: 200,
        ..SimulatorConfig::default()
    })
    .await
    .expect("starts");
    let node = Node::with(config(&simulator)).await;
    for number in 0..300 {
        let notice = support::deposit(number);
        node.stream.notify_pegin(notice).await.expect("accepted");
    }
    support::ledger(&simulator, |view| view.pegins == 300).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_told_with_its_cause() {
    let simulator = governance_with(1).await;
    let node = Node::with(config(&simulator)).await;
    let mut changes = node.stream.watch_connection();
    node.until("connected", is_at(&simulator, 0)).await;
    simulator.cut();
    let lost = tokio::time::timeout(PATIENCE, async {
        loop {
            let change = changes.recv().await.expect("not too slow");
            if change.from == ConnectionPhase::Connected {
                return change;
            }
        }
    })
    .await
    .expect("in time");
    assert_eq!(lost.to, ConnectionPhase::BackingOff);
    assert!(lost.cause.contains("cut by the script"), "{lost:?}");
    node.until("in the status too", |status| status.changes.contains(&lost))
        .await;
    node.stop().await;
    simulator.assert_clean();
}
