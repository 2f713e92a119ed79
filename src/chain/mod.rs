//! The chain: keeps every version of the federation and every proposal, applies versions at their
//! height, tells the bridge, and notes which burns that has paid for good.
//!
//! An implementation of the subscriber contract, and what the binary runs; a node may bring its
//! own. What it accepted lies in a [`ChainStore`], which outlives the actor: a user of the node's
//! store, which hands in what changes and brings it into force once it is durable. The actor judges,
//! waits for no disk, and answers when it is told.
//!
//! # What a node does with it
//!
//! It tells the sidechain's best height, once at its start and from then on whenever that changes:
//! [`ChainMessage::HeightReached`] from its block import, or [`ChainMessage::ReportHeight`] to be
//! told when it is durable. A version becomes active at its height and not before, however long
//! ago that height passed; a lower height after a reorganisation undoes it.
//!
//! Which burns are paid, and may be marked so on the sidechain, is [`ChainStore::payments`] and
//! [`ChainStore::payment_of`]: each is noted once its transaction is as deep in the Bitcoin chain as
//! it has to be.
//!
//! It follows what happens to the federation through [`ChainStore::events_after`], and remembers the
//! number of the last event that it has dealt with:
//!
//! ```no_run
//! # use governance_stream::chain::{ChainStore, FederationEvent};
//! # async fn follow(store: ChainStore, mut last: u64) {
//! let mut changed = store.watch();
//! loop {
//!     for event in store.events_after(last) {
//!         if let FederationEvent::Updated { old_version, new_version, new_address } = event.event {
//!             println!("{old_version} is succeeded by {new_version}: deposits go to {new_address}");
//!         }
//!         last = event.number;
//!     }
//!     if changed.changed().await.is_err() {
//!         return;
//!     }
//! }
//! # }
//! ```

mod driver;
mod event;
mod fault;
mod federation;
mod height;
mod known;
mod load;
pub(crate) mod payment_rows;
mod payments;
mod presence;
mod proposals;
mod schedule;
mod staging;
mod store;
mod stored;
mod telling;

#[cfg(test)]
#[cfg(feature = "simulator")]
mod model_tests;
#[cfg(test)]
#[cfg(feature = "simulator")]
mod payment_tests;
#[cfg(test)]
#[cfg(feature = "simulator")]
mod test_support;

use std::{fmt, time::SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::{sync::watch, task::JoinSet};
use tracing::{error, info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    bridge::CompletionNotice,
    message::{FederationUpdate, FederationUpdateAck, ProposalAck, ProposalNotification},
    routing::{Answer, ChainEvent, Delivered, Delivery, Handled},
    storage::StoreError,
    stream::GovernanceStream,
};
use known::Draft;
use presence::Presence;

pub use event::{EVENTS_KEPT, FederationEvent, NumberedEvent};
pub use fault::{FederationFault, Refusal};
pub use federation::{Federation, FederationPolicy};
pub use height::{HeightError, HeightReport};
pub use payment_rows::{MAX_PAYMENTS, PaymentPage};
pub use payments::{NotNoted, Noted, NumberedPayment, PaymentFault};
pub use proposals::{MAX_PROPOSALS, Proposal, ProposalFault};
pub use schedule::{FederationStanding, Schedule, Scheduling};
pub use store::ChainStore;

/// Every version with its standing, as the bridge needs it.
pub type Federations = Vec<(Federation, FederationStanding)>;

/// What the chain is asked and told.
#[derive(Debug)]
pub enum ChainMessage {
    /// From the stream.
    Deliver(Delivery<ChainEvent>),
    /// The sidechain's best height, from the node itself at its start, at each block and after a
    /// reorganisation: it holds, be it higher or lower. One that cannot be made durable is not
    /// taken; the next one is.
    HeightReached(u64),
    /// The same from whoever may be mistaken, or wants to know when it is durable.
    ReportHeight {
        /// What is said of it.
        report: HeightReport,
        /// Answered once everything that rests on it is durable and in force here.
        reply: RpcReplyPort<Result<(), HeightError>>,
    },
    /// From the bridge: burns are paid for good. Answered once that is durable.
    PegoutCompleted(CompletionNotice),
    /// The version that signs now.
    GetFederation {
        /// Takes it.
        reply: RpcReplyPort<Federation>,
    },
    /// Every proposal that is kept, whose vote ends first the first.
    ListProposals {
        /// Takes them.
        reply: RpcReplyPort<Vec<Proposal>>,
    },
    /// From the store, by way of what the actor has left there.
    Settled(Settled),
}

/// What the chain's store tells its actor: nobody else makes one.
pub struct Settled(News);

impl fmt::Debug for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settled").finish_non_exhaustive()
    }
}

enum News {
    /// A delivery is durable, or is not known to be.
    Delivery {
        received: Result<Vec<Received>, StoreError>,
        reply: RpcReplyPort<Handled>,
    },
    /// So is a height.
    Height {
        taken: Result<(), HeightError>,
        reply: Option<RpcReplyPort<Result<(), HeightError>>>,
    },
    /// Something else may have changed.
    Changed,
}

impl From<Delivery<ChainEvent>> for ChainMessage {
    fn from(delivery: Delivery<ChainEvent>) -> Self {
        Self::Deliver(delivery)
    }
}

impl From<CompletionNotice> for ChainMessage {
    fn from(notice: CompletionNotice) -> Self {
        Self::PegoutCompleted(notice)
    }
}

/// What a chain needs.
#[derive(Debug, Clone)]
pub struct ChainArguments {
    /// What it knows.
    pub store: ChainStore,
    /// Told which version is active.
    pub stream: GovernanceStream,
    /// Registry name of the bridge.
    pub bridge: String,
}

/// The chain actor.
#[derive(Debug)]
pub struct ChainActor;

/// Its state.
#[derive(Debug)]
pub struct ChainState {
    args: ChainArguments,
    presence: Presence,
    told: Federations,
    /// At most one: it keeps the bridge told what is in `told`. It ends with the actor.
    telling: JoinSet<()>,
    /// One that says when something has changed in the store, whoever changed it. As above.
    _watching: JoinSet<()>,
}

impl Actor for ChainActor {
    type Msg = ChainMessage;
    type State = ChainState;
    type Arguments = ChainArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut watching = JoinSet::new();
        watching.spawn(watch(args.store.watch(), myself));
        // What the one before has begun is carried through, and shows when it is in force.
        let mut state = ChainState {
            args,
            presence: Presence::default(),
            told: Federations::new(),
            telling: JoinSet::new(),
            _watching: watching,
        };
        state.apply()?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Whoever asked may be gone; that changes nothing here.
        match message {
            ChainMessage::Deliver(delivery) => state.deliver(myself, delivery),
            ChainMessage::HeightReached(height) => {
                let set = |draft: &mut Draft| {
                    draft.set_height(height);
                    Ok(())
                };
                state.report_height(myself, None, set);
            }
            ChainMessage::ReportHeight { report, reply } => {
                let report = |draft: &mut Draft| draft.report_height(report);
                state.report_height(myself, Some(reply), report);
            }
            ChainMessage::PegoutCompleted(notice) => state.note(notice),
            ChainMessage::GetFederation { reply } => {
                let _ = reply.send(state.args.store.active());
            }
            ChainMessage::ListProposals { reply } => {
                let _ = reply.send(state.args.store.proposals());
            }
            ChainMessage::Settled(Settled(news)) => {
                // It is in force, for everyone, before anyone is told that it is.
                state.apply()?;
                state.tell(news);
            }
        }
        Ok(())
    }
}

impl ChainState {
    /// Judges a batch, and hands it in; it is answered once it is durable.
    fn deliver(&mut self, myself: ActorRef<ChainMessage>, delivery: Delivery<ChainEvent>) {
        self.presence.look(self.session());
        let Delivery { messages, reply } = delivery;
        let since = self.presence.since();
        let receive = |draft: &mut Draft| -> Vec<Received> {
            messages
                .iter()
                .map(|message| receive(draft, message, since))
                .collect()
        };
        let answer = move |received| settled(&myself, News::Delivery { received, reply });
        self.args.store.change(receive, answer);
    }

    fn report_height(
        &mut self,
        myself: ActorRef<ChainMessage>,
        reply: Option<RpcReplyPort<Result<(), HeightError>>>,
        report: impl FnOnce(&mut Draft) -> Result<(), HeightError>,
    ) {
        let session = self.session();
        let Self { args, presence, .. } = self;
        let report = |draft: &mut Draft| {
            report(draft)?;
            // The node was there at this height, whether or not that becomes durable.
            presence.reached(draft.height(), session);
            Ok(())
        };
        let answer = move |taken: Result<Result<(), HeightError>, StoreError>| {
            let taken = taken.map_err(HeightError::Store).flatten();
            settled(&myself, News::Height { taken, reply });
        };
        args.store.change(report, answer);
    }

    fn note(&self, notice: CompletionNotice) {
        let CompletionNotice { completed, reply } = notice;
        let (id, txid) = (completed.request_id.clone(), completed.txid);
        let answer = move |noted: Result<Noted, NotNoted>| {
            match &noted {
                Ok(Noted::New) => info!(pegout = %id, %txid, "burns are paid"),
                Ok(Noted::PaidAgain { burn, before }) => {
                    error!(pegout = %id, %txid, %burn, %before, "a burn is paid that was paid before");
                }
                Ok(Noted::Known) | Err(_) => {}
            }
            let _ = reply.send(noted.map(|_| ()).map_err(|reason| reason.to_string()));
        };
        self.args.store.note(completed, answer);
    }

    /// Tells whoever has waited for it.
    fn tell(&self, news: News) {
        match news {
            News::Delivery { received, reply } => {
                let handled =
                    received.map_or_else(|error| failed(&error), |received| self.handled(received));
                // A stream that is gone will deliver again what it did not record.
                let _ = reply.send(handled);
            }
            News::Height { taken, reply } => match (taken, reply) {
                (taken, Some(reply)) => {
                    let _ = reply.send(taken);
                }
                (Err(error), None) => {
                    warn!(%error, "a height is not taken; the next one may be");
                }
                (Ok(()), None) => {}
            },
            News::Changed => {}
        }
    }

    fn handled(&self, received: Vec<Received>) -> Handled {
        let metrics = self.args.stream.metrics();
        for outcome in received.iter().filter_map(|received| received.update) {
            metrics.record_federation_update(outcome);
        }
        let answers = received.into_iter();
        Handled {
            answers: answers.map(|received| Some(received.answer)).collect(),
            failure: None,
        }
    }

    /// When the live session began, if there is one.
    fn session(&self) -> Option<SystemTime> {
        self.args.stream.status().connection.connected_since
    }

    /// Brings everyone up to what holds at the present height; fails when another chain has taken
    /// the place of this one.
    fn apply(&mut self) -> Result<(), ActorProcessingErr> {
        if self.args.store.is_replaced() {
            return Err("another chain uses the store; this one is over".into());
        }
        let federations = self.args.store.federations();
        if federations == self.told {
            return Ok(());
        }
        let version = self.args.store.active().version();
        info!(
            version,
            height = self.args.store.height(),
            "federation active"
        );
        self.args.stream.set_federation_version(version);
        self.args.stream.metrics().set_federation_version(version);
        self.told.clone_from(&federations);
        self.telling = JoinSet::new();
        let bridge = self.args.bridge.clone();
        self.telling.spawn(telling::keep_told(bridge, federations));
        Ok(())
    }
}

/// Tells the actor from wherever the store's answer comes. One that is gone has a successor, which
/// sees what is in force; whoever asked it asks again.
fn settled(chain: &ActorRef<ChainMessage>, news: News) {
    let _ = chain.cast(ChainMessage::Settled(Settled(news)));
}

/// Tells the actor that something has changed, for as long as both are there.
async fn watch(mut changed: watch::Receiver<u64>, chain: ActorRef<ChainMessage>) {
    while changed.changed().await.is_ok() {
        if chain
            .cast(ChainMessage::Settled(Settled(News::Changed)))
            .is_err()
        {
            return;
        }
    }
}

fn failed(error: &StoreError) -> Handled {
    Handled {
        answers: Vec::new(),
        failure: Some(error.to_string()),
    }
}

/// What becomes of one message, once it is durable.
struct Received {
    answer: Answer,
    /// For metrics, of an update.
    update: Option<&'static str>,
}

fn receive(draft: &mut Draft, message: &Delivered<ChainEvent>, present_since: u64) -> Received {
    let span = info_span!("chain.receive", lane = %message.lane, sequence = message.sequence);
    let _ = span.set_parent(message.trace.clone());
    let _entered = span.enter();
    match &message.event {
        ChainEvent::FederationUpdate(update) => judge(draft, update, present_since),
        ChainEvent::Proposal(proposal) => Received {
            answer: keep(draft, proposal),
            update: None,
        },
    }
}

fn judge(draft: &mut Draft, update: &FederationUpdate, present_since: u64) -> Received {
    let (version, activation_height) = (update.version, update.activation_height);
    let (verdict, outcome) = match draft.follow(update, present_since) {
        Ok(Scheduling::InTime) => {
            info!(version, activation_height, "federation update scheduled");
            (Ok(()), "scheduled")
        }
        Ok(Scheduling::Late) => {
            warn!(
                version,
                activation_height,
                "federation update scheduled though it came late; this node was away"
            );
            (Ok(()), "late")
        }
        Ok(Scheduling::Known) => (Ok(()), "known"),
        Err(fault) => {
            warn!(version, reason = %fault, "federation update refused; it is not followed");
            (Err(fault.to_string()), fault.name())
        }
    };
    Received {
        answer: Answer::FederationUpdate(FederationUpdateAck { version, verdict }),
        update: Some(outcome),
    }
}

fn keep(draft: &mut Draft, proposal: &ProposalNotification) -> Answer {
    let proposal_id = proposal.proposal_id.clone();
    match draft.keep(proposal) {
        Ok(()) => {
            info!(proposal = %proposal_id, kind = proposal.proposal_type.as_str(), "proposal kept");
            Answer::Proposal(ProposalAck { proposal_id })
        }
        Err(fault) => {
            let reason = fault.to_string();
            warn!(proposal = %proposal_id, reason, "proposal not kept");
            Answer::Reject { reason }
        }
    }
}
