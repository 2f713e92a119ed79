//! The chain: keeps every version of the federation and every proposal, applies versions at their
//! height, and tells the bridge.
//!
//! An implementation of the subscriber contract, and what the binary runs; a node may bring its
//! own. What it accepted lies in a [`ChainStore`], which outlives the actor.

mod federation;
mod schedule;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message as _;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, rpc::CallResult};
use tokio::task::JoinSet;
use tracing::{info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    bridge::BridgeMessage,
    durable::{DurableMap, RowChanges, StoreError},
    message::{
        FederationUpdate, FederationUpdateAck, ProposalAck, ProposalId, ProposalNotification,
    },
    proto,
    routing::{Answer, ChainEvent, Delivered, Delivery, Handled},
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

/// What a chain knows. Clones are the same store: it outlives the actor, and the process when it
/// is given a file.
#[derive(Debug, Clone)]
pub struct ChainStore {
    known: Arc<Mutex<Known>>,
    file: Option<DurableMap>,
}

#[derive(Debug)]
struct Known {
    schedule: Schedule,
    proposals: BTreeMap<ProposalId, ProposalNotification>,
    /// Rows that are not in the file yet.
    dirty: RowChanges,
}

/// An update with the height at which it was accepted: what its notice was measured by.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredUpdate {
    #[prost(uint64, tag = "1")]
    height: u64,
    #[prost(message, optional, tag = "2")]
    update: Option<proto::FederationUpdate>,
}

const HEIGHT: &str = "height";

impl Known {
    fn read(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        fn text(error: impl ToString) -> String {
            error.to_string()
        }
        match name.split_once('/') {
            Some(("update", _)) => {
                let stored = StoredUpdate::decode(value).map_err(text)?;
                let update = stored.update.ok_or("an update of nothing")?;
                let update = FederationUpdate::try_from(update).map_err(text)?;
                self.schedule.set_height(stored.height);
                self.schedule.add(&update).map_err(text)
            }
            Some(("proposal", _)) => {
                let stored = proto::ProposalNotification::decode(value).map_err(text)?;
                let proposal = ProposalNotification::try_from(stored).map_err(text)?;
                self.proposals
                    .insert(proposal.proposal_id.clone(), proposal);
                Ok(())
            }
            _ => Err("an unknown row".to_owned()),
        }
    }

    fn set_height(&mut self, height: u64) {
        self.schedule.set_height(height);
        let row = height.to_be_bytes().to_vec();
        self.dirty.insert(HEIGHT.to_owned(), Some(row));
    }

    fn add(&mut self, update: &FederationUpdate) -> Result<(), FederationFault> {
        let known = self.schedule.versions().count();
        self.schedule.add(update)?;
        if self.schedule.versions().count() > known {
            let stored = StoredUpdate {
                height: self.schedule.height(),
                update: Some(update.into()),
            };
            let name = format!("update/{:010}", update.version);
            self.dirty.insert(name, Some(stored.encode_to_vec()));
        }
        Ok(())
    }

    fn keep(&mut self, proposal: &ProposalNotification) {
        let row = proto::ProposalNotification::from(proposal).encode_to_vec();
        let name = format!("proposal/{}", proposal.proposal_id);
        self.dirty.insert(name, Some(row));
        self.proposals
            .insert(proposal.proposal_id.clone(), proposal.clone());
    }
}

impl ChainStore {
    /// A store that knows the configured first federation, and lives as long as the process.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self {
            known: Arc::new(Mutex::new(Known {
                schedule,
                proposals: BTreeMap::new(),
                dirty: RowChanges::new(),
            })),
            file: None,
        }
    }

    /// A store in a file, which is made if it is not there. `schedule` holds the configured first
    /// federation: every later one is verified against it again.
    ///
    /// # Errors
    ///
    /// When the file cannot be used, or holds updates that do not follow the configured first
    /// federation.
    pub fn open(path: impl AsRef<Path>, schedule: Schedule) -> Result<Self, StoreError> {
        let file = DurableMap::open(path.as_ref())?;
        let store = Self {
            file: Some(file.clone()),
            ..Self::new(schedule)
        };
        let mut height = 0;
        let mut known = store.lock();
        for (name, value) in file.load()? {
            if name == HEIGHT {
                let bytes = <[u8; 8]>::try_from(value.as_slice());
                height = bytes.map(u64::from_be_bytes).unwrap_or_default();
                continue;
            }
            known
                .read(&name, &value)
                .map_err(|reason| file.damaged(&name, reason))?;
        }
        known.set_height(height);
        known.dirty.clear();
        drop(known);
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every change is one call on a pure value: a panic leaves none of it half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Makes every change so far durable. After an error the changes wait for the next call.
    async fn commit(&self) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut self.lock().dirty);
        let Some(file) = self.file.clone().filter(|_| !changes.is_empty()) else {
            return Ok(());
        };
        let (path, rows) = (file.clone(), changes.clone());
        let written = tokio::task::spawn_blocking(move || file.commit(&rows)).await;
        let written = written.unwrap_or_else(|error| Err(path.damaged("", error)));
        if written.is_err() {
            let mut known = self.lock();
            for (name, row) in changes {
                known.dirty.entry(name).or_insert(row);
            }
        }
        written
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
                let Delivery { messages, reply } = delivery;
                let answers = messages
                    .iter()
                    .map(|message| Some(receive(&store, message)));
                let answers = answers.collect();
                let handled = match store.commit().await {
                    Ok(()) => {
                        state.apply(&myself);
                        Handled {
                            answers,
                            failure: None,
                        }
                    }
                    Err(error) => Handled {
                        answers: Vec::new(),
                        failure: Some(error.to_string()),
                    },
                };
                // A stream that is gone will deliver again what it did not record.
                let _ = reply.send(handled);
            }
            ChainMessage::HeightReached(height) => {
                state.args.store.lock().set_height(height);
                if let Err(error) = state.args.store.commit().await {
                    warn!(%error, height, "the height is not durable; it comes again with the next block");
                }
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
            store.lock().keep(proposal);
            Answer::Proposal(ProposalAck {
                proposal_id: proposal.proposal_id.clone(),
            })
        }
    }
}

fn judge(store: &ChainStore, update: &FederationUpdate) -> FederationUpdateAck {
    let verdict = store.lock().add(update).map_err(|fault| fault.to_string());
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
