//! The node of this binary: the stream, with this crate's bridge and chain, under one supervisor.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use governance_stream::{
    GovernanceStream, StreamArguments, Subscriber,
    bridge::{
        BitcoinBackend, BridgeActor, BridgeArguments, BridgeMessage, BridgeStore,
        CompletionSubscriber,
    },
    chain::{
        ChainActor, ChainArguments, ChainMessage, ChainStore, Federation, FederationPolicy,
        Schedule,
    },
    config::{BridgeConfig, Config, Features, FirstFederation, NodeConfig},
    storage::{Owner, Store, StoreError},
    telemetry::Metrics,
};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;
use tracing::info;

/// Pause before a subscriber that died is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// How long the subscribers may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What the node is made of.
pub(super) struct NodePlan {
    pub config: Config,
    pub features: Features,
    /// What holds everything that must survive the process: this node's.
    pub store: Store,
    pub federation: FirstFederation,
    pub policy: FederationPolicy,
    pub bridge: BridgeConfig,
    pub backend: Arc<dyn BitcoinBackend>,
    pub metrics: Metrics,
}

/// A running node.
pub(super) struct Node {
    pub stream: GovernanceStream,
    #[cfg_attr(
        not(feature = "simulator"),
        allow(dead_code, reason = "the demo looks into it")
    )]
    pub bridge_store: BridgeStore,
    #[cfg_attr(not(unix), allow(dead_code, reason = "the operator's socket shows it"))]
    pub chain_store: ChainStore,
    supervisor: ActorRef<NodeMessage>,
    failed: watch::Receiver<Option<String>>,
}

impl Node {
    pub(super) async fn start(plan: NodePlan) -> anyhow::Result<Self> {
        let NodePlan {
            config,
            features,
            store,
            federation,
            policy,
            bridge,
            backend,
            metrics,
        } = plan;
        let first = first_federation(&config.node, &federation)?;
        let schedule = Schedule::new(first, config.node.chain_id.clone(), policy);
        let bridge_store = BridgeStore::new(store.clone());
        let chain_store = ChainStore::open(&store, schedule).await?;
        let arguments = StreamArguments {
            bridge: Subscriber::named::<BridgeMessage>(&config.subscribers.bridge),
            chain: Subscriber::named::<ChainMessage>(&config.subscribers.chain),
            metrics: metrics.clone(),
            ..StreamArguments::new(config.clone(), store)
        };
        let (report, failed) = watch::channel(None);
        let (supervisor, _) = Actor::spawn(None, NodeSupervisor, report)
            .await
            .map_err(|error| anyhow::anyhow!("the node's supervisor did not start: {error}"))?;
        let stream = GovernanceStream::start_linked(arguments, supervisor.get_cell()).await?;
        // The stream waits for absent subscribers, so that they may start with its handle.
        if features.bridge {
            let bridge = BridgeArguments {
                store: bridge_store.clone(),
                stream: stream.clone(),
                backend,
                completions: features.chain.then(|| {
                    CompletionSubscriber::named::<ChainMessage>(&config.subscribers.chain)
                }),
                config: bridge,
                metrics,
            };
            let name = config.subscribers.bridge.clone();
            supervisor.cast(NodeMessage::Start(Child::Bridge(name, Box::new(bridge))))?;
        }
        if features.chain {
            let chain = ChainArguments {
                store: chain_store.clone(),
                stream: stream.clone(),
                bridge: config.subscribers.bridge.clone(),
            };
            let name = config.subscribers.chain.clone();
            supervisor.cast(NodeMessage::Start(Child::Chain(name, chain)))?;
        }
        Ok(Self {
            stream,
            bridge_store,
            chain_store,
            supervisor,
            failed,
        })
    }

    /// Ready when the stream has given up; why.
    pub(super) async fn failure(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the node's supervisor is gone".to_owned(),
        }
    }

    /// Ends the stream, then whoever took its messages.
    pub(super) async fn shutdown(self) -> anyhow::Result<governance_stream::Leftover> {
        let leftover = self.stream.shutdown().await;
        let _ = self.supervisor.cast(NodeMessage::Stop);
        self.supervisor
            .stop_children_and_wait(None, Some(STOP_DEADLINE))
            .await;
        let _ = self
            .supervisor
            .stop_and_wait(None, Some(STOP_DEADLINE))
            .await;
        Ok(leftover?)
    }
}

fn first_federation(node: &NodeConfig, first: &FirstFederation) -> anyhow::Result<Federation> {
    Federation::first(first, node.network, &node.chain_id)
        .context("the configured first federation is none")
}

/// Whose store it is.
pub(super) fn owner(node: &NodeConfig, first: &FirstFederation) -> anyhow::Result<Owner> {
    let digest = first_federation(node, first)?.digest();
    Ok(Owner::of(node).with_first_federation(&digest))
}

/// Opens the store, or makes it where there is nothing yet and that is wanted.
pub(super) async fn open_store(
    directory: PathBuf,
    owner: Owner,
    init: bool,
) -> anyhow::Result<Store> {
    let opening = tokio::task::spawn_blocking(move || match Store::open(&directory, &owner) {
        Err(StoreError::Absent { .. }) if init => Store::create(&directory, &owner, false),
        opened => opened,
    });
    let store = opening.await??;
    info!(
        store = store.place(),
        commit = store.condition().confirmed,
        "store opened"
    );
    Ok(store)
}

/// A subscriber with everything that it is started with, again and again.
#[derive(Debug, Clone)]
enum Child {
    Bridge(String, Box<BridgeArguments>),
    Chain(String, ChainArguments),
}

impl Child {
    fn name(&self) -> &str {
        match self {
            Self::Bridge(name, _) | Self::Chain(name, _) => name,
        }
    }
}

enum NodeMessage {
    Start(Child),
    /// Whoever ends from now on is meant to.
    Stop,
}

struct NodeSupervisor;

struct NodeState {
    report: watch::Sender<Option<String>>,
    children: Vec<Child>,
    stopping: bool,
}

impl Actor for NodeSupervisor {
    type Msg = NodeMessage;
    type State = NodeState;
    type Arguments = watch::Sender<Option<String>>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        report: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(NodeState {
            report,
            children: Vec::new(),
            stopping: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let NodeMessage::Start(child) = message else {
            state.stopping = true;
            return Ok(());
        };
        let me = myself.get_cell();
        match child.clone() {
            Child::Bridge(name, args) => {
                Actor::spawn_linked(Some(name), BridgeActor, *args, me).await?;
            }
            Child::Chain(name, args) => {
                Actor::spawn_linked(Some(name), ChainActor, args, me).await?;
            }
        }
        if state
            .children
            .iter()
            .all(|known| known.name() != child.name())
        {
            state.children.push(child);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (who, reason) = match event {
            SupervisionEvent::ActorFailed(who, error) => (who, error.to_string()),
            SupervisionEvent::ActorTerminated(who, _, reason) => {
                (who, reason.unwrap_or_else(|| "stopped".to_owned()))
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        if state.stopping {
            return Ok(());
        }
        let name = who.get_name().unwrap_or_default();
        match state.children.iter().find(|child| child.name() == name) {
            Some(child) => {
                tracing::warn!(actor = name, reason, "subscriber ended; starting it again");
                let child = child.clone();
                myself.send_after(RESTART_PAUSE, move || NodeMessage::Start(child));
            }
            None => {
                state.report.send_replace(Some(reason));
            }
        }
        Ok(())
    }
}
