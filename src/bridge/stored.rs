//! How a bridge's rows are written: protobuf messages. Fields are added, never renumbered.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bitcoin::{
    Amount, BlockHash, OutPoint, Transaction, Txid, consensus::encode, ecdsa, hashes::Hash as _,
    secp256k1,
};
use prost::Message as _;

use super::{
    life::{PegoutFailure, PegoutStage, Place},
    pegout::{Named, Pegout, Recorded, Signing},
    signatures::{FinaliseError, Signatures},
};
use crate::{
    message::{
        InvalidMessage, MessageId, OccurrenceId, Outcome, PeginStatus, PegoutBinding,
        SignatureRequest, wire,
    },
    proto,
};

/// One result of governance that was handled: the message that brought it first, how often it came,
/// and why it was rejected if it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HandledDelivery {
    pub occurrence_id: OccurrenceId,
    pub sequence: u64,
    pub message_id: MessageId,
    pub times: u64,
    pub rejected: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPegout {
    /// While something can come of it; then `named` instead.
    #[prost(message, optional, tag = "1")]
    request: Option<proto::SignatureRequest>,
    #[prost(message, optional, tag = "2")]
    named: Option<StoredNamed>,
    /// See `set_stage`.
    #[prost(uint32, tag = "3")]
    stage: u32,
    #[prost(message, optional, tag = "4")]
    failure: Option<StoredFailure>,
    #[prost(message, repeated, tag = "5")]
    signatures: Vec<proto::PartialSignature>,
    #[prost(bytes = "vec", optional, tag = "6")]
    transaction: Option<Vec<u8>>,
    #[prost(uint64, tag = "7")]
    responses: u64,
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
    #[prost(uint64, tag = "15")]
    begun_unix_ms: u64,
    #[prost(uint64, tag = "16")]
    since_unix_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredNamed {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(bytes = "vec", tag = "2")]
    payload_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    txid: Vec<u8>,
    #[prost(uint32, tag = "4")]
    federation_version: u32,
    #[prost(message, repeated, tag = "5")]
    burns: Vec<proto::PegoutBinding>,
    #[prost(message, repeated, tag = "6")]
    coins: Vec<StoredCoin>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCoin {
    #[prost(bytes = "vec", tag = "1")]
    txid: Vec<u8>,
    #[prost(uint32, tag = "2")]
    vout: u32,
    #[prost(uint64, tag = "3")]
    amount_sat: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredFailure {
    /// See `write_failure`.
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    reason: String,
    /// See `write_outcome`; of a request that was not signed.
    #[prost(uint32, tag = "3")]
    outcome: u32,
    /// `proto::FailureCode`.
    #[prost(int32, optional, tag = "4")]
    code: Option<i32>,
    #[prost(bool, tag = "5")]
    signatures_released: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPegin {
    #[prost(string, optional, tag = "1")]
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
    #[prost(bytes = "vec", tag = "4")]
    occurrence_id: Vec<u8>,
    #[prost(uint64, tag = "5")]
    sequence: u64,
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn time(unix_ms: u64) -> Result<SystemTime, String> {
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    time.ok_or_else(|| format!("a time that cannot be: {unix_ms}"))
}

impl StoredPegout {
    fn set_stage(&mut self, stage: &PegoutStage) {
        self.stage = match stage {
            PegoutStage::Requested => 1,
            PegoutStage::SignaturesRequested => 2,
            PegoutStage::Signed => 3,
            PegoutStage::Broadcast { .. } => 4,
            PegoutStage::Failed(failure) => {
                self.failure = Some(write_failure(failure));
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
            5 => {
                let failure = self
                    .failure
                    .as_ref()
                    .ok_or("a failure without its reason")?;
                PegoutStage::Failed(read_failure(failure)?)
            }
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

    fn set_signing(&mut self, signing: &Signing) {
        self.request = Some((&*signing.request).into());
        let signatures = signing.signatures.iter();
        self.signatures = signatures
            .map(|((input_index, key), signature)| proto::PartialSignature {
                input_index: *input_index,
                public_key: key.serialize().to_vec().into(),
                signature: signature.to_vec().into(),
            })
            .collect();
        self.transaction = signing.transaction.as_ref().map(encode::serialize);
    }

    fn signing(&mut self, request: proto::SignatureRequest) -> Result<Signing, String> {
        let mut signatures = Signatures::new();
        for partial in &self.signatures {
            let key = secp256k1::PublicKey::from_slice(&partial.public_key).map_err(text)?;
            let signature = ecdsa::Signature::from_slice(&partial.signature).map_err(text)?;
            signatures.insert((partial.input_index, key), signature);
        }
        let transaction = self.transaction.as_deref().map(encode::deserialize);
        let transaction: Option<Transaction> = transaction.transpose().map_err(text)?;
        Ok(Signing {
            request: Arc::new(SignatureRequest::try_from(request).map_err(text)?),
            signatures,
            transaction,
        })
    }
}

fn write_named(named: &Named) -> StoredNamed {
    let coins = named.coins.iter().map(|(outpoint, amount)| StoredCoin {
        txid: outpoint.txid.to_byte_array().to_vec(),
        vout: outpoint.vout,
        amount_sat: amount.to_sat(),
    });
    StoredNamed {
        request_id: named.request_id.to_string(),
        payload_hash: named.payload_hash.to_vec(),
        txid: named.txid.to_byte_array().to_vec(),
        federation_version: named.federation_version,
        burns: named.burns.iter().map(Into::into).collect(),
        coins: coins.collect(),
    }
}

fn read_named(stored: StoredNamed) -> Result<Named, String> {
    let burns = stored.burns.into_iter().map(PegoutBinding::try_from);
    let burns: Result<_, InvalidMessage> = burns.collect();
    let coins = stored.coins.iter().map(|coin| {
        let txid = Txid::from_slice(&coin.txid).map_err(text)?;
        Ok::<_, String>((
            OutPoint::new(txid, coin.vout),
            Amount::from_sat(coin.amount_sat),
        ))
    });
    Ok(Named {
        request_id: stored.request_id.parse().map_err(text)?,
        payload_hash: <[u8; 32]>::try_from(stored.payload_hash.as_slice()).map_err(text)?,
        txid: Txid::from_slice(&stored.txid).map_err(text)?,
        federation_version: stored.federation_version,
        burns: burns.map_err(text)?,
        coins: coins.collect::<Result<_, _>>()?,
    })
}

fn write_failure(failure: &PegoutFailure) -> StoredFailure {
    let mut stored = StoredFailure::default();
    let (kind, reason) = match failure {
        PegoutFailure::NotAccepted(reason) => (1, reason.clone()),
        PegoutFailure::NotSigned(outcome) => {
            let reason = write_outcome(&mut stored, outcome);
            (2, reason)
        }
        PegoutFailure::Short => (3, String::new()),
        PegoutFailure::Unusable(FinaliseError::Unsatisfied(reason)) => (4, reason.clone()),
        PegoutFailure::Unusable(FinaliseError::Consensus(reason)) => (5, reason.clone()),
        PegoutFailure::Refused(reason) => (6, reason.clone()),
    };
    StoredFailure {
        kind,
        reason,
        ..stored
    }
}

fn read_failure(stored: &StoredFailure) -> Result<PegoutFailure, String> {
    let reason = || stored.reason.clone();
    Ok(match stored.kind {
        1 => PegoutFailure::NotAccepted(reason()),
        2 => PegoutFailure::NotSigned(read_outcome(stored)?),
        3 => PegoutFailure::Short,
        4 => PegoutFailure::Unusable(FinaliseError::Unsatisfied(reason())),
        5 => PegoutFailure::Unusable(FinaliseError::Consensus(reason())),
        6 => PegoutFailure::Refused(reason()),
        other => return Err(format!("failure {other}")),
    })
}

/// Returns its reason.
fn write_outcome(stored: &mut StoredFailure, outcome: &Outcome) -> String {
    let (kind, reason) = match outcome {
        Outcome::Complete => (1, ""),
        Outcome::Failed { code, reason } => {
            stored.code = code.map(|code| proto::FailureCode::from(code).into());
            (2, reason.as_str())
        }
        Outcome::Rejected { reason } => (3, reason.as_str()),
        Outcome::Cancelled {
            signatures_released,
        } => {
            stored.signatures_released = *signatures_released;
            (4, "")
        }
        Outcome::ExpiredUnsent => (5, ""),
    };
    stored.outcome = kind;
    reason.to_owned()
}

fn read_outcome(stored: &StoredFailure) -> Result<Outcome, String> {
    let reason = stored.reason.clone();
    Ok(match stored.outcome {
        1 => Outcome::Complete,
        2 => Outcome::Failed {
            code: stored
                .code
                .map(wire::failure_code_from_wire)
                .transpose()
                .map_err(text)?,
            reason,
        },
        3 => Outcome::Rejected { reason },
        4 => Outcome::Cancelled {
            signatures_released: stored.signatures_released,
        },
        5 => Outcome::ExpiredUnsent,
        other => return Err(format!("outcome {other}")),
    })
}

/// Whole while something can come of it, then without request and signatures.
pub(super) fn write_pegout(pegout: &Pegout) -> Vec<u8> {
    let mut stored = StoredPegout {
        responses: pegout.responses() as u64,
        reported: pegout.is_reported(),
        begun_unix_ms: unix_ms(pegout.begun_at()),
        since_unix_ms: unix_ms(pegout.since()),
        ..StoredPegout::default()
    };
    match pegout.signing() {
        Some(signing) => stored.set_signing(signing),
        None => stored.named = Some(write_named(pegout.named())),
    }
    stored.set_stage(pegout.stage());
    stored.encode_to_vec()
}

pub(super) fn read_pegout(bytes: &[u8]) -> Result<Pegout, String> {
    let mut stored = StoredPegout::decode(bytes).map_err(text)?;
    let (named, signing) = match (stored.request.take(), stored.named.take()) {
        (Some(request), _) => {
            let signing = stored.signing(request)?;
            (Named::from(&*signing.request), Some(signing))
        }
        (None, Some(named)) => (read_named(named)?, None),
        (None, None) => return Err("a peg-out without its request".to_owned()),
    };
    let stage = stored.stage(named.txid)?;
    Ok(Pegout::recorded(Recorded {
        named,
        signing,
        stage,
        responses: usize::try_from(stored.responses).map_err(text)?,
        reported: stored.reported,
        begun_at: time(stored.begun_unix_ms)?,
        since: time(stored.since_unix_ms)?,
    }))
}

pub(super) fn write_pegin(status: &PeginStatus) -> Vec<u8> {
    let refused = match status {
        PeginStatus::Recorded => None,
        PeginStatus::Refused { reason } => Some(reason.clone()),
    };
    StoredPegin { refused }.encode_to_vec()
}

pub(super) fn read_pegin(bytes: &[u8]) -> Result<PeginStatus, String> {
    let stored = StoredPegin::decode(bytes).map_err(text)?;
    Ok(match stored.refused {
        None => PeginStatus::Recorded,
        Some(reason) => PeginStatus::Refused { reason },
    })
}

pub(super) fn write_delivery(delivery: &HandledDelivery) -> Vec<u8> {
    StoredDelivery {
        message_id: delivery.message_id.to_bytes().to_vec(),
        times: delivery.times,
        rejected: delivery.rejected.clone(),
        occurrence_id: delivery.occurrence_id.to_bytes().to_vec(),
        sequence: delivery.sequence,
    }
    .encode_to_vec()
}

pub(super) fn read_delivery(bytes: &[u8]) -> Result<HandledDelivery, String> {
    let stored = StoredDelivery::decode(bytes).map_err(text)?;
    Ok(HandledDelivery {
        occurrence_id: OccurrenceId::from_slice(&stored.occurrence_id).map_err(text)?,
        sequence: stored.sequence,
        message_id: MessageId::from_slice(&stored.message_id).map_err(text)?,
        times: stored.times,
        rejected: stored.rejected,
    })
}
