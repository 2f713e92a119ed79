//! What durability costs: messages accepted per second with so many callers in flight, against a
//! loop of a write and two syncs (as many as a commit has) on the same disk in the same run; on an
//! empty store and on an old one; and how fast a backlog is replayed after a reconnect. Absolute
//! figures mean little on a shared machine: compare the ratios.
//!
//! `STORE_REQUESTS` says how many requests the old store has behind it (100 000 unless set), and
//! `STORE_DIRECTORY` names one that `--example ageing -- --directory DIR` has made; what the bench
//! does to that stays. `-- --test` shows that it works, in a moment.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, and says what it found"
)]

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bitcoin::{Amount, Network, OutPoint, Txid, hashes::Hash as _};
use governance_stream::{
    BridgeEvent, ChainEvent, Delivery, GovernanceStream, Handled, StreamArguments,
    config::{Config, NodeConfig},
    message::{
        EvmAddress, PeginNotification, SignatureRequest, SignatureRequestParts, TransactionType,
    },
    simulator::{Answering, FederationView, Simulator, SimulatorConfig, wallet},
    storage::{Owner, Store},
    stress::Past,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};

/// About as many bytes as a row of the journal has.
const RECORD: [u8; 200] = [7; 200];
const CALLERS: [u64; 3] = [1, 100, 1000];

/// What callers bring.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Notices,
    Requests,
}

/// How much is done.
struct Extent {
    span: Duration,
    backlog: u32,
    /// Messages of one measurement at most: they are made before it.
    messages: u32,
    /// Requests that the old store has behind it.
    past: u64,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let directory = tempfile::Builder::new()
        .prefix("store-bench-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a directory");
    let mut extent = if quick {
        Extent {
            span: Duration::from_millis(100),
            backlog: 1000,
            messages: 2000,
            past: 2000,
        }
    } else {
        Extent {
            span: Duration::from_secs(3),
            backlog: 100_000,
            messages: 150_000,
            past: 100_000,
        }
    };
    if let Ok(requests) = std::env::var("STORE_REQUESTS") {
        extent.past = requests.parse().expect("STORE_REQUESTS is a number");
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let simulator = runtime.block_on(Simulator::start(SimulatorConfig::default()));
    let federation = simulator.expect("starts").federation(1);
    let federation = federation.expect("the first");
    let old = old_store(directory.path(), extent.past);
    for (name, old) in [("empty", None), ("old", Some(old.as_path()))] {
        for kind in [Kind::Notices, Kind::Requests] {
            for callers in CALLERS {
                let baseline = synced_writes(directory.path(), extent.span);
                let empty = directory.path().join(format!("{kind:?}-{callers}"));
                let instance = format!("{name}-{kind:?}-{callers}").to_lowercase();
                let messages = messages(kind, &extent, callers, &federation);
                let store = open(old.unwrap_or(&empty), old.is_none());
                let rate =
                    runtime.block_on(accepted(&instance, store, messages, callers, extent.span));
                println!(
                    "{name:>5} store, {callers:>4} callers of {kind:?}: {rate:.0}/s, a write and two syncs {baseline:.0}/s, ratio {:.2}",
                    rate / baseline
                );
            }
        }
    }
    let rate = runtime.block_on(replay(&directory.path().join("replay"), extent.backlog));
    println!(
        "replay of {} messages after a reconnect: {rate:.0}/s",
        extent.backlog
    );
}

/// The store that has something behind it.
fn old_store(directory: &Path, requests: u64) -> PathBuf {
    if let Some(there) = std::env::var_os("STORE_DIRECTORY") {
        return Path::new(&there).join("store");
    }
    let made = directory.join("old");
    let past = Past {
        requests,
        requests_per_pegin: 10,
    };
    past.make(&made, &Owner::of(&node()), &mut |_| {})
        .expect("made");
    made
}

fn open(directory: &Path, is_new: bool) -> Store {
    let owner = Owner::of(&node());
    let store = if is_new {
        Store::create(directory, &owner, true)
    } else {
        Store::open(directory, &owner)
    };
    store.expect("it can be used")
}

/// A message that nobody has brought before.
enum Message {
    Notice(PeginNotification),
    Request(Box<SignatureRequest>),
}

fn messages(
    kind: Kind,
    extent: &Extent,
    callers: u64,
    federation: &FederationView,
) -> Vec<Message> {
    // Of this measurement alone.
    let run = uuid::Uuid::new_v4();
    // One caller makes few, and each request is open in the end.
    let count = match kind {
        Kind::Notices if callers > 1 => extent.messages,
        Kind::Notices | Kind::Requests => extent.messages / 5,
    };
    let make = |number: u32| match kind {
        Kind::Notices => {
            let mut txid = [0; 32];
            let (first, rest) = txid.split_at_mut(16);
            first.copy_from_slice(run.as_bytes());
            rest.copy_from_slice(run.as_bytes());
            let outpoint = OutPoint::new(Txid::from_byte_array(txid), number);
            let account = EvmAddress::from_bytes([7; 20]);
            let notice = PeginNotification::new(outpoint, Amount::from_sat(1000), account);
            Message::Notice(notice.expect("valid"))
        }
        Kind::Requests => {
            let unique = u64::from(number) | (run.as_u128() as u64) << 32;
            Message::Request(Box::new(request(federation, unique)))
        }
    };
    (0..count).map(make).collect()
}

fn request(federation: &FederationView, number: u64) -> SignatureRequest {
    let amount = Amount::from_sat(50_000);
    let parts = SignatureRequestParts {
        request_id: format!("pegout-{number}").parse().expect("valid"),
        psbt: wallet::pegout_psbt(federation, number, 1, amount).expect("covered"),
        input_indices: vec![0],
        tx_type: TransactionType::Pegout,
        chain: node().chain_id,
        network: Network::Regtest,
        federation_version: 1,
        burns: vec![wallet::burn(number, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    };
    SignatureRequest::new(parts).expect("valid")
}

/// Each record is on the disk, and synced twice, before the next one is written.
fn synced_writes(directory: &Path, span: Duration) -> f64 {
    let mut file = File::create(directory.join("baseline")).expect("writable");
    let (began, mut records) = (Instant::now(), 0_u32);
    while began.elapsed() < span {
        file.write_all(&RECORD).expect("writable");
        file.sync_data().expect("synced");
        file.sync_data().expect("synced");
        records += 1;
    }
    f64::from(records) / began.elapsed().as_secs_f64()
}

/// Takes everything at once.
struct Subscriber<E>(std::marker::PhantomData<fn(E)>);

impl<E: Send + 'static> Actor for Subscriber<E> {
    type Msg = Delivery<E>;
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
        let answers = delivery.messages.iter().map(|_| None).collect();
        let failure = None;
        let _ = delivery.reply.send(Handled { answers, failure });
        Ok(())
    }
}

fn node() -> NodeConfig {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    NodeConfig {
        // The ageing example's.
        node_id: "ageing".parse().expect("valid"),
        public_key: key.parse().expect("on the curve"),
        chain_id: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
    }
}

async fn stream(instance: &str, store: Store, endpoints: &[String]) -> GovernanceStream {
    let endpoints = endpoints.iter().map(|uri| uri.parse().expect("loopback"));
    let mut config = Config::new(node(), endpoints.collect());
    config.instance = instance.parse().expect("valid");
    config.subscribers.bridge = format!("{instance}.bridge");
    config.subscribers.chain = format!("{instance}.chain");
    config.connection.backoff.initial = Duration::from_millis(10);
    config.connection.backoff.max = Duration::from_millis(50);
    config.buffer.lane_messages = u64::MAX;
    config.buffer.lane_bytes = u64::MAX;
    config.buffer.total_messages = u64::MAX;
    config.buffer.total_bytes = u64::MAX;
    let name = Some(config.subscribers.bridge.clone());
    let bridge = Subscriber::<BridgeEvent>(std::marker::PhantomData);
    Actor::spawn(name, bridge, ()).await.expect("a free name");
    let name = Some(config.subscribers.chain.clone());
    let chain = Subscriber::<ChainEvent>(std::marker::PhantomData);
    Actor::spawn(name, chain, ()).await.expect("a free name");
    GovernanceStream::start(StreamArguments::new(config, store))
        .await
        .expect("starts")
}

fn deposit(number: u32) -> PeginNotification {
    wallet::deposit(number).expect("valid")
}

/// Messages per second that are durable when the call returns, with governance out of reach.
async fn accepted(
    instance: &str,
    store: Store,
    messages: Vec<Message>,
    callers: u64,
    span: Duration,
) -> f64 {
    let nobody = ["http://127.0.0.1:1".to_owned()];
    let stream = stream(instance, store, &nobody).await;
    // Once it has loaded.
    let first = deposit(u32::MAX);
    stream.notify_pegin(first).await.expect("accepted");
    let messages = Arc::new(Mutex::new(messages));
    let began = Instant::now();
    let calling: Vec<_> = (0..callers)
        .map(|_| {
            let (stream, messages) = (stream.clone(), Arc::clone(&messages));
            tokio::spawn(async move {
                let mut accepted = 0_u64;
                while began.elapsed() < span {
                    let message = messages.lock().expect("whole").pop();
                    let Some(message) = message else {
                        break;
                    };
                    match message {
                        Message::Notice(notice) => stream.notify_pegin(notice).await,
                        Message::Request(request) => {
                            stream.request_signatures(*request).await.map(|_| ())
                        }
                    }
                    .expect("accepted");
                    accepted += 1;
                }
                accepted
            })
        })
        .collect();
    let mut accepted = 0;
    for caller in calling {
        accepted += caller.await.expect("no panic");
    }
    let rate = accepted as f64 / began.elapsed().as_secs_f64();
    let store = stream.store().expect("open").downgrade();
    stream.supervisor().kill();
    drop(stream);
    // The next measurement may open it again.
    while store.upgrade().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rate
}

/// Messages per second from the moment that governance can be reached again.
async fn replay(directory: &Path, backlog: u32) -> f64 {
    let mut simulator = Simulator::start(SimulatorConfig {
        record: false,
        answering: Answering::Canned,
        ..SimulatorConfig::default()
    })
    .await
    .expect("starts");
    simulator.stop_endpoint(0).await;
    let stream = stream("replay", open(directory, true), &simulator.endpoints()).await;
    let callers: Vec<_> = (0..1000)
        .map(|from| {
            let stream = stream.clone();
            tokio::spawn(async move {
                for number in (from..backlog).step_by(1000) {
                    stream
                        .notify_pegin(deposit(number))
                        .await
                        .expect("accepted");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    simulator.start_endpoint(0).await.expect("its port is free");
    let began = Instant::now();
    let wanted = usize::try_from(backlog).expect("fits");
    let arrived = simulator
        .wait_for(Duration::from_secs(300), |view| view.pegins == wanted)
        .await;
    assert!(arrived.is_ok(), "the backlog is replayed");
    let rate = f64::from(backlog) / began.elapsed().as_secs_f64();
    stream.supervisor().kill();
    rate
}
