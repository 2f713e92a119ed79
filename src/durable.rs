//! A small durable map for the actors that this crate brings: what a subscriber has handled must
//! survive the process before it says so.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError,
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

/// Rows in a file. Clones are the same file.
#[derive(Debug, Clone)]
pub(crate) struct DurableMap {
    path: PathBuf,
    database: Arc<Database>,
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
        let failed = |error: redb::Error| fault(path, "open it", error);
        let mut builder = Database::builder();
        builder.set_cache_size(4 << 20);
        if !path.exists() {
            create_whole(
                path,
                |error| fault(path, "create it", error),
                |new| {
                    let created = builder.create(new).map(drop);
                    created.map_err(|error| failed(error.into()))
                },
            )?;
        }
        let database = builder.open(path).map_err(|error| failed(error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            database: Arc::new(database),
        })
    }

    /// Every row, in the order of the keys.
    pub(crate) fn load(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let read = || {
            let transaction = self.database.begin_read()?;
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
        };
        read().map_err(|error: redb::Error| fault(&self.path, "read it", error))
    }

    /// Makes the changes durable, all or none of them, before it returns.
    pub(crate) fn commit(&self, changes: &RowChanges) -> Result<(), StoreError> {
        let write = || {
            let mut transaction = self.database.begin_write()?;
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
        };
        write().map_err(|error: redb::Error| fault(&self.path, "write to it", error))
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
