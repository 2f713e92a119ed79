//! How a bridge's rows are written.

use bitcoin::{
    OutPoint, Transaction, Txid, consensus::encode, ecdsa, hashes::Hash as _, secp256k1,
};
use prost::Message as _;

use super::{
    pegout::{Pegout, PegoutFailure, PegoutStage},
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
    /// 1 + the stage's place in the enumeration.
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
    let (stage, failure) = match pegout.stage() {
        PegoutStage::Registered => (1, String::new()),
        PegoutStage::Requested => (2, String::new()),
        PegoutStage::Signed => (3, String::new()),
        PegoutStage::Broadcast => (4, String::new()),
        PegoutStage::Failed(failure) => (5, failure.to_string()),
    };
    let signatures = pegout.signatures().iter();
    StoredPegout {
        request: Some(pegout.request().into()),
        stage,
        failure,
        signatures: signatures
            .map(|((input_index, key), signature)| proto::PartialSignature {
                input_index: *input_index,
                public_key: key.serialize().to_vec().into(),
                signature: signature.to_vec().into(),
            })
            .collect(),
        transaction: pegout.transaction().map(encode::serialize),
        responses: pegout.responses() as u64,
    }
    .encode_to_vec()
}

pub(super) fn read_pegout(bytes: &[u8]) -> Result<Pegout, String> {
    let stored = StoredPegout::decode(bytes).map_err(text)?;
    let request = stored.request.ok_or("a peg-out without its request")?;
    let request = SignatureRequest::try_from(request).map_err(text)?;
    let stage = match stored.stage {
        1 => PegoutStage::Registered,
        2 => PegoutStage::Requested,
        3 => PegoutStage::Signed,
        4 => PegoutStage::Broadcast,
        5 => PegoutStage::Failed(PegoutFailure::Earlier(stored.failure)),
        other => return Err(format!("stage {other}")),
    };
    let mut signatures = Signatures::new();
    for partial in stored.signatures {
        let key = secp256k1::PublicKey::from_slice(&partial.public_key).map_err(text)?;
        let signature = ecdsa::Signature::from_slice(&partial.signature).map_err(text)?;
        signatures.insert((partial.input_index, key), signature);
    }
    let transaction = stored.transaction.as_deref().map(encode::deserialize);
    let transaction: Option<Transaction> = transaction.transpose().map_err(text)?;
    let responses = usize::try_from(stored.responses).map_err(text)?;
    Ok(Pegout::recorded(
        request,
        stage,
        signatures,
        transaction,
        responses,
    ))
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
