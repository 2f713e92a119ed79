//! The engine's own row: the number of the last commit, and what its rows amount to.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

/// The engine's own table. Users' tables have a slash in their names.
pub(super) const TABLE: &str = "engine";
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(TABLE);
const KEY: &[u8] = b"commit";

/// What the engine writes in each commit, with the users' rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bookkeeping {
    /// The commit's number.
    pub(super) commit: u64,
    /// Rows in all tables.
    pub(super) rows: u64,
    /// Bytes of their keys and values.
    pub(super) bytes: u64,
}

impl Bookkeeping {
    /// Counts a row that took the place of `old`.
    pub(super) fn count(&mut self, key: &[u8], old: Option<usize>, new: Option<usize>) {
        let size = |value: Option<usize>| value.map_or(0, |value| (key.len() + value) as u64);
        let rows = |value: Option<usize>| u64::from(value.is_some());
        self.bytes = (self.bytes + size(new)).saturating_sub(size(old));
        self.rows = (self.rows + rows(new)).saturating_sub(rows(old));
    }

    fn encode(self) -> Vec<u8> {
        [self.commit, self.rows, self.bytes]
            .map(u64::to_le_bytes)
            .concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut numbers = bytes.chunks_exact(8).map(|number| {
            let number = number.try_into().unwrap_or_default();
            u64::from_le_bytes(number)
        });
        let (Some(commit), Some(rows), Some(bytes), None) = (
            numbers.next(),
            numbers.next(),
            numbers.next(),
            numbers.next(),
        ) else {
            return None;
        };
        Some(Self {
            commit,
            rows,
            bytes,
        })
    }
}

/// What the last commit wrote.
pub(super) fn read(transaction: &ReadTransaction) -> Result<Bookkeeping, redb::Error> {
    read_from(&transaction.open_table(ROWS)?)
}

/// As [`read`], of what is about to be written over.
pub(super) fn before(transaction: &WriteTransaction) -> Result<Bookkeeping, redb::Error> {
    read_from(&transaction.open_table(ROWS)?)
}

fn read_from(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
) -> Result<Bookkeeping, redb::Error> {
    let row = table.get(KEY)?;
    row.and_then(|row| Bookkeeping::decode(row.value()))
        .ok_or_else(|| redb::Error::Corrupted("it has no commit number".to_owned()))
}

/// Writes it.
pub(super) fn write(
    transaction: &WriteTransaction,
    bookkeeping: Bookkeeping,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(ROWS)?;
    table.insert(KEY, bookkeeping.encode().as_slice())?;
    Ok(())
}
