//! `dead-letters`: messages of governance that could not be used.

use std::{process::ExitCode, time::UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bitcoin::hex::DisplayHex as _;
use clap::{Args, Subcommand};
use governance_stream::record::DeadLetter;
use serde_json::{Value, json};

use super::{ask::NodeArgs, out};

#[derive(Debug, Args)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// Hands a dead letter of a running node to its subscriber again.
    Requeue(LetterArgs),
    /// Removes a dead letter of a running node for good.
    Discard(LetterArgs),
}

#[derive(Debug, Args)]
struct LetterArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Its number.
    number: u64,
    /// It was looked at, and this is meant.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(args: DeadLettersArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        DeadLettersCommand::Requeue(letter) => act(&letter, "requeue").await?,
        DeadLettersCommand::Discard(letter) => act(&letter, "discard").await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn act(args: &LetterArgs, what: &str) -> anyhow::Result<()> {
    let number = args.number;
    if !args.yes {
        let letters = args.node.get("/dead-letters").await?;
        let letters = letters.as_array().cloned().unwrap_or_default();
        let is = |letter: &&Value| letter.get("number").and_then(Value::as_u64) == Some(number);
        let letter = letters.iter().find(is);
        let letter = letter.with_context(|| format!("there is no dead letter {number}"))?;
        bail!("this is about {letter}. If that is what you mean to {what}, repeat with --yes");
    }
    let path = format!("/dead-letters/{number}/{what}");
    let answer = args.node.post(&path, &json!({})).await?;
    out::show(args.node.json, &answer, || match what {
        "requeue" => format!("dead letter {number} is handled"),
        _ => format!("dead letter {number} is gone"),
    });
    Ok(())
}

/// A dead letter as JSON.
pub(super) fn shown_letter(number: u64, letter: &DeadLetter) -> Value {
    let since = letter.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "number": number,
        "lane": letter.lane,
        "sequence": letter.sequence,
        "message_id": letter.message_id.to_string(),
        "kind": letter.kind,
        "payload": letter.payload.to_lower_hex_string(),
        "reason": letter.reason,
        "at_unix_ms": u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    })
}
