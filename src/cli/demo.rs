//! `demo`: governance and a node in one process, and everything that may befall them on the way.

mod report;
mod show;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bitcoin::{Amount, Network, TxOut, Txid};
use clap::Args;
use governance_stream::{
    bridge::{
        BridgeMessage, BridgeStore, EmbeddedBitcoin, Pegout, PegoutPage, PegoutStage,
        check_consensus,
    },
    chain::{ChainMessage, FederationPolicy},
    config::{BridgeConfig, Config, Features, FirstFederation, NodeConfig},
    http,
    message::{
        FederationMember, RequestId, SignatureRequest, SignatureRequestParts, TransactionType,
    },
    proto::FederationUpdateKind,
    simulator::{FederationView, LedgerView, RotationPlan, Simulator, SimulatorConfig, wallet},
    telemetry::Metrics,
};
use prometheus_client::registry::Registry;
use ractor::{ActorRef, rpc::CallResult};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    asked_to_stop,
    node::{Node, NodePlan, open_store, owner},
};
use report::{Latency, Report};
use show::Show;

/// Longest wait for any one step; only a fault reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sidechain height at which the second federation takes over.
const ROTATION_HEIGHT: u64 = 110;
/// Network of the demo.
const NETWORK: Network = Network::Regtest;
/// How often the bridge looks where its peg-outs are.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many peg-outs to have signed.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pegouts: u32,
    /// One JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    json: bool,
    /// Afterwards, go on serving /livez, /readyz, /startupz, /metrics and /status.
    #[arg(long)]
    serve: bool,
    /// Where `--serve` listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    listen: SocketAddr,
}

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if args.serve {
        ensure!(
            args.listen.ip().is_loopback(),
            "--listen: {} is not loopback",
            args.listen
        );
    }
    let show = Show::new(&args);
    quiet_panics(show.clone());
    let mut registry = Registry::default();
    let demo = Demo::start(Metrics::register(&mut registry), show.clone()).await?;
    let stop = CancellationToken::new();
    let http = if args.serve {
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.with_context(|| format!("--listen: {}", args.listen))?;
        let stopped = stop.clone().cancelled_owned();
        let stream = demo.node.stream.clone();
        Some(tokio::spawn(http::serve(
            listener,
            stream,
            Arc::new(registry),
            stopped,
        )))
    } else {
        None
    };
    let report = demo.play(args.pegouts).await?;
    show.finish();
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.print_table();
    }
    let faults = report.faults();
    for fault in &faults {
        eprintln!("not as it should be: {fault}");
    }
    if let Some(http) = http {
        show.line(&format!("serving http://{} until Ctrl-C", args.listen));
        asked_to_stop().await;
        stop.cancel();
        http.await??;
    }
    demo.shutdown().await?;
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Where the demo's node keeps its store; gone with it.
struct DemoDirectory {
    path: PathBuf,
}

impl DemoDirectory {
    fn new() -> Self {
        let name = format!("governance-stream-demo-{}", std::process::id());
        Self {
            path: std::env::temp_dir().join(name),
        }
    }
}

impl Drop for DemoDirectory {
    fn drop(&mut self) {
        // What cannot be removed is the temporary directory's to keep.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

struct Demo {
    simulator: Simulator,
    node: Node,
    config: Config,
    bitcoin: Arc<EmbeddedBitcoin>,
    show: Show,
    _directory: DemoDirectory,
}

impl Demo {
    async fn start(metrics: Metrics, show: Show) -> anyhow::Result<Self> {
        let simulator = Simulator::start(SimulatorConfig::with_endpoints(2)).await?;
        let first = federation(&simulator, 1)?;
        let endpoints = simulator.endpoints();
        show.line(&format!(
            "governance listens on {}",
            endpoints.join(" and ")
        ));
        show.line(&format!(
            "federation 1: {} of {}",
            first.threshold,
            first.members.len()
        ));
        let config = config(&endpoints)?;
        let members = first.members.iter().map(|(id, public_key)| {
            Ok(FederationMember {
                id: id.parse()?,
                public_key: *public_key,
                active: true,
            })
        });
        let bitcoin = Arc::new(EmbeddedBitcoin::default());
        let directory = DemoDirectory::new();
        show.line(&format!("the store lies in {}", directory.path.display()));
        let federation = FirstFederation {
            threshold: u32::try_from(first.threshold)?,
            members: members.collect::<anyhow::Result<_>>()?,
        };
        let owner = owner(&config.node, &federation)?;
        let store = open_store(directory.path.clone(), owner, true).await?;
        let node = Node::start(NodePlan {
            config: config.clone(),
            features: Features {
                bridge: true,
                chain: true,
                http: false,
            },
            store,
            federation,
            policy: FederationPolicy::default(),
            bridge: BridgeConfig {
                poll_interval: POLL,
                ..BridgeConfig::default()
            },
            backend: bitcoin.clone(),
            metrics,
        })
        .await?;
        Ok(Self {
            simulator,
            node,
            config,
            bitcoin,
            show,
            _directory: directory,
        })
    }

    async fn play(&self, pegouts: u32) -> anyhow::Result<Report> {
        let began = Instant::now();
        let watching = tokio::spawn(watch_latency(
            self.node.bridge_store.clone(),
            self.show.clone(),
        ));
        self.connected(1).await?;
        self.active(1).await?;
        // Each third is under way when something befalls it.
        let numbers: Vec<u64> = (0..u64::from(pegouts)).collect();
        let third = numbers.len().div_ceil(3);
        let mut parts = numbers.chunks(third);
        let first = federation(&self.simulator, 1)?;

        self.simulator.hold_responses();
        self.request(&first, parts.next().unwrap_or_default())
            .await?;
        self.at_governance(third).await?;
        self.show
            .line("cutting the stream, with every answer still to come");
        self.simulator.cut();
        self.simulator.release_responses();
        self.connected(2).await?;
        self.broadcast(third).await?;

        self.simulator.hold_responses();
        let part = parts.next().unwrap_or_default();
        self.request(&first, part).await?;
        let so_far = third + part.len();
        self.at_governance(so_far).await?;
        self.show
            .line("making the connection actor panic, with every answer still to come");
        let sessions = self.node.stream.status().connection.sessions;
        self.node.stream.panic_connection()?;
        self.simulator.release_responses();
        self.connected(sessions + 1).await?;
        self.broadcast(so_far).await?;

        let second = self.rotate().await?;
        self.request(&second, parts.next().unwrap_or_default())
            .await?;
        self.broadcast(numbers.len()).await?;
        self.complete(numbers.len()).await?;

        let latencies = watching.await?;
        let ledger = self.settled().await?;
        self.report(pegouts as usize, &ledger, &latencies, began.elapsed())
            .await
    }

    /// Federation 1 becomes federation 2, at its height.
    async fn rotate(&self) -> anyhow::Result<FederationView> {
        let plan = RotationPlan {
            members: 3,
            threshold: 2,
            activation_height: ROTATION_HEIGHT,
            notice_blocks: 10,
            grace_blocks: 50,
            kind: FederationUpdateKind::Scheduled,
        };
        let second = self
            .simulator
            .rotate_federation(&plan)
            .context("no such federation")?;
        let acknowledged = |ledger: &LedgerView| {
            ledger
                .federation_acks
                .iter()
                .any(|(version, accepted, _)| *version == 2 && *accepted)
        };
        self.ledger("accepted federation 2", acknowledged).await?;
        self.show.line(&format!(
            "federation 2 is approved, for height {ROTATION_HEIGHT}"
        ));
        let chain = ActorRef::<ChainMessage>::where_is(self.config.subscribers.chain.clone());
        chain
            .context("the chain is not running")?
            .cast(ChainMessage::HeightReached(ROTATION_HEIGHT))?;
        self.active(2).await?;
        self.show.line(&format!(
            "height {ROTATION_HEIGHT}: federation 2 signs from here on"
        ));
        Ok(second)
    }

    async fn request(&self, federation: &FederationView, numbers: &[u64]) -> anyhow::Result<()> {
        for number in numbers {
            let request = pegout(federation, *number)?;
            let bridge =
                ActorRef::<BridgeMessage>::where_is(self.config.subscribers.bridge.clone())
                    .context("the bridge is not running")?;
            let initiate = |reply| BridgeMessage::InitiatePegout {
                request: Box::new(request),
                span: tracing::Span::none(),
                reply,
            };
            match bridge.call(initiate, Some(PATIENCE)).await? {
                CallResult::Success(verdict) => verdict?,
                CallResult::Timeout | CallResult::SenderError => {
                    anyhow::bail!("the bridge did not answer");
                }
            }
        }
        self.show.line(&format!(
            "{} peg-outs asked for, with federation {}",
            numbers.len(),
            federation.version
        ));
        Ok(())
    }

    async fn connected(&self, sessions: u64) -> anyhow::Result<()> {
        let mut status = self.node.stream.watch_status();
        let up = status
            .wait_for(|status| status.is_connected() && status.connection.sessions >= sessions);
        let status = tokio::time::timeout(PATIENCE, up)
            .await
            .context("no session")??
            .clone();
        let endpoint = status.connection.endpoint.unwrap_or_default();
        self.show
            .line(&format!("session {sessions} is up, with {endpoint}"));
        Ok(())
    }

    /// Waits until the bridge knows that `version` signs.
    async fn active(&self, version: u32) -> anyhow::Result<()> {
        let mut changed = self.node.bridge_store.watch();
        let known = async {
            while self.node.bridge_store.active_federation() != Some(version) {
                changed.changed().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, known)
            .await
            .with_context(|| format!("the bridge was never told of federation {version}"))?
    }

    async fn at_governance(&self, requests: usize) -> anyhow::Result<()> {
        self.ledger("has the requests", |ledger| {
            ledger.requests.len() >= requests
        })
        .await?;
        Ok(())
    }

    async fn broadcast(&self, pegouts: usize) -> anyhow::Result<()> {
        self.staged(pegouts, "broadcast", PegoutStage::is_on_network)
            .await
    }

    /// Mines what a peg-out needs to be final.
    async fn complete(&self, pegouts: usize) -> anyhow::Result<()> {
        let depth = BridgeConfig::default().confirmations;
        self.show.line(&format!("mining {depth} blocks on them"));
        self.bitcoin.mine(depth);
        let completed = |stage: &PegoutStage| matches!(stage, PegoutStage::Completed { .. });
        self.staged(pegouts, "completed", completed).await
    }

    async fn staged(
        &self,
        pegouts: usize,
        what: &str,
        wanted: impl Fn(&PegoutStage) -> bool,
    ) -> anyhow::Result<()> {
        let store = &self.node.bridge_store;
        let mut changed = store.watch();
        let arrived = async {
            loop {
                let open = store.open_pegouts();
                // One that has come to its end is not among them.
                if open.iter().all(|pegout| wanted(pegout.stage())) {
                    let all = everyone(store).await?;
                    for pegout in &all {
                        if let PegoutStage::Failed(failure) = pegout.stage() {
                            anyhow::bail!("{} failed: {failure}", pegout.request_id());
                        }
                    }
                    if all.iter().filter(|pegout| wanted(pegout.stage())).count() >= pegouts {
                        return Ok(());
                    }
                }
                changed.changed().await?;
            }
        };
        tokio::time::timeout(PATIENCE, arrived)
            .await
            .with_context(|| format!("{pegouts} peg-outs were never {what}"))?
    }

    /// Waits until both sides have acknowledged everything.
    async fn settled(&self) -> anyhow::Result<LedgerView> {
        self.ledger("has every acknowledgement", |ledger| {
            ledger.unacknowledged == 0
        })
        .await
    }

    async fn ledger(
        &self,
        what: &str,
        wanted: impl Fn(&LedgerView) -> bool,
    ) -> anyhow::Result<LedgerView> {
        self.simulator
            .wait_for(PATIENCE, wanted)
            .await
            .map_err(|ledger| anyhow::anyhow!("governance never {what}: {ledger:#?}"))
    }

    async fn report(
        &self,
        requested: usize,
        ledger: &LedgerView,
        latencies: &[Duration],
        elapsed: Duration,
    ) -> anyhow::Result<Report> {
        let pegouts = everyone(&self.node.bridge_store).await?;
        let completed = pegouts
            .iter()
            .filter(|p| matches!(p.stage(), PegoutStage::Completed { .. }))
            .count();
        // Not what the bridge says of itself, but what the network was handed.
        let mut spent: BTreeMap<Txid, Vec<TxOut>> = BTreeMap::new();
        for pegout in &pegouts {
            let federation = federation(&self.simulator, pegout.federation_version())?;
            let script_pubkey = federation.address.script_pubkey();
            let coins = pegout.coins().iter().map(|(_, value)| TxOut {
                value: *value,
                script_pubkey: script_pubkey.clone(),
            });
            spent.insert(pegout.txid(), coins.collect());
        }
        let verified = |transaction: &&bitcoin::Transaction| {
            spent
                .get(&transaction.compute_txid())
                .is_some_and(|spent| check_consensus(transaction, spent).is_ok())
        };
        let transactions = self.bitcoin.transactions();
        let status = self.node.stream.status();
        Ok(Report {
            requested,
            completed,
            consensus_verified: transactions.iter().filter(verified).count(),
            lost: requested.saturating_sub(completed),
            duplicates: ledger.duplicates,
            reconnects: status.connection.sessions.saturating_sub(1),
            actor_restarts: status.actor_restarts,
            federation_version: self
                .node
                .bridge_store
                .active_federation()
                .unwrap_or_default(),
            violations: ledger.violations.clone(),
            latency_ms: Latency::of(latencies),
            elapsed_ms: elapsed.as_millis(),
        })
    }

    async fn shutdown(self) -> anyhow::Result<()> {
        let leftover = self.node.shutdown().await?;
        self.simulator.shutdown().await;
        ensure!(leftover.is_empty(), "left behind: {leftover:?}");
        Ok(())
    }
}

/// Notes how long each peg-out takes to the network, and shows it; sorted, when all are there.
async fn watch_latency(store: BridgeStore, show: Show) -> Vec<Duration> {
    let mut changed = store.watch();
    let mut began: BTreeMap<RequestId, Instant> = BTreeMap::new();
    let mut took: BTreeMap<RequestId, Duration> = BTreeMap::new();
    loop {
        changed.mark_unchanged();
        // Nothing is completed before all are on the network: they are all open.
        for pegout in store.open_pegouts() {
            let id = pegout.request_id();
            let since = began
                .entry(id.clone())
                .or_insert_with(Instant::now)
                .elapsed();
            if pegout.stage().is_on_network() && !took.contains_key(id) {
                show.broadcast(&pegout);
                took.insert(id.clone(), since);
            }
        }
        if took.len() >= show.pegouts || changed.changed().await.is_err() {
            let mut sorted: Vec<Duration> = took.into_values().collect();
            sorted.sort_unstable();
            return sorted;
        }
    }
}

/// Every peg-out, whatever has become of it.
async fn everyone(store: &BridgeStore) -> anyhow::Result<Vec<Arc<Pegout>>> {
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let page = store.pegouts(before, PegoutPage::MOST).await?;
        all.extend(page.pegouts);
        match page.next {
            Some(next) => before = Some(next),
            None => return Ok(all),
        }
    }
}

fn federation(simulator: &Simulator, version: u32) -> anyhow::Result<FederationView> {
    simulator
        .federation(version)
        .with_context(|| format!("there is no federation {version}"))
}

fn config(endpoints: &[String]) -> anyhow::Result<Config> {
    let node = NodeConfig {
        node_id: "demo-node".parse()?,
        // secp256k1's generator: nobody signs with it.
        public_key: "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse()?,
        chain_id: "alys-regtest".parse()?,
        network: NETWORK,
    };
    let endpoints = endpoints
        .iter()
        .map(|uri| uri.parse())
        .collect::<Result<_, _>>()?;
    let mut config = Config::new(node, endpoints);
    config.connection.backoff.initial = Duration::from_millis(50);
    Ok(config)
}

fn pegout(federation: &FederationView, number: u64) -> anyhow::Result<SignatureRequest> {
    let amount = Amount::from_sat(1_000_000 + number);
    let psbt = wallet::pegout_psbt(federation, number, 2, amount).context("not enough coins")?;
    let inputs = u32::try_from(psbt.inputs.len())?;
    Ok(SignatureRequest::new(SignatureRequestParts {
        request_id: format!("pegout-{number:06}").parse()?,
        psbt,
        input_indices: (0..inputs).collect(),
        tx_type: TransactionType::Pegout,
        chain: "alys-regtest".parse()?,
        network: NETWORK,
        federation_version: federation.version,
        burns: vec![wallet::burn(number, amount)],
        max_fee: wallet::FEE,
        replaces: None,
    })?)
}

/// Says one line for the panic that the demo asks for, instead of a backtrace.
fn quiet_panics(show: Show) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() == Some("asked to panic") {
            show.line("the connection actor panicked; its supervisor starts another one");
        } else {
            usual(panic);
        }
    }));
}
