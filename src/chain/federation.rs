//! A version of the federation that has been verified: who may sign, and for which script. Pure.

use std::{collections::BTreeSet, str::FromStr};

use bitcoin::{
    Address, Network, PublicKey, ScriptBuf,
    secp256k1::{self, Message, Secp256k1},
};
use miniscript::{Descriptor, Threshold, descriptor::WshInner};

use super::fault::FederationFault;
use crate::{
    config::FirstFederation,
    message::{
        ChainId, FederationMember, FederationUpdate, FederationUpdateKind, MemberId, TaggedHash,
        wire,
    },
};

const DIGEST_TAG: &[u8] = b"governance.v1.FederationUpdate";
/// Active members that a `wsh(sortedmulti)` of this protocol may hold.
pub(super) const MAX_ACTIVE: usize = 15;

/// What an update may not do, whoever approved it. The same at every node of a federation, or its
/// nodes will not agree on who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FederationPolicy {
    /// The threshold must be at least this share of the active members, in percent.
    pub min_threshold_percent: u32,
    /// Sidechain blocks of notice that a scheduled update must promise, at least.
    pub min_notice_blocks: u32,
}

impl FederationPolicy {
    /// For what was accepted before, perhaps under another policy: a policy does not reach back.
    pub(super) const SETTLED: Self = Self {
        min_threshold_percent: 0,
        min_notice_blocks: 0,
    };
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
    descriptor: Descriptor<PublicKey>,
    script: ScriptBuf,
    address: Address,
    activation_height: u64,
    grace_blocks: u32,
    kind: FederationUpdateKind,
    paused: bool,
    previous_digest: [u8; 32],
    digest: [u8; 32],
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
        Ok(Self {
            digest: digest(&as_update, chain),
            version: 1,
            threshold,
            members: as_update.members,
            network,
            descriptor,
            script,
            address,
            activation_height: 0,
            grace_blocks: 0,
            kind: as_update.kind,
            paused: false,
            previous_digest: as_update.previous_config_hash,
        })
    }

    /// The version that follows this one, if the update is right in itself and a quorum of this
    /// version approves it. Says nothing of when it came.
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
        self.check_place(update)?;
        let (descriptor, script) = describe(update.threshold, &update.members)?;
        check_policy(update, policy)?;
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
        let address = Address::p2wsh(&script, self.network);
        if update.address != address.to_string() {
            return Err(FederationFault::Address {
                announced: update.address.clone(),
                ours: address,
            });
        }
        let digest = digest(update, chain);
        self.check_quorum(update, &digest)?;
        Ok(Self {
            digest,
            version: update.version,
            threshold: update.threshold,
            members: update.members.clone(),
            network: self.network,
            descriptor,
            script,
            address,
            activation_height: update.activation_height,
            grace_blocks: update.grace_blocks,
            kind: update.kind,
            paused,
            previous_digest: self.digest,
        })
    }

    /// Whether the update follows this version, by number, digest and height.
    fn check_place(&self, update: &FederationUpdate) -> Result<(), FederationFault> {
        if update.network != self.network {
            return Err(FederationFault::Network {
                announced: update.network,
                ours: self.network,
            });
        }
        if update.version < 2 {
            return Err(FederationFault::First(update.version));
        }
        if update.previous_version != self.version
            || update.version.checked_sub(1) != Some(self.version)
        {
            return Err(FederationFault::NotNext {
                version: update.version,
                latest: self.version,
            });
        }
        if update.previous_config_hash != self.digest {
            return Err(FederationFault::OtherHistory(self.version));
        }
        if update.activation_height < self.activation_height {
            return Err(FederationFault::Overtakes {
                activation: update.activation_height,
                previous: self.activation_height,
            });
        }
        Ok(())
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
    /// With its checksum (BIP-380), the active members' keys in their order.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor<PublicKey> {
        &self.descriptor
    }
    /// What it was announced as.
    #[must_use]
    pub fn kind(&self) -> FederationUpdateKind {
        self.kind
    }
    /// Whether peg-outs are stopped.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }
    /// Names this version in its successor's update, and so vouches for every version before.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
    /// The digest of the version that it follows; zeros for the first.
    #[must_use]
    pub fn previous_digest(&self) -> [u8; 32] {
        self.previous_digest
    }
}

fn active(members: &[FederationMember]) -> impl Iterator<Item = &FederationMember> {
    members.iter().filter(|member| member.active)
}

fn check_policy(
    update: &FederationUpdate,
    policy: &FederationPolicy,
) -> Result<(), FederationFault> {
    let active = active(&update.members).count();
    let (threshold, percent) = (update.threshold, policy.min_threshold_percent);
    if u64::from(threshold) * 100 < u64::from(percent) * active as u64 {
        return Err(FederationFault::WeakThreshold {
            threshold,
            active,
            percent,
        });
    }
    let (promised, demanded) = (update.notice_blocks, policy.min_notice_blocks);
    if update.kind == FederationUpdateKind::Scheduled && promised < demanded {
        return Err(FederationFault::ShortNotice { promised, demanded });
    }
    Ok(())
}

/// The descriptor of the active members, and its script.
fn describe(
    threshold: u32,
    members: &[FederationMember],
) -> Result<(Descriptor<PublicKey>, ScriptBuf), FederationFault> {
    let (mut ids, mut distinct) = (BTreeSet::new(), BTreeSet::new());
    for member in members {
        if !ids.insert(&member.id) {
            return Err(FederationFault::RepeatedId(member.id.clone()));
        }
        if !distinct.insert(member.public_key) {
            return Err(FederationFault::RepeatedKey(member.id.clone()));
        }
    }
    let keys: Vec<PublicKey> = active(members)
        .map(|member| PublicKey::new(member.public_key))
        .collect();
    let active = keys.len();
    if !(1..=MAX_ACTIVE).contains(&active) {
        return Err(FederationFault::Members(active));
    }
    let impossible = FederationFault::Threshold { threshold, active };
    // It refuses 0 and more than there are.
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
