//! The embedded engine: one redb file of checksummed blocks, with a log, in a directory of its own.
//!
//! A commit is written to the log and synced, and its rows stay in memory, over the tables. When an
//! area of the log is full they go into the tables, in one durable commit of redb's, while later
//! commits go to the other area. An opening reads what the tables lack from the log.

mod bookkeeping;
mod copy;
mod fault;
mod home;
mod log;
mod logged;
mod memtable;
mod open;
mod snapshot;
mod verify;

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use redb::{Database, StorageBackend};

use self::{
    bookkeeping::Bookkeeping,
    fault::{Faults, damaged, io_error},
    home::Home,
    logged::Position,
    open::Open,
};
use super::{
    batch::Batch,
    checksummed::Checksummed,
    engine::{Engine, Limits, Snapshot, Usage},
    error::StoreError,
    medium::Medium,
    scrub::{Scrubbed, Verified},
};

pub use copy::CopyWriter;
pub(super) use home::{UNIMPORTANT, available};
pub use verify::{ReadOnlyFile, verify_file, verify_stopped};

/// Pages that the engine may keep in memory.
const CACHE_BYTES: usize = 32 << 20;
/// Bytes of an area of the log in storage that is no file: tests fill it.
const SMALL_AREA: u64 = 64 << 10;
const EMPTY: &str = "the file is empty; what it held is lost";

/// Keeps rows in a file: they survive `kill -9` and the loss of power. A commit returns once it is
/// in the file's log, synced to the disk.
///
/// The directory belongs to one process at a time, for as long as this value lives. There is no
/// orderly end: a stop leaves what a crash leaves, so that there is one way to open.
pub struct RedbEngine {
    place: String,
    disk: Disk,
    /// How commits are made: as they should be, but for tests that show what it is for.
    discipline: Discipline,
    open: RwLock<Option<Arc<Open>>>,
    /// Where the log goes on; held while a commit is made.
    position: Mutex<Position>,
    /// Whether the last opening ended with a failure.
    has_failed: AtomicBool,
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

impl Drop for RedbEngine {
    fn drop(&mut self) {
        // Before the directory is another one's.
        self.close();
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
            position: Mutex::default(),
            has_failed: AtomicBool::default(),
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
        let database = builder()
            .create_with_backend(Medium::other(storage))
            .expect("made");
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
        CopyWriter::on(place, Medium::other(storage), SMALL_AREA)?.finish(0)
    }

    /// Closes the store, puts the file at `path`, a finished copy of its last commit on the same
    /// disk, in its place, and opens that. Called while nobody commits.
    ///
    /// # Errors
    ///
    /// [`StoreError::WentBack`] when the copy is of another commit; nothing has changed then. As
    /// [`Engine::open`] otherwise.
    pub fn replace_with(&self, path: &Path) -> Result<u64, StoreError> {
        let mut position = self.position();
        let Disk::Directory(home) = &self.disk else {
            return Err(self.closed());
        };
        let confirmed = self.opened()?.commit_number();
        let found = ReadOnlyFile::open(path)?.snapshot()?.commit();
        if found != confirmed {
            return Err(StoreError::WentBack {
                place: home::shown(path),
                confirmed,
                found,
            });
        }
        self.close();
        home.put(path)?;
        self.open_file(&mut position)
    }

    /// Reads `count` blocks from block `from` on, beside commits: rot is found before it is read.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`] when it is not open.
    pub fn scrub(&self, from: u64, count: u64) -> Result<Scrubbed, StoreError> {
        let open = self.opened()?;
        let storage = open.storage.as_ref().ok_or_else(|| self.closed())?;
        let scrubbed = storage.scrub(from, count);
        let mut scrubbed = scrubbed.map_err(|error| io_error(&self.place, "read it", &error))?;
        if from == 0
            && let Some(reason) = open.scrub_log()
        {
            scrubbed.suspects.insert(0, (0, reason));
        }
        Ok(scrubbed)
    }

    /// Reads every block, and has the engine check everything that it can reach. No commit is made
    /// meanwhile. `progress` is called with the blocks read and all blocks.
    ///
    /// # Errors
    ///
    /// When it cannot be told. What is damaged is in the result.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified, StoreError> {
        let _none = self.position();
        if let Ok(open) = self.opened() {
            open.wait_for_checkpoint()?;
        }
        verify::verify(&self.place, self.storage(false)?, progress)
    }

    fn position(&self) -> MutexGuard<'_, Position> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> StoreError {
        StoreError::Closed {
            place: self.place.clone(),
        }
    }

    fn close(&self) {
        // Not held while it is revoked, which may wait for a disk.
        let closed = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            open.take()
        };
        if let Some(open) = closed {
            // Whoever takes a snapshot just now may hold it for longer.
            open.revoke();
        }
    }

    /// That the path still leads to the file that is open, whole: what is written to one that was
    /// removed or replaced is gone with this process, however often it was synced.
    fn check_in_place(&self, open: &Open) -> Result<(), StoreError> {
        let (Disk::Directory(home), Some(file)) = (&self.disk, open.file) else {
            return Ok(());
        };
        let look = || {
            let found = home.look()?;
            let length = open.storage.as_ref().map(Checksummed::file_length);
            let length = length.filter(|length| found.length < *length);
            Ok((found, length))
        };
        let (found, cut_off) = match (look()?, &open.storage) {
            // It may be becoming longer or shorter just now.
            ((_, Some(_)), Some(storage)) => storage.undisturbed(look)?,
            (found, _) => found,
        };
        if found.id != file {
            return Err(StoreError::Io {
                place: self.place.clone(),
                operation: "go on",
                reason: "another file has taken its place".to_owned(),
                advice: "it is opened again, and refused unless it is the same store at the same commit",
            });
        }
        match cut_off {
            Some(length) => Err(damaged(
                &self.place,
                format!("it has {} bytes of {length}: it was cut off", found.length),
            )),
            None => Ok(()),
        }
    }

    fn opened(&self) -> Result<Arc<Open>, StoreError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.clone().ok_or_else(|| self.closed())
    }

    fn storage(&self, write: bool) -> Result<Medium, StoreError> {
        match &self.disk {
            Disk::Directory(home) => {
                home.check()?;
                let path = home.file();
                file_storage(home::open_file(&path, write)?, &path, write)
            }
            Disk::Other(make) => make()
                .map(Medium::other)
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => StoreError::Absent {
                        place: self.place.clone(),
                    },
                    _ => io_error(&self.place, "open it", &error),
                }),
        }
    }

    fn open_file(&self, position: &mut Position) -> Result<u64, StoreError> {
        self.close();
        let failed = |error| io_error(&self.place, "open it", &error);
        // Before it is opened: if another one takes its place in between, that shows at a commit.
        let file = match &self.disk {
            Disk::Directory(home) => {
                // The file may have been put in place by a rename whose sync failed.
                home.sync()?;
                Some(home.look()?.id)
            }
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
            Discipline::Plain => (None, Box::new(storage)),
        };
        if backend.len().map_err(failed)? == 0 {
            return Err(damaged(&self.place, EMPTY));
        }
        let faults = Faults::of(&self.place, checksummed.clone());
        let database = faults.guard("open it", || {
            Ok(builder().create_with_backend(Medium::other(backend))?)
        })?;
        let (open, found) = Open::over(&self.place, self.discipline, database, checksummed, file)?;
        *position = found;
        if self.has_failed.load(Ordering::SeqCst) {
            // The disk shows that it takes writes again before anyone is told that the store is
            // open: the log alone may have room left on a disk that is full.
            *position = open.checkpoint_all().inspect_err(|_| open.revoke())?;
            self.has_failed.store(false, Ordering::SeqCst);
        }
        let commit = open.commit_number();
        let mut current = self.open.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(open);
        Ok(commit)
    }
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
        let mut position = self.position();
        self.open_file(&mut position)
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        let mut position = self.position();
        let open = self.opened()?;
        let last = open.commit_number();
        let committed = if last.checked_add(1) == Some(number) {
            // After it is synced as well: what went into a file that was replaced meanwhile is no
            // commit of the store that is found at the next opening.
            self.check_in_place(&open)
                .and_then(|()| open.commit(*position, number, batches))
                .and_then(|next| self.check_in_place(&open).map(|()| next))
        } else {
            Err(damaged(
                &self.place,
                format!("commit {number} was to follow commit {last}"),
            ))
        };
        match committed {
            Ok(next) => {
                *position = next;
                Ok(())
            }
            Err(error) => {
                self.has_failed.store(true, Ordering::SeqCst);
                self.close();
                Err(error)
            }
        }
    }

    fn checkpoint(&self) {
        let Ok(mut position) = self.position.try_lock() else {
            return;
        };
        if let Ok(open) = self.opened()
            && let Ok(Some(next)) = open.begin_checkpoint(*position)
        {
            *position = next;
        }
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        Ok(Box::new(self.opened()?.snapshot()?))
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        let open = self.opened()?;
        self.check_in_place(&open)?;
        let available = match &self.disk {
            Disk::Directory(home) => home.available(),
            Disk::Other(_) => None,
        };
        let snapshot = open.snapshot()?;
        match &open.storage {
            Some(storage) => Ok(usage(storage, snapshot.bookkeeping(), available)),
            None => Ok(Usage::default()),
        }
    }
}

/// What a file takes up. What is free is estimated: what the file has beyond its rows, four fifths
/// full, as a copy in the order of the keys leaves them.
fn usage(file: &Checksummed, bookkeeping: Bookkeeping, available_bytes: Option<u64>) -> Usage {
    let rows = bookkeeping.bytes + ROW_OVERHEAD * bookkeeping.rows;
    let bytes = file.file_length();
    let needed = rows + rows / 4 + file.overhead() + LEAST;
    Usage {
        bytes,
        free_bytes: bytes.saturating_sub(needed),
        available_bytes,
    }
}

/// Bytes that the engine adds to a row.
const ROW_OVERHEAD: u64 = 8;
/// Bytes of a file without rows.
const LEAST: u64 = 1 << 20;

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// A file that is open already, as storage.
fn file_storage(file: File, path: &Path, write: bool) -> Result<Medium, StoreError> {
    let faults = Faults::of(&home::shown(path), None);
    faults.guard("open it", || Medium::file(file, path, write))
}

#[cfg(test)]
#[cfg(unix)]
#[path = "embedded_tests.rs"]
mod tests;
