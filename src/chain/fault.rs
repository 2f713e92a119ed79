//! Why an update is not followed, each reason by itself.

use std::time::SystemTime;

use bitcoin::{Address, Network};

use super::federation::MAX_ACTIVE;
use crate::message::MemberId;

/// Why an update is not a federation that a node may follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FederationFault {
    /// For another Bitcoin network.
    #[error("it is for {announced}, this node is on {ours}")]
    Network {
        /// The update's.
        announced: Network,
        /// Ours.
        ours: Network,
    },
    /// The first version, or none: those come from the configuration.
    #[error("version {0} comes from the node's configuration, never from governance")]
    First(u32),
    /// Does not follow the version we have.
    #[error("version {version} does not follow version {latest}")]
    NotNext {
        /// The update's.
        version: u32,
        /// The last one we know.
        latest: u32,
    },
    /// Follows another version of the same number.
    #[error("it follows another version {0} than ours")]
    OtherHistory(u32),
    /// Another update of this version was accepted before.
    #[error("version {0} is known already, and it is another one")]
    Replaced(u32),
    /// No active member, or more than a script of this protocol may hold.
    #[error("{0} members are active, expected 1 to {MAX_ACTIVE}")]
    Members(usize),
    /// A threshold that no active members could meet, or none.
    #[error("a threshold of {threshold} of {active} active members, expected 1 to all of them")]
    Threshold {
        /// Signatures needed.
        threshold: u32,
        /// Active members.
        active: usize,
    },
    /// Below what this node's policy allows.
    #[error("a threshold of {threshold} of {active} is below this node's {percent} %")]
    WeakThreshold {
        /// Signatures needed.
        threshold: u32,
        /// Active members.
        active: usize,
        /// What the policy wants.
        percent: u32,
    },
    /// Two members share an id.
    #[error("two members are called {0}")]
    RepeatedId(MemberId),
    /// Two members share a key, active or not.
    #[error("the key of member {0} is another member's as well")]
    RepeatedKey(MemberId),
    /// Pausing and resuming change nothing else.
    #[error("a pause or its end may change neither members nor threshold")]
    PauseChangesMembers,
    /// The descriptor is not that of the members.
    #[error("the descriptor {0:?} is not that of the members and the threshold, with a checksum")]
    Descriptor(String),
    /// The address is not that of the members.
    #[error("the address {announced:?} is not the members', which is {ours}")]
    Address {
        /// The update's.
        announced: String,
        /// Recomputed.
        ours: Address,
    },
    /// Too few members of the previous version approve.
    #[error("{valid} of the {needed} approvals by the previous version that it needs are valid")]
    Quorum {
        /// Valid ones of distinct active members.
        valid: usize,
        /// The previous version's threshold.
        needed: u32,
    },
    /// Promises less notice than this node's policy demands.
    #[error("it promises {promised} blocks' notice, this node demands {demanded}")]
    ShortNotice {
        /// The update's.
        promised: u32,
        /// The policy's.
        demanded: u32,
    },
    /// Came later than it promised, to a node that was there to take it.
    #[error("it would be active at {activation}, with {notice} blocks' notice at height {height}")]
    Notice {
        /// Its activation height.
        activation: u64,
        /// The notice that it promises.
        notice: u32,
        /// Our height.
        height: u64,
    },
    /// Would be active before the version that it follows.
    #[error(
        "it would be active at {activation}, before the version that it follows, at {previous}"
    )]
    Overtakes {
        /// Its activation height.
        activation: u64,
        /// That of the version that it follows.
        previous: u64,
    },
}

impl FederationFault {
    /// For metrics: one word for each reason.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Network { .. } => "network",
            Self::First(_) => "first",
            Self::NotNext { .. } => "not_next",
            Self::OtherHistory(_) => "other_history",
            Self::Replaced(_) => "replaced",
            Self::Members(_) => "members",
            Self::Threshold { .. } => "threshold",
            Self::WeakThreshold { .. } => "weak_threshold",
            Self::RepeatedId(_) => "repeated_id",
            Self::RepeatedKey(_) => "repeated_key",
            Self::PauseChangesMembers => "pause_changes_members",
            Self::Descriptor(_) => "descriptor",
            Self::Address { .. } => "address",
            Self::Quorum { .. } => "quorum",
            Self::ShortNotice { .. } => "short_notice",
            Self::Notice { .. } => "notice",
            Self::Overtakes { .. } => "overtakes",
        }
    }
}

/// The last update that was not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it claimed to be.
    pub version: u32,
    /// Why it is not followed.
    pub reason: String,
    /// When it came.
    pub at: SystemTime,
}
