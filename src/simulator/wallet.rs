//! A wallet that watches the federation's coins: it makes them up, and builds what a node's wallet
//! would hand to its bridge.

use bitcoin::{
    Amount, OutPoint, Psbt, PubkeyHash, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid,
    WPubkeyHash, Witness, absolute::LockTime, hashes::Hash, transaction::Version,
};

pub use super::signer::Signers;
use super::{FederationView, federation::tagged_sha256};
use crate::message::{EvmAddress, PeginNotification, PegoutBinding};

/// What each made-up coin holds.
pub const COIN: Amount = Amount::from_sat(100_000_000);
/// What each peg-out pays in fees.
pub const FEE: Amount = Amount::from_sat(2_000);

/// The unsigned transaction of peg-out `number`: it spends `coins` made-up coins of the federation
/// that no other number spends, pays `amount` to its owner in output 0 and the rest back to the
/// federation.
///
/// `None` when the coins do not cover amount and fee.
#[must_use]
pub fn pegout_psbt(
    federation: &FederationView,
    number: u64,
    coins: u32,
    amount: Amount,
) -> Option<Psbt> {
    let coin = |index| OutPoint {
        txid: coin(number),
        vout: index,
    };
    let coins: Vec<_> = (0..coins).map(|index| (coin(index), COIN)).collect();
    spend(federation, &coins, owner(number), amount, FEE)
}

/// The burn that peg-out `number` pays with output 0.
#[must_use]
pub fn burn(number: u64, amount: Amount) -> PegoutBinding {
    PegoutBinding {
        burn_tx_hash: tagged_sha256("governance simulator burn", &number.to_le_bytes()),
        log_index: 0,
        block_hash: tagged_sha256("governance simulator block", &number.to_le_bytes()),
        block_height: number,
        output_index: 0,
        amount,
        script_pubkey: owner(number),
    }
}

fn owner(number: u64) -> ScriptBuf {
    let key = PubkeyHash::hash(&number.to_le_bytes());
    ScriptBuf::new_p2wpkh(&WPubkeyHash::from_raw_hash(key.to_raw_hash()))
}

/// The unsigned transaction that spends these coins of the federation, pays `amount` to `owner` in
/// output 0, `fee` to miners and the rest back to the federation.
///
/// `None` when the coins do not cover amount and fee.
#[must_use]
pub fn spend(
    federation: &FederationView,
    coins: &[(OutPoint, Amount)],
    owner: ScriptBuf,
    amount: Amount,
    fee: Amount,
) -> Option<Psbt> {
    let mut values = coins.iter().map(|(_, value)| *value);
    let spent = values.try_fold(Amount::ZERO, Amount::checked_add)?;
    let change = spent.checked_sub(amount)?.checked_sub(fee)?;
    let inputs = coins.iter().map(|(outpoint, _)| TxIn {
        previous_output: *outpoint,
        script_sig: ScriptBuf::new(),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        witness: Witness::new(),
    });
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: inputs.collect(),
        output: vec![
            TxOut {
                value: amount,
                script_pubkey: owner,
            },
            TxOut {
                value: change,
                script_pubkey: federation.address.script_pubkey(),
            },
        ],
    };
    let mut psbt = Psbt::from_unsigned_tx(transaction).ok()?;
    for (input, (_, value)) in psbt.inputs.iter_mut().zip(coins) {
        input.witness_utxo = Some(TxOut {
            value: *value,
            script_pubkey: federation.address.script_pubkey(),
        });
        input.witness_script = Some(federation.witness_script.clone());
    }
    Some(psbt)
}

/// The notice of deposit `number`: made up, and no other number's.
#[must_use]
pub fn deposit(number: u32) -> Option<PeginNotification> {
    let outpoint = OutPoint {
        txid: Txid::from_byte_array([9; 32]),
        vout: number,
    };
    let account = EvmAddress::from_bytes([7; 20]);
    PeginNotification::new(outpoint, Amount::from_sat(1_000), account).ok()
}

fn coin(number: u64) -> Txid {
    Txid::from_byte_array(tagged_sha256(
        "governance simulator coin",
        &number.to_le_bytes(),
    ))
}
