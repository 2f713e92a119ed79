//! `simulator`.

use std::{fs, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use bitcoin::Network;
use clap::Args;
use governance_stream::{
    message::OutboxId,
    simulator::{Simulator, SimulatorConfig, SimulatorTls},
};
use serde_json::json;

use super::asked_to_stop;

#[derive(Debug, Args)]
pub(super) struct SimulatorArgs {
    /// Loopback address of an endpoint; several make several endpoints of one service.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    listen: Vec<SocketAddr>,
    /// Signers.
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// Signatures needed to spend.
    #[arg(long, default_value_t = 2)]
    threshold: usize,
    /// Signers who are away. With too few left, requests wait with what the others have signed.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offline_members: usize,
    /// When they come back, and sign what waits. Without it they are away until this is stopped; one
    /// that is started without them away, on the same --directory, has them sign it.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    offline_for: Option<Duration>,
    /// The same seed gives the same keys.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// bitcoin, testnet, testnet4, signet or regtest.
    #[arg(long, default_value_t = Network::Regtest)]
    network: Network,
    /// The sidechain that it serves.
    #[arg(long, default_value = "alys-regtest")]
    chain_id: String,
    /// Permit this outbox of this node, as governance's operator does for a store that was restored or
    /// lost: the node's message names it. Its earlier outboxes are retired for ever. Start it again on
    /// the same --directory with this.
    #[arg(long, value_name = "NODE:OUTBOX", requires = "directory")]
    permit: Vec<String>,
    /// Where its ledger lies, so that it survives this process; in memory when unset.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Bearer token that nodes must show.
    #[arg(long, env = "GOVERNANCE_SIMULATOR_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Certificate chain, PEM: TLS at every endpoint.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Who vouches for nodes, PEM: mutual TLS.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

fn tls(args: &SimulatorArgs) -> anyhow::Result<Option<SimulatorTls>> {
    let read = |path: &PathBuf| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    Ok(Some(SimulatorTls {
        client_ca: args.client_ca.as_ref().map(read).transpose()?,
        ..SimulatorTls::new(read(certificate)?, read(key)?)
    }))
}

/// Has the members who are away come back, if it is known when.
async fn come_back(simulator: &Simulator, offline_for: Option<Duration>) {
    let Some(pause) = offline_for else {
        return std::future::pending().await;
    };
    #[allow(
        clippy::disallowed_methods,
        reason = "whoever started this asked for the pause"
    )]
    tokio::time::sleep(pause).await;
    simulator.set_offline_members(0);
    eprintln!("all members are back");
    std::future::pending().await
}

pub(super) async fn run(args: SimulatorArgs) -> anyhow::Result<ExitCode> {
    let (members, offline) = (args.members, args.offline_members);
    ensure!(
        offline <= members,
        "--offline-members {offline}: there are {members} members"
    );
    let simulator = Simulator::start(SimulatorConfig {
        tls: tls(&args)?,
        members,
        threshold: args.threshold,
        offline_members: offline,
        seed: args.seed,
        network: args.network,
        chain_id: args.chain_id,
        token: args.token,
        listen: args.listen,
        directory: args.directory,
        // Nobody restores this one from an older copy.
        record: false,
        ..SimulatorConfig::default()
    })
    .await?;
    for permitted in &args.permit {
        let (node, outbox) = permitted
            .split_once(':')
            .with_context(|| format!("--permit {permitted}: not NODE:OUTBOX"))?;
        let outbox: uuid::Uuid = outbox
            .parse()
            .map_err(|error| anyhow::anyhow!("--permit {permitted}: {error}"))?;
        let outbox = OutboxId::from_slice(outbox.as_bytes())
            .map_err(|error| anyhow::anyhow!("--permit {permitted}: {error}"))?;
        simulator
            .allow_outbox(node, outbox)
            .map_err(|reason| anyhow::anyhow!("--permit {permitted}: {reason}"))?;
    }
    let endpoints = simulator.endpoints();
    let federation = simulator.federation(1).context("there is no federation")?;
    let members: Vec<(String, String)> = federation
        .members
        .iter()
        .map(|(id, key)| (id.clone(), key.to_string()))
        .collect();
    if args.json {
        println!(
            "{}",
            json!({
                "endpoints": endpoints,
                "threshold": federation.threshold,
                "members": members,
                "descriptor": federation.descriptor,
                "address": federation.address.to_string(),
            })
        );
    } else {
        println!(
            "governance is played here, with keys that everyone knows. A node's configuration:"
        );
        println!("\n[connection]\nendpoints = {endpoints:?}");
        println!(
            "\n[federation]\nthreshold = {}\nmembers = [",
            federation.threshold
        );
        for (id, key) in members {
            println!("    {{ id = {id:?}, public_key = {key:?} }},");
        }
        println!("]\n\nIts address is {}.", federation.address);
        if offline > 0 {
            println!("{offline} of its {} members are away.", args.members);
        }
        println!("Stop with Ctrl-C.");
    }
    tokio::select! {
        () = asked_to_stop() => {}
        () = come_back(&simulator, args.offline_for) => {}
    }
    let violations = simulator.ledger().violations;
    simulator.shutdown().await;
    for violation in &violations {
        eprintln!("violation: {violation}");
    }
    Ok(if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
