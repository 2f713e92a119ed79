//! `run`.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use bitcoin::Network;
use clap::Args;
use governance_stream::{
    bridge::{BitcoinBackend, BitcoinCore, FileOutbox},
    config::{BridgeSettings, StoreSettings},
    http,
    storage::{CompactionPolicy, UpkeepSettings},
    telemetry,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    ConfigArgs, asked_to_stop,
    node::{Node, NodePlan, open_store, owner},
};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Logs as one JSON object a line, whatever the configuration says.
    #[arg(long)]
    json: bool,
    /// Make a store if there is none, for containers; as `init` does. Refused when the data
    /// directory holds anything but a store.
    #[arg(long)]
    init: bool,
}

/// Bitcoin Core where there is one, otherwise files for whatever broadcasts them.
fn backend(bridge: &BridgeSettings, network: Network) -> anyhow::Result<Arc<dyn BitcoinBackend>> {
    if let Some(bitcoind) = &bridge.bitcoind {
        info!(url = %bitcoind.url, "peg-outs are broadcast and followed by this Bitcoin node");
        return Ok(Arc::new(BitcoinCore::new(bitcoind.clone(), network)));
    }
    let outbox = bridge.outbox_dir.display();
    warn!(%outbox, "no bridge.bitcoind.url: signed peg-outs are left as files and not followed");
    let opened = FileOutbox::new(&bridge.outbox_dir);
    let opened = opened.with_context(|| format!("bridge.outbox_dir: cannot make {outbox}"))?;
    Ok(Arc::new(opened))
}

/// How the store is looked after beside the node's work.
fn upkeep(settings: &StoreSettings) -> UpkeepSettings {
    UpkeepSettings {
        look_every: Duration::from_secs(60),
        scrub_every: settings.scrub_interval,
        scrub_bytes_per_second: settings.scrub_bytes_per_second,
        compaction: CompactionPolicy {
            free_percent: u8::try_from(settings.compact_above_free_percent).unwrap_or(100),
            least_bytes: settings.compact_from_bytes,
        },
    }
}

pub(super) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut settings = args.config.load()?;
    if args.json {
        settings.telemetry.log_format = governance_stream::config::LogFormat::Json;
    }
    let _telemetry = telemetry::install(&settings.telemetry)?;
    let mut registry = Registry::default();
    let metrics = telemetry::Metrics::register(&mut registry);
    // First of all: whatever else is taken may be so because another node runs on it.
    let store = open_store(
        settings.data_dir.clone(),
        owner(&settings.stream.node, &settings.federation)?,
        args.init,
    )
    .await?;
    let backend = backend(&settings.bridge, settings.stream.node.network)?;
    #[cfg(unix)]
    let follows = backend.follows();
    let listener = if settings.features.http {
        let listen = settings.http.listen;
        let bound = TcpListener::bind(listen).await;
        Some(bound.with_context(|| format!("http.listen: cannot listen on {listen}"))?)
    } else {
        None
    };
    let (node_config, subscribers) = (
        settings.stream.node.clone(),
        settings.stream.subscribers.clone(),
    );
    let node = Node::start(NodePlan {
        config: settings.stream,
        features: settings.features,
        store,
        federation: settings.federation,
        policy: settings.federation_policy,
        bridge: settings.bridge.config,
        backend,
        metrics,
    })
    .await?;
    let store = node.stream.store()?;
    store.register_metrics(&mut registry);
    store.start_upkeep(upkeep(&settings.store))?;
    drop(store);
    let (stopping, stop) = (CancellationToken::new(), CancellationToken::new());
    let http = listener.map(|listener| {
        info!(listen = ?listener.local_addr().ok(), "health, metrics and status over HTTP");
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(http::serve(
            listener,
            node.stream.clone(),
            Arc::new(registry),
            stopped,
        ))
    });
    #[cfg(unix)]
    let socket = {
        let operated = super::socket::Operated {
            stream: node.stream.clone(),
            node: node_config,
            bridge: settings.features.bridge.then_some(subscribers.bridge),
            bridge_store: node.bridge_store.clone(),
            chain: settings.features.chain.then_some(subscribers.chain),
            chain_store: node.chain_store.clone(),
            stopping: stopping.clone(),
            follows,
        };
        let directory = &settings.data_dir;
        let (file, listener) = super::socket::bind(directory)
            .with_context(|| format!("cannot listen in {}", directory.display()))?;
        info!(socket = %file.path().display(), "operators are served");
        let serving = super::socket::serve(listener, operated, stop.clone());
        (file, tokio::spawn(serving))
    };
    let code = tokio::select! {
        () = asked_to_stop() => {
            info!("stopping");
            stopping.cancel();
            let leftover = node.shutdown().await?;
            info!(?leftover, "stopped");
            ExitCode::SUCCESS
        }
        reason = node.failure() => {
            error!(reason, "the stream has given up; whoever runs this process should start it again");
            ExitCode::FAILURE
        }
    };
    stopping.cancel();
    stop.cancel();
    if let Some(http) = http {
        http.await??;
    }
    #[cfg(unix)]
    {
        let (_file, serving) = socket;
        serving.await??;
    }
    Ok(code)
}
