//! One writer at a time, also when a tree gave up and left a thread behind in a commit.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tracing::warn;

use super::journal::Journal;

/// Engines that a thread writes to, by their address.
static WRITTEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static ENDED: Condvar = Condvar::new();

/// The right to use an engine. A supervisor waits for its own threads; a tree that is started
/// again after one has failed knows nothing of that one's, which may still have a group to
/// commit. Were it to land after the new tree's load, it would undo what came since.
#[derive(Debug)]
pub(super) struct Turn(usize);

impl Turn {
    /// Waits until no other thread uses the engine.
    pub(super) fn take(journal: &Arc<dyn Journal>) -> Self {
        let engine = Arc::as_ptr(journal).cast::<()>().addr();
        let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
        if written.contains(&engine) {
            warn!("the journal is in use by a tree that has ended, or by a second one; waiting");
        }
        while written.contains(&engine) {
            written = ENDED.wait(written).unwrap_or_else(PoisonError::into_inner);
        }
        written.push(engine);
        Self(engine)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut written = WRITTEN.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|engine| *engine != self.0);
        ENDED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::MemoryJournal;

    #[test]
    fn a_second_writer_waits_for_the_end_of_the_first() {
        let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let other: Arc<dyn Journal> = Arc::new(MemoryJournal::new());
        let first = Turn::take(&journal);
        drop(Turn::take(&other));
        let (tell, told) = mpsc::channel();
        let second = thread::spawn({
            let tell = tell.clone();
            move || {
                let _turn = Turn::take(&journal);
                tell.send("second").expect("heard");
            }
        });
        tell.send("first").expect("heard");
        drop(first);
        second.join().expect("no panic");
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["first", "second"]);
    }
}
