//! What a coin holds is not anyone's word: a SegWit v0 signature covers its own input's amount alone.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use bitcoin::{
    Amount, OutPoint, Transaction, TxIn, TxOut, Txid, absolute::LockTime, hashes::Hash,
    transaction::Version,
};
use governance_stream::{
    bridge::{PegoutRefusal, PegoutStage},
    message::SignatureRequest,
    proto,
    simulator::{Behaviour, FederationView, wallet},
};
use support::{Node, PATIENCE, full::FullNode, governance, pegout_parts, request_id};

/// Peg-out 1 under any id, with a coin that is said to hold more than it does; or with the
/// transaction that made it.
fn told(federation: &FederationView, number: u64, more: Amount, shown: bool) -> SignatureRequest {
    let maker = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array([1; 32]), 0),
            ..TxIn::default()
        }],
        output: vec![TxOut {
            value: wallet::COIN,
            script_pubkey: federation.address.script_pubkey(),
        }],
    };
    let mut parts = pegout_parts(federation, 1);
    let (coin, burn) = (OutPoint::new(maker.compute_txid(), 0), &parts.burns[0]);
    let (owner, amount) = (burn.script_pubkey.clone(), burn.amount);
    let psbt = wallet::spend(
        federation,
        &[(coin, wallet::COIN)],
        owner,
        amount,
        wallet::FEE,
    );
    parts.psbt = psbt.expect("covered");
    let input = &mut parts.psbt.inputs[0];
    input.witness_utxo.as_mut().expect("set").value += more;
    input.non_witness_utxo = shown.then_some(maker);
    parts.max_fee += more;
    parts.request_id = request_id(number);
    SignatureRequest::new(parts).expect("valid")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_coin_holds_is_told_once_or_shown() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    let more = Amount::from_sat(1_000);
    let lie = told(&federation, 1, more, false);
    simulator.answer_next(Behaviour::Fail(
        proto::FailureCode::Declined,
        "no".to_owned(),
    ));
    node.initiate(lie.clone()).await.expect("begun");
    let failed = |stage: &PegoutStage| matches!(stage, PegoutStage::Failed(_));
    node.until(&request_id(1), failed).await;
    // Whatever became of it.
    let refused = node
        .initiate(told(&federation, 2, Amount::ZERO, false))
        .await;
    let refusal = PegoutRefusal::CoinTold {
        outpoint: lie.spends().next().expect("one"),
        found: wallet::COIN,
        told: wallet::COIN + more,
        by: request_id(1),
    };
    assert_eq!(refused, Err(refusal));
    // What is shown needs nobody's word.
    node.initiate(told(&federation, 4, Amount::ZERO, true))
        .await
        .expect("begun");
    node.until_on_network(4).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_look_for_themselves_what_a_coin_was_said_to_hold() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let more = Amount::from_sat(1_000);
    for (number, more, shown, said) in [
        (1, more, false, "complete"),
        (2, Amount::ZERO, false, "told otherwise"),
        (3, Amount::ZERO, true, "complete"),
    ] {
        let request = told(&federation, number, more, shown);
        let handle = node.stream.request_signatures(request).await;
        let outcome = handle.expect("accepted").outcome(PATIENCE).await;
        let outcome = outcome.expect("an outcome").to_string();
        assert!(outcome.contains(said), "{number}: {outcome}");
    }
    node.stop().await;
    simulator.assert_clean();
}
