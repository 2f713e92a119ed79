//! The stream's rows on an engine in memory, as the pure tests commit and read them.

use super::{
    changes::Settled,
    history::{History, Inconsistency},
    lookups::{self, Found, Key},
    retained::{RequestRecord, Retained},
    tables::Rows,
};
use crate::{
    message::RequestId,
    storage::{Batch, Engine as _, HashKey, MemoryEngine, Snapshot},
};

const HASH: HashKey = HashKey::new([7; 16]);

#[derive(Debug, Default)]
pub(super) struct TestDisk {
    engine: MemoryEngine,
    commits: u64,
}

impl TestDisk {
    /// A backup of it.
    pub(super) fn copy(&self) -> Self {
        Self {
            engine: self.engine.fork(),
            commits: self.commits,
        }
    }

    /// Commits what has changed; gives back what may leave memory.
    pub(super) fn commit(&mut self, retained: &mut Retained) -> Vec<Settled> {
        let (batch, settled) = retained.take_changes(HASH);
        self.commits += 1;
        self.engine
            .commit(self.commits, &[batch])
            .expect("memory does not fail");
        settled
    }

    fn read<T>(&self, read: impl FnOnce(Rows<'_>) -> T) -> T {
        let snapshot: Box<dyn Snapshot> = self.engine.snapshot().expect("memory does not fail");
        read(Rows {
            snapshot: &*snapshot,
            place: "(memory)",
            hash: HASH,
        })
    }

    /// What the next process has in memory.
    pub(super) fn load(&self) -> Retained {
        self.read(|rows| rows.load(&|_| ())).expect("readable")
    }

    pub(super) fn request(&self, id: &RequestId) -> Option<RequestRecord> {
        self.read(|rows| rows.request(id)).expect("readable")
    }

    pub(super) fn find(&self, keys: impl IntoIterator<Item = Key>) -> Found {
        let keys = keys.into_iter().collect();
        self.read(|rows| lookups::find(rows, &keys))
    }

    /// Everything that is wrong with its rows.
    pub(super) fn audit(&self) -> Vec<Inconsistency> {
        let (mut faults, mut from) = (Vec::new(), None);
        loop {
            let audited =
                self.read(|rows| History::of(rows.snapshot, rows.place, rows.hash).audit(from));
            let audited = audited.expect("readable");
            faults.extend(audited.faults);
            match audited.next {
                Some(next) => from = Some(next),
                None => return faults,
            }
        }
    }

    /// Commits what no stream would.
    pub(super) fn spoil(&mut self, change: impl FnOnce(&mut Batch, HashKey)) {
        let mut batch = Batch::new();
        change(&mut batch, HASH);
        self.commits += 1;
        self.engine
            .commit(self.commits, &[batch])
            .expect("memory does not fail");
    }

    /// Requests on disk, open or settled.
    pub(super) fn requests(&self) -> u64 {
        let tables = self.read(|rows| rows.snapshot.tables()).expect("readable");
        let is = |name: &str| matches!(name, "stream/requests" | "stream/open_requests");
        let counts = tables.iter().filter(|(name, _)| is(name));
        counts.map(|(_, rows)| rows).sum()
    }
}
