//! What the tree costs: the same requests, with the same number in flight, through a bare tonic
//! stream and through the whole tree, in one run. The ratio is the figure: absolute rates depend
//! on the machine and on whatever else runs there.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on fails, and tells its figure"
)]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bitcoin::{Amount, Network};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use governance_stream::storage::Store;
use governance_stream::{
    BridgeEvent, Delivery, GovernanceStream, StreamArguments,
    config::{Config, NodeConfig},
    message::{Outbound, SignatureRequest, SignatureRequestParts, TransactionType, wire::encode},
    proto::{self, stream_client::StreamClient, stream_server},
    simulator::{Answering, FederationView, Simulator, SimulatorConfig, wallet},
};
use prost::{Message, bytes::Bytes};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::server::TcpIncoming};

// As the binary has it.
#[cfg(feature = "cli")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests in flight: all of them are out before the first answer is waited for.
const IN_FLIGHT: u64 = 1000;

/// No id twice in the service's life.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn request(federation: &FederationView) -> SignatureRequest {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let amount = Amount::from_sat(50_000);
    SignatureRequest::new(SignatureRequestParts {
        request_id: format!("bench-{number}").parse().expect("valid"),
        psbt: wallet::pegout_psbt(federation, number, 2, amount).expect("covered"),
        input_indices: vec![0, 1],
        tx_type: TransactionType::Pegout,
        chain: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: 1,
        burns: vec![wallet::burn(number, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    })
    .expect("valid")
}

/// The bare stream's other side: answers each message with a response of the usual size.
struct Echo;

#[tonic::async_trait]
impl stream_server::Stream for Echo {
    type BidirectionalStreamStream = ReceiverStream<Result<proto::StreamResponse, Status>>;

    async fn bidirectional_stream(
        &self,
        request: Request<Streaming<proto::StreamRequest>>,
    ) -> Result<Response<Self::BidirectionalStreamStream>, Status> {
        let mut requests = request.into_inner();
        let (responses, frames) = mpsc::channel(16);
        let payload = proto::SignatureResponse {
            request_id: "bench-1000000".to_owned(),
            txid: vec![7; 32].into(),
            federation_version: 1,
            status: proto::SignatureStatus::Complete.into(),
            ..Default::default()
        };
        let payload = Bytes::from(payload.encode_to_vec());
        tokio::spawn(async move {
            while let Ok(Some(frame)) = requests.message().await {
                let answer = |message: proto::SequencedMessage| proto::SequencedMessage {
                    kind: proto::Kind::SignatureResponse.into(),
                    payload: payload.clone(),
                    ..message
                };
                let messages = frame.messages.into_iter().map(answer).collect();
                let response = proto::StreamResponse {
                    messages,
                    ..Default::default()
                };
                if responses.send(Ok(response)).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn get_capabilities(
        &self,
        _: Request<proto::CapabilitiesRequest>,
    ) -> Result<Response<proto::Capabilities>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

struct Bare {
    frames: mpsc::Sender<proto::StreamRequest>,
    responses: Streaming<proto::StreamResponse>,
}

impl Bare {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(stream_server::StreamServer::new(Echo))
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
        );
        let mut client = StreamClient::connect(endpoint).await.expect("connects");
        let (frames, outgoing) = mpsc::channel(16);
        let responses = client
            .bidirectional_stream(ReceiverStream::new(outgoing))
            .await;
        Self {
            frames,
            responses: responses.expect("opens").into_inner(),
        }
    }

    /// Sends payloads in frames of many, as the tree does.
    async fn round_trip(&mut self, payloads: Vec<(proto::Kind, Bytes)>) {
        let (mut sequence, count) = (0, payloads.len());
        let mut payloads = payloads.into_iter();
        while payloads.len() > 0 {
            let message = |(kind, payload): (proto::Kind, Bytes)| {
                sequence += 1;
                proto::SequencedMessage {
                    lane: proto::Lane::Signing.into(),
                    sequence,
                    message_id: vec![7; 16].into(),
                    kind: kind.into(),
                    payload,
                    ..Default::default()
                }
            };
            let messages = payloads.by_ref().take(256).map(message).collect();
            let frame = proto::StreamRequest {
                messages,
                ..Default::default()
            };
            self.frames.send(frame).await.expect("taken");
        }
        let mut answered = 0;
        while answered < count {
            let frame = self
                .responses
                .message()
                .await
                .expect("lives")
                .expect("goes on");
            answered += frame.messages.len();
        }
    }
}

/// Counts what it is told.
struct Counter;

impl Actor for Counter {
    type Msg = Delivery<BridgeEvent>;
    type State = watch::Sender<usize>;
    type Arguments = watch::Sender<usize>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        count: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(count)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Self::Msg,
        count: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let messages = delivery.messages.len();
        delivery.handle_each(|_| Ok(None));
        count.send_modify(|count| *count += messages);
        Ok(())
    }
}

struct Tree {
    stream: GovernanceStream,
    handled: watch::Receiver<usize>,
    // Both live as long as the bench.
    _simulator: Simulator,
}

impl Tree {
    async fn start() -> (Self, FederationView) {
        let config = SimulatorConfig {
            record: false,
            answering: Answering::Canned,
            ..SimulatorConfig::default()
        };
        let simulator = Simulator::start(config).await.expect("starts");
        let federation = simulator.federation(1).expect("the first");
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let node = NodeConfig {
            node_id: "bench".parse().expect("valid"),
            public_key: key.parse().expect("the generator"),
            chain_id: "alys-regtest".parse().expect("valid"),
            network: Network::Regtest,
        };
        let endpoints = simulator.endpoints();
        let endpoints = endpoints
            .iter()
            .map(|uri| uri.parse().expect("loopback"))
            .collect();
        let config = Config::new(node, endpoints);
        let (count, handled) = watch::channel(0);
        let bridge = config.subscribers.bridge.clone();
        Actor::spawn(Some(bridge), Counter, count)
            .await
            .expect("starts");
        let stream = GovernanceStream::start(StreamArguments::new(config, Store::in_memory()))
            .await
            .expect("starts");
        let mut status = stream.watch_status();
        status
            .wait_for(|status| status.is_connected())
            .await
            .expect("connects");
        (
            Self {
                stream,
                handled,
                _simulator: simulator,
            },
            federation,
        )
    }

    async fn round_trip(&mut self, requests: Vec<SignatureRequest>) {
        let wanted = *self.handled.borrow() + requests.len();
        let mut asking: JoinSet<_> = requests
            .into_iter()
            .map(|request| {
                let stream = self.stream.clone();
                async move { stream.request_signatures(request).await }
            })
            .collect();
        while let Some(accepted) = asking.join_next().await {
            accepted.expect("no panic").expect("accepted");
        }
        self.handled
            .wait_for(|handled| *handled >= wanted)
            .await
            .expect("lives");
    }
}

/// Time for `iterations` requests, `IN_FLIGHT` of them at a time; making them is not measured.
fn timed<T>(
    iterations: u64,
    spent: &mut (Duration, u64),
    make: impl Fn() -> T,
    mut round_trip: impl FnMut(Vec<T>),
) -> Duration {
    let mut elapsed = Duration::ZERO;
    for _ in 0..iterations {
        let requests: Vec<T> = (0..IN_FLIGHT).map(|_| make()).collect();
        let began = Instant::now();
        round_trip(requests);
        elapsed += began.elapsed();
    }
    *spent = (spent.0 + elapsed, spent.1 + iterations * IN_FLIGHT);
    elapsed
}

fn throughput(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("starts");
    let mut bare = runtime.block_on(Bare::start());
    let (mut tree, federation) = runtime.block_on(Tree::start());
    let (mut bare_spent, mut tree_spent) = ((Duration::ZERO, 0), (Duration::ZERO, 0));

    let mut group = criterion.benchmark_group("signature requests");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(IN_FLIGHT));
    group.bench_function("bare tonic stream", |bencher| {
        let make = || encode(&Outbound::SignatureRequest(Box::new(request(&federation))));
        bencher.iter_custom(|iterations| {
            timed(iterations, &mut bare_spent, make, |payloads| {
                runtime.block_on(bare.round_trip(payloads));
            })
        });
    });
    group.bench_function("whole tree", |bencher| {
        bencher.iter_custom(|iterations| {
            timed(
                iterations,
                &mut tree_spent,
                || request(&federation),
                |requests| {
                    runtime.block_on(tree.round_trip(requests));
                },
            )
        });
    });
    group.finish();

    let rate = |(elapsed, requests): (Duration, u64)| requests as f64 / elapsed.as_secs_f64();
    let (bare, tree) = (rate(bare_spent), rate(tree_spent));
    println!(
        "ratio: {:.3} ({tree:.0} requests/s through the tree, {bare:.0} bare)",
        tree / bare
    );
}

criterion_group!(benches, throughput);
criterion_main!(benches);
