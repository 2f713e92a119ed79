//! The life of a peg-out after it is asked for: paused, offered, lost, taken back, replaced, reported.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use bitcoin::Amount;
use governance_stream::{
    StreamError,
    bridge::{
        CompletionNotice, CompletionSubscriber, PausedBy, PegoutCompleted, PegoutEvent,
        PegoutFailure, PegoutStage,
    },
    chain::{ChainMessage, NumberedPayment, PaymentPage},
    message::{Outcome, SignatureRequest, SignatureRequestParts},
    proto::FederationUpdateKind,
    simulator::{Behaviour, FederationView, RotationPlan, wallet},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, rpc::CallResult};
use support::{
    PATIENCE, config,
    full::FullNode,
    governance, pegout, pegout_parts, request_id, rival_parts,
    rows::{open, rows},
    until,
};
use tokio::sync::mpsc;

fn requested(stage: &PegoutStage) -> bool {
    *stage == PegoutStage::Requested
}

fn failed(stage: &PegoutStage) -> bool {
    matches!(stage, PegoutStage::Failed(_))
}

/// Waits until a peg-out says what is in its way.
async fn trouble(node: &FullNode, number: u64, words: &str) {
    let mut changed = node.bridge_store.watch();
    let waiting = async {
        loop {
            let pegout = node.pegout(&request_id(number)).await.expect("known");
            if pegout
                .trouble()
                .is_some_and(|trouble| trouble.contains(words))
            {
                return;
            }
            changed.changed().await.expect("the store lives");
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("never in trouble: {words}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_has_paused_waits_through_a_restart_and_goes_on_by_itself() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    // One is signed, and must not be broadcast; one is not asked for.
    node.bitcoin.set_available(false);
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until(&request_id(1), |stage| *stage == PegoutStage::Signed)
        .await;
    node.set_paused(true).await;
    node.bitcoin.set_available(true);
    node.initiate(pegout(&federation, 2))
        .await
        .expect("recorded");
    assert_eq!(node.bridge_store.paused_by(), [PausedBy::Operator]);
    node.restart_bridge().await;
    // What is asked after it is handled after it: it had its chance.
    node.set_paused(true).await;
    assert!(node.bitcoin.transactions().is_empty());
    assert_eq!(simulator.ledger().requests.len(), 1);
    node.until(&request_id(2), requested).await;
    node.set_paused(false).await;
    node.until_on_network(1).await;
    node.until_on_network(2).await;
    node.stop().await;
    simulator.assert_clean();
}

const PAUSE: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 0,
    notice_blocks: 0,
    grace_blocks: 50,
    kind: FederationUpdateKind::Pause,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_governance_has_paused_waits_until_governance_resumes() {
    let simulator = governance().await;
    let mut node = FullNode::start(&simulator).await;
    let paused = simulator.rotate_federation(&PAUSE).expect("possible");
    node.until_active(2).await;
    let by = PausedBy::Governance { version: 2 };
    assert_eq!(node.bridge_store.paused_by(), [by]);
    node.initiate(pegout(&paused, 1)).await.expect("recorded");
    node.restart_bridge().await;
    node.until_active(2).await;
    node.until(&request_id(1), requested).await;
    assert!(simulator.ledger().requests.is_empty());
    let resume = RotationPlan {
        kind: FederationUpdateKind::Resume,
        ..PAUSE
    };
    simulator.rotate_federation(&resume).expect("possible");
    node.until_active(3).await;
    node.until_on_network(1).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_in_the_store_and_so_is_its_end() {
    let simulator = governance().await;
    let mut node = FullNode::start(&simulator).await;
    let engine = rows();
    for paused in [true, false] {
        node.restart_bridge_on(|| open(&engine)).await;
        node.set_paused(paused).await;
        node.restart_bridge_on(|| open(&engine)).await;
        let by: &[PausedBy] = if paused { &[PausedBy::Operator] } else { &[] };
        assert_eq!(node.bridge_store.paused_by(), by);
    }
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_away_loses_nothing_and_each_step_is_told_in_order() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    let mut events = node.bridge_store.events();
    node.bitcoin.set_available(false);
    simulator.answer_next(Behaviour::OneBadSignature);
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    trouble(&node, 1, "unavailable").await;
    node.restart_bridge().await;
    trouble(&node, 1, "unavailable").await;
    node.bitcoin.set_available(true);
    node.until_on_network(1).await;
    node.bitcoin.mine(1);
    let confirmed = |stage: &PegoutStage| matches!(stage, PegoutStage::Confirmed { .. });
    node.until(&request_id(1), confirmed).await;
    node.bitcoin.set_available(false);
    trouble(&node, 1, "unavailable").await;
    node.bitcoin.set_available(true);
    node.until_completed(1).await;
    let mut stages = Vec::new();
    let mut bad = 0;
    while stages.last() != Some(&"completed") {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await;
        match event.expect("in time").expect("none is missed") {
            PegoutEvent::Stage { stage, .. } => stages.push(stage.name()),
            PegoutEvent::BadSignature { fault, .. } => {
                assert_eq!(fault.member().map(|m| m.as_str()), Some("member-0"));
                bad += 1;
            }
            PegoutEvent::Trouble { .. } => {}
        }
    }
    stages.retain(|stage| *stage != "partial" && *stage != "signatures_requested");
    assert_eq!(bad, 1);
    assert_eq!(
        stages,
        ["requested", "signed", "broadcast", "confirmed", "completed"]
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_takes_a_pegout_back_and_what_is_lost_is_broadcast_again() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until_on_network(1).await;
    let confirmed = |stage: &PegoutStage| matches!(stage, PegoutStage::Confirmed { .. });
    let broadcast = |stage: &PegoutStage| matches!(stage, PegoutStage::Broadcast { .. });
    for forget in [false, true] {
        node.bitcoin.mine(2);
        node.until(&request_id(1), confirmed).await;
        node.bitcoin.reorganise(2, forget);
        node.until(&request_id(1), broadcast).await;
    }
    let mut changed = node.bridge_store.watch();
    while node.bitcoin.transactions().is_empty() {
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::task::yield_now() => {}
        }
    }
    node.until_completed(1).await;
    // It is final: no reorganisation is looked for any more.
    assert_eq!(node.bitcoin.transactions().len(), 1);
    node.stop().await;
    simulator.assert_clean();
}

/// Peg-out `number` of the first one's burn and coin, with a higher fee.
fn better(federation: &FederationView, number: u64) -> SignatureRequestParts {
    let mut parts = pegout_parts(federation, 1);
    let fee = wallet::FEE + Amount::from_sat(1_000 * number);
    parts.psbt.unsigned_tx.output[1].value -= Amount::from_sat(1_000 * number);
    parts.max_fee = fee;
    parts.request_id = request_id(number);
    parts.replaces = Some(request_id(1));
    parts
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_transactions_for_a_burn_the_one_that_is_mined_supersedes_the_other() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until_on_network(1).await;
    let replacement = SignatureRequest::new(better(&federation, 2)).expect("valid");
    node.initiate(replacement).await.expect("begun");
    node.until_on_network(2).await;
    trouble(&node, 1, "offered again").await;
    node.until_completed(2).await;
    let ended = |stage: &PegoutStage| matches!(stage, PegoutStage::Superseded { .. });
    let by = request_id(2);
    assert_eq!(
        node.until(&request_id(1), ended).await,
        PegoutStage::Superseded { by }
    );
    assert_eq!(node.bitcoin.transactions().len(), 1);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burn_is_paid_once_whoever_asks_and_whatever_became_of_the_first_request() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    simulator.answer_next(Behaviour::Never);
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    support::ledger(&simulator, |view| view.requests.len() == 1).await;
    let rival = |number| SignatureRequest::new(rival_parts(&federation, number, 1)).expect("valid");
    let mut number = 2;
    for cancelled in [false, true] {
        if cancelled {
            node.stream.cancel(request_id(1)).await.expect("asked");
            node.until(&request_id(1), failed).await;
        }
        // Through the bridge.
        node.initiate(rival(number)).await.expect("recorded");
        let stage = node.until(&request_id(number), failed).await;
        let PegoutStage::Failed(PegoutFailure::NotAccepted(reason)) = stage else {
            panic!("{stage:?}");
        };
        assert!(
            reason.contains("is paid by request pegout-1 already"),
            "{reason}"
        );
        // Through the stream itself.
        let refused = node.stream.request_signatures(rival(number + 1)).await;
        let refused = refused.expect_err("refused");
        assert!(
            matches!(refused, StreamError::AlreadyPaid { .. }),
            "{refused}"
        );
        number += 2;
    }
    // With the first one's coin it may be paid.
    let again = SignatureRequest::new(better(&federation, 9)).expect("valid");
    node.initiate(again).await.expect("begun");
    node.until_on_network(9).await;
    assert_eq!(node.bitcoin.transactions().len(), 1);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_expires_before_it_is_sent_ends_its_pegout() {
    let mut simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut config = config(&simulator.endpoints());
    config.requests.pegout_deadline = Duration::from_secs(1);
    config.drain_deadline = Duration::from_millis(100);
    let node = FullNode::with(config, &simulator).await;
    until(&node.stream, "connected", |status| status.is_connected()).await;
    simulator.stop_endpoint(0).await;
    until(&node.stream, "alone", |status| !status.is_connected()).await;
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    let stage = node.until(&request_id(1), failed).await;
    let unsent = PegoutFailure::NotSigned(Outcome::ExpiredUnsent);
    assert_eq!(stage, PegoutStage::Failed(unsent));
    node.stop().await;
}

/// Takes note of completed peg-outs, at the second time of asking.
struct Ledger;

impl Actor for Ledger {
    type Msg = CompletionNotice;
    type State = (u32, mpsc::UnboundedSender<PegoutCompleted>);
    type Arguments = mpsc::UnboundedSender<PegoutCompleted>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        told: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok((0, told))
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        notice: Self::Msg,
        (times, told): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        *times += 1;
        let verdict = if *times == 1 {
            Err("not now".to_owned())
        } else {
            Ok(told.send(notice.completed)?)
        };
        let _ = notice.reply.send(verdict);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_pegout_is_told_until_it_is_noted_and_never_again() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let config = config(&simulator.endpoints());
    let name = format!("{}.completions", config.subscribers.bridge);
    let told = CompletionSubscriber::named::<CompletionNotice>(&name);
    let mut node = FullNode::telling(told, config, &simulator).await;
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until_completed(1).await;
    // Nobody was there to be told, and then the bridge dies.
    node.restart_bridge().await;
    let (sender, mut told) = mpsc::unbounded_channel();
    let (ledger, _) = Actor::spawn(Some(name), Ledger, sender)
        .await
        .expect("the name is free");
    let noted = tokio::time::timeout(PATIENCE, told.recv()).await;
    let noted = noted.expect("in time").expect("told");
    assert_eq!(noted.request_id, request_id(1));
    assert_eq!(noted.burns, [pegout_parts(&federation, 1).burns[0].burn()]);
    assert_eq!(noted.txid, pegout(&federation, 1).txid());
    node.until_reported(1).await;
    node.restart_bridge().await;
    node.chain
        .cast(ChainMessage::HeightReached(1))
        .expect("alive");
    node.set_paused(false).await;
    assert!(
        told.try_recv().is_err(),
        "once it is noted it is not told again"
    );
    ledger
        .stop_and_wait(None, Some(PATIENCE))
        .await
        .expect("stops");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_notes_a_paid_burn_once_it_is_there_and_knows_it_when_it_is_told_again() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    let burn = pegout_parts(&federation, 1).burns[0].burn();
    node.initiate(pegout(&federation, 1)).await.expect("begun");
    node.until_on_network(1).await;
    assert_eq!(
        node.chain_store.payment_of(&burn).await,
        Ok(None),
        "it is not deep enough"
    );
    node.chain.kill();
    node.chain.wait(Some(PATIENCE)).await.expect("dies");
    node.until_completed(1).await;
    let paid = node.chain_store.payments(PaymentPage::default());
    assert_eq!(paid.await, Ok(Vec::new()), "there is no chain");
    node.restart_chain().await;
    node.until_reported(1).await;
    let payment = node.chain_store.payment_of(&burn).await;
    let payment = payment.expect("readable").expect("noted");
    assert_eq!(payment.request_id, request_id(1));
    assert_eq!(payment.txid, pegout(&federation, 1).txid());
    // A bridge that died before it wrote the answer down tells it again.
    for _ in 0..2 {
        let again = |reply| {
            ChainMessage::PegoutCompleted(CompletionNotice {
                completed: payment.clone(),
                reply,
            })
        };
        let answer = node.chain.call(again, Some(PATIENCE)).await;
        assert!(
            matches!(answer, Ok(CallResult::Success(Ok(())))),
            "{answer:?}"
        );
    }
    let other = PegoutCompleted {
        txid: pegout(&federation, 2).txid(),
        ..payment.clone()
    };
    let told = |reply| {
        ChainMessage::PegoutCompleted(CompletionNotice {
            completed: other,
            reply,
        })
    };
    let answer = node.chain.call(told, Some(PATIENCE)).await;
    assert!(
        matches!(answer, Ok(CallResult::Success(Err(_)))),
        "{answer:?}"
    );
    let first = NumberedPayment { number: 1, payment };
    let paid = node.chain_store.payments(PaymentPage::default());
    assert_eq!(paid.await, Ok(vec![first]));
    node.stop().await;
    simulator.assert_clean();
}
