//! Federation updates and their acknowledgements.

use std::collections::BTreeSet;

use bitcoin::secp256k1;

use super::{
    at_least_one, at_most, fixed, for_people, network_from_wire, network_to_wire, public_key,
    unspecified,
};
use crate::{
    message::{
        Approval, FederationMember, FederationUpdate, FederationUpdateAck, FederationUpdateKind,
        InvalidMessage, MemberId,
    },
    proto,
};

/// Most members, active and inactive, and most approvals.
const MAX_MEMBERS: usize = 100;
/// Most characters of a descriptor, with 15 keys and room for their origins.
const MAX_DESCRIPTOR: usize = 4096;
/// Most characters of an address.
const MAX_ADDRESS: usize = 128;

impl From<&FederationUpdate> for proto::FederationUpdate {
    fn from(update: &FederationUpdate) -> Self {
        Self {
            version: update.version,
            previous_version: update.previous_version,
            previous_config_hash: update.previous_config_hash.to_vec().into(),
            members: update.members.iter().map(Into::into).collect(),
            threshold: update.threshold,
            descriptor: update.descriptor.clone(),
            address: update.address.clone(),
            network: network_to_wire(update.network).into(),
            activation_height: update.activation_height,
            notice_blocks: update.notice_blocks,
            grace_blocks: update.grace_blocks,
            kind: match update.kind {
                FederationUpdateKind::Scheduled => proto::FederationUpdateKind::Scheduled,
                FederationUpdateKind::Emergency => proto::FederationUpdateKind::Emergency,
                FederationUpdateKind::Pause => proto::FederationUpdateKind::Pause,
                FederationUpdateKind::Resume => proto::FederationUpdateKind::Resume,
            }
            .into(),
            approvals: update.approvals.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::FederationUpdate> for FederationUpdate {
    type Error = InvalidMessage;

    fn try_from(wire: proto::FederationUpdate) -> Result<Self, InvalidMessage> {
        use proto::FederationUpdateKind as Wire;
        at_most("members", &wire.members, MAX_MEMBERS)?;
        at_most("approvals", &wire.approvals, MAX_MEMBERS)?;
        at_most("descriptor", wire.descriptor.as_bytes(), MAX_DESCRIPTOR)?;
        at_most("address", wire.address.as_bytes(), MAX_ADDRESS)?;
        let kind = match wire.kind() {
            Wire::Scheduled => FederationUpdateKind::Scheduled,
            Wire::Emergency => FederationUpdateKind::Emergency,
            Wire::Pause => FederationUpdateKind::Pause,
            Wire::Resume => FederationUpdateKind::Resume,
            Wire::Unspecified => return Err(unspecified("kind", wire.kind)),
        };
        let previous_version = at_least_one("previous_version", wire.previous_version)?;
        if wire.version.checked_sub(1) != Some(previous_version) {
            return Err(InvalidMessage::new(
                "version",
                wire.version,
                format!("previous_version + 1, after {previous_version}"),
            ));
        }
        let members = members(wire.members)?;
        let active = members.iter().filter(|member| member.active).count();
        if !(1..=active).contains(&(wire.threshold as usize)) {
            return Err(InvalidMessage::new(
                "threshold",
                wire.threshold,
                format!("1 to the {active} active members"),
            ));
        }
        let approvals = wire
            .approvals
            .into_iter()
            .enumerate()
            .map(|(index, approval)| {
                Approval::try_from(approval)
                    .map_err(|invalid| invalid.within(format_args!("approvals[{index}]")))
            });
        Ok(Self {
            version: wire.version,
            previous_version,
            previous_config_hash: fixed("previous_config_hash", &wire.previous_config_hash)?,
            members,
            threshold: wire.threshold,
            descriptor: wire.descriptor,
            address: wire.address,
            network: network_from_wire(wire.network)?,
            activation_height: wire.activation_height,
            notice_blocks: wire.notice_blocks,
            grace_blocks: wire.grace_blocks,
            kind,
            approvals: approvals.collect::<Result<_, _>>()?,
        })
    }
}

fn members(wire: Vec<proto::FederationMember>) -> Result<Vec<FederationMember>, InvalidMessage> {
    let (mut ids, mut keys) = (BTreeSet::new(), BTreeSet::new());
    let mut members = Vec::with_capacity(wire.len());
    for (index, member) in wire.into_iter().enumerate() {
        let at = format!("members[{index}]");
        let member = FederationMember::try_from(member).map_err(|invalid| invalid.within(&at))?;
        if !ids.insert(member.id.clone()) || !keys.insert(member.public_key) {
            return Err(InvalidMessage::new(
                at,
                member.id,
                "a member with an id and key of its own",
            ));
        }
        members.push(member);
    }
    Ok(members)
}

impl From<&FederationMember> for proto::FederationMember {
    fn from(member: &FederationMember) -> Self {
        Self {
            id: member.id.to_string(),
            public_key: member.public_key.serialize().to_vec().into(),
            active: member.active,
        }
    }
}

impl TryFrom<proto::FederationMember> for FederationMember {
    type Error = InvalidMessage;

    fn try_from(wire: proto::FederationMember) -> Result<Self, InvalidMessage> {
        Ok(Self {
            id: MemberId::new(wire.id)?,
            public_key: public_key(&wire.public_key)?,
            active: wire.active,
        })
    }
}

impl From<&Approval> for proto::Approval {
    fn from(approval: &Approval) -> Self {
        Self {
            public_key: approval.public_key.serialize().to_vec().into(),
            signature: approval.signature.serialize_compact().to_vec().into(),
        }
    }
}

impl TryFrom<proto::Approval> for Approval {
    type Error = InvalidMessage;

    fn try_from(wire: proto::Approval) -> Result<Self, InvalidMessage> {
        let compact: [u8; 64] = fixed("signature", &wire.signature)?;
        let signature = secp256k1::ecdsa::Signature::from_compact(&compact).map_err(|error| {
            InvalidMessage::new("signature", error, "a compact ECDSA signature")
        })?;
        Ok(Self {
            public_key: public_key(&wire.public_key)?,
            signature,
        })
    }
}

impl From<&FederationUpdateAck> for proto::FederationUpdateAck {
    fn from(ack: &FederationUpdateAck) -> Self {
        Self {
            version: ack.version,
            accepted: ack.verdict.is_ok(),
            reason: for_people(ack.verdict.clone().err().unwrap_or_default(), 1024),
        }
    }
}

impl TryFrom<proto::FederationUpdateAck> for FederationUpdateAck {
    type Error = InvalidMessage;

    fn try_from(wire: proto::FederationUpdateAck) -> Result<Self, InvalidMessage> {
        let reason = for_people(wire.reason, 1024);
        Ok(Self {
            version: at_least_one("version", wire.version)?,
            verdict: if wire.accepted { Ok(()) } else { Err(reason) },
        })
    }
}
