//! What can go wrong at the crate's boundary, and who must act.

use std::time::Duration;

use crate::{
    config::ConfigError,
    message::{BurnId, InvalidMessage, Lane, RequestId},
    storage::StoreError,
};

/// What a caller may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Ask again at once; with the same request id it is safe.
    Now,
    /// Ask again after this long.
    After(Duration),
    /// Asking again helps only once a person has acted.
    Operator,
    /// Asking again gives the same answer.
    Never,
}

/// What a call on [`GovernanceStream`](crate) can end in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The message could not be valid; nothing was accepted.
    #[error("invalid message: {0}")]
    Invalid(#[from] InvalidMessage),
    /// The lane is full; nothing was accepted.
    #[error(
        "lane {lane} is full: {used} of {capacity} {unit}; governance is not taking messages fast \
         enough, ask again in {retry_after:?}"
    )]
    BufferFull {
        /// The lane.
        lane: Lane,
        /// How much is taken.
        used: u64,
        /// How much there is.
        capacity: u64,
        /// `messages` or `bytes`.
        unit: &'static str,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The id is taken by a request for something else; nothing was accepted.
    #[error("request {request_id} was already made with another payload; use a new id")]
    Conflict {
        /// The id.
        request_id: RequestId,
    },
    /// A burn that it pays is paid by an earlier request, and both transactions could be mined;
    /// nothing was accepted.
    #[error(
        "burn {burn} is paid by request {earlier} already; a second transaction for it must spend \
         an input of the first (and of every other one made for it), so that one of them at most \
         can be mined"
    )]
    AlreadyPaid {
        /// The burn.
        burn: BurnId,
        /// The request that pays it.
        earlier: RequestId,
    },
    /// The store has failed; nothing was accepted.
    #[error("nothing can be accepted: {fault}; ask again in {retry_after:?}")]
    Store {
        /// What failed, and what to do about it.
        fault: StoreError,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The buffer died between accepting and confirming: the message may or may not be accepted.
    #[error("it is unknown whether {what} was accepted; ask again with the same id, it is safe")]
    Indeterminate {
        /// Which message.
        what: String,
    },
    /// There is no session with governance, and what was asked for cannot wait for one.
    #[error("not connected to governance ({state}); ask again when `status` shows a session")]
    NotConnected {
        /// What the connection is doing.
        state: String,
    },
    /// No answer within the call's deadline.
    #[error("`{operation}` was not answered within {deadline:?}; asking again is safe")]
    DeadlineExceeded {
        /// The call.
        operation: &'static str,
        /// What it was given.
        deadline: Duration,
    },
    /// The tree, or the part of it that answers, is not there (it may be restarting).
    #[error("actor `{actor}` is not running; it is being restarted, or the stream has stopped")]
    NotRunning {
        /// Registry name.
        actor: String,
    },
    /// The stream takes no more messages: it is being shut down.
    #[error("the stream is shutting down and accepts nothing more")]
    ShuttingDown,
    /// The stream has stopped, and its store did not say in time what is left in it. What was
    /// accepted is still there.
    #[error(
        "the stream has stopped, but it is not known what is left: its store did not answer; \
         `governance-stream store stats` counts it"
    )]
    LeftoverUnknown,
    /// Nobody knows this request.
    #[error("request {request_id} is unknown: it was never accepted here")]
    UnknownRequest {
        /// The id.
        request_id: RequestId,
    },
    /// The store was restored from a backup, or is new where governance knows this node: it may
    /// lack requests that were signed. Nothing was accepted.
    #[error(
        "this store may lack requests that were signed: none is accepted, and none is known to be \
         unknown, until governance has recalled them; `status` says what that waits for"
    )]
    Restoring,
    /// No restored store waits for an operator's word.
    #[error(
        "nothing waits for this: the store was not restored, and governance knows it; `status` says \
         what holds the connection"
    )]
    NotRestored,
    /// The request is parked: it needs a person.
    #[error("request {request_id} needs an operator: {reason}")]
    NeedsOperator {
        /// The id.
        request_id: RequestId,
        /// Why.
        reason: String,
    },
    /// An endpoint that cannot be dialled.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The tree did not start.
    #[error("the stream `{instance}` did not start: {reason}")]
    Startup {
        /// The instance prefix.
        instance: String,
        /// Why.
        reason: String,
    },
}

impl From<StoreError> for StreamError {
    fn from(fault: StoreError) -> Self {
        Self::Store {
            fault,
            retry_after: Duration::from_secs(1),
        }
    }
}

impl StreamError {
    /// What the caller may do about it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::BufferFull { retry_after, .. } | Self::Store { retry_after, .. } => {
                Retry::After(*retry_after)
            }
            Self::Indeterminate { .. } | Self::DeadlineExceeded { .. } => Retry::Now,
            Self::NotRunning { .. } => Retry::After(Duration::from_millis(100)),
            Self::NotConnected { .. } => Retry::After(Duration::from_secs(1)),
            Self::LeftoverUnknown
            | Self::NeedsOperator { .. }
            | Self::Restoring
            | Self::Config(_)
            | Self::Startup { .. } => Retry::Operator,
            Self::Invalid(_)
            | Self::Conflict { .. }
            | Self::AlreadyPaid { .. }
            | Self::ShuttingDown
            | Self::NotRestored
            | Self::UnknownRequest { .. } => Retry::Never,
        }
    }
}
