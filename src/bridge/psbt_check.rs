//! What a peg-out's PSBT (BIP-174) must be before anyone is asked to sign it. Pure.
//!
//! The request's own construction checks much of it already. It is checked here again, and whole,
//! so that a reviewer finds every rule in one place, and so that no change there opens a hole here.

use std::collections::BTreeSet;

use bitcoin::{
    Amount, EcdsaSighashType, Network, OutPoint, Psbt, TxOut, Weight,
    psbt::{Input, Output},
    secp256k1,
};

use super::psbt_fault::PsbtFault;
use crate::{
    chain::Federation,
    message::{PegoutBinding, SignatureRequest, TransactionType},
};

/// Bitcoin Core's limit for a transaction that it relays (`MAX_STANDARD_TX_WEIGHT`).
const MAX_WEIGHT: Weight = Weight::from_wu(400_000);
/// A low-S DER signature with its sighash byte, and the length before it.
const SIGNATURE_WEIGHT: u64 = 73;

/// What a request claims, wherever it comes from.
#[derive(Debug)]
struct Claim<'a> {
    psbt: &'a Psbt,
    input_indices: &'a [u32],
    tx_type: TransactionType,
    network: Network,
    burns: &'a [PegoutBinding],
    max_fee: Amount,
}

/// Whether the federation's members may be asked to sign a peg-out. `federation` is the one that
/// is active: it is asked, its coins are spent, and it gets the change.
///
/// # Errors
///
/// The first thing that is wrong.
pub fn check_psbt(request: &SignatureRequest, federation: &Federation) -> Result<(), PsbtFault> {
    check(
        &Claim {
            psbt: request.psbt(),
            input_indices: request.input_indices(),
            tx_type: request.tx_type(),
            network: request.network(),
            burns: request.burns(),
            max_fee: request.max_fee(),
        },
        federation,
    )
}

fn check(claim: &Claim<'_>, federation: &Federation) -> Result<(), PsbtFault> {
    if claim.tx_type != TransactionType::Pegout {
        let found = claim.tx_type.name();
        return Err(PsbtFault::Type { found });
    }
    let address = federation.address();
    if !address.as_unchecked().is_valid_for_network(claim.network) {
        let found = claim.network;
        return Err(PsbtFault::Network { found });
    }
    check_transaction(claim.psbt)?;
    check_inputs(claim, federation)?;
    check_burns(claim, federation)?;
    check_outputs(claim, federation)?;
    check_fee(claim)?;
    check_weight(claim.psbt, federation)
}

/// What concerns the transaction as a whole.
fn check_transaction(psbt: &Psbt) -> Result<(), PsbtFault> {
    let transaction = &psbt.unsigned_tx;
    if psbt.version != 0 {
        let found = psbt.version;
        return Err(PsbtFault::PsbtVersion { found });
    }
    if !(1..=2).contains(&transaction.version.0) {
        let found = transaction.version.0;
        return Err(PsbtFault::TransactionVersion { found });
    }
    if transaction.lock_time.is_block_time() {
        let found = transaction.lock_time;
        return Err(PsbtFault::LockTime { found });
    }
    let surprises = [
        (!psbt.xpub.is_empty(), "extended public keys"),
        (!psbt.proprietary.is_empty(), "proprietary fields"),
        (!psbt.unknown.is_empty(), "unknown fields"),
    ];
    surprise("the PSBT", surprises)?;
    for (maps, found, expected) in [
        ("input", psbt.inputs.len(), transaction.input.len()),
        ("output", psbt.outputs.len(), transaction.output.len()),
    ] {
        if found != expected {
            return Err(PsbtFault::Maps {
                maps,
                found,
                expected,
            });
        }
    }
    if transaction.input.is_empty() {
        return Err(PsbtFault::NoInput("nothing".to_owned()));
    }
    let mut spent = BTreeSet::new();
    for (index, input) in transaction.input.iter().enumerate() {
        let outpoint = input.previous_output;
        if outpoint.is_null() {
            return Err(PsbtFault::NoInput(outpoint.to_string()));
        }
        if !spent.insert(outpoint) {
            return Err(PsbtFault::DuplicateInput {
                input: index,
                outpoint,
            });
        }
        if transaction.version.0 >= 2 && input.sequence.is_relative_lock_time() {
            return Err(PsbtFault::RelativeLock { input: index });
        }
    }
    Ok(())
}

fn surprise<const N: usize>(
    place: &str,
    surprises: [(bool, &'static str); N],
) -> Result<(), PsbtFault> {
    match surprises.into_iter().find(|(there, _)| *there) {
        Some((_, what)) => Err(PsbtFault::Surprise {
            place: place.to_owned(),
            what,
        }),
        None => Ok(()),
    }
}

fn check_inputs(claim: &Claim<'_>, federation: &Federation) -> Result<(), PsbtFault> {
    let psbt = claim.psbt;
    let inputs = psbt.inputs.len();
    let all = (0..inputs).map(|index| u32::try_from(index).unwrap_or(u32::MAX));
    if !claim.input_indices.iter().copied().eq(all) {
        return Err(PsbtFault::Incomplete {
            asked: claim.input_indices.len(),
            inputs,
        });
    }
    for (index, (input, spending)) in psbt.inputs.iter().zip(&psbt.unsigned_tx.input).enumerate() {
        check_input(index, input, spending.previous_output, federation)?;
        if !spending.script_sig.is_empty() || !spending.witness.is_empty() {
            return Err(PsbtFault::Signed { input: index });
        }
    }
    Ok(())
}

fn check_input(
    index: usize,
    input: &Input,
    outpoint: OutPoint,
    federation: &Federation,
) -> Result<(), PsbtFault> {
    let place = format!("input {index}");
    let spent = input.witness_utxo.as_ref();
    let spent = spent.ok_or(PsbtFault::NoUtxo { input: index })?;
    if let Some(whole) = &input.non_witness_utxo {
        let vout = usize::try_from(outpoint.vout).ok();
        let output = vout.and_then(|vout| whole.output.get(vout));
        if whole.compute_txid() != outpoint.txid || output != Some(spent) {
            let input = index;
            return Err(PsbtFault::UtxoDisagrees { input, outpoint });
        }
    }
    if spent.script_pubkey != federation.address().script_pubkey() {
        return Err(PsbtFault::NotOurs {
            input: index,
            found: spent.script_pubkey.clone(),
            expected: federation.address().clone(),
        });
    }
    if input.witness_script.as_ref() != Some(federation.script()) {
        let found = input.witness_script.as_ref();
        return Err(PsbtFault::Script {
            input: index,
            found: found.map_or_else(|| "absent".to_owned(), ToString::to_string),
            version: federation.version(),
        });
    }
    let other = input
        .sighash_type
        .filter(|sighash| sighash.ecdsa_hash_ty() != Ok(EcdsaSighashType::All));
    if let Some(found) = other {
        return Err(PsbtFault::Sighash {
            input: index,
            found: found.to_string(),
        });
    }
    let signed = !input.partial_sigs.is_empty()
        || input.final_script_sig.is_some()
        || input.final_script_witness.is_some()
        || input.tap_key_sig.is_some()
        || !input.tap_script_sigs.is_empty();
    if signed {
        return Err(PsbtFault::Signed { input: index });
    }
    let preimages = !input.ripemd160_preimages.is_empty()
        || !input.sha256_preimages.is_empty()
        || !input.hash160_preimages.is_empty()
        || !input.hash256_preimages.is_empty();
    let taproot = !input.tap_scripts.is_empty()
        || !input.tap_key_origins.is_empty()
        || input.tap_internal_key.is_some()
        || input.tap_merkle_root.is_some();
    let surprises = [
        (input.redeem_script.is_some(), "a redeem script"),
        (preimages, "preimages"),
        (taproot, "taproot fields"),
        (!input.proprietary.is_empty(), "proprietary fields"),
        (!input.unknown.is_empty(), "unknown fields"),
    ];
    surprise(&place, surprises)?;
    check_origins(&place, input.bip32_derivation.keys(), federation)
}

/// Signers find their keys by these.
fn check_origins<'a>(
    place: &str,
    mut keys: impl Iterator<Item = &'a secp256k1::PublicKey>,
    federation: &Federation,
) -> Result<(), PsbtFault> {
    match keys.find(|key| federation.member(key).is_none()) {
        Some(key) => Err(PsbtFault::Stranger {
            place: place.to_owned(),
            key: *key,
        }),
        None => Ok(()),
    }
}

fn check_burns(claim: &Claim<'_>, federation: &Federation) -> Result<(), PsbtFault> {
    let outputs = &claim.psbt.unsigned_tx.output;
    if claim.burns.is_empty() {
        return Err(PsbtFault::NoBurn);
    }
    let (mut burns, mut paid) = (BTreeSet::new(), BTreeSet::new());
    for binding in claim.burns {
        let (burn, index) = (binding.burn(), binding.output_index);
        if !burns.insert(burn) {
            return Err(PsbtFault::BurnTwice { burn });
        }
        if !paid.insert(index) {
            return Err(PsbtFault::OutputTwice { output: index });
        }
        let output = usize::try_from(index).ok().and_then(|i| outputs.get(i));
        let output = output.ok_or(PsbtFault::NoOutput {
            burn,
            output: index,
            outputs: outputs.len(),
        })?;
        if output.value != binding.amount {
            return Err(PsbtFault::BurnAmount {
                burn,
                output: index,
                found: output.value,
                expected: binding.amount,
            });
        }
        if output.script_pubkey != binding.script_pubkey {
            return Err(PsbtFault::BurnPayee {
                burn,
                output: index,
                found: output.script_pubkey.clone(),
                expected: binding.script_pubkey.clone(),
            });
        }
        if output.script_pubkey == federation.address().script_pubkey() {
            let output = index;
            return Err(PsbtFault::BurnToFederation { burn, output });
        }
    }
    Ok(())
}

fn check_outputs(claim: &Claim<'_>, federation: &Federation) -> Result<(), PsbtFault> {
    let change = federation.address().script_pubkey();
    let paid: BTreeSet<usize> = claim
        .burns
        .iter()
        .filter_map(|burn| usize::try_from(burn.output_index).ok())
        .collect();
    let outputs = claim.psbt.unsigned_tx.output.iter();
    for (index, (output, map)) in outputs.zip(&claim.psbt.outputs).enumerate() {
        let script = &output.script_pubkey;
        if !paid.contains(&index) && *script != change {
            return Err(PsbtFault::StrangeOutput {
                output: index,
                found: script.clone(),
                expected: federation.address().clone(),
            });
        }
        let standard = script.is_p2pkh()
            || script.is_p2sh()
            || script.is_p2wpkh()
            || script.is_p2wsh()
            || script.is_p2tr();
        if !standard {
            return Err(PsbtFault::OutputType {
                output: index,
                found: script.clone(),
            });
        }
        let least = script.minimal_non_dust();
        if output.value < least {
            return Err(PsbtFault::Dust {
                output: index,
                found: output.value,
                expected: least,
            });
        }
        check_output_map(index, map, *script == change, federation)?;
    }
    Ok(())
}

fn check_output_map(
    index: usize,
    map: &Output,
    change: bool,
    federation: &Federation,
) -> Result<(), PsbtFault> {
    let place = format!("output {index}");
    let taproot =
        map.tap_internal_key.is_some() || map.tap_tree.is_some() || !map.tap_key_origins.is_empty();
    let script = map.witness_script.as_ref();
    let other_script = script.is_some_and(|script| !change || script != federation.script());
    let surprises = [
        (map.redeem_script.is_some(), "a redeem script"),
        (
            other_script,
            "a witness script that is not the federation's change",
        ),
        (taproot, "taproot fields"),
        (!map.proprietary.is_empty(), "proprietary fields"),
        (!map.unknown.is_empty(), "unknown fields"),
    ];
    surprise(&place, surprises)?;
    check_origins(&place, map.bip32_derivation.keys(), federation)
}

/// `None` above 21 million BTC.
fn total<'a>(mut outputs: impl Iterator<Item = &'a TxOut>) -> Option<Amount> {
    outputs.try_fold(Amount::ZERO, |sum, output| {
        sum.checked_add(output.value)
            .filter(|sum| *sum <= Amount::MAX_MONEY)
    })
}

fn check_fee(claim: &Claim<'_>) -> Result<(), PsbtFault> {
    let inputs = claim.psbt.inputs.iter();
    let spent = total(inputs.filter_map(|input| input.witness_utxo.as_ref()));
    let paid = total(claim.psbt.unsigned_tx.output.iter());
    let (paid, spent) = (paid.unwrap_or(Amount::MAX), spent.unwrap_or(Amount::MAX));
    let fee = spent
        .checked_sub(paid)
        .filter(|_| paid < Amount::MAX && spent < Amount::MAX);
    let found = fee.ok_or(PsbtFault::Overspends { paid, spent })?;
    if found > claim.max_fee {
        return Err(PsbtFault::Fee {
            found,
            expected: claim.max_fee,
        });
    }
    Ok(())
}

fn check_weight(psbt: &Psbt, federation: &Federation) -> Result<(), PsbtFault> {
    let script = federation.script().len() as u64;
    // How many there are, the extra element of CHECKMULTISIG, the signatures, the script.
    let witness = 1 + 1 + u64::from(federation.threshold()) * SIGNATURE_WEIGHT + 3 + script;
    let witnesses = Weight::from_wu(2 + witness * psbt.inputs.len() as u64);
    let found = psbt.unsigned_tx.weight() + witnesses;
    if found > MAX_WEIGHT {
        return Err(PsbtFault::Weight {
            found,
            expected: MAX_WEIGHT,
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "psbt_check_tests.rs"]
mod tests;
