//! What came of a test.

use std::{collections::BTreeSet, fmt};

use crate::message::Lane;

/// A rule of the contract, in the order of its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// It replies to every delivery.
    Replies,
    /// It handles a prefix of the batch.
    Prefix,
    /// It answers in kind.
    Answers,
    /// Handled means durable.
    Durable,
    /// A message is handled once.
    Once,
    /// It is known by its `occurrence_id`, not by its place.
    Identity,
    /// It does not depend on whoever asked.
    Independent,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replies => "it replies to every delivery",
            Self::Prefix => "it handles a prefix of the batch",
            Self::Answers => "it answers in kind",
            Self::Durable => "handled means durable",
            Self::Once => "a message is handled once",
            Self::Identity => "a message is known by its identity",
            Self::Independent => "it does not depend on whoever asked",
        })
    }
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// With a message of this lane.
    pub lane: Lane,
    /// What happened.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (lane {}): {}", self.rule, self.lane, self.reason)
    }
}

/// What came of a test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they were seen.
    pub violations: Vec<Violation>,
    /// Deliveries that were made.
    pub deliveries: usize,
    /// Lanes that the subject wanted no message of.
    pub skipped: BTreeSet<Lane>,
    /// Hindrances that the subject could not be made to meet.
    pub unhindered: usize,
}

impl Report {
    /// Whether no rule was broken.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (broken, deliveries) = (self.violations.len(), self.deliveries);
        write!(f, "{broken} violations in {deliveries} deliveries")?;
        for violation in &self.violations {
            write!(f, "\n- {violation}")?;
        }
        Ok(())
    }
}
