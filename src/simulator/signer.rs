//! What a federation's members check before they sign, and their signatures.

use bitcoin::{
    Psbt, Transaction, TxOut,
    consensus::encode::serialize,
    hashes::Hash,
    secp256k1::{Message, Secp256k1},
    sighash::{EcdsaSighashType, SighashCache},
};

use super::federation::{Federation, FederationView, Member, tagged_sha256};
use crate::{
    message::Coin,
    proto::{self, FailureCode},
};

/// A first federation's members with their keys, without a service: they sign what a test wants
/// signed, and check nothing.
#[derive(Debug)]
pub struct Signers(Federation);

impl Signers {
    /// Of a federation on regtest; nothing when it cannot exist.
    #[must_use]
    pub fn new(seed: u64, members: usize, threshold: usize) -> Option<Self> {
        let network = bitcoin::Network::Regtest;
        Federation::first(seed, members, threshold, network, "alys-regtest").map(Self)
    }

    /// The federation as anyone may see it.
    #[must_use]
    pub fn view(&self) -> FederationView {
        self.0.view()
    }

    /// One member's signatures, one for each input of a PSBT that names what it spends.
    #[must_use]
    pub fn sign(&self, psbt: &Psbt, member: usize) -> Vec<proto::PartialSignature> {
        let inputs = psbt.inputs.iter().enumerate().filter_map(|(index, input)| {
            Some((u32::try_from(index).ok()?, input.witness_utxo.clone()?))
        });
        let checked = Checked {
            transaction: psbt.unsigned_tx.clone(),
            coins: Vec::new(),
            inputs: inputs.collect(),
        };
        let member = self.0.members.get(member);
        member.map_or_else(Vec::new, |member| sign(&checked, &self.0, member))
    }
}

/// Why the members will not sign.
pub(super) type Refusal = (FailureCode, String);

/// A request that the members would sign.
#[derive(Debug)]
pub(super) struct Checked {
    pub transaction: Transaction,
    coins: Vec<Coin>,
    inputs: Vec<(u32, TxOut)>,
}

impl Checked {
    pub(super) fn txid(&self) -> Vec<u8> {
        self.transaction.compute_txid().to_byte_array().to_vec()
    }

    /// Everything that it spends.
    pub(super) fn coins(&self) -> Vec<Coin> {
        self.coins.clone()
    }
}

/// The id that a response to any request must name, if its transaction can be read.
pub(super) fn txid(request: &proto::SignatureRequest) -> Option<Vec<u8>> {
    let psbt = Psbt::deserialize(&request.psbt).ok()?;
    Some(psbt.unsigned_tx.compute_txid().to_byte_array().to_vec())
}

/// Makes a signature one that is well formed and does not verify.
pub(super) fn spoil(signature: &mut proto::PartialSignature) {
    let mut bytes = signature.signature.to_vec();
    // The last byte of S, before the sighash byte.
    if let Some(byte) = bytes.len().checked_sub(2).and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1;
    }
    signature.signature = bytes.into();
}

/// Checks a request against itself and against the federation that it names.
pub(super) fn check(
    request: &proto::SignatureRequest,
    federation: &Federation,
) -> Result<Checked, Refusal> {
    let invalid = |reason: &str| (FailureCode::InvalidRequest, reason.to_owned());
    let psbt = Psbt::deserialize(&request.psbt).map_err(|error| invalid(&error.to_string()))?;
    let transaction = psbt.unsigned_tx.clone();
    let spent: Vec<TxOut> = psbt
        .inputs
        .iter()
        .filter_map(|input| input.witness_utxo.clone())
        .collect();
    if spent.len() != transaction.input.len() {
        return Err(invalid("an input has no witness_utxo"));
    }
    if payload_hash(request, &transaction, &spent).as_slice() != request.payload_hash.as_ref() {
        return Err(invalid("payload_hash is not that of the request"));
    }
    let fee = spent
        .iter()
        .map(|output| output.value.to_sat())
        .sum::<u64>()
        .checked_sub(
            transaction
                .output
                .iter()
                .map(|output| output.value.to_sat())
                .sum::<u64>(),
        );
    if fee.is_none_or(|fee| fee > request.max_fee_sat) {
        return Err((
            FailureCode::Policy,
            "the fee is above max_fee_sat".to_owned(),
        ));
    }
    for burn in &request.burns {
        let output = transaction.output.get(burn.output_index as usize);
        let pays = output.is_some_and(|output| {
            output.value.to_sat() == burn.amount_sat
                && *output.script_pubkey.as_bytes() == *burn.script_pubkey
        });
        if !pays {
            let index = burn.output_index;
            return Err(invalid(&format!(
                "output {index} is not what a burn is owed"
            )));
        }
    }
    let coins = psbt.inputs.iter().zip(&transaction.input).zip(&spent);
    let coins = coins.map(|((input, spending), spent)| {
        let outpoint = spending.previous_output;
        let whole = input.non_witness_utxo.as_ref();
        if let Some(whole) = whole
            && (whole.compute_txid() != outpoint.txid
                || whole.output.get(outpoint.vout as usize) != Some(spent))
        {
            return Err(invalid("an input's non_witness_utxo is not what it spends"));
        }
        Ok(Coin {
            outpoint,
            amount: spent.value,
            proven: whole.is_some(),
        })
    });
    let coins = coins.collect::<Result<Vec<_>, _>>()?;
    let mut inputs = Vec::new();
    for index in &request.input_indices {
        let at = *index as usize;
        let (Some(input), Some(spent)) = (psbt.inputs.get(at), spent.get(at)) else {
            return Err(invalid("an index is out of range"));
        };
        if input.witness_script.as_ref() != Some(&federation.witness_script)
            || spent.script_pubkey != federation.address.script_pubkey()
        {
            let reason = format!(
                "input {at} is not version {}'s to spend",
                federation.version
            );
            return Err((FailureCode::Federation, reason));
        }
        inputs.push((*index, spent.clone()));
    }
    Ok(Checked {
        transaction,
        coins,
        inputs,
    })
}

/// One member's signatures, one for each input that was asked for.
pub(super) fn sign(
    checked: &Checked,
    federation: &Federation,
    member: &Member,
) -> Vec<proto::PartialSignature> {
    let secp = Secp256k1::signing_only();
    let mut sighashes = SighashCache::new(&checked.transaction);
    checked
        .inputs
        .iter()
        .filter_map(|(index, spent)| {
            let sighash = sighashes
                .p2wsh_signature_hash(
                    *index as usize,
                    &federation.witness_script,
                    spent.value,
                    EcdsaSighashType::All,
                )
                .ok()?;
            let signature = secp.sign_ecdsa(
                &Message::from_digest(sighash.to_byte_array()),
                &member.secret,
            );
            let mut bytes = signature.serialize_der().to_vec();
            bytes.push(EcdsaSighashType::All as u8);
            Some(proto::PartialSignature {
                input_index: *index,
                public_key: member.public.serialize().to_vec().into(),
                signature: bytes.into(),
            })
        })
        .collect()
}

/// As the proto lays it out.
fn payload_hash(
    request: &proto::SignatureRequest,
    transaction: &Transaction,
    spent: &[TxOut],
) -> [u8; 32] {
    let mut bytes = Vec::new();
    let count = |bytes: &mut Vec<u8>, count: usize| {
        bytes.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    };
    let field = |bytes: &mut Vec<u8>, value: &[u8]| {
        count(bytes, value.len());
        bytes.extend(value);
    };
    field(&mut bytes, &serialize(transaction));
    for output in spent {
        bytes.extend(output.value.to_sat().to_le_bytes());
        field(&mut bytes, output.script_pubkey.as_bytes());
    }
    count(&mut bytes, request.input_indices.len());
    request
        .input_indices
        .iter()
        .for_each(|index| bytes.extend(index.to_le_bytes()));
    bytes.push(u8::try_from(request.tx_type).unwrap_or_default());
    bytes.extend(request.federation_version.to_le_bytes());
    count(&mut bytes, request.burns.len());
    for burn in &request.burns {
        bytes.extend(burn.burn_tx_hash.iter());
        bytes.extend(burn.log_index.to_le_bytes());
        bytes.extend(burn.block_hash.iter());
        bytes.extend(burn.block_height.to_le_bytes());
        bytes.extend(burn.output_index.to_le_bytes());
        bytes.extend(burn.amount_sat.to_le_bytes());
        field(&mut bytes, &burn.script_pubkey);
    }
    field(&mut bytes, request.replaces_request_id.as_bytes());
    bytes.extend(request.max_fee_sat.to_le_bytes());
    tagged_sha256("governance.v1.SignatureRequest", &bytes)
}

#[cfg(test)]
mod tests {
    use bitcoin::Amount;

    use super::*;
    use crate::simulator::wallet;

    /// A peg-out whose burn is as it is, or is spoilt, and the hash that is right for it.
    fn request(signers: &Signers, spoil: fn(&mut proto::PegoutBinding)) -> proto::SignatureRequest {
        let amount = Amount::from_sat(50_000);
        let psbt = wallet::pegout_psbt(&signers.view(), 1, 1, amount).expect("covered");
        let spent: Vec<TxOut> = psbt.inputs[0].witness_utxo.clone().into_iter().collect();
        let mut burn = proto::PegoutBinding::from(&wallet::burn(1, amount));
        spoil(&mut burn);
        let mut request = proto::SignatureRequest {
            psbt: psbt.serialize().into(),
            input_indices: vec![0],
            tx_type: proto::TxType::Pegout.into(),
            federation_version: 1,
            burns: vec![burn],
            max_fee_sat: wallet::FEE.to_sat(),
            ..Default::default()
        };
        let hash = payload_hash(&request, &psbt.unsigned_tx, &spent);
        request.payload_hash = hash.to_vec().into();
        request
    }

    #[test]
    fn nobody_signs_what_pays_a_burn_otherwise_than_it_is_owed() {
        let signers = Signers::new(1, 3, 2).expect("exists");
        check(&request(&signers, |_| {}), &signers.0).expect("good");
        let spoilt: [fn(&mut proto::PegoutBinding); 4] = [
            |burn| burn.amount_sat += 1,
            |burn| burn.script_pubkey = vec![0x51].into(),
            |burn| burn.output_index = 1,
            |burn| burn.output_index = 2,
        ];
        for spoil in spoilt {
            let (code, reason) = check(&request(&signers, spoil), &signers.0).expect_err("refused");
            assert_eq!(code, FailureCode::InvalidRequest);
            assert!(reason.contains("what a burn is owed"), "{reason}");
        }
    }
}
