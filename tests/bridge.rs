//! Peg-outs through the whole tree, to transactions that Bitcoin's consensus accepts.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use bitcoin::{Psbt, Witness};
use governance_stream::{
    bridge::{
        Acceptance, BitcoinBackend as _, BridgeMessage, FileOutbox, PegoutFailure, PegoutRefusal,
        PegoutStage, PsbtFault, SignedTransaction, check_consensus,
    },
    message::{FailureCode, Outcome, SignatureRequest, TransactionType},
    proto::{self, FederationUpdateKind},
    simulator::{Behaviour, RotationPlan, wallet},
};
use ractor::rpc::CallResult;
use support::{PATIENCE, full::FullNode, governance, pegout, pegout_parts, request_id};

fn settled(stage: &PegoutStage) -> bool {
    stage.is_on_network() || matches!(stage, PegoutStage::Failed(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pegout_is_signed_by_two_of_three_checked_by_consensus_and_broadcast() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    let mut parts = pegout_parts(&federation, 1);
    parts.psbt = wallet::pegout_psbt(&federation, 1, 5, parts.burns[0].amount).expect("covered");
    parts.input_indices = (0..5).collect();
    let request = SignatureRequest::new(parts).expect("valid");
    node.initiate(request.clone()).await.expect("begun");
    node.initiate(request.clone())
        .await
        .expect("the same again is fine");
    node.until_on_network(1).await;
    let transactions = node.bitcoin.transactions();
    assert_eq!(transactions.len(), 1);
    let spent: Vec<_> = request.spent_outputs().cloned().collect();
    check_consensus(&transactions[0], &spent).expect("consensus accepts it");
    // The check can fail: no witness, or another amount.
    let mut unsigned = transactions[0].clone();
    unsigned.input[3].witness = Witness::new();
    check_consensus(&unsigned, &spent).expect_err("a witness is missing");
    let mut other = spent.clone();
    other[0].value -= bitcoin::Amount::ONE_SAT;
    check_consensus(&transactions[0], &other).expect_err("it signed for another amount");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_members_bad_signature_is_named_and_the_others_suffice() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    simulator.answer_next(Behaviour::OneBadSignature);
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until_on_network(1).await;
    let pegout = node.pegout(&request_id(1)).await.expect("known");
    let named: Vec<_> = pegout
        .bad_signatures()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        named,
        ["input 0: member member-0's signature does not verify"]
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_governance_will_not_sign_fails_with_its_reason() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    simulator.answer_next(Behaviour::Fail(
        proto::FailureCode::Declined,
        "not today".to_owned(),
    ));
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    let failed = Outcome::Failed {
        code: Some(FailureCode::Declined),
        reason: "not today".to_owned(),
    };
    assert_eq!(
        node.until(&request_id(1), settled).await,
        PegoutStage::Failed(PegoutFailure::NotSigned(failed))
    );
    // Its burn may be paid by another attempt that spends the same coin.
    let mut parts = pegout_parts(&federation, 1);
    parts.request_id = request_id(2);
    node.initiate(SignatureRequest::new(parts).expect("valid"))
        .await
        .expect("begun");
    node.until_on_network(2).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_for_another_transaction_are_rejected_and_the_request_is_parked() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    simulator.answer_next(Behaviour::WrongTxid);
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    let view = support::ledger(&simulator, |view| view.rejects.len() == 2).await;
    assert!(
        view.rejects.iter().all(|reason| reason.contains("txid")),
        "{:?}",
        view.rejects
    );
    let pegout = node.pegout(&request_id(1)).await;
    assert!(!pegout.is_some_and(|pegout| settled(pegout.stage())));
    assert!(node.bitcoin.transactions().is_empty());
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_dies_goes_on_from_its_store() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    for part in 0..3 {
        simulator.hold_responses();
        for number in part * 10..part * 10 + 10 {
            node.initiate(pegout(&federation, number))
                .await
                .expect("begun");
        }
        node.restart_bridge().await;
        simulator.release_responses();
        node.restart_bridge().await;
    }
    for number in 0..30 {
        node.until_on_network(number).await;
    }
    assert_eq!(node.bitcoin.transactions().len(), 30);
    assert_eq!(simulator.ledger().duplicates, 0);
    let get = |reply| BridgeMessage::GetPegoutStatus {
        request_id: request_id(3),
        reply,
    };
    let found = node
        .bridge
        .call(get, Some(PATIENCE))
        .await
        .expect("answers");
    assert!(matches!(found, CallResult::Success(Ok(Some(_)))));
    let (mut listed, mut before) = (Vec::new(), None);
    loop {
        let list = |reply| BridgeMessage::ListPegouts {
            before,
            limit: 7,
            reply,
        };
        let page = match node.bridge.call(list, Some(PATIENCE)).await {
            Ok(CallResult::Success(page)) => page.expect("read"),
            other => panic!("no page: {other:?}"),
        };
        assert!(page.pegouts.len() <= 7);
        listed.extend(page.pegouts.iter().map(|p| p.request_id().clone()));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    let newest_first: Vec<_> = (0..30).rev().map(request_id).collect();
    assert_eq!(listed, newest_first);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_active_federations_coins_are_spent() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    let begin = |parts| SignatureRequest::new(parts).expect("valid");

    let mut parts = pegout_parts(&federation, 1);
    parts.federation_version = 2;
    assert_eq!(
        node.initiate(begin(parts)).await,
        Err(PegoutRefusal::NotActive(2))
    );

    let mut parts = pegout_parts(&federation, 1);
    parts.psbt.inputs[0]
        .witness_utxo
        .as_mut()
        .expect("set")
        .script_pubkey = bitcoin::ScriptBuf::new();
    assert!(matches!(
        node.initiate(begin(parts)).await,
        Err(PegoutRefusal::Psbt(PsbtFault::NotOurs { input: 0, .. }))
    ));

    let mut parts = pegout_parts(&federation, 1);
    parts.psbt = wallet::pegout_psbt(&federation, 1, 2, parts.burns[0].amount).expect("covered");
    let incomplete = PegoutRefusal::Psbt(PsbtFault::Incomplete {
        asked: 1,
        inputs: 2,
    });
    assert_eq!(node.initiate(begin(parts)).await, Err(incomplete));

    node.initiate(pegout(&federation, 1)).await.expect("begun");
    let mut parts = pegout_parts(&federation, 2);
    parts.request_id = request_id(1);
    assert_eq!(
        node.initiate(begin(parts)).await,
        Err(PegoutRefusal::Conflict(request_id(1)))
    );

    node.until(&request_id(1), settled).await;
    node.stop().await;
    simulator.assert_clean();
}

const PLAN: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 110,
    notice_blocks: 10,
    grace_blocks: 50,
    kind: FederationUpdateKind::Scheduled,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pegout_begun_with_a_federation_that_retires_is_still_completed() {
    use governance_stream::chain::ChainMessage;
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    simulator.hold_responses();
    node.initiate(pegout(&first, 1)).await.expect("begun");
    support::ledger(&simulator, |view| view.requests.len() == 1).await;
    let second = simulator.rotate_federation(&PLAN).expect("possible");
    support::ledger(&simulator, |view| view.federation_acks.len() == 1).await;
    node.chain
        .cast(ChainMessage::HeightReached(110))
        .expect("alive");
    node.until_active(2).await;
    assert_eq!(
        node.initiate(pegout(&first, 2)).await,
        Err(PegoutRefusal::NotActive(1))
    );
    node.initiate(pegout(&second, 3)).await.expect("begun");
    simulator.release_responses();
    for number in [1, 3] {
        node.until_on_network(number).await;
    }
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test]
async fn the_file_outbox_leaves_whole_files_and_takes_a_transaction_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let outbox = directory.path().join("outbox");
    let backend = FileOutbox::new(&outbox).expect("made");
    let transaction = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn::default()],
        output: vec![],
    };
    let signed = SignedTransaction {
        transaction: transaction.clone(),
        spent: vec![],
    };
    for _ in 0..2 {
        let taken = backend.broadcast(&signed).await;
        assert_eq!(taken, Ok(Acceptance::Accepted));
    }
    let files: Vec<_> = std::fs::read_dir(&outbox)
        .expect("there")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    assert_eq!(files, [format!("{}.hex", transaction.compute_txid())]);
    let hex = std::fs::read_to_string(outbox.join(&files[0])).expect("readable");
    let read: bitcoin::Transaction =
        bitcoin::consensus::encode::deserialize_hex(hex.trim()).expect("a transaction");
    assert_eq!(read, transaction);
    std::fs::remove_dir_all(&outbox).expect("removed");
    let gone = backend.broadcast(&signed).await;
    let gone = gone.expect_err("nowhere to write");
    assert!(gone.reason.contains("outbox"), "{gone}");
}

#[test]
fn a_psbt_that_disagrees_with_itself_is_no_request() {
    // What the wallet gives is only as good as its types allow; the rest is checked here.
    let runtime = tokio::runtime::Runtime::new().expect("starts");
    let federation =
        runtime.block_on(async { governance().await.federation(1).expect("the first") });
    let refused = |change: &dyn Fn(&mut governance_stream::message::SignatureRequestParts)| {
        let mut parts = pegout_parts(&federation, 1);
        change(&mut parts);
        SignatureRequest::new(parts).expect_err("refused").field
    };
    type Change<'a> = &'a dyn Fn(&mut governance_stream::message::SignatureRequestParts);
    let cases: [(Change<'_>, &str); 10] = [
        (
            &|p| p.psbt.inputs[0].witness_utxo = None,
            "psbt.inputs[0].witness_utxo",
        ),
        (
            &|p| p.psbt.inputs[0].witness_script = None,
            "psbt.inputs[0].witness_script",
        ),
        (
            &|p| p.psbt.inputs[0].final_script_witness = Some(Witness::new()),
            "psbt.inputs[0]",
        ),
        (
            &|p| p.psbt.inputs[0].non_witness_utxo = Some(p.psbt.unsigned_tx.clone()),
            "psbt.inputs[0].non_witness_utxo",
        ),
        (&|p| p.input_indices = vec![1], "input_indices"),
        (&|p| p.input_indices = vec![], "input_indices"),
        (&|p| p.max_fee = bitcoin::Amount::ZERO, "max_fee_sat"),
        (&|p| p.burns.clear(), "burns"),
        (&|p| p.tx_type = TransactionType::Emergency, "burns"),
        (
            &|p| p.replaces = Some(p.request_id.clone()),
            "replaces_request_id",
        ),
    ];
    for (change, field) in cases {
        assert_eq!(refused(change), field);
    }
    let _: Psbt = pegout_parts(&federation, 1).psbt;
}
