//! How long it takes to be back: from the loss of a session to the first acknowledged message, as
//! distributions, each beside the settings that bound it. A goal that is missed is said, not
//! failed: what else runs on the machine counts too.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, paces what it measures, and tells its figures"
)]

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bitcoin::Network;
use governance_stream::storage::Store;
use governance_stream::{
    BridgeEvent, ConnectionPhase, Delivery, GovernanceStream, StreamArguments, StreamStatus,
    config::{Config, ConnectionConfig, Endpoint, NodeConfig},
    message::{Lane, PeginNotification},
    simulator::{Proxy, Simulator, SimulatorConfig, proxy::Cut, wallet},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{sync::broadcast::error::RecvError, task::JoinHandle, time::timeout};

// As the binary has it.
#[cfg(feature = "cli")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest wait for anything; only a fault reaches it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the goals allow beside the pause, and beside the keepalive's times.
const REDIAL: Duration = Duration::from_millis(5);
const KEEPALIVE_MARGIN: Duration = Duration::from_millis(50);
/// Deposits that are under way while sessions are switched.
const LOAD: usize = 8;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// No name and no deposit twice in the process.
static NEXT: AtomicU32 = AtomicU32::new(1);

fn deposit() -> PeginNotification {
    wallet::deposit(NEXT.fetch_add(1, Ordering::Relaxed)).expect("valid")
}

/// Takes everything.
struct Bridge;

impl Actor for Bridge {
    type Msg = Delivery<BridgeEvent>;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Self::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        delivery.handle_each(|_| Ok(None));
        Ok(())
    }
}

/// What every case has in common; a case says what it changes.
fn settings(connection: &mut ConnectionConfig) {
    connection.backoff.initial = ms(50);
    connection.backoff.max = ms(200);
    // A session counts as good as soon as it is there, so that every run starts at the first step.
    connection.backoff.stable_after = ms(1);
    connection.heartbeat_interval = ms(200);
    connection.keepalive_interval = ms(10_000);
    connection.keepalive_timeout = ms(5_000);
    connection.probe_interval = ms(20);
    connection.failback_after = ms(40);
}

/// Governance with `ENDPOINTS` endpoints, and a proxy before each.
struct World {
    simulator: Simulator,
    proxies: Vec<Proxy>,
}

impl World {
    async fn start(endpoints: usize) -> Self {
        let config = SimulatorConfig {
            record: false,
            ..SimulatorConfig::with_endpoints(endpoints)
        };
        let simulator = Simulator::start(config).await.expect("starts");
        let mut proxies = Vec::new();
        for target in simulator.addresses() {
            proxies.push(Proxy::start(target).await.expect("listens"));
        }
        Self { simulator, proxies }
    }

    /// Endpoints without a proxy: the kernel answers for one that is stopped.
    fn direct(&self) -> Vec<Endpoint> {
        let uris = self.simulator.endpoints();
        let parsed = uris.iter().map(|uri| uri.parse());
        parsed.map(|endpoint| endpoint.expect("loopback")).collect()
    }

    fn proxied(&self) -> Vec<Endpoint> {
        let uri = |proxy: &Proxy| format!("http://{}", proxy.address());
        let parsed = self.proxies.iter().map(|proxy| uri(proxy).parse());
        parsed.map(|endpoint| endpoint.expect("loopback")).collect()
    }

    fn only_proxy(&self) -> &Proxy {
        self.proxies.first().expect("one endpoint")
    }
}

/// A node, with a bridge that takes everything.
struct Node {
    stream: GovernanceStream,
    connection: ConnectionConfig,
    bridge: (ActorRef<Delivery<BridgeEvent>>, JoinHandle<()>),
}

impl Node {
    async fn start(endpoints: Vec<Endpoint>, change: impl FnOnce(&mut ConnectionConfig)) -> Self {
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let node = NodeConfig {
            node_id: "bench".parse().expect("valid"),
            public_key: key.parse().expect("the generator"),
            chain_id: "alys-regtest".parse().expect("valid"),
            network: Network::Regtest,
        };
        let mut config = Config::new(node, endpoints);
        let instance = format!("r{}", NEXT.fetch_add(1, Ordering::Relaxed));
        config.subscribers.bridge = format!("{instance}.bridge");
        config.instance = instance.parse().expect("valid");
        settings(&mut config.connection);
        change(&mut config.connection);
        let connection = config.connection.clone();
        let name = Some(config.subscribers.bridge.clone());
        let bridge = Actor::spawn(name, Bridge, ()).await.expect("starts");
        let journal = Store::in_memory();
        let stream = GovernanceStream::start(StreamArguments::new(config, journal)).await;
        let node = Self {
            stream: stream.expect("starts"),
            connection,
            bridge,
        };
        node.until(|status| status.is_connected()).await;
        node
    }

    async fn until(&self, wanted: impl FnMut(&StreamStatus) -> bool) {
        let mut status = self.stream.watch_status();
        let waited = timeout(PATIENCE, status.wait_for(wanted)).await;
        drop(waited.expect("comes to it").expect("lives"));
    }

    /// A message that is accepted now.
    async fn accept(&self) {
        let accepted = self.stream.notify_pegin(deposit()).await;
        accepted.expect("accepted");
    }

    /// Everything that was accepted is acknowledged.
    async fn acknowledged(&self) {
        let waits = |status: &StreamStatus| {
            let mut lanes = status.lanes.iter();
            lanes.any(|lane| lane.lane == Lane::Pegin && lane.unacknowledged > 0)
        };
        self.until(|status| !waits(status)).await;
    }

    /// A session that has lasted, with nothing left to do.
    async fn at_rest(&self) {
        let connected = |status: &StreamStatus| {
            status.connection.phase == ConnectionPhase::Connected
                && status.lanes.iter().all(|lane| lane.unacknowledged == 0)
        };
        self.until(connected).await;
        tokio::time::sleep(ms(10)).await;
        self.until(connected).await;
    }

    async fn stop(self) {
        self.stream.shutdown().await.expect("shuts down");
        let (bridge, life) = self.bridge;
        bridge.stop(None);
        life.await.expect("ends");
    }
}

/// What one measurement came to, over all runs.
struct Distribution(Vec<Duration>);

impl Distribution {
    fn quantile(&self, quantile: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (quantile * sorted.len() as f64).ceil() as usize;
        let at = rank.clamp(1, sorted.len().max(1)) - 1;
        sorted.get(at).copied().unwrap_or_default()
    }

    /// One line, and whether the goal for the 99th percentile is met, where there is one.
    fn print(&self, what: &str, goal: Option<(Duration, &str)>) {
        let shown = |quantile| format!("{:.1}", self.quantile(quantile).as_secs_f64() * 1e3);
        let goal = goal.map_or_else(String::new, |(goal, why)| {
            let met = self.quantile(0.99) <= goal;
            let met = if met { "met" } else { "missed" };
            let goal = goal.as_secs_f64() * 1e3;
            format!("; p99 goal {goal:.1} ({why}): goal {met}")
        });
        println!(
            "  {what} [ms]: p50 {}, p90 {}, p99 {}, max {} of {} runs{goal}",
            shown(0.5),
            shown(0.9),
            shown(0.99),
            shown(1.0),
            self.0.len(),
        );
    }
}

fn title(name: &str, connection: &ConnectionConfig) {
    println!("{name}");
    println!(
        "  backoff {:?} to {:?}, heartbeat {:?}, keepalive {:?} + {:?}",
        connection.backoff.initial,
        connection.backoff.max,
        connection.heartbeat_interval,
        connection.keepalive_interval,
        connection.keepalive_timeout,
    );
}

/// The connection is closed under a message that waits; the endpoint lives.
async fn closed_socket(runs: usize) {
    let world = World::start(1).await;
    let node = Node::start(world.proxied(), |_| {}).await;
    let mut back = Vec::new();
    for run in 0..runs {
        node.at_rest().await;
        let proxy = world.only_proxy();
        proxy.stall_all(true);
        node.accept().await;
        let cut = Instant::now();
        proxy.cut(if run % 2 == 0 {
            Cut::Reset
        } else {
            Cut::Finish
        });
        proxy.stall_all(false);
        node.acknowledged().await;
        back.push(cut.elapsed());
    }
    title("closed socket, live endpoint", &node.connection);
    let goal = node.connection.backoff.initial + REDIAL;
    let why = "first backoff step + 5 ms";
    Distribution(back).print("cut to first acknowledgement", Some((goal, why)));
    node.stop().await;
}

/// The server is gone, and there again at once.
async fn restarted_server(runs: usize) {
    let mut world = World::start(1).await;
    let node = Node::start(world.direct(), |_| {}).await;
    let (mut from_stop, mut from_restart) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        node.at_rest().await;
        let stop = Instant::now();
        world.simulator.stop_endpoint(0).await;
        node.accept().await;
        let started = world.simulator.start_endpoint(0).await;
        started.expect("its address is still ours");
        let restart = Instant::now();
        node.acknowledged().await;
        from_stop.push(stop.elapsed());
        from_restart.push(restart.elapsed());
    }
    title("killed and restarted server", &node.connection);
    Distribution(from_stop).print("stop to first acknowledgement", None);
    Distribution(from_restart).print("restart to first acknowledgement", None);
    node.stop().await;
}

/// Nothing comes any more, and nothing says so: neither heartbeats nor pings are answered. The way
/// is well again once the loss is noticed.
async fn silent_peer(name: &str, runs: usize, change: impl FnOnce(&mut ConnectionConfig)) {
    let world = World::start(1).await;
    let node = Node::start(world.proxied(), change).await;
    let (mut noticed, mut back) = (Vec::new(), Vec::new());
    for run in 0..runs {
        node.at_rest().await;
        // Whenever in the course of a heartbeat.
        tokio::time::sleep(node.connection.heartbeat_interval * (run as u32 % 10) / 10).await;
        let proxy = world.only_proxy();
        let silence = Instant::now();
        proxy.stall_all(true);
        node.accept().await;
        node.until(|status| !status.is_connected()).await;
        noticed.push(silence.elapsed());
        proxy.cut(Cut::Reset);
        proxy.stall_all(false);
        node.acknowledged().await;
        back.push(silence.elapsed());
    }
    title(name, &node.connection);
    let connection = &node.connection;
    let by_heartbeat = connection.heartbeat_interval.mul_f64(2.5);
    let by_ping = connection.keepalive_interval + connection.keepalive_timeout + KEEPALIVE_MARGIN;
    let goal = if by_heartbeat <= by_ping {
        (by_heartbeat, "2.5 heartbeat intervals")
    } else {
        (by_ping, "keepalive interval + timeout + 50 ms")
    };
    Distribution(noticed).print("silence to notice", Some(goal));
    Distribution(back).print("silence to first acknowledgement", None);
    node.stop().await;
}

/// The preferred endpoint of two is stopped; it is taken back when it is well again.
async fn failover(runs: usize) {
    let mut world = World::start(2).await;
    let node = Node::start(world.direct(), |_| {}).await;
    let first = world.direct().first().map(ToString::to_string);
    let mut back = Vec::new();
    for _ in 0..runs {
        node.until(|status| status.connection.endpoint == first && status.is_connected())
            .await;
        node.at_rest().await;
        let stop = Instant::now();
        world.simulator.stop_endpoint(0).await;
        node.accept().await;
        node.acknowledged().await;
        back.push(stop.elapsed());
        let started = world.simulator.start_endpoint(0).await;
        started.expect("its address is still ours");
    }
    title("failover to the second endpoint", &node.connection);
    Distribution(back).print("stop to first acknowledgement", None);
    node.stop().await;
}

/// The operator moves the session to and fro under load. From the end of sequenced sends on the
/// old session to their beginning on the new one, as `alys_stream_switch_pause_seconds` has it.
async fn planned_switch(runs: usize) {
    let world = World::start(2).await;
    let endpoints = world.direct();
    let far = |connection: &mut ConnectionConfig| connection.failback_after = ms(3_600_000);
    let node = Node::start(endpoints.clone(), far).await;
    let load: Vec<_> = (0..LOAD)
        .map(|_| {
            let stream = node.stream.clone();
            tokio::spawn(async move {
                loop {
                    stream.notify_pegin(deposit()).await.expect("accepted");
                    tokio::time::sleep(ms(2)).await;
                }
            })
        })
        .collect();
    let mut changes = node.stream.watch_connection();
    let (mut pauses, mut moves) = (Vec::new(), Vec::new());
    for target in endpoints.iter().rev().cycle().take(runs) {
        let asked = Instant::now();
        node.stream.connect(target.clone()).expect("runs");
        loop {
            let change = match timeout(PATIENCE, changes.recv()).await.expect("switches") {
                Ok(change) => change,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return println!("the node is gone"),
            };
            if (change.from, change.to) == (ConnectionPhase::Switching, ConnectionPhase::Connected)
            {
                moves.push(asked.elapsed());
                let pause = node.stream.status().connection.switch_pause_us;
                pauses.extend(pause.map(Duration::from_micros));
                break;
            }
        }
        tokio::time::sleep(ms(10)).await;
    }
    load.iter().for_each(JoinHandle::abort);
    title("planned switch under load", &node.connection);
    Distribution(pauses).print("pause of sequenced sends", None);
    Distribution(moves).print("operator's word to the new session", None);
    node.stop().await;
}

#[tokio::main]
async fn main() {
    // `cargo bench` passes `--bench`; `-- --test` shows that it works, not how fast.
    let runs = if std::env::args().any(|word| word == "--test") {
        5
    } else {
        200
    };
    closed_socket(runs).await;
    restarted_server(runs).await;
    silent_peer("silent peer, found by heartbeats", runs, |_| {}).await;
    silent_peer("silent peer, found by pings", runs, |connection| {
        connection.heartbeat_interval = ms(1_000);
        connection.keepalive_interval = ms(100);
        connection.keepalive_timeout = ms(100);
    })
    .await;
    failover(runs).await;
    planned_switch(runs).await;
}
