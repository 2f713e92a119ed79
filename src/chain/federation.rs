//! A version of the federation that has been verified: who may sign, and for which script. Pure.

use std::{collections::BTreeSet, str::FromStr};

use bitcoin::{
    Address, Network, PublicKey, ScriptBuf,
    secp256k1::{self, Message, Secp256k1},
};
use miniscript::{Descriptor, Threshold, descriptor::WshInner};

use crate::{
    config::FirstFederation,
    message::{
        ChainId, FederationMember, FederationUpdate, FederationUpdateKind, MemberId, TaggedHash,
        wire,
    },
};

const DIGEST_TAG: &[u8] = b"governance.v1.FederationUpdate";
/// Active members that a `wsh(sortedmulti)` of this protocol may hold.
const MAX_ACTIVE: usize = 15;

/// What an update may not do, whoever approved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FederationPolicy {
    /// The threshold must be at least this share of the active members, in percent.
    pub min_threshold_percent: u32,
    /// Sidechain blocks between arrival and activation of a scheduled update, at least.
    pub min_notice_blocks: u32,
}

impl Default for FederationPolicy {
    /// More than half of the members; any notice.
    fn default() -> Self {
        Self {
            min_threshold_percent: 51,
            min_notice_blocks: 0,
        }
    }
}

/// A verified version of the federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federation {
    version: u32,
    threshold: u32,
    members: Vec<FederationMember>,
    network: Network,
    script: ScriptBuf,
    address: Address,
    activation_height: u64,
    grace_blocks: u32,
    paused: bool,
    digest: [u8; 32],
}

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
    /// A count of active members, or a threshold, that cannot be.
    #[error(
        "{threshold} of {active} active members: at most {MAX_ACTIVE} members, and a threshold between 1 and all of them"
    )]
    Impossible {
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
    /// Two members share an id or a key.
    #[error("members share an id or a key")]
    RepeatedMember,
    /// Pausing and resuming change nothing else.
    #[error("a pause or its end may change neither members nor threshold")]
    PauseChangesMembers,
    /// The descriptor is not that of the members.
    #[error("the descriptor {0} is not that of the members and the threshold, with a checksum")]
    Descriptor(String),
    /// The address is not that of the members.
    #[error("the address {announced} is not the members', which is {ours}")]
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
    /// Would be active too soon.
    #[error("it would be active at {activation}, with {notice} blocks' notice at height {height}")]
    Notice {
        /// Its activation height.
        activation: u64,
        /// The notice that it promises, or that the policy demands.
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

impl Federation {
    /// Version 1, from the configuration: nobody approves it but the node's operator.
    ///
    /// # Errors
    ///
    /// When members or threshold cannot make a federation.
    pub fn first(
        first: &FirstFederation,
        network: Network,
        chain: &ChainId,
    ) -> Result<Self, FederationFault> {
        let (threshold, members) = (first.threshold, first.members.clone());
        let (descriptor, script) = describe(threshold, &members)?;
        let address = Address::p2wsh(&script, network);
        let as_update = FederationUpdate {
            version: 1,
            previous_version: 0,
            previous_config_hash: [0; 32],
            members,
            threshold,
            descriptor: descriptor.to_string(),
            address: address.to_string(),
            network,
            activation_height: 0,
            notice_blocks: 0,
            grace_blocks: 0,
            kind: FederationUpdateKind::Scheduled,
            approvals: Vec::new(),
        };
        Ok(Self::verified(as_update, script, address, false, chain))
    }

    /// The version that follows this one, if the update is right in itself and a quorum of this
    /// version approves it.
    ///
    /// # Errors
    ///
    /// The first reason not to follow it.
    pub fn follow(
        &self,
        update: &FederationUpdate,
        chain: &ChainId,
        policy: &FederationPolicy,
    ) -> Result<Self, FederationFault> {
        if update.network != self.network {
            let announced = update.network;
            return Err(FederationFault::Network {
                announced,
                ours: self.network,
            });
        }
        if update.previous_version != self.version || update.version != self.version + 1 {
            let (version, latest) = (update.version, self.version);
            return Err(FederationFault::NotNext { version, latest });
        }
        if update.previous_config_hash != self.digest {
            return Err(FederationFault::OtherHistory(self.version));
        }
        let (_, script) = describe(update.threshold, &update.members)?;
        let active = active(&update.members).count();
        let percent = policy.min_threshold_percent;
        if u64::from(update.threshold) * 100 < u64::from(percent) * active as u64 {
            let threshold = update.threshold;
            return Err(FederationFault::WeakThreshold {
                threshold,
                active,
                percent,
            });
        }
        let paused = match update.kind {
            FederationUpdateKind::Scheduled | FederationUpdateKind::Emergency => self.paused,
            FederationUpdateKind::Pause | FederationUpdateKind::Resume => {
                if update.members != self.members || update.threshold != self.threshold {
                    return Err(FederationFault::PauseChangesMembers);
                }
                update.kind == FederationUpdateKind::Pause
            }
        };
        if !describes(&update.descriptor, &script) {
            return Err(FederationFault::Descriptor(update.descriptor.clone()));
        }
        let ours = Address::p2wsh(&script, self.network);
        if update.address != ours.to_string() {
            return Err(FederationFault::Address {
                announced: update.address.clone(),
                ours,
            });
        }
        if update.activation_height < self.activation_height {
            return Err(FederationFault::Overtakes {
                activation: update.activation_height,
                previous: self.activation_height,
            });
        }
        let next = Self::verified(update.clone(), script, ours, paused, chain);
        self.check_quorum(update, &next.digest)?;
        Ok(next)
    }

    fn verified(
        update: FederationUpdate,
        script: ScriptBuf,
        address: Address,
        paused: bool,
        chain: &ChainId,
    ) -> Self {
        Self {
            digest: digest(&update, chain),
            version: update.version,
            threshold: update.threshold,
            members: update.members,
            network: update.network,
            script,
            address,
            activation_height: update.activation_height,
            grace_blocks: update.grace_blocks,
            paused,
        }
    }

    /// Counts distinct active members of this version whose approval verifies.
    fn check_quorum(
        &self,
        update: &FederationUpdate,
        digest: &[u8; 32],
    ) -> Result<(), FederationFault> {
        let secp = Secp256k1::verification_only();
        let message = Message::from_digest(*digest);
        let approving: BTreeSet<&MemberId> = update
            .approvals
            .iter()
            .filter_map(|approval| {
                let member = self.member(&approval.public_key)?;
                // libsecp256k1 refuses high S.
                secp.verify_ecdsa(&message, &approval.signature, &member.public_key)
                    .ok()?;
                Some(&member.id)
            })
            .collect();
        if approving.len() < self.threshold as usize {
            return Err(FederationFault::Quorum {
                valid: approving.len(),
                needed: self.threshold,
            });
        }
        Ok(())
    }

    /// Counts from 1.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }
    /// Signatures needed to spend.
    #[must_use]
    pub fn threshold(&self) -> u32 {
        self.threshold
    }
    /// Active and inactive members.
    #[must_use]
    pub fn members(&self) -> &[FederationMember] {
        &self.members
    }
    /// The active member with this key.
    #[must_use]
    pub fn member(&self, key: &secp256k1::PublicKey) -> Option<&FederationMember> {
        active(&self.members).find(|member| member.public_key == *key)
    }
    /// The witness script that its members sign for.
    #[must_use]
    pub fn script(&self) -> &ScriptBuf {
        &self.script
    }
    /// Where its coins lie.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }
    /// Sidechain height at which it becomes active.
    #[must_use]
    pub fn activation_height(&self) -> u64 {
        self.activation_height
    }
    /// Sidechain blocks for which its predecessor may still sign.
    #[must_use]
    pub fn grace_blocks(&self) -> u32 {
        self.grace_blocks
    }
    /// Whether peg-outs are stopped.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }
    /// Names this version in its successor's update.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

fn active(members: &[FederationMember]) -> impl Iterator<Item = &FederationMember> {
    members.iter().filter(|member| member.active)
}

/// The descriptor of the active members, and its script.
fn describe(
    threshold: u32,
    members: &[FederationMember],
) -> Result<(Descriptor<PublicKey>, ScriptBuf), FederationFault> {
    let keys: Vec<PublicKey> = active(members)
        .map(|member| PublicKey::new(member.public_key))
        .collect();
    let impossible = FederationFault::Impossible {
        threshold,
        active: keys.len(),
    };
    let ids: BTreeSet<&MemberId> = members.iter().map(|member| &member.id).collect();
    let distinct: BTreeSet<_> = members.iter().map(|member| member.public_key).collect();
    if ids.len() != members.len() || distinct.len() != members.len() {
        return Err(FederationFault::RepeatedMember);
    }
    if !(1..=MAX_ACTIVE).contains(&keys.len()) || !(1..=keys.len()).contains(&(threshold as usize))
    {
        return Err(impossible);
    }
    let sortedmulti = Threshold::new(threshold as usize, keys).ok();
    let descriptor = sortedmulti.and_then(|keys| Descriptor::new_wsh_sortedmulti(keys).ok());
    let Some(descriptor) = descriptor else {
        return Err(impossible);
    };
    let script = descriptor.explicit_script().map_err(|_| impossible)?;
    Ok((descriptor, script))
}

/// Whether the text is a `wsh(sortedmulti())` with a right checksum (BIP-380) that makes this
/// script, however it orders the keys (BIP-67).
fn describes(text: &str, script: &ScriptBuf) -> bool {
    if !text.contains('#') {
        return false;
    }
    match Descriptor::<PublicKey>::from_str(text) {
        Ok(Descriptor::Wsh(wsh)) => {
            matches!(wsh.as_inner(), WshInner::SortedMulti(_)) && wsh.inner_script() == *script
        }
        _ => false,
    }
}

/// As the proto's comment on approvals lays it out.
fn digest(update: &FederationUpdate, chain: &ChainId) -> [u8; 32] {
    let mut hash = TaggedHash::new(DIGEST_TAG);
    let small = |number: i32| u8::try_from(number).unwrap_or_default();
    hash.u8(small(wire::network_to_wire(update.network).into()));
    hash.bytes(chain.as_str().as_bytes());
    hash.u32(update.version);
    hash.u32(update.previous_version);
    hash.array(&update.previous_config_hash);
    hash.count(update.members.len());
    for member in &update.members {
        hash.bytes(member.id.as_str().as_bytes());
        hash.array(&member.public_key.serialize());
        hash.u8(u8::from(member.active));
    }
    hash.u32(update.threshold);
    hash.bytes(update.descriptor.as_bytes());
    hash.bytes(update.address.as_bytes());
    hash.u64(update.activation_height);
    hash.u32(update.notice_blocks);
    hash.u32(update.grace_blocks);
    hash.u8(match update.kind {
        FederationUpdateKind::Scheduled => 1,
        FederationUpdateKind::Emergency => 2,
        FederationUpdateKind::Pause => 3,
        FederationUpdateKind::Resume => 4,
    });
    hash.finish()
}
