//! A new file, filled in the order of its keys: what a backup and a compaction write.

use std::{fs, io, path::Path};

use redb::{Database, StorageBackend as _};

use super::{
    bookkeeping::{self, Bookkeeping},
    builder,
    fault::{Faults, io_error},
    home,
    memtable::Layers,
    open::write_rows,
    snapshot::FileSnapshot,
};
use crate::storage::{checksummed::Checksummed, error::StoreError, medium::Medium};

/// Bytes of an area of the log. The most that is read into memory at an opening, and that is kept
/// there until it is in the tables, is a little more than these.
const AREA: u64 = 8 << 20;

/// Bytes of rows that are written at once.
const AT_ONCE: usize = 8 << 20;

/// Writes a store's file from beginning to end. Nothing of it counts until it is finished.
#[derive(Debug)]
pub struct CopyWriter {
    place: String,
    storage: Checksummed,
    database: Database,
    faults: Faults,
    bookkeeping: Bookkeeping,
    waiting: Vec<(String, Vec<u8>, Option<Vec<u8>>)>,
    waiting_bytes: usize,
}

impl CopyWriter {
    /// Makes the file at `path`, which only its owner may read. One that is there already, left of
    /// an attempt that was cut short, is overwritten.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let place = home::shown(path);
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&place, "replace it", &error));
            }
            Ok(()) | Err(_) => {}
        }
        let file = home::create_file(path)?;
        let storage = super::file_storage(file, path, true)?;
        Self::on(&place, storage, AREA)
    }

    /// Goes on with a file that was finished, as [`finish`](Self::finish) left it. Nobody else has
    /// it open.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is not what was written.
    pub(in crate::storage) fn resume(path: &Path) -> Result<Self, StoreError> {
        let place = home::shown(path);
        let storage = super::file_storage(home::open_file(path, true)?, path, true)?;
        let storage =
            Checksummed::open(storage).map_err(|error| io_error(&place, "open it", &error))?;
        let writer = Self::over(&place, storage, "open it")?;
        let bookkeeping =
            FileSnapshot::of(&writer.database, Layers::default(), writer.faults.clone())?
                .bookkeeping();
        Ok(Self {
            bookkeeping,
            ..writer
        })
    }

    /// As [`create`](Self::create), on empty storage, with so many bytes for each area of the log.
    pub(super) fn on(place: &str, storage: Medium, area: u64) -> Result<Self, StoreError> {
        let storage = Checksummed::create(storage, area)
            .map_err(|error| io_error(place, "create it", &error))?;
        Self::over(place, storage, "create it")
    }

    fn over(
        place: &str,
        storage: Checksummed,
        operation: &'static str,
    ) -> Result<Self, StoreError> {
        let faults = Faults::of(place, Some(storage.clone()));
        let database = faults.guard(operation, || {
            Ok(builder().create_with_backend(storage.clone())?)
        })?;
        Ok(Self {
            place: place.to_owned(),
            storage,
            database,
            faults,
            bookkeeping: Bookkeeping::default(),
            waiting: Vec::new(),
            waiting_bytes: 0,
        })
    }

    /// Adds a row, in the place of one with the same key. Rows come in the order of their tables'
    /// names and their keys; in another order they take more time and room.
    ///
    /// # Errors
    ///
    /// When what was gathered cannot be written. Nothing more can be done with it then.
    pub fn put(&mut self, table: &str, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.change(table, key, Some(value))
    }

    /// Takes a row away that was added, if it was.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn remove(&mut self, table: &str, key: Vec<u8>) -> Result<(), StoreError> {
        self.change(table, key, None)
    }

    fn change(
        &mut self,
        table: &str,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.waiting_bytes += table.len() + key.len() + value.as_ref().map_or(0, Vec::len);
        self.waiting.push((table.to_owned(), key, value));
        if self.waiting_bytes < AT_ONCE {
            return Ok(());
        }
        self.write(false)
    }

    /// Completes it as the state of commit `number`, and returns once it is synced. Renaming it,
    /// and syncing its directory, is the caller's.
    ///
    /// # Errors
    ///
    /// When it cannot be written or synced: it is then to be removed.
    pub fn finish(mut self, number: u64) -> Result<(), StoreError> {
        self.bookkeeping.commit = number;
        self.write(true)?;
        let Self {
            place,
            storage,
            database,
            faults,
            ..
        } = self;
        faults.guard("close it", || Ok(database.close()?))?;
        // The engine's last words, and the length it has trimmed the file to.
        storage
            .sync_data()
            .map_err(|error| io_error(&place, "sync it", &error))
    }

    fn write(&mut self, last: bool) -> Result<(), StoreError> {
        let rows = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let mut bookkeeping = self.bookkeeping;
        let database = &self.database;
        self.faults.guard("write to it", || {
            let mut transaction = database.begin_write()?;
            if last {
                transaction.set_two_phase_commit(true);
                transaction.set_quick_repair(true);
            }
            for rows in rows.chunk_by(|one, next| one.0 == next.0) {
                let name = rows.first().map_or("", |(name, ..)| name);
                let mut rows = rows.iter().map(|(_, key, value)| (key, value));
                write_rows(&transaction, &mut bookkeeping, name, &mut rows)?;
            }
            if last {
                bookkeeping::write(&transaction, bookkeeping)?;
            }
            Ok(transaction.commit()?)
        })?;
        self.bookkeeping = bookkeeping;
        Ok(())
    }
}
