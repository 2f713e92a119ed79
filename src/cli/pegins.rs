//! `pegins`: deposits that governance was told of, and what it said.

use std::{process::ExitCode, time::UNIX_EPOCH};

use clap::{Args, Subcommand};
use governance_stream::{
    bridge::find_pegin,
    history::{Page, PeginNotice},
    message::PeginStatus,
    storage::StoreError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    failure::CommandLine,
    out::{self, items, of, plain, time, unix_ms},
    question::{List, Part, Question, Shelf},
    source::Source,
};

#[derive(Debug, Args)]
pub(super) struct PeginsArgs {
    #[command(subcommand)]
    command: PeginsCommand,
}

#[derive(Debug, Subcommand)]
enum PeginsCommand {
    /// Deposits, newest first: those without an answer, then those with one.
    List(ListArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// With `--before`, one of `--open` and `--answered` says which numbers are meant.
    #[command(flatten)]
    part: Part,
    /// Those without an answer only.
    #[arg(long, conflicts_with = "answered")]
    open: bool,
    /// Those with an answer only.
    #[arg(long)]
    answered: bool,
}

/// Which deposits are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Which {
    All,
    Open,
    Answered,
}

pub(super) async fn run(args: PeginsArgs) -> anyhow::Result<ExitCode> {
    let PeginsCommand::List(list) = args.command;
    let which = match (list.open, list.answered) {
        (true, _) => Which::Open,
        (_, true) => Which::Answered,
        _ if list.part.before.is_some() => {
            let apart = "--before: open and answered deposits are numbered apart; add --open or \
                         --answered";
            return Err(CommandLine(apart.to_owned()).into());
        }
        _ => Which::All,
    };
    let part = list.part;
    let question = Question::Pegins { which, part };
    let answer = Source::find(&list.node).await?.ask(&question).await?;
    out::show(list.node.json, &answer, || table(&answer));
    Ok(ExitCode::SUCCESS)
}

/// The answer to [`Question::Pegins`].
pub(super) fn list(shelf: &Shelf<'_>, which: Which, part: Part) -> Result<Value, StoreError> {
    let history = shelf.history();
    let next = |mut notices: Vec<PeginNotice>| {
        let more = notices.len() > part.limit();
        notices.truncate(part.limit());
        let next = notices.last().filter(|_| more).map(|last| last.number);
        (notices, next)
    };
    let by = |read: &dyn Fn(Page) -> _| {
        let list = List {
            read,
            number: |notice: &PeginNotice| notice.number,
            at: |notice| {
                notice
                    .accepted_at
                    .or(notice.answered_at)
                    .unwrap_or(UNIX_EPOCH)
            },
        };
        part.of(&list, |_| true)
    };
    let (mut notices, next_open) = match which {
        Which::Answered => (Vec::new(), None),
        Which::All | Which::Open => next(by(&|page| history.open_pegins(page))?),
    };
    let (answered, next_answered) = match which {
        Which::Open => (Vec::new(), None),
        Which::All | Which::Answered => next(by(&|page| history.answered_pegins(page))?),
    };
    notices.extend(answered);
    // A node whose bridge is another one has nothing there.
    let mut pegins = Vec::new();
    for notice in &notices {
        pegins.push(shown(
            notice,
            find_pegin(shelf.snapshot, &notice.outpoint)?.as_ref(),
        ));
    }
    Ok(json!({
        "pegins": pegins,
        "more": next_open.is_some() || next_answered.is_some(),
        "next_before": { "open": next_open, "answered": next_answered },
    }))
}

fn shown(notice: &PeginNotice, status: Option<&PeginStatus>) -> Value {
    let is_open = notice.answered_at.is_none();
    let (status, reason) = match status {
        Some(PeginStatus::Recorded) => (Some("recorded"), None),
        Some(PeginStatus::Refused { reason }) => (Some("refused"), Some(reason)),
        None => (None, None),
    };
    json!({
        "number": notice.number,
        "outpoint": notice.outpoint.to_string(),
        "standing": if is_open { "open" } else { "answered" },
        "accepted_unix_ms": notice.accepted_at.map(unix_ms),
        "answered_unix_ms": notice.answered_at.map(unix_ms),
        "status": status,
        "reason": reason,
    })
}

fn table(answer: &Value) -> String {
    let row = |pegin: &Value| {
        let is_open = *of(pegin, "standing") == "open";
        let at = if is_open {
            "accepted_unix_ms"
        } else {
            "answered_unix_ms"
        };
        let mut standing = plain(of(pegin, "standing"));
        for key in ["status", "reason"] {
            if !of(pegin, key).is_null() {
                standing = format!("{standing}: {}", plain(of(pegin, key)));
            }
        }
        format!(
            "{:>8}  {}  {}  {standing}",
            plain(of(pegin, "number")),
            time(of(pegin, at)),
            plain(of(pegin, "outpoint")),
        )
    };
    let mut lines: Vec<String> = items(answer, "pegins").map(row).collect();
    if lines.is_empty() {
        lines.push("there are no such deposits".to_owned());
    }
    for which in ["open", "answered"] {
        let next = of(of(answer, "next_before"), which);
        lines.extend(out::more(next, &format!("--{which} ")));
    }
    lines.join("\n")
}
