//! `export`: everything of the stream, one JSON object a line.

use std::process::ExitCode;

use clap::Args;
use governance_stream::history::{Counters, Exported, Identity};
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    dead_letters,
    out::{self, items, of, unix_ms},
    question::Question,
    requests,
    source::Source,
};

/// The first line says which store it is, the last one how many rows came: an export without a last
/// line was cut short. A running node is read stretch by stretch, while it goes on: a request that
/// is settled meanwhile comes twice, open and settled.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let source = Source::find(&args.node).await?;
    let stats = source.ask(&Question::Stats).await?;
    out::line(&json!({ "export": stats }).to_string());
    let (mut from, mut rows): (Option<String>, u64) = (None, 0);
    loop {
        let stretch = source.ask(&Question::Export { from }).await?;
        for row in items(&stretch, "rows") {
            out::line(&row.to_string());
            rows += 1;
        }
        from = of(&stretch, "next").as_str().map(str::to_owned);
        if from.is_none() {
            break;
        }
    }
    out::line(&json!({ "end": { "rows": rows } }).to_string());
    Ok(ExitCode::SUCCESS)
}

/// A row, under the name of what it is.
pub(super) fn row(row: &Exported) -> Value {
    match row {
        Exported::Identity(known) => json!({ "identity": identity(known) }),
        Exported::Lane(lane, counters) => {
            let mut shown = lane_counters(counters);
            if let Some(shown) = shown.as_object_mut() {
                shown.insert("lane".to_owned(), json!(lane));
            }
            json!({ "lane": shown })
        }
        Exported::Message(entry) => json!({ "message": requests::entry(entry) }),
        Exported::Request(record) => json!({ "request": requests::whole(record) }),
        Exported::Pegin {
            number,
            outpoint,
            answered_at,
        } => json!({ "pegin": {
            "number": number,
            "outpoint": outpoint.to_string(),
            "answered_unix_ms": unix_ms(*answered_at),
        }}),
        Exported::DeadLetter(number, letter) => {
            json!({ "dead_letter": dead_letters::shown(*number, letter) })
        }
    }
}

/// What a stream knows of itself and of its peer.
pub(super) fn identity(known: &Identity) -> Value {
    json!({
        "outbox_id": known.outbox_id.to_string(),
        "epoch": known.epoch,
        "ledger_id": known.ledger_id.map(|id| id.to_string()),
        "ledgers_adopted": known.adoptions,
        "reconciling": known.reconciling,
    })
}

/// How far a lane has come.
pub(super) fn lane_counters(counters: &Counters) -> Value {
    json!({
        "next": counters.next_new,
        "first_unacknowledged": counters.first_unacknowledged,
        "sent_through": counters.sent_through,
        "handled_through": counters.handled_through,
    })
}
