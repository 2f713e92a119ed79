//! `federation`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    ask::NodeArgs,
    out::{self, items, of, plain, time},
};

#[derive(Debug, Args)]
pub(super) struct FederationArgs {
    #[command(subcommand)]
    command: FederationCommand,
}

#[derive(Debug, Subcommand)]
enum FederationCommand {
    /// The federation that signs, those before it that are still good, and those to come.
    Show(NodeArgs),
    /// Every version there was, and what happened to it.
    History(NodeArgs),
    /// The versions that are scheduled, and when they become active.
    Pending(NodeArgs),
}

pub(super) async fn run(args: FederationArgs) -> anyhow::Result<ExitCode> {
    let (node, path, words): (_, _, fn(&Value) -> Vec<String>) = match args.command {
        FederationCommand::Show(node) => (node, "/federation", shown),
        FederationCommand::History(node) => (node, "/federation/history", past),
        FederationCommand::Pending(node) => (node, "/federation/pending", pending),
    };
    let answer = node.get(path).await?;
    out::show(node.json, &answer, || words(&answer).join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn shown(answer: &Value) -> Vec<String> {
    let active = of(answer, "active");
    let mut lines = vec![
        format!("height      {}", plain(of(answer, "height"))),
        format!("active      {}", signers(active)),
        format!("address     {}", plain(of(active, "address"))),
        format!("descriptor  {}", plain(of(active, "descriptor"))),
        format!("digest      {}", plain(of(active, "digest"))),
    ];
    lines.extend(items(answer, "retiring").map(|version| {
        let until = plain(of(version, "good_below_height"));
        format!(
            "retiring    {}, still good below height {until}",
            signers(version)
        )
    }));
    lines.extend(pending(answer).into_iter().skip(1));
    let refusal = of(answer, "last_refusal");
    if !refusal.is_null() {
        lines.push(format!(
            "refused     version {} at {}: {}",
            plain(of(refusal, "version")),
            time(of(refusal, "at_unix_ms")),
            plain(of(refusal, "reason")),
        ));
    }
    lines
}

fn pending(answer: &Value) -> Vec<String> {
    let height = of(answer, "height");
    let mut lines = vec![format!("height      {}", plain(height))];
    lines.extend(items(answer, "scheduled").map(|version| {
        let activation = of(version, "activation_height")
            .as_u64()
            .unwrap_or_default();
        let left = activation.saturating_sub(height.as_u64().unwrap_or_default());
        format!(
            "scheduled   {}, active at height {activation}, in {left} blocks, with the address {}",
            signers(version),
            plain(of(version, "address")),
        )
    }));
    if lines.len() == 1 {
        lines.push("scheduled   nothing".to_owned());
    }
    lines
}

fn past(answer: &Value) -> Vec<String> {
    let mut lines = vec![format!("height      {}", plain(of(answer, "height")))];
    lines.extend(items(answer, "versions").map(|version| {
        format!(
            "{:<12}{}, from height {}, {}",
            plain(of(version, "standing")),
            signers(version),
            plain(of(version, "activation_height")),
            plain(of(version, "digest")),
        )
    }));
    lines.extend(items(answer, "events").map(event));
    lines
}

fn event(event: &Value) -> String {
    let of = |key: &str| plain(of(event, key));
    let what = match of("event").as_str() {
        "scheduled" => format!(
            "version {} for height {}",
            of("version"),
            of("activation_height")
        ),
        "updated" => format!(
            "from version {} to {}, with the address {}",
            of("old_version"),
            of("new_version"),
            of("new_address")
        ),
        "undone" => format!(
            "version {}, so that {} signs again, with the address {}",
            of("undone_version"),
            of("active_version"),
            of("active_address")
        ),
        _ => format!("version {}", of("version")),
    };
    format!(
        "event       {} at height {}: {} {what}",
        of("number"),
        of("height"),
        of("event")
    )
}

/// A version and who signs for it.
fn signers(version: &Value) -> String {
    let active =
        items(version, "members").filter(|member| *of(member, "active") == Value::Bool(true));
    let names: Vec<String> = active.map(|member| plain(of(member, "id"))).collect();
    let paused = if *of(version, "paused") == Value::Bool(true) {
        ", paused"
    } else {
        ""
    };
    format!(
        "version {}, {} of {} ({}){paused}",
        plain(of(version, "version")),
        plain(of(version, "threshold")),
        names.len(),
        names.join(", "),
    )
}
