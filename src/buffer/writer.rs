//! The thread that owns the journal engine and commits in groups: all that queued while the last
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

/// The actor's end of the thread. Dropping it ends the thread once what was queued is committed.
#[derive(Debug)]
pub(super) struct Writer {
    batches: mpsc::Sender<(Ticket, Vec<Record>)>,
    last: Ticket,
}

impl Writer {
    /// Starts the thread. It loads the journal first, and reports that and every commit to
    /// `buffer` by message. `alive` is held until the thread has ended.
    pub(super) fn start(
        journal: Arc<dyn Journal>,
        buffer: ActorRef<BufferMessage>,
        alive: TaskTrackerToken,
    ) -> io::Result<Self> {
        // Not bounded here: what is queued is bounded by the lanes' capacity and the windows.
        let (batches, queued) = mpsc::channel();
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                let _alive = alive;
                let obituary = Obituary(buffer);
                write(journal.as_ref(), &queued, &obituary.0);
            })?;
        Ok(Self {
            batches,
            last: Ticket::default(),
        })
    }

    /// Queues records for the next commit.
    pub(super) fn queue(&mut self, records: Vec<Record>) -> Ticket {
        self.last = Ticket(self.last.0 + 1);
        // A thread that is gone has said so (`Obituary`): the actor is about to fail, and nothing
        // of this is confirmed.
        let _ = self.batches.send((self.last, records));
        self.last
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
    while let Ok((mut ticket, mut records)) = queued.recv() {
        while let Ok((next, more)) = queued.try_recv() {
            ticket = next;
            records.extend(more);
        }
        let committed = journal.commit(&records).map(|()| ticket);
        let failed = committed.is_err();
        if buffer.cast(BufferMessage::Committed(committed)).is_err() || failed {
            return;
        }
    }
}
