//! What the bridge says of its peg-outs, to whoever listens.

use super::{life::PegoutStage, signatures::BadSignature};
use crate::message::RequestId;

/// Events that a listener may be behind by. One that is slower is told how many it missed, and
/// finds what holds now in the store.
pub(super) const FEED: usize = 1024;

/// One step of a peg-out. Told once it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PegoutEvent {
    /// It has come to another stage.
    Stage {
        /// Which peg-out.
        request_id: RequestId,
        /// The stage.
        stage: PegoutStage,
    },
    /// A signature was dropped.
    BadSignature {
        /// Which peg-out.
        request_id: RequestId,
        /// What is wrong with it, and whose it is.
        fault: BadSignature,
    },
    /// Something keeps it from going on; it is tried again.
    Trouble {
        /// Which peg-out.
        request_id: RequestId,
        /// What, and what to do about it.
        trouble: String,
    },
}

/// Why peg-outs are paused, durably, until the operator resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pause {
    /// The operator said so.
    Operator,
    /// The store was restored from a backup: what was signed after it is not known.
    Restore,
}

impl Pause {
    pub(super) const ALL: [Self; 2] = [Self::Operator, Self::Restore];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Restore => "restore",
        }
    }
}

/// Who has stopped peg-outs. What is stopped waits: nothing is asked for, nothing is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedBy {
    /// This node's operator.
    Operator,
    /// The store was restored from a backup. The operator resumes when it is known what was signed
    /// after that.
    Restore,
    /// A quorum of the federation, with this version.
    Governance {
        /// The active one.
        version: u32,
    },
}

impl From<Pause> for PausedBy {
    fn from(pause: Pause) -> Self {
        match pause {
            Pause::Operator => Self::Operator,
            Pause::Restore => Self::Restore,
        }
    }
}

impl std::fmt::Display for PausedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operator => f.write_str("the operator"),
            Self::Restore => f.write_str("the restore of its store"),
            Self::Governance { version } => write!(f, "governance, with federation {version}"),
        }
    }
}
