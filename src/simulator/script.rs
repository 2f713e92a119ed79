//! What a test makes the service do. What a script does not ask for does not happen, and what it
//! does not expect of a node is a violation.

use std::collections::{BTreeSet, VecDeque};

use crate::proto::{ErrorCode, FailureCode, StreamResponse};

/// How the next signature request is answered, instead of well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Nobody signs, and nothing is said; a cancel is answered.
    Never,
    /// One signature too few, as progress; nothing more.
    Partial,
    /// Every member signs, one of them badly.
    OneBadSignature,
    /// Signatures for another transaction's id.
    WrongTxid,
    /// Governance will not sign.
    Fail(FailureCode, String),
    /// Governance gives up.
    Timeout,
    /// A response whose fields are out of bounds.
    Malformed,
    /// The final response twice, as two messages.
    Duplicate,
}

/// What is asked of the service.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// For the next signature requests, in their order.
    pub behaviours: VecDeque<Behaviour>,
    /// Whether responses wait.
    pub holding: bool,
    /// Registrations still to be refused, and how.
    pub refusals: VecDeque<ErrorCode>,
    /// What is said to the next registrations instead of the real answer.
    pub registration_answers: VecDeque<StreamResponse>,
    /// Whether what nodes send is taken and not acknowledged.
    pub withholding: bool,
    /// Whether a reconciliation is never answered.
    pub reconciliation_unanswered: bool,
    /// Whether nothing is read, and nothing said.
    pub silent: bool,
    /// Endpoints of which that holds alone.
    pub silent_endpoints: BTreeSet<usize>,
    /// Rejects that a script's garbage will cause.
    pub expected_rejects: usize,
}

impl Script {
    /// Whether an endpoint neither reads nor speaks.
    pub(super) fn is_silent(&self, endpoint: usize) -> bool {
        self.silent || self.silent_endpoints.contains(&endpoint)
    }
}
