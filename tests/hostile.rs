//! Whatever a peer sends, the node stays up, bounded, and says what was wrong.
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
    GovernanceStream, StreamArguments,
    config::Config,
    message::{MessageId, OccurrenceId, Outcome},
    proto::{self, stream_response::Control},
    simulator::{Simulator, proxy::Proxy},
    telemetry::Metrics,
};
use prometheus_client::registry::Registry;
use prost::Message as _;
use support::{PATIENCE, recorder};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

/// A node whose metrics can be read.
struct Victim {
    stream: GovernanceStream,
    bridge: recorder::Bridge,
    chain: recorder::Chain,
    registry: Registry,
}

impl Victim {
    async fn start(mut config: Config) -> Self {
        // What a hostile peer does not acknowledge is not worth waiting for.
        config.drain_deadline = Duration::from_millis(200);
        let store = Store::in_memory();
        let bridge = recorder::Bridge::start(&config.subscribers.bridge).await;
        let chain = recorder::Chain::start(&config.subscribers.chain).await;
        let mut registry = Registry::default();
        let arguments = StreamArguments {
            metrics: Metrics::register(&mut registry),
            ..StreamArguments::new(config, store)
        };
        let stream = GovernanceStream::start(arguments).await.expect("starts");
        Self {
            stream,
            bridge,
            chain,
            registry,
        }
    }

    async fn until_fault(&self, words: &str) {
        support::until(&self.stream, words, |status| {
            let fault = status.connection.last_fault.as_deref();
            fault.is_some_and(|fault| fault.contains(words))
        })
        .await;
    }

    async fn until_connected(&self) {
        support::until(&self.stream, "connected", |status| status.is_connected()).await;
    }

    /// Failures of this cause, as an operator's metrics have them.
    fn failures(&self, cause: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
        let line = format!("alys_stream_stream_errors_total{{cause=\"{cause}\"}} ");
        let value = text.lines().find_map(|shown| shown.strip_prefix(&line));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// The node is as good as ever.
    async fn still_signs(self, simulator: &Simulator, number: u64) {
        let federation = simulator.federation(1).expect("the first");
        let request = support::pegout(&federation, number);
        let handle = support::accepted(&self.stream, request).await;
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
        self.stop().await;
    }

    async fn stop(self) {
        assert_eq!(self.stream.status().actor_restarts, 0, "nothing died of it");
        self.stream.shutdown().await.expect("shuts down");
        self.bridge.stop().await;
        self.chain.stop().await;
    }
}

fn message(lane: proto::Lane, sequence: u64) -> proto::SequencedMessage {
    proto::SequencedMessage {
        lane: lane.into(),
        sequence,
        message_id: MessageId::generate().to_bytes().to_vec().into(),
        occurrence_id: OccurrenceId::generate().to_bytes().to_vec().into(),
        kind: proto::Kind::PeginAck.into(),
        payload: vec![0xff; 8].into(),
        ..Default::default()
    }
}

fn control(control: Control) -> proto::StreamResponse {
    proto::StreamResponse {
        control: Some(control),
        ..Default::default()
    }
}

fn messages(messages: Vec<proto::SequencedMessage>) -> proto::StreamResponse {
    proto::StreamResponse {
        messages,
        ..Default::default()
    }
}

/// Offences that come after a message that is good in itself.
const TAKEN: [&str; 2] = [
    "sequence 1 came again as another message",
    "beyond the window",
];

/// Frames that no governance may send, what the node says of each, and the metric's cause.
fn offences() -> Vec<(&'static str, &'static str, proto::StreamResponse)> {
    let lane = proto::Lane::Pegin;
    let acknowledgement = |lane: i32, through_sequence| proto::StreamResponse {
        acknowledgements: vec![proto::Acknowledgement {
            lane,
            through_sequence,
        }],
        ..Default::default()
    };
    let twice = vec![message(lane, 1), message(lane, 1)];
    let empty = proto::SequencedMessage::default();
    let many: Vec<_> = (1..=1025).map(|sequence| message(lane, sequence)).collect();
    vec![
        (
            "the registration was answered twice",
            "protocol",
            control(Control::RegistrationAck(Default::default())),
        ),
        (
            "a reconciliation that was not asked for",
            "protocol",
            control(Control::ReconcileResponse(Default::default())),
        ),
        (
            "recall_page: a reconciliation that was not asked for",
            "protocol",
            control(Control::RecallPage(Default::default())),
        ),
        (
            "sequence 9 came, 1 was expected",
            "protocol",
            messages(vec![message(lane, 9)]),
        ),
        (
            "sequence 0 came, 1 was expected",
            "protocol",
            messages(vec![message(lane, 0)]),
        ),
        (
            "sequence 1 came again as another message",
            "protocol",
            messages(twice),
        ),
        ("beyond the window", "protocol", messages(many)),
        (
            "message_id",
            "protocol",
            messages(vec![proto::SequencedMessage {
                message_id: vec![1, 2, 3].into(),
                ..message(lane, 1)
            }]),
        ),
        (
            "77 was acknowledged and never sent",
            "protocol",
            acknowledgement(lane.into(), 77),
        ),
        ("acknowledgements.lane", "protocol", acknowledgement(99, 1)),
        (
            "more than 4160 fields",
            "excess",
            messages(vec![empty; 100_000]),
        ),
        (
            "too large",
            "excess",
            messages(vec![proto::SequencedMessage {
                payload: vec![0; 5 << 20].into(),
                ..message(lane, 1)
            }]),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_offence_ends_the_session_is_named_and_counted_and_costs_nothing_else() {
    for (number, (words, cause, frame)) in offences().into_iter().enumerate() {
        let simulator = support::governance().await;
        let victim = Victim::start(support::config(&simulator.endpoints())).await;
        victim.until_connected().await;
        simulator.inject(&frame);
        victim.until_fault(words).await;
        assert!(victim.failures(cause) >= 1, "{words}");
        // A message that was good in itself is handled, and then the simulator, which never sent
        // it, does not know what to make of the node.
        if TAKEN.contains(&words) {
            victim.stop().await;
            continue;
        }
        victim.until_connected().await;
        assert_eq!(victim.failures(cause), 1, "{words}");
        victim.still_signs(&simulator, number as u64).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_answered_for_this_node_and_this_time_or_not_at_all() {
    let lanes = [
        proto::Lane::Signing,
        proto::Lane::Federation,
        proto::Lane::Pegin,
        proto::Lane::Proposal,
    ];
    let good = proto::RegistrationAck {
        session_id: vec![1; 16].into(),
        ledger_id: vec![2; 16].into(),
        lanes: lanes
            .map(|lane| proto::LaneState {
                lane: lane.into(),
                first_retained: 1,
                next_new: 1,
                next_expected: 1,
                last_received_message_id: Default::default(),
                window_messages: 10,
                window_bytes: 1000,
            })
            .to_vec(),
        limits: None,
        heartbeat_interval_ms: 1000,
        federation_version: 1,
        node_id: "node-1".to_owned(),
        epoch: 1,
        new_node: true,
        recall_due: false,
    };
    let bad = [
        (
            "node-2",
            proto::RegistrationAck {
                node_id: "node-2".to_owned(),
                ..good.clone()
            },
        ),
        (
            "in epoch 9",
            proto::RegistrationAck {
                epoch: 9,
                ..good.clone()
            },
        ),
        (
            "heartbeat_interval_ms",
            proto::RegistrationAck {
                heartbeat_interval_ms: 1,
                ..good.clone()
            },
        ),
        (
            "exactly one for each lane",
            proto::RegistrationAck {
                lanes: good.lanes[..3].to_vec(),
                ..good.clone()
            },
        ),
        (
            "ledger_id",
            proto::RegistrationAck {
                ledger_id: vec![7; 3].into(),
                ..good.clone()
            },
        ),
    ];
    let mut answers: Vec<(&str, proto::StreamResponse)> = bad
        .into_iter()
        .map(|(words, ack)| (words, control(Control::RegistrationAck(ack))))
        .collect();
    answers.push((
        "a frame came before the answer",
        messages(vec![message(proto::Lane::Pegin, 1)]),
    ));
    answers.push((
        "a frame came before the answer",
        control(Control::HeartbeatAck(Default::default())),
    ));
    for (number, (words, answer)) in answers.into_iter().enumerate() {
        let simulator = support::governance().await;
        simulator.answer_next_registration_with(answer);
        let victim = Victim::start(support::config(&simulator.endpoints())).await;
        victim.until_fault(words).await;
        victim.until_connected().await;
        assert_eq!(victim.failures("protocol"), 1, "{words}");
        victim.still_signs(&simulator, number as u64).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_end_and_without_news_are_too_much() {
    let simulator = support::governance().await;
    let mut config = support::config(&simulator.endpoints());
    config.connection.idle_frames_per_second = 100;
    let victim = Victim::start(config).await;
    victim.until_connected().await;
    let flood = async {
        loop {
            simulator.inject(&proto::StreamResponse::default());
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = flood => {}
        () = victim.until_fault("frames a second that bring nothing new") => {}
    }
    assert!(victim.failures("excess") >= 1);
    victim.until_connected().await;
    victim.still_signs(&simulator, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_drips_is_as_good_as_silent() {
    let simulator = support::governance().await;
    let proxy = Proxy::start(simulator.addresses()[0])
        .await
        .expect("listens");
    let mut config = support::config(&[format!("http://{}", proxy.address())]);
    config.connection.heartbeat_interval = Duration::from_millis(100);
    let victim = Victim::start(config).await;
    victim.until_connected().await;
    proxy.throttle(Some(20));
    victim.until_fault("silent").await;
    proxy.heal();
    victim.until_connected().await;
    assert!(victim.failures("silent") >= 1);
    victim.still_signs(&simulator, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_protocol_are_an_endpoint_that_is_not_there() {
    let simulator = support::governance().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let garbage = format!("http://{}", listener.local_addr().expect("bound"));
    let babbling = tokio::spawn(async move {
        let mut bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        while let Ok((mut peer, _)) = listener.accept().await {
            bytes.rotate_left(7);
            let _ = peer.write_all(&bytes).await;
        }
    });
    let endpoints = [garbage.clone(), simulator.endpoints()[0].clone()];
    let victim = Victim::start(support::config(&endpoints)).await;
    victim.until_connected().await;
    let endpoints = victim.stream.status().connection.endpoints;
    assert!(
        endpoints[0].last_fault.is_some() && endpoints[1].current,
        "{endpoints:#?}"
    );
    victim.still_signs(&simulator, 1).await;
    babbling.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_a_request_that_was_never_made_settles_nothing() {
    let simulator = support::governance().await;
    let victim = Victim::start(support::config(&simulator.endpoints())).await;
    victim.until_connected().await;
    let response = proto::SignatureResponse {
        request_id: "never-made".to_owned(),
        txid: vec![7; 32].into(),
        federation_version: 1,
        status: proto::SignatureStatus::Complete.into(),
        ..Default::default()
    };
    simulator.inject(&messages(vec![proto::SequencedMessage {
        kind: proto::Kind::SignatureResponse.into(),
        payload: response.encode_to_vec().into(),
        ..message(proto::Lane::Signing, 1)
    }]));
    // The simulator never queued it: that it is answered at all is the violation it must see.
    support::until(&victim.stream, "kept as a dead letter", |status| {
        status.dead_letters == 1
    })
    .await;
    let letters = victim.stream.dead_letters().await.expect("running");
    assert!(letters[0].1.reason.contains("never-made"), "{letters:?}");
    assert!(victim.bridge.so_far().is_empty(), "the bridge never saw it");
    victim.stream.shutdown().await.expect("shuts down");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_name_what_it_tells_is_a_dead_letter_and_its_lane_goes_on() {
    for nameless in [Vec::new(), vec![1; 15], vec![1; 17]] {
        let simulator = support::governance().await;
        let victim = Victim::start(support::config(&simulator.endpoints())).await;
        victim.until_connected().await;
        let proposal = proto::ProposalNotification {
            proposal_id: "proposal-1".to_owned(),
            proposal_type: "limits".to_owned(),
            ..Default::default()
        };
        let good = |sequence| proto::SequencedMessage {
            kind: proto::Kind::ProposalNotification.into(),
            payload: proposal.encode_to_vec().into(),
            ..message(proto::Lane::Proposal, sequence)
        };
        simulator.inject(&messages(vec![
            proto::SequencedMessage {
                occurrence_id: nameless.into(),
                ..good(1)
            },
            good(2),
        ]));
        let delivered = victim.chain.recorded(1).await;
        assert_eq!(delivered[0].sequence, 2);
        support::until(&victim.stream, "kept as a dead letter", |status| {
            status.dead_letters == 1
        })
        .await;
        let letters = victim.stream.dead_letters().await.expect("running");
        let reason = &letters[0].1.reason;
        assert!(reason.contains("occurrence_id"), "{reason}");
        // The simulator never queued them: that they are answered is the violation it must see.
        victim.stream.shutdown().await.expect("shuts down");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_stream_is_left_and_what_it_carried_comes_whole() {
    let simulator = support::governance().await;
    let proxy = Proxy::start_seeded(simulator.addresses()[0], 5)
        .await
        .expect("listens");
    let config = support::config(&[format!("http://{}", proxy.address())]);
    let victim = Victim::start(config).await;
    victim.until_connected().await;
    // What governance says: the other way a plaintext request could change on its way, unseen.
    proxy.corrupt(
        governance_stream::simulator::proxy::Direction::FromTarget,
        0.02,
    );
    victim.until_fault("http").await;
    proxy.heal();
    victim.until_connected().await;
    victim.stream.shutdown().await.expect("shuts down");
}
