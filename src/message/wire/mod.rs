//! Conversions between domain types and the wire. Whatever comes from the wire is checked against
//! the bounds that the proto's comments state; what does not fit is an [`InvalidMessage`] that
//! names field, value and bound.

mod bounds;
mod federation;
mod pegin;
mod proposal;
mod recalled;
mod signature;

use std::str::FromStr;

use bitcoin::{Amount, Network, OutPoint, Txid, hashes::Hash, secp256k1};
use prost::{Message, bytes::Bytes};

use super::{
    Inbound, InvalidMessage, Lane, MAX_INPUTS, MessageId, NodeStatus, Outbound, Reject, RequestId,
};
use crate::proto::{self, Kind};

pub(crate) use bounds::{check_fields, embedded};

pub(crate) use signature::{failure_code_from_wire, tx_type_from_wire};

/// Fields in one payload: a signature of each of fifteen members for each input is the most there
/// can be.
const MAX_PAYLOAD_FIELDS: usize = 16 * MAX_INPUTS;

/// A message for governance: what it is, and its encoding.
#[must_use]
pub fn encode(message: &Outbound) -> (Kind, Bytes) {
    fn bytes(message: &impl Message) -> Bytes {
        message.encode_to_vec().into()
    }
    match message {
        Outbound::SignatureRequest(request) => (
            Kind::SignatureRequest,
            bytes(&proto::SignatureRequest::from(request.as_ref())),
        ),
        Outbound::CancelRequest(cancel) => (
            Kind::CancelRequest,
            bytes(&proto::CancelRequest::from(cancel)),
        ),
        Outbound::FederationUpdateAck(ack) => (
            Kind::FederationUpdateAck,
            bytes(&proto::FederationUpdateAck::from(ack)),
        ),
        Outbound::PeginNotification(notification) => (
            Kind::PeginNotification,
            bytes(&proto::PeginNotification::from(notification)),
        ),
        Outbound::ProposalAck(ack) => (Kind::ProposalAck, bytes(&proto::ProposalAck::from(ack))),
        Outbound::Reject(_, reject) => (Kind::Reject, bytes(&proto::Reject::from(reject))),
        Outbound::Withdrawn(_, message_id) => (
            Kind::Withdrawn,
            bytes(&proto::Withdrawn {
                message_id: message_id.to_bytes().to_vec().into(),
            }),
        ),
    }
}

/// A message of governance.
///
/// # Errors
///
/// When the kind is unknown or not of this lane, the bytes are no such message, or a field is out
/// of its bounds.
pub fn decode(lane: Lane, kind: i32, payload: &[u8]) -> Result<Inbound, InvalidMessage> {
    check_fields(payload, MAX_PAYLOAD_FIELDS).map_err(|invalid| invalid.within("payload"))?;
    match (lane, Kind::try_from(kind)) {
        (Lane::Signing, Ok(Kind::SignatureResponse)) => parse::<proto::SignatureResponse>(payload)?
            .try_into()
            .map(Inbound::SignatureResponse),
        (Lane::Federation, Ok(Kind::FederationUpdate)) => {
            parse::<proto::FederationUpdate>(payload)?
                .try_into()
                .map(|update| Inbound::FederationUpdate(Box::new(update)))
        }
        (Lane::Pegin, Ok(Kind::PeginAck)) => parse::<proto::PeginAck>(payload)?
            .try_into()
            .map(Inbound::PeginAck),
        (Lane::Proposal, Ok(Kind::ProposalNotification)) => {
            parse::<proto::ProposalNotification>(payload)?
                .try_into()
                .map(Inbound::ProposalNotification)
        }
        (_, Ok(kind)) => Err(InvalidMessage::new(
            "kind",
            kind.as_str_name(),
            format!("one of lane {lane}"),
        )),
        (_, Err(_)) => Err(InvalidMessage::new("kind", kind, "a kind of this protocol")),
    }
}

/// The request that a response claims to be for, if that much can be read of it.
#[must_use]
pub fn request_id_of(kind: i32, payload: &[u8]) -> Option<RequestId> {
    /// Only the first field: the rest may be what is wrong.
    #[derive(Clone, PartialEq, Message)]
    struct Head {
        #[prost(string, tag = "1")]
        request_id: String,
    }
    if Kind::try_from(kind) != Ok(Kind::SignatureResponse) {
        return None;
    }
    Head::decode(payload)
        .ok()
        .and_then(|head| RequestId::new(head.request_id).ok())
}

fn parse<M: Message + Default>(payload: &[u8]) -> Result<M, InvalidMessage> {
    M::decode(payload)
        .map_err(|error| InvalidMessage::new("payload", error, "an encoded message of its kind"))
}

impl From<Lane> for proto::Lane {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Signing => Self::Signing,
            Lane::Federation => Self::Federation,
            Lane::Pegin => Self::Pegin,
            Lane::Proposal => Self::Proposal,
        }
    }
}

/// The lane that a number on the wire stands for.
///
/// # Errors
///
/// When it stands for none.
pub fn lane_from_wire(lane: i32) -> Result<Lane, InvalidMessage> {
    match proto::Lane::try_from(lane) {
        Ok(proto::Lane::Signing) => Ok(Lane::Signing),
        Ok(proto::Lane::Federation) => Ok(Lane::Federation),
        Ok(proto::Lane::Pegin) => Ok(Lane::Pegin),
        Ok(proto::Lane::Proposal) => Ok(Lane::Proposal),
        Ok(proto::Lane::Unspecified) | Err(_) => Err(InvalidMessage::new(
            "lane",
            lane,
            "1 (signing) to 4 (proposal)",
        )),
    }
}

/// The wire's name of a Bitcoin network.
#[must_use]
pub fn network_to_wire(network: Network) -> proto::BitcoinNetwork {
    match network {
        Network::Bitcoin => proto::BitcoinNetwork::Mainnet,
        Network::Testnet => proto::BitcoinNetwork::Testnet,
        Network::Testnet4 => proto::BitcoinNetwork::Testnet4,
        Network::Signet => proto::BitcoinNetwork::Signet,
        Network::Regtest => proto::BitcoinNetwork::Regtest,
    }
}

/// The Bitcoin network that a number on the wire stands for.
///
/// # Errors
///
/// When it stands for none.
pub fn network_from_wire(network: i32) -> Result<Network, InvalidMessage> {
    match proto::BitcoinNetwork::try_from(network) {
        Ok(proto::BitcoinNetwork::Mainnet) => Ok(Network::Bitcoin),
        Ok(proto::BitcoinNetwork::Testnet) => Ok(Network::Testnet),
        Ok(proto::BitcoinNetwork::Testnet4) => Ok(Network::Testnet4),
        Ok(proto::BitcoinNetwork::Signet) => Ok(Network::Signet),
        Ok(proto::BitcoinNetwork::Regtest) => Ok(Network::Regtest),
        Ok(proto::BitcoinNetwork::Unspecified) | Err(_) => {
            Err(InvalidMessage::new("network", network, "a Bitcoin network"))
        }
    }
}

impl From<&NodeStatus> for proto::StatusUpdate {
    fn from(status: &NodeStatus) -> Self {
        Self {
            chain_height: status.chain_height,
            bitcoin_height: status.bitcoin_height,
            synced: status.synced,
            peers: status.peers,
            detail: for_people(status.detail.clone(), 256),
        }
    }
}

impl From<&Reject> for proto::Reject {
    fn from(reject: &Reject) -> Self {
        Self {
            sequence: reject.sequence,
            request_id: reject
                .request_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            reason: for_people(reject.reason.clone(), 1024),
        }
    }
}

impl TryFrom<proto::Reject> for Reject {
    type Error = InvalidMessage;

    fn try_from(wire: proto::Reject) -> Result<Self, InvalidMessage> {
        if wire.sequence == 0 {
            return Err(InvalidMessage::new("sequence", 0, "at least 1"));
        }
        Ok(Self {
            sequence: wire.sequence,
            request_id: optional(wire.request_id)?,
            reason: for_people(wire.reason, 1024),
        })
    }
}

impl TryFrom<proto::Withdrawn> for MessageId {
    type Error = InvalidMessage;

    fn try_from(wire: proto::Withdrawn) -> Result<Self, InvalidMessage> {
        Self::from_slice(&wire.message_id)
    }
}

/// Text that only people read is cut to its bound, never refused.
pub(crate) fn for_people(text: String, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
        None => text,
    }
}

/// An id that may be empty.
fn optional<T: FromStr>(text: String) -> Result<Option<T>, T::Err> {
    if text.is_empty() {
        Ok(None)
    } else {
        text.parse().map(Some)
    }
}

fn fixed<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], InvalidMessage> {
    bytes.try_into().map_err(|_| {
        InvalidMessage::new(
            field,
            format_args!("{} bytes", bytes.len()),
            format!("{N} bytes"),
        )
    })
}

fn txid(bytes: &[u8]) -> Result<Txid, InvalidMessage> {
    fixed("txid", bytes).map(Txid::from_byte_array)
}

fn outpoint(txid_bytes: &[u8], vout: u32) -> Result<OutPoint, InvalidMessage> {
    Ok(OutPoint {
        txid: txid(txid_bytes)?,
        vout,
    })
}

fn amount(field: &str, sat: u64) -> Result<Amount, InvalidMessage> {
    let amount = Amount::from_sat(sat);
    if amount > Amount::MAX_MONEY {
        return Err(InvalidMessage::new(
            field,
            sat,
            format!("at most {} (21 million BTC)", Amount::MAX_MONEY.to_sat()),
        ));
    }
    Ok(amount)
}

fn public_key(bytes: &[u8]) -> Result<secp256k1::PublicKey, InvalidMessage> {
    let compressed: [u8; 33] = fixed("public_key", bytes)?;
    secp256k1::PublicKey::from_slice(&compressed).map_err(|_| {
        InvalidMessage::new(
            "public_key",
            "not on the curve",
            "a compressed secp256k1 point",
        )
    })
}

fn at_most<T>(field: &str, items: &[T], most: usize) -> Result<(), InvalidMessage> {
    if items.len() > most {
        return Err(InvalidMessage::new(
            field,
            format_args!("{} of them", items.len()),
            format!("at most {most}"),
        ));
    }
    Ok(())
}

fn at_least_one(field: &str, value: u32) -> Result<u32, InvalidMessage> {
    if value == 0 {
        Err(InvalidMessage::new(field, 0, "at least 1"))
    } else {
        Ok(value)
    }
}

fn unspecified(field: &str, value: i32) -> InvalidMessage {
    InvalidMessage::new(field, value, "a value of this protocol")
}
