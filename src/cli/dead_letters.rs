//! `dead-letters`: messages of governance that could not be used.

use std::process::ExitCode;

use bitcoin::hex::DisplayHex as _;
use clap::{Args, Subcommand};
use governance_stream::{history::History, record::DeadLetter, storage::StoreError};
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    failure::Unconfirmed,
    out::{self, items, of, plain, time, unix_ms},
    question::{List, NoAnswer, Part, Question},
    source::Source,
};

#[derive(Debug, Args)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// All of them, newest first.
    List {
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        part: Part,
    },
    /// One of them, with its bytes.
    Show {
        #[command(flatten)]
        node: NodeArgs,
        /// Its number.
        number: u64,
    },
    /// Have a running node hand it to its subscriber again.
    Requeue(LetterArgs),
    /// Have a running node remove it for good.
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
        DeadLettersCommand::List { node, part } => {
            let question = Question::DeadLetters { part };
            let answer = Source::find(&node).await?.ask(&question).await?;
            out::show(node.json, &answer, || table(&answer));
        }
        DeadLettersCommand::Show { node, number } => {
            let question = Question::DeadLetter { number };
            let answer = Source::find(&node).await?.ask(&question).await?;
            out::show(node.json, &answer, || whole(&answer));
        }
        DeadLettersCommand::Requeue(letter) => act(&letter, "requeue").await?,
        DeadLettersCommand::Discard(letter) => act(&letter, "discard").await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn act(args: &LetterArgs, what: &str) -> anyhow::Result<()> {
    let number = args.number;
    if !args.yes {
        let question = Question::DeadLetter { number };
        let letter = Source::find(&args.node).await?.ask(&question).await?;
        let unconfirmed = format!(
            "this is about {}. If that is what you mean to {what}, repeat with --yes",
            line(&letter).trim_start()
        );
        return Err(Unconfirmed(unconfirmed).into());
    }
    let path = format!("/dead-letters/{number}/{what}");
    let answer = args.node.post(&path, &json!({})).await?;
    out::show(args.node.json, &answer, || match what {
        "requeue" => format!("dead letter {number} is handled"),
        _ => format!("dead letter {number} is gone"),
    });
    Ok(())
}

/// The answer to [`Question::DeadLetters`].
pub(super) fn list(history: History<'_>, part: Part) -> Result<Value, StoreError> {
    let list = List {
        read: &|page| history.dead_letters(page),
        number: |(number, _)| *number,
        at: |(_, letter)| letter.at,
    };
    let mut letters = part.of(&list, |_| true)?;
    let more = letters.len() > part.limit();
    letters.truncate(part.limit());
    let next = letters.last().filter(|_| more).map(|(number, _)| *number);
    let letters = letters
        .iter()
        .map(|(number, letter)| short(*number, letter));
    let letters: Vec<Value> = letters.collect();
    Ok(json!({ "dead_letters": letters, "more": more, "next_before": next }))
}

/// The answer to [`Question::DeadLetter`].
pub(super) fn one(history: History<'_>, number: u64) -> Result<Value, NoAnswer> {
    let letter = history.dead_letter(number)?;
    let letter =
        letter.ok_or_else(|| NoAnswer::NotThere(format!("there is no dead letter {number}")))?;
    Ok(shown(number, &letter))
}

fn short(number: u64, letter: &DeadLetter) -> Value {
    json!({
        "number": number,
        "lane": letter.lane,
        "sequence": letter.sequence,
        "message_id": letter.message_id.to_string(),
        "occurrence_id": letter.occurrence_id.map(|id| id.to_string()),
        "kind": letter.kind,
        "payload_bytes": letter.payload.len(),
        "reason": letter.reason,
        "at_unix_ms": unix_ms(letter.at),
    })
}

/// A dead letter as JSON, with its bytes.
pub(super) fn shown(number: u64, letter: &DeadLetter) -> Value {
    let mut shown = short(number, letter);
    if let Some(shown) = shown.as_object_mut() {
        let payload = letter.payload.to_lower_hex_string();
        shown.insert("payload".to_owned(), payload.into());
    }
    shown
}

fn line(letter: &Value) -> String {
    format!(
        "{:>8}  {}  {} {}  {} bytes  {}",
        plain(of(letter, "number")),
        time(of(letter, "at_unix_ms")),
        plain(of(letter, "lane")),
        plain(of(letter, "sequence")),
        plain(of(letter, "payload_bytes")),
        plain(of(letter, "reason")),
    )
}

fn table(answer: &Value) -> String {
    let mut lines: Vec<String> = items(answer, "dead_letters").map(line).collect();
    if lines.is_empty() {
        lines.push("there are no dead letters".to_owned());
    }
    lines.extend(out::more(of(answer, "next_before"), ""));
    lines.join("\n")
}

fn whole(letter: &Value) -> String {
    let of = |key: &str| plain(of(letter, key));
    [
        format!("number      {}", of("number")),
        format!("came        {}", time(out::of(letter, "at_unix_ms"))),
        format!("lane        {}, sequence {}", of("lane"), of("sequence")),
        format!("message     {}, kind {}", of("message_id"), of("kind")),
        format!("reason      {}", of("reason")),
        format!("payload     {}", of("payload")),
    ]
    .join("\n")
}
