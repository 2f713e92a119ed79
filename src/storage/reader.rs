//! The threads that read: two for look-ups, one for what takes longer.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use tracing::error;

use super::{
    engine::Snapshot,
    error::StoreError,
    metrics::Operation,
    shared::Shared,
    user::{Generation, VIEWER, Who},
};

/// How often what the engine takes up is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Most reads that wait of whoever is no user of the store. A user bounds its own.
pub(super) const MOST_VIEWS: usize = 256;

/// Which threads do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    LookUps,
    Scans,
}

type Snapshotted = Result<Box<dyn Snapshot>, StoreError>;

/// Something to be read, and whom to tell.
pub(super) struct ReadJob {
    who: Who,
    pub(super) generation: Option<Generation>,
    since: Instant,
    run: Box<dyn FnOnce(Snapshotted) -> Option<StoreError> + Send>,
}

impl ReadJob {
    pub(super) fn new<T: Send + 'static>(
        who: Who,
        generation: Option<Generation>,
        read: impl FnOnce(&dyn Snapshot) -> Result<T, StoreError> + Send + 'static,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) -> Self {
        let run = move |snapshot: Snapshotted| {
            // A panic must not keep the one who asked waiting for ever.
            let reading = AssertUnwindSafe(|| snapshot.and_then(|snapshot| read(&*snapshot)));
            let result = catch_unwind(reading).unwrap_or_else(|_| {
                // No proof of damage: it may be whoever reads.
                Err(StoreError::Io {
                    place: format!("(rows of {})", who.name),
                    operation: "read them",
                    reason: "reading them panicked".to_owned(),
                    advice: "keep the log, and report it",
                })
            });
            let fault = result.as_ref().err().cloned();
            answer(result);
            fault
        };
        Self {
            who,
            generation,
            since: Instant::now(),
            run: Box::new(run),
        }
    }

    /// It is not read.
    pub(super) fn refuse(self, fault: StoreError) {
        // Whoever asked is told; nothing is wrong with the store.
        let _ = self.run(Err(fault));
    }

    /// Reads, and answers; what was wrong.
    fn run(self, snapshot: Snapshotted) -> Option<StoreError> {
        (self.run)(snapshot)
    }
}

/// What waits to be read, and what is being read.
#[derive(Default)]
pub(super) struct Reading {
    queued: VecDeque<ReadJob>,
    /// By a number of their own.
    running: BTreeMap<u64, (Who, Instant)>,
    next: u64,
}

impl Reading {
    /// # Errors
    ///
    /// The job, when it is a viewer's, and as many as may wait do so already.
    pub(super) fn push(&mut self, job: ReadJob) -> Result<(), ReadJob> {
        let views = || self.queued.iter().filter(|job| job.who == VIEWER).count();
        if job.who == VIEWER && views() >= MOST_VIEWS {
            return Err(job);
        }
        self.queued.push_back(job);
        Ok(())
    }

    /// The next job, and the number that it is under way with.
    pub(super) fn take(&mut self) -> Option<(u64, ReadJob)> {
        let job = self.queued.pop_front()?;
        self.next += 1;
        self.running.insert(self.next, (job.who, job.since));
        Some((self.next, job))
    }

    pub(super) fn done(&mut self, number: u64) {
        self.running.remove(&number);
    }

    /// Who waits, and since when.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Who, Instant)> {
        let queued = self.queued.iter().map(|job| (job.who, job.since));
        queued.chain(self.running.values().copied())
    }
}

/// The jobs of both pools.
#[derive(Default)]
pub(super) struct Readings {
    look_ups: Reading,
    scans: Reading,
    /// Nothing is to be begun.
    pub(super) is_paused: bool,
}

impl Readings {
    pub(super) fn of(&mut self, pool: Pool) -> &mut Reading {
        match pool {
            Pool::LookUps => &mut self.look_ups,
            Pool::Scans => &mut self.scans,
        }
    }

    /// Whether something is being read.
    pub(super) fn is_under_way(&self) -> bool {
        !self.look_ups.running.is_empty() || !self.scans.running.is_empty()
    }

    pub(super) fn look_ups(&self) -> &Reading {
        &self.look_ups
    }
}

/// Takes jobs until the store closes.
pub(super) fn work(shared: &Shared, pool: Pool) {
    let mut looked: Option<Instant> = None;
    loop {
        let next = {
            let mut state = shared.lock();
            loop {
                if state.closing {
                    return;
                }
                // First, so that a stream of scans does not put it off for ever.
                let due = pool == Pool::Scans
                    && looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL);
                if due {
                    break None;
                }
                if !state.reading.is_paused
                    && let Some(job) = state.reading.of(pool).take()
                {
                    break Some(job);
                }
                state = shared.wait_to_read(pool, state, LOOK_INTERVAL);
            }
        };
        let Some((number, job)) = next else {
            shared.look();
            looked = Some(Instant::now());
            continue;
        };
        // A disk that hung comes back to what whole generations of users asked for before they were
        // given up. Nobody waits for that any more.
        let snapshot = if shared.lock().is_registered(job.who) {
            shared.snapshot(job.generation)
        } else {
            Err(StoreError::Ended)
        };
        match catch_unwind(AssertUnwindSafe(|| job.run(snapshot))) {
            Ok(None) => {}
            Ok(Some(fault)) => shared.note_fault(Operation::Read, &fault),
            Err(_) => error!("whoever was answered from the store panicked"),
        }
        shared.read_done(pool, number);
    }
}
