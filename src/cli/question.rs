//! What can be asked of a store, and the answers: the same from a running node and from a file.

use std::time::SystemTime;

use governance_stream::{
    history::{History, Page},
    message::RequestId,
    storage::{Snapshot, StoreError, StoreIdentity, Usage},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{dead_letters, export, out::unix_ms, pegins, requests, store_stats};

/// Rows that are read at once, though fewer may be wanted.
const LEAST_PAGE: usize = 100;

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
    /// Only from this time on: RFC 3339, as 2026-11-25T08:00:00Z, or how long ago, as 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<u64>,
    /// Only before this time; as `--since`.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<u64>,
}

/// Milliseconds since 1970 of a point in time, or of one so long ago.
fn moment(text: &str) -> Result<u64, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(unix_ms(time));
    }
    let neither =
        "neither a time, as 2026-11-25T08:00:00Z, nor how long ago it was, as 2h or 3days";
    let ago = humantime::parse_duration(text).map_err(|_| neither.to_owned())?;
    let time = SystemTime::now().checked_sub(ago);
    Ok(time.map_or(0, unix_ms))
}

/// How the rows of a list are read, newest first, and what they are sorted by.
pub(super) struct List<'a, T> {
    pub read: &'a dyn Fn(Page) -> Result<Vec<T>, StoreError>,
    pub number: fn(&T) -> u64,
    pub at: fn(&T) -> SystemTime,
}

impl<T> List<'_, T> {
    fn newest(&self, before: Option<u64>) -> Result<Option<(u64, u64)>, StoreError> {
        let rows = (self.read)(Page { before, limit: 1 })?;
        let row = rows.first();
        Ok(row.map(|row| ((self.number)(row), unix_ms((self.at)(row)))))
    }

    /// The number below which everything is older than `until`, of the rows below `before`. Rows are
    /// numbered as they come: it is bisected, as there may be millions.
    fn end(&self, before: Option<u64>, until: u64) -> Result<Option<u64>, StoreError> {
        let mut high = match self.newest(before)? {
            Some((number, at)) if at >= until => number,
            _ => return Ok(before),
        };
        // What is below `low` is older; `high` is not.
        let mut low = 0;
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.newest(Some(middle))? {
                Some((number, at)) if at >= until => high = number,
                _ => low = middle,
            }
        }
        Ok(Some(high))
    }
}

impl Part {
    pub(super) fn limit(self) -> usize {
        usize::from(self.limit)
    }

    /// The rows of a list that are in this part and `wanted`, newest first; one more than is to be
    /// shown, if there is one. Where a clock was set back, rows of the time in between may be missed.
    pub(super) fn of<T>(
        self,
        list: &List<'_, T>,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<Vec<T>, StoreError> {
        let mut before = match self.until {
            Some(until) => list.end(self.before, until)?,
            None => self.before,
        };
        let limit = self.limit() + 1;
        let mut found = Vec::new();
        loop {
            let page = Page {
                before,
                limit: limit.max(LEAST_PAGE),
            };
            let rows = (list.read)(page)?;
            let Some(last) = rows.last() else {
                return Ok(found);
            };
            before = Some((list.number)(last));
            let at = |row: &T| unix_ms((list.at)(row));
            let is_past = |row: &T| self.since.is_some_and(|since| at(row) < since);
            // A clock that was set back a little takes no row past a whole page of others.
            let is_over = rows.iter().all(is_past);
            let is_before_end = |row: &T| self.until.is_none_or(|until| at(row) < until);
            let in_time = |row: &T| !is_past(row) && is_before_end(row);
            found.extend(rows.into_iter().filter(|row| in_time(row) && wanted(row)));
            if is_over || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_part_of_a_list_is_cut_by_its_times() {
        // Every third number, a second apart.
        let all: Vec<u64> = (1..=1000).map(|row| row * 3).collect();
        let read = |page: Page| {
            let older = |number: &&u64| page.before.is_none_or(|before| **number < before);
            let rows = all.iter().rev().filter(older).take(page.limit);
            Ok(rows.copied().collect())
        };
        let list = List {
            read: &read,
            number: |row| *row,
            at: |row| UNIX_EPOCH + Duration::from_secs(*row / 3),
        };
        let part = |since: Option<u64>, until: Option<u64>, before| Part {
            limit: 10_000,
            before,
            since: since.map(|second| second * 1000),
            until: until.map(|second| second * 1000),
        };
        let cases = [
            (part(None, None, None), 1..=1000),
            (part(Some(900), None, None), 900..=1000),
            (part(None, Some(900), None), 1..=899),
            (part(Some(17), Some(18), None), 17..=17),
            (part(Some(17), Some(900), Some(61)), 17..=20),
            (part(None, Some(5000), None), 1..=1000),
        ];
        for (part, expected) in cases {
            let found = part.of(&list, |_| true).expect("read");
            let expected: Vec<u64> = expected.rev().map(|second| second * 3).collect();
            assert_eq!(found, expected, "{part:?}");
        }
        for (since, until) in [(Some(2000), None), (None, Some(1)), (Some(9), Some(9))] {
            let found = part(since, until, None).of(&list, |_| true).expect("read");
            assert!(found.is_empty());
        }
        let few = Part {
            limit: 5,
            ..part(None, Some(900), None)
        };
        let found = few.of(&list, |row| row.is_multiple_of(2)).expect("read");
        assert_eq!(found, [2694, 2688, 2682, 2676, 2670, 2664], "one more");
    }

    #[test]
    fn a_moment_is_a_time_or_a_while_ago() {
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1000));
        let hour = moment("1h").expect("a while ago");
        let now = unix_ms(SystemTime::now());
        assert!((3_599_000..3_700_000).contains(&(now - hour)));
        moment("yesterday").expect_err("neither");
    }
}
