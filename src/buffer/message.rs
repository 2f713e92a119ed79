//! What the buffer is asked and told, and what it starts with.

use std::time::{Duration, SystemTime};

use ractor::{ActorRef, RpcReplyPort};

use super::{
    HandledMessage, Meaning, Submission, Watermarks,
    lookups::Found,
    record::{Entry, OpenRequest},
    retained::{RequestRecord, Retained, Standing},
};
use crate::{
    config::{BufferConfig, InstanceName},
    connection::{ConnectionMessage, Generation},
    error::StreamError,
    health::StatusBoard,
    message::{
        CancelReason, Lane, LaneState, LedgerId, OpeningId, OutboxId, Outcome, PayloadHash,
        PeginNotification, PerLane, Progress, Recalled, RegistrationAck, RequestId,
    },
    pulse::Pulse,
    request::StandingReply,
    storage::{self, LookUp, Store, StoreError, StoreEvent},
    supervisor::SupervisorMessage,
    telemetry::{Metrics, TraceContext},
};

/// What the buffer is asked and told.
#[derive(Debug)]
pub(crate) enum BufferMessage {
    /// Accept a signature request.
    RequestSignatures {
        request: Submission,
        trace: TraceContext,
        deadline: SystemTime,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// Accept a peg-in notice.
    NotifyPegin {
        notification: PeginNotification,
        trace: TraceContext,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// Withdraw a request, or ask governance to cancel it.
    Cancel {
        request_id: RequestId,
        reason: CancelReason,
        trace: TraceContext,
        reply: Option<RpcReplyPort<Result<(), StreamError>>>,
    },
    /// How does this request stand?
    LookUp {
        request_id: RequestId,
        reply: StandingReply,
    },
    /// Announce this open request to the supervisor again: its tracker died.
    Announce { request_id: RequestId },
    /// Tell this request's tracker how it stands: it may have missed something.
    Restate { request_id: RequestId },
    /// This request's tracker dies again and again.
    Park {
        request_id: RequestId,
        reason: String,
    },
    /// Accept nothing more, and say when governance has acknowledged everything.
    CloseIntake { flushed: RpcReplyPort<()> },
    /// What is left?
    TakeStock { reply: RpcReplyPort<Leftover> },

    /// The connection is about to dial: make an epoch for it.
    PrepareSession {
        connection: ActorRef<ConnectionMessage>,
        dial: u64,
    },
    /// Governance accepted the registration: do the two records fit?
    JudgeSession {
        epoch: u64,
        ack: Box<RegistrationAck>,
    },
    /// Which of these requests were never made here? Answers to them are of no use.
    Correlate {
        connection: ActorRef<ConnectionMessage>,
        /// The queues that the answers wait in.
        of: Generation,
        through: u64,
        request_ids: Vec<RequestId>,
    },
    /// What has governance acknowledged so far?
    ReadWatermarks { reply: RpcReplyPort<Watermarks> },
    /// Governance holds these lanes up to here.
    Acknowledged { epoch: u64, lanes: Vec<(Lane, u64)> },
    /// Governance has said how our open requests stand in its ledger.
    Reconciled {
        epoch: u64,
        reconciled: Box<Reconciled>,
    },
    /// Subscribers have everything of the page that was recalled last.
    Recollected {
        epoch: u64,
        /// What its results mean, and what is answered to them.
        handled: Vec<HandledMessage>,
    },
    /// An operator has this store ask governance for what it lacks.
    ResumeRestored {
        /// Whether governance knows this node by another store.
        store_lost: bool,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// An operator lets the next session adopt another ledger.
    AllowAdoption { reply: RpcReplyPort<()> },
    /// An operator has dealt with a dead letter.
    DiscardDeadLetter {
        number: u64,
        reply: RpcReplyPort<bool>,
    },
    /// A dead letter was delivered after all.
    LetterHandled {
        number: u64,
        meaning: Meaning,
        reply: RpcReplyPort<()>,
    },
    /// Subscribers have handled these messages. Counts whichever session brought them.
    Handled {
        /// Ledgers adopted when they came: an earlier ledger's sequences mean nothing now.
        adoptions: u64,
        lane: Lane,
        messages: Vec<HandledMessage>,
    },
    /// The session is over: send nothing more on it.
    SessionEnded { epoch: u64 },

    /// Governance wants nothing for a while.
    PauseSession { epoch: u64, pause: Duration },
    /// The pace that governance asked for lets more go.
    TransmitMore,
    /// Show that you live, and look whether the store does.
    AreYouThere { pulse: Pulse },
    /// What the store says.
    Store(StoreEvent),
    /// What is open and retained was read, in this generation.
    Loaded {
        generation: storage::Generation,
        retained: Result<Box<Retained>, StoreError>,
    },
    /// Time to read again what could not be read.
    LoadAgain,
    /// A look-up was answered, in this generation.
    Found {
        generation: storage::Generation,
        look_up: LookUp,
        found: Box<Found>,
    },
    /// Governance has seen a higher epoch of this store than it knows of.
    WentBack,
    /// Governance serves a copy of this store, in this epoch.
    Fenced { epoch: u64 },
    /// Time to look up again what could not be looked up.
    LookAgain,
    /// What was decided last changed nothing on disk.
    Unchanged { generation: storage::Generation },
}

/// How a request stands, as its caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestStanding {
    /// Governance has not answered finally.
    Open(Progress),
    /// It has its outcome.
    Settled(Outcome),
}

/// An open request, as its tracker needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct OpenedRequest {
    /// Its id.
    pub request_id: RequestId,
    /// When it was accepted.
    pub accepted_at: SystemTime,
    /// When governance is asked to cancel it.
    pub deadline: SystemTime,
    /// How far it has come.
    pub progress: Progress,
}

impl From<&RequestRecord> for OpenedRequest {
    fn from(record: &RequestRecord) -> Self {
        let progress = match &record.standing {
            Standing::Open { progress, .. } => *progress,
            Standing::Settled { .. } => Progress::default(),
        };
        Self {
            progress,
            ..Self::from(&record.request)
        }
    }
}

impl From<&OpenRequest> for OpenedRequest {
    fn from(request: &OpenRequest) -> Self {
        Self {
            request_id: request.request_id.clone(),
            accepted_at: request.accepted_at,
            deadline: request.deadline,
            progress: Progress::default(),
        }
    }
}

/// An open request, as governance is told of it after its ledger was adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its id.
    pub request_id: RequestId,
    /// Its payload's.
    pub payload_hash: PayloadHash,
    /// Whether it is to be cancelled: it is not made again.
    pub cancelled: bool,
}

/// How the listed requests stand in governance's ledger.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reconciled {
    /// Those that it holds, open or settled. With the end of the exchange.
    pub held: Vec<RequestId>,
    /// Those that it holds open and that were not listed. With the end of the exchange; none of a
    /// restored store, to which they are recalled.
    pub unlisted: Vec<RequestId>,
    /// For a restored store: the next part of what governance remembers of this node. It is
    /// answered with [`ConnectionMessage::Recalled`] once it is committed.
    pub recalled: Vec<Recalled>,
    /// Whether more of that follows: the exchange, and what it holds up, is not over yet.
    pub more: bool,
}

/// What a shutdown leaves behind in the store; a later start takes it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Messages that governance has not acknowledged, by lane.
    pub unacknowledged: PerLane<u64>,
    /// Requests without an outcome.
    pub open_requests: usize,
}

impl Leftover {
    /// Whether everything that was accepted has come to its end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open_requests == 0 && self.unacknowledged.iter().all(|(_, count)| *count == 0)
    }
}

/// A message for the wire.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    /// As it was accepted.
    pub entry: Entry,
    /// Whether it may have been transmitted before.
    pub redelivered: bool,
}

/// What a registration says of us.
#[derive(Debug)]
pub(crate) struct SessionFacts {
    /// The dial they were asked for.
    pub dial: u64,
    /// Names the session.
    pub epoch: u64,
    /// Names what this process does with the store.
    pub opening: OpeningId,
    /// The opening that registered last before this one.
    pub opened_before: Option<OpeningId>,
    /// Names our record of messages.
    pub outbox_id: OutboxId,
    /// Whether it is a restored store that has not reconciled yet.
    pub restored: bool,
    /// Governance's ledger, if known.
    pub ledger_id: Option<LedgerId>,
    /// Each lane's record; the windows are the connection's to fill in.
    pub lanes: PerLane<LaneState>,
    /// Ledgers adopted so far.
    pub adoptions: u64,
    /// Times that the store was read: what was handled and not committed before is forgotten.
    pub loads: u64,
    /// Open requests whose deadline has passed: their responses are marked late.
    pub late: Vec<RequestId>,
}

/// What the buffer needs to start.
#[derive(Debug, Clone)]
pub(crate) struct BufferArguments {
    pub instance: InstanceName,
    pub config: BufferConfig,
    /// Messages of governance that may be in flight in each lane: as many answers to them may
    /// wait before it is granted more.
    pub inbound_window: u32,
    pub store: Store,
    pub supervisor: ActorRef<SupervisorMessage>,
    pub board: StatusBoard,
    pub metrics: Metrics,
}
