//! The threads of a store, and how its end waits for theirs.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use super::{error::StoreError, shared::Shared};

/// The threads of a store. It outlives what they share: a thread is counted until it has let go of
/// that, so that nobody finds the engine taken when they have ended.
#[derive(Debug, Default)]
pub(super) struct Threads {
    running: Mutex<Vec<ThreadId>>,
    ended: Condvar,
}

impl Threads {
    fn lock(&self) -> MutexGuard<'_, Vec<ThreadId>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all have ended but the one that asks, `patience` at most.
    pub(super) fn await_end(&self, patience: Duration) {
        let own = thread::current().id();
        let waited = Instant::now();
        let mut running = self.lock();
        while running.iter().any(|thread| *thread != own) {
            let left = patience.saturating_sub(waited.elapsed());
            if left.is_zero() {
                return;
            }
            let woken = self.ended.wait_timeout(running, left);
            running = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Starts a thread that is to end with the store.
pub(super) fn spawn(
    shared: &Arc<Shared>,
    name: &str,
    work: impl FnOnce(&Shared) + Send + 'static,
) -> Result<(), StoreError> {
    let (own, threads) = (Arc::clone(shared), Arc::clone(&shared.threads));
    let thread = thread::Builder::new().name(name.to_owned());
    // Held, so that the thread is counted before it can end.
    let mut counted = shared.threads.lock();
    let spawned = thread.spawn(move || {
        // Made here: its end takes the lock, which is held where a thread cannot be started.
        let running = Running {
            shared: Some(own),
            threads,
        };
        if let Some(shared) = running.shared.as_deref() {
            work(shared);
        }
    });
    let thread = spawned.map_err(|cause| StoreError::Io {
        place: shared.place.clone(),
        operation: "start a thread",
        reason: cause.to_string(),
        advice: "raise the process's limit of threads",
    })?;
    counted.push(thread.thread().id());
    Ok(())
}

struct Running {
    shared: Option<Arc<Shared>>,
    threads: Arc<Threads>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared = None;
        let own = thread::current().id();
        self.threads.lock().retain(|thread| *thread != own);
        self.threads.ended.notify_all();
    }
}
