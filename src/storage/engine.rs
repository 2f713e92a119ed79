//! What an engine under the store promises.

use std::{
    fmt,
    ops::Bound,
    path::{Path, PathBuf},
};

use super::{batch::Batch, error::StoreError, scrub::Scrubbed};

/// Keeps tables of ordered byte rows, on a disk, across a network or in memory.
///
/// One thread at a time calls [`open`](Self::open), [`commit`](Self::commit) and
/// [`replace_with`](Self::replace_with): whoever makes or opens the store, and its writer thread from
/// then on. Snapshots are taken and read by other threads meanwhile.
/// Any call may take long, and any may fail. Nothing here assumes a local file: what only a file
/// needs has an answer for engines that are none.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// Where it is, for people: a file's path, a cluster's prefix.
    fn place(&self) -> String;

    /// The most that one commit and one change may take. What exceeds it is refused before it is
    /// queued.
    fn limits(&self) -> Limits;

    /// Opens what is kept, or closes it and opens it again. Nothing that an earlier opening holds
    /// in memory is used, nor what a commit that failed left in a cache without its being durable;
    /// snapshots of an earlier opening may fail from now on. Creates nothing. Returns the number of
    /// the last commit that is there.
    ///
    /// # Errors
    ///
    /// When there is nothing, or what there is cannot be read whole. Nothing is lost by asking
    /// again.
    fn open(&self) -> Result<u64, StoreError>;

    /// Makes the changes of all batches durable, in order, all or none, as commit `number`, which
    /// is one more than the last one's, before it returns.
    ///
    /// # Errors
    ///
    /// When it is not known to have happened. The store calls nothing but [`open`](Self::open) then.
    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError>;

    /// Everything that is committed, as of now.
    ///
    /// # Errors
    ///
    /// When it is closed, or cannot be read.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError>;

    /// Begins to bring what was committed lately to where it stays, beside commits: the next opening
    /// has less to read, and [`usage`](Self::usage) says what compaction would give back. Called now
    /// and then. Nothing needs to be done for an engine that has no such thing.
    fn checkpoint(&self) {}

    /// What it takes up.
    ///
    /// # Errors
    ///
    /// When that cannot be found out.
    fn usage(&self) -> Result<Usage, StoreError>;

    /// Where a copy of it is written that is to take its place, on the same disk. `None` for an
    /// engine that gives free space back by itself.
    fn copy_place(&self) -> Option<PathBuf> {
        None
    }

    /// Lets go of what it has open, which is not what it should be. It is opened again later.
    fn close(&self) {}

    /// Takes the finished copy of its last commit at `copy` in its own place, and goes on with
    /// that. Earlier snapshots may fail from now on.
    ///
    /// # Errors
    ///
    /// When nothing has changed, or when it is to be opened again: nothing is lost either way.
    fn replace_with(&self, copy: &Path) -> Result<(), StoreError> {
        let _ = copy;
        Err(StoreError::Closed {
            place: self.place(),
        })
    }

    /// Reads `count` blocks from block `from` on, beside commits. `None` for an engine that looks
    /// after its disks itself.
    ///
    /// # Errors
    ///
    /// When it is closed, or the disk fails. What is not what was written is no error but found.
    fn scrub(&self, from: u64, count: u64) -> Result<Option<Scrubbed>, StoreError> {
        let _ = (from, count);
        Ok(None)
    }
}

/// A consistent view of one commit's state. Short-lived: what is removed meanwhile takes up space
/// until it is dropped.
pub trait Snapshot: Send {
    /// The number of the commit that it shows.
    fn commit(&self) -> u64;

    /// A row's value.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not what was written.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Rows in the order of their keys. A table that was never written to has none.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    fn scan(&self, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError>;

    /// The names of the tables that have rows, in order, each with the number of its rows.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError>;
}

/// A row: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Which rows of a table are read, and how many.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// Where it begins.
    pub from: Bound<&'a [u8]>,
    /// Where it ends.
    pub to: Bound<&'a [u8]>,
    /// Rows at most.
    pub limit: usize,
    /// Bytes of keys and values after which no further row is read. One row is always read.
    pub bytes: usize,
    /// From the last row to the first.
    pub backwards: bool,
}

impl<'a> Scan<'a> {
    /// Takes rows, in the order in which they are to be, until there are as many as it may have.
    pub(super) fn collect<E>(
        &self,
        rows: impl Iterator<Item = Result<Row, E>>,
    ) -> Result<Vec<Row>, E> {
        let (mut taken, mut bytes) = (Vec::new(), 0_usize);
        for row in rows.take(self.limit) {
            let row = row?;
            bytes = bytes.saturating_add(row.0.len() + row.1.len());
            taken.push(row);
            if bytes >= self.bytes {
                break;
            }
        }
        Ok(taken)
    }

    /// The first `limit` rows.
    #[must_use]
    pub const fn first(limit: usize) -> Self {
        Self {
            from: Bound::Unbounded,
            to: Bound::Unbounded,
            limit,
            bytes: usize::MAX,
            backwards: false,
        }
    }

    /// The last `limit` rows, the last one first.
    #[must_use]
    pub const fn last(limit: usize) -> Self {
        Self {
            backwards: true,
            ..Self::first(limit)
        }
    }

    /// As this, but only rows after `key`.
    #[must_use]
    pub const fn after(self, key: &'a [u8]) -> Self {
        Self {
            from: Bound::Excluded(key),
            ..self
        }
    }

    /// As this, but no further row once these have so many bytes.
    #[must_use]
    pub const fn within(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    /// As this, but only rows before `key`.
    #[must_use]
    pub const fn before(self, key: &'a [u8]) -> Self {
        Self {
            to: Bound::Excluded(key),
            ..self
        }
    }

    /// As this, but only rows from `key` on.
    #[must_use]
    pub const fn from(self, key: &'a [u8]) -> Self {
        Self {
            from: Bound::Included(key),
            ..self
        }
    }
}

/// The most that an engine takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one batch, as [`Batch::bytes`] counts them.
    pub batch_bytes: usize,
    /// Bytes of one value.
    pub value_bytes: usize,
    /// Bytes of one key.
    pub key_bytes: usize,
}

/// What an engine takes up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that it takes up where it is kept.
    pub bytes: u64,
    /// Of these, bytes that hold nothing and that compaction would give back.
    pub free_bytes: u64,
    /// Bytes that are left to it on its disk or under its quota.
    pub available_bytes: Option<u64>,
}
