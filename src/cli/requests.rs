//! `requests`: what was asked to be signed, and what came of it.

use std::process::ExitCode;

use bitcoin::hex::DisplayHex as _;
use clap::{Args, Subcommand};
use governance_stream::{
    history::{History, Page, RequestRecord, Standing},
    message::RequestId,
    record::Entry,
    storage::StoreError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    out::{self, items, of, plain, time, unix_ms},
    question::{List, NoAnswer, Part, Question},
    source::Source,
};

#[derive(Debug, Args)]
pub(super) struct RequestsArgs {
    #[command(subcommand)]
    command: RequestsCommand,
}

#[derive(Debug, Subcommand)]
enum RequestsCommand {
    /// Requests, newest first, each with how it stands.
    List(ListArgs),
    /// The whole life of one.
    Show {
        #[command(flatten)]
        node: NodeArgs,
        /// The request.
        #[arg(value_name = "ID")]
        request_id: RequestId,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    part: Part,
    /// Those without an outcome only.
    #[arg(long, group = "which")]
    open: bool,
    /// Those with an outcome only.
    #[arg(long, group = "which")]
    settled: bool,
    /// Those that wait for an operator only.
    #[arg(long, group = "which")]
    parked: bool,
}

/// Which requests are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Which {
    All,
    Open,
    Settled,
    Parked,
}

pub(super) async fn run(args: RequestsArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        RequestsCommand::List(list) => {
            let which = match (list.open, list.settled, list.parked) {
                (true, ..) => Which::Open,
                (_, true, _) => Which::Settled,
                (.., true) => Which::Parked,
                _ => Which::All,
            };
            let part = list.part;
            let question = Question::Requests { which, part };
            let answer = Source::find(&list.node).await?.ask(&question).await?;
            out::show(list.node.json, &answer, || table(&answer));
        }
        RequestsCommand::Show { node, request_id } => {
            let question = Question::Request { request_id };
            let answer = Source::find(&node).await?.ask(&question).await?;
            out::show(node.json, &answer, || in_words(&answer));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The answer to [`Question::Requests`].
pub(super) fn list(history: History<'_>, which: Which, part: Part) -> Result<Value, StoreError> {
    let by = |read: &dyn Fn(Page) -> _, wanted: fn(&RequestRecord) -> bool| {
        let list = List {
            read,
            number: |record: &RequestRecord| record.number,
            at: |record| record.request.accepted_at,
        };
        part.of(&list, wanted)
    };
    let open = |page| history.open_requests(page);
    let settled = |page| history.settled_requests(page);
    let mut requests = match which {
        Which::Open => by(&open, |_| true)?,
        Which::Settled => by(&settled, |_| true)?,
        Which::Parked => by(&open, |record| record.parked().is_some())?,
        Which::All => {
            let mut both = by(&open, |_| true)?;
            both.extend(by(&settled, |_| true)?);
            both.sort_unstable_by_key(|record| std::cmp::Reverse(record.number));
            both
        }
    };
    let more = requests.len() > part.limit();
    requests.truncate(part.limit());
    let next = requests.last().filter(|_| more).map(|last| last.number);
    let requests: Vec<Value> = requests.iter().map(short).collect();
    Ok(json!({ "requests": requests, "more": more, "next_before": next }))
}

/// The answer to [`Question::Request`].
pub(super) fn life(history: History<'_>, request_id: &RequestId) -> Result<Value, NoAnswer> {
    let unknown = || NoAnswer::NotThere(format!("request {request_id} was never accepted here"));
    let record = history.request(request_id)?.ok_or_else(unknown)?;
    let message = history.message_of(&record)?;
    let mut shown = whole(&record);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("message".to_owned(), message.as_ref().map(entry).into());
    }
    Ok(shown)
}

fn short(record: &RequestRecord) -> Value {
    let request = &record.request;
    let (outcome, settled) = match &record.standing {
        Standing::Settled { outcome, at } => (Some(outcome.name()), Some(unix_ms(*at))),
        Standing::Open { .. } => (None, None),
    };
    json!({
        "number": record.number,
        "request_id": request.request_id,
        "tx_type": request.tx_type.name(),
        "accepted_unix_ms": unix_ms(request.accepted_at),
        "deadline_unix_ms": unix_ms(request.deadline),
        "standing": standing(record),
        "outcome": outcome,
        "settled_unix_ms": settled,
        "text": text(&record.standing),
    })
}

fn standing(record: &RequestRecord) -> &'static str {
    if !record.is_open() {
        "settled"
    } else if record.parked().is_some() {
        "parked"
    } else {
        "open"
    }
}

fn text(standing: &Standing) -> String {
    match standing {
        Standing::Open {
            parked: Some(reason),
            ..
        } => format!("needs an operator: {reason}"),
        Standing::Open {
            cancel: Some(cancel),
            ..
        } => format!("open, to be cancelled ({:?})", cancel.reason).to_lowercase(),
        Standing::Open { progress, .. } => match progress.signers {
            Some((collected, required)) => format!("open, {collected} of {required} have signed"),
            None => "open".to_owned(),
        },
        Standing::Settled { outcome, .. } => outcome.to_string(),
    }
}

/// A request with everything that is known of it.
pub(super) fn whole(record: &RequestRecord) -> Value {
    let request = &record.request;
    let spends: Vec<String> = request.spends.iter().map(ToString::to_string).collect();
    let burns: Vec<String> = request.burns.iter().map(ToString::to_string).collect();
    let mut shown = short(record);
    if let Some(shown) = shown.as_object_mut() {
        let signers = match &record.standing {
            Standing::Open { progress, .. } => progress.signers,
            Standing::Settled { .. } => None,
        };
        let signers = signers.map(|(collected, required)| json!([collected, required]));
        for (key, value) in [
            (
                "payload_hash",
                request.payload_hash.to_lower_hex_string().into(),
            ),
            ("sequence", request.sequence.into()),
            ("signers", signers.into()),
            ("sent_to_an_earlier_ledger", record.sent_before.into()),
            ("burns", burns.into()),
            ("spends", spends.into()),
        ] {
            shown.insert(key.to_owned(), value);
        }
    }
    shown
}

/// A message for governance.
pub(super) fn entry(entry: &Entry) -> Value {
    json!({
        "lane": entry.lane,
        "sequence": entry.sequence,
        "message_id": entry.message_id.to_string(),
        "kind": entry.kind.as_str_name(),
        "accepted_unix_ms": unix_ms(entry.accepted_at),
        "payload": entry.payload.to_lower_hex_string(),
    })
}

fn table(answer: &Value) -> String {
    let row = |request: &Value| {
        format!(
            "{:>8}  {}  {:<40}  {}",
            plain(of(request, "number")),
            time(of(request, "accepted_unix_ms")),
            plain(of(request, "request_id")),
            plain(of(request, "text")),
        )
    };
    let mut lines: Vec<String> = items(answer, "requests").map(row).collect();
    if lines.is_empty() {
        lines.push("there are no such requests".to_owned());
    }
    lines.extend(out::more(of(answer, "next_before"), ""));
    lines.join("\n")
}

fn in_words(answer: &Value) -> String {
    let of = |key: &str| of(answer, key);
    let mut lines = vec![
        format!(
            "request     {}, number {}",
            plain(of("request_id")),
            plain(of("number"))
        ),
        format!("for         {}", plain(of("tx_type"))),
        format!("accepted    {}", time(of("accepted_unix_ms"))),
        format!("deadline    {}", time(of("deadline_unix_ms"))),
        format!("standing    {}", plain(of("text"))),
        format!("settled     {}", time(of("settled_unix_ms"))),
        format!("payload     {}", plain(of("payload_hash"))),
    ];
    let message = of("message");
    if !message.is_null() {
        lines.push(format!(
            "message     {} in lane {}, sequence {}",
            plain(out::of(message, "message_id")),
            plain(out::of(message, "lane")),
            plain(out::of(message, "sequence")),
        ));
    }
    lines.extend(items(answer, "burns").map(|burn| format!("burn        {}", plain(burn))));
    lines.extend(items(answer, "spends").map(|coin| format!("spends      {}", plain(coin))));
    lines.join("\n")
}
