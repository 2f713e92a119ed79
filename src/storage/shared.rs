//! What the store's handles and threads share.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::error;
use uuid::Uuid;

use super::{
    batch::Batch,
    engine::{Engine, Snapshot, Usage},
    error::StoreError,
    metrics::{Operation, StoreMetrics},
    noted::Noted,
    opening::Opening,
    owner::{Restored, StoreIdentity},
    queue::{Act, GROUP_BYTES, Queue},
    reader::{MOST_VIEWS, Pool, ReadJob, Readings},
    threads::Threads,
    upkeep::Upkeep,
    user::{Generation, StoreEvent, Ticket, User, Who},
};

/// The name that no user may have: the store's own tables begin with it.
const OWN_NAME: &str = "store";

pub(super) struct Shared {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) place: String,
    pub(super) identity: StoreIdentity,
    pub(super) restored: Option<Restored>,
    /// This opening of the store by this process.
    pub(super) opener: Uuid,
    pub(super) metrics: StoreMetrics,
    pub(super) state: Mutex<State>,
    /// Wakes the writer.
    pub(super) work: Condvar,
    /// Wakes those who look something up, and those who scan.
    pub(super) look_ups: Condvar,
    pub(super) scans: Condvar,
    /// Wakes whoever waits for reads to end, and whoever rests until the store closes.
    pub(super) ended: Condvar,
    pub(super) threads: Arc<Threads>,
}

pub(super) struct State {
    pub(super) closing: bool,
    pub(super) generation: Generation,
    pub(super) is_open: bool,
    pub(super) fault: Option<StoreError>,
    /// Why the disk failed last, until it has room for a group of commits: the commit with which an
    /// opening begins fits where the next one does not.
    pub(super) cramped: Option<StoreError>,
    /// The last commit that is known to be durable.
    pub(super) confirmed: u64,
    pub(super) queue: Queue,
    users: BTreeMap<u64, Registered>,
    next_user: u64,
    pub(super) reading: Readings,
    /// What is committed while a copy is made; nothing while none is.
    pub(super) noted: Option<Noted>,
    /// The number of the last copy that was begun.
    pub(super) copies: u64,
    pub(super) usage: Usage,
    pub(super) tables: Vec<(String, u64)>,
    pub(super) upkeep: Upkeep,
}

struct Registered {
    name: &'static str,
    last: Ticket,
    /// Whether it was told that the present generation is open.
    is_welcomed: bool,
    tell: Arc<Tell>,
}

type Tell = dyn Fn(StoreEvent) + Send + Sync;

/// Those who are to be told something.
pub(super) struct Told(Vec<Arc<Tell>>);

impl Told {
    /// Tells them. One that panics keeps nobody else from being told.
    pub(super) fn tell(self, event: &StoreEvent) {
        for tell in self.0 {
            if catch_unwind(AssertUnwindSafe(|| tell(event.clone()))).is_err() {
                error!(?event, "a user of the store panicked when it was told");
            }
        }
    }
}

impl State {
    pub(super) fn new(confirmed: u64, upkeep: Upkeep) -> Self {
        Self {
            closing: false,
            generation: Generation(1),
            is_open: true,
            fault: None,
            cramped: None,
            confirmed,
            queue: Queue::default(),
            users: BTreeMap::new(),
            next_user: 1,
            reading: Readings::default(),
            noted: None,
            copies: 0,
            usage: Usage::default(),
            tables: Vec::new(),
            upkeep,
        }
    }

    /// A user registers; whom it replaces.
    pub(super) fn register(&mut self, name: &'static str, tell: Arc<Tell>) -> (Who, Told) {
        let id = self.next_user;
        self.next_user += 1;
        let who = Who { id, name };
        let replaced = self.users.extract_if(.., |_, user| user.name == name);
        let replaced = Told(replaced.map(|(_, user)| user.tell).collect());
        let registered = Registered {
            name,
            last: Ticket::default(),
            is_welcomed: false,
            tell,
        };
        self.users.insert(id, registered);
        // While it is closed, all users are told when it is open again.
        if self.is_open {
            self.queue.push_welcome(who, Instant::now());
        }
        (who, replaced)
    }

    /// The generation ends, for this reason. Whoever was told of its opening is told of its end,
    /// once.
    pub(super) fn fail(&mut self, fault: StoreError) -> Told {
        self.is_open = false;
        if matches!(fault, StoreError::Io { .. }) {
            self.cramped = Some(fault.clone());
        }
        self.fault = Some(fault);
        self.queue.clear();
        let users = self.users.values_mut();
        let welcomed = users.filter_map(|user| {
            std::mem::take(&mut user.is_welcomed).then(|| Arc::clone(&user.tell))
        });
        Told(welcomed.collect())
    }

    /// The next generation begins. Who registers from now on has a welcome of its own.
    fn begin(&mut self, generation: Generation, confirmed: u64) -> Told {
        self.confirmed = confirmed;
        self.generation = generation;
        self.is_open = true;
        self.fault = None;
        let users = self.users.values_mut();
        Told(
            users
                .map(|user| {
                    user.is_welcomed = true;
                    Arc::clone(&user.tell)
                })
                .collect(),
        )
    }

    /// A user is to be told of the present generation, unless it has gone.
    pub(super) fn welcome(&mut self, who: Who) -> Told {
        let user = self.users.get_mut(&who.id);
        Told(
            user.map(|user| {
                user.is_welcomed = true;
                Arc::clone(&user.tell)
            })
            .into_iter()
            .collect(),
        )
    }

    /// Whether somebody waits for what this user asked for. Whoever is no user waits by himself.
    pub(super) fn is_registered(&self, who: Who) -> bool {
        who.id == 0 || self.users.contains_key(&who.id)
    }

    fn user(&self, id: u64) -> Told {
        let user = self.users.get(&id);
        Told(
            user.map(|user| Arc::clone(&user.tell))
                .into_iter()
                .collect(),
        )
    }

    /// The names of those who are registered.
    pub(super) fn users(&self) -> impl Iterator<Item = &'static str> {
        self.users.values().map(|user| user.name)
    }

    /// What the engine takes up, as it was just measured.
    pub(super) fn measured(&mut self, usage: Usage) {
        let has_room = usage
            .available_bytes
            .is_none_or(|left| left >= GROUP_BYTES as u64);
        if self.is_open && has_room {
            self.cramped = None;
        }
        self.usage = usage;
    }

    /// Notes what was committed, or may have been, for a copy that is being made.
    pub(super) fn note(&mut self, batches: &[Batch]) {
        if let Some(noted) = &mut self.noted {
            noted.note(batches);
        }
    }
}

/// Has an engine do something. One that panics has failed.
pub(super) fn guarded<T>(
    place: &str,
    operation: &str,
    call: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        // No proof of damage: what is damaged is found by who reads it.
        Err(StoreError::Io {
            place: place.to_owned(),
            operation: "go on",
            reason: format!("its engine panicked in `{operation}`"),
            advice: "keep the log, and report it; the store is opened again",
        })
    })
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done between two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakes(&self, pool: Pool) -> &Condvar {
        match pool {
            Pool::LookUps => &self.look_ups,
            Pool::Scans => &self.scans,
        }
    }

    /// Waits for work, `pause` at most.
    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        pause: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        wait(&self.work, state, pause)
    }

    /// Waits for something to read, `pause` at most.
    pub(super) fn wait_to_read<'a>(
        &self,
        pool: Pool,
        state: MutexGuard<'a, State>,
        pause: Duration,
    ) -> MutexGuard<'a, State> {
        wait(self.wakes(pool), state, Some(pause))
    }

    /// Waits for the store to close, or for a read to end that somebody waits for, `pause` at most.
    pub(super) fn wait_for_end<'a>(
        &self,
        state: MutexGuard<'a, State>,
        pause: Duration,
    ) -> MutexGuard<'a, State> {
        wait(&self.ended, state, Some(pause))
    }

    /// A read is done.
    pub(super) fn read_done(&self, pool: Pool, number: u64) {
        let mut state = self.lock();
        state.reading.of(pool).done(number);
        if state.reading.is_paused {
            self.ended.notify_all();
        }
    }

    /// What the present generation shows. `Ended` when another one was asked for, or it ends
    /// meanwhile: what an engine shows while it is being opened again may not be durable.
    pub(super) fn snapshot(
        &self,
        asked: Option<Generation>,
    ) -> Result<Box<dyn Snapshot>, StoreError> {
        let before = self.readable(asked)?;
        let snapshot = guarded(&self.place, "snapshot", || self.engine.snapshot())?;
        self.readable(Some(before))?;
        Ok(snapshot)
    }

    /// The generation that may be read now; why there is none, or not the one asked for.
    pub(super) fn readable(&self, asked: Option<Generation>) -> Result<Generation, StoreError> {
        let state = self.lock();
        if asked.is_some_and(|asked| asked != state.generation) {
            Err(StoreError::Ended)
        } else if state.is_open {
            Ok(state.generation)
        } else {
            let fault = state.fault.clone().map(Box::new);
            Err(fault.map_or_else(
                || StoreError::Closed {
                    place: self.place.clone(),
                },
                |fault| StoreError::Reopening { fault },
            ))
        }
    }

    /// That the engine is still the store that was opened first, as it was left.
    pub(super) fn check_same(&self, snapshot: &dyn Snapshot) -> Result<(), StoreError> {
        let found = StoreIdentity::read(&self.place, snapshot)?;
        if found.store_id != self.identity.store_id {
            return Err(StoreError::Foreign {
                place: self.place.clone(),
                what: "store id",
                found: found.store_id.to_string(),
                expected: self.identity.store_id.to_string(),
                advice: "it was swapped for another one while the node ran; put the right one back",
            });
        }
        Opening::check(&self.place, snapshot, self.opener)
    }

    pub(super) fn enqueue(
        &self,
        user: &User,
        generation: Generation,
        batch: Batch,
    ) -> Result<Ticket, StoreError> {
        self.check_batch(user.who.name, &batch)?;
        let mut state = self.lock();
        let is_now = state.is_open && state.generation == generation;
        let Some(registered) = state.users.get_mut(&user.who.id) else {
            return Err(StoreError::Ended);
        };
        registered.last = Ticket(registered.last.0 + 1);
        let ticket = registered.last;
        if is_now {
            let now = Instant::now();
            state.queue.push_batch(user.who, now, ticket, batch);
            self.work.notify_one();
        }
        Ok(ticket)
    }

    /// Hands in a batch of the store's own, of which nobody is told.
    pub(super) fn enqueue_own(&self, batch: Batch) {
        let who = Who {
            id: 0,
            name: OWN_NAME,
        };
        let mut state = self.lock();
        if state.is_open {
            let now = Instant::now();
            state.queue.push_batch(who, now, Ticket::default(), batch);
            self.work.notify_one();
        }
    }

    /// Has something done on the writer's thread, before the next group.
    pub(super) fn hold(&self, act: Act) {
        self.lock().queue.push_held(act);
        self.work.notify_one();
    }

    /// What the engine could never take, or must not, is refused before it is queued.
    fn check_batch(&self, user: &'static str, batch: &Batch) -> Result<(), StoreError> {
        let limits = self.engine.limits();
        let too_large = |what, bytes, limit| StoreError::TooLarge { what, bytes, limit };
        if batch.bytes() > limits.batch_bytes {
            return Err(too_large("a batch", batch.bytes(), limits.batch_bytes));
        }
        for change in batch.changes() {
            let value = change.value.as_ref().map_or(0, Vec::len);
            if value > limits.value_bytes {
                return Err(too_large("a value", value, limits.value_bytes));
            }
            if change.key.len() > limits.key_bytes {
                return Err(too_large("a key", change.key.len(), limits.key_bytes));
            }
            if change.key.is_empty() {
                return Err(StoreError::EmptyKey {
                    table: change.table.clone().into_owned(),
                });
            }
            let of_user = change.table.strip_prefix(user);
            // A user `a/b` would write to tables of a user `a`.
            let is_own = user != OWN_NAME && !user.contains('/');
            if !is_own || !of_user.is_some_and(|rest| rest.starts_with('/')) {
                return Err(StoreError::ForeignTable {
                    user,
                    table: change.table.clone().into_owned(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn read(&self, pool: Pool, job: ReadJob) {
        let pushed = self.lock().reading.of(pool).push(job);
        match pushed {
            Ok(()) => self.wakes(pool).notify_one(),
            Err(job) => job.refuse(StoreError::Busy {
                place: self.place.clone(),
                waiting: MOST_VIEWS,
            }),
        }
    }

    pub(super) fn waiting_for(&self, who: Who) -> Duration {
        let state = self.lock();
        let all = state
            .queue
            .waiting()
            .chain(state.reading.look_ups().waiting());
        let own = all.filter(|(of, _)| *of == who);
        own.map(|(_, since)| since.elapsed())
            .max()
            .unwrap_or_default()
    }

    pub(super) fn unregister(&self, id: u64) {
        self.lock().users.remove(&id);
    }

    /// Tells one user.
    pub(super) fn tell(&self, id: u64, event: &StoreEvent) {
        let told = self.lock().user(id);
        told.tell(event);
    }

    /// Counts a read's fault, and remembers that something is damaged.
    pub(super) fn note_fault(&self, operation: Operation, fault: &StoreError) {
        // Whoever reads a store that is closed finds nothing: its own attempts are counted.
        if let StoreError::Ended | StoreError::Closed { .. } | StoreError::Reopening { .. } = fault
        {
            return;
        }
        self.metrics.record_failure(operation, fault);
        if matches!(fault, StoreError::Damaged { .. }) {
            error!(%fault, "the store is damaged");
            let mut state = self.lock();
            let damage = match operation {
                Operation::Read => &mut state.upkeep.damaged_rows,
                _ => &mut state.upkeep.damaged_blocks,
            };
            *damage = Some(fault.clone());
        }
    }

    /// Looks at what the engine takes up. While it is closed, at what is left to it on its disk.
    pub(super) fn look(&self) {
        let usage = guarded(&self.place, "usage", || {
            self.engine.checkpoint();
            self.engine.usage()
        });
        let available_bytes = self.available();
        let tables = self.snapshot(None);
        let tables = tables.and_then(|shown| guarded(&self.place, "tables", || shown.tables()));
        if usage.is_err() {
            // The file may be gone, or cut off. A commit finds out, and has the store opened again:
            // a node that has nothing to commit would go on without it.
            self.enqueue_own(Batch::default());
        }
        let mut state = self.lock();
        let usage = usage.unwrap_or(Usage {
            available_bytes,
            ..state.usage
        });
        state.measured(usage);
        if let Ok(tables) = tables {
            state.tables = tables;
        }
    }

    /// Bytes that are left on the engine's disk, open or closed, where it has one.
    fn available(&self) -> Option<u64> {
        let copy = self.engine.copy_place()?;
        copy.parent().and_then(super::embedded::available)
    }

    /// The next generation begins; who is to be told.
    pub(super) fn begin(&self, generation: Generation, confirmed: u64) -> Told {
        let available_bytes = self.available();
        let mut state = self.lock();
        let told = state.begin(generation, confirmed);
        let usage = Usage {
            available_bytes: available_bytes.or(state.usage.available_bytes),
            ..state.usage
        };
        state.measured(usage);
        told
    }
}

fn wait<'a>(
    wake: &Condvar,
    state: MutexGuard<'a, State>,
    pause: Option<Duration>,
) -> MutexGuard<'a, State> {
    match pause {
        Some(pause) => {
            let woken = wake.wait_timeout(state, pause);
            woken.unwrap_or_else(PoisonError::into_inner).0
        }
        None => wake.wait(state).unwrap_or_else(PoisonError::into_inner),
    }
}
