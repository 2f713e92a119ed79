//! The facts that a buffer's decisions consist of.

use std::time::SystemTime;

use bitcoin::OutPoint;
use prost::bytes::Bytes;
use uuid::Uuid;

use super::retained::RequestRecord;
use crate::{
    message::{
        BurnId, CancelReason, Lane, LedgerId, MessageId, OccurrenceId, OpeningId, OutboxId,
        Outcome, PayloadHash, RequestId, TransactionType,
    },
    proto,
    telemetry::TraceContext,
};

/// One fact. Facts that belong together are committed together.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A session is about to be dialled.
    Epoch {
        /// Names it.
        epoch: u64,
        /// Who dials.
        opening: OpeningId,
    },
    /// Governance's ledger, as of the first registration.
    Ledger(LedgerId),
    /// Governance has another ledger, and an operator wants to go on with it: both directions of
    /// each lane begin again, and nothing is sent before the open requests are reconciled.
    Adopted(LedgerId),
    /// Governance has said which open requests its ledger holds: those are not sent again. A store
    /// that was restored lacks nothing from now on.
    Reconciled {
        /// Requests that it holds, open or settled.
        held: Vec<RequestId>,
    },
    /// Governance has seen more of this store than is in it: what is open may have been sent, and
    /// nothing is sent any more.
    WentBack,
    /// The store was restored from a backup: what came after that is missing, and every open
    /// request may have been sent. Both directions of each lane begin again under another outbox,
    /// and nothing is sent before the operator says so.
    Restored {
        /// Which restore it was.
        restore_id: Uuid,
        /// Names the store for governance from now on.
        outbox_id: OutboxId,
    },
    /// Governance knows this node by another store, and the operator has this one, which is new,
    /// treated as a restored one.
    StoreLost,
    /// The operator lets a restored store ask governance for what it lacks.
    RestoreAllowed,
    /// Governance has recalled a request of this node that this store did not know.
    Recalled {
        /// As it was sent.
        request: OpenRequest,
        /// Its message, should it have to be made again.
        aside: Option<Entry>,
        /// Its outcome, where no answer that follows will tell it.
        outcome: Option<Outcome>,
    },
    /// Governance has recalled a request that this store had settled as unsent: it was sent, by this
    /// store as it was before it went back.
    Reopened {
        /// As it was settled.
        record: Box<RequestRecord>,
        /// Its message, should it have to be made again.
        aside: Entry,
    },
    /// Governance has recalled a notice that this store did not know, with its answer.
    PeginRecalled {
        /// The deposit.
        outpoint: OutPoint,
        /// When.
        at: SystemTime,
    },
    /// A message was accepted for governance; its sequence is the lane's next.
    Appended(Entry),
    /// Everything of the lane up to here may have been transmitted.
    SentThrough {
        /// The lane.
        lane: Lane,
        /// Inclusive.
        sequence: u64,
    },
    /// A message that was never sent is replaced by a marker in its place.
    Withdrawn {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
    },
    /// Governance holds everything of the lane up to here.
    Acknowledged {
        /// The lane.
        lane: Lane,
        /// Inclusive.
        through: u64,
    },
    /// A signature request was accepted; its message is appended in the same commit.
    Opened(OpenRequest),
    /// Signers have answered.
    Progressed {
        /// The request.
        request_id: RequestId,
        /// How many have.
        collected: u32,
        /// How many are needed.
        required: u32,
    },
    /// Governance was asked to cancel; the message is appended in the same commit.
    CancelAsked {
        /// The request.
        request_id: RequestId,
        /// Why.
        reason: CancelReason,
        /// That message.
        sequence: u64,
    },
    /// Its caller gives up on a request, or its deadline has passed, before governance has confirmed
    /// that this store is not an older copy: whether it was ever sent is not known until then.
    GivenUp {
        /// The request.
        request_id: RequestId,
        /// Why.
        reason: CancelReason,
    },
    /// The request waits for an operator.
    Parked {
        /// The request.
        request_id: RequestId,
        /// Why.
        reason: String,
    },
    /// The request has its outcome.
    Settled {
        /// The request.
        request_id: RequestId,
        /// It never changes.
        outcome: Outcome,
        /// When it came.
        at: SystemTime,
    },
    /// An acknowledged message is no longer kept for a ledger that might be restored.
    Pruned {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
    },
    /// Governance has answered the peg-in notice.
    PeginSettled {
        /// The deposit.
        outpoint: OutPoint,
        /// When the answer came.
        at: SystemTime,
    },
    /// The subscriber has handled everything of the lane up to here.
    Handled {
        /// The lane.
        lane: Lane,
        /// Inclusive.
        through: u64,
        /// Id of that message.
        message_id: MessageId,
    },
    /// A message of governance that could not be used.
    DeadLetter(DeadLetter),
    /// An operator has dealt with a dead letter.
    DeadLetterDiscarded(u64),
}

/// A message on its way to governance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The lane.
    pub lane: Lane,
    /// Its place in the lane.
    pub sequence: u64,
    /// Its id.
    pub message_id: MessageId,
    /// What the payload is.
    pub kind: proto::Kind,
    /// The encoded message.
    pub payload: Bytes,
    /// The caller's trace.
    pub trace: TraceContext,
    /// When it was accepted.
    pub accepted_at: SystemTime,
    /// When its sender loses interest.
    pub deadline: Option<SystemTime>,
    /// What keeps it beyond its acknowledgement.
    pub expects: Expects,
}

/// Which answer of governance releases a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expects {
    /// Its acknowledgement is enough.
    Nothing,
    /// The answer that it expected has come.
    Answered,
    /// The request's outcome.
    Outcome(RequestId),
    /// The peg-in's acknowledgement.
    PeginAck(OutPoint),
}

/// A signature request that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// The caller's idempotency key.
    pub request_id: RequestId,
    /// What makes two requests the same.
    pub payload_hash: PayloadHash,
    /// What its transaction is for.
    pub tx_type: TransactionType,
    /// Its message in [`Lane::Signing`]; 0 once a marker has taken its place for good.
    pub sequence: u64,
    /// The burns it pays.
    pub burns: Vec<BurnId>,
    /// What its transaction spends: another request for one of its burns must share an input.
    pub spends: Vec<OutPoint>,
    /// When it was accepted.
    pub accepted_at: SystemTime,
    /// When governance is asked to cancel it.
    pub deadline: SystemTime,
}

/// A message of governance that could not be used, kept for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The lane it came in.
    pub lane: Lane,
    /// Its sequence.
    pub sequence: u64,
    /// Its id.
    pub message_id: MessageId,
    /// Names what it tells, if it said so.
    pub occurrence_id: Option<OccurrenceId>,
    /// What it claimed to be, as on the wire.
    pub kind: i32,
    /// Its raw bytes.
    pub payload: Bytes,
    /// Why it could not be used.
    pub reason: String,
    /// When.
    pub at: SystemTime,
}
