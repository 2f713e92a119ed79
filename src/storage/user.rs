//! A user of the store, and what it is told.

use std::{fmt, time::Duration};

use super::{
    batch::Batch,
    engine::Snapshot,
    error::StoreError,
    reader::{Pool, ReadJob},
    store::Store,
};

/// One opening of the engine. Whatever failed or was queued when it ended belongs to it, and
/// counts for nothing in the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub(crate) u64);

/// Numbers the batches of one user, from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(super) u64);

/// What a user is told, in this order: `Opened`, any number of `Committed`, `Failed`, `Opened`
/// again. A generation is open from its `Opened` to its `Failed`: what is tagged with another one, the
/// answer to a look-up or scan included, is of no meaning, whether or not the next one is open yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// The store is open, and everything that the user's predecessors handed in is committed or
    /// void: read what there is, and begin.
    Opened(Generation),
    /// Everything up to this batch is durable.
    Committed(Generation, Ticket),
    /// The generation has ended. Of the batches that are not confirmed it is unknown whether they
    /// are there: nothing may rest on them. The store is being opened again.
    Failed(Generation, StoreError),
    /// Another user has registered under the same name; what this one hands in is dropped.
    Replaced,
}

/// One registration: two of one name are two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) id: u64,
    pub(super) name: &'static str,
}

/// Whoever reads without being a user.
pub(super) const VIEWER: Who = Who {
    id: 0,
    name: "viewer",
};

/// A registration with the store. It ends when it is dropped; what was handed in before is still
/// committed.
pub struct User {
    pub(super) store: Store,
    pub(super) who: Who,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("who", &self.who)
            .finish_non_exhaustive()
    }
}

impl User {
    /// The store that it uses.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Hands a batch in. It is committed after every batch handed in before, together with what
    /// others have handed in; then the user is told. In a generation that has ended it is dropped:
    /// the user has been told of that end, or is about to be.
    ///
    /// # Errors
    ///
    /// When the engine could never take it, or it names a table that is not this user's. Nothing
    /// of it is committed.
    pub fn commit(&self, generation: Generation, batch: Batch) -> Result<Ticket, StoreError> {
        self.store.shared().enqueue(self, generation, batch)
    }

    /// Looks something up on a thread kept for it, beside commits, and hands `answer` what came of
    /// it there: `Ended` when the generation had ended before it began. An answer may come after the
    /// generation's end; it is to carry the generation, and then be dropped. `read` is to be short:
    /// it must not scan a whole table.
    pub fn look_up<T: Send + 'static>(
        &self,
        generation: Generation,
        read: impl FnOnce(&dyn Snapshot) -> Result<T, StoreError> + Send + 'static,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let job = ReadJob::new(self.who, Some(generation), read, answer);
        self.store.shared().read(Pool::LookUps, job);
    }

    /// As [`look_up`](Self::look_up), for what takes longer: on a thread of its own kind.
    pub fn scan<T: Send + 'static>(
        &self,
        generation: Generation,
        read: impl FnOnce(&dyn Snapshot) -> Result<T, StoreError> + Send + 'static,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let job = ReadJob::new(self.who, Some(generation), read, answer);
        self.store.shared().read(Pool::Scans, job);
    }

    /// For how long the oldest of its batches and look-ups has been waiting, or it for its first
    /// event while the store is open; zero if nothing is.
    #[must_use]
    pub fn waiting_for(&self) -> Duration {
        self.store.shared().waiting_for(self.who)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.store.shared().unregister(self.who.id);
    }
}
