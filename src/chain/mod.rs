//! The chain: keeps every version of the federation and every proposal, applies versions at their
//! height, and tells the bridge.
//!
//! An implementation of the subscriber contract, and what the binary runs; a node may bring its
//! own. What it accepted lies in a [`ChainStore`], which outlives the actor.

mod federation;
mod schedule;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, rpc::CallResult};
use tokio::task::JoinSet;
use tracing::{info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    bridge::BridgeMessage,
    message::{
        FederationUpdate, FederationUpdateAck, ProposalAck, ProposalId, ProposalNotification,
    },
    routing::{Answer, ChainEvent, Delivered, Delivery},
    stream::GovernanceStream,
    timer::Timer,
};

pub use federation::{Federation, FederationFault, FederationPolicy};
pub use schedule::{FederationStanding, Schedule};

/// How long the bridge may take to note the federations.
const BRIDGE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before an absent bridge is told again.
const TELL_AGAIN: Duration = Duration::from_millis(100);

/// Every version with its standing, as the bridge needs it.
pub type Federations = Vec<(Federation, FederationStanding)>;

/// What a chain knows. Clones are the same store: it outlives the actor, not the process.
#[derive(Debug, Clone)]
pub struct ChainStore(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    schedule: Schedule,
    proposals: BTreeMap<ProposalId, ProposalNotification>,
}

impl ChainStore {
    /// A store that knows the configured first federation.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self(Arc::new(Mutex::new(Known {
            schedule,
            proposals: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every change is one call on a pure value: a panic leaves none of it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every version with its standing.
    #[must_use]
    pub fn federations(&self) -> Federations {
        let known = self.lock();
        known
            .schedule
            .versions()
            .map(|(version, standing)| (version.clone(), standing))
            .collect()
    }
}

/// What the chain is asked and told.
#[derive(Debug)]
pub enum ChainMessage {
    /// From the stream.
    Deliver(Delivery<ChainEvent>),
    /// The sidechain's best height, from the node at each block and after a reorganisation.
    HeightReached(u64),
    /// The version that signs now.
    GetFederation {
        /// Takes it.
        reply: RpcReplyPort<Federation>,
    },
    /// Every proposal that came.
    ListProposals {
        /// Takes them.
        reply: RpcReplyPort<Vec<ProposalNotification>>,
    },
    /// The bridge has noted the federations, or not.
    BridgeTold {
        /// Which telling.
        revision: u64,
        /// Whether it noted them.
        noted: bool,
    },
    /// Time to tell the bridge again.
    TellBridge,
}

impl From<Delivery<ChainEvent>> for ChainMessage {
    fn from(delivery: Delivery<ChainEvent>) -> Self {
        Self::Deliver(delivery)
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
    /// Counts changes of any version's standing.
    revision: u64,
    told: Federations,
    /// At most one: the latest telling. It ends with the actor.
    telling: JoinSet<()>,
    tell_again: Timer,
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
        let mut state = ChainState {
            args,
            revision: 0,
            told: Vec::new(),
            telling: JoinSet::new(),
            tell_again: Timer::default(),
        };
        state.apply(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ChainMessage::Deliver(delivery) => {
                let store = state.args.store.clone();
                delivery.handle_each(|message| Ok(Some(receive(&store, message))));
                state.apply(&myself);
            }
            ChainMessage::HeightReached(height) => {
                state.args.store.lock().schedule.set_height(height);
                state.apply(&myself);
            }
            ChainMessage::GetFederation { reply } => {
                let active = state.args.store.lock().schedule.active().clone();
                let _ = reply.send(active);
            }
            ChainMessage::ListProposals { reply } => {
                let _ = reply.send(
                    state
                        .args
                        .store
                        .lock()
                        .proposals
                        .values()
                        .cloned()
                        .collect(),
                );
            }
            ChainMessage::BridgeTold { revision, noted } => {
                if !noted && revision == state.revision {
                    state
                        .tell_again
                        .arm(TELL_AGAIN, &myself, || ChainMessage::TellBridge);
                }
            }
            ChainMessage::TellBridge => state.tell_bridge(&myself),
        }
        Ok(())
    }
}

fn receive(store: &ChainStore, message: &Delivered<ChainEvent>) -> Answer {
    let span = info_span!("chain.receive", lane = %message.lane, sequence = message.sequence);
    let _ = span.set_parent(message.trace.clone());
    let _entered = span.enter();
    match &message.event {
        ChainEvent::FederationUpdate(update) => Answer::FederationUpdate(judge(store, update)),
        ChainEvent::Proposal(proposal) => {
            info!(proposal = %proposal.proposal_id, kind = proposal.proposal_type.as_str(), "proposal kept");
            store
                .lock()
                .proposals
                .insert(proposal.proposal_id.clone(), proposal.clone());
            Answer::Proposal(ProposalAck {
                proposal_id: proposal.proposal_id.clone(),
            })
        }
    }
}

fn judge(store: &ChainStore, update: &FederationUpdate) -> FederationUpdateAck {
    let verdict = store
        .lock()
        .schedule
        .add(update)
        .map_err(|fault| fault.to_string());
    let (version, activation_height) = (update.version, update.activation_height);
    match &verdict {
        Ok(()) => info!(
            version,
            activation_height, "federation update verified and scheduled"
        ),
        Err(reason) => warn!(
            version,
            reason, "federation update refused; it is not followed"
        ),
    }
    FederationUpdateAck { version, verdict }
}

impl ChainState {
    /// Brings everyone up to what holds at the present height.
    fn apply(&mut self, myself: &ActorRef<ChainMessage>) {
        let federations = self.args.store.federations();
        if federations == self.told {
            return;
        }
        let active = |(federation, standing): &(Federation, _)| {
            (*standing == FederationStanding::Active).then(|| federation.version())
        };
        if let Some(version) = federations.iter().find_map(active) {
            info!(version, "federation active");
            self.args.stream.set_federation_version(version);
        }
        self.told = federations;
        self.revision += 1;
        self.tell_bridge(myself);
    }

    fn tell_bridge(&mut self, myself: &ActorRef<ChainMessage>) {
        let (revision, federations) = (self.revision, self.told.clone());
        let bridge = ActorRef::<BridgeMessage>::where_is(self.args.bridge.clone());
        let chain = myself.clone();
        self.telling = JoinSet::new();
        self.telling.spawn(async move {
            let tell = |reply| BridgeMessage::UpdateFederations { federations, reply };
            let noted = match bridge {
                Some(bridge) => {
                    let answer = bridge.call(tell, Some(BRIDGE_DEADLINE)).await;
                    matches!(answer, Ok(CallResult::Success(())))
                }
                None => false,
            };
            // A chain that is gone tells everything again when it is back.
            let _ = chain.cast(ChainMessage::BridgeTold { revision, noted });
        });
    }
}
