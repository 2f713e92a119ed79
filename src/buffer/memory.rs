//! A journal engine in memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::journal::{Journal, JournalError, Row, RowKey};

/// Keeps rows for as long as the process lives: they survive every actor, not the process.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<BTreeMap<RowKey, Row>>);

impl MemoryJournal {
    /// An empty journal.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Journal for MemoryJournal {
    fn load(&self) -> Result<Vec<Row>, JournalError> {
        // Each insertion is whole: a poisoned lock holds valid rows.
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.values().cloned().collect())
    }

    fn commit(&self, rows: &[Row]) -> Result<(), JournalError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            if row.is_removal() {
                kept.remove(&row.key());
            } else {
                kept.insert(row.key(), row.clone());
            }
        }
        Ok(())
    }
}
