//! What a user hands in to be committed.

use std::borrow::Cow;

/// A table: ordered rows of bytes under a name. A user writes only tables that begin with its own
/// name and a slash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table(&'static str);

impl Table {
    /// The table of this name, for example `bridge/pegouts`.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// One row put or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The table's name.
    pub table: Cow<'static, str>,
    /// The row's key; not empty.
    pub key: Vec<u8>,
    /// Its new value; removed when `None`.
    pub value: Option<Vec<u8>>,
}

/// Changes that are committed together or not at all. Of two changes of one row the later one
/// counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<Change>,
    bytes: usize,
}

impl Batch {
    /// A batch without changes. Committing it still takes its turn.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a row, in the place of one with the same key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.push(Change {
            table: Cow::Borrowed(table.0),
            key: key.into(),
            value: Some(value.into()),
        });
    }

    /// Removes a row. One that is not there is no fault.
    pub fn remove(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.push(Change {
            table: Cow::Borrowed(table.0),
            key: key.into(),
            value: None,
        });
    }

    /// Adds a change.
    pub fn push(&mut self, change: Change) {
        let value = change.value.as_ref().map_or(0, Vec::len);
        self.bytes += change.table.len() + change.key.len() + value;
        self.changes.push(change);
    }

    /// The changes, in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of its tables' names, keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
