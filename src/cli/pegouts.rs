//! `pegouts`: what there are, and whether they go on.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use governance_stream::message::RequestId;
use serde_json::{Value, json};

use super::{ask::NodeArgs, failure::Unconfirmed, out, pegout::shown};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct PegoutsArgs {
    #[command(subcommand)]
    command: Option<PegoutsCommand>,
    #[command(flatten)]
    node: NodeArgs,
    /// At most so many, the newest first.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// Only older ones than a list before, which says where the next one begins.
    #[arg(long, value_name = "NUMBER")]
    before: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum PegoutsCommand {
    /// One of them.
    Show {
        #[command(flatten)]
        node: NodeArgs,
        /// Its request's id.
        #[arg(value_name = "ID")]
        request_id: RequestId,
    },
    /// Stop them: nothing is asked for and nothing is broadcast until `pegouts resume`. What comes
    /// meanwhile is recorded, and waits. It survives a restart.
    Pause(SureArgs),
    /// Go on, with all that waits.
    Resume(SureArgs),
}

#[derive(Debug, Args)]
struct SureArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// It is meant.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: PegoutsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        None => {
            let before = args.before.map(|number| format!("&before={number}"));
            let (limit, before) = (args.limit, before.unwrap_or_default());
            let path = format!("/pegouts?limit={limit}{before}");
            let listed = args.node.get(&path).await?;
            out::show(args.node.json, &listed, || table(&listed));
        }
        Some(PegoutsCommand::Show { node, request_id }) => {
            let pegout = node.get(&format!("/pegouts/{request_id}")).await?;
            out::show(node.json, &pegout, || shown(&pegout));
        }
        Some(PegoutsCommand::Pause(args)) => set(args, "/pause-pegouts", "pause").await?,
        Some(PegoutsCommand::Resume(args)) => set(args, "/resume-pegouts", "resume").await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(args: SureArgs, path: &str, what: &str) -> anyhow::Result<()> {
    if !args.yes {
        let listed = args.node.get("/pegouts?limit=1").await?;
        let open = listed.get("open").and_then(Value::as_u64);
        let (open, standing) = (open.unwrap_or_default(), standing(&listed));
        let unconfirmed = format!(
            "{standing}, and {open} have not come to their end. To {what} them, repeat with --yes"
        );
        return Err(Unconfirmed(unconfirmed).into());
    }
    let answer = args.node.post(path, &json!({})).await?;
    out::show(args.node.json, &answer, || standing(&answer));
    Ok(())
}

/// Whether they go on, for people.
fn standing(answer: &Value) -> String {
    match answer.get("paused_by").and_then(Value::as_str) {
        Some(by) => format!("peg-outs are paused by {by}"),
        None => "peg-outs go on".to_owned(),
    }
}

fn pegouts(listed: &Value) -> impl Iterator<Item = &Value> {
    let pegouts = listed.get("pegouts").and_then(Value::as_array);
    pegouts.into_iter().flatten()
}

fn table(listed: &Value) -> String {
    let lines = pegouts(listed).map(shown);
    let mut lines: Vec<String> = lines.collect();
    if lines.is_empty() {
        lines.push("there are no peg-outs".to_owned());
    }
    if listed.get("paused_by").is_some_and(Value::is_string) {
        lines.insert(0, standing(listed));
    }
    if let Some(next) = listed.get("next").and_then(Value::as_u64) {
        lines.push(format!("older ones: --before {next}"));
    }
    lines.join("\n")
}
