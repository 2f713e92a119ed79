//! Whatever signatures come, in whatever order and through whatever restarts: a transaction comes of
//! them exactly when every input has enough, and then consensus accepts it.

use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use bitcoin::{Amount, Network, TxOut, secp256k1::ecdsa::Signature};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    bridge::{
        BridgeStore,
        signatures::{FinaliseError, check_consensus},
        stored,
    },
    config::FirstFederation,
    message::{
        FailureCode, FederationMember, PartialSignature, SignatureRequestParts, SignatureStatus,
        TransactionType,
    },
    proto,
    simulator::{FederationView, wallet, wallet::Signers},
    storage::Store,
};

fn federation(view: &FederationView) -> Federation {
    let member = |(id, public_key): &(String, secp256k1::PublicKey)| FederationMember {
        id: id.parse().expect("valid"),
        public_key: *public_key,
        active: true,
    };
    let first = FirstFederation {
        threshold: u32::try_from(view.threshold).expect("small"),
        members: view.members.iter().map(member).collect(),
    };
    let chain = "alys-regtest".parse().expect("valid");
    Federation::first(&first, Network::Regtest, &chain).expect("a federation")
}

fn request(view: &FederationView, inputs: u32) -> SignatureRequest {
    let amount = Amount::from_sat(50_000);
    SignatureRequest::new(SignatureRequestParts {
        request_id: "pegout-1".parse().expect("valid"),
        psbt: wallet::pegout_psbt(view, 1, inputs, amount).expect("covered"),
        input_indices: (0..inputs).collect(),
        tx_type: TransactionType::Pegout,
        chain: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: 1,
        burns: vec![wallet::burn(1, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    })
    .expect("valid")
}

fn partial(wire: proto::PartialSignature) -> PartialSignature {
    let key = secp256k1::PublicKey::from_slice(&wire.public_key);
    PartialSignature {
        input_index: wire.input_index,
        public_key: key.expect("a key"),
        signature: wire.signature.to_vec(),
    }
}

fn response(
    request: &SignatureRequest,
    status: SignatureStatus,
    signatures: Vec<PartialSignature>,
) -> SignatureResponse {
    SignatureResponse {
        request_id: request.request_id().clone(),
        txid: request.txid(),
        federation_version: request.federation_version(),
        status,
        signatures,
    }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

const PROGRESS: SignatureStatus = SignatureStatus::InProgress {
    collected: 0,
    required: 0,
};

/// One signature of one member for one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Never,
    Well,
    Twice,
    /// For a digest that nobody asked about.
    ForAnother,
    /// With another sighash type than the one it signs.
    OtherType,
    HighS,
    Cut,
    ByStranger,
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        3 => Just(Made::Never),
        8 => Just(Made::Well),
        1 => Just(Made::Twice),
        1 => Just(Made::ForAnother),
        1 => Just(Made::OtherType),
        1 => Just(Made::HighS),
        1 => Just(Made::Cut),
        1 => Just(Made::ByStranger),
    ]
}

/// The order of secp256k1's group.
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
    0xba, 0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41,
];

/// As valid for ECDSA, and refused by Bitcoin's policy (BIP-146).
fn with_high_s(bytes: &[u8]) -> Vec<u8> {
    let (der, sighash) = bytes.split_at(bytes.len() - 1);
    let mut compact = Signature::from_der(der).expect("DER").serialize_compact();
    let mut borrow = 0;
    for (byte, order) in compact[32..].iter_mut().zip(ORDER).rev() {
        let difference = i16::from(order) - i16::from(*byte) - borrow;
        borrow = i16::from(difference < 0);
        *byte = u8::try_from(difference.rem_euclid(256)).expect("a byte");
    }
    let high = Signature::from_compact(&compact).expect("in range");
    [high.serialize_der().as_ref(), sighash].concat()
}

#[derive(Debug, Clone)]
struct Plan {
    threshold: usize,
    members: usize,
    inputs: u32,
    /// By member, then by input; and with which response.
    made: Vec<Vec<(Made, usize)>>,
    /// Whether the bridge dies before each response.
    restarts: [bool; 3],
}

fn plans() -> impl Strategy<Value = Plan> {
    (1..=15_usize, 1..=4_u32).prop_flat_map(|(members, inputs)| {
        let of_member = vec((made(), 0..3_usize), inputs as usize);
        (
            // Small ones more often: they are met more often.
            prop_oneof![Just(1), Just(members.div_ceil(2)), 1..=members],
            vec(of_member, members),
            any::<[bool; 3]>(),
        )
            .prop_map(move |(threshold, made, restarts)| Plan {
                threshold,
                members,
                inputs,
                made,
                restarts,
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_transaction_comes_exactly_of_enough_good_signatures_and_passes_consensus(plan in plans()) {
        let signers = Signers::new(7, plan.members, plan.threshold).expect("exists");
        let strangers = Signers::new(8, 1, 1).expect("exists");
        let view = signers.view();
        let federation = federation(&view);
        let request = request(&view, plan.inputs);
        let mut other = request.psbt().clone();
        other.unsigned_tx.output[0].value -= Amount::ONE_SAT;
        let mut responses: [Vec<(Made, PartialSignature)>; 3] = Default::default();
        for (member, made) in plan.made.iter().enumerate() {
            let (good, wrong) = (signers.sign(request.psbt(), member), signers.sign(&other, member));
            let strange = strangers.sign(request.psbt(), 0);
            for (((how, when), good), (wrong, strange)) in
                made.iter().zip(good).zip(wrong.into_iter().zip(strange))
            {
                let mut signature = partial(good);
                match how {
                    Made::Never => continue,
                    Made::Well | Made::Twice => {}
                    Made::ForAnother => signature = partial(wrong),
                    Made::OtherType => *signature.signature.last_mut().expect("a byte") = 2,
                    Made::HighS => signature.signature = with_high_s(&signature.signature),
                    Made::Cut => signature.signature.truncate(20),
                    Made::ByStranger => signature = partial(strange),
                }
                if *how == Made::Twice {
                    responses[*when].push((*how, signature.clone()));
                }
                responses[*when].push((*how, signature));
            }
        }

        let mut pegout = Pegout::new(request.clone(), now());
        let mut good: BTreeSet<(u32, secp256k1::PublicKey)> = BTreeSet::new();
        for (signatures, restart) in responses.into_iter().zip(plan.restarts) {
            if restart {
                pegout = stored::read_pegout(&stored::write_pegout(&pegout)).expect("whole");
            }
            let was_signed = pegout.transaction().is_some();
            let is_good = |made: &Made| matches!(made, Made::Well | Made::Twice);
            let bad = signatures.iter().filter(|(made, _)| !is_good(made)).count();
            let well = signatures.iter().filter(|(made, _)| is_good(made));
            good.extend(well.map(|(_, s)| (s.input_index, s.public_key)));
            let signatures = signatures.into_iter().map(|(_, signature)| signature).collect();
            let applied = pegout.respond(&response(&request, PROGRESS, signatures), &federation);
            let applied = applied.expect("it fits");
            if let Some(event) = applied.event {
                pegout.apply(event, now()).expect("possible");
            }
            prop_assert_eq!(applied.bad.len(), if was_signed { 0 } else { bad });

            let of_input = |input| good.iter().filter(|(signed, _)| *signed == input).count();
            let fewest = (0..plan.inputs).map(of_input).min().expect("inputs");
            let enough = fewest >= plan.threshold;
            prop_assert_eq!(pegout.transaction().is_some(), enough, "{:?}", pegout.stage());
            if enough {
                prop_assert_eq!(pegout.stage(), &PegoutStage::Signed);
            } else if !good.is_empty() {
                let expected = PegoutStage::Partial {
                    collected: u32::try_from(fewest).expect("small"),
                    required: u32::try_from(plan.threshold).expect("small"),
                };
                prop_assert_eq!(pegout.stage(), &expected);
            }
            if let Some(transaction) = pegout.transaction() {
                let spent: Vec<TxOut> = request.spent_outputs().cloned().collect();
                prop_assert_eq!(transaction.compute_txid(), request.txid());
                prop_assert_eq!(check_consensus(transaction, &spent), Ok(()));
            }
        }
    }
}

/// A peg-out of two inputs that has one member's good signatures.
fn half_signed() -> (Signers, Federation, Pegout) {
    let signers = Signers::new(7, 3, 2).expect("exists");
    let federation = federation(&signers.view());
    let request = request(&signers.view(), 2);
    let mut pegout = Pegout::new(request.clone(), now());
    let signatures = signers.sign(request.psbt(), 0).into_iter().map(partial);
    let response = response(&request, PROGRESS, signatures.collect());
    let applied = pegout.respond(&response, &federation).expect("fits");
    pegout
        .apply(applied.event.expect("news"), now())
        .expect("possible");
    (signers, federation, pegout)
}

#[test]
fn nothing_of_a_response_for_something_else_is_used() {
    type Change = fn(&mut SignatureResponse);
    let changes: [(Change, &str); 3] = [
        (
            |r| r.txid = Txid::from_raw_hash(bitcoin::hashes::Hash::all_zeros()),
            "txid is 000",
        ),
        (
            |r| r.federation_version = 2,
            "federation_version is 2, version 1 was asked for",
        ),
        (
            |r| r.signatures[1].input_index = 2,
            "it signs input 2, which was not asked for",
        ),
    ];
    for (change, words) in changes {
        let (signers, federation, mut pegout) = half_signed();
        let before = format!("{pegout:?}");
        let request = pegout.request().expect("open").clone();
        let signatures = signers.sign(request.psbt(), 1).into_iter().map(partial);
        let mut response = response(&request, SignatureStatus::Complete, signatures.collect());
        let good = response.clone();
        change(&mut response);
        let misfit = pegout.respond(&response, &federation).expect_err(words);
        assert!(misfit.to_string().contains(words), "{misfit}");
        assert_eq!(format!("{pegout:?}"), before, "nothing has changed");
        // Without the change it would have done.
        let applied = pegout.respond(&good, &federation).expect("fits");
        assert_eq!(applied.event, Some(LifeEvent::Signed));
    }
}

/// A tombstone's answer: whoever cancels what governance never saw has an outcome.
#[test]
fn a_refusal_of_what_governance_never_saw_names_no_transaction() {
    let (signers, federation, mut pegout) = half_signed();
    let request = pegout.request().expect("open").clone();
    let refused = SignatureStatus::Cancelled {
        signatures_released: true,
    };
    let unnamed = |status, signatures| SignatureResponse {
        txid: Txid::from_raw_hash(bitcoin::hashes::Hash::all_zeros()),
        federation_version: 0,
        ..response(&request, status, signatures)
    };
    let signatures = signers.sign(request.psbt(), 1).into_iter().map(partial);
    for unfit in [
        unnamed(SignatureStatus::Complete, Vec::new()),
        unnamed(PROGRESS, Vec::new()),
        unnamed(refused.clone(), signatures.collect()),
    ] {
        let misfit = pegout.respond(&unfit, &federation).expect_err("unfit");
        assert!(matches!(misfit, Misfit::Txid { .. }), "{misfit}");
    }
    let applied = pegout.respond(&unnamed(refused, Vec::new()), &federation);
    assert!(applied.expect("fits").event.is_some());
}

#[test]
fn late_signatures_save_a_pegout_that_failed_for_want_of_them() {
    let (signers, federation, mut pegout) = half_signed();
    let request = pegout.request().expect("open").clone();
    let declined = SignatureStatus::Failed {
        code: FailureCode::Declined,
        reason: "not today".to_owned(),
    };
    let applied = pegout.respond(&response(&request, declined, vec![]), &federation);
    let event = applied.expect("fits").event.expect("news");
    pegout.apply(event, now()).expect("possible");
    assert!(matches!(
        pegout.stage(),
        PegoutStage::Failed(PegoutFailure::NotSigned(_))
    ));
    // Through a restart.
    let mut pegout = stored::read_pegout(&stored::write_pegout(&pegout)).expect("whole");
    assert!(matches!(
        pegout.stage(),
        PegoutStage::Failed(PegoutFailure::NotSigned(_))
    ));
    let late = signers
        .sign(request.psbt(), 2)
        .into_iter()
        .map(partial)
        .collect();
    let applied = pegout.respond(&response(&request, PROGRESS, late), &federation);
    let event = applied.expect("fits").event.expect("news");
    let action = pegout.apply(event, now()).expect("possible");
    assert_eq!(
        (pegout.stage(), action),
        (&PegoutStage::Signed, Some(Action::Offer))
    );
}

#[test]
fn signatures_count_while_a_cancel_is_on_its_way_and_do_not_take_it_back() {
    let (signers, federation, mut pegout) = half_signed();
    let request = pegout.request().expect("open").clone();
    pegout.stage = PegoutStage::Requested;
    let action = pegout
        .apply(LifeEvent::CancelAsked, now())
        .expect("possible");
    assert_eq!(action, Some(Action::Cancel));
    let mut respond = |member| {
        let signatures = signers.sign(request.psbt(), member).into_iter();
        let response = response(&request, PROGRESS, signatures.map(partial).collect());
        let applied = pegout.respond(&response, &federation).expect("fits");
        let event = applied.event.expect("news");
        (
            pegout.apply(event, now()).expect("possible"),
            pegout.stage.clone(),
        )
    };
    assert_eq!(respond(0), (None, PegoutStage::Cancelling));
    // The cancel came too late.
    assert_eq!(respond(1), (Some(Action::Offer), PegoutStage::Signed));
    assert_eq!(pegout.apply(LifeEvent::CancelPassedOn, now()), Ok(None));
    assert_eq!(pegout.stage(), &PegoutStage::Signed);
}

#[tokio::test]
async fn a_cancel_waits_for_whoever_asks_and_nobody_asks_after_it() {
    let store = BridgeStore::new(Store::in_memory());
    let signers = Signers::new(7, 3, 2).expect("exists");
    let mut pegout = Pegout::new(request(&signers.view(), 1), now());
    let id = pegout.request_id().clone();
    store.set_loaded([].iter(), &BTreeSet::new());
    assert!(store.leave_to_ask(&id).await.is_none(), "it is not there");
    store.show(vec![Arc::new(pegout.clone())], None);
    let leave = store.leave_to_ask(&id).await;
    assert!(leave.is_some());
    let action = pegout.apply(LifeEvent::CancelAsked, now());
    assert_eq!(action, Ok(Some(Action::Cancel)));
    store.show(vec![Arc::new(pegout)], None);
    let waiting = store.until_nobody_asks();
    tokio::pin!(waiting);
    tokio::select! {
        biased;
        () = &mut waiting => panic!("someone still asks"),
        () = std::future::ready(()) => {}
    }
    drop(leave);
    waiting.await;
    assert!(store.leave_to_ask(&id).await.is_none(), "it is cancelled");
}

#[tokio::test]
async fn nobody_asks_while_rows_are_read_or_after_the_end() {
    let store = BridgeStore::new(Store::in_memory());
    let signers = Signers::new(7, 3, 2).expect("exists");
    let pegout = Arc::new(Pegout::new(request(&signers.view(), 1), now()));
    let id = pegout.request_id().clone();
    store.set_loaded([&pegout].into_iter(), &BTreeSet::new());
    assert!(store.leave_to_ask(&id).await.is_some());
    store.set_loading();
    assert!(store.leave_to_ask(&id).await.is_none(), "rows are read");
    store.set_loaded([&pegout].into_iter(), &BTreeSet::new());
    store.let_go(std::slice::from_ref(&id));
    assert!(store.leave_to_ask(&id).await.is_none(), "it has ended");
}

#[test]
fn each_stage_is_read_as_it_was_written() {
    let (_, _, mut pegout) = half_signed();
    let place = crate::bridge::Place {
        block: bitcoin::hashes::Hash::hash(b"block"),
        height: 101,
    };
    let txid = pegout.txid();
    let failed = |outcome| PegoutStage::Failed(PegoutFailure::NotSigned(outcome));
    let unusable = |fault| PegoutStage::Failed(PegoutFailure::Unusable(fault));
    for stage in [
        PegoutStage::Requested,
        PegoutStage::Cancelling,
        PegoutStage::Cancelled,
        PegoutStage::SignaturesRequested,
        PegoutStage::Partial {
            collected: 1,
            required: 2,
        },
        PegoutStage::Signed,
        PegoutStage::Broadcast { txid },
        PegoutStage::Confirmed {
            confirmations: 2,
            place,
        },
        PegoutStage::Completed { place },
        PegoutStage::Superseded {
            by: "other".parse().expect("valid"),
        },
        PegoutStage::Failed(PegoutFailure::NotAccepted("full".to_owned())),
        PegoutStage::Failed(PegoutFailure::Short),
        failed(Outcome::Complete),
        failed(Outcome::Failed {
            code: Some(FailureCode::Declined),
            reason: "not today".to_owned(),
        }),
        failed(Outcome::Failed {
            code: None,
            reason: "timed out".to_owned(),
        }),
        failed(Outcome::Rejected {
            reason: "dust".to_owned(),
        }),
        failed(Outcome::Cancelled {
            signatures_released: true,
        }),
        failed(Outcome::ExpiredUnsent),
        unusable(FinaliseError::Unsatisfied("few".to_owned())),
        unusable(FinaliseError::Consensus("no".to_owned())),
        PegoutStage::Failed(PegoutFailure::Refused("dust".to_owned())),
    ] {
        pegout.stage = stage.clone();
        let read = stored::read_pegout(&stored::write_pegout(&pegout)).expect("whole");
        assert_eq!(read.stage(), &stage);
        assert_eq!(read.named(), pegout.named());
        assert_eq!((read.begun_at(), read.since()), (now(), now()));
        let signatures = |pegout: &Pegout| pegout.signing().map(|s| s.signatures.clone());
        assert_eq!(signatures(&read), signatures(&pegout));
    }
}

#[test]
fn what_is_over_keeps_its_name_its_burns_and_its_coins_and_takes_no_signature() {
    let (signers, federation, mut pegout) = half_signed();
    let whole = stored::write_pegout(&pegout).len();
    let request = pegout.request().expect("open").clone();
    let by = "other".parse().expect("valid");
    pegout
        .apply(LifeEvent::Overtaken { by }, now())
        .expect("possible");
    assert!(pegout.request().is_none() && pegout.transaction().is_none());
    let written = stored::write_pegout(&pegout);
    assert!(written.len() * 2 < whole, "{} of {whole}", written.len());
    let mut read = stored::read_pegout(&written).expect("whole");
    assert_eq!(read.named(), &Named::from(&request));
    let late = signers.sign(request.psbt(), 1).into_iter().map(partial);
    let late = response(&request, SignatureStatus::Complete, late.collect());
    let applied = read.respond(&late, &federation).expect("fits");
    assert_eq!(applied.event, None);
    let mut stray = late;
    stray.signatures[0].input_index = 2;
    assert_eq!(
        read.respond(&stray, &federation).err(),
        Some(Misfit::Input(2))
    );
    assert_eq!(stored::write_pegout(&read), written, "nothing has changed");
}
