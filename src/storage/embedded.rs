//! The embedded engine: one redb file of checksummed blocks in a directory of its own.

mod bookkeeping;
mod copy;
mod fault;
mod home;
mod snapshot;
mod verify;

use std::{
    fmt,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use redb::{Database, StorageBackend, TableDefinition, backends::FileBackend};

use self::{
    bookkeeping::Bookkeeping,
    fault::{Faults, damaged, io_error},
    home::{FileId, Home},
    snapshot::FileSnapshot,
};
use super::{
    batch::{Batch, Change},
    checksummed::Checksummed,
    engine::{Engine, Limits, Snapshot, Usage},
    error::StoreError,
    scrub::{Scrubbed, Verified},
};

pub use copy::CopyWriter;
pub use verify::{ReadOnlyFile, verify_file, verify_stopped};

/// Pages that the engine may keep in memory.
const CACHE_BYTES: usize = 32 << 20;
/// What an empty file tells.
const EMPTY: &str = "the file is empty; what it held is lost";

/// Keeps rows in a file: they survive `kill -9` and the loss of power. A commit returns once its
/// rows, and then the header that makes them count, are synced to the disk.
///
/// The directory belongs to one process at a time, for as long as this value lives. There is no
/// orderly end: a stop leaves what a crash leaves, so that there is one way to open.
pub struct RedbEngine {
    place: String,
    disk: Disk,
    /// How commits are made: as they should be, but for tests that show what it is for.
    discipline: Discipline,
    open: RwLock<Option<Arc<Open>>>,
    /// The last commit that is known to be there; held while one is made.
    last: Mutex<Bookkeeping>,
}

enum Disk {
    Directory(Home),
    Other(Box<MakeStorage>),
}

/// Opens storage other than a file.
type MakeStorage = dyn Fn() -> std::io::Result<Box<dyn StorageBackend>> + Send + Sync;

/// What makes a commit durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discipline {
    /// In two phases, on checksummed blocks.
    Full,
    /// In one phase, on the bare file: what the first version did.
    #[cfg(test)]
    Plain,
}

/// One opening of the file.
struct Open {
    /// `None` once it is closed.
    database: Option<Database>,
    storage: Option<Checksummed>,
    faults: Faults,
    /// The file that it is, whatever its path leads to by now.
    file: Option<FileId>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // First, so that the engine's last words never reach a file that is opened again.
        if let Some(storage) = &self.storage {
            storage.revoke();
        }
        let database = self.database.take();
        let closed = catch_unwind(AssertUnwindSafe(|| drop(database)));
        if closed.is_err() {
            tracing::debug!("the engine stumbled while it was closed");
        }
    }
}

impl fmt::Debug for RedbEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbEngine")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl RedbEngine {
    /// Takes a directory, and opens nothing yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Absent`] without the directory, [`StoreError::Held`] while another process has
    /// it, [`StoreError::Permissions`] when others may enter it.
    pub fn at(directory: impl AsRef<Path>) -> Result<Self, StoreError> {
        Ok(Self::in_home(Home::take(directory.as_ref())?))
    }

    /// Makes an empty store, whose last commit is number 0, in a directory that is made if it is
    /// not there. It comes into being whole: half of one is never taken for a store. It is not
    /// opened yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Occupied`] when there is a store, or anything else unless `anything` may be
    /// there; and as [`at`](Self::at).
    pub fn create(directory: impl AsRef<Path>, anything: bool) -> Result<Self, StoreError> {
        Self::create_with(directory.as_ref(), anything, 0, |_| Ok(()))
    }

    /// As [`create`](Self::create), with what `fill` puts there, as the state of commit `last`.
    pub(super) fn create_with(
        directory: &Path,
        anything: bool,
        last: u64,
        fill: impl FnOnce(&mut CopyWriter) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let home = Home::make(directory, anything)?;
        let new = home.new_file();
        let mut writer = CopyWriter::create(&new)?;
        fill(&mut writer)?;
        writer.finish(last)?;
        home.put(&new)?;
        Ok(Self::in_home(home))
    }

    /// Where its file is, or is to be.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        match &self.disk {
            Disk::Directory(home) => home.file(),
            Disk::Other(_) => PathBuf::from(&self.place),
        }
    }

    fn in_home(home: Home) -> Self {
        Self::new(
            home::shown(&home.file()),
            Disk::Directory(home),
            Discipline::Full,
        )
    }

    fn new(place: String, disk: Disk, discipline: Discipline) -> Self {
        Self {
            place,
            disk,
            discipline,
            open: RwLock::default(),
            last: Mutex::default(),
        }
    }

    /// A store in storage of another sort, asked for at each opening: for tests that fail a disk
    /// at will.
    #[doc(hidden)]
    pub fn with_storage(
        place: &str,
        make: impl Fn() -> std::io::Result<Box<dyn StorageBackend>> + Send + Sync + 'static,
    ) -> Self {
        let disk = Disk::Other(Box::new(make));
        Self::new(place.to_owned(), disk, Discipline::Full)
    }

    /// As [`with_storage`](Self::with_storage), with commits in one phase on the bare storage.
    #[cfg(test)]
    pub(super) fn plain(
        place: &str,
        make: impl Fn() -> std::io::Result<Box<dyn StorageBackend>> + Send + Sync + 'static,
    ) -> Self {
        Self::new(
            place.to_owned(),
            Disk::Other(Box::new(make)),
            Discipline::Plain,
        )
    }

    /// Makes an empty store for [`plain`](Self::plain).
    #[cfg(test)]
    pub(super) fn format_plain(storage: Box<dyn StorageBackend>) {
        let database = builder().create_with_backend(Boxed(storage)).expect("made");
        let transaction = database.begin_write().expect("begun");
        bookkeeping::write(&transaction, Bookkeeping::default()).expect("written");
        transaction.commit().expect("committed");
    }

    /// Makes an empty store in empty storage.
    ///
    /// # Errors
    ///
    /// When it cannot be written or synced.
    #[doc(hidden)]
    pub fn format(place: &str, storage: Box<dyn StorageBackend>) -> Result<(), StoreError> {
        CopyWriter::on(place, storage)?.finish(0)
    }

    /// Closes the store, puts the file at `path`, a finished copy of its last commit on the same
    /// disk, in its place, and opens that. Called while nobody commits.
    ///
    /// # Errors
    ///
    /// [`StoreError::WentBack`] when the copy is of another commit; nothing has changed then. As
    /// [`Engine::open`] otherwise.
    pub fn replace_with(&self, path: &Path) -> Result<u64, StoreError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Disk::Directory(home) = &self.disk else {
            return Err(self.closed());
        };
        let found = ReadOnlyFile::open(path)?.snapshot()?.commit();
        if found != last.commit {
            return Err(StoreError::WentBack {
                place: home::shown(path),
                confirmed: last.commit,
                found,
            });
        }
        self.close();
        home.put(path)?;
        self.open_file(&mut last)
    }

    /// Reads `count` blocks from block `from` on, beside commits: rot is found before it is read.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`] when it is not open.
    pub fn scrub(&self, from: u64, count: u64) -> Result<Scrubbed, StoreError> {
        let open = self.opened()?;
        let storage = open.storage.as_ref().ok_or_else(|| self.closed())?;
        storage
            .scrub(from, count)
            .map_err(|error| io_error(&self.place, "read it", &error))
    }

    /// Reads every block, and has the engine check everything that it can reach. No commit is made
    /// meanwhile. `progress` is called with the blocks read and all blocks.
    ///
    /// # Errors
    ///
    /// When it cannot be told. What is damaged is in the result.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified, StoreError> {
        let _none = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        verify::verify(&self.place, self.storage(false)?, progress)
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed {
            place: self.place.clone(),
        }
    }

    fn close(&self) {
        let open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let closed = { open }.take();
        if let Some(storage) = closed.as_ref().and_then(|open| open.storage.as_ref()) {
            // Whoever takes a snapshot just now may hold it for longer.
            storage.revoke();
        }
    }

    /// That the path still leads to the file that is open, whole: what is written to one that was
    /// removed or replaced is gone with this process, however often it was synced.
    fn check_in_place(&self, open: &Open) -> Result<(), StoreError> {
        let (Disk::Directory(home), Some(file)) = (&self.disk, open.file) else {
            return Ok(());
        };
        let found = home.look()?;
        if found.id != file {
            return Err(StoreError::Io {
                place: self.place.clone(),
                operation: "go on",
                reason: "another file has taken its place".to_owned(),
                advice: "it is opened again, and refused unless it is the same store at the same commit",
            });
        }
        match open.storage.as_ref().map(Checksummed::file_length) {
            Some(length) if found.length < length => Err(damaged(
                &self.place,
                format!("it has {} bytes of {length}: it was cut off", found.length),
            )),
            _ => Ok(()),
        }
    }

    fn opened(&self) -> Result<Arc<Open>, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| self.closed())
    }

    fn storage(&self, write: bool) -> Result<Box<dyn StorageBackend>, StoreError> {
        match &self.disk {
            Disk::Directory(home) => {
                home.check()?;
                file_storage(home::open_file(&home.file(), write)?, &self.place)
            }
            Disk::Other(make) => make().map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => StoreError::Absent {
                    place: self.place.clone(),
                },
                _ => io_error(&self.place, "open it", &error),
            }),
        }
    }

    fn open_file(&self, last: &mut Bookkeeping) -> Result<u64, StoreError> {
        self.close();
        let failed = |error| io_error(&self.place, "open it", &error);
        // Before it is opened: if another one takes its place in between, that shows at a commit.
        let file = match &self.disk {
            Disk::Directory(home) => Some(home.look()?.id),
            Disk::Other(_) => None,
        };
        let storage = self.storage(true)?;
        if storage.len().map_err(failed)? == 0 {
            return Err(damaged(&self.place, EMPTY));
        }
        let (checksummed, backend): (_, Box<dyn StorageBackend>) = match self.discipline {
            Discipline::Full => {
                let storage = Checksummed::open(storage).map_err(failed)?;
                (Some(storage.clone()), Box::new(storage))
            }
            #[cfg(test)]
            Discipline::Plain => (None, storage),
        };
        if backend.len().map_err(failed)? == 0 {
            return Err(damaged(&self.place, EMPTY));
        }
        let faults = Faults::of(&self.place, checksummed.clone());
        let database = faults.guard("open it", || {
            Ok(builder().create_with_backend(Boxed(backend))?)
        })?;
        let open = Open {
            database: Some(database),
            storage: checksummed,
            faults,
            file,
        };
        *last = open.snapshot()?.bookkeeping();
        if let Some(damaged) = open.storage.as_ref().map(Checksummed::damaged_copies)
            && damaged > 0
        {
            tracing::warn!(
                file = self.place,
                damaged,
                "copies of the file's preamble or headers were damaged; the preamble's and the last header's were written again from their twins"
            );
        }
        let mut current = self.open.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(Arc::new(open));
        Ok(last.commit)
    }
}

impl Open {
    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::DatabaseClosed)
    }

    fn snapshot(&self) -> Result<FileSnapshot, StoreError> {
        let database = self.faults.guard("read it", || self.database())?;
        FileSnapshot::of(database, self.faults.clone())
    }

    fn commit(
        &self,
        discipline: Discipline,
        mut bookkeeping: Bookkeeping,
        batches: &[Batch],
    ) -> Result<Bookkeeping, redb::Error> {
        let mut transaction = self.database()?.begin_write()?;
        let is_full = discipline == Discipline::Full;
        transaction.set_two_phase_commit(is_full);
        transaction.set_quick_repair(is_full);
        let changes = in_order(batches);
        for changes in changes.chunk_by(|one, next| one.table == next.table) {
            let name = changes.first().map_or("", |change| change.table.as_ref());
            let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(name);
            let mut table = transaction.open_table(definition)?;
            for change in changes {
                let key = change.key.as_slice();
                let old = match &change.value {
                    Some(value) => table.insert(key, value.as_slice())?,
                    None => table.remove(key)?,
                };
                let old = old.map(|old| old.value().len());
                bookkeeping.count(key, old, change.value.as_ref().map(Vec::len));
            }
        }
        bookkeeping::write(&transaction, bookkeeping)?;
        transaction.commit()?;
        Ok(bookkeeping)
    }
}

/// The last change of each row, in the order of tables and keys, in which the engine is fastest.
fn in_order(batches: &[Batch]) -> Vec<&Change> {
    let mut changes: Vec<&Change> = batches.iter().flat_map(Batch::changes).rev().collect();
    // Stable: of one row's changes the last one comes first, and the others go.
    changes.sort_by(|one, other| (&one.table, &one.key).cmp(&(&other.table, &other.key)));
    changes.dedup_by(|one, other| one.table == other.table && one.key == other.key);
    changes
}

impl Engine for RedbEngine {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn copy_place(&self) -> Option<PathBuf> {
        match &self.disk {
            Disk::Directory(home) => Some(home.new_file()),
            Disk::Other(_) => None,
        }
    }

    fn close(&self) {
        Self::close(self);
    }

    fn replace_with(&self, copy: &Path) -> Result<(), StoreError> {
        Self::replace_with(self, copy).map(|_| ())
    }

    fn scrub(&self, from: u64, count: u64) -> Result<Option<Scrubbed>, StoreError> {
        Self::scrub(self, from, count).map(Some)
    }

    fn limits(&self) -> Limits {
        Limits {
            batch_bytes: 64 << 20,
            value_bytes: 16 << 20,
            key_bytes: 4096,
        }
    }

    fn open(&self) -> Result<u64, StoreError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.open_file(&mut last)
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.opened()?;
        let next = Bookkeeping {
            commit: number,
            ..*last
        };
        let committed = if last.commit.checked_add(1) == Some(number) {
            let commit = || open.commit(self.discipline, next, batches);
            // After it is synced as well: what went into a file that was replaced meanwhile is no
            // commit of the store that is found at the next opening.
            self.check_in_place(&open)
                .and_then(|()| open.faults.guard("commit", commit))
                .and_then(|done| self.check_in_place(&open).map(|()| done))
        } else {
            Err(damaged(
                &self.place,
                format!("commit {number} was to follow commit {}", last.commit),
            ))
        };
        match committed {
            Ok(bookkeeping) => {
                *last = bookkeeping;
                Ok(())
            }
            Err(error) => {
                self.close();
                Err(error)
            }
        }
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        Ok(Box::new(self.opened()?.snapshot()?))
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        let open = self.opened()?;
        self.check_in_place(&open)?;
        let bytes = match &open.storage {
            Some(storage) => storage.file_length(),
            None => 0,
        };
        let available = match &self.disk {
            Disk::Directory(home) => home.available(),
            Disk::Other(_) => None,
        };
        Ok(usage(bytes, open.snapshot()?.bookkeeping(), available))
    }
}

/// What a file takes up. What is free is estimated: what the file has beyond its rows, four fifths
/// full, as a copy in the order of the keys leaves them.
fn usage(bytes: u64, bookkeeping: Bookkeeping, available_bytes: Option<u64>) -> Usage {
    let rows = bookkeeping.bytes + ROW_OVERHEAD * bookkeeping.rows;
    Usage {
        bytes,
        free_bytes: bytes.saturating_sub(rows + rows / 4).saturating_sub(LEAST),
        available_bytes,
    }
}

/// Bytes that the engine adds to a row.
const ROW_OVERHEAD: u64 = 8;
/// Bytes of a file without rows.
const LEAST: u64 = 1 << 20;

/// Boxed storage is storage.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> std::io::Result<()> {
        self.0.close()
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn file_storage(file: File, place: &str) -> Result<Box<dyn StorageBackend>, StoreError> {
    let faults = Faults::of(place, None);
    let backend = faults.guard("open it", || Ok(FileBackend::new(file)?))?;
    Ok(Box::new(backend))
}

#[cfg(test)]
#[cfg(unix)]
#[path = "embedded_tests.rs"]
mod tests;
