//! What makes signatures a transaction: each one verified, enough of them put together, and the
//! result checked by Bitcoin's own consensus code. Pure, and without any key.

use std::collections::BTreeMap;

use bitcoin::{
    EcdsaSighashType, PublicKey, Transaction, TxOut, ecdsa,
    hashes::Hash,
    secp256k1::{self, Message, Secp256k1, VerifyOnly},
    sighash::SighashCache,
};
use miniscript::psbt::PsbtExt;

use crate::{
    chain::Federation,
    message::{MemberId, PartialSignature, SignatureRequest},
};

/// Good signatures, by input and key.
pub type Signatures = BTreeMap<(u32, secp256k1::PublicKey), ecdsa::Signature>;

/// Why a partial signature is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// For an input that nobody asked about.
    #[error("input {input}: it was not asked for")]
    NotAskedFor {
        /// The input.
        input: u32,
    },
    /// By a key that is no active member's.
    #[error("input {input}: {key} is no active member of version {version}")]
    Stranger {
        /// The input.
        input: u32,
        /// The key.
        key: secp256k1::PublicKey,
        /// The federation's version.
        version: u32,
    },
    /// A member's, but not a valid one.
    #[error("input {input}: member {member}'s signature {fault}")]
    Invalid {
        /// The input.
        input: u32,
        /// Who made it.
        member: MemberId,
        /// What is wrong.
        fault: &'static str,
    },
}

impl BadSignature {
    /// The member who made it, when it is a member's.
    #[must_use]
    pub fn member(&self) -> Option<&MemberId> {
        match self {
            Self::Invalid { member, .. } => Some(member),
            Self::NotAskedFor { .. } | Self::Stranger { .. } => None,
        }
    }
}

/// Verifies partial signatures of one request; what all of them share is computed once.
#[derive(Debug)]
pub struct Verifier<'a> {
    request: &'a SignatureRequest,
    federation: &'a Federation,
    sighashes: SighashCache<&'a Transaction>,
    secp: Secp256k1<VerifyOnly>,
}

impl<'a> Verifier<'a> {
    /// For one request and the federation that it names.
    #[must_use]
    pub fn new(request: &'a SignatureRequest, federation: &'a Federation) -> Self {
        Self {
            request,
            federation,
            sighashes: SighashCache::new(&request.psbt().unsigned_tx),
            secp: Secp256k1::verification_only(),
        }
    }

    /// Verifies one: an input that was asked for, an active member's key, strict DER, low S
    /// (BIP-146), `SIGHASH_ALL`, and the BIP-143 sighash.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and whose it is.
    pub fn verify(&mut self, partial: &PartialSignature) -> Result<ecdsa::Signature, BadSignature> {
        let input = partial.input_index;
        let spent = self
            .request
            .input_indices()
            .binary_search(&input)
            .ok()
            .and_then(|_| {
                self.request
                    .psbt()
                    .inputs
                    .get(input as usize)?
                    .witness_utxo
                    .as_ref()
            })
            .ok_or(BadSignature::NotAskedFor { input })?;
        let key = partial.public_key;
        let version = self.federation.version();
        let member = self.federation.member(&key).ok_or(BadSignature::Stranger {
            input,
            key,
            version,
        })?;
        let invalid = |fault| BadSignature::Invalid {
            input,
            member: member.id.clone(),
            fault,
        };
        let signature = ecdsa::Signature::from_slice(&partial.signature)
            .map_err(|_| invalid("is not strict DER with a sighash byte"))?;
        if signature.sighash_type != EcdsaSighashType::All {
            return Err(invalid("does not sign everything (SIGHASH_ALL)"));
        }
        let mut low = signature.signature;
        low.normalize_s();
        if low != signature.signature {
            return Err(invalid("has a high S"));
        }
        let sighash = self
            .sighashes
            .p2wsh_signature_hash(
                input as usize,
                self.federation.script(),
                spent.value,
                EcdsaSighashType::All,
            )
            .map_err(|_| invalid("is for an input that cannot be hashed"))?;
        let message = Message::from_digest(sighash.to_byte_array());
        self.secp
            .verify_ecdsa(&message, &signature.signature, &key)
            .map_err(|_| invalid("does not verify"))?;
        Ok(signature)
    }
}

/// The good signatures of one input, by key.
pub(super) fn of_input(
    signatures: &Signatures,
    input: u32,
) -> impl Iterator<Item = (&secp256k1::PublicKey, &ecdsa::Signature)> {
    let from_input = signatures.iter().skip_while(move |((i, _), _)| *i < input);
    let of_input = from_input.take_while(move |((i, _), _)| *i == input);
    of_input.map(|((_, key), signature)| (key, signature))
}

/// How many distinct members have signed the input that has the fewest signatures.
pub(super) fn fewest(request: &SignatureRequest, signatures: &Signatures) -> u32 {
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for (input, _) in signatures.keys() {
        *counts.entry(*input).or_default() += 1;
    }
    let of_input = |input: &u32| counts.get(input).copied().unwrap_or_default();
    let asked = request.input_indices().iter();
    asked.map(of_input).min().unwrap_or_default()
}

/// Why signatures that verify one by one make no valid transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FinaliseError {
    /// miniscript cannot satisfy an input's script.
    #[error("cannot finalise: {0}")]
    Unsatisfied(String),
    /// Consensus refuses it.
    #[error("Bitcoin's consensus code refuses the transaction: {0}")]
    Consensus(String),
}

/// Puts the signatures into the transaction, and has consensus check it against what it spends.
///
/// # Errors
///
/// [`FinaliseError`]; with enough good signatures it would be a bug of this crate.
pub fn finalise(
    request: &SignatureRequest,
    signatures: &Signatures,
) -> Result<Transaction, FinaliseError> {
    let mut psbt = request.psbt().clone();
    for ((input, key), signature) in signatures {
        if let Some(input) = psbt.inputs.get_mut(*input as usize) {
            input.partial_sigs.insert(PublicKey::new(*key), *signature);
        }
    }
    let unsatisfied = |text: String| FinaliseError::Unsatisfied(text);
    psbt.finalize_mut(&Secp256k1::verification_only())
        .map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            unsatisfied(faults.join("; "))
        })?;
    // The fee was checked against its maximum when the request was made.
    let transaction = psbt.extract_tx_unchecked_fee_rate();
    let spent: Vec<TxOut> = request.spent_outputs().cloned().collect();
    check_consensus(&transaction, &spent).map_err(FinaliseError::Consensus)?;
    Ok(transaction)
}

/// Bitcoin's consensus rules for the scripts of a transaction and the outputs it spends, in the
/// order of its inputs.
///
/// # Errors
///
/// The consensus code's words.
pub fn check_consensus(transaction: &Transaction, spent: &[TxOut]) -> Result<(), String> {
    let outputs: BTreeMap<_, _> = transaction
        .input
        .iter()
        .map(|input| input.previous_output)
        .zip(spent)
        .collect();
    transaction
        .verify(|outpoint| outputs.get(outpoint).map(|output| TxOut::clone(output)))
        .map_err(|error| error.to_string())
}
