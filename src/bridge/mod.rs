//! The bridge: has peg-outs signed, and hands them to the Bitcoin network.
//!
//! An implementation of the subscriber contract, and what the binary runs; a node may bring its
//! own. What it knows lies in a [`BridgeStore`], which outlives the actor: a bridge that was
//! restarted asks again for what it does not know to be accepted (the request's id makes that
//! safe), and offers again what it does not know to be broadcast.

mod broadcast;
mod pegout;
mod signatures;
mod store;
mod stored;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bitcoin::{Transaction, TxOut};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::JoinSet;
use tracing::{Instrument, Span, info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    chain::{FederationStanding, Federations},
    error::{Retry, StreamError},
    message::{RequestId, SignatureRequest, SignatureResponse},
    routing::{Answer, BridgeEvent, Delivered, Delivery, Handled},
    stream::GovernanceStream,
    telemetry::Metrics,
};

pub use broadcast::{BroadcastError, Broadcaster, FileBroadcaster, MemoryBroadcaster};
pub use pegout::{Pegout, PegoutFailure, PegoutStage};
pub use signatures::{
    BadSignature, FinaliseError, Signatures, Verifier, check_consensus, finalise,
};
pub use store::BridgeStore;
use store::Seen;

/// Pause before the stream or the Bitcoin network is asked again at once.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Pause before it is asked again when a person may have to act first.
const ASK_LATER: Duration = Duration::from_secs(5);

/// Why a peg-out is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PegoutRefusal {
    /// The federation is not one that peg-outs may begin with.
    #[error("federation version {0} is not active; build the transaction for the one that is")]
    NotActive(u32),
    /// Governance has stopped peg-outs.
    #[error("peg-outs are paused by federation version {0}")]
    Paused(u32),
    /// Spends something that is not the federation's.
    #[error("input {0} does not spend the federation's address with its script")]
    NotOurs(usize),
    /// The bridge signs whole transactions.
    #[error("{asked} of {inputs} inputs are to be signed; a peg-out spends the federation's alone")]
    Incomplete {
        /// Inputs that are to be signed.
        asked: usize,
        /// Inputs of the transaction.
        inputs: usize,
    },
    /// It could not be made durable: ask again, with the same id.
    #[error("{0}; ask again")]
    Store(String),
    /// The id is taken.
    #[error("request {0} is another peg-out already; use a new id")]
    Conflict(RequestId),
}

/// What the bridge is asked and told.
#[derive(Debug)]
pub enum BridgeMessage {
    /// From the stream.
    Deliver(Delivery<BridgeEvent>),
    /// Begin a peg-out. Answered once it is recorded; the same one again is fine.
    InitiatePegout {
        /// Its transaction.
        request: Box<SignatureRequest>,
        /// Where it is asked for: the trace goes on from there.
        span: Span,
        /// Takes the verdict.
        reply: RpcReplyPort<Result<(), PegoutRefusal>>,
    },
    /// One peg-out.
    GetPegout {
        /// Which.
        request_id: RequestId,
        /// Takes it.
        reply: RpcReplyPort<Option<Pegout>>,
    },
    /// Every peg-out.
    ListPegouts {
        /// Takes them.
        reply: RpcReplyPort<Vec<Pegout>>,
    },
    /// From the chain: which federations there are, and how they stand.
    UpdateFederations {
        /// All of them.
        federations: Federations,
        /// Answered once they are noted.
        reply: RpcReplyPort<()>,
    },
    /// The stream has accepted a request, or never will.
    Accepted {
        /// Which.
        request_id: RequestId,
        /// Why not.
        result: Result<(), String>,
    },
    /// The Bitcoin network has taken a transaction, or never will.
    Offered {
        /// Which peg-out's.
        request_id: RequestId,
        /// Why not.
        result: Result<(), String>,
    },
}

impl From<Delivery<BridgeEvent>> for BridgeMessage {
    fn from(delivery: Delivery<BridgeEvent>) -> Self {
        Self::Deliver(delivery)
    }
}

/// What a bridge needs.
#[derive(Debug, Clone)]
pub struct BridgeArguments {
    /// What it knows.
    pub store: BridgeStore,
    /// Asked for signatures.
    pub stream: GovernanceStream,
    /// Takes signed transactions.
    pub broadcaster: Arc<dyn Broadcaster>,
    /// Where it counts.
    pub metrics: Metrics,
}

/// The bridge actor.
#[derive(Debug)]
pub struct BridgeActor;

/// Its state.
#[derive(Debug)]
pub struct BridgeState {
    args: BridgeArguments,
    /// Completed, and offered once that is durable.
    signed: Vec<Pegout>,
    /// Requests and transactions on their way. They end with the actor.
    errands: JoinSet<()>,
}

impl Actor for BridgeActor {
    type Msg = BridgeMessage;
    type State = BridgeState;
    type Arguments = BridgeArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let pegouts = args.store.pegouts();
        let mut state = BridgeState {
            args,
            signed: Vec::new(),
            errands: JoinSet::new(),
        };
        for pegout in pegouts {
            match pegout.stage() {
                PegoutStage::Registered => {
                    state.ask(&myself, pegout.request().clone(), Span::none())
                }
                PegoutStage::Signed => state.offer(&myself, &pegout),
                PegoutStage::Requested | PegoutStage::Broadcast | PegoutStage::Failed(_) => {}
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        while state.errands.try_join_next().is_some() {}
        match message {
            BridgeMessage::Deliver(delivery) => state.deliver(&myself, delivery).await,
            BridgeMessage::InitiatePegout {
                request,
                span,
                reply,
            } => {
                let verdict = state.initiate(&myself, *request, span).await;
                let _ = reply.send(verdict);
            }
            BridgeMessage::GetPegout { request_id, reply } => {
                let _ = reply.send(state.args.store.pegout(&request_id));
            }
            BridgeMessage::ListPegouts { reply } => {
                let _ = reply.send(state.args.store.pegouts());
            }
            BridgeMessage::UpdateFederations { federations, reply } => {
                state
                    .args
                    .store
                    .change(|known| known.federations = federations);
                let _ = reply.send(());
            }
            BridgeMessage::Accepted { request_id, result } => {
                state.change(&request_id, |pegout| pegout.accepted(result));
                state.commit().await;
            }
            BridgeMessage::Offered { request_id, result } => {
                if result.is_ok() {
                    state.args.metrics.record_pegout_broadcast();
                }
                state.change(&request_id, |pegout| pegout.offered(result));
                state.commit().await;
            }
        }
        Ok(())
    }
}

impl BridgeState {
    fn change(&self, request_id: &RequestId, change: impl FnOnce(&mut Pegout)) {
        self.args.store.change(|known| {
            if let Some(pegout) = known.pegout_mut(request_id) {
                change(pegout);
                let stage = pegout.stage();
                match stage {
                    PegoutStage::Failed(failure) => warn!(%request_id, %failure, "peg-out failed"),
                    _ => info!(%request_id, ?stage, "peg-out"),
                }
            }
        });
    }

    /// What is not durable now is with the next commit: it can be learnt again.
    async fn commit(&self) {
        if let Err(error) = self.args.store.commit().await {
            warn!(%error, "the bridge's store failed; it is tried again");
        }
    }

    /// Handles a batch, makes it durable, and only then says so and acts on it.
    async fn deliver(&mut self, myself: &ActorRef<BridgeMessage>, delivery: Delivery<BridgeEvent>) {
        let Delivery { messages, reply } = delivery;
        let signatures = |message: &Delivered<BridgeEvent>| {
            matches!(message.event, BridgeEvent::SignatureResponse { .. })
        };
        let untold = self.args.store.lock().federations.is_empty();
        let handled = if untold && messages.iter().any(signatures) {
            Handled {
                answers: Vec::new(),
                failure: Some("the chain has not told which federations there are".to_owned()),
            }
        } else {
            let answers = messages.iter().map(|message| self.receive(message));
            let answers = answers.collect();
            match self.args.store.commit().await {
                Ok(()) => {
                    for pegout in std::mem::take(&mut self.signed) {
                        self.offer(myself, &pegout);
                    }
                    Handled {
                        answers,
                        failure: None,
                    }
                }
                Err(error) => Handled {
                    answers: Vec::new(),
                    failure: Some(error.to_string()),
                },
            }
        };
        // A stream that is gone will deliver again what it did not record.
        let _ = reply.send(handled);
    }

    async fn initiate(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        request: SignatureRequest,
        span: Span,
    ) -> Result<(), PegoutRefusal> {
        let begun = self.args.store.change(|known| {
            let request_id = request.request_id();
            if let Some(pegout) = known.pegout(request_id) {
                return if pegout.request().payload_hash() == request.payload_hash() {
                    Ok(false)
                } else {
                    Err(PegoutRefusal::Conflict(request_id.clone()))
                };
            }
            check(&request, &known.federations)?;
            known.add_pegout(Pegout::new(request.clone()));
            Ok(true)
        })?;
        let committed = self.args.store.commit().await;
        committed.map_err(|error| PegoutRefusal::Store(error.to_string()))?;
        if begun {
            self.ask(myself, request, span);
        }
        Ok(())
    }

    /// Asks the stream until it has accepted the request, or never will.
    fn ask(&mut self, myself: &ActorRef<BridgeMessage>, request: SignatureRequest, span: Span) {
        let (stream, bridge) = (self.args.stream.clone(), myself.clone());
        let request_id = request.request_id().clone();
        let asking = async move {
            let result = loop {
                match stream.request_signatures(request.clone()).await {
                    Ok(_) => break Ok(()),
                    Err(error) => match pause_after(&error) {
                        Some(pause) => {
                            warn!(%error, ?pause, "the stream did not accept a peg-out; asking again");
                            wait(pause).await;
                        }
                        None => break Err(error.to_string()),
                    },
                }
            };
            // A bridge that is gone asks again when it is back.
            let _ = bridge.cast(BridgeMessage::Accepted { request_id, result });
        };
        self.errands.spawn(asking.instrument(span));
    }

    /// Offers a signed transaction until it is taken, or never will be.
    fn offer(&mut self, myself: &ActorRef<BridgeMessage>, pegout: &Pegout) {
        let Some(transaction) = pegout.transaction().cloned() else {
            return;
        };
        let spent: Vec<TxOut> = pegout.request().spent_outputs().cloned().collect();
        let (broadcaster, bridge) = (Arc::clone(&self.args.broadcaster), myself.clone());
        let request_id = pegout.request_id().clone();
        let span = info_span!("bridge.broadcast", %request_id);
        let offering = async move {
            let result = loop {
                match offer_once(&broadcaster, transaction.clone(), spent.clone()).await {
                    Ok(()) => break Ok(()),
                    Err(BroadcastError::Refused(reason)) => break Err(reason),
                    Err(error @ BroadcastError::Unavailable(_)) => {
                        warn!(%error, "a signed peg-out is not broadcast; offering it again");
                        wait(ASK_LATER).await;
                    }
                }
            };
            let _ = bridge.cast(BridgeMessage::Offered { request_id, result });
        };
        self.errands.spawn(offering.instrument(span));
    }

    fn receive(&mut self, message: &Delivered<BridgeEvent>) -> Option<Answer> {
        let span = info_span!("bridge.receive", lane = %message.lane, sequence = message.sequence);
        let _ = span.set_parent(message.trace.clone());
        let _entered = span.enter();
        let store = self.args.store.clone();
        if let Seen::Handled(rejected) = store.change(|known| known.seen(message)) {
            info!("delivered again; it was handled before");
            return rejected.map(|reason| Answer::Reject { reason });
        }
        let rejected = match &message.event {
            BridgeEvent::SignatureResponse { response, late } => {
                if *late {
                    info!(request_id = %response.request_id, "response after the deadline");
                }
                match self.respond(response) {
                    Ok(pegout) => {
                        self.signed.extend(pegout);
                        None
                    }
                    Err(reason) => {
                        warn!(request_id = %response.request_id, reason, "response of no use");
                        Some(reason)
                    }
                }
            }
            BridgeEvent::PeginAck(ack) => {
                info!(outpoint = %ack.outpoint, status = ?ack.status, "peg-in");
                store.change(|known| known.set_pegin(ack.outpoint, ack.status.clone()));
                None
            }
        };
        store.change(|known| known.handled(message, rejected.clone()));
        rejected.map(|reason| Answer::Reject { reason })
    }

    /// The peg-out, if this response has completed it.
    fn respond(&mut self, response: &SignatureResponse) -> Result<Option<Pegout>, String> {
        let began = Instant::now();
        let (bad, signed) = self.args.store.change(|known| {
            let version = response.federation_version;
            let federation = known
                .federation(version)
                .map(|(federation, _)| federation.clone());
            let pegout = known
                .pegout_mut(&response.request_id)
                .ok_or_else(|| format!("no peg-out of this bridge is {}", response.request_id))?;
            let federation = federation.ok_or_else(|| format!("no federation {version} here"))?;
            let was_signed = pegout.transaction().is_some();
            let bad = pegout
                .respond(response, &federation)
                .map_err(|misfit| misfit.to_string())?;
            let signed = !was_signed && pegout.transaction().is_some();
            match pegout.stage() {
                PegoutStage::Failed(failure) => {
                    warn!(request_id = %response.request_id, %failure, "peg-out failed");
                }
                stage => info!(request_id = %response.request_id, ?stage, "peg-out"),
            }
            Ok::<_, String>((bad, signed.then(|| pegout.clone())))
        })?;
        self.args.metrics.record_signatures_applied(began.elapsed());
        for fault in bad {
            warn!(request_id = %response.request_id, %fault, "bad signature");
            let member = fault
                .member()
                .map_or_else(|| "none".to_owned(), ToString::to_string);
            self.args.metrics.record_bad_signature(&member);
        }
        Ok(signed)
    }
}

/// Whether a new peg-out may be begun: with the active federation, and spending its coins alone.
fn check(request: &SignatureRequest, federations: &Federations) -> Result<(), PegoutRefusal> {
    let version = request.federation_version();
    let active = federations.iter().find(|(federation, standing)| {
        federation.version() == version && *standing == FederationStanding::Active
    });
    let (federation, _) = active.ok_or(PegoutRefusal::NotActive(version))?;
    if federation.is_paused() {
        return Err(PegoutRefusal::Paused(version));
    }
    let inputs = &request.psbt().inputs;
    let asked = request.input_indices().len();
    if asked != inputs.len() {
        return Err(PegoutRefusal::Incomplete {
            asked,
            inputs: inputs.len(),
        });
    }
    let address = federation.address().script_pubkey();
    for (index, input) in inputs.iter().enumerate() {
        let spent = input
            .witness_utxo
            .as_ref()
            .map(|output| &output.script_pubkey);
        if spent != Some(&address) || input.witness_script.as_ref() != Some(federation.script()) {
            return Err(PegoutRefusal::NotOurs(index));
        }
    }
    Ok(())
}

/// How long to wait before asking again; `None` when the answer will not change.
fn pause_after(error: &StreamError) -> Option<Duration> {
    match error.retry() {
        Retry::Now => Some(ASK_AGAIN),
        Retry::After(pause) => Some(pause),
        Retry::Operator => Some(ASK_LATER),
        Retry::Never => match error {
            // The node is being stopped: the next one goes on with it.
            StreamError::ShuttingDown => Some(ASK_LATER),
            _ => None,
        },
    }
}

async fn offer_once(
    broadcaster: &Arc<dyn Broadcaster>,
    transaction: Transaction,
    spent: Vec<TxOut>,
) -> Result<(), BroadcastError> {
    let broadcaster = Arc::clone(broadcaster);
    tokio::task::spawn_blocking(move || broadcaster.broadcast(&transaction, &spent))
        .await
        .unwrap_or_else(|error| Err(BroadcastError::Unavailable(error.to_string())))
}

#[allow(
    clippy::disallowed_methods,
    reason = "paces an errand's task, not an actor"
)]
async fn wait(pause: Duration) {
    tokio::time::sleep(pause).await;
}
