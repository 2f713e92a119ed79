//! Every refusal, by the smallest change to a good PSBT.

use bitcoin::{
    PubkeyHash, ScriptBuf, Sequence, Transaction, TxIn, Txid, WPubkeyHash, Witness,
    absolute::LockTime,
    bip32::{DerivationPath, Fingerprint, Xpub},
    ecdsa,
    hashes::Hash,
    opcodes::all::OP_RETURN,
    psbt::{PsbtSighashType, raw},
    transaction::Version,
};

use super::*;
use crate::{config::FirstFederation, message::FederationMember};

const KEYS: [&str; 3] = [
    "02407694a4f3dab3a9aa0bf949c7799d43713acb48b7f7cf9b43430425ab2bea56",
    "037ff987b86f553d8372335a47416256fd90e42dafdc4cf04e275c18ece8129331",
    "0289891fc7e42834eb2c6e8dfe3000c47e54099ea98b40d0df70c4e734791f2a96",
];
/// secp256k1's generator: nobody's.
const STRANGER: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

fn federation() -> Federation {
    let member = |(index, key): (usize, &&str)| FederationMember {
        id: format!("member-{index}").parse().expect("valid"),
        public_key: key.parse().expect("on the curve"),
        active: true,
    };
    let first = FirstFederation {
        threshold: 2,
        members: KEYS.iter().enumerate().map(member).collect(),
    };
    let chain = "alys-regtest".parse().expect("valid");
    Federation::first(&first, Network::Regtest, &chain).expect("a federation")
}

/// A good one, to be changed.
struct Parts {
    psbt: Psbt,
    input_indices: Vec<u32>,
    tx_type: TransactionType,
    network: Network,
    burns: Vec<PegoutBinding>,
    max_fee: Amount,
}

fn owner() -> ScriptBuf {
    person(b"owner")
}

fn other() -> ScriptBuf {
    person(b"other")
}

fn person(name: &[u8]) -> ScriptBuf {
    let hash = WPubkeyHash::from_raw_hash(PubkeyHash::hash(name).to_raw_hash());
    ScriptBuf::new_p2wpkh(&hash)
}

fn binding(tx: u8, output_index: u32, sat: u64) -> PegoutBinding {
    PegoutBinding {
        burn_tx_hash: [tx; 32],
        log_index: 0,
        block_hash: [9; 32],
        block_height: 100,
        output_index,
        amount: Amount::from_sat(sat),
        script_pubkey: owner(),
    }
}

/// Two inputs of the federation, a burn, and change.
fn good() -> Parts {
    let federation = federation();
    let parent = |number: u8| Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array([number; 32]), 0),
            ..TxIn::default()
        }],
        output: vec![TxOut {
            value: Amount::from_sat(100_000),
            script_pubkey: federation.address().script_pubkey(),
        }],
    };
    let parents = [parent(1), parent(2)];
    let input = |parent: &Transaction| TxIn {
        previous_output: OutPoint::new(parent.compute_txid(), 0),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    };
    let transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: parents.iter().map(input).collect(),
        output: vec![
            TxOut {
                value: Amount::from_sat(50_000),
                script_pubkey: owner(),
            },
            TxOut {
                value: Amount::from_sat(149_000),
                script_pubkey: federation.address().script_pubkey(),
            },
        ],
    };
    let mut psbt = Psbt::from_unsigned_tx(transaction).expect("unsigned");
    for (input, parent) in psbt.inputs.iter_mut().zip(&parents) {
        input.witness_utxo = Some(parent.output[0].clone());
        input.non_witness_utxo = Some(parent.clone());
        input.witness_script = Some(federation.script().clone());
        input.sighash_type = Some(EcdsaSighashType::All.into());
        let origin = (Fingerprint::default(), DerivationPath::master());
        input
            .bip32_derivation
            .insert(KEYS[0].parse().expect("a key"), origin);
    }
    Parts {
        psbt,
        input_indices: vec![0, 1],
        tx_type: TransactionType::Pegout,
        network: Network::Regtest,
        burns: vec![binding(1, 0, 50_000)],
        max_fee: Amount::from_sat(1_000),
    }
}

fn judge(parts: &Parts) -> Result<(), PsbtFault> {
    check(
        &Claim {
            psbt: &parts.psbt,
            input_indices: &parts.input_indices,
            tx_type: parts.tx_type,
            network: parts.network,
            burns: &parts.burns,
            max_fee: parts.max_fee,
        },
        &federation(),
    )
}

fn unknown() -> (raw::Key, Vec<u8>) {
    let key = raw::Key {
        type_value: 0x70,
        key: vec![],
    };
    (key, vec![1])
}

fn proprietary() -> (raw::ProprietaryKey, Vec<u8>) {
    let key = raw::ProprietaryKey {
        prefix: b"wallet".to_vec(),
        subtype: 0,
        key: vec![],
    };
    (key, vec![1])
}

type Change = fn(&mut Parts);
type Expected = fn(&PsbtFault) -> bool;

/// The smallest change, and what is said of it.
const REFUSALS: &[(&str, Change, Expected)] = {
    use PsbtFault as F;
    &[
        (
            "type",
            |p| p.tx_type = TransactionType::Emergency,
            |f| matches!(f, F::Type { found: "emergency" }),
        ),
        (
            "network",
            |p| p.network = Network::Bitcoin,
            |f| {
                matches!(
                    f,
                    F::Network {
                        found: Network::Bitcoin
                    }
                )
            },
        ),
        (
            "PSBT version",
            |p| p.psbt.version = 2,
            |f| matches!(f, F::PsbtVersion { found: 2 }),
        ),
        (
            "transaction version",
            |p| p.psbt.unsigned_tx.version = Version(3),
            |f| matches!(f, F::TransactionVersion { found: 3 }),
        ),
        (
            "lock time",
            |p| p.psbt.unsigned_tx.lock_time = LockTime::from_consensus(500_000_000),
            |f| matches!(f, F::LockTime { .. }),
        ),
        (
            "extended key",
            |p| {
                let xpub = "xpub6CUGRUonZSQ4TWtTMmzXdrXDtypWKiKrhko4egpiMZbpiaQL2jkwSB1icqYh2cfDfVxdx4df189oLKnC5fSwqPfgyP3hooxujYzAu3fDVmz";
                let xpub: Xpub = xpub.parse().expect("an extended key");
                p.psbt
                    .xpub
                    .insert(xpub, (Fingerprint::default(), DerivationPath::master()));
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "extended public keys",
                        ..
                    }
                )
            },
        ),
        (
            "proprietary",
            |p| {
                p.psbt.proprietary.extend([proprietary()]);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "proprietary fields",
                        ..
                    }
                )
            },
        ),
        (
            "unknown",
            |p| {
                p.psbt.unknown.extend([unknown()]);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "unknown fields",
                        ..
                    }
                )
            },
        ),
        (
            "input map missing",
            |p| {
                p.psbt.inputs.pop();
            },
            |f| {
                matches!(
                    f,
                    F::Maps {
                        maps: "input",
                        found: 1,
                        expected: 2
                    }
                )
            },
        ),
        (
            "output map missing",
            |p| {
                p.psbt.outputs.pop();
            },
            |f| {
                matches!(
                    f,
                    F::Maps {
                        maps: "output",
                        found: 1,
                        expected: 2
                    }
                )
            },
        ),
        (
            "no inputs",
            |p| {
                p.psbt.unsigned_tx.input.clear();
                p.psbt.inputs.clear();
            },
            |f| matches!(f, F::NoInput(_)),
        ),
        (
            "null input",
            |p| p.psbt.unsigned_tx.input[0].previous_output = OutPoint::null(),
            |f| matches!(f, F::NoInput(_)),
        ),
        (
            "input twice",
            |p| {
                p.psbt.unsigned_tx.input[1].previous_output =
                    p.psbt.unsigned_tx.input[0].previous_output
            },
            |f| matches!(f, F::DuplicateInput { input: 1, .. }),
        ),
        (
            "relative lock",
            |p| p.psbt.unsigned_tx.input[1].sequence = Sequence::from_height(1),
            |f| matches!(f, F::RelativeLock { input: 1 }),
        ),
        (
            "an input not asked for",
            |p| {
                p.input_indices.pop();
            },
            |f| {
                matches!(
                    f,
                    F::Incomplete {
                        asked: 1,
                        inputs: 2
                    }
                )
            },
        ),
        (
            "an input asked for twice",
            |p| p.input_indices = vec![0, 0],
            |f| matches!(f, F::Incomplete { .. }),
        ),
        (
            "no witness_utxo",
            |p| p.psbt.inputs[1].witness_utxo = None,
            |f| matches!(f, F::NoUtxo { input: 1 }),
        ),
        (
            "another amount",
            |p| p.psbt.inputs[1].witness_utxo.as_mut().expect("set").value += Amount::ONE_SAT,
            |f| matches!(f, F::UtxoDisagrees { input: 1, .. }),
        ),
        (
            "another parent",
            |p| p.psbt.inputs[1].non_witness_utxo = p.psbt.inputs[0].non_witness_utxo.clone(),
            |f| matches!(f, F::UtxoDisagrees { input: 1, .. }),
        ),
        (
            "a stranger's coin",
            |p| {
                p.psbt.inputs[0].non_witness_utxo = None;
                p.psbt.inputs[0]
                    .witness_utxo
                    .as_mut()
                    .expect("set")
                    .script_pubkey = owner();
            },
            |f| matches!(f, F::NotOurs { input: 0, .. }),
        ),
        (
            "no script",
            |p| p.psbt.inputs[0].witness_script = None,
            |f| {
                matches!(
                    f,
                    F::Script {
                        input: 0,
                        version: 1,
                        ..
                    }
                )
            },
        ),
        (
            "another script",
            |p| p.psbt.inputs[0].witness_script = Some(owner()),
            |f| matches!(f, F::Script { input: 0, .. }),
        ),
        (
            "sighash none",
            |p| p.psbt.inputs[0].sighash_type = Some(EcdsaSighashType::None.into()),
            |f| matches!(f, F::Sighash { input: 0, .. }),
        ),
        (
            "sighash anyone can pay",
            |p| p.psbt.inputs[0].sighash_type = Some(EcdsaSighashType::AllPlusAnyoneCanPay.into()),
            |f| matches!(f, F::Sighash { .. }),
        ),
        (
            "sighash of no kind",
            |p| p.psbt.inputs[0].sighash_type = Some(PsbtSighashType::from_u32(0x41)),
            |f| matches!(f, F::Sighash { .. }),
        ),
        (
            "script_sig",
            |p| p.psbt.unsigned_tx.input[0].script_sig = owner(),
            |f| matches!(f, F::Signed { input: 0 }),
        ),
        (
            "partial signature",
            |p| {
                let signature = "3006020101020101";
                let signature = ecdsa::Signature::sighash_all(signature.parse().expect("DER"));
                p.psbt.inputs[0]
                    .partial_sigs
                    .insert(KEYS[0].parse().expect("a key"), signature);
            },
            |f| matches!(f, F::Signed { input: 0 }),
        ),
        (
            "finalised",
            |p| p.psbt.inputs[0].final_script_witness = Some(Witness::new()),
            |f| matches!(f, F::Signed { input: 0 }),
        ),
        (
            "input redeem script",
            |p| p.psbt.inputs[0].redeem_script = Some(owner()),
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "a redeem script",
                        ..
                    }
                )
            },
        ),
        (
            "preimage",
            |p| {
                p.psbt.inputs[0]
                    .sha256_preimages
                    .insert(Hash::hash(b"secret"), b"secret".to_vec());
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "preimages",
                        ..
                    }
                )
            },
        ),
        (
            "taproot input",
            |p| {
                let key: secp256k1::PublicKey = STRANGER.parse().expect("a key");
                p.psbt.inputs[0].tap_internal_key = Some(key.x_only_public_key().0);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "taproot fields",
                        ..
                    }
                )
            },
        ),
        (
            "proprietary input",
            |p| {
                p.psbt.inputs[1].proprietary.extend([proprietary()]);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "proprietary fields",
                        ..
                    }
                )
            },
        ),
        (
            "unknown input",
            |p| {
                p.psbt.inputs[1].unknown.extend([unknown()]);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "unknown fields",
                        ..
                    }
                )
            },
        ),
        (
            "a stranger's key origin",
            |p| {
                let origin = (Fingerprint::default(), DerivationPath::master());
                p.psbt.inputs[0]
                    .bip32_derivation
                    .insert(STRANGER.parse().expect("a key"), origin);
            },
            |f| matches!(f, F::Stranger { .. }),
        ),
        ("no burn", |p| p.burns.clear(), |f| matches!(f, F::NoBurn)),
        (
            "a burn of no output",
            |p| p.burns[0].output_index = 2,
            |f| {
                matches!(
                    f,
                    F::NoOutput {
                        output: 2,
                        outputs: 2,
                        ..
                    }
                )
            },
        ),
        (
            "a satoshi more",
            |p| p.burns[0].amount += Amount::ONE_SAT,
            |f| matches!(f, F::BurnAmount { output: 0, .. }),
        ),
        (
            "a satoshi less",
            |p| p.burns[0].amount -= Amount::ONE_SAT,
            |f| matches!(f, F::BurnAmount { output: 0, .. }),
        ),
        (
            "another output",
            |p| p.burns[0].output_index = 1,
            |f| matches!(f, F::BurnAmount { output: 1, .. }),
        ),
        (
            "another payee",
            |p| p.psbt.unsigned_tx.output[0].script_pubkey = other(),
            |f| matches!(f, F::BurnPayee { output: 0, found, .. } if *found == other()),
        ),
        (
            "owed to another",
            |p| p.burns[0].script_pubkey = other(),
            |f| matches!(f, F::BurnPayee { output: 0, expected, .. } if *expected == other()),
        ),
        (
            "burn twice",
            |p| p.burns.push(binding(1, 1, 149_000)),
            |f| matches!(f, F::BurnTwice { .. }),
        ),
        (
            "output twice",
            |p| p.burns.push(binding(2, 0, 50_000)),
            |f| matches!(f, F::OutputTwice { output: 0 }),
        ),
        (
            "burn to the federation",
            |p| {
                let script_pubkey = federation().address().script_pubkey();
                p.burns.push(PegoutBinding {
                    script_pubkey,
                    ..binding(2, 1, 149_000)
                });
            },
            |f| matches!(f, F::BurnToFederation { output: 1, .. }),
        ),
        (
            "change to a stranger",
            |p| p.psbt.unsigned_tx.output[1].script_pubkey = owner(),
            |f| matches!(f, F::StrangeOutput { output: 1, .. }),
        ),
        (
            "a note",
            |p| {
                let script = ScriptBuf::builder().push_opcode(OP_RETURN).into_script();
                p.psbt.unsigned_tx.output[0].script_pubkey = script.clone();
                p.burns[0].script_pubkey = script;
            },
            |f| matches!(f, F::OutputType { output: 0, .. }),
        ),
        (
            "dust",
            |p| {
                p.psbt.unsigned_tx.output[0].value = Amount::from_sat(293);
                p.burns[0].amount = Amount::from_sat(293);
            },
            |f| matches!(f, F::Dust { output: 0, .. }),
        ),
        (
            "output redeem script",
            |p| p.psbt.outputs[0].redeem_script = Some(owner()),
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "a redeem script",
                        ..
                    }
                )
            },
        ),
        (
            "another change script",
            |p| p.psbt.outputs[1].witness_script = Some(owner()),
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "a witness script that is not the federation's change",
                        ..
                    }
                )
            },
        ),
        (
            "taproot output",
            |p| {
                let key: secp256k1::PublicKey = STRANGER.parse().expect("a key");
                p.psbt.outputs[0].tap_internal_key = Some(key.x_only_public_key().0);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "taproot fields",
                        ..
                    }
                )
            },
        ),
        (
            "proprietary output",
            |p| {
                p.psbt.outputs[0].proprietary.extend([proprietary()]);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "proprietary fields",
                        ..
                    }
                )
            },
        ),
        (
            "unknown output",
            |p| {
                p.psbt.outputs[0].unknown.extend([unknown()]);
            },
            |f| {
                matches!(
                    f,
                    F::Surprise {
                        what: "unknown fields",
                        ..
                    }
                )
            },
        ),
        (
            "a stranger's change key",
            |p| {
                let origin = (Fingerprint::default(), DerivationPath::master());
                p.psbt.outputs[1]
                    .bip32_derivation
                    .insert(STRANGER.parse().expect("a key"), origin);
            },
            |f| matches!(f, F::Stranger { .. }),
        ),
        (
            "overspent",
            |p| p.psbt.unsigned_tx.output[1].value = Amount::from_sat(150_001),
            |f| matches!(f, F::Overspends { .. }),
        ),
        (
            "more money than there is",
            |p| p.psbt.unsigned_tx.output[1].value = Amount::MAX_MONEY,
            |f| matches!(f, F::Overspends { .. }),
        ),
        (
            "fee",
            |p| p.max_fee -= Amount::ONE_SAT,
            |f| matches!(f, F::Fee { .. }),
        ),
        (
            "weight",
            |p| {
                let output = p.psbt.unsigned_tx.output[1].clone();
                p.psbt
                    .unsigned_tx
                    .output
                    .extend(std::iter::repeat_n(output, 2_500));
                p.psbt
                    .outputs
                    .extend(std::iter::repeat_n(Output::default(), 2_500));
                let rich = Amount::from_sat(100_000_000_000);
                p.psbt.inputs[0].non_witness_utxo = None;
                p.psbt.inputs[0].witness_utxo.as_mut().expect("set").value = rich;
                p.max_fee = rich;
            },
            |f| matches!(f, F::Weight { .. }),
        ),
    ]
};

#[test]
fn a_good_psbt_is_good() {
    assert_eq!(judge(&good()), Ok(()));
    let mut plain = good();
    for input in &mut plain.psbt.inputs {
        // All that a wallet must tell.
        input.non_witness_utxo = None;
        input.sighash_type = None;
        input.bip32_derivation.clear();
    }
    assert_eq!(judge(&plain), Ok(()));
    let mut told = good();
    told.psbt.outputs[1].witness_script = Some(federation().script().clone());
    told.psbt.unsigned_tx.version = Version::ONE;
    told.psbt.unsigned_tx.lock_time = LockTime::from_consensus(100);
    assert_eq!(judge(&told), Ok(()));
}

#[test]
fn each_refusal_has_the_smallest_change_that_leads_to_it() {
    for (name, change, expected) in REFUSALS {
        let mut parts = good();
        change(&mut parts);
        let fault = judge(&parts).expect_err(name);
        assert!(expected(&fault), "{name}: {fault:?}");
        assert!(fault.to_string().len() > 10, "{name}");
    }
}

#[test]
fn the_estimated_weight_is_no_less_than_that_of_the_signed_transaction() {
    // 72 bytes is what a low-S signature with its sighash byte takes at most.
    let federation = federation();
    let mut transaction = good().psbt.unsigned_tx;
    for input in &mut transaction.input {
        input.witness.push([]);
        input.witness.push([0; 72]);
        input.witness.push([0; 72]);
        input.witness.push(federation.script().as_bytes());
    }
    let script = federation.script().len() as u64;
    let witness = 2 + 2 * SIGNATURE_WEIGHT + 3 + script;
    let estimated = good().psbt.unsigned_tx.weight() + Weight::from_wu(2 + 2 * witness);
    assert!(estimated >= transaction.weight());
}
