//! Signature requests, cancels and responses.

use std::collections::BTreeMap;

use bitcoin::{Psbt, ScriptBuf, hashes::Hash};

use super::{
    amount, at_least_one, at_most, fixed, for_people, network_from_wire, network_to_wire, optional,
    public_key, txid, unspecified,
};
use crate::{
    message::{
        CancelReason, CancelRequest, ChainId, FailureCode, InvalidMessage, MAX_INPUTS,
        MAX_PSBT_BYTES, MAX_SCRIPT_BYTES, PartialSignature, PegoutBinding, RequestId,
        SignatureRequest, SignatureRequestParts, SignatureResponse, SignatureStatus,
        TransactionType,
    },
    proto,
};

/// Most signatures for one input: consensus allows no more keys in a multisig.
const MAX_SIGNATURES_PER_INPUT: usize = 20;

impl From<&SignatureRequest> for proto::SignatureRequest {
    fn from(request: &SignatureRequest) -> Self {
        Self {
            request_id: request.request_id().to_string(),
            payload_hash: request.payload_hash().to_vec().into(),
            psbt: request.psbt().serialize().into(),
            input_indices: request.input_indices().to_vec(),
            tx_type: proto::TxType::from(request.tx_type()).into(),
            chain: request.chain().to_string(),
            network: network_to_wire(request.network()).into(),
            federation_version: request.federation_version(),
            burns: request.burns().iter().map(Into::into).collect(),
            max_fee_sat: request.max_fee().to_sat(),
            replaces_request_id: request
                .replaces()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::SignatureRequest> for SignatureRequest {
    type Error = InvalidMessage;

    fn try_from(wire: proto::SignatureRequest) -> Result<Self, InvalidMessage> {
        at_most("psbt", &wire.psbt, MAX_PSBT_BYTES)?;
        at_most("input_indices", &wire.input_indices, MAX_INPUTS)?;
        at_most("burns", &wire.burns, MAX_INPUTS)?;
        let tx_type = tx_type_from_wire(wire.tx_type)?;
        let psbt = Psbt::deserialize(&wire.psbt)
            .map_err(|error| InvalidMessage::new("psbt", error, "a PSBT (BIP-174, version 0)"))?;
        let burns = wire.burns.into_iter().enumerate().map(|(index, burn)| {
            PegoutBinding::try_from(burn)
                .map_err(|invalid| invalid.within(format_args!("burns[{index}]")))
        });
        let request = Self::new(SignatureRequestParts {
            request_id: RequestId::new(wire.request_id)?,
            psbt,
            input_indices: wire.input_indices,
            tx_type,
            chain: ChainId::new(wire.chain)?,
            network: network_from_wire(wire.network)?,
            federation_version: wire.federation_version,
            burns: burns.collect::<Result<_, _>>()?,
            max_fee: amount("max_fee_sat", wire.max_fee_sat)?,
            replaces: optional(wire.replaces_request_id)?,
        })?;
        let claimed: [u8; 32] = fixed("payload_hash", &wire.payload_hash)?;
        if claimed != request.payload_hash() {
            return Err(InvalidMessage::new(
                "payload_hash",
                "another",
                "the hash of this request",
            ));
        }
        Ok(request)
    }
}

impl From<TransactionType> for proto::TxType {
    fn from(tx_type: TransactionType) -> Self {
        match tx_type {
            TransactionType::Pegout => Self::Pegout,
            TransactionType::FederationChange => Self::FederationChange,
            TransactionType::Emergency => Self::Emergency,
        }
    }
}

/// The transaction type that a number on the wire stands for.
pub(crate) fn tx_type_from_wire(tx_type: i32) -> Result<TransactionType, InvalidMessage> {
    match proto::TxType::try_from(tx_type) {
        Ok(proto::TxType::Pegout) => Ok(TransactionType::Pegout),
        Ok(proto::TxType::FederationChange) => Ok(TransactionType::FederationChange),
        Ok(proto::TxType::Emergency) => Ok(TransactionType::Emergency),
        Ok(proto::TxType::Unspecified) | Err(_) => Err(unspecified("tx_type", tx_type)),
    }
}

impl From<&PegoutBinding> for proto::PegoutBinding {
    fn from(burn: &PegoutBinding) -> Self {
        Self {
            burn_tx_hash: burn.burn_tx_hash.to_vec().into(),
            log_index: burn.log_index,
            block_hash: burn.block_hash.to_vec().into(),
            block_height: burn.block_height,
            output_index: burn.output_index,
            amount_sat: burn.amount.to_sat(),
            script_pubkey: burn.script_pubkey.to_bytes().into(),
        }
    }
}

impl TryFrom<proto::PegoutBinding> for PegoutBinding {
    type Error = InvalidMessage;

    fn try_from(wire: proto::PegoutBinding) -> Result<Self, InvalidMessage> {
        at_most("script_pubkey", &wire.script_pubkey, MAX_SCRIPT_BYTES)?;
        Ok(Self {
            burn_tx_hash: fixed("burn_tx_hash", &wire.burn_tx_hash)?,
            log_index: wire.log_index,
            block_hash: fixed("block_hash", &wire.block_hash)?,
            block_height: wire.block_height,
            output_index: wire.output_index,
            amount: amount("amount_sat", wire.amount_sat)?,
            script_pubkey: ScriptBuf::from_bytes(wire.script_pubkey.into()),
        })
    }
}

impl From<&CancelRequest> for proto::CancelRequest {
    fn from(cancel: &CancelRequest) -> Self {
        Self {
            request_id: cancel.request_id.to_string(),
            reason: match cancel.reason {
                CancelReason::Caller => proto::CancelReason::Caller,
                CancelReason::Deadline => proto::CancelReason::Deadline,
            }
            .into(),
        }
    }
}

impl TryFrom<proto::CancelRequest> for CancelRequest {
    type Error = InvalidMessage;

    fn try_from(wire: proto::CancelRequest) -> Result<Self, InvalidMessage> {
        let reason = match wire.reason() {
            proto::CancelReason::Caller => CancelReason::Caller,
            proto::CancelReason::Deadline => CancelReason::Deadline,
            proto::CancelReason::Unspecified => return Err(unspecified("reason", wire.reason)),
        };
        Ok(Self {
            request_id: RequestId::new(wire.request_id)?,
            reason,
        })
    }
}

impl From<&SignatureResponse> for proto::SignatureResponse {
    fn from(response: &SignatureResponse) -> Self {
        let mut wire = Self {
            request_id: response.request_id.to_string(),
            txid: response.txid.to_byte_array().to_vec().into(),
            federation_version: response.federation_version,
            partial_signatures: response.signatures.iter().map(Into::into).collect(),
            ..Self::default()
        };
        match &response.status {
            SignatureStatus::Pending => wire.set_status(proto::SignatureStatus::Pending),
            SignatureStatus::InProgress {
                collected,
                required,
            } => {
                wire.set_status(proto::SignatureStatus::InProgress);
                (wire.collected, wire.required) = (*collected, *required);
            }
            SignatureStatus::Complete => wire.set_status(proto::SignatureStatus::Complete),
            SignatureStatus::Failed { code, reason } => {
                wire.set_status(proto::SignatureStatus::Failed);
                wire.set_failure_code((*code).into());
                wire.failure_reason.clone_from(reason);
            }
            SignatureStatus::Cancelled {
                signatures_released,
            } => {
                wire.set_status(proto::SignatureStatus::Cancelled);
                wire.signatures_released = *signatures_released;
            }
            SignatureStatus::Timeout { reason } => {
                wire.set_status(proto::SignatureStatus::Timeout);
                wire.failure_reason.clone_from(reason);
            }
        }
        wire
    }
}

impl TryFrom<proto::SignatureResponse> for SignatureResponse {
    type Error = InvalidMessage;

    fn try_from(wire: proto::SignatureResponse) -> Result<Self, InvalidMessage> {
        let status = match wire.status() {
            proto::SignatureStatus::Unspecified => return Err(unspecified("status", wire.status)),
            proto::SignatureStatus::Pending => SignatureStatus::Pending,
            proto::SignatureStatus::InProgress => SignatureStatus::InProgress {
                collected: wire.collected,
                required: wire.required,
            },
            proto::SignatureStatus::Complete => SignatureStatus::Complete,
            proto::SignatureStatus::Failed => SignatureStatus::Failed {
                code: failure_code_from_wire(wire.failure_code)?,
                reason: for_people(wire.failure_reason, 1024),
            },
            proto::SignatureStatus::Cancelled => SignatureStatus::Cancelled {
                signatures_released: wire.signatures_released,
            },
            proto::SignatureStatus::Timeout => SignatureStatus::Timeout {
                reason: for_people(wire.failure_reason, 1024),
            },
        };
        Ok(Self {
            request_id: RequestId::new(wire.request_id)?,
            txid: txid(&wire.txid)?,
            federation_version: at_least_one("federation_version", wire.federation_version)?,
            status,
            signatures: signatures(wire.partial_signatures)?,
        })
    }
}

fn signatures(wire: Vec<proto::PartialSignature>) -> Result<Vec<PartialSignature>, InvalidMessage> {
    at_most(
        "partial_signatures",
        &wire,
        MAX_INPUTS * MAX_SIGNATURES_PER_INPUT,
    )?;
    let mut keys: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    let mut signatures = Vec::with_capacity(wire.len());
    for (index, signature) in wire.into_iter().enumerate() {
        let at = format!("partial_signatures[{index}]");
        let signature =
            PartialSignature::try_from(signature).map_err(|invalid| invalid.within(&at))?;
        let of_input = keys.entry(signature.input_index).or_default();
        if of_input.contains(&signature.public_key) || of_input.len() >= MAX_SIGNATURES_PER_INPUT {
            return Err(InvalidMessage::new(
                at,
                format_args!("input {}", signature.input_index),
                format!("at most {MAX_SIGNATURES_PER_INPUT} signatures, one for each key"),
            ));
        }
        of_input.push(signature.public_key);
        signatures.push(signature);
    }
    at_most(
        "partial_signatures",
        &keys.keys().collect::<Vec<_>>(),
        MAX_INPUTS,
    )?;
    Ok(signatures)
}

impl From<&PartialSignature> for proto::PartialSignature {
    fn from(signature: &PartialSignature) -> Self {
        Self {
            input_index: signature.input_index,
            public_key: signature.public_key.serialize().to_vec().into(),
            signature: signature.signature.clone().into(),
        }
    }
}

impl TryFrom<proto::PartialSignature> for PartialSignature {
    type Error = InvalidMessage;

    fn try_from(wire: proto::PartialSignature) -> Result<Self, InvalidMessage> {
        if !(9..=73).contains(&wire.signature.len()) {
            return Err(InvalidMessage::new(
                "signature",
                format_args!("{} bytes", wire.signature.len()),
                "9 to 73 bytes",
            ));
        }
        Ok(Self {
            input_index: wire.input_index,
            public_key: public_key(&wire.public_key)?,
            signature: wire.signature.to_vec(),
        })
    }
}

impl From<FailureCode> for proto::FailureCode {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::InvalidRequest => Self::InvalidRequest,
            FailureCode::Conflict => Self::Conflict,
            FailureCode::Policy => Self::Policy,
            FailureCode::Federation => Self::Federation,
            FailureCode::Declined => Self::Declined,
            FailureCode::AlreadyPaid => Self::AlreadyPaid,
        }
    }
}

/// The failure code that a number on the wire stands for.
pub(crate) fn failure_code_from_wire(code: i32) -> Result<FailureCode, InvalidMessage> {
    match proto::FailureCode::try_from(code) {
        Ok(proto::FailureCode::InvalidRequest) => Ok(FailureCode::InvalidRequest),
        Ok(proto::FailureCode::Conflict) => Ok(FailureCode::Conflict),
        Ok(proto::FailureCode::Policy) => Ok(FailureCode::Policy),
        Ok(proto::FailureCode::Federation) => Ok(FailureCode::Federation),
        Ok(proto::FailureCode::Declined) => Ok(FailureCode::Declined),
        Ok(proto::FailureCode::AlreadyPaid) => Ok(FailureCode::AlreadyPaid),
        Ok(proto::FailureCode::Unspecified) | Err(_) => Err(unspecified("failure_code", code)),
    }
}
