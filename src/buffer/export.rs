//! Everything of the stream, row by row.

use std::time::SystemTime;

use bitcoin::OutPoint;

use super::{
    cursor::Cursor,
    history::History,
    record::{DeadLetter, Entry},
    retained::{Counters, Identity, RequestRecord},
    stored::Stored,
    tables::{
        AnsweredPegin, DEAD_LETTERS, ENTRIES, IDENTITY, LANES, OPEN_REQUESTS, PEGINS, REQUESTS,
        lane_of, number,
    },
};
use crate::{
    message::Lane,
    storage::{Scan, StoreError, Table},
};

/// Tables in the order in which they are exported, and how many of their rows are read at once: a
/// message or a dead letter may be as large as a frame. What is open comes before what is settled:
/// a request that is settled meanwhile comes twice, rather than never.
const TABLES: [(Table, usize); 7] = [
    (IDENTITY, 1),
    (LANES, 16),
    (ENTRIES, 16),
    (OPEN_REQUESTS, 500),
    (REQUESTS, 500),
    (PEGINS, 1000),
    (DEAD_LETTERS, 16),
];

/// A row of the stream. The rows of indexes follow from these.
#[derive(Debug, Clone, PartialEq)]
pub enum Exported {
    /// The stream itself, and its peer.
    Identity(Identity),
    /// How far a lane has come.
    Lane(Lane, Counters),
    /// A message for governance that is not released.
    Message(Entry),
    /// A request, open or settled.
    Request(Box<RequestRecord>),
    /// A peg-in notice that governance has answered.
    Pegin {
        /// Its number, in the order of answers.
        number: u64,
        /// The deposit.
        outpoint: OutPoint,
        /// When the answer came.
        answered_at: SystemTime,
    },
    /// A message of governance that could not be used, and its number.
    DeadLetter(u64, DeadLetter),
}

impl History<'_> {
    /// A stretch of the rows, from the beginning or from where the last one ended, and where to go
    /// on.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn export(
        &self,
        from: Option<Cursor>,
    ) -> Result<(Vec<Exported>, Option<Cursor>), StoreError> {
        let Cursor { part, after } = from.unwrap_or_default();
        let Some((table, limit)) = TABLES.get(part).copied() else {
            return Ok((Vec::new(), None));
        };
        let scan = match &after {
            Some(after) => Scan::first(limit).after(after),
            None => Scan::first(limit),
        };
        let rows = self.rows().snapshot.scan(table.name(), scan)?;
        let next = match rows.last() {
            Some((last, _)) if rows.len() == limit => Some(Cursor {
                part,
                after: Some(last.clone()),
            }),
            _ => Some(Cursor::part(part + 1)).filter(|next| next.part < TABLES.len()),
        };
        let exported = rows.iter().map(|(key, row)| {
            let read = exported(table, key, row);
            read.map_err(|reason| self.rows().damaged(format!("{}: {reason}", table.name())))
        });
        Ok((exported.collect::<Result<_, _>>()?, next))
    }
}

fn exported(table: Table, key: &[u8], row: &[u8]) -> Result<Exported, String> {
    Ok(match table {
        IDENTITY => Exported::Identity(Identity::decode(row)?),
        LANES => Exported::Lane(lane_of(key)?, Counters::decode(row)?),
        ENTRIES => Exported::Message(Entry::decode(row)?),
        PEGINS => {
            let (outpoint, answered_at) = AnsweredPegin::decode(row)?;
            Exported::Pegin {
                number: number(key)?,
                outpoint,
                answered_at,
            }
        }
        DEAD_LETTERS => Exported::DeadLetter(number(key)?, DeadLetter::decode(row)?),
        _ => Exported::Request(Box::new(RequestRecord::decode(row)?)),
    })
}
