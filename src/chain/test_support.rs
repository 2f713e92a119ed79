//! What the tests of the chain share: an engine that fails, stops and counts, and governance's
//! updates.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use bitcoin::Network;

use super::{ChainStore, Federation, FederationPolicy, Schedule};
use crate::{
    config::FirstFederation,
    message::{ChainId, FederationMember, FederationUpdate},
    proto,
    simulator::{FederationView, RotationPlan, Simulator, SimulatorConfig},
    storage::{
        Batch, Engine, Limits, MemoryEngine, Owner, Row, Scan, Snapshot, Store, StoreError, Usage,
    },
};

/// What becomes of a commit that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing of it is there.
    Lost,
    /// All of it is there, though nobody was told so.
    Applied,
}

/// Both.
pub(super) const FAILURES: [Failure; 2] = [Failure::Lost, Failure::Applied];

/// A disk that outlives a process. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Faulty>);

#[derive(Debug, Default)]
struct Faulty {
    rows: MemoryEngine,
    state: Mutex<DiskState>,
    goes_on: Condvar,
}

#[derive(Debug, Default)]
struct DiskState {
    /// The next commit fails.
    fails: Option<Failure>,
    /// Commits wait while it is set.
    holds: bool,
    /// Commits that wait.
    held: usize,
    rows_read: usize,
}

impl Disk {
    /// With a store that was just made.
    pub(super) fn new() -> Self {
        let disk = Self::default();
        drop(Store::create_on(disk.engine(), &owner()).expect("made"));
        disk
    }

    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.0.state.lock().expect("no panic while it is held")
    }

    /// The next commit fails, and every one after it waits until the disk is well again.
    pub(super) fn fail_next(&self, failure: Failure) {
        self.lock().fails = Some(failure);
    }

    /// Nothing fails or waits any more.
    pub(super) fn is_well(&self) {
        self.lock().fails = None;
        self.hold(false);
    }

    /// Commits wait from now on, or go on.
    pub(super) fn hold(&self, holds: bool) {
        self.lock().holds = holds;
        self.0.goes_on.notify_all();
    }

    /// Waits until a commit waits.
    pub(super) fn until_held(&self) {
        let mut state = self.lock();
        while state.held == 0 {
            state = self.0.goes_on.wait(state).expect("no panic");
        }
    }

    /// Rows that were read since this was last asked.
    pub(super) fn rows_read(&self) -> usize {
        std::mem::take(&mut self.lock().rows_read)
    }

    /// Another disk, which holds the same.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::default();
        let snapshot = self.0.rows.snapshot().expect("memory");
        let mut batch = Batch::new();
        for (table, _) in snapshot.tables().expect("memory") {
            let rows = snapshot.scan(&table, Scan::first(usize::MAX));
            for (key, value) in rows.expect("memory") {
                batch.push(crate::storage::Change {
                    table: table.clone().into(),
                    key,
                    value: Some(value),
                });
            }
        }
        copy.0.rows.commit(1, &[batch]).expect("memory");
        copy
    }

    /// A process begins with it.
    pub(super) fn store(&self) -> Store {
        Store::open_on(self.engine(), &owner()).expect("opens")
    }

    /// The same, with a chain.
    pub(super) async fn chain(&self, schedule: Schedule) -> Result<ChainStore, StoreError> {
        ChainStore::open(&self.store(), schedule).await
    }
}

/// Waits until the chain takes changes.
pub(super) async fn until_open(chain: &ChainStore) {
    let mut changed = chain.watch();
    loop {
        let (tell, told) = tokio::sync::oneshot::channel();
        chain.change(
            |_| (),
            move |taken| {
                let _ = tell.send(taken);
            },
        );
        if told.await.expect("answered").is_ok() {
            return;
        }
        changed.changed().await.expect("the chain is there");
    }
}

fn owner() -> Owner {
    Owner {
        node_id: "node".to_owned(),
        chain_id: "alys-regtest".to_owned(),
        network: "regtest".to_owned(),
        first_federation: None,
    }
}

impl Engine for Disk {
    fn place(&self) -> String {
        "(a disk of the test's)".to_owned()
    }

    fn limits(&self) -> Limits {
        self.0.rows.limits()
    }

    fn open(&self) -> Result<u64, StoreError> {
        self.0.rows.open()
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.held += 1;
        self.0.goes_on.notify_all();
        while state.holds {
            state = self.0.goes_on.wait(state).expect("no panic");
        }
        state.held -= 1;
        let failure = state.fails.take();
        state.holds |= failure.is_some();
        drop(state);
        if failure != Some(Failure::Lost) {
            self.0.rows.commit(number, batches)?;
        }
        match failure {
            None => Ok(()),
            Some(_) => Err(StoreError::Io {
                place: self.place(),
                operation: "commit",
                reason: "no space left on device".to_owned(),
                advice: "make room",
            }),
        }
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        Ok(Box::new(Counting {
            disk: self.clone(),
            rows: self.0.rows.snapshot()?,
        }))
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        self.0.rows.usage()
    }
}

struct Counting {
    disk: Disk,
    rows: Box<dyn Snapshot>,
}

impl Snapshot for Counting {
    fn commit(&self) -> u64 {
        self.rows.commit()
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.rows.get(table, key)?;
        self.disk.lock().rows_read += usize::from(row.is_some());
        Ok(row)
    }

    fn scan(&self, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        let rows = self.rows.scan(table, scan)?;
        self.disk.lock().rows_read += rows.len();
        Ok(rows)
    }

    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.rows.tables()
    }
}

pub(super) const PLAN: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 110,
    notice_blocks: 10,
    grace_blocks: 50,
    kind: proto::FederationUpdateKind::Scheduled,
};

pub(super) async fn governance() -> Simulator {
    let started = Simulator::start(SimulatorConfig::default()).await;
    started.expect("the simulator starts")
}

/// The schedule of a node of this chain that starts with this federation.
pub(super) fn schedule(view: &FederationView, chain: &str) -> Schedule {
    let chain: ChainId = chain.parse().expect("valid");
    let first = FirstFederation {
        threshold: u32::try_from(view.threshold).expect("small"),
        members: view
            .members
            .iter()
            .map(|(id, public_key)| FederationMember {
                id: id.parse().expect("valid"),
                public_key: *public_key,
                active: true,
            })
            .collect(),
    };
    let first = Federation::first(&first, Network::Regtest, &chain).expect("a federation");
    Schedule::new(first, chain, FederationPolicy::default())
}

/// The update that governance would announce next.
pub(super) fn update(simulator: &Simulator, plan: &RotationPlan) -> FederationUpdate {
    let update = simulator.build_update(plan).expect("possible");
    update.try_into().expect("well formed")
}
