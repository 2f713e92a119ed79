//! Why an attempt or a session ended, and what is done about it.

use std::time::Duration;

use tonic::Code;

use crate::{
    buffer::ResumeFault,
    config::ConfigFault,
    message::{GovernanceError, GovernanceErrorCode, InvalidMessage},
};

/// Why an attempt or a session ended.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SessionFault {
    /// What is needed for the dial could not be read.
    #[error("cannot dial: {0}")]
    Credentials(ConfigFault),
    /// No connection to the endpoint.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// Too slow.
    #[error("no {awaited} within {within:?}")]
    TooSlow {
        /// What did not come.
        awaited: &'static str,
        /// Its deadline.
        within: Duration,
    },
    /// The call ended with a gRPC status.
    #[error("governance ended the stream: {code:?}: {message}")]
    Status {
        /// gRPC's code.
        code: Code,
        /// Governance's words.
        message: String,
    },
    /// Governance ended the stream without a word.
    #[error("governance closed the stream")]
    Closed,
    /// Governance said why it ends the session.
    #[error("governance refused the session: {0}")]
    Refused(GovernanceError),
    /// Governance wants this endpoint left.
    #[error("governance drains this endpoint: {reason}")]
    Drained {
        /// Governance's words.
        reason: String,
    },
    /// Heartbeats are not answered.
    #[error("governance has been silent for {0:?}")]
    Silent(Duration),
    /// Governance broke the protocol.
    #[error("governance broke the protocol: {0}")]
    Protocol(String),
    /// The two records do not fit.
    #[error("{0}")]
    Resume(ResumeFault),
    /// Our journal has failed.
    #[error("the journal has failed; the session ends, and begins again when it is back")]
    Journal,
    /// The transport takes frames slower than they come.
    #[error("the transport did not take {0} frames that wait for it")]
    Congested(usize),
    /// Someone on this side wanted another endpoint.
    #[error("another endpoint was asked for")]
    Moved,
}

/// What is done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Try again after the backoff.
    BackOff,
    /// Try again after the backoff, and not before this.
    After(Duration),
    /// Try again slowly: only other credentials will help, and they may come at any time.
    Slowly,
    /// Send nothing until an operator has looked at it.
    Quarantine,
    /// Do not try again until an operator has acted.
    GiveUp,
}

impl SessionFault {
    /// What is done about it.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Credentials(_) => Remedy::Slowly,
            Self::Status {
                code: Code::Unauthenticated | Code::PermissionDenied,
                ..
            } => Remedy::Slowly,
            Self::Status {
                code: Code::Unimplemented,
                ..
            } => Remedy::Slowly,
            Self::Refused(error) => match error.code {
                GovernanceErrorCode::Unauthenticated | GovernanceErrorCode::PermissionDenied => {
                    Remedy::Slowly
                }
                GovernanceErrorCode::Fenced | GovernanceErrorCode::UnknownOutbox => {
                    Remedy::Quarantine
                }
                GovernanceErrorCode::UnsupportedVersion | GovernanceErrorCode::WrongChain => {
                    Remedy::GiveUp
                }
                _ => error.retry_after.map_or(Remedy::BackOff, Remedy::After),
            },
            Self::Resume(ResumeFault::Adopted) => Remedy::BackOff,
            Self::Resume(_) => Remedy::Quarantine,
            Self::Unreachable(_)
            | Self::TooSlow { .. }
            | Self::Status { .. }
            | Self::Closed
            | Self::Drained { .. }
            | Self::Silent(_)
            | Self::Protocol(_)
            | Self::Journal
            | Self::Congested(_)
            | Self::Moved => Remedy::BackOff,
        }
    }

    /// Whether the endpoint lacks what governance had acknowledged: another one may have it.
    pub(super) fn is_behind(&self) -> bool {
        matches!(self, Self::Resume(ResumeFault::Behind { .. }))
    }

    /// Bounded label for metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "credentials",
            Self::Unreachable(_) => "unreachable",
            Self::TooSlow { .. } => "too_slow",
            Self::Status { .. } => "status",
            Self::Closed => "closed",
            Self::Refused(_) => "refused",
            Self::Drained { .. } => "drained",
            Self::Silent(_) => "silent",
            Self::Protocol(_) => "protocol",
            Self::Resume(_) => "resume",
            Self::Journal => "journal",
            Self::Congested(_) => "congested",
            Self::Moved => "moved",
        }
    }
}

impl From<InvalidMessage> for SessionFault {
    fn from(invalid: InvalidMessage) -> Self {
        Self::Protocol(invalid.to_string())
    }
}
