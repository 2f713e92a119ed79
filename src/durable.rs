//! A small durable map for the actors that this crate brings: what a subscriber has handled must
//! survive the process before it says so.

use std::{
    collections::BTreeMap,
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

impl DurableMap {
    /// Opens the file, or makes it. One process at a time has it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let opened = Database::builder()
            .set_cache_size(4 << 20)
            .create(path)
            .map_err(|error| fault(path, "open it", error));
        Ok(Self {
            path: path.to_owned(),
            database: Arc::new(opened?),
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
