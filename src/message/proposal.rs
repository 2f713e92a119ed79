//! Proposals that governance puts to the federation's operators.

use std::time::SystemTime;

use super::{InvalidMessage, ProposalId};

/// Largest `data`.
pub const MAX_PROPOSAL_BYTES: usize = 65_536;

/// A proposal to be shown to the operator; the node does not interpret it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposalNotification {
    /// The proposal.
    pub proposal_id: ProposalId,
    /// What it proposes.
    pub proposal_type: ProposalType,
    /// JSON text, at most [`MAX_PROPOSAL_BYTES`].
    pub data: String,
    /// Votes count until then.
    pub voting_deadline: SystemTime,
}

/// The kind of a proposal: 1 to 64 characters of `[a-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProposalType(String);

impl ProposalType {
    /// Checks length and alphabet.
    ///
    /// # Errors
    ///
    /// When it is empty, too long or holds another character.
    pub fn new(kind: impl Into<String>) -> Result<Self, InvalidMessage> {
        let kind = kind.into();
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        if (1..=64).contains(&kind.len()) && kind.chars().all(allowed) {
            Ok(Self(kind))
        } else {
            Err(InvalidMessage::new(
                "proposal_type",
                format_args!("{kind:?}"),
                "1 to 64 characters of [a-z0-9_-]",
            ))
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The node holds the proposal and shows it to its operator. Not a vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProposalAck {
    /// The proposal.
    pub proposal_id: ProposalId,
}
