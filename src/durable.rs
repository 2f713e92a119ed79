//! A small durable map for the actors that this crate brings: what a subscriber has handled must
//! survive the process before it says so.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _,
    TableDefinition, TableError,
};

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");

/// Why a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("store `{}`: cannot {operation}: {reason}", .path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub operation: &'static str,
    /// Why it failed.
    pub reason: String,
}

/// What changed: a row's new value, or its removal.
pub(crate) type RowChanges = BTreeMap<String, Option<Vec<u8>>>;

type Opener = dyn Fn() -> Result<Database, DatabaseError> + Send + Sync;

/// Rows in a file. Clones are the same file.
///
/// After an error the file is closed, and opened again by the next call: what is in it then is
/// either what was in it before, or what was to be committed.
#[derive(Clone)]
pub(crate) struct DurableMap {
    path: PathBuf,
    opener: Arc<Opener>,
    database: Arc<Mutex<Option<Database>>>,
}

impl fmt::Debug for DurableMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableMap")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Has a file made beside its place and put there once it is whole and synced: a process that dies
/// meanwhile leaves nothing that could be taken for it.
pub(crate) fn create_whole<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let mut new = OsString::from(path);
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    make(&new)?;
    fs::rename(&new, path).map_err(&failed)?;
    match path.parent() {
        Some(directory) => File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed),
        None => Ok(()),
    }
}

impl DurableMap {
    /// Opens the file, or makes it. One process at a time has it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let builder = || {
            let mut builder = Database::builder();
            builder.set_cache_size(4 << 20);
            builder
        };
        if !path.exists() {
            create_whole(
                path,
                |error| fault(path, "create it", error),
                |new| {
                    let created = builder().create(new).map(drop);
                    created.map_err(|error| fault(path, "create it", error))
                },
            )?;
        }
        // One that has vanished is not made anew: it would hold less than was promised.
        let file = path.to_owned();
        let opener = move || builder().open(&file);
        Self::open_with(path, opener)
    }

    /// As [`open`](Self::open), by whatever means.
    pub(crate) fn open_with(
        path: &Path,
        opener: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let map = Self {
            path: path.to_owned(),
            opener: Arc::new(opener),
            database: Arc::default(),
        };
        map.with("open it", |_| Ok(()))?;
        Ok(map)
    }

    /// Every row, in the order of the keys.
    pub(crate) fn load(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.with("read it", |database| {
            let transaction = database.begin_read()?;
            let table = match transaction.open_table(TABLE) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            table
                .iter()?
                .map(|row| {
                    let (key, value) = row?;
                    Ok((key.value().to_owned(), value.value().to_owned()))
                })
                .collect()
        })
    }

    /// Makes the changes durable, all or none of them, before it returns. After an error it is
    /// unknown which.
    pub(crate) fn commit(&self, changes: &RowChanges) -> Result<(), StoreError> {
        self.with("write to it", |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            {
                let mut table = transaction.open_table(TABLE)?;
                for (key, value) in changes {
                    match value {
                        Some(value) => table.insert(key.as_str(), value.as_slice())?,
                        None => table.remove(key.as_str())?,
                    };
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Does something with the open file, which is closed if that fails.
    fn with<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut open = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match open.take() {
            Some(database) => database,
            None => (self.opener)().map_err(|error| fault(&self.path, "open it", error))?,
        };
        let done = act(&database).map_err(|error| fault(&self.path, operation, error))?;
        *open = Some(database);
        Ok(done)
    }

    /// An error about a file that is whole, and not to be used all the same.
    pub(crate) fn refused(&self, reason: impl ToString) -> StoreError {
        fault(&self.path, "use it", reason)
    }

    /// An error about a row that cannot be read.
    pub(crate) fn damaged(&self, key: &str, reason: impl ToString) -> StoreError {
        let reason = format!("row {key:?}: {}", reason.to_string());
        fault(&self.path, "read it", reason)
    }
}

fn fault(path: &Path, operation: &'static str, reason: impl ToString) -> StoreError {
    StoreError {
        path: path.to_owned(),
        operation,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_making_was_cut_short_is_made_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("rows.redb");
        let cut_short = create_whole(
            &path,
            |error| error.to_string(),
            |new| {
                fs::write(new, [0; 4096]).expect("written");
                Err("killed".to_owned())
            },
        );
        assert_eq!(cut_short, Err("killed".to_owned()));
        assert!(!path.exists(), "half a file is not there");
        let map = DurableMap::open(&path).expect("made");
        assert_eq!(map.load(), Ok(Vec::new()));
    }
}
