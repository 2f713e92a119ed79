//! From one federation to the next: at its height, whoever was away, and with the bridge told.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use governance_stream::{
    GovernanceStream, StreamArguments, Subscriber,
    bridge::BridgeMessage,
    chain::{
        ChainActor, ChainArguments, ChainMessage, ChainStore, FederationEvent, FederationStanding,
        HeightError, HeightReport,
    },
    config::Config,
    message::Outcome,
    proto,
    simulator::{RotationPlan, Simulator},
    storage::{FaultyEngine, Hang, Kept, MemoryEngine, Owner, Store},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, rpc::CallResult};
use support::{
    PATIENCE,
    full::{FullNode, schedule},
    governance,
};
use tokio::sync::watch;

const PLAN: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 110,
    notice_blocks: 10,
    grace_blocks: 50,
    kind: proto::FederationUpdateKind::Scheduled,
};

/// A bridge that remembers nothing of what another one was told, and takes no for an answer so
/// many times.
struct Forgetful {
    silent: Arc<AtomicUsize>,
    told: watch::Sender<Vec<(u32, FederationStanding)>>,
}

impl Forgetful {
    fn new(silent: usize) -> Self {
        Self {
            silent: Arc::new(AtomicUsize::new(silent)),
            told: watch::Sender::new(Vec::new()),
        }
    }

    async fn start(&self, config: &Config) -> ActorRef<BridgeMessage> {
        let name = Some(config.subscribers.bridge.clone());
        let this = Self {
            silent: Arc::clone(&self.silent),
            told: self.told.clone(),
        };
        Actor::spawn(name, this, ())
            .await
            .expect("the name is free")
            .0
    }

    async fn until(&self, expected: &[(u32, FederationStanding)]) {
        let mut told = self.told.subscribe();
        let waited = tokio::time::timeout(PATIENCE, told.wait_for(|told| told == expected)).await;
        assert!(matches!(waited, Ok(Ok(_))), "{:?}", *self.told.borrow());
    }
}

impl Actor for Forgetful {
    type Msg = BridgeMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        message: Self::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let BridgeMessage::UpdateFederations { federations, reply } = message {
            let less = |left: usize| left.checked_sub(1);
            let silent = self
                .silent
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
            if silent.is_err() {
                let told = federations.iter();
                self.told
                    .send_replace(told.map(|(f, s)| (f.version(), *s)).collect());
                let _ = reply.send(());
            }
        }
        Ok(())
    }
}

/// A stream with a chain, on one store on disk, as a process would have them.
struct Process {
    stream: GovernanceStream,
    config: Config,
    store: ChainStore,
    chain: ActorRef<ChainMessage>,
}

impl Process {
    async fn start(simulator: &Simulator, directory: &Path) -> Self {
        let config = support::config(&simulator.endpoints());
        let store = support::store_in(directory, &config).await;
        Self::on(simulator, config, store).await
    }

    async fn on(simulator: &Simulator, config: Config, store: Store) -> Self {
        let first = simulator.federation(1).expect("the first");
        let chain_store = ChainStore::open(&store, schedule(&first)).await;
        let chain_store = chain_store.expect("opens");
        let arguments = StreamArguments {
            bridge: Subscriber::named::<BridgeMessage>(&config.subscribers.bridge),
            chain: Subscriber::named::<ChainMessage>(&config.subscribers.chain),
            ..StreamArguments::new(config.clone(), store)
        };
        let stream = GovernanceStream::start(arguments).await.expect("starts");
        let chain = start_chain(&config, &chain_store, &stream).await;
        Self {
            stream,
            config,
            store: chain_store,
            chain,
        }
    }

    async fn report(&self, report: HeightReport) -> Result<(), HeightError> {
        let message = |reply| ChainMessage::ReportHeight { report, reply };
        match self.chain.call(message, Some(PATIENCE)).await {
            Ok(CallResult::Success(taken)) => taken,
            other => panic!("no answer: {other:?}"),
        }
    }

    async fn restart_chain(&mut self) {
        self.chain.kill();
        self.chain.wait(Some(PATIENCE)).await.expect("dies");
        self.chain = start_chain(&self.config, &self.store, &self.stream).await;
    }

    async fn connected(&self) {
        support::until(&self.stream, "connected", |status| status.is_connected()).await;
    }

    async fn stop(self) {
        self.stream.shutdown().await.expect("shuts down");
        let stopped = self.chain.stop_and_wait(None, Some(PATIENCE)).await;
        stopped.expect("stops");
    }
}

async fn start_chain(
    config: &Config,
    store: &ChainStore,
    stream: &GovernanceStream,
) -> ActorRef<ChainMessage> {
    let arguments = ChainArguments {
        store: store.clone(),
        stream: stream.clone(),
        bridge: config.subscribers.bridge.clone(),
    };
    let name = Some(config.subscribers.chain.clone());
    let spawned = Actor::spawn(name, ChainActor, arguments).await;
    spawned.expect("the name is free").0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_is_told_until_it_says_so_and_whoever_takes_its_place_or_the_chains_is_too() {
    use FederationStanding::{Active, Retiring, Scheduled};
    let simulator = governance().await;
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = Process::start(&simulator, directory.path()).await;
    // It drops the reply three times.
    let bridge = Forgetful::new(3);
    let actor = bridge.start(&process.config).await;
    bridge.until(&[(1, Active)]).await;
    assert_eq!(bridge.silent.load(Ordering::SeqCst), 0);
    simulator.rotate_federation(&PLAN).expect("possible");
    bridge.until(&[(1, Active), (2, Scheduled)]).await;
    actor.kill();
    actor.wait(Some(PATIENCE)).await.expect("dies");
    // What happens while nobody is there is told to the next one, who knows nothing.
    process
        .report(HeightReport::Reached(110))
        .await
        .expect("taken");
    let next = Forgetful::new(1);
    let actor = next.start(&process.config).await;
    next.until(&[(1, Retiring), (2, Active)]).await;
    // Nothing has changed for the one after it, and it is told all the same.
    actor.kill();
    actor.wait(Some(PATIENCE)).await.expect("dies");
    let last = Forgetful::new(0);
    let actor = last.start(&process.config).await;
    last.until(&[(1, Retiring), (2, Active)]).await;
    // A chain that begins anew does not rely on what the one before has told.
    last.told.send_replace(Vec::new());
    process.restart_chain().await;
    last.until(&[(1, Retiring), (2, Active)]).await;
    process.stop().await;
    actor
        .stop_and_wait(None, Some(PATIENCE))
        .await
        .expect("stops");
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_in_is_answered_once_it_is_in_force_though_commits_fail_and_the_chain_dies()
{
    use FederationStanding::{Active, Retiring};
    for kept in [Kept::Nothing, Kept::All] {
        let simulator = governance().await;
        let engine = FaultyEngine::new(Arc::new(MemoryEngine::new()));
        let config = support::config(&simulator.endpoints());
        let owner = Owner::of(&config.node);
        let store = Store::create_on(Arc::new(engine.handle()), &owner).expect("made");
        let mut process = Process::on(&simulator, config, store).await;
        let bridge = Forgetful::new(0);
        let actor = bridge.start(&process.config).await;
        process.connected().await;
        engine.fail_commit(1, kept);
        simulator.rotate_federation(&PLAN).expect("possible");
        let view = support::ledger(&simulator, |view| !view.federation_acks.is_empty()).await;
        assert_eq!(view.federation_acks, [(2, true, String::new())]);
        assert_eq!(process.store.federations().len(), 2);

        engine.hang(Hang::Commits);
        let height = ChainMessage::HeightReached(110);
        process.chain.cast(height).expect("alive");
        let after_it = |reply| ChainMessage::GetFederation { reply };
        let active = process.chain.call(after_it, Some(PATIENCE)).await;
        let Ok(CallResult::Success(active)) = active else {
            panic!("a chain waits for a disk")
        };
        assert_eq!(active.version(), 1, "it is not durable");
        process.restart_chain().await;
        assert_eq!(process.store.active().version(), 1);
        engine.release(Hang::Commits);
        // Its successor sees what it has begun.
        bridge.until(&[(1, Retiring), (2, Active)]).await;
        process.stop().await;
        let stopped = actor.stop_and_wait(None, Some(PATIENCE)).await;
        stopped.expect("stops");
        simulator.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_height_that_passed_while_the_node_was_down_counts_and_can_be_undone() {
    let simulator = governance().await;
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::start(&simulator, directory.path()).await;
    process
        .report(HeightReport::Reached(90))
        .await
        .expect("taken");
    for activation_height in [110, 120] {
        let plan = RotationPlan {
            activation_height,
            ..PLAN
        };
        simulator.rotate_federation(&plan).expect("possible");
    }
    support::ledger(&simulator, |view| view.federation_acks.len() == 2).await;
    assert_eq!(process.store.active().version(), 1);
    let last = process.store.events_after(0).len() as u64;
    process.stop().await;

    let process = Process::start(&simulator, directory.path()).await;
    assert_eq!(process.store.height(), 90, "the node has not said more yet");
    assert_eq!(process.store.active().version(), 1);
    let lower = process.report(HeightReport::Reached(89)).await;
    let expected = HeightError::Lower {
        height: 89,
        known: 90,
    };
    assert_eq!(lower, Err(expected));
    process
        .report(HeightReport::Reached(130))
        .await
        .expect("taken");
    assert_eq!(process.store.active().version(), 3);
    process
        .report(HeightReport::Reorganised(115))
        .await
        .expect("taken");
    assert_eq!(process.store.active().version(), 2);
    process
        .chain
        .cast(ChainMessage::HeightReached(100))
        .expect("alive");
    process
        .report(HeightReport::Reached(100))
        .await
        .expect("taken");
    assert_eq!(process.store.active().version(), 1);
    let address = |version| simulator.federation(version).expect("known").address;
    let events: Vec<_> = process
        .store
        .events_after(last)
        .into_iter()
        .map(|e| e.event)
        .collect();
    let undone = |undone_version, active_version| FederationEvent::Undone {
        undone_version,
        active_version,
        active_address: address(active_version),
    };
    let expected = [
        FederationEvent::Updated {
            old_version: 1,
            new_version: 3,
            new_address: address(3),
        },
        undone(3, 2),
        undone(2, 1),
    ];
    assert_eq!(events, expected);
    process.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rushed_update_is_refused_and_one_that_was_missed_is_followed() {
    let simulator = governance().await;
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::start(&simulator, directory.path()).await;
    process.connected().await;
    for height in [50, 101] {
        process
            .report(HeightReport::Reached(height))
            .await
            .expect("taken");
    }
    simulator.announce(&simulator.build_update(&PLAN).expect("possible"));
    let view = support::ledger(&simulator, |view| view.federation_acks.len() == 1).await;
    let (version, accepted, reason) = &view.federation_acks[0];
    assert_eq!((*version, *accepted), (2, false));
    assert!(
        reason.contains("10 blocks' notice at height 101"),
        "{reason}"
    );
    let refusal = process.store.last_refusal().expect("one");
    assert_eq!((refusal.version, &refusal.reason), (2, reason));
    process.stop().await;

    // Announced in time, but to nobody: it is followed, or this node would follow none after it.
    simulator.rotate_federation(&PLAN).expect("possible");
    let process = Process::start(&simulator, directory.path()).await;
    process
        .report(HeightReport::Reached(500))
        .await
        .expect("taken");
    let view = support::ledger(&simulator, |view| view.federation_acks.len() == 2).await;
    assert_eq!(view.federation_acks[1], (2, true, String::new()));
    assert_eq!(process.store.active().version(), 2);
    assert_eq!(
        process.store.last_refusal(),
        Some(refusal),
        "kept for the operator"
    );
    process.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pegout_finishes_with_the_version_that_it_was_asked_for_though_that_is_retired() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let mut node = FullNode::start(&simulator).await;
    simulator.hold_responses();
    let request = support::pegout(&first, 1);
    node.initiate(request.clone()).await.expect("begun");
    support::ledger(&simulator, |view| view.requests.len() == 1).await;
    simulator.rotate_federation(&PLAN).expect("possible");
    support::ledger(&simulator, |view| view.federation_acks.len() == 1).await;
    for height in [110, 500] {
        let report = HeightReport::Reached(height);
        let reached = |reply| ChainMessage::ReportHeight { report, reply };
        let taken = node.chain.call(reached, Some(PATIENCE)).await;
        // It is durable: the chain's mailbox goes with it.
        assert_eq!(taken.expect("alive"), CallResult::Success(Ok(())));
    }
    node.until_active(2).await;
    // Neither a new bridge nor a new chain forgets it.
    node.restart_chain().await;
    node.restart_bridge().await;
    let standing = |version| {
        let federations = node.chain_store.federations().into_iter();
        let mut of = federations.filter(|(federation, _)| federation.version() == version);
        of.next().map(|(_, standing)| standing)
    };
    assert_eq!(standing(1), Some(FederationStanding::Retired));
    simulator.release_responses();
    let outcome = node.stream.request(request.request_id().clone());
    assert_eq!(outcome.outcome(PATIENCE).await, Ok(Outcome::Complete));
    assert_eq!(
        node.stream.status().dead_letters,
        0,
        "the bridge could use it"
    );
    node.stop().await;
    simulator.assert_clean();
}
