//! The simulated federation: its members' keys, its script, and how it changes.

use std::str::FromStr;

use bitcoin::{
    Address, Network, ScriptBuf,
    hashes::{Hash, HashEngine, sha256},
    secp256k1::{Message, PublicKey, Secp256k1, SecretKey},
};
use miniscript::Descriptor;

use crate::proto;

/// One version of the federation, with its members' secret keys.
#[derive(Debug, Clone)]
pub(super) struct Federation {
    pub version: u32,
    pub threshold: usize,
    pub members: Vec<Member>,
    pub descriptor: String,
    pub address: Address,
    pub witness_script: ScriptBuf,
    /// Names it in its successor's update.
    pub digest: [u8; 32],
}

/// A signer.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub id: String,
    pub secret: SecretKey,
    pub public: PublicKey,
}

/// One version as anyone may see it.
#[derive(Debug, Clone)]
pub struct FederationView {
    /// Counts from 1.
    pub version: u32,
    /// Signatures needed to spend.
    pub threshold: usize,
    /// Ids and keys.
    pub members: Vec<(String, PublicKey)>,
    /// With checksum.
    pub descriptor: String,
    /// Where its coins lie.
    pub address: Address,
    /// What its members sign for.
    pub witness_script: ScriptBuf,
}

/// What the next version shall be.
#[derive(Debug, Clone)]
pub struct RotationPlan {
    /// Signers; a pause and its end keep those there are.
    pub members: usize,
    /// Signatures needed to spend; as with `members`.
    pub threshold: usize,
    /// Sidechain height of activation.
    pub activation_height: u64,
    /// Sidechain blocks before activation, at least.
    pub notice_blocks: u32,
    /// Sidechain blocks for which the previous version may still sign.
    pub grace_blocks: u32,
    /// What it is for.
    pub kind: proto::FederationUpdateKind,
}

impl Federation {
    /// Version 1, as a node's configuration names it.
    pub(super) fn first(
        seed: u64,
        members: usize,
        threshold: usize,
        network: Network,
        chain_id: &str,
    ) -> Option<Self> {
        let mut federation = Self::build(seed, 1, members, threshold, network)?;
        let unapproved = federation.update(
            network,
            0,
            [0; 32],
            &RotationPlan {
                members,
                threshold,
                activation_height: 0,
                notice_blocks: 0,
                grace_blocks: 0,
                kind: proto::FederationUpdateKind::Scheduled,
            },
        );
        federation.digest = digest(&unapproved, chain_id);
        Some(federation)
    }

    /// Its members but for the last ones, who are away.
    pub(super) fn present(&self, away: usize) -> &[Member] {
        let present = self.members.len().saturating_sub(away);
        self.members.get(..present).unwrap_or_default()
    }

    /// The next version, and the update that announces it, approved by a quorum of this one.
    pub(super) fn next(
        &self,
        seed: u64,
        plan: &RotationPlan,
        network: Network,
        chain_id: &str,
    ) -> Option<(Self, proto::FederationUpdate)> {
        use proto::FederationUpdateKind::{Pause, Resume};
        let version = self.version + 1;
        let mut next = match plan.kind {
            // Nothing else changes.
            Pause | Resume => Self {
                version,
                ..self.clone()
            },
            _ => Self::build(seed, version, plan.members, plan.threshold, network)?,
        };
        let secp = Secp256k1::signing_only();
        let mut update = next.update(network, self.version, self.digest, plan);
        next.digest = digest(&update, chain_id);
        update.approvals = self
            .members
            .iter()
            .take(self.threshold)
            .map(|member| {
                let message = Message::from_digest(next.digest);
                let signature = secp.sign_ecdsa(&message, &member.secret);
                proto::Approval {
                    public_key: member.public.serialize().to_vec().into(),
                    signature: signature.serialize_compact().to_vec().into(),
                }
            })
            .collect();
        Some((next, update))
    }

    /// Each version drops its oldest member and gains a new one.
    fn build(
        seed: u64,
        version: u32,
        members: usize,
        threshold: usize,
        network: Network,
    ) -> Option<Self> {
        if !(1..=15).contains(&members) || !(1..=members).contains(&threshold) {
            return None;
        }
        let secp = Secp256k1::new();
        let oldest = u64::from(version) - 1;
        let members: Vec<Member> = (oldest..)
            .take(members)
            .map(|index| {
                let secret = secret_key(seed, index);
                Member {
                    id: format!("member-{index}"),
                    secret,
                    public: secret.public_key(&secp),
                }
            })
            .collect();
        let keys: Vec<String> = members
            .iter()
            .map(|member| member.public.to_string())
            .collect();
        let text = format!("wsh(sortedmulti({threshold},{}))", keys.join(","));
        let descriptor = Descriptor::<bitcoin::PublicKey>::from_str(&text).ok()?;
        Some(Self {
            version,
            threshold,
            members,
            // Its Display writes the checksum.
            descriptor: descriptor.to_string(),
            address: descriptor.address(network).ok()?,
            witness_script: descriptor.explicit_script().ok()?,
            digest: [0; 32],
        })
    }

    fn update(
        &self,
        network: Network,
        previous_version: u32,
        previous_config_hash: [u8; 32],
        plan: &RotationPlan,
    ) -> proto::FederationUpdate {
        let member = |member: &Member| proto::FederationMember {
            id: member.id.clone(),
            public_key: member.public.serialize().to_vec().into(),
            active: true,
        };
        proto::FederationUpdate {
            version: self.version,
            previous_version,
            previous_config_hash: previous_config_hash.to_vec().into(),
            members: self.members.iter().map(member).collect(),
            threshold: u32::try_from(self.threshold).unwrap_or(u32::MAX),
            descriptor: self.descriptor.clone(),
            address: self.address.to_string(),
            network: wire_network(network).into(),
            activation_height: plan.activation_height,
            notice_blocks: plan.notice_blocks,
            grace_blocks: plan.grace_blocks,
            kind: plan.kind.into(),
            approvals: Vec::new(),
        }
    }

    pub(super) fn view(&self) -> FederationView {
        let member = |member: &Member| (member.id.clone(), member.public);
        FederationView {
            version: self.version,
            threshold: self.threshold,
            members: self.members.iter().map(member).collect(),
            descriptor: self.descriptor.clone(),
            address: self.address.clone(),
            witness_script: self.witness_script.clone(),
        }
    }
}

/// A member's key: the same for the same seed and index.
fn secret_key(seed: u64, index: u64) -> SecretKey {
    let mut attempt = 0_u64;
    loop {
        let mut engine = sha256::Hash::engine();
        engine.input(b"governance simulator member");
        for part in [seed, index, attempt] {
            engine.input(&part.to_le_bytes());
        }
        // Not every 32 bytes are a key; all but one in 2^128 are.
        match SecretKey::from_slice(sha256::Hash::from_engine(engine).as_byte_array()) {
            Ok(secret) => return secret,
            Err(_) => attempt += 1,
        }
    }
}

/// The digest that approvals sign, as the proto lays it out.
pub(super) fn digest(update: &proto::FederationUpdate, chain_id: &str) -> [u8; 32] {
    let mut bytes = Vec::new();
    let field = |bytes: &mut Vec<u8>, value: &[u8]| {
        bytes.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(value);
    };
    bytes.push(u8::try_from(update.network).unwrap_or_default());
    field(&mut bytes, chain_id.as_bytes());
    bytes.extend(update.version.to_le_bytes());
    bytes.extend(update.previous_version.to_le_bytes());
    bytes.extend(update.previous_config_hash.iter());
    bytes.extend(
        u32::try_from(update.members.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    for member in &update.members {
        field(&mut bytes, member.id.as_bytes());
        bytes.extend(member.public_key.iter());
        bytes.push(u8::from(member.active));
    }
    bytes.extend(update.threshold.to_le_bytes());
    field(&mut bytes, update.descriptor.as_bytes());
    field(&mut bytes, update.address.as_bytes());
    bytes.extend(update.activation_height.to_le_bytes());
    bytes.extend(update.notice_blocks.to_le_bytes());
    bytes.extend(update.grace_blocks.to_le_bytes());
    bytes.push(u8::try_from(update.kind).unwrap_or_default());
    tagged_sha256("governance.v1.FederationUpdate", &bytes)
}

/// BIP-340's tagged hash.
pub(super) fn tagged_sha256(tag: &str, bytes: &[u8]) -> [u8; 32] {
    let tag = sha256::Hash::hash(tag.as_bytes()).to_byte_array();
    sha256::Hash::hash(&[&tag, &tag, bytes].concat()).to_byte_array()
}

pub(super) fn wire_network(network: Network) -> proto::BitcoinNetwork {
    match network {
        Network::Bitcoin => proto::BitcoinNetwork::Mainnet,
        Network::Testnet => proto::BitcoinNetwork::Testnet,
        Network::Testnet4 => proto::BitcoinNetwork::Testnet4,
        Network::Signet => proto::BitcoinNetwork::Signet,
        Network::Regtest => proto::BitcoinNetwork::Regtest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: RotationPlan = RotationPlan {
        members: 3,
        threshold: 2,
        activation_height: 100,
        notice_blocks: 10,
        grace_blocks: 50,
        kind: proto::FederationUpdateKind::Scheduled,
    };

    #[test]
    fn the_same_seed_gives_the_same_federation_and_another_seed_another() {
        let build = |seed| Federation::first(seed, 3, 2, Network::Regtest, "alys").expect("valid");
        assert_eq!(build(1).address, build(1).address);
        assert_ne!(build(1).address, build(2).address);
        assert_eq!(
            build(1).address.script_pubkey(),
            build(1).witness_script.to_p2wsh()
        );
    }

    #[test]
    fn an_update_is_approved_by_a_quorum_of_its_predecessor() {
        let first = Federation::first(1, 3, 2, Network::Regtest, "alys").expect("valid");
        let (next, update) = first
            .next(1, &PLAN, Network::Regtest, "alys")
            .expect("valid");
        assert_eq!(update.approvals.len(), 2);
        assert_eq!(
            digest(&update, "alys"),
            next.digest,
            "approvals are not part of it"
        );
        assert_ne!(digest(&update, "other"), next.digest);
        let secp = Secp256k1::verification_only();
        for approval in &update.approvals {
            let key = PublicKey::from_slice(&approval.public_key).expect("a key");
            let signature = bitcoin::secp256k1::ecdsa::Signature::from_compact(&approval.signature)
                .expect("a signature");
            let message = Message::from_digest(next.digest);
            secp.verify_ecdsa(&message, &signature, &key)
                .expect("verifies");
            assert!(first.members.iter().any(|member| member.public == key));
        }
    }
}
