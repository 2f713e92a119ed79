//! What the integration tests share: a governance service and a node's stream, each test with its
//! own instance prefix, and subscribers that record what they are told.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

#[cfg(all(unix, feature = "cli"))]
pub mod bitcoind;
pub mod certificates;
pub mod client;
#[cfg(all(unix, feature = "cli"))]
pub mod collector;
#[cfg(all(target_os = "linux", feature = "cli"))]
pub mod disk;
pub mod fixture;
pub mod full;
pub mod guardian;
#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(all(unix, feature = "cli"))]
pub mod process;
pub mod recorder;
pub mod rows;
#[cfg(all(target_os = "linux", feature = "cli"))]
pub mod site;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bitcoin::{Amount, Network};
use governance_stream::{
    GovernanceStream, RequestHandle, StreamArguments, StreamStatus,
    config::{Config, NodeConfig},
    message::{
        PeginNotification, RequestId, SignatureRequest, SignatureRequestParts, TransactionType,
    },
    simulator::{FederationView, LedgerView, Simulator, SimulatorConfig, wallet},
    storage::{Owner, Store, StoreError},
};

/// Longest wait for anything; far more than it takes, so that only a fault reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

static INSTANCES: AtomicU64 = AtomicU64::new(1);

/// A prefix that no other test of this process has.
pub fn instance() -> String {
    format!("t{}", INSTANCES.fetch_add(1, Ordering::Relaxed))
}

/// The store of `config`'s node in a directory, made if there is none. The process before lets go
/// of it a moment after its last actor's death.
pub async fn store_in(directory: &std::path::Path, config: &Config) -> Store {
    let owner = Owner::of(&config.node);
    let directory = &directory.join("store");
    let opening = async {
        loop {
            let opened = match Store::open(directory, &owner) {
                Err(StoreError::Absent { .. }) => Store::create(directory, &owner, true),
                opened => opened,
            };
            match opened {
                Ok(store) => return store,
                Err(StoreError::Held { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let opened = tokio::time::timeout(PATIENCE, opening).await;
    opened.expect("the directory is let go of")
}

/// A configuration for `endpoints` with short intervals and an instance of its own.
pub fn config(endpoints: &[String]) -> Config {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let node = NodeConfig {
        node_id: "node-1".parse().expect("valid"),
        public_key: key.parse().expect("on the curve"),
        chain_id: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
    };
    let endpoints = endpoints
        .iter()
        .map(|uri| uri.parse().expect("loopback"))
        .collect();
    let mut config = Config::new(node, endpoints);
    let instance = instance();
    config.instance = instance.parse().expect("valid");
    config.subscribers.bridge = format!("{instance}.bridge");
    config.subscribers.chain = format!("{instance}.chain");
    config.connection.backoff.initial = Duration::from_millis(10);
    config.connection.backoff.max = Duration::from_millis(200);
    config.connection.heartbeat_interval = Duration::from_millis(500);
    config.supervision.restart_pause = Duration::from_millis(5);
    config
}

/// A service with one endpoint.
pub async fn governance() -> Simulator {
    governance_with(1).await
}

/// A service with so many endpoints.
pub async fn governance_with(endpoints: usize) -> Simulator {
    Simulator::start(SimulatorConfig::with_endpoints(endpoints))
        .await
        .expect("the simulator starts")
}

/// Peg-out `number` of `federation`, as a request.
pub fn pegout(federation: &FederationView, number: u64) -> SignatureRequest {
    SignatureRequest::new(pegout_parts(federation, number)).expect("valid")
}

/// Its parts, for a test to change.
pub fn pegout_parts(federation: &FederationView, number: u64) -> SignatureRequestParts {
    let amount = Amount::from_sat(50_000 + number);
    let psbt = wallet::pegout_psbt(federation, number, 1, amount).expect("covered");
    SignatureRequestParts {
        request_id: request_id(number),
        psbt,
        input_indices: vec![0],
        tx_type: TransactionType::Pegout,
        chain: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: federation.version,
        burns: vec![wallet::burn(number, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    }
}

/// Peg-out `number` with a coin of its own, for the burn that another one pays.
pub fn rival_parts(federation: &FederationView, number: u64, of: u64) -> SignatureRequestParts {
    let mut parts = pegout_parts(federation, number);
    let other = pegout_parts(federation, of);
    parts.burns = other.burns;
    parts.psbt.unsigned_tx.output = other.psbt.unsigned_tx.output;
    parts
}

pub fn request_id(number: u64) -> RequestId {
    format!("pegout-{number}").parse().expect("valid")
}

/// Deposit `number`.
pub fn deposit(number: u32) -> PeginNotification {
    wallet::deposit(number).expect("valid")
}

/// A node's stream with recording subscribers, and what it talks to.
pub struct Node {
    pub stream: GovernanceStream,
    pub config: Config,
    pub store: Store,
    pub bridge: recorder::Bridge,
    pub chain: recorder::Chain,
}

impl Node {
    /// Starts a node of `simulator`'s first endpoints.
    pub async fn start(simulator: &Simulator) -> Self {
        Self::with(config(&simulator.endpoints())).await
    }

    pub async fn with(config: Config) -> Self {
        Self::on(Store::in_memory(), config).await
    }

    /// On a store of the test's own.
    pub async fn on(store: Store, config: Config) -> Self {
        let bridge = recorder::Bridge::start(&config.subscribers.bridge).await;
        let chain = recorder::Chain::start(&config.subscribers.chain).await;
        let arguments = StreamArguments::new(config.clone(), store.clone());
        let stream = GovernanceStream::start(arguments)
            .await
            .expect("the stream starts");
        Self {
            stream,
            config,
            store,
            bridge,
            chain,
        }
    }

    /// Asks for each of these peg-outs.
    pub async fn request(
        &self,
        federation: &FederationView,
        numbers: impl IntoIterator<Item = u64>,
    ) -> Vec<RequestHandle> {
        let mut handles = Vec::new();
        for number in numbers {
            let request = pegout(federation, number);
            handles.push(accepted(&self.stream, request).await);
        }
        handles
    }

    /// Waits until the status is as wanted.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&StreamStatus) -> bool) {
        until(&self.stream, what, wanted).await;
    }

    /// Ends everything at once, as a crash would.
    pub async fn kill(self) {
        self.stream.supervisor().kill();
        self.bridge.stop().await;
        self.chain.stop().await;
        assert_nothing_left_within(self.config.instance.as_str(), &[]).await;
    }

    /// Stops everything, and shows that nothing is left.
    pub async fn stop(self) {
        self.stream.shutdown().await.expect("shuts down");
        self.bridge.stop().await;
        self.chain.stop().await;
        assert_nothing_left(self.config.instance.as_str());
    }
}

pub async fn until(
    stream: &GovernanceStream,
    what: &str,
    wanted: impl FnMut(&StreamStatus) -> bool,
) {
    let mut status = stream.watch_status();
    let waited = tokio::time::timeout(PATIENCE, status.wait_for(wanted)).await;
    assert!(
        matches!(waited, Ok(Ok(_))),
        "never {what}: {:#?}",
        stream.status()
    );
}

/// Makes a request as a careful caller does: again, when it is unknown whether it was accepted.
pub async fn accepted(stream: &GovernanceStream, request: SignatureRequest) -> RequestHandle {
    use governance_stream::Retry;
    let asking = async {
        loop {
            match stream.request_signatures(request.clone()).await {
                Ok(handle) => return handle,
                Err(error) => match error.retry() {
                    Retry::Now => {}
                    Retry::After(_) => tokio::task::yield_now().await,
                    Retry::Operator | Retry::Never => panic!("{error}"),
                },
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .expect("accepted in time")
}

/// No actor of the instance is registered any more.
pub fn assert_nothing_left(instance: &str) {
    let left: Vec<String> = ractor::registry::registered()
        .into_iter()
        .filter(|name| name == instance || name.starts_with(&format!("{instance}.")))
        .collect();
    assert!(left.is_empty(), "still registered: {left:?}");
}

/// Waits for the simulator's record.
pub async fn ledger(simulator: &Simulator, wanted: impl Fn(&LedgerView) -> bool) -> LedgerView {
    match simulator.wait_for(PATIENCE, wanted).await {
        Ok(view) => view,
        Err(view) => panic!("the ledger never came to it: {view:#?}"),
    }
}

/// Every message of the lane came, in its order; what came again says so.
pub fn assert_in_order<E>(
    events: &[governance_stream::Delivered<E>],
    lane: governance_stream::message::Lane,
) {
    let mut last = 0;
    for event in events.iter().filter(|event| event.lane == lane) {
        if event.sequence <= last {
            assert!(
                event.redelivered,
                "{lane} {} came again unmarked",
                event.sequence
            );
        } else {
            assert_eq!(event.sequence, last + 1, "{lane}: something is missing");
            last = event.sequence;
        }
    }
}

/// The actor of this name, once it is there.
pub async fn registered(name: &str) -> ractor::ActorCell {
    let looking = async {
        loop {
            match ractor::registry::where_is(name) {
                Some(cell) => return cell,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let cell = tokio::time::timeout(PATIENCE, looking).await;
    cell.unwrap_or_else(|_| panic!("{name} is not registered"))
}

/// Kills an actor of the instance as a bug would, wherever it is.
pub async fn kill(name: &str) {
    let cell = registered(name).await;
    cell.kill();
    cell.wait(Some(PATIENCE)).await.expect("dies");
}

/// Stops an actor of the instance as nobody should.
pub async fn stop(name: &str) {
    let cell = registered(name).await;
    cell.stop(None);
    cell.wait(Some(PATIENCE)).await.expect("stops");
}

/// As [`assert_nothing_left`], a moment after a death rather than after a shutdown.
pub async fn assert_nothing_left_within(instance: &str, but: &[&String]) {
    let prefix = format!("{instance}.");
    let left = || -> Vec<String> {
        let names = ractor::registry::registered().into_iter();
        names
            .filter(|name| (name == instance || name.starts_with(&prefix)) && !but.contains(&name))
            .collect()
    };
    let gone = async {
        while !left().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await;
    assert!(gone.is_ok(), "still registered: {:?}", left());
}
