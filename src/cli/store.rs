//! `store`: what a node keeps everything in.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use serde_json::json;

use super::{
    ask::NodeArgs,
    out::{self, of, plain},
    question::Question,
    source::Source,
    store_stats, store_verify,
};

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Which store it is, how much is in it, and how far everything has come.
    Stats(NodeArgs),
    /// Read everything, and look whether it is what was written and fits together. Exits 6 if not.
    Verify(VerifyArgs),
    /// Have a running node write its file anew without its free space, beside its work.
    Compact(NodeArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Pause between two stretches of rows, so that a running node is not slowed down.
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
        StoreCommand::Compact(node) => {
            let done = node.post("/store/compact", &json!({})).await?;
            out::show(node.json, &done, || {
                let bytes = |key: &str| plain(of(&done, key));
                let (before, after) = (bytes("bytes_before"), bytes("bytes_after"));
                format!("the store took up {before} bytes, and takes up {after}")
            });
            Ok(ExitCode::SUCCESS)
        }
    }
}
