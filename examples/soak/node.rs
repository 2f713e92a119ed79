//! The node: a supervisor of its own that starts the tree again when it gives up, with the same
//! store, and its subscribers.

use std::{sync::Arc, time::Duration};

use bitcoin::Network;
use governance_stream::storage::{Owner, RedbEngine, Store};
use governance_stream::{
    BridgeEvent, ChainEvent, GovernanceStream, StreamArguments, StreamStatus,
    config::{Config, NodeConfig},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, SupervisionEvent};
use tokio::sync::watch;

use crate::{plant::Plant, subscribers::Recorder, world::World};

/// Pause before a tree that did not start is tried again.
const START_AGAIN: Duration = Duration::from_millis(20);

/// What the trees add up to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) trees: u64,
    pub(crate) switches: u64,
    pub(crate) restarts: u64,
}

impl Totals {
    /// How often something of the trees began anew.
    pub(crate) fn lives(self) -> u64 {
        self.trees + self.restarts
    }

    fn and(self, status: &StreamStatus) -> Self {
        Self {
            switches: self.switches + status.connection.switches,
            restarts: self.restarts + status.actor_restarts,
            ..self
        }
    }
}

/// The latest tree, and what the ones before it added up to.
type Latest = (Option<GovernanceStream>, Totals);

enum Guard {
    /// Start a tree unless one runs.
    Start,
    /// Start no more.
    Rest,
}

struct Guardian;

struct Guarded {
    arguments: StreamArguments,
    latest: watch::Sender<Latest>,
    resting: bool,
}

impl Actor for Guardian {
    type Msg = Guard;
    type State = Guarded;
    type Arguments = Guarded;

    async fn pre_start(
        &self,
        myself: ActorRef<Guard>,
        guarded: Guarded,
    ) -> Result<Guarded, ActorProcessingErr> {
        myself.cast(Guard::Start)?;
        Ok(guarded)
    }

    async fn handle(
        &self,
        myself: ActorRef<Guard>,
        message: Guard,
        guarded: &mut Guarded,
    ) -> Result<(), ActorProcessingErr> {
        if let Guard::Rest = message {
            guarded.resting = true;
        }
        let runs = |stream: &GovernanceStream| {
            !matches!(
                stream.supervisor().get_status(),
                ActorStatus::Stopping | ActorStatus::Stopped
            )
        };
        if guarded.resting || guarded.latest.borrow().0.as_ref().is_some_and(runs) {
            return Ok(());
        }
        let arguments = guarded.arguments.clone();
        match GovernanceStream::start_linked(arguments, myself.get_cell()).await {
            Ok(stream) => guarded.latest.send_modify(|(latest, totals)| {
                if let Some(before) = latest.replace(stream) {
                    *totals = totals.and(&before.status());
                }
                totals.trees += 1;
            }),
            Err(_) => drop(myself.send_after(START_AGAIN, || Guard::Start)),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Guard>,
        event: SupervisionEvent,
        _: &mut Guarded,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(..) | SupervisionEvent::ActorTerminated(..) = event {
            myself.cast(Guard::Start)?;
        }
        Ok(())
    }
}

/// A running node.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) bridge: Recorder<BridgeEvent>,
    pub(crate) chain: Recorder<ChainEvent>,
    guardian: ActorRef<Guard>,
    latest: watch::Receiver<Latest>,
}

impl Node {
    pub(crate) async fn start(world: &World, plant: &Arc<Plant>) -> Self {
        let config = configuration(world);
        let directory = world.credentials.directory().join("store");
        let engine = RedbEngine::create(directory, false).expect("a directory");
        let engine = governance_stream::stress::engine(&config.instance, Arc::new(engine));
        let store = Store::create_on(engine, &Owner::of(&config.node)).expect("a store");
        let bridge = Recorder::start(&config.subscribers.bridge, plant);
        let chain = Recorder::start(&config.subscribers.chain, plant);
        let (latest, mut watched) = watch::channel((None, Totals::default()));
        let guarded = Guarded {
            arguments: StreamArguments::new(config.clone(), store),
            latest,
            resting: false,
        };
        let (guardian, _) = Actor::spawn(None, Guardian, guarded).await.expect("starts");
        let started = watched.wait_for(|(stream, _)| stream.is_some()).await;
        drop(started.expect("is guarded"));
        Self {
            config,
            bridge,
            chain,
            guardian,
            latest: watched,
        }
    }

    /// The latest tree.
    pub(crate) fn stream(&self) -> GovernanceStream {
        let latest = self.latest.borrow();
        latest.0.clone().expect("the first has started")
    }

    pub(crate) fn so_far(&self) -> Totals {
        self.latest.borrow().1.and(&self.stream().status())
    }

    /// Shuts the tree down as an operator would; the guardian starts the next one.
    pub(crate) async fn restart(&self) {
        let before = self.so_far().trees;
        // It may have given up meanwhile, which comes to the same.
        let _ = self.stream().shutdown().await;
        let mut latest = self.latest.clone();
        let _ = latest.wait_for(|(_, totals)| totals.trees > before).await;
    }

    /// Stops everything for good; what was left undelivered, and who is left, if anyone.
    pub(crate) async fn stop(&self) -> Result<(), String> {
        self.guardian
            .cast(Guard::Rest)
            .map_err(|error| error.to_string())?;
        let left = self.stream().shutdown().await;
        let left = left.map_err(|error| format!("the shutdown: {error}"))?;
        if !left.is_empty() {
            return Err(format!("the shutdown left {left:?}"));
        }
        let stopped = self.guardian.stop_and_wait(None, None).await;
        stopped.map_err(|error| error.to_string())?;
        let instance = self.config.instance.as_str();
        let own = [
            &self.config.subscribers.bridge,
            &self.config.subscribers.chain,
        ];
        let registered = ractor::registry::registered().into_iter();
        let left: Vec<String> = registered
            .filter(|name| name.split('.').next() == Some(instance) && !own.contains(&name))
            .collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("still registered: {left:?}"))
        }
    }
}

/// Everything that is waited for is short, so that much happens in a minute.
fn configuration(world: &World) -> Config {
    let ms = Duration::from_millis;
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let node = NodeConfig {
        node_id: "node-1".parse().expect("valid"),
        public_key: key.parse().expect("on the curve"),
        chain_id: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
    };
    let mut config = Config::new(node, world.endpoints());
    config.instance = "soak".parse().expect("valid");
    config.subscribers.bridge = "soak.bridge".to_owned();
    config.subscribers.chain = "soak.chain".to_owned();
    let mut tls = world.credentials.tls();
    tls.handshake_deadline = ms(1000);
    let connection = &mut config.connection;
    connection.tls = Some(tls);
    connection.token = Some(world.credentials.token());
    connection.credentials_interval = ms(100);
    connection.connect_deadline = ms(1000);
    connection.registration_deadline = ms(1000);
    connection.probe_deadline = ms(1000);
    connection.probe_interval = ms(200);
    connection.failback_after = ms(500);
    connection.heartbeat_interval = ms(200);
    connection.stall_deadline = ms(1000);
    connection.backoff.initial = ms(10);
    connection.backoff.max = ms(200);
    connection.backoff.stable_after = ms(500);
    config.buffer.commit_deadline = ms(2000);
    let supervision = &mut config.supervision;
    supervision.restart_pause = ms(5);
    supervision.max_restart_pause = ms(100);
    supervision.watch_interval = ms(100);
    supervision.hang_deadline = ms(1000);
    supervision.stop_deadline = ms(1000);
    // Every tracker may be struck, again and again: that one is parked in the end is shown by the
    // tests.
    supervision.max_tracker_restarts = 1000;
    config.call_deadline = ms(3000);
    config.drain_deadline = ms(1000);
    config
}
