//! The thread that commits, in groups: everything that was handed in while the last commit ran
//! becomes the next one.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::{
    batch::Batch,
    error::StoreError,
    store::{Shared, State, opening},
    user::{Generation, StoreEvent, Ticket, Who},
};

/// Bytes of one group, unless its first batch alone is larger: so long does one user wait for the
/// others.
const GROUP_BYTES: usize = 4 << 20;
/// Pause before a failed engine is opened again; doubles up to the longest with each failure.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_REOPEN_PAUSE: Duration = Duration::from_secs(5);

/// What the writer does, in turn.
pub(super) enum Queued {
    /// A user's batch.
    Batch { ticket: Ticket, batch: Batch },
    /// Tell a new user that the store is open.
    Welcome,
    /// Do this while nothing is committed.
    Held(Box<dyn FnOnce(&Shared) + Send>),
}

/// What waits for the writer, in the order in which it was handed in.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<(Who, Instant, Queued)>,
    /// Of the group that is being committed: its users, and since when each waits.
    under_way: Vec<(Who, Instant)>,
}

impl Queue {
    pub(super) fn push(&mut self, who: Who, queued: Queued) {
        self.waiting.push_back((who, Instant::now(), queued));
    }

    /// Who waits, and since when.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Who, Instant)> {
        let waiting = self.waiting.iter().map(|(who, since, _)| (*who, *since));
        waiting.chain(self.under_way.iter().copied())
    }

    /// The next group, or the one thing that is to be done before it.
    fn take(&mut self) -> Option<Work> {
        let mut group = Group::default();
        let mut bytes = 0;
        while let Some((who, since, queued)) = self.waiting.pop_front() {
            match queued {
                Queued::Batch { ticket, batch }
                    if group.batches.is_empty() || bytes + batch.bytes() <= GROUP_BYTES =>
                {
                    bytes += batch.bytes();
                    self.under_way.push((who, since));
                    group.through.insert(who.id, ticket);
                    group.batches.push(batch);
                }
                Queued::Welcome if group.batches.is_empty() => return Some(Work::Welcome(who.id)),
                Queued::Held(act) if group.batches.is_empty() => return Some(Work::Held(act)),
                later => {
                    self.waiting.push_front((who, since, later));
                    break;
                }
            }
        }
        (!group.batches.is_empty()).then_some(Work::Commit(group))
    }

    /// What was handed in is void. What is to be done while nothing is committed still is.
    fn clear(&mut self) {
        self.under_way.clear();
        self.waiting
            .retain(|(_, _, queued)| matches!(queued, Queued::Held(_)));
    }
}

enum Work {
    Commit(Group),
    Welcome(u64),
    Held(Box<dyn FnOnce(&Shared) + Send>),
}

/// Batches that are committed at once.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    /// The last batch of each user in it.
    through: BTreeMap<u64, Ticket>,
}

/// Works until the store is closed and nothing is left that was handed in.
pub(super) fn work(shared: &Shared) {
    loop {
        let mut state = shared.lock();
        let (work, generation, number) = loop {
            if let Some(work) = state.queue.take() {
                break (work, state.generation, state.confirmed + 1);
            }
            if state.closing {
                return;
            }
            state = shared.wait(state, None);
        };
        drop(state);
        match work {
            Work::Welcome(id) => shared.tell(id, StoreEvent::Opened(generation)),
            Work::Held(act) => act(shared),
            Work::Commit(group) => {
                let began = Instant::now();
                match guarded(shared, || shared.engine.commit(number, &group.batches)) {
                    Ok(()) => {
                        shared.metrics.record_commit(began.elapsed());
                        committed(shared, generation, number, group);
                    }
                    Err(fault) => {
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
        state.queue.under_way.clear();
    }
    for (id, ticket) in group.through {
        shared.tell(id, StoreEvent::Committed(generation, ticket));
    }
}

/// Ends the generation, and begins the next one once the engine can be used again; `false` when
/// the store is closed first.
fn open_again(shared: &Shared, ended: Generation, mut fault: StoreError) -> bool {
    let mut pause = REOPEN_PAUSE;
    let mut generation = ended;
    loop {
        error!(%fault, again_in = ?pause, "the store failed");
        shared.metrics.record_failure(&fault);
        let mut state = shared.lock();
        state.is_open = false;
        state.fault = Some(fault.clone());
        state.queue.clear();
        drop(state);
        shared.tell_all(&StoreEvent::Failed(ended, fault));
        if !paused(shared, pause) {
            return false;
        }
        pause = (pause * 2).min(LONGEST_REOPEN_PAUSE);
        generation = Generation(generation.0 + 1);
        match guarded(shared, || open(shared, generation)) {
            Ok(confirmed) => {
                info!(commit = confirmed, "the store is open again");
                let mut state = shared.lock();
                state.confirmed = confirmed;
                state.generation = generation;
                state.is_open = true;
                state.fault = None;
                drop(state);
                shared.tell_all(&StoreEvent::Opened(generation));
                return true;
            }
            Err(again) => fault = again,
        }
    }
}

/// A panic of an engine is a failure like any other: the thread that everyone relies on goes on.
fn guarded<T>(
    shared: &Shared,
    act: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|_| {
        Err(StoreError::Damaged {
            place: shared.place.clone(),
            reason: "the engine panicked over what it read".to_owned(),
        })
    })
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

/// Opens the engine, and commits once: whatever an earlier commit left in a cache is durable
/// then, or not there.
fn open(shared: &Shared, generation: Generation) -> Result<u64, StoreError> {
    let found = shared.engine.open()?;
    let confirmed = confirmed(&shared.lock());
    if found < confirmed {
        return Err(StoreError::WentBack {
            place: shared.place.clone(),
            confirmed,
            found,
        });
    }
    shared.check_same(&*shared.engine.snapshot()?)?;
    shared.engine.commit(found + 1, &[opening(generation)])?;
    Ok(found + 1)
}

fn confirmed(state: &State) -> u64 {
    state.confirmed
}
