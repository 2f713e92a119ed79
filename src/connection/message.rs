//! What the connection is asked and told.

use std::collections::HashSet;

use ractor::RpcReplyPort;

use super::{
    SessionFault,
    credentials::{CredentialChange, Validity},
    session::InboundFrame,
};
use crate::{
    buffer::{Listed, Outgoing, ResumeFault, SessionFacts, record::DeadLetter},
    config::Endpoint,
    error::StreamError,
    message::{Lane, NodeStatus, Recalled, RequestId},
    pulse::Pulse,
    routing::Report,
};

/// What the connection is asked and told.
#[derive(Debug)]
pub(crate) enum ConnectionMessage {
    /// Leave the present endpoint for this one, and stay with it; or go by preference again.
    Connect { target: Option<Endpoint> },
    /// An operator has seen to what held the connection: try again.
    Resume,
    /// Is it quarantined because governance knows this node by another store?
    IsStoreLost { reply: RpcReplyPort<bool> },
    /// Deliver a dead letter again, and say what came of it.
    Redeliver {
        number: u64,
        letter: Box<DeadLetter>,
        reply: RpcReplyPort<Result<(), String>>,
    },
    /// Tell governance how the node is.
    ReportStatus {
        status: NodeStatus,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// Say goodbye and stop connecting.
    Shutdown { stopped: RpcReplyPort<()> },
    /// Panic, as a bug would: shows that the tree heals.
    #[cfg(feature = "simulator")]
    Panic,

    /// The buffer has made an epoch for a dial.
    SessionPrepared(Box<SessionFacts>),
    /// No session may begin: an operator has something to see to first.
    SessionHeld { dial: u64, fault: ResumeFault },
    /// The two records fit: messages may flow.
    SessionJudged { epoch: u64 },
    /// The two records do not fit.
    SessionRefused { epoch: u64, fault: ResumeFault },
    /// Governance's ledger was adopted, or our store restored: ask it how these open requests stand
    /// there, and then, for a restored store, what else it remembers of this node.
    Reconcile { epoch: u64, listed: Vec<Listed> },
    /// A page of what was recalled is committed: hand it on to the subscribers.
    HandOn { epoch: u64, recalled: Vec<Recalled> },
    /// What was recalled so far is committed, and so is what it means.
    Recalled { epoch: u64 },
    /// The store has failed: the session rests on what may not be there.
    StoreFailed { epoch: u64 },
    /// Governance acknowledged what was never sent.
    AcknowledgedTooMuch {
        epoch: u64,
        lane: Lane,
        through: u64,
    },
    /// Send these.
    Transmit { epoch: u64, messages: Vec<Outgoing> },
    /// Everything of the lane up to here is recorded as handled.
    Recorded { lane: Lane, through: u64 },
    /// Answers up to this sequence were looked up; these are to requests that nobody made.
    Correlated {
        /// The queues that they wait in.
        of: Generation,
        through: u64,
        unknown: HashSet<RequestId>,
    },
    /// The request's deadline has passed: its response will be late.
    MarkLate(RequestId),

    /// The session's transport is open.
    SessionOpened { dial: u64, validity: Validity },
    /// Governance sent a frame.
    FrameReceived { dial: u64, frame: Box<InboundFrame> },
    /// The session's endpoint takes no more calls, or says that it does not serve.
    SessionCloses { dial: u64 },
    /// The session's task has ended.
    SessionEnded { dial: u64, fault: SessionFault },
    /// A probe has ended.
    Probed {
        endpoint: Endpoint,
        result: Result<(), SessionFault>,
    },
    /// Token or certificates have changed, or cannot be read.
    CredentialsSeen(CredentialChange),
    /// A subscriber has answered, or gone away.
    DeliveryEnded {
        /// The queues that it is from.
        of: Generation,
        report: Report,
    },
    /// A deadline may have passed.
    TimerFired,
    /// Show that you live.
    AreYouThere { pulse: Pulse },
}

/// What queues of governance's messages rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Ledgers adopted before it: its sequences are of the last one.
    pub adoptions: u64,
    /// Loads of the store before it: what it holds for handled was handled since the last one.
    pub loads: u64,
}
