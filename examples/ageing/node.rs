//! A node with this crate's own bridge and chain.

use std::{path::Path, sync::Arc, time::Duration};

use bitcoin::{Amount, Network};
use governance_stream::{
    GovernanceStream, StreamArguments, Subscriber,
    bridge::{
        BridgeActor, BridgeArguments, BridgeMessage, BridgeStore, CompletionSubscriber,
        EmbeddedBitcoin,
    },
    chain::{
        ChainActor, ChainArguments, ChainMessage, ChainStore, Federation, FederationPolicy,
        Schedule,
    },
    config::{BridgeConfig, Config, FirstFederation, NodeConfig},
    message::{
        ChainId, FederationMember, RequestId, SignatureRequest, SignatureRequestParts,
        TransactionType,
    },
    simulator::{FederationView, Simulator, SimulatorConfig, wallet},
    storage::{Owner, Store},
    stress::past_deposit,
};
use ractor::{Actor, ActorRef};

/// Longer than anyone works with one store: requests stay open.
const DEADLINE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn chain_id() -> ChainId {
    "alys-regtest".parse().expect("valid")
}

fn config() -> Config {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let node = NodeConfig {
        node_id: "ageing".parse().expect("valid"),
        public_key: key.parse().expect("on the curve"),
        chain_id: chain_id(),
        network: Network::Regtest,
    };
    // Nobody is there.
    let nobody = "http://127.0.0.1:1".parse().expect("loopback");
    let mut config = Config::new(node, vec![nobody]);
    config.requests.pegout_deadline = DEADLINE;
    // Nothing can be delivered in the end.
    config.drain_deadline = Duration::from_millis(100);
    config
}

/// The members of the simulator's first federation, the same in every process, as an argument of a
/// node's process: it has no simulator when it starts.
pub(crate) fn members() -> String {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let simulator = runtime.block_on(Simulator::start(SimulatorConfig::default()));
    let first = simulator.expect("starts").federation(1).expect("the first");
    let members = first.members.iter().map(|(id, key)| format!("{id}={key}"));
    members.collect::<Vec<_>>().join(",")
}

fn first_federation(members: &str) -> Federation {
    let members = members.split(',').map(|member| {
        let (id, key) = member.split_once('=').expect("an id and a key");
        FederationMember {
            id: id.parse().expect("valid"),
            public_key: key.parse().expect("on the curve"),
            active: true,
        }
    });
    let first = FirstFederation {
        threshold: 2,
        members: members.collect(),
    };
    Federation::first(&first, Network::Regtest, &chain_id()).expect("a federation")
}

/// Whose the store is.
pub(crate) fn owner(members: &str) -> Owner {
    Owner::of(&config().node).with_first_federation(&first_federation(members).digest())
}

/// A running node.
pub(crate) struct Running {
    pub(crate) stream: GovernanceStream,
    pub(crate) bridge: ActorRef<BridgeMessage>,
}

impl Running {
    /// Opens the store, and returns when stream and bridge take calls.
    pub(crate) async fn start(directory: &Path, members: &str) -> Self {
        let config = config();
        let store = Store::open(directory, &owner(members)).expect("the store opens");
        let schedule = Schedule::new(
            first_federation(members),
            chain_id(),
            FederationPolicy::default(),
        );
        let bridge_store = BridgeStore::new(store.clone());
        let chain_store = ChainStore::open(&store, schedule).await.expect("opens");
        let arguments = StreamArguments {
            bridge: Subscriber::named::<BridgeMessage>(&config.subscribers.bridge),
            chain: Subscriber::named::<ChainMessage>(&config.subscribers.chain),
            ..StreamArguments::new(config.clone(), store)
        };
        let metrics = arguments.metrics.clone();
        let stream = GovernanceStream::start(arguments).await.expect("starts");
        let arguments = BridgeArguments {
            store: bridge_store.clone(),
            stream: stream.clone(),
            backend: Arc::new(EmbeddedBitcoin::default()),
            completions: Some(CompletionSubscriber::named::<ChainMessage>(
                &config.subscribers.chain,
            )),
            config: BridgeConfig::default(),
            metrics,
        };
        let name = config.subscribers.bridge.clone();
        let (bridge, _) = Actor::spawn(Some(name), BridgeActor, arguments)
            .await
            .expect("a free name");
        let arguments = ChainArguments {
            store: chain_store,
            stream: stream.clone(),
            bridge: config.subscribers.bridge.clone(),
        };
        let name = config.subscribers.chain.clone();
        Actor::spawn(Some(name), ChainActor, arguments)
            .await
            .expect("a free name");
        let mut changed = bridge_store.watch();
        while !bridge_store.is_loaded() || bridge_store.active_federation() != Some(1) {
            changed.changed().await.expect("the bridge lives");
        }
        // Known since long, so that it is looked up, accepted, and changes nothing.
        let deposit = past_deposit(10).expect("valid");
        stream.notify_pegin(deposit).await.expect("accepted");
        Self { stream, bridge }
    }
}

/// A new request: peg-out `number`.
pub(crate) fn request(federation: &FederationView, number: u64) -> SignatureRequest {
    let amount = Amount::from_sat(50_000 + number % 1_000_000);
    let parts = SignatureRequestParts {
        request_id: request_id(number),
        psbt: wallet::pegout_psbt(federation, number, 1, amount).expect("covered"),
        input_indices: vec![0],
        tx_type: TransactionType::Pegout,
        chain: chain_id(),
        network: Network::Regtest,
        federation_version: 1,
        burns: vec![wallet::burn(number, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    };
    SignatureRequest::new(parts).expect("valid")
}

pub(crate) fn request_id(number: u64) -> RequestId {
    format!("pegout-{number}").parse().expect("valid")
}
