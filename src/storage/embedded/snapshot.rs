//! One commit's state, read beside later commits.

use redb::{
    ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTableMetadata as _, TableDefinition,
    TableError, TableHandle as _,
};

use super::{
    bookkeeping::{self, Bookkeeping},
    fault::Faults,
};
use crate::storage::{
    engine::{Row, Scan, Snapshot},
    error::StoreError,
    memory::is_empty,
};

/// The engine's snapshot. It may fail once the file is opened again.
pub(super) struct FileSnapshot {
    transaction: ReadTransaction,
    bookkeeping: Bookkeeping,
    faults: Faults,
}

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl FileSnapshot {
    /// The state of the last commit.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not a store of ours.
    pub(super) fn of(database: &impl ReadableDatabase, faults: Faults) -> Result<Self, StoreError> {
        let (transaction, bookkeeping) = faults.guard("read it", || {
            let transaction = database.begin_read()?;
            let bookkeeping = bookkeeping::read(&transaction)?;
            Ok((transaction, bookkeeping))
        })?;
        Ok(Self {
            transaction,
            bookkeeping,
            faults,
        })
    }

    pub(super) fn bookkeeping(&self) -> Bookkeeping {
        self.bookkeeping
    }

    fn open(&self, table: &str) -> Result<Option<Rows>, redb::Error> {
        let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(table);
        match self.transaction.open_table(definition) {
            Ok(table) => Ok(Some(table)),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Snapshot for FileSnapshot {
    fn commit(&self) -> u64 {
        self.bookkeeping.commit
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.faults.guard("read it", || {
            let Some(rows) = self.open(table)? else {
                return Ok(None);
            };
            Ok(rows.get(key)?.map(|value| value.value().to_vec()))
        })
    }

    fn scan(&self, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        if is_empty(&scan) {
            return Ok(Vec::new());
        }
        self.faults.guard("read it", || {
            let Some(rows) = self.open(table)? else {
                return Ok(Vec::new());
            };
            let rows = rows.range::<&[u8]>((scan.from, scan.to))?;
            let owned = |row: Result<(redb::AccessGuard<'_, _>, redb::AccessGuard<'_, _>), _>| {
                let (key, value): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>) =
                    row?;
                Ok((key.value().to_vec(), value.value().to_vec()))
            };
            if scan.backwards {
                scan.collect(rows.rev().map(owned))
            } else {
                scan.collect(rows.map(owned))
            }
        })
    }

    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.faults.guard("read it", || {
            let mut tables = Vec::new();
            for handle in self.transaction.list_tables()? {
                let name = handle.name().to_owned();
                if name == bookkeeping::TABLE {
                    continue;
                }
                let rows = self.transaction.open_untyped_table(handle)?.len()?;
                if rows > 0 {
                    tables.push((name, rows));
                }
            }
            tables.sort();
            Ok(tables)
        })
    }
}
