//! An engine that fails when it is told to, for tests.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    batch::Batch,
    engine::{Engine, Limits, Row, Scan, Snapshot, Usage},
    error::StoreError,
    scrub::Scrubbed,
};

/// What of a commit that fails is there when the engine is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: the disk refused it.
    Nothing,
    /// All of it: it was the answer that was lost.
    All,
}

/// What hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hang {
    /// Commits, before anything of them is done.
    Commits,
    /// Openings.
    Opens,
    /// Snapshots, and reads of those that are there.
    Reads,
}

/// Passes everything on to another engine, but for the faults that a test has it make. Until it is
/// opened again after a commit that failed, it fails: so an engine is to behave.
#[derive(Debug)]
pub struct FaultyEngine(Arc<Faulty>);

#[derive(Debug)]
struct Faulty {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    engine: Arc<dyn Engine>,
    /// Commits that were begun.
    commits: u64,
    /// Which commits fail, counted from the first one that was ever begun.
    failing: BTreeMap<u64, (StoreError, Kept)>,
    panics_at: Option<u64>,
    open_fault: Option<StoreError>,
    read_fault: Option<StoreError>,
    row_fault: Option<StoreError>,
    write_fault: Option<StoreError>,
    claimed: Option<u64>,
    limits: Option<Limits>,
    usage: Option<Usage>,
    scrubbed: Option<Scrubbed>,
    replace_fault: Option<StoreError>,
    is_broken: bool,
    hanging: BTreeMap<Hang, usize>,
}

impl FaultyEngine {
    /// An engine that passes everything on to `engine`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        let state = State {
            engine,
            commits: 0,
            failing: BTreeMap::new(),
            panics_at: None,
            open_fault: None,
            read_fault: None,
            row_fault: None,
            write_fault: None,
            claimed: None,
            limits: None,
            usage: None,
            scrubbed: None,
            replace_fault: None,
            is_broken: false,
            hanging: BTreeMap::new(),
        };
        Self(Arc::new(Faulty {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// The same engine once more: to keep hold of it when a store has it.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Has the `nth` commit from now on fail; the next one is the first.
    pub fn fail_commit(&self, nth: u64, kept: Kept) {
        self.fail_commit_with(nth, kept, io("commit", "no answer (injected)"));
    }

    /// As [`fail_commit`](Self::fail_commit), in this way.
    pub fn fail_commit_with(&self, nth: u64, kept: Kept, fault: StoreError) {
        let mut state = self.0.lock();
        let at = state.commits + nth;
        state.failing.insert(at, (fault, kept));
    }

    /// Has the `nth` commit from now on panic.
    pub fn panic_at_commit(&self, nth: u64) {
        let mut state = self.0.lock();
        state.panics_at = Some(state.commits + nth);
    }

    /// Has openings fail in this way, until it is told otherwise.
    pub fn fail_opens(&self, fault: Option<StoreError>) {
        self.0.lock().open_fault = fault;
    }

    /// Has snapshots and reads fail in this way, until it is told otherwise.
    pub fn fail_reads(&self, fault: Option<StoreError>) {
        self.0.lock().read_fault = fault;
    }

    /// Has reads of rows fail in this way, and nothing else, until it is told otherwise.
    pub fn fail_reads_of_rows(&self, fault: Option<StoreError>) {
        self.0.lock().row_fault = fault;
    }

    /// Has every commit fail, and nothing of it kept, until it is told otherwise: a disk that is
    /// full, or may not be written.
    pub fn fail_writes(&self, fault: Option<StoreError>) {
        self.0.lock().write_fault = fault;
    }

    /// A fault for [`fail_writes`](Self::fail_writes).
    #[must_use]
    pub fn full() -> StoreError {
        io("commit", "no space left on device (injected)")
    }

    /// Another one.
    #[must_use]
    pub fn read_only() -> StoreError {
        io("commit", "read-only file system (injected)")
    }

    /// Has openings say that this is the last commit that is there.
    pub fn claim(&self, commit: Option<u64>) {
        self.0.lock().claimed = commit;
    }

    /// Puts another engine in the place of the one that it passes everything on to, as a disk that
    /// is mounted over. What has the old one open goes on with it until it opens it again, as with
    /// a file: the next commit fails.
    pub fn swap(&self, engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
        let mut state = self.0.lock();
        state.is_broken = true;
        std::mem::replace(&mut state.engine, engine)
    }

    /// Has it take no more than this.
    pub fn limit(&self, limits: Limits) {
        self.0.lock().limits = Some(limits);
    }

    /// Has it say that this is what it takes up.
    pub fn claim_usage(&self, usage: Option<Usage>) {
        self.0.lock().usage = usage;
    }

    /// Has it fail to take a copy in its place, in this way, until it is told otherwise; then it is to
    /// be opened again.
    pub fn fail_replacing(&self, fault: Option<StoreError>) {
        self.0.lock().replace_fault = fault;
    }

    /// Has each scrub find this.
    pub fn claim_scrubbed(&self, scrubbed: Option<Scrubbed>) {
        self.0.lock().scrubbed = scrubbed;
    }

    /// Has what is asked of it from now on hang.
    pub fn hang(&self, what: Hang) {
        self.0.lock().hanging.entry(what).or_default();
    }

    /// Has what hangs go on.
    pub fn release(&self, what: Hang) {
        self.0.lock().hanging.remove(&what);
        self.0.changed.notify_all();
    }

    /// Waits until somebody hangs; `false` when nobody does within `patience`.
    #[must_use]
    pub fn await_hung(&self, what: Hang, patience: Duration) -> bool {
        self.await_all_hung(what, 1, patience)
    }

    /// Waits until so many hang; `false` when they do not within `patience`.
    #[must_use]
    pub fn await_all_hung(&self, what: Hang, count: usize, patience: Duration) -> bool {
        let hang = |state: &State| state.hanging.get(&what).is_some_and(|hung| *hung >= count);
        self.0.wait_until(hang, patience)
    }

    /// Waits until so many commits were begun; `false` when they are not within `patience`.
    #[must_use]
    pub fn await_commits(&self, commits: u64, patience: Duration) -> bool {
        self.0
            .wait_until(|state| state.commits >= commits, patience)
    }

    /// Commits that were begun so far.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.0.lock().commits
    }
}

impl Faulty {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, holds: impl Fn(&State) -> bool, patience: Duration) -> bool {
        let since = Instant::now();
        let mut state = self.lock();
        while !holds(&state) {
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits for as long as `what` is to hang.
    fn pass(&self, what: Hang) {
        let mut state = self.lock();
        let Some(hung) = state.hanging.get_mut(&what) else {
            return;
        };
        *hung += 1;
        self.changed.notify_all();
        while state.hanging.contains_key(&what) {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(&self) -> Result<(), StoreError> {
        self.pass(Hang::Reads);
        self.lock().read_fault.clone().map_or(Ok(()), Err)
    }

    fn read_row(&self) -> Result<(), StoreError> {
        self.read()?;
        self.lock().row_fault.clone().map_or(Ok(()), Err)
    }

    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.lock().engine)
    }
}

impl Engine for FaultyEngine {
    fn place(&self) -> String {
        self.0.engine().place()
    }

    fn limits(&self) -> Limits {
        let limits = self.0.lock().limits;
        limits.unwrap_or_else(|| self.0.engine().limits())
    }

    fn open(&self) -> Result<u64, StoreError> {
        self.0.pass(Hang::Opens);
        let (engine, claimed) = {
            let state = self.0.lock();
            if let Some(fault) = &state.open_fault {
                return Err(fault.clone());
            }
            (Arc::clone(&state.engine), state.claimed)
        };
        let found = engine.open()?;
        self.0.lock().is_broken = false;
        Ok(claimed.unwrap_or(found))
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        self.0.pass(Hang::Commits);
        let (engine, fault) = {
            let mut state = self.0.lock();
            state.commits += 1;
            self.0.changed.notify_all();
            if state.is_broken {
                return Err(io("commit", "it is to be opened again first (injected)"));
            }
            let at = state.commits;
            assert!(state.panics_at != Some(at), "a panic that was asked for");
            let refused = state
                .write_fault
                .clone()
                .map(|fault| (fault, Kept::Nothing));
            let fault = state.failing.remove(&at).or(refused);
            state.is_broken = fault.is_some();
            (Arc::clone(&state.engine), fault)
        };
        match fault {
            None => engine.commit(number, batches),
            Some((fault, Kept::Nothing)) => Err(fault),
            Some((fault, Kept::All)) => engine.commit(number, batches).and(Err(fault)),
        }
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.0.read()?;
        if self.0.lock().is_broken {
            return Err(io("read", "it is to be opened again first (injected)"));
        }
        let snapshot = self.0.engine().snapshot()?;
        Ok(Box::new(FaultySnapshot {
            snapshot,
            faulty: Arc::clone(&self.0),
        }))
    }

    fn checkpoint(&self) {
        self.0.engine().checkpoint();
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        let usage = self.0.lock().usage;
        usage.map_or_else(|| self.0.engine().usage(), Ok)
    }

    fn close(&self) {
        self.0.engine().close();
    }

    fn copy_place(&self) -> Option<PathBuf> {
        self.0.engine().copy_place()
    }

    fn replace_with(&self, copy: &Path) -> Result<(), StoreError> {
        let (engine, fault) = {
            let mut state = self.0.lock();
            state.is_broken |= state.replace_fault.is_some();
            (Arc::clone(&state.engine), state.replace_fault.clone())
        };
        fault.map_or(Ok(()), Err)?;
        engine.replace_with(copy)
    }

    fn scrub(&self, from: u64, count: u64) -> Result<Option<Scrubbed>, StoreError> {
        self.0.read()?;
        let found = self.0.lock().scrubbed.clone();
        found.map_or_else(
            || self.0.engine().scrub(from, count),
            |found| Ok(Some(found)),
        )
    }
}

struct FaultySnapshot {
    snapshot: Box<dyn Snapshot>,
    faulty: Arc<Faulty>,
}

impl Snapshot for FaultySnapshot {
    fn commit(&self) -> u64 {
        self.snapshot.commit()
    }

    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.faulty.read_row()?;
        self.snapshot.get(table, key)
    }

    fn scan(&self, table: &str, scan: Scan<'_>) -> Result<Vec<Row>, StoreError> {
        self.faulty.read_row()?;
        self.snapshot.scan(table, scan)
    }

    fn tables(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.faulty.read()?;
        self.snapshot.tables()
    }
}

fn io(operation: &'static str, reason: &str) -> StoreError {
    StoreError::Io {
        place: "(faulty)".to_owned(),
        operation,
        reason: reason.to_owned(),
        advice: "this is a test",
    }
}
