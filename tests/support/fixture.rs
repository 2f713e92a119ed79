//! A node that has been through everything that a store keeps: what a later version must be able to
//! read.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use bitcoin::Network;
use governance_stream::{
    bridge::{BridgeMessage, CancelAnswer, EmbeddedBitcoin, PegoutStage},
    chain::{ChainMessage, Federation},
    message::{PeginStatus, SignatureRequest},
    proto,
    simulator::{Behaviour, FederationView, RotationPlan, Simulator},
    storage::{Owner, Store},
};
use ractor::rpc::CallResult;

use super::{
    PATIENCE, config, deposit, full::FullNode, full::first_federation, governance, ledger, pegout,
    pegout_parts, request_id,
};

/// Peg-outs by their number, and how far each has come: the last two wait for an operator who has
/// paused them.
pub const PEGOUTS: [(u64, &str); 10] = [
    (1, "completed"),
    (2, "superseded"),
    (3, "failed"),
    (4, "cancelled"),
    (5, "confirmed"),
    (6, "broadcast"),
    (7, "partial"),
    (8, "signatures_requested"),
    (9, "signed"),
    (10, "requested"),
];
/// What governance said to each that it was asked for: nothing final to two.
pub const REQUESTS: [(u64, Option<&str>); 8] = [
    (1, Some("complete")),
    (2, Some("failed")),
    (3, Some("failed")),
    (5, Some("complete")),
    (6, Some("complete")),
    (7, None),
    (8, None),
    (9, Some("complete")),
];
/// Deposits that governance has answered; that were sent to it; and that were not.
pub const DEPOSITS: [&[u32]; 3] = [&[1, 2], &[3], &[4]];
/// Federation versions, at the height that the chain was told last.
pub const FEDERATIONS: [(u32, &str); 3] = [(1, "retiring"), (2, "active"), (3, "scheduled")];
pub const HEIGHT: u64 = 115;
pub const PROPOSAL: &str = "proposal-1";

/// Makes such a store and puts a backup of it there, as the node runs.
pub async fn write(file: &Path) {
    let directory = tempfile::tempdir().expect("a directory");
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let config = config(&simulator.endpoints());
    let chain = &config.node.chain_id;
    let federation = Federation::first(&first_federation(&first), Network::Regtest, chain);
    let digest = federation.expect("a federation").digest();
    let owner = Owner::of(&config.node).with_first_federation(&digest);
    let store = Store::create(directory.path().join("store"), &owner, true).expect("made");
    let bitcoin = Arc::<EmbeddedBitcoin>::default();
    let node = FullNode::on(store, bitcoin, config, &simulator).await;

    endings(&node, &simulator, &first).await;
    chain_and_peers(&node, &simulator).await;
    under_way(&node, &simulator, &first).await;
    rotations(&node, &simulator).await;
    deposits(&node, simulator).await;

    let store = node.stream.store().expect("open");
    let file = file.to_owned();
    let made = tokio::task::spawn_blocking(move || {
        store.backup(&file, &mut |_| ControlFlow::Continue(()))
    });
    made.await.expect("ends").expect("made");
    node.kill().await;
}

async fn until(node: &FullNode, number: u64, state: &str) {
    node.until(&request_id(number), |stage| stage.name() == state)
        .await;
}

/// Peg-outs that have come to their ends: each of them another one.
async fn endings(node: &FullNode, simulator: &Simulator, first: &FederationView) {
    // It spends the coin of the first one, which will be completed.
    let mut overtaken = pegout_parts(first, 1);
    overtaken.request_id = request_id(2);
    let overtaken = SignatureRequest::new(overtaken).expect("valid");
    for declined in [overtaken, pegout(first, 3)] {
        let reason = "not today".to_owned();
        simulator.answer_next(Behaviour::Fail(proto::FailureCode::Declined, reason));
        let id = declined.request_id().clone();
        node.initiate(declined).await.expect("begun");
        node.until(&id, |stage| matches!(stage, PegoutStage::Failed(_)))
            .await;
    }
    node.initiate(pegout(first, 1)).await.expect("begun");
    node.until_completed(1).await;
    node.until_reported(1).await;
    until(node, 2, "superseded").await;

    node.set_paused(true).await;
    node.initiate(pegout(first, 4)).await.expect("recorded");
    let request_id = request_id(4);
    let cancel = |reply| BridgeMessage::CancelPegout { request_id, reply };
    let answer = node.bridge.call(cancel, Some(PATIENCE)).await;
    assert!(
        matches!(answer, Ok(CallResult::Success(Ok(CancelAnswer::Ends)))),
        "{answer:?}"
    );
    until(node, 4, "cancelled").await;
    node.set_paused(false).await;
}

/// A proposal that is known, and a message that was of no use.
async fn chain_and_peers(node: &FullNode, simulator: &Simulator) {
    simulator.propose(&proto::ProposalNotification {
        proposal_id: PROPOSAL.to_owned(),
        proposal_type: "limits".to_owned(),
        ..Default::default()
    });
    let mut changed = node.chain_store.watch();
    let known = changed.wait_for(|_| !node.chain_store.proposals().is_empty());
    let known = tokio::time::timeout(PATIENCE, known).await;
    known.expect("it comes").expect("the store lives");
    simulator.send_garbage(proto::Lane::Pegin);
    ledger(simulator, |view| view.rejects.len() == 1).await;
}

/// Peg-outs at each stage that others follow.
async fn under_way(node: &FullNode, simulator: &Simulator, first: &FederationView) {
    let begin = async |number| node.initiate(pegout(first, number)).await.expect("begun");
    begin(5).await;
    node.until_on_network(5).await;
    node.bitcoin.mine(1);
    until(node, 5, "confirmed").await;
    begin(6).await;
    until(node, 6, "broadcast").await;
    simulator.answer_next(Behaviour::Partial);
    begin(7).await;
    until(node, 7, "partial").await;
    simulator.answer_next(Behaviour::Never);
    begin(8).await;
    ledger(simulator, |view| view.requests.len() == REQUESTS.len() - 1).await;
    simulator.hold_responses();
    begin(9).await;
    ledger(simulator, |view| view.requests.len() == REQUESTS.len()).await;
    node.set_paused(true).await;
    simulator.release_responses();
    until(node, 9, "signed").await;
    begin(10).await;
    until(node, 10, "requested").await;
    until(node, 8, "signatures_requested").await;
}

/// A federation that has taken over, and one that will.
async fn rotations(node: &FullNode, simulator: &Simulator) {
    for activation_height in [HEIGHT - 5, 10 * HEIGHT] {
        let plan = RotationPlan {
            members: 3,
            threshold: 2,
            activation_height,
            notice_blocks: 10,
            grace_blocks: 50,
            kind: proto::FederationUpdateKind::Scheduled,
        };
        simulator.rotate_federation(&plan).expect("possible");
    }
    let mut changed = node.chain_store.watch();
    let known = changed.wait_for(|_| node.chain_store.federations().len() == FEDERATIONS.len());
    let known = tokio::time::timeout(PATIENCE, known).await;
    known.expect("they come").expect("the store lives");
    let height = ChainMessage::HeightReached(HEIGHT);
    node.chain.cast(height).expect("it lives");
    let mut changed = node.chain_store.watch();
    let active = changed.wait_for(|_| node.chain_store.active().version() == 2);
    let active = tokio::time::timeout(PATIENCE, active).await;
    active.expect("it takes over").expect("the store lives");
}

/// Deposits at each stage; governance is gone for the last one.
async fn deposits(node: &FullNode, simulator: Simulator) {
    let [answered, sent, unsent] = DEPOSITS;
    let notify = async |number| {
        let accepted = node.stream.notify_pegin(deposit(number)).await;
        accepted.expect("accepted");
    };
    let mut changed = node.bridge_store.watch();
    for number in answered {
        notify(*number).await;
        let outpoint = deposit(*number).outpoint();
        let known = async {
            loop {
                let status = node.bridge_store.pegin(&outpoint).await.expect("read");
                if status == Some(PeginStatus::Recorded) {
                    return;
                }
                changed.changed().await.expect("the store lives");
            }
        };
        let known = tokio::time::timeout(PATIENCE, known).await;
        known.expect("it is answered");
    }
    super::until(&node.stream, "at rest", |status| {
        status.lanes.iter().all(|lane| lane.unacknowledged == 0)
    })
    .await;
    simulator.assert_clean();
    simulator.go_silent();
    for number in sent {
        notify(*number).await;
    }
    simulator.shutdown().await;
    super::until(&node.stream, "alone", |status| !status.is_connected()).await;
    for number in unsent {
        notify(*number).await;
    }
    node.stream.cancel(request_id(8)).await.expect("known");
}
