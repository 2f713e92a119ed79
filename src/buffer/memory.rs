//! A journal engine in memory.

use std::sync::{Mutex, PoisonError};

use super::{
    journal::{Journal, JournalError, Record},
    retained::Retained,
};

/// Keeps records for as long as the process lives: they survive every actor, not the process.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<Retained>);

impl MemoryJournal {
    /// An empty journal with an outbox id of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Journal for MemoryJournal {
    fn load(&self) -> Result<Retained, JournalError> {
        // `apply` leaves no half-made state behind, so that a poisoned lock holds valid data.
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    fn commit(&self, records: &[Record]) -> Result<(), JournalError> {
        let mut retained = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().for_each(|record| retained.apply(record));
        Ok(())
    }
}
