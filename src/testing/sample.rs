//! Messages that any subscriber has to know what to do with: well formed, and of nobody's requests.

use std::time::{Duration, UNIX_EPOCH};

use bitcoin::{Network, OutPoint, Txid, hashes::Hash as _, secp256k1::PublicKey};

use crate::{
    message::{
        FederationMember, FederationUpdate, FederationUpdateKind, Lane, PeginAck, PeginStatus,
        ProposalNotification, ProposalType, SignatureResponse, SignatureStatus,
    },
    routing::{BridgeEvent, ChainEvent},
};

/// A response to a request that nobody made, or an answered deposit.
#[must_use]
pub fn sample_bridge_event(lane: Lane, number: u64) -> Option<BridgeEvent> {
    let mut txid = [0; 32];
    for (byte, value) in txid.iter_mut().zip(number.to_le_bytes()) {
        *byte = value;
    }
    let txid = Txid::from_byte_array(txid);
    match lane {
        Lane::Signing => Some(BridgeEvent::SignatureResponse {
            response: SignatureResponse {
                request_id: format!("sample-{number}").parse().ok()?,
                txid,
                federation_version: 1,
                status: SignatureStatus::Pending,
                signatures: Vec::new(),
            },
            late: false,
        }),
        Lane::Pegin => Some(BridgeEvent::PeginAck(PeginAck {
            outpoint: OutPoint::new(txid, 0),
            status: PeginStatus::Recorded,
        })),
        Lane::Federation | Lane::Proposal => None,
    }
}

/// An update that nobody approved, or a proposal.
#[must_use]
pub fn sample_chain_event(lane: Lane, number: u64) -> Option<ChainEvent> {
    match lane {
        Lane::Federation => Some(ChainEvent::FederationUpdate(Box::new(update(number)?))),
        Lane::Proposal => Some(ChainEvent::Proposal(ProposalNotification {
            proposal_id: format!("sample-{number}").parse().ok()?,
            proposal_type: ProposalType::new("sample").ok()?,
            data: "{}".to_owned(),
            voting_deadline: UNIX_EPOCH.checked_add(Duration::from_secs(4_102_444_800))?,
        })),
        Lane::Signing | Lane::Pegin => None,
    }
}

fn update(number: u64) -> Option<FederationUpdate> {
    // The curve's generator: everyone knows its private key.
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let public_key: PublicKey = key.parse().ok()?;
    let previous_version = u32::try_from(number).ok()?;
    Some(FederationUpdate {
        version: previous_version.checked_add(1)?,
        previous_version,
        previous_config_hash: [0; 32],
        members: vec![FederationMember {
            id: "sample".parse().ok()?,
            public_key,
            active: true,
        }],
        threshold: 1,
        descriptor: format!("wsh(sortedmulti(1,{key}))"),
        address: String::new(),
        network: Network::Regtest,
        activation_height: 100,
        notice_blocks: 0,
        grace_blocks: 0,
        kind: FederationUpdateKind::Scheduled,
        approvals: Vec::new(),
    })
}
