//! Memory stays flat, whatever governance sends to a subscriber that is dead, and however often
//! sessions and trackers come and go.
#![cfg(target_os = "linux")]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::storage::Store;
use governance_stream::{GovernanceStream, StreamArguments, message::Lane, proto};
use support::{
    Node, config, governance, kill,
    memory::{assert_flat, resident},
};

const MIB: u64 = 1 << 20;
/// Of each proposal.
const PAYLOAD: usize = 4096;
/// More than the window lets in: of 1024 messages, or 4 MiB of these.
const PROPOSALS: u64 = 1500;
const WARM_UP: u64 = 20;
const RECONNECTIONS: u64 = 150;

fn proposal(number: u64) -> proto::ProposalNotification {
    proto::ProposalNotification {
        proposal_id: format!("proposal-{number}"),
        proposal_type: "fee-policy".to_owned(),
        data: vec![7; PAYLOAD].into(),
        voting_deadline_unix_ms: 1_800_000_000_000,
    }
}

async fn reconnect(stream: &GovernanceStream, simulator: &governance_stream::simulator::Simulator) {
    let (sessions, received) = {
        let connection = stream.status().connection;
        (connection.sessions, connection.messages_received)
    };
    simulator.cut();
    // Everything in the window comes again: counters of messages wake nobody.
    support::until(stream, "connected again", |status| {
        status.connection.sessions > sessions && status.is_connected()
    })
    .await;
    let window = async {
        while stream.status().connection.messages_received < received + 1024 {
            tokio::task::yield_now().await;
        }
    };
    let window = tokio::time::timeout(support::PATIENCE, window).await;
    window.expect("governance fills the window");
}

/// One test at a time in a process: they measure all of it.
#[tokio::test(flavor = "multi_thread")]
async fn it_stays_flat_whoever_is_dead_or_hostile_and_as_trackers_come_and_go() {
    a_dead_subscriber().await;
    a_hostile_peer().await;
    trackers().await;
}

/// Frames of many fields that stand for much more memory than their bytes, and floods of empty
/// ones: each ends its session, and leaves nothing behind.
async fn a_hostile_peer() {
    const FIELDS: usize = 100_000;
    const ROUNDS: u64 = 60;
    let simulator = governance().await;
    let mut config = config(&simulator.endpoints());
    config.connection.backoff.max = Duration::from_millis(10);
    config.connection.idle_frames_per_second = 100;
    let arguments = StreamArguments::new(config, Store::in_memory());
    let stream = GovernanceStream::start(arguments).await.expect("starts");
    let swollen = proto::StreamResponse {
        messages: vec![proto::SequencedMessage::default(); FIELDS],
        ..Default::default()
    };
    let empty = proto::StreamResponse::default();
    let mut before = 0;
    for round in 0..ROUNDS {
        if round == ROUNDS / 4 {
            before = resident();
        }
        support::until(&stream, "connected", |status| status.is_connected()).await;
        let sessions = stream.status().connection.sessions;
        let left = support::until(&stream, "left and back", |status| {
            status.connection.sessions > sessions
        });
        if round % 2 == 0 {
            simulator.inject(&swollen);
            left.await;
            continue;
        }
        let flood = async {
            loop {
                simulator.inject(&empty);
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = flood => {}
            () = left => {}
        }
    }
    let fault = stream.status().connection.last_fault.unwrap_or_default();
    assert!(fault.contains("exceeded a limit"), "{fault}");
    assert_flat("a hostile peer", before, 32 * MIB);
    stream.shutdown().await.expect("shuts down");
}

/// What comes for it waits within the window, however often governance sends it: each time that is
/// 4 MiB, of which one copy is kept.
async fn a_dead_subscriber() {
    let simulator = governance().await;
    for number in 0..PROPOSALS {
        simulator.propose(&proposal(number));
    }
    let mut config = config(&simulator.endpoints());
    config.connection.backoff.max = Duration::from_millis(10);
    let stream = GovernanceStream::start(StreamArguments::new(config.clone(), Store::in_memory()))
        .await
        .expect("starts");
    for _ in 0..WARM_UP {
        reconnect(&stream, &simulator).await;
    }
    let before = resident();
    for _ in 0..RECONNECTIONS {
        reconnect(&stream, &simulator).await;
    }
    let what = "600 MiB for a dead subscriber, over 150 reconnections";
    assert_flat(what, before, 24 * MIB);
    support::until(&stream, "held up", |status| {
        let lane = status.lanes.iter().find(|lane| lane.lane == Lane::Proposal);
        lane.is_some_and(|lane| lane.handled_through == 0 && lane.blocked.is_some())
    })
    .await;
    stream.shutdown().await.expect("shuts down");
    support::assert_nothing_left(config.instance.as_str());
    simulator.assert_clean();
}

/// Requests that stay open, whose trackers die and are started again: nothing else is meant to
/// grow, as a request's row is when it is settled.
async fn trackers() {
    const OPEN: u64 = 50;
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut config = config(&simulator.endpoints());
    config.supervision.max_tracker_restarts = usize::MAX;
    let node = Node::with(config).await;
    simulator.hold_responses();
    node.request(&federation, 0..OPEN).await;
    let rounds = async |rounds: u64| {
        for _ in 0..rounds {
            for number in 0..OPEN {
                kill(&format!("{}.request.pegout-{number}", node.config.instance)).await;
            }
        }
    };
    rounds(WARM_UP).await;
    let before = resident();
    rounds(100).await;
    assert_flat("5000 trackers that came and went", before, 8 * MIB);
    assert_eq!(node.stream.status().parked_requests, 0);
    simulator.release_responses();
    node.stop().await;
    simulator.assert_clean();
}
