//! Whether the stream's rows fit each other: what must hold in every commit, whatever happened.
//!
//! Every block may be what was written and the rows still be wrong: a bug, or a hand that changed
//! them. The walk is made in stretches, each on a view of its own, so that a running node can be
//! walked through beside its commits; every rule is about rows of one view.

mod inconsistency;
mod lanes;
mod numbered;

use super::{
    cursor::Cursor,
    history::History,
    retained::Identity,
    stored::Stored,
    tables::{IDENTITY, IDENTITY_KEY, Rows, number},
};
use crate::storage::{Scan, StoreError, Table};

pub use self::inconsistency::Inconsistency;

/// Rows of a stretch.
const STRETCH: usize = 500;
/// Messages read at once: one may be as large as a frame.
const MESSAGES: usize = 32;
/// A row of a table.
type Row = (Vec<u8>, Vec<u8>);

/// The parts of the walk.
const PARTS: usize = 7;

/// What a stretch of the walk found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audited {
    /// Rows that were looked at.
    pub rows: u64,
    /// What does not fit.
    pub faults: Vec<Inconsistency>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

impl History<'_> {
    /// Looks at a stretch of the rows, from the beginning or from where the last one ended.
    ///
    /// # Errors
    ///
    /// When the store cannot be read at all.
    pub fn audit(&self, from: Option<Cursor>) -> Result<Audited, StoreError> {
        let from = from.unwrap_or_default();
        let part = from.part;
        let mut walk = Walk {
            rows: self.rows(),
            after: from.after,
            next: None,
            seen: 0,
            faults: Vec::new(),
        };
        match part {
            0 => walk.lanes()?,
            1 => walk.requests()?,
            2 => walk.request_ids()?,
            3 => walk.burns()?,
            4 => walk.pegins()?,
            5 => walk.outpoints()?,
            _ => walk.dead_letters()?,
        }
        let next = match walk.next {
            Some(after) => Some(Cursor {
                part,
                after: Some(after),
            }),
            None => Some(Cursor::part(part + 1)).filter(|next| next.part < PARTS),
        };
        Ok(Audited {
            rows: walk.seen,
            faults: walk.faults,
            next,
        })
    }
}

/// One stretch.
struct Walk<'a> {
    rows: Rows<'a>,
    after: Option<Vec<u8>>,
    /// The last key of the stretch, unless its part is at its end.
    next: Option<Vec<u8>>,
    seen: u64,
    faults: Vec<Inconsistency>,
}

impl Walk<'_> {
    /// The next rows of a table.
    fn page(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        let rows = self.scan(table, STRETCH)?;
        if rows.len() == STRETCH {
            self.next = rows.last().map(|(key, _)| key.clone());
        }
        self.seen += rows.len() as u64;
        Ok(rows)
    }

    fn scan(&self, table: Table, limit: usize) -> Result<Vec<Row>, StoreError> {
        let scan = match &self.after {
            Some(after) => Scan::first(limit).after(after),
            None => Scan::first(limit),
        };
        self.rows.snapshot.scan(table.name(), scan)
    }

    fn decode<T: Stored>(&mut self, table: Table, key: &[u8], row: &[u8]) -> Option<T> {
        let decoded = T::decode(row);
        decoded
            .map_err(|reason| self.unreadable(table, key, reason))
            .ok()
    }

    fn unreadable(&mut self, table: Table, key: &[u8], reason: String) {
        use bitcoin::hex::DisplayHex as _;
        self.faults.push(Inconsistency::Unreadable {
            table: table.name(),
            key: key.to_lower_hex_string(),
            reason,
        });
    }

    fn number(&mut self, table: Table, key: &[u8]) -> Option<u64> {
        let number = number(key);
        number
            .map_err(|reason| self.unreadable(table, key, reason))
            .ok()
    }

    fn identity(&mut self) -> Result<Option<Identity>, StoreError> {
        let row = self.rows.snapshot.get(IDENTITY.name(), IDENTITY_KEY)?;
        Ok(row.and_then(|row| self.decode(IDENTITY, IDENTITY_KEY, &row)))
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
