//! The federation: who may sign, from when, and how it changes.

use bitcoin::{Network, secp256k1};

use super::MemberId;

/// One signer of a federation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FederationMember {
    /// The member's name.
    pub id: MemberId,
    /// Its signing key.
    pub public_key: secp256k1::PublicKey,
    /// Only active members sign.
    pub active: bool,
}

/// What a federation update is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FederationUpdateKind {
    /// An ordinary change of members or threshold.
    Scheduled,
    /// The same with a shorter notice, never a smaller quorum.
    Emergency,
    /// Stops peg-outs.
    Pause,
    /// Ends a pause.
    Resume,
}

/// A member of the previous version approves an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The member's key.
    pub public_key: secp256k1::PublicKey,
    /// Over the update's digest; not yet verified.
    pub signature: secp256k1::ecdsa::Signature,
}

/// A change of the federation as governance announces it: well formed, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederationUpdate {
    /// The new version.
    pub version: u32,
    /// The version it follows.
    pub previous_version: u32,
    /// That version's digest.
    pub previous_config_hash: [u8; 32],
    /// Active and inactive members.
    pub members: Vec<FederationMember>,
    /// Signatures needed to spend.
    pub threshold: u32,
    /// BIP-380 descriptor with checksum, as announced.
    pub descriptor: String,
    /// Its address, as announced.
    pub address: String,
    /// The Bitcoin network of both.
    pub network: Network,
    /// Sidechain height at which it becomes active.
    pub activation_height: u64,
    /// Sidechain blocks between arrival and activation, at least.
    pub notice_blocks: u32,
    /// Sidechain blocks for which the previous version may still sign.
    pub grace_blocks: u32,
    /// What it is for.
    pub kind: FederationUpdateKind,
    /// By the previous version's members.
    pub approvals: Vec<Approval>,
}

/// What the node made of a [`FederationUpdate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederationUpdateAck {
    /// Which update.
    pub version: u32,
    /// `Err` holds the reason for people.
    pub verdict: Result<(), String>,
}
