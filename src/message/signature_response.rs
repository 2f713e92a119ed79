//! What governance answers to a signature request.

use bitcoin::{Txid, secp256k1};

use super::RequestId;

/// One member's signature for one input, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialSignature {
    /// The transaction's input.
    pub input_index: u32,
    /// The member's key.
    pub public_key: secp256k1::PublicKey,
    /// DER and sighash byte, 9 to 73 bytes; whether it verifies is the bridge's to find out, so
    /// that one member's bad signature does not hide the others'.
    pub signature: Vec<u8>,
}

/// Why governance will not sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureCode {
    /// Malformed, or disagrees with itself.
    InvalidRequest,
    /// Same id, other payload.
    Conflict,
    /// A rule of governance forbids it.
    Policy,
    /// The federation version is unknown, not yet active or retired.
    Federation,
    /// Too few signers agreed.
    Declined,
    /// A burn is already paid by a request that shares no input with this one.
    AlreadyPaid,
}

/// Where governance stands with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureStatus {
    /// Accepted, not begun.
    Pending,
    /// Some signers have answered.
    InProgress {
        /// How many have.
        collected: u32,
        /// How many are needed.
        required: u32,
    },
    /// Terminal: every input has its threshold of signatures.
    Complete,
    /// Terminal: governance will not sign.
    Failed {
        /// Which rule.
        code: FailureCode,
        /// For people.
        reason: String,
    },
    /// Terminal: withdrawn at the node's word.
    Cancelled {
        /// Whether a signature had already been handed out.
        signatures_released: bool,
    },
    /// Terminal: governance promises no further signatures.
    Timeout {
        /// For people.
        reason: String,
    },
}

/// What governance says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureResponse {
    /// The request.
    pub request_id: RequestId,
    /// Id of the transaction that was asked for.
    pub txid: Txid,
    /// The federation whose keys signed.
    pub federation_version: u32,
    /// Where governance stands.
    pub status: SignatureStatus,
    /// Signatures collected so far; merged across responses by the bridge.
    pub signatures: Vec<PartialSignature>,
}
