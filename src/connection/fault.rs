//! Why an attempt or a session ended, and what is done about it.

use std::time::Duration;

use tonic::Code;

use super::line::Registered;
use crate::{
    buffer::ResumeFault,
    config::ConfigFault,
    message::{GovernanceError, GovernanceErrorCode, InvalidMessage, Lane, OpeningId, OutboxId},
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
    /// It serves, but not the stream.
    #[error("the endpoint says that it is not serving")]
    NotServing,
    /// It speaks other versions of the protocol than we do.
    #[error(
        "the endpoint speaks protocol versions {spoken:?}, this node speaks {ours}; upgrade one of them"
    )]
    OtherVersion {
        /// The endpoint's.
        spoken: Vec<u32>,
        /// Ours.
        ours: u32,
    },
    /// Heartbeats are not answered.
    #[error("governance has been silent for {0:?}")]
    Silent(Duration),
    /// Heartbeats are answered, but what was sent is not acknowledged.
    #[error(
        "governance answers heartbeats, but has acknowledged nothing of lane {lane} for {stalled:?}"
    )]
    Stalled {
        /// The lane that waits longest.
        lane: Lane,
        /// For how long.
        stalled: Duration,
    },
    /// Governance sends more than it may.
    #[error("governance exceeded a limit: {0}")]
    Excess(String),
    /// Governance broke the protocol.
    #[error("governance broke the protocol: {0}")]
    Protocol(String),
    /// Governance knows this node, and not this store of it.
    #[error(
        "governance knows this node by another store than {outbox_id}: this one is new or restored, and may lack what was signed; have governance's operator permit {outbox_id}, then `governance-stream resume --restored --yes`"
    )]
    StoreLost {
        /// Names our store; what governance's operator permits.
        outbox_id: OutboxId,
    },
    /// Governance's operator permitted a later store of this node.
    #[error(
        "governance's operator permitted a later store of this node than {outbox_id}, which is never served again; take it out of use"
    )]
    Retired {
        /// Names our store.
        outbox_id: OutboxId,
    },
    /// Governance has seen more of our store than it knows of itself.
    #[error(
        "this store is in epoch {ours}, and governance saw epoch {highest} of it, in which it registered itself: it is an older copy; stop the node, see that no other one runs, and `governance-stream restore --in-place`; never only raise its epoch"
    )]
    RolledBack {
        /// The epoch that we registered with.
        ours: u64,
        /// The highest epoch that governance saw.
        highest: u64,
    },
    /// Governance serves another process that has our store.
    #[error(
        "another process ({opening}) has registered this store in epoch {highest}: a copy of this node runs elsewhere, or this directory was put back; stop the other one, or take this one out of use, then `governance-stream resume`; if the directory was put back, `governance-stream restore --in-place`"
    )]
    Copied {
        /// The epoch in which it did.
        highest: u64,
        /// Names what that process does with the store.
        opening: OpeningId,
    },
    /// The two records do not fit.
    #[error("{0}")]
    Resume(ResumeFault),
    /// Our store has failed.
    #[error("the store has failed; the session ends, and begins again when it is back")]
    Store,
    /// The transport takes frames slower than they come.
    #[error("the transport did not take {0} frames that wait for it")]
    Congested(usize),
    /// Our buffer was asked for what a session needs, and did not answer.
    #[error("the buffer gave no {awaited} within {within:?}")]
    Buffer {
        /// What it was asked for.
        awaited: &'static str,
        /// Its deadline.
        within: Duration,
    },
    /// Nothing has been tried yet.
    #[error("the first attempt is about to be made")]
    Starting,
}

/// When governance says that it refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Instead of accepting a registration.
    Registering,
    /// After it has accepted one.
    Live,
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
    /// Another endpoint may have what this one lacks; when none has, an operator must look at it.
    Elsewhere,
    /// Another endpoint may be of our kind; when none is, an operator must act.
    GiveUp,
    /// Send nothing until an operator has looked at it.
    Quarantine,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The endpoint's, or that of the way to it.
    Endpoint,
    /// The same, and trying it again at once is a waste of time.
    EndpointForSure,
    /// Ours: another endpoint would be no better.
    Ourselves,
}

impl SessionFault {
    /// What governance's refusal of a registration, or of the session that followed, means for a
    /// store that came as `registered`.
    pub(super) fn refused(
        error: GovernanceError,
        registered: Option<Registered>,
        phase: Phase,
    ) -> Self {
        use GovernanceErrorCode::{Fenced, OutboxRetired, UnknownOutbox};
        let Some(Registered {
            epoch: ours,
            outbox_id,
            opening,
            opened_before,
            ..
        }) = registered
        else {
            return Self::Refused(error);
        };
        let theirs = error.highest_opening;
        let is_known = theirs.is_none_or(|it| it == opening || opened_before == Some(it));
        match (error.code, error.highest_epoch, theirs) {
            (UnknownOutbox, ..) => Self::StoreLost { outbox_id },
            (OutboxRetired, ..) => Self::Retired { outbox_id },
            (Fenced, Some(highest), Some(opening)) if highest >= ours && !is_known => {
                Self::Copied { highest, opening }
            }
            // This store used that epoch, and does not know it any more. In the middle of a session a
            // higher epoch of our own is that of a session that was to take over.
            (Fenced, Some(highest), _) if phase == Phase::Registering && highest >= ours => {
                Self::RolledBack { ours, highest }
            }
            _ => Self::Refused(error),
        }
    }

    /// What is done about it.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Credentials(_) => Remedy::Slowly,
            Self::Status {
                code: Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented,
                ..
            } => Remedy::Slowly,
            Self::OtherVersion { .. } => Remedy::GiveUp,
            Self::Refused(error) => match error.code {
                GovernanceErrorCode::Unauthenticated | GovernanceErrorCode::PermissionDenied => {
                    Remedy::Slowly
                }
                GovernanceErrorCode::Fenced
                | GovernanceErrorCode::UnknownOutbox
                | GovernanceErrorCode::OutboxRetired => Remedy::Quarantine,
                GovernanceErrorCode::UnsupportedVersion | GovernanceErrorCode::WrongChain => {
                    Remedy::GiveUp
                }
                _ => error.retry_after.map_or(Remedy::BackOff, Remedy::After),
            },
            Self::Resume(ResumeFault::Adopted) => Remedy::BackOff,
            Self::Resume(ResumeFault::Restored { .. }) => Remedy::Quarantine,
            Self::Resume(ResumeFault::Behind { .. } | ResumeFault::LedgerChanged) => {
                Remedy::Elsewhere
            }
            Self::StoreLost { .. }
            | Self::Retired { .. }
            | Self::RolledBack { .. }
            | Self::Copied { .. }
            | Self::Resume(
                ResumeFault::Forked { .. }
                | ResumeFault::RolledBack { .. }
                | ResumeFault::Unhandled { .. }
                | ResumeFault::NeverMade { .. }
                | ResumeFault::WentBack,
            ) => Remedy::Quarantine,
            Self::Unreachable(_)
            | Self::TooSlow { .. }
            | Self::Status { .. }
            | Self::Closed
            | Self::NotServing
            | Self::Silent(_)
            | Self::Stalled { .. }
            | Self::Protocol(_)
            | Self::Excess(_)
            | Self::Store
            | Self::Congested(_)
            | Self::Buffer { .. }
            | Self::Starting => Remedy::BackOff,
        }
    }

    /// Whose fault it is.
    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Store
            | Self::Buffer { .. }
            | Self::Starting
            | Self::StoreLost { .. }
            | Self::Retired { .. }
            | Self::RolledBack { .. }
            | Self::Copied { .. }
            | Self::Resume(
                ResumeFault::Adopted
                | ResumeFault::Restored { .. }
                | ResumeFault::RolledBack { .. }
                | ResumeFault::Unhandled { .. }
                | ResumeFault::WentBack,
            ) => Blame::Ourselves,
            // It has been given its time already.
            Self::TooSlow { .. }
            | Self::NotServing
            | Self::Silent(_)
            | Self::Stalled { .. }
            | Self::Excess(_)
            | Self::Congested(_) => Blame::EndpointForSure,
            Self::Credentials(_)
            | Self::Unreachable(_)
            | Self::Status { .. }
            | Self::Closed
            | Self::Refused(_)
            | Self::OtherVersion { .. }
            | Self::Protocol(_)
            | Self::Resume(_) => Blame::Endpoint,
        }
    }

    /// Whether other credentials may help.
    pub(super) fn is_about_credentials(&self) -> bool {
        match self {
            Self::Credentials(_) => true,
            Self::Status { code, .. } => {
                matches!(code, Code::Unauthenticated | Code::PermissionDenied)
            }
            Self::Refused(error) => matches!(
                error.code,
                GovernanceErrorCode::Unauthenticated | GovernanceErrorCode::PermissionDenied
            ),
            // A server that turns our certificate down only breaks the connection off (TLS 1.3).
            Self::Unreachable(_) | Self::Closed => true,
            _ => false,
        }
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
            Self::NotServing => "not_serving",
            Self::OtherVersion { .. } => "other_version",
            Self::Silent(_) => "silent",
            Self::Stalled { .. } => "stalled",
            Self::Protocol(_) => "protocol",
            Self::Excess(_) => "excess",
            Self::StoreLost { .. } => "store_lost",
            Self::Retired { .. } => "outbox_retired",
            Self::RolledBack { .. } => "store_rolled_back",
            Self::Copied { .. } => "fenced",
            Self::Resume(_) => "resume",
            Self::Store => "store",
            Self::Congested(_) => "congested",
            Self::Buffer { .. } => "buffer",
            Self::Starting => "starting",
        }
    }
}

impl From<InvalidMessage> for SessionFault {
    fn from(invalid: InvalidMessage) -> Self {
        Self::Protocol(invalid.to_string())
    }
}
