//! A node whose store was restored from a backup, is new, or went back: what it does and does not do,
//! and how it comes to know again what it did.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{
    collections::BTreeSet,
    ops::{ControlFlow, RangeInclusive},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use governance_stream::{
    BridgeEvent, ConnectionChange, ConnectionPhase, GovernanceStream, Health, RequestStanding,
    Restoration, Retry, StreamError,
    bridge::{EmbeddedBitcoin, PausedBy, PegoutRefusal, PegoutStage},
    config::Config,
    history,
    message::{FailureCode, Lane, OutboxId, Outcome, PeginStatus, RequestId, SignatureRequest},
    simulator::{FederationView, OutboxStanding, Simulator},
    storage::{Owner, Replace, Store, StoreError, restore, restore_in_place},
};
use support::{
    Node, PATIENCE, client::NODE, config, deposit, full::FullNode, governance, ledger, pegout,
    recorder::Mood, request_id, rival_parts, store_in, until,
};

/// A node's directories: as they were, and as they are after a restore.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    async fn open(&self, name: &str, config: &Config) -> Store {
        store_in(&self.path(name), config).await
    }

    /// A backup of a store that is in use.
    async fn back_up(&self, store: &Store) -> PathBuf {
        let (store, file) = (store.clone(), self.path("backup"));
        let to = file.clone();
        let made = tokio::task::spawn_blocking(move || {
            store.backup(&to, &mut |_| ControlFlow::Continue(()))
        });
        made.await.expect("ends").expect("is made");
        file
    }

    fn restore(&self, file: &Path, name: &str) {
        let directory = self.path(name).join("store");
        std::fs::create_dir_all(self.path(name)).expect("made");
        let progress = &mut |_| ControlFlow::Continue(());
        restore(file, &directory, Replace::Nothing, None, progress).expect("restored");
    }
}

/// A configuration with short deadlines, for a node that has nothing to flush.
fn impatient(simulator: &Simulator) -> Config {
    let mut config = config(&simulator.endpoints());
    config.drain_deadline = Duration::from_millis(50);
    config
}

/// Waits until the node is quarantined for this.
async fn quarantined(stream: &GovernanceStream, cause: &str) {
    until(stream, cause, |status| {
        let fault = status.connection.last_fault.as_deref().unwrap_or_default();
        status.connection.phase == ConnectionPhase::Quarantined && fault.contains(cause)
    })
    .await;
}

async fn outbox(stream: &GovernanceStream) -> OutboxId {
    let facts = history::view(&stream.store().expect("open"), |history| history.facts()).await;
    facts
        .expect("readable")
        .identity
        .expect("committed")
        .outbox_id
}

async fn recalled(stream: &GovernanceStream) {
    until(stream, "recalled", |status| {
        status.restoration == Restoration::None && status.is_connected()
    })
    .await;
}

async fn outcome(stream: &GovernanceStream, number: u64) -> Result<Outcome, StreamError> {
    stream.request(request_id(number)).outcome(PATIENCE).await
}

/// Both operators let a restored store go on.
async fn let_go_on(stream: &GovernanceStream, simulator: &Simulator) {
    quarantined(stream, "restored from a backup").await;
    let permitted = simulator.allow_outbox(NODE, outbox(stream).await);
    permitted.expect("known, and not retired");
    stream.resume_restored().await.expect("it waits for it");
}

/// Another transaction for the burn of `number`, with a coin of its own.
fn rival(federation: &FederationView, number: u64) -> SignatureRequest {
    SignatureRequest::new(rival_parts(federation, 1000 + number, number)).expect("valid")
}

async fn asked(stream: &GovernanceStream, request: SignatureRequest) -> Result<(), StreamError> {
    stream.request_signatures(request).await.map(|_| ())
}

async fn assert_each_burn_is_bound(
    stream: &GovernanceStream,
    federation: &FederationView,
    numbers: RangeInclusive<u64>,
) {
    for number in numbers {
        let refused = asked(stream, rival(federation, number)).await;
        assert!(
            matches!(refused, Err(StreamError::AlreadyPaid { .. })),
            "{number}: {refused:?}"
        );
    }
}

/// Has these peg-outs signed and broadcast, and these deposits answered.
async fn busy(node: &FullNode, federation: &FederationView, numbers: RangeInclusive<u64>) {
    for number in numbers.clone() {
        let begun = node.initiate(pegout(federation, number)).await;
        begun.expect("begun");
        let notified = deposit(u32::try_from(number).expect("small"));
        node.stream.notify_pegin(notified).await.expect("accepted");
    }
    for number in numbers.clone() {
        node.until_on_network(number).await;
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete));
    }
    assert_deposits(node, numbers).await;
}

async fn assert_deposits(node: &FullNode, numbers: RangeInclusive<u64>) {
    let mut changed = node.bridge_store.watch();
    for number in numbers {
        let outpoint = deposit(u32::try_from(number).expect("small")).outpoint();
        let answered = async {
            while node
                .bridge_store
                .pegin(&outpoint)
                .await
                .expect("read")
                .is_none()
            {
                changed.changed().await.expect("the store lives");
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answered).await;
        answered.unwrap_or_else(|_| panic!("deposit {number} is not answered"));
        let answer = node.bridge_store.pegin(&outpoint).await.expect("read");
        assert_eq!(answer, Some(PeginStatus::Recorded));
    }
}

async fn responses(node: &FullNode, numbers: RangeInclusive<u64>) -> Vec<usize> {
    let mut counted = Vec::new();
    for number in numbers {
        let pegout = node.pegout(&request_id(number)).await.expect("known");
        counted.push(pegout.responses());
    }
    counted
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_signed_after_the_backup_is_known_again_and_paid_once() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let (bitcoin, first) = (Arc::<EmbeddedBitcoin>::default(), impatient(&simulator));
    let store = disk.open("first", &first).await;
    let node = FullNode::on(store, bitcoin.clone(), first, &simulator).await;
    busy(&node, &federation, 1..=5).await;
    let backup = disk.back_up(&node.stream.store().expect("open")).await;
    busy(&node, &federation, 6..=25).await;
    let before = responses(&node, 1..=25).await;
    let registrations = simulator.ledger().registrations;
    node.kill().await;

    disk.restore(&backup, "second");
    let config = impatient(&simulator);
    let store = disk.open("second", &config).await;
    let node = FullNode::on(store, Arc::default(), config, &simulator).await;
    let stream = &node.stream;
    quarantined(stream, "restored from a backup").await;
    // Nothing is sent, nothing is taken, nothing is called unknown or settled.
    assert!(matches!(stream.status().health, Health::Unhealthy(_)));
    assert_eq!(stream.status().restoration, Restoration::Waiting);
    for number in [1, 10, 30] {
        let refused = asked(stream, rival(&federation, number)).await;
        assert_eq!(refused, Err(StreamError::Restoring));
    }
    assert_eq!(StreamError::Restoring.retry(), Retry::Operator);
    let unknown = stream.cancel(request_id(10)).await;
    assert_eq!(unknown, Err(StreamError::Restoring));
    let unknown = stream.request(request_id(10)).standing().await;
    assert_eq!(unknown, Err(StreamError::Restoring));
    asked(stream, pegout(&federation, 3))
        .await
        .expect("known, and settled");
    stream.notify_pegin(deposit(26)).await.expect("accepted");
    assert_eq!(simulator.ledger().registrations, registrations);

    // The operator's word alone is not enough.
    stream.resume_restored().await.expect("it waits for it");
    quarantined(stream, "governance knows this node by another store").await;
    let refused = asked(stream, rival(&federation, 10)).await;
    assert_eq!(refused, Err(StreamError::Restoring));
    let permitted = simulator.allow_outbox(NODE, outbox(stream).await);
    permitted.expect("known, and not retired");
    stream.resume().expect("running");
    recalled(stream).await;

    assert_each_burn_is_bound(stream, &federation, 1..=25).await;
    assert_deposits(&node, 1..=26).await;
    for number in 1..=25 {
        let ended = outcome(stream, number).await;
        assert_eq!(ended, Ok(Outcome::Complete), "{number}");
    }
    assert_eq!(responses(&node, 1..=25).await, before, "each answer once");
    assert!(node.bridge_store.paused_by().contains(&PausedBy::Restore));
    for number in 6..=25 {
        let pegout = node.pegout(&request_id(number)).await.expect("known");
        assert_eq!(
            *pegout.stage(),
            PegoutStage::Signed,
            "not offered while paused"
        );
        let signed = pegout.transaction().expect("signed");
        let known = bitcoin.transactions();
        assert!(known.contains(signed), "the one that was signed before");
    }
    node.set_paused(false).await;
    for number in 1..=25 {
        node.until_on_network(number).await;
    }
    // A new one is as good as ever.
    node.initiate(pegout(&federation, 30)).await.expect("begun");
    node.until_on_network(30).await;
    let again = stream.resume_restored().await;
    assert_eq!(again, Err(StreamError::NotRestored));
    let view = ledger(&simulator, |view| view.unacknowledged == 0).await;
    assert_eq!((view.requests.len(), view.pegins), (26, 26));
    assert_eq!((view.duplicates, view.withdrawn), (0, 0));
    assert!(view.rejects.is_empty(), "{:?}", view.rejects);
    let letters = stream.dead_letters().await.expect("readable");
    assert!(letters.is_empty(), "{letters:?}");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_in_a_restored_store_is_never_called_unsent() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    // Accepted, and nowhere else.
    let mut nowhere = impatient(&simulator);
    nowhere.connection.endpoints = vec!["http://127.0.0.1:1".parse().expect("loopback")];
    let store = disk.open("first", &nowhere).await;
    let node = Node::on(store, nowhere).await;
    node.request(&federation, [1, 2]).await;
    let backup = disk.back_up(&node.stream.store().expect("open")).await;
    node.kill().await;
    // Sent and signed after the backup.
    let first = impatient(&simulator);
    let node = Node::on(disk.open("first", &first).await, first).await;
    for number in [1, 2] {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete));
    }
    node.kill().await;

    disk.restore(&backup, "second");
    let second = impatient(&simulator);
    let node = Node::on(disk.open("second", &second).await, second).await;
    quarantined(&node.stream, "restored from a backup").await;
    // A caller gives up on one of them, and it is open for all that.
    node.stream.cancel(request_id(1)).await.expect("known");
    let standing = node.stream.request(request_id(1)).standing().await;
    let standing = standing.expect("known");
    assert!(format!("{standing:?}").starts_with("Open"), "{standing:?}");
    let_go_on(&node.stream, &simulator).await;
    recalled(&node.stream).await;
    for number in [1, 2] {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete), "as governance has it");
    }
    assert_eq!(simulator.ledger().duplicates, 0);
    node.stop().await;
    simulator.assert_clean();
}

/// A restored store's health says what it waits for where no endpoint can be reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_is_unhealthy_wherever_governance_is() {
    let (simulator, disk) = (governance().await, Disk::new());
    let mut nowhere = impatient(&simulator);
    nowhere.connection.endpoints = vec!["http://127.0.0.1:1".parse().expect("loopback")];
    let store = disk.open("first", &nowhere).await;
    let backup = disk.back_up(&store).await;
    drop(store);
    disk.restore(&backup, "second");
    let node = Node::on(disk.open("second", &nowhere).await, nowhere).await;
    node.until("unhealthy", |status| {
        matches!(&status.health, Health::Unhealthy(reasons)
            if reasons.iter().any(|reason| reason.contains("resume --restored")))
    })
    .await;
    node.stop().await;
    simulator.assert_clean();
}

/// Names of what the bridge was told, and how often; answers under each name are one.
fn told(events: &[governance_stream::Delivered<BridgeEvent>]) -> (BTreeSet<RequestId>, usize) {
    let requests = events.iter().filter_map(|message| match &message.event {
        BridgeEvent::RequestRecalled(recalled) => Some(recalled.request_id.clone()),
        _ => None,
    });
    let names = events
        .iter()
        .map(|message| (message.lane, message.occurrence_id));
    let names: BTreeSet<_> = names.collect();
    (requests.collect(), names.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_cut_or_whose_node_dies_begins_again_and_comes_to_its_end() {
    const COUNT: u64 = 300;
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let store = disk.open("first", &first).await;
    let backup = disk.back_up(&store).await;
    let node = Node::on(store, first).await;
    let handles = node.request(&federation, 1..=COUNT).await;
    for handle in &handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    node.kill().await;
    disk.restore(&backup, "second");
    let config = impatient(&simulator);
    let mut node = Node::on(disk.open("second", &config).await, config).await;
    let_go_on(&node.stream, &simulator).await;
    // Request and two answers each: pages are of 256 entries.
    for round in 0..4_usize {
        let so_far = node.bridge.so_far().len();
        node.bridge.mood(Mood::PanicsAt(100 + 150 * round));
        node.bridge.death().await;
        node.bridge.recorded(so_far + 100 + 150 * round).await;
        simulator.cut();
        node.bridge.appear().await;
    }
    for count in [1, 257, 513] {
        node.kill().await;
        let config = impatient(&simulator);
        node = Node::on(disk.open("second", &config).await, config).await;
        node.bridge.recorded(count).await;
    }
    recalled(&node.stream).await;
    let events = node.bridge.so_far();
    let (requests, names) = told(&events);
    assert_eq!(requests.len() as u64, COUNT);
    assert_eq!(names as u64, 3 * COUNT, "under the names that they had");
    let numbers = events
        .iter()
        .filter(|message| message.lane == Lane::Signing);
    assert!(numbers.clone().all(|message| message.sequence == 0));
    for number in 1..=COUNT {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete));
    }
    assert_each_burn_is_bound(&node.stream, &federation, 1..=COUNT).await;
    assert_eq!(simulator.ledger().duplicates, 0);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_at_governance_stays_open_and_is_signed_later() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let store = disk.open("first", &first).await;
    let backup = disk.back_up(&store).await;
    let node = FullNode::on(store, Arc::default(), first, &simulator).await;
    // One member of two signs.
    simulator.set_offline_members(2);
    for number in 1..=3 {
        node.initiate(pegout(&federation, number))
            .await
            .expect("begun");
    }
    ledger(&simulator, |view| view.requests.len() == 3).await;
    node.kill().await;
    disk.restore(&backup, "second");
    let config = impatient(&simulator);
    let store = disk.open("second", &config).await;
    let node = FullNode::on(store, Arc::default(), config, &simulator).await;
    let_go_on(&node.stream, &simulator).await;
    recalled(&node.stream).await;
    assert_eq!(node.stream.status().open_requests, 3);
    // Each has its tracker: a caller waits, and another gives up.
    node.stream.cancel(request_id(3)).await.expect("known");
    let ended = outcome(&node.stream, 3).await;
    assert!(matches!(ended, Ok(Outcome::Cancelled { .. })), "{ended:?}");
    simulator.set_offline_members(0);
    for number in [1, 2] {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete));
    }
    assert_each_burn_is_bound(&node.stream, &federation, 1..=3).await;
    node.set_paused(false).await;
    for number in [1, 2] {
        node.until_on_network(number).await;
    }
    node.stop().await;
    simulator.assert_clean();
}

/// Whether the bridge begins a peg-out.
async fn refuses_pegouts(node: &FullNode, federation: &FederationView) {
    let refused = node.initiate(pegout(federation, 90)).await;
    assert_eq!(refused, Err(PegoutRefusal::Restoring));
}

/// A lost store is no better than a restored one: its bridge begins nothing, and when everything is
/// recalled an operator looks before anything is offered.
#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_of_a_lost_store_begins_nothing_and_is_paused_when_it_is_recalled() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let store = disk.open("first", &first).await;
    let node = FullNode::on(store, Arc::default(), first, &simulator).await;
    busy(&node, &federation, 1..=2).await;
    node.kill().await;
    let config = impatient(&simulator);
    let store = disk.open("lost", &config).await;
    let node = FullNode::on(store, Arc::default(), config, &simulator).await;
    quarantined(&node.stream, "governance knows this node by another store").await;
    node.stream.resume_restored().await.expect("store lost");
    until(&node.stream, "to be recalled", |status| {
        status.restoration == Restoration::Reconciling
    })
    .await;
    refuses_pegouts(&node, &federation).await;
    let permitted = simulator.allow_outbox(NODE, outbox(&node.stream).await);
    permitted.expect("known, and not retired");
    node.stream.resume().expect("running");
    recalled(&node.stream).await;
    assert!(node.bridge_store.paused_by().contains(&PausedBy::Restore));
    for number in [1, 2] {
        let signed = |stage: &PegoutStage| *stage == PegoutStage::Signed;
        node.until(&request_id(number), signed).await;
    }
    assert!(node.bitcoin.transactions().is_empty(), "not while paused");
    node.set_paused(false).await;
    for number in [1, 2] {
        node.until_on_network(number).await;
    }
    node.stop().await;
    simulator.assert_clean();
}

/// A caller of a lost store used an id again that governance has for another request. It has its outcome,
/// and nothing of either is paid again.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_governance_has_for_another_request_ends_in_a_conflict() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let store = disk.open("first", &first).await;
    let node = FullNode::on(store, Arc::default(), first, &simulator).await;
    busy(&node, &federation, 1..=1).await;
    node.kill().await;
    let config = impatient(&simulator);
    let store = disk.open("lost", &config).await;
    let node = FullNode::on(store, Arc::default(), config, &simulator).await;
    let mut parts = rival_parts(&federation, 7, 7);
    parts.request_id = request_id(1);
    let other = SignatureRequest::new(parts).expect("valid");
    asked(&node.stream, other).await.expect("not known yet");
    quarantined(&node.stream, "governance knows this node by another store").await;
    node.stream.resume_restored().await.expect("store lost");
    let permitted = simulator.allow_outbox(NODE, outbox(&node.stream).await);
    permitted.expect("known, and not retired");
    node.stream.resume().expect("running");
    recalled(&node.stream).await;
    // Once it was told of the other one, it waits for an operator until governance has said what of it.
    until(&node.stream, "settled", |status| {
        status.open_requests == 0 && status.parked_requests == 0
    })
    .await;
    let ended = node.stream.request(request_id(1)).standing().await;
    let Ok(RequestStanding::Settled(Outcome::Failed { code, .. })) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(code, Some(FailureCode::Conflict));
    for burn in [1, 7] {
        let refused = asked(&node.stream, rival(&federation, burn)).await;
        assert!(
            matches!(refused, Err(StreamError::AlreadyPaid { .. })),
            "{burn}: {refused:?}"
        );
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_begins_nothing_while_its_store_waits_for_an_operator_or_a_recall() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let store = disk.open("first", &first).await;
    let backup = disk.back_up(&store).await;
    let node = FullNode::on(store, Arc::default(), first, &simulator).await;
    busy(&node, &federation, 1..=1).await;
    node.kill().await;
    disk.restore(&backup, "second");
    let config = impatient(&simulator);
    let store = disk.open("second", &config).await;
    let node = FullNode::on(store, Arc::default(), config, &simulator).await;
    quarantined(&node.stream, "restored from a backup").await;
    assert_eq!(node.stream.status().restoration, Restoration::Waiting);
    refuses_pegouts(&node, &federation).await;
    node.stream
        .resume_restored()
        .await
        .expect("it waits for it");
    quarantined(&node.stream, "governance knows this node by another store").await;
    assert_eq!(node.stream.status().restoration, Restoration::Reconciling);
    refuses_pegouts(&node, &federation).await;
    let permitted = simulator.allow_outbox(NODE, outbox(&node.stream).await);
    permitted.expect("known, and not retired");
    node.stream.resume().expect("running");
    recalled(&node.stream).await;
    node.initiate(pegout(&federation, 90)).await.expect("begun");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_that_comes_back_is_retired_and_a_copy_goes_by_a_restore_in_place() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let store = disk.open("first", &first).await;
    let node = Node::on(store, first).await;
    node.request(&federation, [1]).await;
    node.kill().await;
    snapshot_of_the_volume(&disk, &simulator).await;
    let first = impatient(&simulator);
    let node = Node::on(disk.open("first", &first).await, first).await;
    let handles = node.request(&federation, 2..=4).await;
    for handle in handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    node.kill().await;

    let config = impatient(&simulator);
    let node = Node::on(disk.open("copy", &config).await, config).await;
    quarantined(&node.stream, "restore --in-place").await;
    let refused = node.stream.resume_restored().await;
    assert_eq!(
        refused,
        Err(StreamError::NotRestored),
        "no restore was made"
    );
    node.kill().await;
    mark_in_place(&disk, &simulator).await;
    let config = impatient(&simulator);
    let node = Node::on(disk.open("copy", &config).await, config).await;
    let_go_on(&node.stream, &simulator).await;
    recalled(&node.stream).await;
    assert_each_burn_is_bound(&node.stream, &federation, 1..=4).await;

    let old = impatient(&simulator);
    let old = Node::on(disk.open("first", &old).await, old).await;
    quarantined(&old.stream, "never served again").await;
    let refused = old.stream.resume_restored().await;
    assert_eq!(refused, Err(StreamError::NotRestored));
    old.stop().await;
    node.stop().await;
    simulator.assert_clean();
}

/// A snapshot of the first directory's volume, in `copy`, which nobody calls a backup.
async fn snapshot_of_the_volume(disk: &Disk, simulator: &Simulator) {
    std::fs::create_dir_all(disk.path("copy/store")).expect("made");
    let from = disk.path("first/store").join("store.redb");
    let to = disk.path("copy/store").join("store.redb");
    wait_for_release(disk, simulator).await;
    std::fs::copy(from, to).expect("copied");
    private(&disk.path("copy/store"));
}

/// `restore --in-place` of the copy, once it is held by nobody.
async fn mark_in_place(disk: &Disk, simulator: &Simulator) {
    wait_for_release(disk, simulator).await;
    let in_place = async {
        loop {
            match restore_in_place(&disk.path("copy/store"), None) {
                Ok(_) => return,
                Err(error) => {
                    assert!(error.to_string().contains("use"), "{error}");
                    tokio::task::yield_now().await;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, in_place)
        .await
        .expect("free");
}

/// Money: a request that was not sent yet when the volume was snapshot, and was signed after that, is
/// never called unsent by the store that is put back: neither while it cannot reach governance, nor on
/// its whole way out of that state.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_put_back_calls_nothing_unsent_and_comes_out_healthy() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let mut nowhere = impatient(&simulator);
    nowhere.connection.endpoints = vec!["http://127.0.0.1:1".parse().expect("loopback")];
    let store = disk.open("first", &nowhere).await;
    let node = Node::on(store, nowhere.clone()).await;
    node.request(&federation, [1, 2]).await;
    node.kill().await;
    snapshot_of_the_volume(&disk, &simulator).await;
    let first = impatient(&simulator);
    let node = Node::on(disk.open("first", &first).await, first).await;
    for number in [1, 2] {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete));
    }
    // Governance has its word that it has the answers, which the older state does not know.
    ledger(&simulator, |view| view.unacknowledged == 0).await;
    node.kill().await;

    // Nobody is there to say that the store went back.
    let alone = Node::on(disk.open("copy", &nowhere).await, nowhere).await;
    alone.stream.cancel(request_id(1)).await.expect("known");
    let is_open = async |stream: &GovernanceStream| {
        let standing = stream.request(request_id(1)).standing().await;
        assert!(
            matches!(standing, Ok(RequestStanding::Open(_))),
            "{standing:?}"
        );
    };
    is_open(&alone.stream).await;
    alone.kill().await;

    let config = impatient(&simulator);
    let node = Node::on(disk.open("copy", &config).await, config).await;
    quarantined(&node.stream, "another process").await;
    is_open(&node.stream).await;
    // Its operator takes it for the one of two machines that is to go on.
    node.stream.resume().expect("running");
    quarantined(&node.stream, "its history went back").await;
    assert_eq!(node.stream.status().restoration, Restoration::WentBack);
    is_open(&node.stream).await;
    let refused = asked(&node.stream, pegout(&federation, 9)).await;
    assert_eq!(refused, Err(StreamError::Restoring));
    node.kill().await;
    mark_in_place(&disk, &simulator).await;
    let config = impatient(&simulator);
    let node = Node::on(disk.open("copy", &config).await, config).await;
    let_go_on(&node.stream, &simulator).await;
    recalled(&node.stream).await;
    for number in [1, 2] {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete), "as governance has it");
    }
    node.request(&federation, [9]).await;
    assert_eq!(outcome(&node.stream, 9).await, Ok(Outcome::Complete));
    node.until("healthy", |status| status.health == Health::Healthy)
        .await;
    let view = simulator.ledger();
    assert_eq!((view.requests.len(), view.duplicates), (3, 0));
    node.stop().await;
    simulator.assert_clean();
}

/// Waits until the store of the first directory is held by nobody.
async fn wait_for_release(disk: &Disk, simulator: &Simulator) {
    for name in ["first", "copy"] {
        if disk.path(name).join("store").join("store.redb").exists() {
            drop(disk.open(name, &impatient(simulator)).await);
        }
    }
}

fn private(directory: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let set = |path: &Path, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).expect("set");
    };
    set(directory, 0o700);
    for entry in std::fs::read_dir(directory).expect("read") {
        set(&entry.expect("read").path(), 0o600);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_store_asks_nobody_to_sign_where_its_node_is_known_until_everything_is_recalled() {
    let (simulator, disk) = (governance().await, Disk::new());
    let federation = simulator.federation(1).expect("the first");
    let first = impatient(&simulator);
    let node = Node::on(disk.open("first", &first).await, first).await;
    let handles = node.request(&federation, 1..=5).await;
    for handle in handles {
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    node.kill().await;

    let config = impatient(&simulator);
    let store = disk.open("lost", &config).await;
    let node = Node::on(store, config).await;
    // Nobody knows yet that the store is a lost one's.
    let second = SignatureRequest::new(rival_parts(&federation, 5002, 2)).expect("valid");
    let taken = asked(&node.stream, second).await;
    taken.expect("the store knows of no other");
    node.request(&federation, [3, 9]).await;
    quarantined(&node.stream, "governance knows this node by another store").await;
    assert_eq!(simulator.ledger().requests.len(), 5);
    node.stream.resume_restored().await.expect("store lost");
    let refused = asked(&node.stream, pegout(&federation, 10)).await;
    assert_eq!(refused, Err(StreamError::Restoring));
    node.until("refused again", |status| {
        let quarantined = |change: &&ConnectionChange| change.to == ConnectionPhase::Quarantined;
        status.changes.iter().filter(quarantined).count() == 2
    })
    .await;
    let permitted = simulator.allow_outbox(NODE, outbox(&node.stream).await);
    permitted.expect("known, and not retired");
    node.stream.resume_restored().await.expect("said again");
    recalled(&node.stream).await;
    // The one that would have paid a burn twice is not sent; the others are what they are.
    let ended = outcome(&node.stream, 5002).await;
    assert!(matches!(ended, Ok(Outcome::Rejected { .. })), "{ended:?}");
    for number in [1, 2, 3, 4, 5, 9] {
        let ended = outcome(&node.stream, number);
        assert_eq!(ended.await, Ok(Outcome::Complete), "{number}");
    }
    for bound in [1..=1, 3..=5] {
        assert_each_burn_is_bound(&node.stream, &federation, bound).await;
    }
    let refused = asked(&node.stream, rival(&federation, 2)).await;
    assert!(
        matches!(refused, Err(StreamError::AlreadyPaid { .. })),
        "{refused:?}"
    );
    let view = simulator.ledger();
    assert_eq!((view.requests.len(), view.duplicates), (6, 0));
    assert!(
        view.outboxes
            .iter()
            .any(|outbox| outbox.standing == OutboxStanding::Retired)
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_resumed_that_was_not_restored() {
    let simulator = governance().await;
    let node = Node::start(&simulator).await;
    node.until("connected", |status| status.is_connected())
        .await;
    let refused = node.stream.resume_restored().await;
    assert_eq!(refused, Err(StreamError::NotRestored));
    node.stop().await;
    simulator.assert_clean();
    let absent = Store::open(Path::new("/nowhere"), &Owner::of(&config(&[]).node));
    assert!(
        matches!(absent, Err(StoreError::Absent { .. })),
        "{absent:?}"
    );
}
