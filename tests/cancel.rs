//! Peg-outs that are not wanted any more: whoever is told that one is cancelled may rely on it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::collections::BTreeSet;

use governance_stream::{
    StreamError,
    bridge::{BridgeMessage, BridgeStore, CancelAnswer, PegoutFailure, PegoutStage},
    message::{Outcome, SignatureRequest},
    simulator::{Behaviour, FederationView, Simulator},
};
use ractor::{ActorRef, rpc::CallResult};
use support::{
    PATIENCE,
    full::FullNode,
    governance, pegout, request_id, rival_parts,
    rows::{open, rows},
};

/// What the bridge answers; nothing when it dies over it.
async fn cancel(bridge: &ActorRef<BridgeMessage>, number: u64) -> Option<CancelAnswer> {
    let request_id = request_id(number);
    let cancel = |reply| BridgeMessage::CancelPegout { request_id, reply };
    match bridge.call(cancel, Some(PATIENCE)).await {
        Ok(CallResult::Success(answer)) => Some(answer.expect("durable")),
        Ok(CallResult::SenderError) | Err(_) => None,
        Ok(CallResult::Timeout) => panic!("no answer"),
    }
}

fn cancelled(stage: &PegoutStage) -> bool {
    *stage == PegoutStage::Cancelled
}

/// A peg-out of another coin for the burn of `number`.
fn other(federation: &FederationView, number: u64, named: u64) -> SignatureRequest {
    SignatureRequest::new(rival_parts(federation, named, number)).expect("valid")
}

/// Neither stream nor governance has ever heard of these.
async fn assert_never_asked(node: &FullNode, simulator: &Simulator, numbers: &BTreeSet<u64>) {
    let view = simulator.ledger();
    for number in numbers {
        let request_id = request_id(*number);
        let mut asked = view.requests.iter();
        assert!(
            asked.all(|asked| asked.request_id != request_id.to_string()),
            "{request_id} came to governance"
        );
        let standing = node.stream.request(request_id.clone()).standing().await;
        assert_eq!(standing, Err(StreamError::UnknownRequest { request_id }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pegout_that_waits_is_cancelled_for_good_and_its_burn_may_be_paid_by_another() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    node.set_paused(true).await;
    node.initiate(pegout(&federation, 1))
        .await
        .expect("recorded");
    let mut told = node.bridge_store.events();
    assert_eq!(cancel(&node.bridge, 1).await, Some(CancelAnswer::Ends));
    node.until(&request_id(1), cancelled).await;
    // Again it is the same, whoever is asked, and so is the peg-out.
    node.restart_bridge().await;
    assert_eq!(cancel(&node.bridge, 1).await, Some(CancelAnswer::Ends));
    node.initiate(pegout(&federation, 1))
        .await
        .expect("is known");
    node.set_paused(false).await;
    node.initiate(other(&federation, 1, 2))
        .await
        .expect("begun");
    node.until_on_network(2).await;
    node.until(&request_id(1), cancelled).await;
    assert_never_asked(&node, &simulator, &BTreeSet::from([1])).await;
    for expected in ["cancelling", "cancelled"] {
        let event = told.try_recv().expect("told");
        let text = format!("{event:?}").to_lowercase();
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(cancel(&node.bridge, 2).await, Some(CancelAnswer::AtStream));
    assert_eq!(cancel(&node.bridge, 3).await, Some(CancelAnswer::Unknown));
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_had_before_its_bridge_knew_is_cancelled_there() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    node.set_paused(true).await;
    simulator.answer_next(Behaviour::Never);
    let request = pegout(&federation, 1);
    node.initiate(request.clone()).await.expect("recorded");
    // As a bridge does that dies before the stream's answer.
    let asked = node.stream.request_signatures(request).await;
    asked.expect("accepted");
    support::ledger(&simulator, |view| view.requests.len() == 1).await;
    assert_eq!(cancel(&node.bridge, 1).await, Some(CancelAnswer::Ends));
    let failed = |stage: &PegoutStage| matches!(stage, PegoutStage::Failed(_));
    let stage = node.until(&request_id(1), failed).await;
    let outcome = Outcome::Cancelled {
        signatures_released: false,
    };
    let expected = PegoutFailure::NotSigned(outcome);
    assert_eq!(stage, PegoutStage::Failed(expected));
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_was_begun_is_carried_through_by_the_next_process() {
    let engine = rows();
    {
        let simulator = governance().await;
        let federation = simulator.federation(1).expect("the first");
        let mut node = FullNode::start(&simulator).await;
        node.restart_bridge_on(|| open(&engine)).await;
        node.set_paused(true).await;
        node.initiate(pegout(&federation, 1))
            .await
            .expect("recorded");
        // Nobody is there to say whether it was asked for.
        node.stream.shutdown().await.expect("shuts down");
        assert_eq!(cancel(&node.bridge, 1).await, Some(CancelAnswer::Ends));
        let cancelling = |stage: &PegoutStage| *stage == PegoutStage::Cancelling;
        node.until(&request_id(1), cancelling).await;
        node.bridge.kill();
        node.bridge.wait(Some(PATIENCE)).await.expect("dies");
        node.chain
            .stop_and_wait(None, Some(PATIENCE))
            .await
            .expect("stops");
    }
    let simulator = governance().await;
    let mut node = FullNode::start(&simulator).await;
    let store = open(&engine);
    let before = BridgeStore::new(store.clone());
    let found = before.pegout(&request_id(1)).await.expect("read");
    assert_eq!(found.expect("there").stage(), &PegoutStage::Cancelling);
    node.restart_bridge_on(|| store).await;
    node.until(&request_id(1), cancelled).await;
    node.set_paused(false).await;
    node.until_active(1).await;
    assert_never_asked(&node, &simulator, &BTreeSet::from([1])).await;
    node.until(&request_id(1), cancelled).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_a_pause_ends_and_a_bridge_dies_is_kept_or_not_given() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    let (mut dropped, mut kept) = (BTreeSet::<u64>::new(), 0);
    for number in 1..=40 {
        node.set_paused(true).await;
        node.initiate(pegout(&federation, number))
            .await
            .expect("recorded");
        let resume = |reply| BridgeMessage::SetPaused {
            paused: false,
            reply,
        };
        let bridge = node.bridge.clone();
        let resuming = tokio::spawn(async move { bridge.call(resume, Some(PATIENCE)).await });
        let bridge = node.bridge.clone();
        let cancelling = tokio::spawn(async move { cancel(&bridge, number).await });
        if number % 4 == 0 {
            node.restart_bridge().await;
            node.until_active(1).await;
        }
        let answer = cancelling.await.expect("no panic");
        let _ = resuming.await.expect("no panic");
        node.set_paused(false).await;
        let over = |stage: &PegoutStage| {
            cancelled(stage) || stage.is_on_network() || matches!(stage, PegoutStage::Failed(_))
        };
        let stage = node.until(&request_id(number), over).await;
        if cancelled(&stage) {
            dropped.insert(number);
        } else {
            kept += 1;
            assert_ne!(answer, Some(CancelAnswer::Unknown));
        }
        // Nothing that comes later brings one back.
        assert_never_asked(&node, &simulator, &dropped).await;
    }
    assert_eq!(dropped.len() + kept, 40);
    node.stop().await;
    simulator.assert_clean();
}
