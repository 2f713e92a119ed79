//! A node with this crate's own bridge and chain.

use std::sync::Arc;

use bitcoin::Network;
use governance_stream::{
    GovernanceStream, StreamArguments, Subscriber,
    bridge::{
        BridgeActor, BridgeArguments, BridgeMessage, BridgeStore, CompletionSubscriber,
        EmbeddedBitcoin, Pegout, PegoutRefusal, PegoutStage,
    },
    chain::{
        ChainActor, ChainArguments, ChainMessage, ChainStore, Federation, FederationPolicy,
        Schedule,
    },
    config::{BridgeConfig, Config, FirstFederation},
    message::{FederationMember, RequestId, SignatureRequest},
    simulator::{FederationView, Simulator},
    storage::Store,
    telemetry::Metrics,
};
use ractor::{Actor, ActorRef, rpc::CallResult};

use super::PATIENCE;

/// The federation of a view, as a node's configuration names it.
pub fn first_federation(view: &FederationView) -> FirstFederation {
    FirstFederation {
        threshold: u32::try_from(view.threshold).expect("small"),
        members: view
            .members
            .iter()
            .map(|(id, public_key)| FederationMember {
                id: id.parse().expect("valid"),
                public_key: *public_key,
                active: true,
            })
            .collect(),
    }
}

/// The schedule of a node that starts with it.
pub fn schedule(view: &FederationView) -> Schedule {
    let chain = "alys-regtest".parse().expect("valid");
    let first = Federation::first(&first_federation(view), Network::Regtest, &chain);
    Schedule::new(
        first.expect("a federation"),
        chain,
        FederationPolicy::default(),
    )
}

pub struct FullNode {
    pub stream: GovernanceStream,
    pub config: Config,
    pub bridge: ActorRef<BridgeMessage>,
    pub bridge_store: BridgeStore,
    pub chain: ActorRef<ChainMessage>,
    pub chain_store: ChainStore,
    pub bitcoin: Arc<EmbeddedBitcoin>,
    pub metrics: Metrics,
    completions: CompletionSubscriber,
}

impl FullNode {
    pub async fn start(simulator: &Simulator) -> Self {
        Self::with(super::config(&simulator.endpoints()), simulator).await
    }

    /// With a configuration of the test's own; the federation is still `simulator`'s.
    pub async fn with(config: Config, simulator: &Simulator) -> Self {
        let chain = CompletionSubscriber::named::<ChainMessage>(&config.subscribers.chain);
        Self::telling(chain, config, simulator).await
    }

    /// With someone else who is told of completed peg-outs.
    pub async fn telling(
        completions: CompletionSubscriber,
        config: Config,
        simulator: &Simulator,
    ) -> Self {
        Self::telling_on(
            Store::in_memory(),
            Arc::default(),
            completions,
            config,
            simulator,
        )
        .await
    }

    /// On a store and a Bitcoin network of the test's own.
    pub async fn on(
        store: Store,
        bitcoin: Arc<EmbeddedBitcoin>,
        config: Config,
        simulator: &Simulator,
    ) -> Self {
        let chain = CompletionSubscriber::named::<ChainMessage>(&config.subscribers.chain);
        Self::telling_on(store, bitcoin, chain, config, simulator).await
    }

    async fn telling_on(
        store: Store,
        bitcoin: Arc<EmbeddedBitcoin>,
        completions: CompletionSubscriber,
        config: Config,
        simulator: &Simulator,
    ) -> Self {
        let arguments = StreamArguments {
            bridge: Subscriber::named::<BridgeMessage>(&config.subscribers.bridge),
            chain: Subscriber::named::<ChainMessage>(&config.subscribers.chain),
            ..StreamArguments::new(config.clone(), store.clone())
        };
        let metrics = arguments.metrics.clone();
        let stream = GovernanceStream::start(arguments)
            .await
            .expect("the stream starts");
        let bridge_store = BridgeStore::new(store.clone());
        let first = simulator.federation(1).expect("the first");
        let chain_store = ChainStore::open(&store, schedule(&first)).await;
        let chain_store = chain_store.expect("opens");
        let arguments = bridge_arguments(&bridge_store, &stream, &bitcoin, &completions, &metrics);
        let mut node = Self {
            bridge: start_bridge(&config, arguments).await,
            chain: start_chain(&config, &chain_store, &stream).await,
            stream,
            config,
            bridge_store,
            chain_store,
            bitcoin,
            metrics,
            completions,
        };
        node.until_active(1).await;
        node
    }

    /// Kills the bridge and starts another one on the same store.
    pub async fn restart_bridge(&mut self) {
        self.bridge.kill();
        self.bridge.wait(Some(PATIENCE)).await.expect("dies");
        let arguments = bridge_arguments(
            &self.bridge_store,
            &self.stream,
            &self.bitcoin,
            &self.completions,
            &self.metrics,
        );
        self.bridge = start_bridge(&self.config, arguments).await;
        self.until_loaded().await;
    }

    /// Puts the bridge on another store, as the next process has it.
    pub async fn restart_bridge_on(&mut self, open: impl FnOnce() -> Store) {
        self.bridge.kill();
        self.bridge.wait(Some(PATIENCE)).await.expect("dies");
        // The one before is closed first.
        self.bridge_store = BridgeStore::new(Store::in_memory());
        self.bridge_store = BridgeStore::new(open());
        self.restart_bridge().await;
        // The chain tells a bridge that takes another's place.
        self.until_active(1).await;
    }

    /// Waits until the bridge has read its rows.
    pub async fn until_loaded(&self) {
        let mut changed = self.bridge_store.watch();
        let waiting = async {
            while !self.bridge_store.is_loaded() {
                changed.changed().await.expect("the store lives");
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.expect("the rows are read");
    }

    /// A peg-out as it is durable.
    pub async fn pegout(&self, request_id: &RequestId) -> Option<Arc<Pegout>> {
        let found = self.bridge_store.pegout(request_id).await;
        found.expect("the store can be read")
    }

    /// Kills the chain and starts another one on the same store.
    pub async fn restart_chain(&mut self) {
        self.chain.kill();
        self.chain.wait(Some(PATIENCE)).await.expect("dies");
        self.chain = start_chain(&self.config, &self.chain_store, &self.stream).await;
    }

    pub async fn initiate(&self, request: SignatureRequest) -> Result<(), PegoutRefusal> {
        let initiate = |reply| BridgeMessage::InitiatePegout {
            request: Box::new(request),
            span: tracing::Span::current(),
            reply,
        };
        match self.bridge.call(initiate, Some(PATIENCE)).await {
            Ok(CallResult::Success(verdict)) => verdict,
            other => panic!("no verdict: {other:?}"),
        }
    }

    /// Stops peg-outs, or goes on, as the operator does.
    pub async fn set_paused(&self, paused: bool) {
        let set = |reply| BridgeMessage::SetPaused { paused, reply };
        let answer = self.bridge.call(set, Some(PATIENCE)).await;
        assert!(
            matches!(answer, Ok(CallResult::Success(Ok(())))),
            "{answer:?}"
        );
    }

    /// Waits until a peg-out is completed, with blocks mined for it.
    pub async fn until_completed(&self, number: u64) {
        self.until_on_network(number).await;
        self.bitcoin.mine(BridgeConfig::default().confirmations);
        let completed = |stage: &PegoutStage| matches!(stage, PegoutStage::Completed { .. });
        self.until(&super::request_id(number), completed).await;
    }

    /// Waits until whoever is told of completed peg-outs has noted this one.
    pub async fn until_reported(&self, number: u64) {
        let mut changed = self.bridge_store.watch();
        let request_id = super::request_id(number);
        let reported = async {
            loop {
                let pegout = self.pegout(&request_id).await;
                if pegout.is_some_and(|pegout| pegout.is_reported()) {
                    return;
                }
                changed.changed().await.expect("the store lives");
            }
        };
        tokio::time::timeout(PATIENCE, reported)
            .await
            .expect("noted");
    }

    /// Waits until a peg-out's stage is as wanted, and gives it.
    pub async fn until(
        &self,
        request_id: &RequestId,
        wanted: impl Fn(&PegoutStage) -> bool,
    ) -> PegoutStage {
        let mut changed = self.bridge_store.watch();
        let waiting = async {
            loop {
                let pegout = self.pegout(request_id).await;
                match pegout.map(|pegout| pegout.stage().clone()) {
                    Some(stage) if wanted(&stage) => return stage,
                    _ => changed.changed().await.expect("the store lives"),
                }
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(stage) => stage,
            Err(_) => panic!("{request_id}: {:?}", self.pegout(request_id).await),
        }
    }

    /// Waits until the Bitcoin network has peg-out `number`.
    pub async fn until_on_network(&self, number: u64) -> PegoutStage {
        let failed = |stage: &PegoutStage| matches!(stage, PegoutStage::Failed(_));
        let ended = |stage: &PegoutStage| stage.is_on_network() || failed(stage);
        let stage = self.until(&super::request_id(number), ended).await;
        assert!(stage.is_on_network(), "{number}: {stage:?}");
        stage
    }

    /// Waits until the bridge begins peg-outs with `version`.
    pub async fn until_active(&mut self, version: u32) {
        let mut changed = self.bridge_store.watch();
        let waiting = async {
            while self.bridge_store.active_federation() != Some(version) {
                changed.changed().await.expect("the store lives");
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("the bridge is told");
    }

    /// Ends everything at once, as a crash would.
    pub async fn kill(self) {
        self.stream.supervisor().kill();
        for actor in [self.bridge.get_cell(), self.chain.get_cell()] {
            actor.kill();
            actor.wait(Some(PATIENCE)).await.expect("dies");
        }
        let instance = self.config.instance.as_str();
        super::assert_nothing_left_within(instance, &[]).await;
    }

    pub async fn stop(self) {
        self.stream.shutdown().await.expect("shuts down");
        self.bridge
            .stop_and_wait(None, Some(PATIENCE))
            .await
            .expect("stops");
        self.chain
            .stop_and_wait(None, Some(PATIENCE))
            .await
            .expect("stops");
        super::assert_nothing_left(self.config.instance.as_str());
    }
}

fn bridge_arguments(
    store: &BridgeStore,
    stream: &GovernanceStream,
    bitcoin: &Arc<EmbeddedBitcoin>,
    completions: &CompletionSubscriber,
    metrics: &Metrics,
) -> BridgeArguments {
    BridgeArguments {
        store: store.clone(),
        stream: stream.clone(),
        backend: bitcoin.clone(),
        completions: Some(completions.clone()),
        config: BridgeConfig {
            poll_interval: std::time::Duration::from_millis(20),
            ..BridgeConfig::default()
        },
        metrics: metrics.clone(),
    }
}

async fn start_bridge(config: &Config, arguments: BridgeArguments) -> ActorRef<BridgeMessage> {
    let name = config.subscribers.bridge.clone();
    Actor::spawn(Some(name), BridgeActor, arguments)
        .await
        .expect("the name is free")
        .0
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
    let name = config.subscribers.chain.clone();
    Actor::spawn(Some(name), ChainActor, arguments)
        .await
        .expect("the name is free")
        .0
}
