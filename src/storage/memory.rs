//! An engine in memory.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    batch::Batch,
    engine::{Engine, Limits, Row, Scan, Snapshot, Usage},
    error::StoreError,
};

type Tables = BTreeMap<String, Arc<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// Keeps rows for as long as the process lives: they survive every actor, not the process.
#[derive(Debug, Default)]
pub struct MemoryEngine(Mutex<State>);

#[derive(Debug, Clone, Default)]
struct State {
    commit: u64,
    tables: Tables,
}

impl MemoryEngine {
    /// An engine without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of the rows that it holds now, which goes its own way from then on.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A commit is whole or not there: it is made on a copy.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for MemoryEngine {
    fn place(&self) -> String {
        "(memory)".to_owned()
    }

    fn limits(&self) -> Limits {
        Limits {
            batch_bytes: 64 << 20,
            value_bytes: 16 << 20,
            key_bytes: 4096,
        }
    }

    fn open(&self) -> Result<u64, StoreError> {
        Ok(self.lock().commit)
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.commit.checked_add(1) != Some(number) {
            return Err(StoreError::Damaged {
                place: self.place(),
                reason: format!("commit {number} was to follow commit {}", state.commit),
            });
        }
        for change in batches.iter().flat_map(Batch::changes) {
            let table = state.tables.entry(change.table.clone().into_owned());
            let rows = Arc::make_mut(table.or_default());
            match &change.value {
                Some(value) => rows.insert(change.key.clone(), value.clone()),
                None => rows.remove(&change.key),
            };
        }
        state.commit = number;
        Ok(())
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        Ok(Box::new(self.lock().clone()))
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        let state = self.lock();
        let rows = state.tables.values().flat_map(|rows| rows.iter());
        let bytes: usize = rows.map(|(key, value)| key.len() + value.len()).sum();
        Ok(Usage {
            bytes: bytes as u64,
            ..Usage::default()
        })
    }
}

impl Snapshot for State {
    fn commit(&self) -> u64 {
        self.commit
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self.tables.get(table);
        Ok(rows.and_then(|rows| rows.get(key).cloned()))
    }

    fn scan(&self, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        let Some(rows) = self.tables.get(table).filter(|_| !is_empty(&scan)) else {
            return Ok(Vec::new());
        };
        let rows = rows.range::<[u8], _>((scan.from, scan.to));
        let owned = |(key, value): (&Vec<u8>, &Vec<u8>)| Ok((key.clone(), value.clone()));
        if scan.backwards {
            scan.collect(rows.rev().map(owned))
        } else {
            scan.collect(rows.map(owned))
        }
    }

    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let tables = self.tables.iter().filter(|(_, rows)| !rows.is_empty());
        Ok(tables
            .map(|(name, rows)| (name.clone(), rows.len() as u64))
            .collect())
    }
}

/// A range that ends before it begins, which the standard library panics about.
pub(super) fn is_empty(scan: &Scan<'_>) -> bool {
    match (scan.from, scan.to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from), Bound::Excluded(to))
        | (Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from >= to,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}
