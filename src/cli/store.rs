//! `store`: what a node keeps everything in.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{ask::NodeArgs, out, question::Question, source::Source, store_stats, store_verify};

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Which store it is, how much is in it, and how far everything has come.
    Stats(NodeArgs),
    /// Read everything, and look whether it is what was written and fits together. Exits 1 if not.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Pause between two stretches, so that a running node is not slowed down.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    pub pause: Duration,
}

pub(super) async fn run(args: StoreArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        StoreCommand::Stats(node) => {
            let answer = Source::find(&node).await?.ask(&Question::Stats).await?;
            out::show(node.json, &answer, || store_stats::words(&answer));
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Verify(verify) => store_verify::run(&verify).await,
    }
}
