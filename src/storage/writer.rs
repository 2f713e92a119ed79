//! The thread that commits, in groups: everything that was handed in while the last commit ran
//! becomes the next one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::{
    error::StoreError,
    metrics::Operation,
    opening::Opening,
    queue::{GROUP_BYTES, Group, Work},
    shared::{Shared, guarded},
    user::{Generation, StoreEvent},
};

/// Pause before a failed engine is opened again; doubles up to the longest with each failure.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_REOPEN_PAUSE: Duration = Duration::from_secs(5);

/// Works until the store is closed and nothing is left that was handed in.
pub(super) fn work(shared: &Shared) {
    // A group is a whole number of batches, each of which the engine takes by itself.
    let limit = GROUP_BYTES.min(shared.engine.limits().batch_bytes);
    loop {
        let mut state = shared.lock();
        let (work, generation, number) = loop {
            if let Some(work) = state.queue.take(limit) {
                break (work, state.generation, state.confirmed + 1);
            }
            if state.closing {
                return;
            }
            state = shared.wait(state, None);
        };
        drop(state);
        match work {
            Work::Welcome(who) => {
                let told = shared.lock().welcome(who);
                told.tell(&StoreEvent::Opened(generation));
            }
            Work::Held(act) => {
                if catch_unwind(AssertUnwindSafe(|| act(shared))).is_err() {
                    error!("what was to be done while nothing is committed panicked");
                }
            }
            Work::Commit(group) => {
                let began = Instant::now();
                let done = guarded(&shared.place, "commit", || {
                    shared.engine.commit(number, &group.batches)
                });
                match done {
                    Ok(()) => {
                        shared.metrics.record_commit(began.elapsed());
                        committed(shared, generation, number, group);
                    }
                    Err(fault) => {
                        // It may be there after all.
                        shared.lock().note(&group.batches);
                        shared.note_fault(Operation::Commit, &fault);
                        if !open_again(shared, generation, fault) {
                            return;
                        }
                    }
                }
            }
        }
    }
}

fn committed(shared: &Shared, generation: Generation, number: u64, group: Group) {
    {
        let mut state = shared.lock();
        state.confirmed = number;
        state.note(&group.batches);
        state.queue.done();
    }
    for (id, ticket) in group.through {
        shared.tell(id, &StoreEvent::Committed(generation, ticket));
    }
}

/// Ends the generation, and begins the next one once the engine can be used again; `false` when
/// the store is closed first.
fn open_again(shared: &Shared, ended: Generation, mut fault: StoreError) -> bool {
    let mut pause = REOPEN_PAUSE;
    let mut generation = ended;
    loop {
        error!(%fault, again_in = ?pause, "the store failed");
        let told = shared.lock().fail(fault.clone());
        told.tell(&StoreEvent::Failed(ended, fault));
        if !paused(shared, pause) {
            return false;
        }
        pause = (pause * 2).min(LONGEST_REOPEN_PAUSE);
        generation = Generation(generation.0 + 1);
        match open(shared, generation) {
            Ok(confirmed) => {
                info!(commit = confirmed, "the store is open again");
                let told = shared.begin(generation, confirmed);
                told.tell(&StoreEvent::Opened(generation));
                return true;
            }
            Err(again) => {
                shared.note_fault(Operation::Open, &again);
                fault = again;
            }
        }
    }
}

/// Waits; `false` when the store is closed meanwhile.
fn paused(shared: &Shared, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    let mut state = shared.lock();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if state.closing || left.is_zero() {
            return !state.closing;
        }
        state = shared.wait(state, Some(left));
    }
}

/// Opens the engine, looks whether it is what was left, and commits once: nobody is told before
/// that has come through.
fn open(shared: &Shared, generation: Generation) -> Result<u64, StoreError> {
    let opened = guarded(&shared.place, "open", || {
        let found = shared.engine.open()?;
        let confirmed = shared.lock().confirmed;
        if found < confirmed {
            return Err(StoreError::WentBack {
                place: shared.place.clone(),
                confirmed,
                found,
            });
        }
        shared.check_same(&*shared.engine.snapshot()?)?;
        let opening = Opening {
            opener: shared.opener,
            generation,
        };
        let batch = opening.batch();
        let done = shared
            .engine
            .commit(found + 1, std::slice::from_ref(&batch));
        shared.lock().note(&[batch]);
        done.map(|()| found + 1)
    });
    if opened.is_err() {
        // It may be another file: nobody is to read it.
        let _ = guarded(&shared.place, "close", || {
            shared.engine.close();
            Ok(())
        });
    }
    opened
}
