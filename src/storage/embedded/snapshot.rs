//! One commit's state, read beside later commits.

use std::collections::BTreeMap;

use redb::{
    ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTableMetadata as _, TableDefinition,
    TableError, TableHandle as _,
};

use super::{
    bookkeeping::{self, Bookkeeping},
    fault::Faults,
    memtable::Layers,
};
use crate::storage::{
    engine::{Row, Scan, Snapshot},
    error::StoreError,
    memory::is_empty,
};

/// The engine's snapshot. It may fail once the file is opened again.
pub(super) struct FileSnapshot {
    transaction: ReadTransaction,
    /// What the tables amount to.
    bookkeeping: Bookkeeping,
    /// The commits that are not in the tables yet.
    layers: Layers,
    faults: Faults,
}

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl FileSnapshot {
    /// The state of the last commit. `layers` hold the commits that are not in the tables yet.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is not a store of ours.
    pub(super) fn of(
        database: &impl ReadableDatabase,
        layers: Layers,
        faults: Faults,
    ) -> Result<Self, StoreError> {
        let (transaction, bookkeeping) = faults.guard("read it", || {
            let transaction = database.begin_read()?;
            let bookkeeping = bookkeeping::read(&transaction)?;
            Ok((transaction, bookkeeping))
        })?;
        Ok(Self {
            transaction,
            bookkeeping,
            layers,
            faults,
        })
    }

    /// What the tables amount to, without what came since they were written.
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
        self.bookkeeping.commit.max(self.layers.commit)
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(value) = self.layers.get(table, key) {
            return Ok(value);
        }
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
            let rows = match self.open(table)? {
                Some(rows) => Some(rows.range::<&[u8]>((scan.from, scan.to))?),
                None => None,
            };
            let owned = |row: Result<(redb::AccessGuard<'_, _>, redb::AccessGuard<'_, _>), _>| {
                let (key, value): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>) =
                    row?;
                Ok((key.value().to_vec(), value.value().to_vec()))
            };
            let base: Box<dyn Iterator<Item = Result<Row, redb::Error>>> = match rows {
                Some(rows) if scan.backwards => Box::new(rows.rev().map(owned)),
                Some(rows) => Box::new(rows.map(owned)),
                None => Box::new(std::iter::empty()),
            };
            scan.collect(self.layers.over(table, &scan, base))
        })
    }

    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.faults.guard("read it", || {
            let mut tables = BTreeMap::new();
            for handle in self.transaction.list_tables()? {
                let name = handle.name().to_owned();
                if name != bookkeeping::TABLE {
                    let rows = self.transaction.open_untyped_table(handle)?.len()?;
                    tables.insert(name, rows);
                }
            }
            for (name, keys) in self.layers.changed() {
                let base = self.open(&name)?;
                let rows = tables.entry(name).or_default();
                for (key, is_there) in keys {
                    let was_there = match &base {
                        Some(base) => base.get(key.as_slice())?.is_some(),
                        None => false,
                    };
                    *rows = (*rows + u64::from(is_there)).saturating_sub(u64::from(was_there));
                }
            }
            tables.retain(|_, rows| *rows > 0);
            Ok(tables.into_iter().collect())
        })
    }
}
