//! The thread that owns the journal engine, and commits in groups: all that came while the last
//! commit ran becomes the next one.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use ractor::ActorRef;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    BufferMessage,
    journal::{Journal, JournalError, Row},
    retained::Retained,
    turn::Turn,
};
use crate::telemetry::Metrics;

/// Numbers a decision; commits happen in the order of their tickets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The actor's end of the thread. What is decided while a commit runs is the next group: the
/// thread is woken once for a group, and a row that changes twice in it is written once. Dropping
/// it ends the thread; what was not committed was confirmed to nobody.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    /// Of the last decision.
    last: Ticket,
    /// Of the last group that the thread was given.
    sent: Ticket,
    busy: bool,
    /// When it was given its last job.
    given: Instant,
}

#[derive(Debug)]
enum Job {
    Load,
    Commit(Ticket, Vec<Row>),
}

impl Writer {
    /// Starts the thread, which loads the journal first. It reports every load and commit to
    /// `buffer` by message. `alive` is held until the thread has ended.
    pub(super) fn start(
        journal: Arc<dyn Journal>,
        buffer: ActorRef<BufferMessage>,
        metrics: Metrics,
        alive: TaskTrackerToken,
    ) -> io::Result<Self> {
        // At most one job is in it.
        let (jobs, queued) = mpsc::channel();
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                let _alive = alive;
                let obituary = Obituary(buffer);
                let _turn = Turn::take(&journal);
                work(journal.as_ref(), &queued, &obituary.0, &metrics);
            })?;
        let mut writer = Self {
            jobs,
            last: Ticket::default(),
            sent: Ticket::default(),
            busy: false,
            given: Instant::now(),
        };
        writer.load();
        Ok(writer)
    }

    /// Has the journal closed, opened and read again. What was decided and not committed is
    /// forgotten.
    pub(super) fn load(&mut self) {
        self.sent = self.last;
        self.give(Job::Load);
    }

    /// Has what has changed in `retained` committed, with the next group.
    pub(super) fn queue(&mut self, retained: &mut Retained) -> Ticket {
        self.last = Ticket(self.last.0 + 1);
        self.send(retained);
        self.last
    }

    /// The thread has done its job and takes the next one.
    pub(super) fn done(&mut self, retained: &mut Retained) {
        self.busy = false;
        self.send(retained);
    }

    fn send(&mut self, retained: &mut Retained) {
        if !self.busy && self.last > self.sent {
            self.sent = self.last;
            self.give(Job::Commit(self.last, retained.take_changes()));
        }
    }

    /// The thread has failed at its job, and has none until the journal is opened again.
    pub(super) fn failed(&mut self) {
        self.busy = false;
    }

    /// How long the thread has been at its job.
    pub(super) fn at_work_for(&self) -> Duration {
        match self.busy {
            true => self.given.elapsed(),
            false => Duration::ZERO,
        }
    }

    fn give(&mut self, job: Job) {
        self.busy = true;
        self.given = Instant::now();
        // A thread that is gone has said so (`Obituary`): the actor is about to fail, and nothing
        // of this is confirmed.
        let _ = self.jobs.send(job);
    }
}

/// Tells the actor that its thread has ended, by a panic too. One that ended because the actor
/// did is heard by nobody.
struct Obituary(ActorRef<BufferMessage>);

impl Drop for Obituary {
    fn drop(&mut self) {
        let _ = self
            .0
            .cast(BufferMessage::Committed(Err(JournalError::ThreadEnded)));
    }
}

/// Ends when the actor has dropped its end, or can no longer be told.
fn work(
    journal: &dyn Journal,
    queued: &mpsc::Receiver<Job>,
    buffer: &ActorRef<BufferMessage>,
    metrics: &Metrics,
) {
    while let Ok(job) = queued.recv() {
        let report = match job {
            Job::Load => {
                let loaded = faultable_engine!(buffer, JournalLoad, journal.load());
                let loaded = loaded.map(Retained::from_rows);
                BufferMessage::Loaded(loaded.map(Box::new))
            }
            // Nothing has changed: what waits for it may go on at once.
            Job::Commit(ticket, rows) if rows.is_empty() => BufferMessage::Committed(Ok(ticket)),
            Job::Commit(ticket, rows) => {
                let began = Instant::now();
                let committed = faultable_engine!(buffer, JournalCommit, journal.commit(&rows));
                metrics.record_journal_commit(began.elapsed());
                BufferMessage::Committed(committed.map(|()| ticket))
            }
        };
        if buffer.cast(report).is_err() {
            return;
        }
    }
}
