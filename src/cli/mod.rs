//! The commands, one a file.

#[cfg(unix)]
mod ask;
#[cfg(unix)]
mod backup;
#[cfg(unix)]
mod chain_height;
#[cfg(unix)]
mod chain_routes;
mod check_config;
#[cfg(unix)]
mod connect;
#[cfg(unix)]
mod dead_letters;
#[cfg(feature = "simulator")]
mod demo;
#[cfg(unix)]
mod export;
mod failure;
#[cfg(unix)]
mod federation;
mod init;
mod node;
mod out;
#[cfg(unix)]
mod payments;
#[cfg(unix)]
mod pegin;
#[cfg(unix)]
mod pegins;
#[cfg(unix)]
mod pegout;
#[cfg(unix)]
mod pegout_routes;
#[cfg(unix)]
mod pegouts;
#[cfg(unix)]
mod proposals;
#[cfg(unix)]
mod question;
#[cfg(unix)]
mod requests;
#[cfg(unix)]
mod restore;
mod run;
#[cfg(feature = "simulator")]
mod sample_pegout;
#[cfg(feature = "simulator")]
mod simulator;
#[cfg(unix)]
mod socket;
#[cfg(unix)]
mod source;
#[cfg(unix)]
mod status;
#[cfg(unix)]
mod store;
#[cfg(unix)]
mod store_routes;
#[cfg(unix)]
mod store_stats;
#[cfg(unix)]
mod store_verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use governance_stream::config::{ConfigError, Layers, Settings};

/// One persistent, supervised stream between a federated sidechain node and the service that
/// holds the federation's keys.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the store of a new node. On one that has run before, restore a backup instead.
    Init(init::InitArgs),
    /// Keep the stream, with this crate's own bridge and chain.
    Run(run::RunArgs),
    /// Have a running node pay burns: a transaction signed, broadcast and followed to its end.
    #[cfg(unix)]
    Pegout(pegout::PegoutArgs),
    /// The peg-outs of a running node, how far each has come; stop them, or go on.
    #[cfg(unix)]
    Pegouts(pegouts::PegoutsArgs),
    /// Have a running node tell governance of a deposit.
    #[cfg(unix)]
    Pegin(pegin::PeginArgs),
    /// Have a running node drop a peg-out that waits, withdraw a request, or governance cancel it.
    #[cfg(unix)]
    Cancel(pegout::CancelArgs),
    /// Tell a running node how far the sidechain is, as its block import would.
    #[cfg(unix)]
    ChainHeight(chain_height::ChainHeightArgs),
    /// Who signs, who did, and who will, as a running node knows it.
    #[cfg(unix)]
    Federation(federation::FederationArgs),
    /// Which burns are paid for good, as a running node's chain knows it.
    #[cfg(unix)]
    Payments(payments::PaymentsArgs),
    /// What governance proposes to a running node's operator.
    #[cfg(unix)]
    Proposals(proposals::ProposalsArgs),
    /// How a running node is.
    #[cfg(unix)]
    Status(status::StatusArgs),
    /// Have a running node use another endpoint.
    #[cfg(unix)]
    Connect(connect::ConnectArgs),
    /// Have a running node try again what a fault has stopped, as a runbook says.
    #[cfg(unix)]
    Resume(connect::ResumeArgs),
    /// Messages of governance that could not be used.
    #[cfg(unix)]
    DeadLetters(dead_letters::DeadLettersArgs),
    /// What was asked to be signed, and what came of it.
    #[cfg(unix)]
    Requests(requests::RequestsArgs),
    /// Deposits that governance was told of, and whether it has answered.
    #[cfg(unix)]
    Pegins(pegins::PeginsArgs),
    /// What a node keeps everything in: how it is, and whether it is sound.
    #[cfg(unix)]
    Store(store::StoreArgs),
    /// Copy the store into a file, while the node runs or not.
    #[cfg(unix)]
    Backup(backup::BackupArgs),
    /// Make the store of a node that does not run from a backup.
    #[cfg(unix)]
    Restore(restore::RestoreArgs),
    /// Everything of the stream, one JSON object a line.
    #[cfg(unix)]
    Export(export::ExportArgs),
    /// Show the configuration that is in force, and where each value comes from.
    CheckConfig(check_config::CheckConfigArgs),
    /// Play governance: a federation of real keys behind a real server. For tests only.
    #[cfg(feature = "simulator")]
    Simulator(simulator::SimulatorArgs),
    /// Write a peg-out for the simulator's federation, and the `pegout` that has it signed.
    #[cfg(feature = "simulator")]
    SamplePegout(sample_pegout::SamplePegoutArgs),
    /// Governance and a node in this process: peg-outs signed, through a cut stream, a panic and
    /// a change of the federation.
    #[cfg(feature = "simulator")]
    Demo(demo::DemoArgs),
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// A TOML file; `config.example.toml` explains every key.
    #[arg(long, short, env = "GOVERNANCE_STREAM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides one key, e.g. `--set connection.heartbeat_interval=2s`. A secret given here can
    /// be seen by every user of the machine: use the environment, or `connection.token_file`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Settings, ConfigError> {
        load(self.config.as_ref(), &self.set)
    }
}

/// What is in force of a file, the environment and the command line.
fn load(file: Option<&PathBuf>, set: &[String]) -> Result<Settings, ConfigError> {
    let mut layers = Layers::new();
    if let Some(path) = file {
        layers = layers.file(path.clone());
    }
    // Names and values that are not Unicode are none of ours.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Settings::load(
        layers
            .environment(variables)
            .flags(set.iter().map(String::as_str)),
    )
}

/// Whether the command that was given is to answer in JSON.
fn wants_json(matches: &ArgMatches) -> bool {
    let here = matches.try_get_one::<bool>("json").ok().flatten();
    let below = || {
        matches
            .subcommand()
            .is_some_and(|(_, below)| wants_json(below))
    };
    here.copied().unwrap_or_default() || below()
}

pub(crate) fn main() -> ExitCode {
    let codes = failure::exit_codes();
    let command = Cli::command().after_help(codes.clone());
    let matches = command
        .mut_subcommands(|command| command.after_help(codes.clone()))
        .get_matches();
    let as_json = wants_json(&matches);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Init(args) => init::run(args).await,
            Command::Run(args) => run::run(args).await,
            #[cfg(unix)]
            Command::Pegout(args) => pegout::run(args).await,
            #[cfg(unix)]
            Command::Pegouts(args) => pegouts::run(args).await,
            #[cfg(unix)]
            Command::Pegin(args) => pegin::run(args).await,
            #[cfg(unix)]
            Command::Cancel(args) => pegout::cancel(args).await,
            #[cfg(unix)]
            Command::ChainHeight(args) => chain_height::run(args).await,
            #[cfg(unix)]
            Command::Federation(args) => federation::run(args).await,
            #[cfg(unix)]
            Command::Payments(args) => payments::run(args).await,
            #[cfg(unix)]
            Command::Proposals(args) => proposals::run(args).await,
            #[cfg(unix)]
            Command::Status(args) => status::run(args).await,
            #[cfg(unix)]
            Command::Connect(args) => connect::run(args).await,
            #[cfg(unix)]
            Command::Resume(args) => connect::resume(args).await,
            #[cfg(unix)]
            Command::DeadLetters(args) => dead_letters::run(args).await,
            #[cfg(unix)]
            Command::Requests(args) => requests::run(args).await,
            #[cfg(unix)]
            Command::Pegins(args) => pegins::run(args).await,
            #[cfg(unix)]
            Command::Store(args) => store::run(args).await,
            #[cfg(unix)]
            Command::Export(args) => export::run(args).await,
            #[cfg(unix)]
            Command::Backup(args) => backup::run(args).await,
            #[cfg(unix)]
            Command::Restore(args) => restore::run(args).await,
            Command::CheckConfig(args) => check_config::run(&args),
            #[cfg(feature = "simulator")]
            Command::Simulator(args) => simulator::run(args).await,
            #[cfg(feature = "simulator")]
            Command::SamplePegout(args) => sample_pegout::run(args).await,
            #[cfg(feature = "simulator")]
            Command::Demo(args) => demo::run(args).await,
        }
    });
    result.unwrap_or_else(|error| failure::tell(&error, as_json))
}

/// Ready when someone wants the process to end: an interrupt, or SIGTERM.
async fn asked_to_stop() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = interrupt => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(_) => drop(interrupt.await),
        }
    }
    #[cfg(not(unix))]
    drop(interrupt.await);
}
