//! What can be asked of a store, and the answers: the same from a running node and from a file.

use governance_stream::{
    history::{History, Page},
    message::RequestId,
    storage::{Snapshot, StoreError, StoreIdentity, Usage},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{dead_letters, export, pegins, requests, store_stats};

/// A question. Each is answered from one view of the store, and none takes long.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub(super) enum Question {
    /// What store it is, and how much is in it.
    Stats,
    /// Whether a stretch of the rows fits.
    Audit { from: Option<String> },
    /// Requests, newest first.
    Requests { which: requests::Which, part: Part },
    /// The life of one.
    Request { request_id: RequestId },
    /// Peg-in notices, newest first.
    Pegins { which: pegins::Which, part: Part },
    /// Messages of governance that could not be used, newest first.
    DeadLetters { part: Part },
    /// One of them, whole.
    DeadLetter { number: u64 },
    /// A stretch of everything.
    Export { from: Option<String> },
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, clap::Args)]
pub(super) struct Part {
    /// So many at most; it is said when there are more.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub limit: u16,
    /// Only what is older than this number, to go on where a list ended.
    #[arg(long, value_name = "NUMBER")]
    pub before: Option<u64>,
}

impl Part {
    pub(super) fn limit(self) -> usize {
        usize::from(self.limit)
    }

    /// One row more than is wanted shows whether there are more.
    pub(super) fn page(self) -> Page {
        Page {
            before: self.before,
            limit: self.limit() + 1,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    NotThere(String),
    #[error("{0}")]
    Invalid(String),
}

/// What is asked.
pub(super) struct Shelf<'a> {
    pub snapshot: &'a dyn Snapshot,
    pub place: &'a str,
    pub identity: &'a StoreIdentity,
    pub usage: Usage,
}

impl Shelf<'_> {
    pub(super) fn history(&self) -> History<'_> {
        History::of(self.snapshot, self.place, self.identity.hash_key())
    }
}

impl Question {
    pub(super) fn answer(&self, shelf: &Shelf<'_>) -> Result<Value, NoAnswer> {
        let history = shelf.history();
        match self {
            Self::Stats => Ok(store_stats::answer(shelf)?),
            Self::Audit { from } => {
                let audited = history.audit(cursor(from.as_deref())?)?;
                let faults: Vec<String> = audited.faults.iter().map(ToString::to_string).collect();
                let next = audited.next.map(|next| next.to_string());
                Ok(json!({ "rows": audited.rows, "faults": faults, "next": next }))
            }
            Self::Requests { which, part } => Ok(requests::list(history, *which, *part)?),
            Self::Request { request_id } => requests::life(history, request_id),
            Self::Pegins { which, part } => Ok(pegins::list(shelf, *which, *part)?),
            Self::DeadLetters { part } => Ok(dead_letters::list(history, *part)?),
            Self::DeadLetter { number } => dead_letters::one(history, *number),
            Self::Export { from } => {
                let (rows, next) = history.export(cursor(from.as_deref())?)?;
                let rows: Vec<Value> = rows.iter().map(export::row).collect();
                let next = next.map(|next| next.to_string());
                Ok(json!({ "rows": rows, "next": next }))
            }
        }
    }
}

fn cursor<T: std::str::FromStr<Err = String>>(text: Option<&str>) -> Result<Option<T>, NoAnswer> {
    text.map(str::parse).transpose().map_err(NoAnswer::Invalid)
}
