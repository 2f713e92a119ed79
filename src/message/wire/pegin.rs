//! Peg-in notices and their acknowledgements.

use bitcoin::hashes::Hash;

use super::{amount, fixed, for_people, outpoint, unspecified};
use crate::{
    message::{EvmAddress, InvalidMessage, PeginAck, PeginNotification, PeginStatus},
    proto,
};

impl From<&PeginNotification> for proto::PeginNotification {
    fn from(notification: &PeginNotification) -> Self {
        let outpoint = notification.outpoint();
        Self {
            txid: outpoint.txid.to_byte_array().to_vec().into(),
            vout: outpoint.vout,
            amount_sat: notification.amount().to_sat(),
            evm_address: notification.evm_address().to_bytes().to_vec().into(),
        }
    }
}

impl TryFrom<proto::PeginNotification> for PeginNotification {
    type Error = InvalidMessage;

    fn try_from(wire: proto::PeginNotification) -> Result<Self, InvalidMessage> {
        Self::new(
            outpoint(&wire.txid, wire.vout)?,
            amount("amount_sat", wire.amount_sat)?,
            EvmAddress::from_bytes(fixed("evm_address", &wire.evm_address)?),
        )
    }
}

impl From<&PeginAck> for proto::PeginAck {
    fn from(ack: &PeginAck) -> Self {
        let (status, reason) = match &ack.status {
            PeginStatus::Recorded => (proto::PeginStatus::Recorded, String::new()),
            PeginStatus::Refused { reason } => (proto::PeginStatus::Refused, reason.clone()),
        };
        Self {
            txid: ack.outpoint.txid.to_byte_array().to_vec().into(),
            vout: ack.outpoint.vout,
            status: status.into(),
            reason,
        }
    }
}

impl TryFrom<proto::PeginAck> for PeginAck {
    type Error = InvalidMessage;

    fn try_from(wire: proto::PeginAck) -> Result<Self, InvalidMessage> {
        let status = match wire.status() {
            proto::PeginStatus::Recorded => PeginStatus::Recorded,
            proto::PeginStatus::Refused => PeginStatus::Refused {
                reason: for_people(wire.reason, 1024),
            },
            proto::PeginStatus::Unspecified => return Err(unspecified("status", wire.status)),
        };
        Ok(Self {
            outpoint: outpoint(&wire.txid, wire.vout)?,
            status,
        })
    }
}
