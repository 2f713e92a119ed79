//! Every subscriber here keeps to the contract, and the check finds those that do not.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(feature = "simulator")]

#[path = "../examples/embed.rs"]
#[allow(dead_code, reason = "a part of the example is put to the test")]
mod embed;
mod support;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use governance_stream::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber,
    bridge::BridgeMessage,
    chain::ChainMessage,
    message::{Lane, MessageId, ProposalAck},
    proto,
    simulator::{RotationPlan, Simulator},
    testing::{self, Event, Hindrance, Report, Rule, Subject},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use support::{
    full::FullNode,
    governance,
    recorder::{Bridge, Chain, Mood, Recorder},
};

fn assert_conforms(report: &Report) {
    assert!(report.is_clean(), "{report}");
    assert!(report.skipped.is_empty(), "{:?}", report.skipped);
    assert!(report.deliveries > 40, "{}", report.deliveries);
}

/// This crate's chain: updates of a federation that changes again and again.
struct OurChain {
    node: FullNode,
    simulator: Simulator,
}

impl Subject<ChainEvent> for OurChain {
    async fn start(&mut self) {
        self.node.restart_chain().await;
    }

    fn kept(&self) -> Vec<String> {
        let store = &self.node.chain_store;
        let versions = store.federations().into_iter();
        let versions = versions.map(|(federation, _)| format!("version {}", federation.version()));
        let events = store.events_after(0).into_iter();
        let events = events.map(|event| format!("{event:?}"));
        let proposals = store.proposals().into_iter();
        let proposals = proposals.map(|kept| kept.notification.proposal_id.to_string());
        versions.chain(events).chain(proposals).collect()
    }

    fn message(&mut self, lane: Lane, number: u64) -> Option<ChainEvent> {
        if lane != Lane::Federation {
            return testing::sample_chain_event(lane, number);
        }
        let plan = RotationPlan {
            members: 3,
            threshold: 2,
            activation_height: 100 + number,
            notice_blocks: 10,
            grace_blocks: 50,
            kind: proto::FederationUpdateKind::Scheduled,
        };
        let mut update = self.simulator.build_update(&plan).expect("possible");
        if number.is_multiple_of(3) {
            // One that nobody has approved is refused, again and again.
            update.approvals.clear();
        } else {
            // What the node is told is what this test delivers: governance is not asked.
            self.simulator.rotate_federation(&plan).expect("possible");
        }
        let update = update.try_into().expect("well formed");
        Some(ChainEvent::FederationUpdate(Box::new(update)))
    }
}

/// This crate's bridge.
struct OurBridge(FullNode);

impl Subject<BridgeEvent> for OurBridge {
    async fn start(&mut self) {
        self.0.restart_bridge().await;
    }

    fn kept(&self) -> Vec<String> {
        let store = &self.0.bridge_store;
        let read = async {
            let deliveries = store.deliveries().await.expect("read").into_iter();
            let deliveries =
                deliveries.map(|(lane, sequence, id, _)| format!("{lane} {sequence} {id}"));
            let pegins = store.pegins(None, usize::MAX).await.expect("read");
            let pegins = pegins.into_iter().map(|outpoint| outpoint.to_string());
            deliveries.chain(pegins).collect()
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(read))
    }

    fn message(&mut self, lane: Lane, number: u64) -> Option<BridgeEvent> {
        testing::sample_bridge_event(lane, number)
    }
}

/// A subscriber of the example, whose file is all it has.
struct Example {
    name: String,
    directory: tempfile::TempDir,
}

impl Example {
    fn new() -> Self {
        Self {
            name: support::instance(),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("handled")
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Subject<BridgeEvent> for Example {
    async fn start(&mut self) {
        let (handled, answer) = (self.path(), |_: &BridgeEvent| None);
        let actor = embed::NodeActor { handled, answer };
        let spawned = Actor::spawn(Some(self.name.clone()), actor, ()).await;
        spawned.expect("the name is free");
    }
    fn kept(&self) -> Vec<String> {
        self.lines()
    }
    fn message(&mut self, lane: Lane, number: u64) -> Option<BridgeEvent> {
        testing::sample_bridge_event(lane, number)
    }
}

impl Subject<ChainEvent> for Example {
    async fn start(&mut self) {
        let (handled, answer) = (self.path(), embed::chain as fn(&_) -> _);
        let actor = embed::NodeActor { handled, answer };
        let spawned = Actor::spawn(Some(self.name.clone()), actor, ()).await;
        spawned.expect("the name is free");
    }
    fn kept(&self) -> Vec<String> {
        self.lines()
    }
    fn message(&mut self, lane: Lane, number: u64) -> Option<ChainEvent> {
        testing::sample_chain_event(lane, number)
    }
}

/// A recorder notes whatever comes; what it was told is each message once.
struct Recording<E> {
    recorder: Recorder<E>,
    sample: fn(Lane, u64) -> Option<E>,
}

impl<E: Event> Subject<E> for Recording<E> {
    async fn start(&mut self) {
        self.recorder.appear().await;
    }
    fn kept(&self) -> Vec<String> {
        let told = self.recorder.so_far();
        let told = told.iter().map(identity);
        told.collect::<BTreeSet<_>>().into_iter().collect()
    }
    fn message(&mut self, lane: Lane, number: u64) -> Option<E> {
        (self.sample)(lane, number)
    }
    fn hinder(&mut self, hindrance: Hindrance) -> bool {
        self.recorder.mood(match hindrance {
            Hindrance::FailsAt(at) => Mood::FailsAt(at),
            Hindrance::DiesAt(at) => Mood::PanicsAt(at),
            Hindrance::SlowAt(_) => return false,
        });
        true
    }
}

fn identity<E>(message: &Delivered<E>) -> String {
    format!("{} {}", message.lane, message.occurrence_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_chain_conforms() {
    let simulator = governance().await;
    let node = FullNode::start(&simulator).await;
    let subscriber = Subscriber::named::<ChainMessage>(&node.config.subscribers.chain);
    // Another governance of the same seed has the same members, and tells nobody.
    let mut subject = OurChain {
        node,
        simulator: governance().await,
    };
    assert_conforms(&testing::check(&subscriber, &mut subject).await);
    subject.node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn our_bridge_conforms() {
    let simulator = governance().await;
    let node = FullNode::start(&simulator).await;
    let subscriber = Subscriber::named::<BridgeMessage>(&node.config.subscribers.bridge);
    let mut subject = OurBridge(node);
    assert_conforms(&testing::check(&subscriber, &mut subject).await);
    subject.0.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_subscribers_conform() {
    let mut bridge = Example::new();
    let subscriber = Subscriber::named::<embed::NodeMessage<BridgeEvent>>(&bridge.name);
    assert_conforms(&testing::check::<BridgeEvent, _>(&subscriber, &mut bridge).await);
    let mut chain = Example::new();
    let subscriber = Subscriber::named::<embed::NodeMessage<ChainEvent>>(&chain.name);
    assert_conforms(&testing::check::<ChainEvent, _>(&subscriber, &mut chain).await);
}

#[test]
fn the_examples_subscriber_forgets_half_a_line_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("handled");
    std::fs::write(&path, "pegin 1 a\npegin 2 b\npegin 3").expect("written");
    drop(embed::Handled::open(&path).expect("opens"));
    let left = std::fs::read_to_string(&path).expect("there");
    assert_eq!(left, "pegin 1 a\npegin 2 b\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tests_recorders_conform() {
    let name = support::instance();
    let mut subject = Recording {
        recorder: Bridge::absent(&name, |_| None),
        sample: testing::sample_bridge_event,
    };
    let subscriber = Subscriber::named::<Delivery<BridgeEvent>>(&name);
    let report = testing::check(&subscriber, &mut subject).await;
    assert_conforms(&report);
    assert_eq!(report.unhindered, 2, "slowness, in each lane");
    let name = support::instance();
    let mut subject = Recording {
        recorder: Chain::start(&name).await,
        sample: testing::sample_chain_event,
    };
    subject.recorder.stop().await;
    let subscriber = Subscriber::named::<Delivery<ChainEvent>>(&name);
    assert_conforms(&testing::check(&subscriber, &mut subject).await);
}

/// How a subscriber breaks the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Takes time, as it may.
    Slow,
    /// Never replies to a batch.
    NeverRepliesToBatches,
    /// Handles the first of a batch and says no more.
    StopsSilently,
    /// Says that it handled all, and that it failed.
    FailsWithAll,
    /// Answers a proposal with nothing.
    AnswersNothing,
    /// Keeps what it has handled in its own state.
    Forgets,
    /// Does everything again that comes again.
    DoesTwice,
    /// Knows messages by their place.
    KnowsPlaces,
    /// Knows messages by their id.
    KnowsIds,
    /// Has no time for those who are gone.
    DiesUnread,
    /// Gives a message that comes again another answer.
    AnswersAnew,
}

type Kept = Vec<(u64, MessageId, String)>;

/// A subscriber for proposals that keeps to the contract but for its fault.
struct Faulty(Fault);

impl Actor for Faulty {
    type Msg = Delivery<ChainEvent>;
    type State = Arc<Mutex<Kept>>;
    type Arguments = Arc<Mutex<Kept>>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        kept: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        if self.0 == Fault::Forgets {
            kept.lock().expect("whole").clear();
        }
        Ok(kept)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Self::Msg,
        kept: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Delivery { messages, reply } = delivery;
        let mut handled = Handled::default();
        for message in &messages {
            let mut kept = kept.lock().expect("whole");
            let known = kept.iter().any(|(place, id, known)| match self.0 {
                Fault::KnowsPlaces => *place == message.sequence,
                Fault::KnowsIds => *id == message.message_id,
                _ => *known == identity(message),
            });
            if !known || self.0 == Fault::DoesTwice {
                kept.push((message.sequence, message.message_id, identity(message)));
            }
            let ChainEvent::Proposal(proposal) = &message.event else {
                return Err("not asked for".into());
            };
            let answer = Answer::Proposal(ProposalAck {
                proposal_id: proposal.proposal_id.clone(),
            });
            let again = Answer::Reject {
                reason: "again".to_owned(),
            };
            handled.answers.push(match self.0 {
                Fault::AnswersNothing => None,
                Fault::AnswersAnew if known => Some(again),
                _ => Some(answer),
            });
        }
        match self.0 {
            Fault::Slow => slowly().await,
            Fault::NeverRepliesToBatches if messages.len() > 1 => {
                drop(reply);
                return Ok(());
            }
            Fault::StopsSilently => handled.answers.truncate(1),
            Fault::FailsWithAll => handled.failure = Some("all the same".to_owned()),
            _ => {}
        }
        if reply.send(handled).is_err() && self.0 == Fault::DiesUnread {
            return Err("nobody took the reply".into());
        }
        Ok(())
    }
}

/// Everyone else has had their turn many times before this is over.
async fn slowly() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

struct FaultySubject {
    fault: Fault,
    name: String,
    kept: Arc<Mutex<Kept>>,
}

impl Subject<ChainEvent> for FaultySubject {
    async fn start(&mut self) {
        let (name, kept) = (Some(self.name.clone()), Arc::clone(&self.kept));
        let spawned = Actor::spawn(name, Faulty(self.fault), kept).await;
        spawned.expect("the name is free");
    }
    fn kept(&self) -> Vec<String> {
        let kept = self.kept.lock().expect("whole");
        let kept = kept.iter().map(|(_, id, name)| match self.fault {
            Fault::KnowsIds => format!("{id} {name}"),
            _ => name.clone(),
        });
        kept.collect()
    }
    fn message(&mut self, lane: Lane, number: u64) -> Option<ChainEvent> {
        (lane == Lane::Proposal)
            .then(|| testing::sample_chain_event(lane, number))
            .flatten()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_a_rule_is_told_which() {
    let table = [
        (Fault::None, None),
        (Fault::Slow, None),
        (Fault::NeverRepliesToBatches, Some(Rule::Replies)),
        (Fault::StopsSilently, Some(Rule::Prefix)),
        (Fault::FailsWithAll, Some(Rule::Prefix)),
        (Fault::AnswersNothing, Some(Rule::Answers)),
        (Fault::Forgets, Some(Rule::Durable)),
        (Fault::DoesTwice, Some(Rule::Once)),
        (Fault::AnswersAnew, Some(Rule::Once)),
        (Fault::KnowsPlaces, Some(Rule::Identity)),
        (Fault::KnowsIds, Some(Rule::Identity)),
        (Fault::DiesUnread, Some(Rule::Independent)),
    ];
    for (fault, expected) in table {
        let mut subject = FaultySubject {
            fault,
            name: support::instance(),
            kept: Arc::default(),
        };
        let subscriber = Subscriber::named::<Delivery<ChainEvent>>(&subject.name);
        let report = testing::check(&subscriber, &mut subject).await;
        assert_eq!(report.skipped, BTreeSet::from([Lane::Federation]));
        let broken: BTreeSet<Rule> = report.violations.iter().map(|v| v.rule).collect();
        match expected {
            None => assert!(report.is_clean(), "{fault:?}: {report}"),
            Some(rule) => assert!(broken.contains(&rule), "{fault:?}: {report}"),
        }
    }
}
