//! What a bridge is asked and told, and what it is started with.

use std::sync::Arc;

use bitcoin::{Amount, OutPoint};
use ractor::RpcReplyPort;
use tracing::Span;

use super::{
    backend::BitcoinBackend,
    completion::CompletionSubscriber,
    life::LifeEvent,
    pegout::{Pegout, SignatureStanding},
    psbt_fault::PsbtFault,
    store::{BridgeStore, PegoutPage},
    tables::{Found, Loaded},
};
use crate::{
    chain::Federations,
    config::BridgeConfig,
    message::{RequestId, SignatureRequest},
    routing::{BridgeEvent, Delivery},
    storage::{Generation, LookUp, StoreError, StoreEvent},
    stream::GovernanceStream,
    telemetry::Metrics,
};

/// The bridge cannot say now: its store failed, is being read, or too much waits for it. What was
/// asked for may have been done: ask again, with the same id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; ask again")]
pub struct AskAgain {
    /// What is in the way.
    pub reason: String,
}

impl AskAgain {
    pub(super) fn new(reason: impl ToString) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

/// Why a peg-out is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PegoutRefusal {
    /// The federation is not one that peg-outs may begin with.
    #[error("federation version {0} is not active; build the transaction for the one that is")]
    NotActive(u32),
    /// Nobody should sign this.
    #[error("psbt: {0}")]
    Psbt(#[from] PsbtFault),
    /// Another request told otherwise of a coin. A signature covers what its own input holds, and
    /// no other one's (BIP-143): of two requests that tell differently of a transaction's coins, the
    /// signatures that are true would make up one whose fee nobody agreed to.
    #[error(
        "request {by} says that {outpoint} holds {told}, this one {found}; add the transaction that \
         made it to the PSBT (non_witness_utxo), which shows who is right"
    )]
    CoinTold {
        /// The coin.
        outpoint: OutPoint,
        /// What it holds, says this one.
        found: Amount,
        /// What it holds, said the other one.
        told: Amount,
        /// The other one.
        by: RequestId,
    },
    /// It is not known to be durable: ask again, with the same id.
    #[error(transparent)]
    AskAgain(#[from] AskAgain),
    /// The store was restored, or went back, and what it lacks is not recalled yet: another peg-out
    /// may pay these burns, or have this id.
    #[error(
        "the store may lack peg-outs that were signed; nothing new is begun until governance has recalled \
         them (`status` says how far that is)"
    )]
    Restoring,
    /// The id is taken.
    #[error("request {0} is another peg-out already; use a new id")]
    Conflict(RequestId),
}

/// What the bridge makes of a peg-out that is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It is not asked for any more. [`PegoutStage::Cancelled`](super::PegoutStage::Cancelled)
    /// follows, if it has not yet; or, should the stream have had it, what comes of its cancel there.
    Ends,
    /// The stream has it, or it has come to an end: [`GovernanceStream::cancel`] is what is left.
    AtStream,
    /// No peg-out of this bridge has this id.
    Unknown,
}

/// What the bridge is asked and told.
#[derive(Debug)]
pub enum BridgeMessage {
    /// From the stream: signatures to be applied, and answers to peg-in notices.
    Deliver(Delivery<BridgeEvent>),
    /// Begin a peg-out. Answered once it is recorded; the same one again is fine. While peg-outs
    /// are paused it waits.
    InitiatePegout {
        /// Its transaction.
        request: Box<SignatureRequest>,
        /// Where it is asked for: the trace goes on from there.
        span: Span,
        /// Takes the verdict.
        reply: RpcReplyPort<Result<(), PegoutRefusal>>,
    },
    /// End a peg-out that the stream is not known to have, paused or not. Answered once it is
    /// durable that nobody is asked to sign it from now on; the error says why that is not so.
    CancelPegout {
        /// Which.
        request_id: RequestId,
        /// Takes the answer.
        reply: RpcReplyPort<Result<CancelAnswer, AskAgain>>,
    },
    /// Show one peg-out, as it is durable.
    GetPegoutStatus {
        /// Which.
        request_id: RequestId,
        /// Takes it; nothing when no peg-out of this bridge has this id.
        reply: RpcReplyPort<Result<Option<Arc<Pegout>>, AskAgain>>,
    },
    /// Say whose signatures for a peg-out are here.
    GetSignatureStatus {
        /// Which.
        request_id: RequestId,
        /// Takes it; nothing when the peg-out or its federation is not known.
        reply: RpcReplyPort<Result<Option<SignatureStanding>, AskAgain>>,
    },
    /// List peg-outs, the newest first.
    ListPegouts {
        /// Only those below this: [`PegoutPage::next`] of the page before.
        before: Option<u64>,
        /// At most so many, and at most [`PegoutPage::MOST`].
        limit: usize,
        /// Takes them.
        reply: RpcReplyPort<Result<PegoutPage, AskAgain>>,
    },
    /// Stop peg-outs, or go on with them, at the operator's word. It survives a restart. To go on
    /// also lifts the pause that a restore of the store has set.
    SetPaused {
        /// Whether they are stopped.
        paused: bool,
        /// Answered once it is durable, or why it is not.
        reply: RpcReplyPort<Result<(), AskAgain>>,
    },
    /// From the chain: which federations there are, and how they stand.
    UpdateFederations {
        /// All of them.
        federations: Federations,
        /// Answered once they are noted.
        reply: RpcReplyPort<()>,
    },
    /// What an errand of the bridge's own has come to.
    Done(Errand),
}

/// What an errand has come to, or time for one.
#[derive(Debug)]
pub struct Errand(pub(super) Done);

#[derive(Debug)]
pub(super) enum Done {
    /// The stream has accepted a request, or never will.
    Asked {
        request_id: RequestId,
        result: Result<(), String>,
    },
    /// Whether the stream had a request that is cancelled.
    Cancelled {
        request_id: RequestId,
        event: LifeEvent,
    },
    /// The Bitcoin network has a transaction, or never will.
    Offered {
        request_id: RequestId,
        result: Result<(), String>,
    },
    /// An errand goes on, but something is in its way.
    Troubled {
        request_id: RequestId,
        trouble: String,
    },
    /// The chain has noted a completed peg-out.
    Reported { request_id: RequestId },
    /// What was seen of all open peg-outs.
    Looked(Vec<(RequestId, LifeEvent)>),
    /// Time to look.
    Look,
    /// What the store tells its user.
    Store(StoreEvent),
    /// What a start needs is read, or cannot be.
    Loaded {
        generation: Generation,
        result: Result<Box<Loaded>, StoreError>,
    },
    /// Time to read it again.
    LoadAgain,
    /// What inputs wait for is looked up.
    LookedUp {
        generation: Generation,
        look_up: LookUp,
        result: Result<Found, StoreError>,
    },
}

impl From<Done> for BridgeMessage {
    fn from(done: Done) -> Self {
        Self::Done(Errand(done))
    }
}

impl From<Delivery<BridgeEvent>> for BridgeMessage {
    fn from(delivery: Delivery<BridgeEvent>) -> Self {
        Self::Deliver(delivery)
    }
}

/// What a bridge needs.
#[derive(Debug, Clone)]
pub struct BridgeArguments {
    /// Where it keeps its rows, and shows what is durable of them.
    pub store: BridgeStore,
    /// Asked for signatures.
    pub stream: GovernanceStream,
    /// Takes signed transactions, and says where they are.
    pub backend: Arc<dyn BitcoinBackend>,
    /// Told of completed peg-outs.
    pub completions: Option<CompletionSubscriber>,
    /// How deep a peg-out must be, and how often it is looked for.
    pub config: BridgeConfig,
    /// Where it counts.
    pub metrics: Metrics,
}
