//! Proposals and their acknowledgements.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::at_most;
use crate::{
    message::{
        InvalidMessage, MAX_PROPOSAL_BYTES, ProposalAck, ProposalId, ProposalNotification,
        ProposalType,
    },
    proto,
};

impl From<&ProposalNotification> for proto::ProposalNotification {
    fn from(proposal: &ProposalNotification) -> Self {
        let since = proposal
            .voting_deadline
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            proposal_id: proposal.proposal_id.to_string(),
            proposal_type: proposal.proposal_type.as_str().to_owned(),
            data: proposal.data.clone().into_bytes().into(),
            voting_deadline_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<proto::ProposalNotification> for ProposalNotification {
    type Error = InvalidMessage;

    fn try_from(wire: proto::ProposalNotification) -> Result<Self, InvalidMessage> {
        at_most("data", &wire.data, MAX_PROPOSAL_BYTES)?;
        let data = String::from_utf8(wire.data.to_vec())
            .map_err(|error| InvalidMessage::new("data", error, "UTF-8 text"))?;
        Ok(Self {
            proposal_id: ProposalId::new(wire.proposal_id)?,
            proposal_type: ProposalType::new(wire.proposal_type)?,
            data,
            voting_deadline: deadline(wire.voting_deadline_unix_ms)?,
        })
    }
}

fn deadline(unix_ms: u64) -> Result<SystemTime, InvalidMessage> {
    /// Year 10000: later ones cannot be written as a date.
    const LATEST_UNIX_MS: u64 = 253_402_300_800_000;
    UNIX_EPOCH
        .checked_add(Duration::from_millis(unix_ms))
        .filter(|_| unix_ms < LATEST_UNIX_MS)
        .ok_or_else(|| {
            InvalidMessage::new(
                "voting_deadline_unix_ms",
                unix_ms,
                format!("below {LATEST_UNIX_MS}"),
            )
        })
}

impl From<&ProposalAck> for proto::ProposalAck {
    fn from(ack: &ProposalAck) -> Self {
        Self {
            proposal_id: ack.proposal_id.to_string(),
        }
    }
}

impl TryFrom<proto::ProposalAck> for ProposalAck {
    type Error = InvalidMessage;

    fn try_from(wire: proto::ProposalAck) -> Result<Self, InvalidMessage> {
        Ok(Self {
            proposal_id: ProposalId::new(wire.proposal_id)?,
        })
    }
}
