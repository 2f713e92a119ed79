//! `simulator`.

use std::{fs, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use bitcoin::Network;
use clap::Args;
use governance_stream::simulator::{Simulator, SimulatorConfig, SimulatorTls};
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
    /// The same seed gives the same keys.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// bitcoin, testnet, testnet4, signet or regtest.
    #[arg(long, default_value_t = Network::Regtest)]
    network: Network,
    /// The sidechain that it serves.
    #[arg(long, default_value = "alys-regtest")]
    chain_id: String,
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

pub(super) async fn run(args: SimulatorArgs) -> anyhow::Result<ExitCode> {
    let simulator = Simulator::start(SimulatorConfig {
        tls: tls(&args)?,
        members: args.members,
        threshold: args.threshold,
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
        println!(
            "]\n\nIts address is {}. Stop with Ctrl-C.",
            federation.address
        );
    }
    asked_to_stop().await;
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
