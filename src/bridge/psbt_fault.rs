//! What may be wrong with a peg-out's PSBT: what was found, and what was expected.

use bitcoin::{
    Address, Amount, Network, OutPoint, ScriptBuf, Weight, absolute::LockTime, secp256k1,
};

use crate::message::BurnId;

/// What is wrong with a PSBT. Nobody is asked to sign it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PsbtFault {
    /// Other transactions pay no burns.
    #[error("it is a {found} transaction; the bridge pays burns, with a pegout")]
    Type {
        /// What it is for.
        found: &'static str,
    },
    /// For another Bitcoin network.
    #[error("it is for {found}, the federation's coins are not on that network")]
    Network {
        /// The request's.
        found: Network,
    },
    /// Not BIP-174.
    #[error("PSBT version {found}, expected 0")]
    PsbtVersion {
        /// The PSBT's.
        found: u32,
    },
    /// Not relayed, or with rules of its own.
    #[error("transaction version {found}, expected 1 or 2")]
    TransactionVersion {
        /// The transaction's.
        found: i32,
    },
    /// Cannot be mined before a time that no block height tells.
    #[error("lock time {found}, expected none or a block height")]
    LockTime {
        /// The transaction's.
        found: LockTime,
    },
    /// A signer might act on something that is not checked here.
    #[error("{place} holds {what}; expected nothing that this version does not know")]
    Surprise {
        /// `the PSBT`, `input 1`, `output 0`.
        place: String,
        /// What it is.
        what: &'static str,
    },
    /// Its maps do not fit its transaction.
    #[error("{found} {maps} maps, expected one for each of {expected}")]
    Maps {
        /// `input` or `output`.
        maps: &'static str,
        /// Maps.
        found: usize,
        /// Inputs or outputs.
        expected: usize,
    },
    /// Spends nothing, or nothing that exists.
    #[error("it spends {0}, which is no output")]
    NoInput(String),
    /// Spends an output twice.
    #[error("input {input} spends {outpoint} again")]
    DuplicateInput {
        /// The second one.
        input: usize,
        /// What both spend.
        outpoint: OutPoint,
    },
    /// The bridge signs whole transactions.
    #[error("{asked} of {inputs} inputs are to be signed; a peg-out spends the federation's alone")]
    Incomplete {
        /// Inputs that are to be signed.
        asked: usize,
        /// Inputs of the transaction.
        inputs: usize,
    },
    /// What it spends is not told.
    #[error("input {input} has no witness_utxo")]
    NoUtxo {
        /// The input.
        input: usize,
    },
    /// What it spends is told in two ways that differ.
    #[error(
        "input {input}: non_witness_utxo is not the transaction of {outpoint}, or disagrees with witness_utxo"
    )]
    UtxoDisagrees {
        /// The input.
        input: usize,
        /// What it spends.
        outpoint: OutPoint,
    },
    /// Spends something that is not the federation's.
    #[error("input {input} spends {found}, expected the federation's address {expected}")]
    NotOurs {
        /// The input.
        input: usize,
        /// The spent output's script.
        found: ScriptBuf,
        /// The federation's.
        expected: Address,
    },
    /// Signed for another script than the federation's.
    #[error(
        "input {input}: witness_script is {found}, expected that of federation version {version}"
    )]
    Script {
        /// The input.
        input: usize,
        /// What it is; `absent` when it is not there.
        found: String,
        /// The version that is asked.
        version: u32,
    },
    /// Signed in another way than the whole transaction.
    #[error("input {input}: sighash type {found}, expected SIGHASH_ALL")]
    Sighash {
        /// The input.
        input: usize,
        /// The PSBT's.
        found: String,
    },
    /// Signed already, by whom is not known.
    #[error(
        "input {input} is signed or finalised already; expected nothing but what is to be signed"
    )]
    Signed {
        /// The input.
        input: usize,
    },
    /// A key origin of someone else.
    #[error("{place}: key origin of {key}, which is no active member of the federation")]
    Stranger {
        /// `input 1`, `output 0`.
        place: String,
        /// The key.
        key: secp256k1::PublicKey,
    },
    /// Cannot be mined until its coin is old enough.
    #[error("input {input} has a relative lock time (BIP-68), expected none")]
    RelativeLock {
        /// The input.
        input: usize,
    },
    /// Pays nobody.
    #[error("it pays no burn")]
    NoBurn,
    /// A burn of an output that is not there.
    #[error("burn {burn} is paid by output {output}, of {outputs}")]
    NoOutput {
        /// The burn.
        burn: BurnId,
        /// The output that it names.
        output: u32,
        /// Outputs of the transaction.
        outputs: usize,
    },
    /// A burn is not paid what it is owed.
    #[error("burn {burn} is owed {expected}, output {output} pays {found}")]
    BurnAmount {
        /// The burn.
        burn: BurnId,
        /// Its output.
        output: u32,
        /// What the output pays.
        found: Amount,
        /// What the burn is owed.
        expected: Amount,
    },
    /// A burn is paid to someone else than the sidechain says.
    #[error("burn {burn} is owed to {expected}, output {output} pays {found}")]
    BurnPayee {
        /// The burn.
        burn: BurnId,
        /// Its output.
        output: u32,
        /// Whom the output pays.
        found: ScriptBuf,
        /// Whom the burn is owed to.
        expected: ScriptBuf,
    },
    /// A burn is paid twice.
    #[error("burn {burn} is listed twice")]
    BurnTwice {
        /// The burn.
        burn: BurnId,
    },
    /// Two burns are paid with the same coin.
    #[error("output {output} pays two burns")]
    OutputTwice {
        /// The output.
        output: u32,
    },
    /// A burn is paid back to the federation: its owner gets nothing.
    #[error("burn {burn} is paid to the federation itself, by output {output}")]
    BurnToFederation {
        /// The burn.
        burn: BurnId,
        /// Its output.
        output: u32,
    },
    /// Pays someone for nothing.
    #[error(
        "output {output} pays no burn, and {found} instead of the federation's address {expected}"
    )]
    StrangeOutput {
        /// The output.
        output: usize,
        /// Whom it pays.
        found: ScriptBuf,
        /// Where change goes.
        expected: Address,
    },
    /// Not relayed: nobody could spend it economically.
    #[error("output {output} pays {found}, which is dust; expected at least {expected}")]
    Dust {
        /// The output.
        output: usize,
        /// What it pays.
        found: Amount,
        /// The least that its script may be paid.
        expected: Amount,
    },
    /// Not relayed, or lost to everyone.
    #[error("output {output} pays {found}, expected P2PKH, P2SH, P2WPKH, P2WSH or P2TR")]
    OutputType {
        /// The output.
        output: usize,
        /// Its script.
        found: ScriptBuf,
    },
    /// Makes money.
    #[error("it pays {paid} and spends {spent}, expected outputs worth at most the inputs")]
    Overspends {
        /// All outputs, or 21 million BTC and more.
        paid: Amount,
        /// All inputs.
        spent: Amount,
    },
    /// Gives too much to miners.
    #[error("its fee is {found}, expected at most {expected}")]
    Fee {
        /// Its fee.
        found: Amount,
        /// What the request allows.
        expected: Amount,
    },
    /// Not relayed.
    #[error("it would weigh {found} when signed, expected at most {expected}")]
    Weight {
        /// With every signature.
        found: Weight,
        /// What is relayed.
        expected: Weight,
    },
}
