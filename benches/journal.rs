//! What durability costs: messages accepted per second with so many callers in flight, against a
//! loop of write and fdatasync on the same disk in the same run; and how fast a backlog is replayed
//! after a reconnect. Absolute figures mean little on a shared machine: compare the ratios.
//!
//! `-- --test` shows that it works, in a moment.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, and says what it found"
)]

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bitcoin::Network;
use governance_stream::storage::{Owner, Store};
use governance_stream::{
    BridgeEvent, ChainEvent, Delivery, GovernanceStream, Handled, StreamArguments,
    config::{Config, NodeConfig},
    message::PeginNotification,
    simulator::{Answering, Simulator, SimulatorConfig, wallet},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};

/// About as many bytes as a row of the journal has.
const RECORD: [u8; 200] = [7; 200];

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let directory = tempfile::Builder::new()
        .prefix("journal-bench-")
        .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
        .expect("a directory");
    let (span, backlog) = if quick {
        (Duration::from_millis(100), 1000)
    } else {
        (Duration::from_secs(3), 100_000)
    };
    let baseline = synced_writes(directory.path(), span);
    println!("write and fdatasync, one after the other: {baseline:.0} records/s");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for callers in [1, 100, 1000] {
        let path = directory.path().join(format!("callers-{callers}"));
        let rate = runtime.block_on(accepted(&path, callers, span));
        println!(
            "{callers:>5} callers in flight: {rate:.0} messages/s accepted, ratio: {:.2}",
            rate / baseline
        );
    }
    let rate = runtime.block_on(replay(&directory.path().join("replay"), backlog));
    println!("replay of {backlog} messages after a reconnect: {rate:.0} messages/s");
}

/// Each record is on the disk before the next one is written.
fn synced_writes(directory: &Path, span: Duration) -> f64 {
    let mut file = File::create(directory.join("baseline")).expect("writable");
    let (began, mut records) = (Instant::now(), 0_u32);
    while began.elapsed() < span {
        file.write_all(&RECORD).expect("writable");
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

async fn stream(instance: &str, directory: &Path, endpoints: &[String]) -> GovernanceStream {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let node = NodeConfig {
        node_id: "bench".parse().expect("valid"),
        public_key: key.parse().expect("on the curve"),
        chain_id: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
    };
    let endpoints = endpoints.iter().map(|uri| uri.parse().expect("loopback"));
    let mut config = Config::new(node, endpoints.collect());
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
    let store = Store::create(directory, &Owner::of(&config.node), true).expect("new");
    GovernanceStream::start(StreamArguments::new(config, store))
        .await
        .expect("starts")
}

fn deposit(number: u32) -> PeginNotification {
    wallet::deposit(number).expect("valid")
}

/// Messages per second that are durable when the call returns, with governance out of reach.
async fn accepted(directory: &Path, callers: u64, span: Duration) -> f64 {
    let nobody = ["http://127.0.0.1:1".to_owned()];
    let stream = stream(&format!("bench-{callers}"), directory, &nobody).await;
    let next = Arc::new(AtomicU32::new(0));
    let began = Instant::now();
    let calling: Vec<_> = (0..callers)
        .map(|_| {
            let (stream, next) = (stream.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                let mut accepted = 0_u64;
                while began.elapsed() < span {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    stream
                        .notify_pegin(deposit(number))
                        .await
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
    stream.supervisor().kill();
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
    let stream = stream("bench-replay", directory, &simulator.endpoints()).await;
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
