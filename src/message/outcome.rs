//! How a request stands and how it ends.

use std::fmt;

use super::{FailureCode, SignatureStatus};

/// The end of a request. There is exactly one, and it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every input has its threshold of signatures; the bridge has them.
    Complete,
    /// Governance will not sign.
    Failed {
        /// Which rule, when governance named one.
        code: Option<FailureCode>,
        /// For people.
        reason: String,
    },
    /// Governance found the request invalid.
    Rejected {
        /// For people.
        reason: String,
    },
    /// Cancelled at the caller's word or past its deadline.
    Cancelled {
        /// Whether a signature had already been handed out, so that the transaction may yet be
        /// completed by whoever holds it.
        signatures_released: bool,
    },
    /// Its deadline passed, or it was cancelled, before it was ever sent: governance never saw
    /// it.
    ExpiredUnsent,
}

impl Outcome {
    /// Bounded label for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed { .. } => "failed",
            Self::Rejected { .. } => "rejected",
            Self::Cancelled { .. } => "cancelled",
            Self::ExpiredUnsent => "expired_unsent",
        }
    }

    /// The outcome that a response's status makes, if it is terminal.
    #[must_use]
    pub fn from_status(status: &SignatureStatus) -> Option<Self> {
        match status {
            SignatureStatus::Pending | SignatureStatus::InProgress { .. } => None,
            SignatureStatus::Complete => Some(Self::Complete),
            SignatureStatus::Failed {
                code: FailureCode::InvalidRequest,
                reason,
            } => Some(Self::Rejected {
                reason: reason.clone(),
            }),
            SignatureStatus::Failed { code, reason } => Some(Self::Failed {
                code: Some(*code),
                reason: reason.clone(),
            }),
            SignatureStatus::Cancelled {
                signatures_released,
            } => Some(Self::Cancelled {
                signatures_released: *signatures_released,
            }),
            SignatureStatus::Timeout { reason } => Some(Self::Failed {
                code: None,
                reason: format!("governance timed out: {reason}"),
            }),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("complete"),
            Self::Failed { reason, .. } => write!(f, "failed: {reason}"),
            Self::Rejected { reason } => write!(f, "rejected: {reason}"),
            Self::Cancelled {
                signatures_released: true,
            } => f.write_str("cancelled after signatures were released"),
            Self::Cancelled {
                signatures_released: false,
            } => f.write_str("cancelled"),
            Self::ExpiredUnsent => f.write_str("withdrawn before it was sent"),
        }
    }
}

/// How far an open request has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Signers that have answered, and how many are needed; `None` until governance says.
    pub signers: Option<(u32, u32)>,
    /// Whether the local deadline has passed: governance was asked to cancel, and its answer is
    /// awaited.
    pub deadline_passed: bool,
}
