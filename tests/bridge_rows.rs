//! The bridge's rows: what it has in memory, what it looks up, and what becomes of what its store did
//! not keep.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{sync::Arc, time::Duration};

use bitcoin::Amount;
use governance_stream::{
    bridge::{
        BridgeMessage, BridgeStore, CancelAnswer, PausedBy, Pegout, PegoutEvent, PegoutRefusal,
        PegoutStage,
    },
    message::{PeginStatus, RequestId, SignatureRequest},
    proto,
    simulator::{Behaviour, Simulator, wallet},
    storage::{Batch, Change, Engine as _},
};
use prost::Message as _;
use ractor::{ActorRef, rpc::CallResult};
use support::{
    PATIENCE, deposit,
    full::FullNode,
    governance, pegout, pegout_parts, request_id,
    rows::{Rows, open, rows},
};

const MANY: u64 = 10_000;

fn failed(stage: &PegoutStage) -> bool {
    matches!(stage, PegoutStage::Failed(_))
}

async fn begin(
    bridge: &ActorRef<BridgeMessage>,
    request: SignatureRequest,
) -> Result<(), PegoutRefusal> {
    let initiate = |reply| BridgeMessage::InitiatePegout {
        request: Box::new(request),
        span: tracing::Span::none(),
        reply,
    };
    match bridge.call(initiate, Some(PATIENCE)).await {
        Ok(CallResult::Success(verdict)) => verdict,
        other => panic!("no verdict: {other:?}"),
    }
}

async fn cancel(bridge: &ActorRef<BridgeMessage>, request_id: RequestId) -> CancelAnswer {
    let cancel = |reply| BridgeMessage::CancelPegout { request_id, reply };
    match bridge.call(cancel, Some(PATIENCE)).await {
        Ok(CallResult::Success(answer)) => answer.expect("durable"),
        other => panic!("no answer: {other:?}"),
    }
}

async fn status(bridge: &ActorRef<BridgeMessage>, number: u64) -> Option<Arc<Pegout>> {
    let get = |reply| BridgeMessage::GetPegoutStatus {
        request_id: request_id(number),
        reply,
    };
    match bridge.call(get, Some(PATIENCE)).await {
        Ok(CallResult::Success(found)) => found.expect("read"),
        other => panic!("no answer: {other:?}"),
    }
}

/// Waits until nothing is in memory but what these many are.
async fn until_open(node: &FullNode, wanted: usize) {
    let waiting = async {
        while node.bridge_store.open_pegouts().len() != wanted {
            // One that leaves is no change to anyone who looks.
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{:?}", node.bridge_store.open_pegouts()));
}

/// A node whose bridge is on these rows.
async fn node_on(engine: &Arc<Rows>, simulator: &Simulator) -> FullNode {
    let mut node = FullNode::start(simulator).await;
    node.restart_bridge_on(|| open(engine)).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_not_in_memory_and_admission_looks_up_a_few_rows() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let engine = rows();
    let mut node = node_on(&engine, &simulator).await;
    node.set_paused(true).await;
    for first in (1..=MANY).step_by(100) {
        let ended = (first..first + 100).map(|number| {
            let (bridge, request) = (node.bridge.clone(), pegout(&federation, number));
            tokio::spawn(async move {
                begin(&bridge, request).await.expect("recorded");
                cancel(&bridge, request_id(number)).await
            })
        });
        for ended in ended.collect::<Vec<_>>() {
            assert_eq!(ended.await.expect("no panic"), CancelAnswer::Ends);
        }
    }
    until_open(&node, 0).await;
    let before = engine.rows_read();
    node.restart_bridge_on(|| open(&engine)).await;
    assert!(node.bridge_store.open_pegouts().is_empty());
    let read = engine.rows_read() - before;
    assert!(read < 50, "a start read {read} rows");
    let before = engine.rows_read();
    node.initiate(pegout(&federation, MANY + 1))
        .await
        .expect("recorded");
    let read = engine.rows_read() - before;
    assert!(read < 10, "admission read {read} rows");
    // Their words on their coins, and their ids, are known all the same.
    let mut parts = pegout_parts(&federation, 7);
    parts.request_id = request_id(MANY + 2);
    let input = &mut parts.psbt.inputs[0];
    input.witness_utxo.as_mut().expect("set").value += Amount::ONE_SAT;
    parts.max_fee += Amount::ONE_SAT;
    let outpoint = parts.psbt.unsigned_tx.input[0].previous_output;
    let refused = node
        .initiate(SignatureRequest::new(parts).expect("valid"))
        .await;
    let told = PegoutRefusal::CoinTold {
        outpoint,
        found: wallet::COIN + Amount::ONE_SAT,
        told: wallet::COIN,
        by: request_id(7),
    };
    assert_eq!(refused, Err(told));
    node.initiate(pegout(&federation, 9))
        .await
        .expect("is known");
    let mut parts = pegout_parts(&federation, MANY + 3);
    parts.request_id = request_id(9);
    let other = SignatureRequest::new(parts).expect("valid");
    let conflict = PegoutRefusal::Conflict(request_id(9));
    assert_eq!(node.initiate(other).await, Err(conflict));
    assert_eq!(
        cancel(&node.bridge, request_id(9)).await,
        CancelAnswer::Ends
    );
    assert_eq!(node.bridge_store.open_pegouts().len(), 1);
    node.stop().await;
    simulator.assert_clean();
}

fn fields(pegout: &Pegout) -> impl PartialEq + std::fmt::Debug {
    (
        (pegout.request_id().clone(), pegout.stage().clone()),
        (pegout.txid(), pegout.payload_hash(), pegout.is_reported()),
        (pegout.payments().to_vec(), pegout.coins().to_vec()),
        (pegout.federation_version(), pegout.responses()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_the_same_before_and_after_a_restart() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let engine = rows();
    let mut node = node_on(&engine, &simulator).await;
    // Completed, failed for want of signatures, cancelled.
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until_completed(1).await;
    node.until_reported(1).await;
    simulator.answer_next(Behaviour::Fail(
        proto::FailureCode::Declined,
        "not today".to_owned(),
    ));
    node.initiate(pegout(&federation, 2)).await.expect("begun");
    node.until(&request_id(2), failed).await;
    node.set_paused(true).await;
    node.initiate(pegout(&federation, 3))
        .await
        .expect("recorded");
    cancel(&node.bridge, request_id(3)).await;
    let cancelled = |stage: &PegoutStage| *stage == PegoutStage::Cancelled;
    node.until(&request_id(3), cancelled).await;
    until_open(&node, 0).await;
    let mut before = Vec::new();
    for number in 1..=3 {
        before.push(status(&node.bridge, number).await.expect("known"));
    }
    assert!(before[0].request().is_none(), "it is over");
    assert!(before[1].request().is_some(), "signatures may still come");
    node.restart_bridge_on(|| open(&engine)).await;
    assert!(node.bridge_store.open_pegouts().is_empty());
    for (number, before) in (1..).zip(&before) {
        let after = status(&node.bridge, number).await.expect("known");
        assert_eq!(fields(&after), fields(before));
        assert_eq!(after.since(), before.since());
        node.initiate(pegout(&federation, number))
            .await
            .expect("the same again is fine");
    }
    assert_eq!(
        cancel(&node.bridge, request_id(1)).await,
        CancelAnswer::AtStream
    );
    assert!(status(&node.bridge, 4).await.is_none());
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_that_failed_and_left_memory_is_superseded() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let engine = rows();
    let mut node = node_on(&engine, &simulator).await;
    simulator.answer_next(Behaviour::Fail(
        proto::FailureCode::Declined,
        "not today".to_owned(),
    ));
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until(&request_id(1), failed).await;
    node.restart_bridge_on(|| open(&engine)).await;
    assert!(node.bridge_store.open_pegouts().is_empty());
    let mut parts = pegout_parts(&federation, 1);
    parts.request_id = request_id(2);
    node.initiate(SignatureRequest::new(parts).expect("valid"))
        .await
        .expect("begun");
    node.until_completed(2).await;
    let by = request_id(2);
    let superseded = PegoutStage::Superseded { by };
    // In one batch with what it follows from.
    let pegout = node.pegout(&request_id(1)).await.expect("known");
    assert_eq!(*pegout.stage(), superseded);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_requests_in_flight_that_tell_differently_of_a_coin_one_is_begun() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let engine = rows();
    let node = node_on(&engine, &simulator).await;
    let told = |number, more| {
        let mut parts = pegout_parts(&federation, 1);
        parts.request_id = request_id(number);
        let input = &mut parts.psbt.inputs[0];
        input.witness_utxo.as_mut().expect("set").value += more;
        parts.max_fee += more;
        SignatureRequest::new(parts).expect("valid")
    };
    node.set_paused(true).await;
    // Neither can be seen in the store when the other one is looked up.
    engine.hold_commits(true);
    engine.hold_reads(true);
    let asked = [(1, Amount::ZERO), (2, Amount::ONE_SAT), (1, Amount::ZERO)];
    let mut answers = Vec::new();
    for (number, more) in asked {
        let (reply, answer) = ractor::concurrency::oneshot();
        let initiate = BridgeMessage::InitiatePegout {
            request: Box::new(told(number, more)),
            span: tracing::Span::none(),
            reply: reply.into(),
        };
        node.bridge.cast(initiate).expect("alive");
        answers.push(answer);
    }
    engine.hold_reads(false);
    for answer in &mut answers {
        let early = tokio::time::timeout(Duration::from_millis(20), answer).await;
        assert!(
            early.is_err(),
            "whoever waits for its commit is told nothing"
        );
    }
    assert!(node.pegout(&request_id(1)).await.is_none(), "not durable");
    engine.hold_commits(false);
    let mut verdicts = Vec::new();
    for answer in answers {
        verdicts.push(answer.await.expect("answered"));
    }
    assert_eq!((&verdicts[0], &verdicts[2]), (&Ok(()), &Ok(())));
    let by_first = |by: &RequestId| *by == request_id(1);
    let refused = &verdicts[1];
    assert!(
        matches!(refused, Err(PegoutRefusal::CoinTold { by, .. }) if by_first(by)),
        "{refused:?}"
    );
    node.stop().await;
    simulator.assert_clean();
}

/// Asks until it is answered: a store that fails has its caller ask again.
async fn insist(node: &FullNode, what: Asked<'_>) {
    loop {
        let refused = match what {
            Asked::Paused(paused) => {
                let set = |reply| BridgeMessage::SetPaused { paused, reply };
                match node.bridge.call(set, Some(PATIENCE)).await {
                    Ok(CallResult::Success(answer)) => answer.err(),
                    other => panic!("no answer: {other:?}"),
                }
            }
            Asked::Begun(request) => match begin(&node.bridge, request.clone()).await {
                Ok(()) => None,
                Err(PegoutRefusal::AskAgain(again)) => Some(again),
                Err(other) => panic!("{other}"),
            },
            Asked::Cancelled(number) => {
                let request_id = request_id(number);
                let cancel = |reply| BridgeMessage::CancelPegout { request_id, reply };
                match node.bridge.call(cancel, Some(PATIENCE)).await {
                    Ok(CallResult::Success(Ok(answer))) => {
                        assert_eq!(answer, CancelAnswer::Ends);
                        None
                    }
                    Ok(CallResult::Success(Err(again))) => Some(again),
                    other => panic!("no answer: {other:?}"),
                }
            }
        };
        match refused {
            None => return,
            Some(again) => assert!(again.to_string().contains("ask again"), "{again}"),
        }
        tokio::task::yield_now().await;
    }
}

#[derive(Clone, Copy)]
enum Asked<'a> {
    Paused(bool),
    Begun(&'a SignatureRequest),
    Cancelled(u64),
}

/// Everything that a bridge makes durable, whatever fails meanwhile: 1 and 2 are completed, 3 is
/// cancelled, 4 is declined and then overtaken by 1, a deposit is answered. Every answer is compared
/// with what is in the store when it comes.
async fn live(node: &FullNode, simulator: &Simulator, recorded: &BridgeStore) {
    let federation = simulator.federation(1).expect("the first");
    insist(node, Asked::Paused(true)).await;
    insist(node, Asked::Begun(&pegout(&federation, 3))).await;
    assert!(read(recorded, 3).await.is_some(), "told, and not durable");
    insist(node, Asked::Cancelled(3)).await;
    let stage = read(recorded, 3).await.expect("known").stage().clone();
    assert!(rank(&stage) >= rank(&PegoutStage::Cancelling), "{stage:?}");
    insist(node, Asked::Paused(false)).await;
    simulator.answer_next(Behaviour::Fail(
        proto::FailureCode::Declined,
        "not today".to_owned(),
    ));
    let mut parts = pegout_parts(&federation, 1);
    parts.request_id = request_id(4);
    let declined = SignatureRequest::new(parts).expect("valid");
    insist(node, Asked::Begun(&declined)).await;
    node.until(&request_id(4), failed).await;
    for number in [1, 2] {
        insist(node, Asked::Begun(&pegout(&federation, number))).await;
        assert!(read(recorded, number).await.is_some(), "not durable");
    }
    let accepted = node.stream.notify_pegin(deposit(1)).await;
    accepted.expect("accepted");
    for number in [1, 2] {
        node.until_on_network(number).await;
    }
    node.bitcoin.mine(6);
    for number in [1, 2] {
        node.until_reported(number).await;
    }
    let ended = [
        (3, PegoutStage::Cancelled),
        (4, PegoutStage::Superseded { by: request_id(1) }),
    ];
    for (number, end) in ended {
        node.until(&request_id(number), |stage| *stage == end).await;
    }
}

async fn read(recorded: &BridgeStore, number: u64) -> Option<Arc<Pegout>> {
    loop {
        // It fails while it is opened again.
        if let Ok(found) = recorded.pegout(&request_id(number)).await {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

/// No stage follows one of a higher rank.
fn rank(stage: &PegoutStage) -> u32 {
    match stage {
        PegoutStage::Requested => 0,
        PegoutStage::Cancelling | PegoutStage::SignaturesRequested => 1,
        PegoutStage::Partial { .. } => 2,
        PegoutStage::Cancelled | PegoutStage::Signed | PegoutStage::Failed(_) => 3,
        PegoutStage::Broadcast { .. } => 4,
        PegoutStage::Confirmed { .. } => 5,
        PegoutStage::Completed { .. } | PegoutStage::Superseded { .. } => 6,
    }
}

/// Compares every event with what is in the store when it comes.
async fn listen(mut told: tokio::sync::broadcast::Receiver<PegoutEvent>, recorded: BridgeStore) {
    while let Ok(event) = told.recv().await {
        if let PegoutEvent::Stage { request_id, stage } = event {
            let number = (1..=4).find(|number| request_id == support::request_id(*number));
            let durable = read(&recorded, number.expect("one of them")).await;
            let durable = durable.expect("told, and not durable");
            let (shown, is) = (rank(&stage), rank(durable.stage()));
            assert!(is >= shown, "{stage:?} was told of {durable:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_anywhere_in_a_bridges_life_loses_nothing_and_tells_nothing_too_early()
{
    let mut faults = 0;
    for after in 0..18 {
        for kept in [false, true] {
            let simulator = governance().await;
            let engine = rows();
            let mut node = FullNode::start(&simulator).await;
            let store = open(&engine);
            node.restart_bridge_on(|| store.clone()).await;
            // It reads nothing but the store.
            let recorded = BridgeStore::new(store);
            let listening = listen(node.bridge_store.events(), recorded.clone());
            let listening = tokio::spawn(listening);
            engine.fail_after(after, kept);
            live(&node, &simulator, &recorded).await;
            let recorded_deposit = Ok(Some(PeginStatus::Recorded));
            let answered = async {
                while recorded.pegin(&deposit(1).outpoint()).await != recorded_deposit {
                    tokio::task::yield_now().await;
                }
            };
            let answered = tokio::time::timeout(PATIENCE, answered).await;
            answered.expect("the deposit's answer is kept");
            faults += u32::from(!engine.is_to_fail());
            until_open(&node, 0).await;
            assert_eq!(node.bitcoin.transactions().len(), 2, "each is sent once");
            assert!(!listening.is_finished(), "nothing was told too early");
            listening.abort();
            let _ = listening.await;
            drop(recorded);
            node.restart_bridge_on(|| open(&engine)).await;
            assert!(node.bridge_store.open_pegouts().is_empty());
            assert!(node.bridge_store.paused_by().is_empty());
            for number in [1, 2] {
                let pegout = node.pegout(&request_id(number)).await.expect("known");
                assert!(pegout.is_reported(), "{pegout:?}");
            }
            node.stop().await;
            simulator.assert_clean();
        }
    }
    assert!(faults >= 30, "only {faults} of the faults came");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_is_killed_while_its_store_commits_leaves_all_or_nothing_to_the_next() {
    for fails in [None, Some(false), Some(true)] {
        let simulator = governance().await;
        let federation = simulator.federation(1).expect("the first");
        let engine = rows();
        let mut node = node_on(&engine, &simulator).await;
        engine.hold_commits(true);
        let (bridge, request) = (node.bridge.clone(), pegout(&federation, 1));
        let begun = tokio::spawn(async move {
            let initiate = |reply| BridgeMessage::InitiatePegout {
                request: Box::new(request),
                span: tracing::Span::none(),
                reply,
            };
            bridge.call(initiate, Some(PATIENCE)).await
        });
        while !engine.is_committing() {
            tokio::task::yield_now().await;
        }
        if let Some(kept) = fails {
            engine.fail_after(0, kept);
        }
        node.bridge.kill();
        let unknown = begun.await.expect("no panic");
        assert!(
            !matches!(unknown, Ok(CallResult::Success(_))),
            "{unknown:?}"
        );
        engine.hold_commits(false);
        node.restart_bridge().await;
        node.until_active(1).await;
        let is_there = node.pegout(&request_id(1)).await.is_some();
        assert_eq!(is_there, fails != Some(false));
        // The same again is safe, whichever it was.
        insist(&node, Asked::Begun(&pegout(&federation, 1))).await;
        node.until_on_network(1).await;
        node.stop().await;
        simulator.assert_clean();
    }
}

/// As a restore of a backup leaves it in the store's own rows.
#[derive(Clone, PartialEq, prost::Message)]
struct Restored {
    #[prost(bytes = "vec", tag = "1")]
    restore_id: Vec<u8>,
}

fn restore(engine: &Arc<Rows>, id: u8) {
    let restored = Restored {
        restore_id: vec![id; 16],
    };
    let mut batch = Batch::new();
    batch.push(Change {
        table: "store/meta".into(),
        key: b"restored".to_vec(),
        value: Some(restored.encode_to_vec()),
    });
    let last = engine.open().expect("memory");
    engine.commit(last + 1, &[batch]).expect("kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_pauses_pegouts_once_until_the_operator_resumes() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let engine = rows();
    drop(open(&engine));
    restore(&engine, 1);
    let mut node = node_on(&engine, &simulator).await;
    let mut changed = node.bridge_store.watch();
    while node.bridge_store.paused_by() != [PausedBy::Restore] {
        changed.changed().await.expect("the store lives");
    }
    node.initiate(pegout(&federation, 1))
        .await
        .expect("recorded");
    // It is the same restore at the next start, and the pause stays beside another one.
    node.set_paused(true).await;
    node.restart_bridge_on(|| open(&engine)).await;
    let by = [PausedBy::Operator, PausedBy::Restore];
    assert_eq!(node.bridge_store.paused_by(), by);
    assert!(simulator.ledger().requests.is_empty());
    node.set_paused(false).await;
    node.until_on_network(1).await;
    node.restart_bridge_on(|| open(&engine)).await;
    assert!(node.bridge_store.paused_by().is_empty(), "once is enough");
    node.stop().await;
    simulator.assert_clean();
}
