//! The thread that owns the journal engine, and commits in groups: all that came while the last
//! commit ran becomes the next one.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use ractor::ActorRef;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    BufferMessage,
    journal::{Journal, JournalError, Record},
};

/// Numbers a batch of records; commits happen in the order of their tickets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The actor's end of the thread. It gathers what comes while a commit runs: the thread is woken
/// once for a group, not for each of its records. Dropping it ends the thread; what it gathered
/// was confirmed to nobody.
#[derive(Debug)]
pub(super) struct Writer {
    groups: mpsc::Sender<(Ticket, Vec<Record>)>,
    gathered: Vec<Record>,
    /// Of the last records that came.
    last: Ticket,
    /// Of the group that the thread has.
    sent: Ticket,
    committing: bool,
}

impl Writer {
    /// Starts the thread. It loads the journal first, and reports that and every commit to
    /// `buffer` by message. `alive` is held until the thread has ended.
    pub(super) fn start(
        journal: Arc<dyn Journal>,
        buffer: ActorRef<BufferMessage>,
        alive: TaskTrackerToken,
    ) -> io::Result<Self> {
        // At most one group is in it.
        let (groups, queued) = mpsc::channel();
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                let _alive = alive;
                let obituary = Obituary(buffer);
                write(journal.as_ref(), &queued, &obituary.0);
            })?;
        Ok(Self {
            groups,
            gathered: Vec::new(),
            last: Ticket::default(),
            sent: Ticket::default(),
            committing: false,
        })
    }

    /// Has records committed, with the next group.
    pub(super) fn queue(&mut self, records: Vec<Record>) -> Ticket {
        self.last = Ticket(self.last.0 + 1);
        if self.gathered.is_empty() {
            self.gathered = records;
        } else {
            self.gathered.extend(records);
        }
        self.send();
        self.last
    }

    /// The thread has committed its group and takes the next one.
    pub(super) fn committed(&mut self) {
        self.committing = false;
        self.send();
    }

    fn send(&mut self) {
        if !self.committing && self.last > self.sent {
            let group = std::mem::take(&mut self.gathered);
            (self.sent, self.committing) = (self.last, true);
            // A thread that is gone has said so (`Obituary`): the actor is about to fail, and
            // nothing of this is confirmed.
            let _ = self.groups.send((self.last, group));
        }
    }
}

/// Tells the actor that its thread has ended, by a panic too. One that ended because the actor
/// did is heard by nobody.
struct Obituary(ActorRef<BufferMessage>);

impl Drop for Obituary {
    fn drop(&mut self) {
        let ended = JournalError {
            operation: "commit",
            reason: "its thread ended; the buffer restarts and reads what was kept".to_owned(),
        };
        let _ = self.0.cast(BufferMessage::Committed(Err(ended)));
    }
}

/// Ends when the actor has dropped its end, or can no longer be told.
fn write(
    journal: &dyn Journal,
    queued: &mpsc::Receiver<(Ticket, Vec<Record>)>,
    buffer: &ActorRef<BufferMessage>,
) {
    if buffer
        .cast(BufferMessage::Loaded(journal.load().map(Box::new)))
        .is_err()
    {
        return;
    }
    while let Ok((ticket, records)) = queued.recv() {
        let committed = journal.commit(&records).map(|()| ticket);
        let failed = committed.is_err();
        if buffer.cast(BufferMessage::Committed(committed)).is_err() || failed {
            return;
        }
    }
}
