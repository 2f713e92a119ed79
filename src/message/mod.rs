//! Domain types of everything that crosses the stream, one noun a file.
//!
//! A value of these types cannot be invalid: constructors and the conversions of [`wire`] check
//! lengths, ranges, uniqueness, networks and that public keys lie on the curve.

mod burn;
mod cancel;
mod federation;
mod identity;
mod invalid;
mod lane;
mod outcome;
mod pegin;
mod proposal;
mod raw_transaction;
mod recalled;
mod session;
mod signature_request;
mod signature_response;
mod status;
mod tagged_hash;
pub mod wire;

pub use burn::{BurnId, MAX_SCRIPT_BYTES, PegoutBinding};
pub use cancel::{CancelReason, CancelRequest};
pub use federation::{
    Approval, FederationMember, FederationUpdate, FederationUpdateAck, FederationUpdateKind,
};
pub use identity::{
    ChainId, LedgerId, MemberId, MessageId, NodeId, OccurrenceId, OpeningId, OutboxId, ProposalId,
    RequestId, SessionId,
};
pub use invalid::InvalidMessage;
pub use lane::{Lane, PerLane};
pub use outcome::{Outcome, Progress};
pub use pegin::{EvmAddress, PeginAck, PeginNotification, PeginStatus};
pub use proposal::{MAX_PROPOSAL_BYTES, ProposalAck, ProposalNotification, ProposalType};
pub use raw_transaction::RawTransaction;
pub use recalled::{Recalled, RecalledRequest};
pub use session::{
    Capabilities, GovernanceError, GovernanceErrorCode, LaneState, Limits, RegistrationAck,
};
pub use signature_request::{
    Coin, MAX_INPUTS, MAX_PSBT_BYTES, PayloadHash, SignatureRequest, SignatureRequestParts,
    TransactionType,
};
pub use signature_response::{FailureCode, PartialSignature, SignatureResponse, SignatureStatus};
pub use status::NodeStatus;
pub(crate) use tagged_hash::TaggedHash;

/// A message from node to governance that is delivered in order and recorded once.
#[derive(Debug, Clone, PartialEq)]
pub enum Outbound {
    /// Please sign.
    SignatureRequest(Box<SignatureRequest>),
    /// Please do not sign (any more).
    CancelRequest(CancelRequest),
    /// What the node made of a federation update.
    FederationUpdateAck(FederationUpdateAck),
    /// A deposit.
    PeginNotification(PeginNotification),
    /// A proposal is held.
    ProposalAck(ProposalAck),
    /// A message of governance could not be used.
    Reject(Lane, Reject),
    /// Takes the place of a message that was withdrawn before it was ever sent.
    Withdrawn(Lane, MessageId),
}

impl Outbound {
    /// The lane it travels in.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::SignatureRequest(_) | Self::CancelRequest(_) => Lane::Signing,
            Self::FederationUpdateAck(_) => Lane::Federation,
            Self::PeginNotification(_) => Lane::Pegin,
            Self::ProposalAck(_) => Lane::Proposal,
            Self::Reject(lane, _) | Self::Withdrawn(lane, _) => *lane,
        }
    }
}

/// A message from governance to node.
#[derive(Debug, Clone, PartialEq)]
pub enum Inbound {
    /// Signatures, or why there are none.
    SignatureResponse(SignatureResponse),
    /// The federation changes.
    FederationUpdate(Box<FederationUpdate>),
    /// A deposit was recorded, or not.
    PeginAck(PeginAck),
    /// A proposal to be shown.
    ProposalNotification(ProposalNotification),
}

impl Inbound {
    /// The lane it travels in.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::SignatureResponse(_) => Lane::Signing,
            Self::FederationUpdate(_) => Lane::Federation,
            Self::PeginAck(_) => Lane::Pegin,
            Self::ProposalNotification(_) => Lane::Proposal,
        }
    }
}

/// A message of governance that the node could not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Its sequence in the lane.
    pub sequence: u64,
    /// The request it belonged to, when it could be read.
    pub request_id: Option<RequestId>,
    /// Field, value and bound.
    pub reason: String,
}
