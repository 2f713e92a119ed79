//! A store that was restored, or is new where its node is known: what governance makes of it, seen by a
//! client that speaks nothing but the protocol.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{collections::BTreeMap, time::Duration};

use governance_stream::{
    ConnectionPhase, Restoration, StreamError,
    config::Config,
    history,
    message::{OpeningId, OutboxId, Outcome, SignatureRequest},
    proto::{self, ErrorCode, Kind, Lane, stream_request, stream_response::Control},
    simulator::{FederationView, OutboxStanding, RotationPlan, Simulator, SimulatorConfig},
};
use prost::Message as _;
use support::{
    Node, PATIENCE,
    client::{self, NODE, Store, recall},
    config, deposit, governance, ledger, pegout,
};

/// The requests among these entries.
fn requests(entries: &[proto::Recalled]) -> Vec<proto::SignatureRequest> {
    let of_kind = entries
        .iter()
        .filter(|entry| entry.kind() == Kind::SignatureRequest);
    of_kind
        .map(|entry| proto::SignatureRequest::decode(entry.payload.as_ref()).expect("as sent"))
        .collect()
}

fn pegouts(federation: &FederationView, count: u64) -> Vec<SignatureRequest> {
    (0..count)
        .map(|number| pegout(federation, number))
        .collect()
}

/// Allows a store that governance refused, by the name that it refused it under.
fn allow(simulator: &Simulator, store: &Store) {
    let view = simulator.ledger();
    let waits = view.outboxes.iter().any(|outbox| {
        outbox.outbox_id == store.outbox_id && outbox.standing == OutboxStanding::Refused
    });
    assert!(waits, "{:?}", view.outboxes);
    let allowed = simulator.allow_outbox(NODE, store.outbox_id);
    allowed.expect("known, and not retired");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outbox_waits_for_a_permission_which_retires_the_earlier_ones() {
    let simulator = governance().await;
    let (mut first, mut second) = (Store::new(false), Store::new(false));
    let mut session = first.register(&simulator).await.expect("a new node");
    assert!(session.ack.new_node && !session.ack.recall_due);
    let refused = second.register(&simulator).await.err().expect("unknown");
    assert_eq!(refused.code(), ErrorCode::UnknownOutbox);
    // Another one's permission is none for this.
    assert!(simulator.allow_outbox("node-2", second.outbox_id).is_err());
    assert!(simulator.allow_outbox(NODE, first.outbox_id).is_err());
    allow(&simulator, &second);
    let ended = session.refused().await;
    assert_eq!(ended.code(), ErrorCode::OutboxRetired, "at once");
    let retired = first.register(&simulator).await.err().expect("retired");
    assert_eq!(retired.code(), ErrorCode::OutboxRetired);
    let session = second.register(&simulator).await.expect("permitted");
    assert!(!session.ack.new_node && session.ack.recall_due);
    assert!(simulator.allow_outbox(NODE, first.outbox_id).is_err());
    // The permission is used up: a third store needs one of its own.
    let mut third = Store::new(true);
    let refused = third.register(&simulator).await.err().expect("unknown");
    assert_eq!(refused.code(), ErrorCode::UnknownOutbox);
    simulator.assert_clean();
    // Who was told that it is retired does not come again by itself.
    drop(first.register(&simulator).await);
    let violations = simulator.ledger().violations;
    assert!(violations[0].contains("a retired outbox"), "{violations:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_are_compared_within_one_outbox_and_a_refusal_names_the_highest() {
    let simulator = governance().await;
    let (mut first, mut second) = (Store::new(false), Store::new(true));
    for _ in 0..5 {
        first.register(&simulator).await.expect("higher each time");
    }
    for epoch in [3, 5] {
        first.epoch = epoch;
        let refused = first.register_again(&simulator).await.err();
        let refused = refused.expect("not higher");
        assert_eq!(refused.code(), ErrorCode::Fenced);
        assert_eq!(refused.highest_epoch, 5);
        let opening = first.opening_id.to_bytes();
        assert_eq!(refused.highest_opening_id, opening.as_slice());
    }
    drop(second.register(&simulator).await);
    allow(&simulator, &second);
    second.epoch = 0;
    let mut older = second.register(&simulator).await.expect("its own epochs");
    assert_eq!(older.ack.epoch, 1);
    second.register(&simulator).await.expect("higher");
    let fenced = older.refused().await;
    assert_eq!(
        (fenced.code(), fenced.highest_epoch),
        (ErrorCode::Fenced, 2)
    );
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_requests_are_recalled_page_by_page_each_of_them_once() {
    const COUNT: u64 = 3000;
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let all = pegouts(&federation, COUNT);
    let mut lost = Store::new(false);
    let session = lost.register(&simulator).await.expect("a new node");
    for batch in all.chunks(500) {
        let messages = batch.iter().map(|request| lost.request(request)).collect();
        session.send(messages).await;
    }
    ledger(&simulator, |view| view.requests.len() == all.len()).await;
    let mut restored = Store::new(true);
    drop(restored.register(&simulator).await);
    allow(&simulator, &restored);
    let mut session = restored.register(&simulator).await.expect("permitted");
    assert!(session.ack.recall_due);
    // It knows the even ones.
    let known: Vec<_> = all.iter().step_by(2).cloned().collect();
    let standings = session.list([1; 16], &known).await;
    let settled = i32::from(proto::Standing::Settled);
    assert_eq!(standings, vec![settled; known.len()]);
    let (entries, pages) = session.recall_all([1; 16]).await;
    assert!(pages > 10, "{pages}");
    let mut unknown: Vec<proto::SignatureRequest> = all
        .iter()
        .skip(1)
        .step_by(2)
        .map(proto::SignatureRequest::from)
        .collect();
    unknown.sort_by(|one, other| one.request_id.cmp(&other.request_id));
    assert_eq!(requests(&entries), unknown, "as they were sent, in order");
    let of_requests = entries
        .iter()
        .filter(|entry| entry.kind() == Kind::SignatureRequest);
    for entry in of_requests {
        assert!(entry.signatures_released && entry.standing() == proto::Standing::Settled);
        assert_eq!(entry.outbox_id, lost.outbox_id.to_bytes().as_slice());
    }
    // Each was signed by one member, and then by enough.
    let answers = entries
        .iter()
        .filter(|entry| entry.kind() == Kind::SignatureResponse);
    assert_eq!(answers.count(), 2 * unknown.len());
    assert!(session.early.is_empty(), "nothing sequenced comes before");
    session.finish([1; 16], pages).await;
    // What it listed is answered again as sequenced messages.
    let answered = session.receive(&mut restored, 2 * known.len()).await;
    assert!(
        answered
            .iter()
            .all(|one| one.kind() == Kind::SignatureResponse)
    );
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_breaks_begins_again_and_ends_with_the_stores_word() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut lost = Store::new(false);
    let session = lost.register(&simulator).await.expect("a new node");
    let sent = pegouts(&federation, 600);
    let messages = sent.iter().map(|request| lost.request(request)).collect();
    session.send(messages).await;
    ledger(&simulator, |view| view.requests.len() == 600).await;
    let mut restored = Store::new(true);
    drop(restored.register(&simulator).await);
    allow(&simulator, &restored);
    let mut first_page = Vec::new();
    for _ in 0..3 {
        let mut session = restored.register(&simulator).await.expect("permitted");
        assert!(session.ack.recall_due);
        session.list([2; 16], &[]).await;
        first_page.push(session.recall([2; 16], 0).await.entries);
    }
    assert!(first_page.windows(2).all(|pages| pages[0] == pages[1]));
    // It has the last page, and goes before it has said so: its next registration says it.
    let mut session = restored.register(&simulator).await.expect("again");
    session.list([3; 16], &[]).await;
    let (entries, _) = session.recall_all([3; 16]).await;
    assert_eq!(requests(&entries).len(), 600);
    drop(session);
    restored.restored = false;
    let session = restored.register(&simulator).await.expect("again");
    assert!(!session.ack.recall_due && !session.ack.new_node);
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_proposals_and_deposits_are_recalled_under_the_names_that_they_had() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut lost = Store::new(false);
    let mut session = lost.register(&simulator).await.expect("a new node");
    for version in 2..=4_u64 {
        let plan = RotationPlan {
            members: 3,
            threshold: 2,
            activation_height: 100 * version,
            notice_blocks: 1,
            grace_blocks: 1,
            kind: proto::FederationUpdateKind::Scheduled,
        };
        simulator.rotate_federation(&plan).expect("possible");
    }
    simulator.propose(&proto::ProposalNotification {
        proposal_id: "proposal-1".to_owned(),
        proposal_type: "limits".to_owned(),
        ..Default::default()
    });
    let notified = proto::PeginNotification::from(&deposit(1)).encode_to_vec();
    let notified = lost.message(Lane::Pegin, Kind::PeginNotification, notified);
    let request = lost.request(&pegout(&federation, 1));
    session.send(vec![notified, request]).await;
    let told = session.receive(&mut lost, 3 + 1 + 1 + 2).await;
    let mut names: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for message in told {
        let (payload, name) = (message.payload.to_vec(), message.occurrence_id.to_vec());
        assert_eq!(name.len(), 16);
        assert!(names.insert(payload, name).is_none());
    }
    let mut restored = Store::new(true);
    restored.federation_version = 2;
    drop(restored.register(&simulator).await);
    allow(&simulator, &restored);
    let mut session = restored.register(&simulator).await.expect("permitted");
    session.list([4; 16], &[]).await;
    let (entries, pages) = session.recall_all([4; 16]).await;
    let kinds: Vec<Kind> = entries.iter().map(proto::Recalled::kind).collect();
    let expected = [
        Kind::FederationUpdate,
        Kind::FederationUpdate,
        Kind::SignatureRequest,
        Kind::SignatureResponse,
        Kind::SignatureResponse,
        Kind::ProposalNotification,
        Kind::PeginNotification,
        Kind::PeginAck,
    ];
    assert_eq!(kinds, expected);
    for entry in &entries {
        let of_governance = i32::from(entry.kind()) >= i32::from(Kind::SignatureResponse);
        let name = names.get(entry.payload.as_ref());
        assert_eq!(name.is_some(), of_governance);
        assert_eq!(
            entry.occurrence_id.as_ref(),
            name.map_or(&[][..], Vec::as_slice)
        );
    }
    session.finish([4; 16], pages).await;
    // A deposit that may not have been notified is notified again, and answered under its old name.
    let again = proto::PeginNotification::from(&deposit(1)).encode_to_vec();
    let again = restored.message(Lane::Pegin, Kind::PeginNotification, again);
    session.send(vec![again]).await;
    let ack = session.receive(&mut restored, 1).await.remove(0);
    assert_eq!(ack.sequence, 1, "the outbox numbers anew");
    assert_eq!(
        names.get(ack.payload.as_ref()),
        Some(&ack.occurrence_id.to_vec())
    );
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn results_keep_their_names_when_a_ledger_is_restored_and_numbers_anew() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut store = Store::new(false);
    let mut session = store.register(&simulator).await.expect("a new node");
    simulator.propose(&proto::ProposalNotification {
        proposal_id: "proposal-1".to_owned(),
        proposal_type: "limits".to_owned(),
        ..Default::default()
    });
    let request = pegout(&federation, 1);
    let message = store.request(&request);
    session.send(vec![message]).await;
    let before = session.receive(&mut store, 3).await;
    simulator.restore(simulator.checkpoint(), false);
    // The same store, which has adopted the ledger.
    (store.received, store.sent) = (BTreeMap::new(), BTreeMap::new());
    let mut session = store.register(&simulator).await.expect("known");
    assert!(!session.ack.recall_due, "it was not restored");
    session.list([5; 16], &[request]).await;
    let after = session.receive(&mut store, 3).await;
    let named = |messages: &[proto::SequencedMessage]| {
        let named = messages.iter().map(|message| {
            let (payload, name) = (message.payload.to_vec(), message.occurrence_id.to_vec());
            (payload, name)
        });
        named.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(named(&before), named(&after));
    let ids = |messages: &[proto::SequencedMessage]| {
        let ids = messages.iter().map(|message| message.message_id.to_vec());
        ids.collect::<Vec<_>>()
    };
    assert!(ids(&before).iter().all(|id| !ids(&after).contains(id)));
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_that_asks_for_signatures_too_early_is_a_violation() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut lost = Store::new(false);
    lost.register(&simulator).await.expect("a new node");
    let mut restored = Store::new(true);
    drop(restored.register(&simulator).await);
    allow(&simulator, &restored);
    let mut session = restored.register(&simulator).await.expect("permitted");
    session.list([6; 16], &[]).await;
    session.recall_all([6; 16]).await;
    // It has everything, and has not said that it has committed it.
    let early = restored.request(&pegout(&federation, 1));
    session.send(vec![early]).await;
    assert_eq!(session.refused().await.code(), ErrorCode::ProtocolViolation);
    let violations = simulator.ledger().violations;
    assert!(
        violations[0].contains("before its restored store"),
        "{violations:?}"
    );
    assert!(simulator.ledger().requests.is_empty());
    // So is one that says that it is done before it can be.
    let mut session = restored.register(&simulator).await.expect("again");
    session.list([7; 16], &[]).await;
    session.finish([7; 16], 0).await;
    assert_eq!(session.refused().await.code(), ErrorCode::ProtocolViolation);
    // And one that asks for a page that is not the next.
    let mut session = restored.register(&simulator).await.expect("again");
    session.list([8; 16], &[]).await;
    session.ask(recall([8; 16], 1, false)).await;
    assert_eq!(session.refused().await.code(), ErrorCode::ProtocolViolation);
}

#[tokio::test(flavor = "multi_thread")]
async fn governance_that_is_restarted_still_knows_which_outboxes_are_retired() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = || SimulatorConfig {
        directory: Some(directory.path().to_owned()),
        ..Default::default()
    };
    let (mut first, mut second) = (Store::new(false), Store::new(true));
    let mut third = Store::new(true);
    let simulator = Simulator::start(config()).await.expect("starts");
    first.register(&simulator).await.expect("a new node");
    drop(second.register(&simulator).await);
    allow(&simulator, &second);
    let mut session = second.register(&simulator).await.expect("permitted");
    session.list([9; 16], &[]).await;
    let (_, pages) = session.recall_all([9; 16]).await;
    session.finish([9; 16], pages).await;
    // Its word is taken before the next thing that it says is answered.
    session
        .ask(stream_request::Control::Heartbeat(proto::Heartbeat {
            number: 1,
            sent_unix_ms: 0,
        }))
        .await;
    assert!(matches!(
        session.answer().await,
        Some(Control::HeartbeatAck(_))
    ));
    drop(third.register(&simulator).await);
    allow(&simulator, &third);
    simulator.shutdown().await;
    let simulator = Simulator::start(config()).await.expect("starts again");
    for store in [&mut first, &mut second] {
        let retired = store.register(&simulator).await.err().expect("retired");
        assert_eq!(retired.code(), ErrorCode::OutboxRetired);
    }
    let session = third.register(&simulator).await.expect("still permitted");
    assert!(session.ack.recall_due);
    simulator.assert_clean();
}

/// A node with short deadlines that has nothing to flush.
fn impatient(simulator: &Simulator) -> Config {
    let mut config = config(&simulator.endpoints());
    config.drain_deadline = Duration::from_millis(50);
    config
}

/// What a quarantined node says of the cause.
async fn quarantine(node: &Node) -> String {
    node.until("quarantined", |status| {
        status.connection.phase == ConnectionPhase::Quarantined
    })
    .await;
    node.stream.status().connection.last_fault.expect("a cause")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_is_new_is_quarantined_before_and_after_the_permission() {
    let simulator = governance().await;
    Store::new(false)
        .register(&simulator)
        .await
        .expect("a new node");
    let node = Node::with(impatient(&simulator)).await;
    let fault = quarantine(&node).await;
    let view = simulator.ledger();
    let refused = view
        .outboxes
        .iter()
        .find(|outbox| outbox.standing == OutboxStanding::Refused)
        .expect("it waits");
    let outbox_id = refused.outbox_id;
    assert!(fault.contains(&format!("permit {outbox_id}")), "{fault}");
    simulator
        .allow_outbox(NODE, outbox_id)
        .expect("it waits for that");
    // Governance serves it now, and a store that takes itself for a good one must not go on.
    node.stream.resume().expect("running");
    ledger(&simulator, |view| view.registrations == 2).await;
    let fault = quarantine(&node).await;
    assert!(fault.contains("new or restored"), "{fault}");
    let federation = simulator.federation(1).expect("the first");
    node.request(&federation, [1]).await;
    assert!(simulator.ledger().requests.is_empty());
    node.stop().await;
    simulator.assert_clean();
}

/// What the node has made durable of itself.
async fn identity_of(node: &Node) -> history::Identity {
    let store = node.stream.store().expect("open");
    let facts = history::view(&store, |history| history.facts()).await;
    facts.expect("readable").identity.expect("committed")
}

/// Waits until the node is quarantined for this, which it was not before.
async fn refused_for(node: &Node, words: &str) {
    node.until(words, |status| {
        let fault = status.connection.last_fault.as_deref().unwrap_or_default();
        status.connection.phase == ConnectionPhase::Quarantined && fault.contains(words)
    })
    .await;
}

/// Governance as it is left by a later state of the node's store, or by a copy of it that runs
/// elsewhere: by another opening, or by this one.
async fn registered_elsewhere(
    node: &Node,
    simulator: &Simulator,
    opening_id: OpeningId,
) -> (Store, client::Session) {
    node.until("connected", |status| status.is_connected())
        .await;
    let mut other = Store {
        outbox_id: simulator.ledger().outboxes[0].outbox_id,
        epoch: 40,
        opening_id,
        ..Store::new(false)
    };
    let session = other.register(simulator).await.expect("higher");
    (other, session)
}

/// The process itself has registered in an epoch that its store does not know: it went back.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_went_back_says_so_and_no_resume_leads_out() {
    let simulator = governance().await;
    let node = Node::with(impatient(&simulator)).await;
    node.until("connected", |status| status.is_connected())
        .await;
    let opening = identity_of(&node).await.opening.expect("registered");
    registered_elsewhere(&node, &simulator, opening).await;
    refused_for(&node, "a newer session").await;
    node.stream.resume().expect("running");
    refused_for(&node, "governance saw epoch 41 of it").await;
    let before = identity_of(&node).await.epoch;
    node.stream.resume().expect("running");
    refused_for(&node, "governance has seen more of it").await;
    let refused = node.stream.resume_restored().await;
    assert_eq!(refused, Err(StreamError::NotRestored));
    let federation = simulator.federation(1).expect("the first");
    let refused = node.stream.request_signatures(pegout(&federation, 1));
    assert_eq!(refused.await.map(drop), Err(StreamError::Restoring));
    let after = identity_of(&node).await.epoch;
    assert_eq!(after, before, "it is not raised");
    node.stop().await;
    simulator.assert_clean();
}

/// Of two machines with one store the one that was there first is not told to restore: nothing is
/// wrong with its store, and it goes on once its operator has seen to the other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_a_copy_has_fenced_goes_on_when_its_operator_has_stopped_the_copy() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::with(impatient(&simulator)).await;
    let handles = node.request(&federation, [1]).await;
    assert_eq!(handles[0].outcome(PATIENCE).await, Ok(Outcome::Complete));
    ledger(&simulator, |view| view.unacknowledged == 0).await;
    // What the copy has from the node.
    let mut copy = copy_of(&node, &simulator).await;
    let session = copy.register(&simulator).await.expect("higher");
    let words = format!("another process ({})", copy.opening_id);
    refused_for(&node, &words).await;
    let status = node.stream.status();
    assert_eq!(status.restoration, Restoration::None);
    // Accepted, and not sent.
    let handles = node.request(&federation, [2]).await;
    drop(session);
    node.stream.resume().expect("running");
    assert_eq!(handles[0].outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert!(identity_of(&node).await.epoch > copy.epoch);
    node.stop().await;
    simulator.assert_clean();
}

/// What the copy has done is missing in the first one's store: it is found out before anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_copy_has_asked_for_signatures_has_a_store_that_lacks_them() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::with(impatient(&simulator)).await;
    let handles = node.request(&federation, [1]).await;
    assert_eq!(handles[0].outcome(PATIENCE).await, Ok(Outcome::Complete));
    ledger(&simulator, |view| view.unacknowledged == 0).await;
    let mut copy = copy_of(&node, &simulator).await;
    let session = copy.register(&simulator).await.expect("higher");
    let request = copy.request(&pegout(&federation, 2));
    session.send(vec![request]).await;
    ledger(&simulator, |view| view.requests.len() == 2).await;
    refused_for(&node, "another process").await;
    node.request(&federation, [3, 4]).await;
    node.stream.resume().expect("running");
    refused_for(&node, "its history went back").await;
    node.until("marked", |status| {
        status.restoration == Restoration::WentBack
    })
    .await;
    assert_eq!(simulator.ledger().requests.len(), 2, "nothing was sent");
    node.stop().await;
    simulator.assert_clean();
}

/// A copy of the node's store as of now, which another machine is about to open.
async fn copy_of(node: &Node, simulator: &Simulator) -> Store {
    let store = node.stream.store().expect("open");
    let facts = history::view(&store, |history| history.facts()).await;
    let facts = facts.expect("readable");
    let identity = facts.identity.expect("committed");
    let mut copy = Store {
        outbox_id: identity.outbox_id,
        epoch: identity.epoch,
        ..Store::new(false)
    };
    assert_eq!(copy.outbox_id, simulator.ledger().outboxes[0].outbox_id);
    for (lane, (counters, _)) in facts.lanes.iter() {
        let lane = i32::from(Lane::from(lane));
        if let Some(last) = counters.last_handled {
            let handled = (counters.handled_through, last.to_bytes().to_vec());
            copy.received.insert(lane, handled);
        }
        copy.sent.insert(lane, counters.next_new - 1);
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_is_retired_says_so() {
    let simulator = governance().await;
    let node = Node::with(impatient(&simulator)).await;
    node.until("connected", |status| status.is_connected())
        .await;
    simulator
        .allow_outbox(NODE, OutboxId::generate())
        .expect("a new one");
    node.until("retired", |status| {
        let fault = status.connection.last_fault.as_deref();
        fault.is_some_and(|fault| fault.contains("never served again"))
    })
    .await;
    quarantine(&node).await;
    node.stop().await;
    simulator.assert_clean();
}
