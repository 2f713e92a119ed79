//! How a bridge's rows are written.

use bitcoin::{
    BlockHash, OutPoint, Transaction, Txid, consensus::encode, ecdsa, hashes::Hash as _, secp256k1,
};
use prost::Message as _;

use super::{
    life::{PegoutFailure, PegoutStage, Place},
    pegout::{Pegout, Recorded},
    signatures::Signatures,
};
use crate::{
    message::{MessageId, PeginStatus, SignatureRequest},
    proto,
};

/// One delivery that was handled: its message, how often it came, and why it was rejected if it
/// was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandledDelivery {
    pub message_id: MessageId,
    pub times: u64,
    pub rejected: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPegout {
    #[prost(message, optional, tag = "1")]
    request: Option<proto::SignatureRequest>,
    /// See `set_stage`.
    #[prost(uint32, tag = "2")]
    stage: u32,
    #[prost(string, tag = "3")]
    failure: String,
    #[prost(message, repeated, tag = "4")]
    signatures: Vec<proto::PartialSignature>,
    #[prost(bytes = "vec", optional, tag = "5")]
    transaction: Option<Vec<u8>>,
    #[prost(uint64, tag = "6")]
    responses: u64,
    #[prost(bool, tag = "7")]
    revivable: bool,
    #[prost(uint32, tag = "8")]
    collected: u32,
    #[prost(uint32, tag = "9")]
    required: u32,
    #[prost(bytes = "vec", tag = "10")]
    block: Vec<u8>,
    #[prost(uint32, tag = "11")]
    height: u32,
    #[prost(uint32, tag = "12")]
    confirmations: u32,
    #[prost(string, tag = "13")]
    superseded_by: String,
    #[prost(bool, tag = "14")]
    reported: bool,
}

impl StoredPegout {
    fn set_stage(&mut self, stage: &PegoutStage) {
        self.stage = match stage {
            PegoutStage::Requested => 1,
            PegoutStage::SignaturesRequested => 2,
            PegoutStage::Signed => 3,
            PegoutStage::Broadcast { .. } => 4,
            PegoutStage::Failed(failure) => {
                self.failure = failure.to_string();
                self.revivable = failure.is_revivable();
                5
            }
            PegoutStage::Partial {
                collected,
                required,
            } => {
                (self.collected, self.required) = (*collected, *required);
                6
            }
            PegoutStage::Confirmed {
                confirmations,
                place,
            } => {
                self.confirmations = *confirmations;
                self.set_place(place);
                7
            }
            PegoutStage::Completed { place } => {
                self.set_place(place);
                8
            }
            PegoutStage::Superseded { by } => {
                self.superseded_by = by.to_string();
                9
            }
            PegoutStage::Cancelling => 10,
            PegoutStage::Cancelled => 11,
        };
    }

    fn set_place(&mut self, place: &Place) {
        self.block = place.block.to_byte_array().to_vec();
        self.height = place.height;
    }

    fn stage(&self, txid: Txid) -> Result<PegoutStage, String> {
        let place = || {
            let block = BlockHash::from_slice(&self.block).map_err(text)?;
            let height = self.height;
            Ok::<_, String>(Place { block, height })
        };
        Ok(match self.stage {
            1 => PegoutStage::Requested,
            2 => PegoutStage::SignaturesRequested,
            3 => PegoutStage::Signed,
            4 => PegoutStage::Broadcast { txid },
            5 => PegoutStage::Failed(PegoutFailure::Earlier {
                reason: self.failure.clone(),
                revivable: self.revivable,
            }),
            6 => PegoutStage::Partial {
                collected: self.collected,
                required: self.required,
            },
            7 => PegoutStage::Confirmed {
                confirmations: self.confirmations,
                place: place()?,
            },
            8 => PegoutStage::Completed { place: place()? },
            9 => PegoutStage::Superseded {
                by: self.superseded_by.parse().map_err(text)?,
            },
            10 => PegoutStage::Cancelling,
            11 => PegoutStage::Cancelled,
            other => return Err(format!("stage {other}")),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPegin {
    #[prost(bytes = "vec", tag = "1")]
    txid: Vec<u8>,
    #[prost(uint32, tag = "2")]
    vout: u32,
    #[prost(string, optional, tag = "3")]
    refused: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredDelivery {
    #[prost(bytes = "vec", tag = "1")]
    message_id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    times: u64,
    #[prost(string, optional, tag = "3")]
    rejected: Option<String>,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

pub(super) fn write_pegout(pegout: &Pegout) -> Vec<u8> {
    let signatures = pegout.signatures().iter();
    let mut stored = StoredPegout {
        request: Some(pegout.request().into()),
        signatures: signatures
            .map(|((input_index, key), signature)| proto::PartialSignature {
                input_index: *input_index,
                public_key: key.serialize().to_vec().into(),
                signature: signature.to_vec().into(),
            })
            .collect(),
        transaction: pegout.transaction().map(encode::serialize),
        responses: pegout.responses() as u64,
        reported: pegout.is_reported(),
        ..StoredPegout::default()
    };
    stored.set_stage(pegout.stage());
    stored.encode_to_vec()
}

pub(super) fn read_pegout(bytes: &[u8]) -> Result<Pegout, String> {
    let mut stored = StoredPegout::decode(bytes).map_err(text)?;
    let request = stored
        .request
        .take()
        .ok_or("a peg-out without its request")?;
    let request = SignatureRequest::try_from(request).map_err(text)?;
    let stage = stored.stage(request.txid())?;
    let mut signatures = Signatures::new();
    for partial in stored.signatures {
        let key = secp256k1::PublicKey::from_slice(&partial.public_key).map_err(text)?;
        let signature = ecdsa::Signature::from_slice(&partial.signature).map_err(text)?;
        signatures.insert((partial.input_index, key), signature);
    }
    let transaction = stored.transaction.as_deref().map(encode::deserialize);
    let transaction: Option<Transaction> = transaction.transpose().map_err(text)?;
    Ok(Pegout::recorded(Recorded {
        request,
        stage,
        signatures,
        transaction,
        responses: usize::try_from(stored.responses).map_err(text)?,
        reported: stored.reported,
    }))
}

pub(super) fn write_pegin(outpoint: &OutPoint, status: &PeginStatus) -> Vec<u8> {
    let refused = match status {
        PeginStatus::Recorded => None,
        PeginStatus::Refused { reason } => Some(reason.clone()),
    };
    StoredPegin {
        txid: outpoint.txid.to_byte_array().to_vec(),
        vout: outpoint.vout,
        refused,
    }
    .encode_to_vec()
}

pub(super) fn read_pegin(bytes: &[u8]) -> Result<(OutPoint, PeginStatus), String> {
    let stored = StoredPegin::decode(bytes).map_err(text)?;
    let txid = Txid::from_slice(&stored.txid).map_err(text)?;
    let status = match stored.refused {
        None => PeginStatus::Recorded,
        Some(reason) => PeginStatus::Refused { reason },
    };
    Ok((OutPoint::new(txid, stored.vout), status))
}

pub(super) fn write_delivery(delivery: &HandledDelivery) -> Vec<u8> {
    StoredDelivery {
        message_id: delivery.message_id.to_bytes().to_vec(),
        times: delivery.times,
        rejected: delivery.rejected.clone(),
    }
    .encode_to_vec()
}

pub(super) fn read_delivery(bytes: &[u8]) -> Result<HandledDelivery, String> {
    let stored = StoredDelivery::decode(bytes).map_err(text)?;
    Ok(HandledDelivery {
        message_id: MessageId::from_slice(&stored.message_id).map_err(text)?,
        times: stored.times,
        rejected: stored.rejected,
    })
}
