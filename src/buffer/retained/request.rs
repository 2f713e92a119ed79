//! One request.

use std::time::SystemTime;

use crate::{
    buffer::record::{Entry, OpenRequest},
    message::{CancelReason, Outcome, Progress},
};

/// A request and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Its place in the order of acceptance.
    pub number: u64,
    /// As it was accepted.
    pub request: OpenRequest,
    /// Whether it may have reached a ledger that governance has lost since, or was sent after the
    /// backup that this store was restored from.
    pub sent_before: bool,
    /// Its message, where it has no place in the lane, or a marker has taken it: governance held the
    /// request already when its ledger was adopted, or recalled it. Should that ledger be lost, it
    /// is made again.
    pub aside: Option<Entry>,
    /// Whether governance has recalled it in an exchange that is not over: should that begin again,
    /// it is not listed, so that it is recalled again, with its answers.
    pub recalled: bool,
    /// How it stands.
    pub standing: Standing,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Governance has not answered finally.
    Open {
        /// How far it has come.
        progress: Progress,
        /// How governance was asked to cancel it, if it was.
        cancel: Option<Cancel>,
        /// Why it waits for an operator, if it does.
        parked: Option<String>,
    },
    /// It has its outcome.
    Settled {
        /// It never changes.
        outcome: Outcome,
        /// When it came.
        at: SystemTime,
    },
}

/// How governance was asked to cancel a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// Why.
    pub reason: CancelReason,
    /// Its message in the signing lane. `None` while it waits: by this store's record the request was
    /// never sent, but governance has not confirmed yet that this store is not an older copy.
    pub sequence: Option<u64>,
}

impl Standing {
    /// Of a request that has just been accepted.
    pub(super) fn opened() -> Self {
        Self::Open {
            progress: Progress::default(),
            cancel: None,
            parked: None,
        }
    }
}

impl RequestRecord {
    /// Whether it has no outcome yet.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.standing, Standing::Open { .. })
    }

    /// Whether it is open past its deadline.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(&self.standing, Standing::Open { progress, .. } if progress.deadline_passed)
    }

    /// Why it waits for an operator, if it does.
    #[must_use]
    pub fn parked(&self) -> Option<&str> {
        match &self.standing {
            Standing::Open { parked, .. } => parked.as_deref(),
            Standing::Settled { .. } => None,
        }
    }
}
