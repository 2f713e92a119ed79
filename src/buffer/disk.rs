//! The embedded journal engine: one redb file in a directory of its own.

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    StorageBackend, TableDefinition, TableError, backends::InMemoryBackend,
};

use super::{
    journal::{Journal, JournalError, Row},
    stored::{self, Stored as _},
};
use crate::{
    durable::create_whole,
    message::{Lane, wire},
};

/// What this version writes. A version that changes the meaning of a row counts it up.
const FORMAT: u32 = 1;
const FILE: &str = "journal.redb";
const LOCK: &str = "LOCK";
/// Pages that the engine may keep in memory. Rows are read once, at the start.
const CACHE_BYTES: usize = 16 << 20;
/// A file larger than this is compacted once it is nearly empty.
const COMPACT_ABOVE: u64 = 64 << 20;
/// So many messages are nearly none.
const NEARLY_EMPTY: u64 = 1024;

type Bytes = &'static [u8];
const META: TableDefinition<'_, &str, Bytes> = TableDefinition::new("meta");
const LANES: TableDefinition<'_, u8, Bytes> = TableDefinition::new("lanes");
/// Sequential keys: the engine is several times slower with random ones.
const ENTRIES: TableDefinition<'_, (u8, u64), Bytes> = TableDefinition::new("entries");
const REQUESTS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("requests");
const PEGINS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("pegins");
const DEAD_LETTERS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("dead_letters");

const KEY_FORMAT: &str = "format";
const KEY_IDENTITY: &str = "identity";

/// Keeps rows in a file: they survive `kill -9` and the loss of power. A commit returns once its
/// rows are synced to the disk.
///
/// The directory belongs to one process at a time, for as long as this value lives.
pub struct DiskJournal {
    file: PathBuf,
    open: Mutex<Open>,
    /// Held while this value lives; the kernel lets go of it with the process.
    _lock: Option<File>,
    storage: Option<Box<MakeStorage>>,
}

/// Makes storage other than a file.
type MakeStorage = dyn Fn() -> Box<dyn StorageBackend> + Send + Sync;

#[derive(Default)]
struct Open {
    database: Option<Database>,
    /// Size up to which compaction was found to be of no use.
    compacted: u64,
}

impl fmt::Debug for DiskJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskJournal")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl DiskJournal {
    /// Takes the directory, and makes it if it is not there (readable by its owner only). The
    /// journal itself is opened by [`Journal::load`].
    ///
    /// # Errors
    ///
    /// [`JournalError::Held`] while another process has it, [`JournalError::Io`] when it cannot
    /// be made or written.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, JournalError> {
        let directory = directory.as_ref();
        let failed = |operation| {
            let path = directory.to_owned();
            move |error: io::Error| io_error(&path, operation, &error)
        };
        make_private(directory).map_err(failed("make the directory"))?;
        let path = directory.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("write to the directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(directory, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(failed("lock the directory")(error)),
        }
        let id = std::process::id().to_string();
        lock.set_len(0)
            .and_then(|()| lock.write_all(id.as_bytes()))
            .map_err(failed("write to the directory"))?;
        Ok(Self {
            file: directory.join(FILE),
            open: Mutex::default(),
            _lock: Some(lock),
            storage: None,
        })
    }

    /// A journal in storage of another sort, made again at each load: for tests that fail a disk
    /// at will.
    #[doc(hidden)]
    pub fn with_storage<S: StorageBackend>(make: impl Fn() -> S + Send + Sync + 'static) -> Self {
        Self {
            file: PathBuf::from("(other storage)"),
            open: Mutex::default(),
            _lock: None,
            storage: Some(Box::new(move || Box::new(make()))),
        }
    }

    /// Every row of the journal in `directory`, which is neither changed nor waited for.
    ///
    /// # Errors
    ///
    /// [`JournalError::Held`] while a process has it, [`JournalError::Damaged`] when it cannot be
    /// read.
    pub fn inspect(directory: impl AsRef<Path>) -> Result<Vec<Row>, JournalError> {
        let directory = directory.as_ref();
        let path = directory.join(FILE);
        if let Ok(mut lock) = File::open(directory.join(LOCK)) {
            match lock.try_lock_shared() {
                Err(TryLockError::WouldBlock) => return Err(held(directory, &mut lock)),
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
        }
        let bytes = fs::read(&path).map_err(|error| io_error(&path, "read it", &error))?;
        Self::read_copy(&path, &bytes)
    }

    /// The rows of a copy of a journal's file. What a crash left undone is mended in memory.
    pub(super) fn read_copy(path: &Path, bytes: &[u8]) -> Result<Vec<Row>, JournalError> {
        if bytes.is_empty() {
            return Err(damaged(path, "the file is empty"));
        }
        guard(path, || {
            let storage = InMemoryBackend::new();
            storage
                .set_len(bytes.len() as u64)
                .and_then(|()| storage.write(0, bytes))
                .map_err(|error| io_error(path, "copy it", &error))?;
            let database = builder()
                .create_with_backend(storage)
                .map_err(|error| redb_error(path, "open it", error.into()))?;
            read(path, &database)
        })
    }

    fn open_database(&self) -> Result<Database, JournalError> {
        let path = &self.file;
        let failed = |error: DatabaseError| redb_error(path, "open it", error.into());
        if let Some(make) = &self.storage {
            let storage = make();
            let is_new = matches!(storage.len(), Ok(0));
            let database = builder()
                .create_with_backend(Boxed(storage))
                .map_err(failed)?;
            if is_new {
                initialise(path, &database)?;
            }
            return Ok(database);
        }
        let length = match fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.create(),
            Err(error) => return Err(io_error(path, "look at it", &error)),
        };
        if length == 0 {
            return Err(damaged(path, "the file is empty; what it held is lost"));
        }
        builder().open(path).map_err(failed)
    }

    /// A new file comes into being whole: half of one is never taken for a journal.
    fn create(&self) -> Result<Database, JournalError> {
        let path = &self.file;
        create_whole(
            path,
            |error| io_error(path, "create it", &error),
            |new| {
                let database = builder()
                    .create(new)
                    .map_err(|error| redb_error(path, "create it", error.into()))?;
                initialise(path, &database)
            },
        )?;
        builder()
            .open(path)
            .map_err(|error| redb_error(path, "open it", error.into()))
    }

    fn write(&self, database: &Database, rows: &[Row]) -> Result<Written, redb::Error> {
        let mut written = Written::default();
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let mut lanes = transaction.open_table(LANES)?;
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut requests = transaction.open_table(REQUESTS)?;
            let mut pegins = transaction.open_table(PEGINS)?;
            let mut dead_letters = transaction.open_table(DEAD_LETTERS)?;
            for row in rows {
                match row {
                    Row::Identity(identity) => {
                        meta.insert(KEY_IDENTITY, identity.encode().as_slice())?;
                    }
                    Row::Lane(lane, counters) => {
                        lanes.insert(number(*lane), counters.encode().as_slice())?;
                    }
                    Row::Entry {
                        lane,
                        sequence,
                        entry,
                    } => {
                        let key = (number(*lane), *sequence);
                        match entry {
                            Some(entry) => entries.insert(key, entry.encode().as_slice())?,
                            None => {
                                written.removed = true;
                                entries.remove(key)?
                            }
                        };
                    }
                    Row::Request { number, request } => {
                        requests.insert(number, request.encode().as_slice())?;
                    }
                    Row::Pegin { number, settled } => {
                        match settled {
                            Some(settled) => pegins.insert(number, settled.encode().as_slice())?,
                            None => pegins.remove(number)?,
                        };
                    }
                    Row::DeadLetter { number, letter } => {
                        match letter {
                            Some(letter) => {
                                dead_letters.insert(number, letter.encode().as_slice())?
                            }
                            None => dead_letters.remove(number)?,
                        };
                    }
                }
            }
            written.entries = if written.removed { entries.len()? } else { 0 };
        }
        // Durable by default: this syncs, and fails when the sync does.
        transaction.commit()?;
        Ok(written)
    }
}

/// What a commit left behind.
#[derive(Default)]
struct Written {
    removed: bool,
    entries: u64,
}

impl Open {
    /// Gives room back to the disk after a backlog is gone: the engine's file only grows.
    fn compact(&mut self, file: &Path, written: &Written) -> Result<(), redb::CompactionError> {
        let length = fs::metadata(file).map_or(0, |metadata| metadata.len());
        let worth_it = length > COMPACT_ABOVE.max(2 * self.compacted);
        if written.removed && written.entries < NEARLY_EMPTY && worth_it {
            if let Some(database) = &mut self.database {
                while database.compact()? {}
            }
            self.compacted = fs::metadata(file).map_or(length, |metadata| metadata.len());
        }
        Ok(())
    }
}

impl Journal for DiskJournal {
    fn load(&self) -> Result<Vec<Row>, JournalError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Only one handle may have the file.
        open.database = None;
        guard(&self.file, || {
            let database = self.open_database()?;
            let rows = read(&self.file, &database)?;
            open.database = Some(database);
            Ok(rows)
        })
    }

    fn commit(&self, rows: &[Row]) -> Result<(), JournalError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || {
            let error = io::Error::other("it is closed after an earlier failure");
            io_error(&self.file, "commit", &error)
        };
        let database = open.database.take().ok_or_else(closed)?;
        guard(&self.file, || {
            let written = self
                .write(&database, rows)
                .map_err(|error| redb_error(&self.file, "commit", error))?;
            open.database = Some(database);
            if self.storage.is_none() {
                // The rows are durable; a failure here is one of the next commit.
                if let Err(error) = open.compact(&self.file, &written) {
                    tracing::warn!(%error, "the journal's file could not be compacted");
                }
            }
            Ok(())
        })
    }
}

/// Boxed storage is storage.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    builder
}

fn initialise(path: &Path, database: &Database) -> Result<(), JournalError> {
    let write = || {
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert(KEY_FORMAT, FORMAT.to_le_bytes().as_slice())?;
            transaction.open_table(LANES)?;
            transaction.open_table(ENTRIES)?;
            transaction.open_table(REQUESTS)?;
            transaction.open_table(PEGINS)?;
            transaction.open_table(DEAD_LETTERS)?;
        }
        transaction.commit()?;
        Ok(())
    };
    write().map_err(|error: redb::Error| redb_error(path, "create it", error))
}

/// Every row.
fn read(path: &Path, database: &Database) -> Result<Vec<Row>, JournalError> {
    let failed = |error: redb::Error| redb_error(path, "read it", error);
    let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
    let mut rows = Vec::new();
    let meta = transaction.open_table(META).map_err(|error| match error {
        TableError::TableDoesNotExist(_) => damaged(path, "it is another program's file"),
        error => failed(error.into()),
    })?;
    let format = meta.get(KEY_FORMAT).map_err(|e| failed(e.into()))?;
    let format = format.and_then(|value| <[u8; 4]>::try_from(value.value()).ok());
    match format.map(u32::from_le_bytes) {
        Some(FORMAT) => {}
        Some(found) => {
            return Err(JournalError::Format {
                path: path.to_owned(),
                found,
                ours: FORMAT,
                advice: "run the version that wrote it",
            });
        }
        None => return Err(damaged(path, "it has no format number")),
    }
    if let Some(value) = meta.get(KEY_IDENTITY).map_err(|e| failed(e.into()))? {
        let identity = stored::read(path, "identity", value.value())?;
        rows.push(Row::Identity(identity));
    }
    macro_rules! each {
        ($table:ident, $what:literal, |$key:ident, $value:ident| $row:expr) => {
            let table = transaction
                .open_table($table)
                .map_err(|e| failed(e.into()))?;
            for item in table.iter().map_err(|e| failed(e.into()))? {
                let (key, value) = item.map_err(|e| failed(e.into()))?;
                let $key = key.value();
                let $value = stored::read(path, &format!("{} {:?}", $what, $key), value.value())?;
                rows.push($row);
            }
        };
    }
    each!(LANES, "lane", |key, counters| Row::Lane(
        lane(path, key)?,
        counters
    ));
    each!(ENTRIES, "message", |key, entry| {
        let entry: super::record::Entry = entry;
        if (number(entry.lane), entry.sequence) != key {
            return Err(damaged(path, format!("message {key:?} names another key")));
        }
        Row::Entry {
            lane: lane(path, key.0)?,
            sequence: key.1,
            entry: Some(entry),
        }
    });
    each!(REQUESTS, "request", |number, request| Row::Request {
        number,
        request: Box::new(request)
    });
    each!(PEGINS, "peg-in", |number, settled| Row::Pegin {
        number,
        settled: Some(settled)
    });
    each!(DEAD_LETTERS, "dead letter", |number, letter| {
        Row::DeadLetter {
            number,
            letter: Some(letter),
        }
    });
    Ok(rows)
}

fn number(lane: Lane) -> u8 {
    match lane {
        Lane::Signing => 1,
        Lane::Federation => 2,
        Lane::Pegin => 3,
        Lane::Proposal => 4,
    }
}

fn lane(path: &Path, number: u8) -> Result<Lane, JournalError> {
    wire::lane_from_wire(number.into()).map_err(|error| damaged(path, error))
}

/// Turns a panic of the engine, as damaged pages may cause, into an error.
fn guard<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, JournalError>,
) -> Result<T, JournalError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(damaged(path, "the engine stumbled over it")))
}

fn damaged(path: &Path, reason: impl ToString) -> JournalError {
    JournalError::Damaged {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn io_error(path: &Path, operation: &'static str, error: &io::Error) -> JournalError {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on that disk; what was accepted is kept, nothing more is accepted until then"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let this user write to that directory"
        }
        io::ErrorKind::NotFound => "name a directory that holds a journal",
        _ => "look at that disk and at the kernel's log; it is tried again",
    };
    JournalError::Io {
        path: path.to_owned(),
        operation,
        reason: error.to_string(),
        advice,
    }
}

fn redb_error(path: &Path, operation: &'static str, error: redb::Error) -> JournalError {
    match error {
        redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => {
            io_error(path, operation, &error)
        }
        redb::Error::DatabaseAlreadyOpen => JournalError::Held {
            path: path.to_owned(),
            holder: "another process".to_owned(),
        },
        error @ (redb::Error::PreviousIo | redb::Error::DatabaseClosed) => {
            io_error(path, operation, &io::Error::other(error.to_string()))
        }
        error => damaged(path, error),
    }
}

fn held(directory: &Path, lock: &mut File) -> JournalError {
    let mut id = String::new();
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut id));
    let holder = match read {
        Ok(_) if !id.trim().is_empty() => format!("process {}", id.trim()),
        Ok(_) | Err(_) => "another process".to_owned(),
    };
    JournalError::Held {
        path: directory.to_owned(),
        holder,
    }
}

fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
