//! `journal`: what a node that is down has kept, and what to do about dead letters.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode, time::UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bitcoin::hex::DisplayHex as _;
use clap::{Args, Subcommand};
use governance_stream::{
    DiskJournal, JournalError,
    journal::Row,
    message::{Lane, RequestId},
    record::{DeadLetter, Entry},
    retained::{RequestRecord, Retained, Standing},
};
use serde_json::{Value, json};

use super::{ask::NodeArgs, out};

#[derive(Debug, Args)]
pub(super) struct JournalArgs {
    #[command(subcommand)]
    command: JournalCommand,
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// Every request that is open or whose outcome is kept.
    List(DirArgs),
    /// One request, with its message.
    Show {
        #[command(flatten)]
        dir: DirArgs,
        /// The request.
        request_id: RequestId,
    },
    /// How much is kept, and how far each lane has come.
    Stats(DirArgs),
    /// Messages of governance that could not be used.
    DeadLetters(DirArgs),
    /// Every row, one JSON object a line.
    Export(DirArgs),
    /// Hands a dead letter of a running node to its subscriber again.
    Requeue(LetterArgs),
    /// Removes a dead letter of a running node for good.
    Discard(LetterArgs),
}

#[derive(Debug, Args)]
struct DirArgs {
    /// The data directory of a node that is down; nothing in it is changed.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct LetterArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Its number, as `journal dead-letters` shows it.
    number: u64,
    /// It was looked at, and this is meant.
    #[arg(long)]
    yes: bool,
}

impl DirArgs {
    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        DiskJournal::inspect(&self.dir).map_err(|error| match error {
            held @ JournalError::Held { .. } => anyhow::anyhow!(
                "{held}. To look at a running node, ask it: `governance-stream status --data-dir {}`",
                self.dir.display()
            ),
            error => error.into(),
        })
    }

    fn retained(&self) -> anyhow::Result<Retained> {
        Ok(Retained::from_rows(self.rows()?))
    }
}

pub(super) async fn run(args: JournalArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        JournalCommand::List(dir) => list(&dir)?,
        JournalCommand::Show { dir, request_id } => show(&dir, &request_id)?,
        JournalCommand::Stats(dir) => stats(&dir)?,
        JournalCommand::DeadLetters(dir) => dead_letters(&dir)?,
        JournalCommand::Export(dir) => {
            for row in dir.rows()? {
                out::line(&shown_row(&row).to_string());
            }
        }
        JournalCommand::Requeue(letter) => act(&letter, "requeue").await?,
        JournalCommand::Discard(letter) => act(&letter, "discard").await?,
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

fn list(dir: &DirArgs) -> anyhow::Result<()> {
    let retained = dir.retained()?;
    let mut requests: Vec<&RequestRecord> = retained
        .requests()
        .filter(|record| record.standing != Standing::Forgotten)
        .collect();
    requests.sort_unstable_by_key(|record| record.number);
    if dir.json {
        let requests: Vec<Value> = requests.into_iter().map(shown_request).collect();
        out::line(&Value::Array(requests).to_string());
        return Ok(());
    }
    for record in requests {
        out::line(&format!(
            "{:>8}  {:<40}  {}",
            record.number,
            record.request.request_id,
            in_words(&record.standing)
        ));
    }
    Ok(())
}

fn show(dir: &DirArgs, request_id: &RequestId) -> anyhow::Result<()> {
    let retained = dir.retained()?;
    let record = retained
        .request(request_id)
        .with_context(|| format!("request {request_id} was never accepted here"))?;
    let signing = &retained.lanes.get(Lane::Signing).entries;
    let message = signing.get(&record.request.sequence);
    // Once it is settled its place may be another message's.
    let message = message.filter(|_| record.is_open()).map(shown_entry);
    let mut shown = shown_request(record);
    if let Some(object) = shown.as_object_mut() {
        object.insert("message".to_owned(), message.unwrap_or_default());
    }
    out::line(&if dir.json {
        shown.to_string()
    } else {
        serde_json::to_string_pretty(&shown)?
    });
    Ok(())
}

fn stats(dir: &DirArgs) -> anyhow::Result<()> {
    let retained = dir.retained()?;
    let (open, parked) = retained.open_and_parked();
    let mut standings: BTreeMap<String, u64> = BTreeMap::new();
    for record in retained.requests() {
        let name = match &record.standing {
            Standing::Open { .. } => "open".to_owned(),
            Standing::Settled { outcome, .. } => outcome.name().to_owned(),
            Standing::Forgotten => "forgotten".to_owned(),
        };
        *standings.entry(name).or_default() += 1;
    }
    let identity = retained.identity;
    let lanes: Vec<Value> = retained
        .lanes
        .iter()
        .map(|(lane, kept)| {
            json!({
                "lane": lane,
                "messages": kept.entries.len(),
                "unacknowledged": kept.unacknowledged(),
                "used": kept.used,
                "bytes": kept.bytes,
                "next": kept.counters.next_new,
                "sent_through": kept.counters.sent_through,
                "handled_through": kept.counters.handled_through,
            })
        })
        .collect();
    let size = fs::metadata(dir.dir.join("journal.redb")).map_or(0, |metadata| metadata.len());
    let shown = json!({
        "outbox_id": identity.outbox_id.to_string(),
        "epoch": identity.epoch,
        "ledger_id": identity.ledger_id.map(|id| id.to_string()),
        "ledgers_adopted": identity.adoptions,
        "reconciling": identity.reconciling,
        "requests": standings,
        "open_requests": open,
        "parked_requests": parked,
        "open_pegins": retained.open_pegins(),
        "dead_letters": retained.dead_letters.len(),
        "file_bytes": size,
        "lanes": lanes,
    });
    out::line(&if dir.json {
        shown.to_string()
    } else {
        serde_json::to_string_pretty(&shown)?
    });
    Ok(())
}

fn dead_letters(dir: &DirArgs) -> anyhow::Result<()> {
    let retained = dir.retained()?;
    let letters = retained.dead_letters.iter();
    if dir.json {
        let letters = letters.map(|(number, letter)| shown_letter(*number, letter));
        out::line(&Value::Array(letters.collect()).to_string());
        return Ok(());
    }
    for (number, letter) in letters {
        out::line(&format!(
            "{number:>8}  {} {}  {} bytes  {}",
            letter.lane,
            letter.sequence,
            letter.payload.len(),
            letter.reason
        ));
    }
    Ok(())
}

fn unix_ms(time: std::time::SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn in_words(standing: &Standing) -> String {
    match standing {
        Standing::Open {
            parked: Some(reason),
            ..
        } => format!("needs an operator: {reason}"),
        Standing::Open {
            cancel: Some(_), ..
        } => "open, to be cancelled".to_owned(),
        Standing::Open { .. } => "open".to_owned(),
        Standing::Settled { outcome, .. } => outcome.to_string(),
        Standing::Forgotten => "forgotten".to_owned(),
    }
}

fn shown_request(record: &RequestRecord) -> Value {
    let request = &record.request;
    json!({
        "number": record.number,
        "request_id": request.request_id,
        "payload_hash": request.payload_hash.to_lower_hex_string(),
        "tx_type": request.tx_type.name(),
        "sequence": request.sequence,
        "burns": request.burns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "spends": request.spends.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "accepted_unix_ms": unix_ms(request.accepted_at),
        "deadline_unix_ms": unix_ms(request.deadline),
        "standing": in_words(&record.standing),
        "open": record.is_open(),
        "outcome": match &record.standing {
            Standing::Settled { outcome, .. } => Some(outcome.name()),
            Standing::Open { .. } | Standing::Forgotten => None,
        },
    })
}

fn shown_entry(entry: &Entry) -> Value {
    json!({
        "lane": entry.lane,
        "sequence": entry.sequence,
        "message_id": entry.message_id.to_string(),
        "kind": entry.kind.as_str_name(),
        "payload": entry.payload.to_lower_hex_string(),
        "accepted_unix_ms": unix_ms(entry.accepted_at),
    })
}

/// A dead letter as JSON.
pub(super) fn shown_letter(number: u64, letter: &DeadLetter) -> Value {
    json!({
        "number": number,
        "lane": letter.lane,
        "sequence": letter.sequence,
        "message_id": letter.message_id.to_string(),
        "kind": letter.kind,
        "payload": letter.payload.to_lower_hex_string(),
        "reason": letter.reason,
        "at_unix_ms": unix_ms(letter.at),
    })
}

fn shown_row(row: &Row) -> Value {
    match row {
        Row::Identity(identity) => json!({ "identity": {
            "outbox_id": identity.outbox_id.to_string(),
            "epoch": identity.epoch,
            "ledger_id": identity.ledger_id.map(|id| id.to_string()),
            "adoptions": identity.adoptions,
            "reconciling": identity.reconciling,
        }}),
        Row::Lane(lane, counters) => json!({ "lane": {
            "lane": lane,
            "next_new": counters.next_new,
            "first_unacknowledged": counters.first_unacknowledged,
            "sent_through": counters.sent_through,
            "handled_through": counters.handled_through,
        }}),
        Row::Entry { entry, .. } => json!({ "message": entry.as_ref().map(shown_entry) }),
        Row::Request { request, .. } => json!({ "request": shown_request(request) }),
        Row::Pegin { settled, .. } => json!({ "pegin": settled.map(|(outpoint, at)| json!({
            "outpoint": outpoint.to_string(),
            "answered_unix_ms": unix_ms(at),
        }))}),
        Row::DeadLetter { number, letter } => json!({
            "dead_letter": letter.as_ref().map(|letter| shown_letter(*number, letter)),
        }),
    }
}
