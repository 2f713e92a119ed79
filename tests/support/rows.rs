//! A store's engine in memory that outlives its stores, counts what is read, and fails or waits at a
//! test's word.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use governance_stream::storage::{
    Batch, Engine, Limits, MemoryEngine, Owner, Row, Scan, Snapshot, Store, StoreError, Usage,
};

#[derive(Debug, Default)]
pub struct Rows {
    kept: MemoryEngine,
    /// Commits that still succeed, and whether the one that then fails is there all the same.
    fault: Mutex<Option<(u64, bool)>>,
    /// Fails until it is opened again.
    failed: AtomicBool,
    commits: AtomicU64,
    rows_read: Arc<AtomicU64>,
    commits_held: Gate,
    reads_held: Arc<Gate>,
}

/// Whoever comes waits while it is shut.
#[derive(Debug, Default)]
struct Gate(Mutex<bool>, Condvar, AtomicU64);

impl Gate {
    fn set(&self, shut: bool) {
        *self.0.lock().expect("whole") = shut;
        self.1.notify_all();
    }

    fn pass(&self) {
        let shut = self.0.lock().expect("whole");
        self.2.fetch_add(1, Ordering::SeqCst);
        drop(self.1.wait_while(shut, |shut| *shut).expect("whole"));
        self.2.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An engine that holds nothing yet.
pub fn rows() -> Arc<Rows> {
    Arc::default()
}

/// Opens the store on it, as each process does; makes it for the first one.
pub fn open(rows: &Arc<Rows>) -> Store {
    let owner = Owner {
        node_id: "node".to_owned(),
        chain_id: "alys-regtest".to_owned(),
        network: "regtest".to_owned(),
        first_federation: None,
    };
    let engine: Arc<dyn Engine> = Arc::clone(rows) as _;
    let is_new = rows.kept.open().expect("memory") == 0;
    let opened = if is_new {
        Store::create_on(engine, &owner)
    } else {
        Store::open_on(engine, &owner)
    };
    opened.expect("opens")
}

impl Rows {
    /// Has the commit after so many more fail; `kept` says whether what it was to keep is there all
    /// the same.
    pub fn fail_after(&self, commits: u64, kept: bool) {
        *self.fault() = Some((commits, kept));
    }

    /// Whether the fault is still to come.
    pub fn is_to_fail(&self) -> bool {
        self.fault().is_some()
    }

    /// Commits that succeeded.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// Rows that were read.
    pub fn rows_read(&self) -> u64 {
        self.rows_read.load(Ordering::SeqCst)
    }

    /// Has commits wait, or go on.
    pub fn hold_commits(&self, held: bool) {
        self.commits_held.set(held);
    }

    /// Whether a commit waits.
    pub fn is_committing(&self) -> bool {
        self.commits_held.2.load(Ordering::SeqCst) > 0
    }

    /// Has reads wait, or go on. What they see is what was there when they began.
    pub fn hold_reads(&self, held: bool) {
        self.reads_held.set(held);
    }

    fn fault(&self) -> MutexGuard<'_, Option<(u64, bool)>> {
        self.fault.lock().expect("whole")
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(broken());
        }
        Ok(())
    }
}

fn broken() -> StoreError {
    StoreError::Io {
        place: "(a test's rows)".to_owned(),
        operation: "commit",
        reason: "the test wants it to".to_owned(),
        advice: "look at the test",
    }
}

impl Engine for Rows {
    fn place(&self) -> String {
        "(a test's rows)".to_owned()
    }

    fn limits(&self) -> Limits {
        self.kept.limits()
    }

    fn open(&self) -> Result<u64, StoreError> {
        self.failed.store(false, Ordering::SeqCst);
        self.kept.open()
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        self.commits_held.pass();
        self.check()?;
        let due = self.fault().take_if(|(left, _)| *left == 0);
        if let Some((_, kept)) = due {
            if kept {
                self.kept.commit(number, batches)?;
            }
            self.failed.store(true, Ordering::SeqCst);
            return Err(broken());
        }
        if let Some((left, _)) = self.fault().as_mut() {
            *left -= 1;
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.kept.commit(number, batches)
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.check()?;
        Ok(Box::new(Counted {
            of: self.kept.snapshot()?,
            rows_read: Arc::clone(&self.rows_read),
            held: Arc::clone(&self.reads_held),
        }))
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        self.kept.usage()
    }
}

struct Counted {
    of: Box<dyn Snapshot>,
    rows_read: Arc<AtomicU64>,
    held: Arc<Gate>,
}

impl Snapshot for Counted {
    fn commit(&self) -> u64 {
        self.of.commit()
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.held.pass();
        self.rows_read.fetch_add(1, Ordering::SeqCst);
        self.of.get(table, key)
    }

    fn scan(&self, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        self.held.pass();
        let rows = self.of.scan(table, scan)?;
        // One that finds nothing has looked all the same.
        let read = u64::try_from(rows.len().max(1)).expect("few");
        self.rows_read.fetch_add(read, Ordering::SeqCst);
        Ok(rows)
    }

    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.of.tables()
    }
}
