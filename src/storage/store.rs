//! The store: one engine, one writer thread, and everyone who uses them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::error;

use super::{
    batch::Batch,
    engine::{Engine, Snapshot, Usage},
    error::StoreError,
    index::HashKey,
    memory::MemoryEngine,
    metrics::StoreMetrics,
    owner::{OPENED_KEY, Owner, Restored, StoreIdentity},
    reader::{Pool, ReadJob, Readings},
    user::{Generation, StoreEvent, Ticket, User, Who},
    writer::{self, Queue, Queued},
};

/// How long dropping the last handle waits for the threads to end.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// How often what the engine takes up is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Whoever reads without being a user.
const VIEWER: Who = Who {
    id: 0,
    name: "viewer",
};

/// An open store. Clones are the same store; it closes when the last of them, and the last of its
/// users, is dropped.
///
/// One thread commits for all users, in groups, in the order in which batches were handed in. When
/// a commit fails, the *generation* ends: whatever is not confirmed is void, users are told, the
/// engine is opened again with growing pauses, and a commit of the store's own must come through
/// before anyone is told that it is open: what an earlier, failed commit left in a cache is then
/// either durable or not there.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("place", &self.0.shared.place)
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) place: String,
    identity: StoreIdentity,
    restored: Option<Restored>,
    pub(super) metrics: StoreMetrics,
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes those who look something up, and those who scan.
    look_ups: Condvar,
    scans: Condvar,
    /// Wakes whoever waits for the threads to end.
    ended: Condvar,
}

pub(super) struct State {
    pub(super) closing: bool,
    threads: usize,
    pub(super) generation: Generation,
    pub(super) is_open: bool,
    pub(super) fault: Option<StoreError>,
    /// The last commit that is known to be durable.
    pub(super) confirmed: u64,
    pub(super) queue: Queue,
    users: BTreeMap<u64, Registered>,
    next_user: u64,
    reading: Readings,
    usage: Usage,
    tables: Vec<(String, u64)>,
}

struct Registered {
    name: &'static str,
    last: Ticket,
    tell: Arc<Tell>,
}

pub(super) type Tell = dyn Fn(StoreEvent) + Send + Sync;

/// How a store is, for health and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreCondition {
    /// Why it is closed, if it is: it is being opened again.
    pub fault: Option<StoreError>,
    /// The last commit that is known to be durable.
    pub confirmed: u64,
    /// For how long the oldest batch of each user that has one has been waiting.
    pub batches: BTreeMap<&'static str, Duration>,
    /// For how long the oldest look-up of each user that has one has been waiting.
    pub look_ups: BTreeMap<&'static str, Duration>,
    /// What the engine takes up, as of a few seconds ago.
    pub usage: Usage,
    /// Rows by table, as of a few seconds ago.
    pub tables: Vec<(String, u64)>,
}

impl Store {
    /// A store in memory, which belongs to whoever opens it: for tests and demonstrations.
    #[must_use]
    pub fn in_memory() -> Self {
        let owner = Owner {
            node_id: "memory".to_owned(),
            chain_id: "memory".to_owned(),
            network: "memory".to_owned(),
            first_federation: None,
        };
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
        let identity = StoreIdentity::new(owner);
        // Memory does not fail.
        let _ = engine.commit(1, &[identity.first_batch()]);
        Self::begin(engine, identity, None, 1)
    }

    /// Makes `owner`'s store on an engine that holds nothing, and opens it.
    ///
    /// # Errors
    ///
    /// When it holds something, or fails.
    pub fn create_on(engine: Arc<dyn Engine>, owner: &Owner) -> Result<Self, StoreError> {
        let place = engine.place();
        let found = engine.open()?;
        if found != 0 {
            return Err(StoreError::Occupied {
                place,
                found: format!("a store with {found} commits"),
            });
        }
        let identity = StoreIdentity::new(owner.clone());
        engine.commit(1, &[identity.first_batch()])?;
        Self::open_on(engine, owner)
    }

    /// Opens `owner`'s store. Blocks for as long as the engine takes.
    ///
    /// # Errors
    ///
    /// When there is none, it cannot be read, or it is not `owner`'s.
    pub fn open_on(engine: Arc<dyn Engine>, owner: &Owner) -> Result<Self, StoreError> {
        let found = engine.open()?;
        let (identity, restored) = {
            let snapshot = engine.snapshot()?;
            let place = engine.place();
            let identity = StoreIdentity::read(&place, &*snapshot)?;
            identity.check_owner(&place, owner)?;
            (identity, Restored::read(&place, &*snapshot)?)
        };
        engine.commit(found + 1, &[opening(Generation(1))])?;
        Ok(Self::begin(engine, identity, restored, found + 1))
    }

    fn begin(
        engine: Arc<dyn Engine>,
        identity: StoreIdentity,
        restored: Option<Restored>,
        confirmed: u64,
    ) -> Self {
        let shared = Arc::new(Shared {
            place: engine.place(),
            engine,
            identity,
            restored,
            metrics: StoreMetrics::default(),
            state: Mutex::new(State {
                closing: false,
                threads: 0,
                generation: Generation(1),
                is_open: true,
                fault: None,
                confirmed,
                queue: Queue::default(),
                users: BTreeMap::new(),
                next_user: 1,
                reading: Readings::default(),
                usage: Usage::default(),
                tables: Vec::new(),
            }),
            work: Condvar::new(),
            look_ups: Condvar::new(),
            scans: Condvar::new(),
            ended: Condvar::new(),
        });
        spawn(&shared, "store-writer", writer::work);
        for _ in 0..2 {
            spawn(&shared, "store-look-up", |shared| {
                read_on(shared, Pool::LookUps);
            });
        }
        spawn(&shared, "store-scan", |shared| read_on(shared, Pool::Scans));
        Self(Arc::new(Inner { shared }))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// What names it.
    #[must_use]
    pub fn identity(&self) -> &StoreIdentity {
        &self.0.shared.identity
    }

    /// That it was made from a backup, if it was.
    #[must_use]
    pub fn restored(&self) -> Option<&Restored> {
        self.0.shared.restored.as_ref()
    }

    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.0.shared.place
    }

    /// The secret of its indexes.
    #[must_use]
    pub fn hash_key(&self) -> HashKey {
        self.0.shared.identity.hash_key
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &StoreMetrics {
        &self.0.shared.metrics
    }

    /// Registers a user. `tell` is called on the writer's thread and must not wait; it is first
    /// told `Opened` once everything that a predecessor of the same name has handed in is
    /// committed. The predecessor is told `Replaced`.
    pub fn register(
        &self,
        name: &'static str,
        tell: impl Fn(StoreEvent) + Send + Sync + 'static,
    ) -> User {
        let mut state = self.0.shared.lock();
        let id = state.next_user;
        state.next_user += 1;
        let who = Who { id, name };
        let same = |user: &Registered| user.name == name;
        let old: Vec<u64> = {
            let users = state.users.iter();
            users.filter(|(_, u)| same(u)).map(|(id, _)| *id).collect()
        };
        let old = old.into_iter().filter_map(|id| state.users.remove(&id));
        let replaced: Vec<Arc<Tell>> = old.map(|user| user.tell).collect();
        let registered = Registered {
            name,
            last: Ticket::default(),
            tell: Arc::new(tell),
        };
        state.users.insert(id, registered);
        // While it is closed, all users are told when it is open again.
        if state.is_open {
            state.queue.push(who, Queued::Welcome);
            self.0.shared.work.notify_one();
        }
        drop(state);
        for tell in replaced {
            tell(StoreEvent::Replaced);
        }
        User {
            store: self.clone(),
            who,
        }
    }

    /// Reads something, for whoever is no user: what is seen is what is durable.
    ///
    /// # Errors
    ///
    /// When it is closed, or `read` fails.
    pub async fn view<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Snapshot) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let answer = move |result| {
            // Nobody waits for it any more.
            let _ = tell.send(result);
        };
        let job = ReadJob::new(VIEWER, None, read, answer);
        self.0.shared.read(Pool::Scans, job);
        told.await.unwrap_or(Err(StoreError::Ended))
    }

    /// How it is.
    #[must_use]
    pub fn condition(&self) -> StoreCondition {
        let state = self.0.shared.lock();
        StoreCondition {
            fault: state.fault.clone(),
            confirmed: state.confirmed,
            batches: oldest(state.queue.waiting()),
            look_ups: oldest(state.reading.look_ups().waiting()),
            usage: state.usage,
            tables: state.tables.clone(),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        for wake in [&self.shared.work, &self.shared.look_ups, &self.shared.scans] {
            wake.notify_all();
        }
        // So that whoever opens it next finds it free. A disk that hangs keeps nobody longer.
        let waited = Instant::now();
        while state.threads > 0 && waited.elapsed() < END_DEADLINE {
            let left = END_DEADLINE.saturating_sub(waited.elapsed());
            let woken = self.shared.ended.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// For how long the first of each user's has been waiting.
fn oldest(waiting: impl Iterator<Item = (Who, Instant)>) -> BTreeMap<&'static str, Duration> {
    let mut oldest = BTreeMap::new();
    for (who, since) in waiting {
        let age = oldest.entry(who.name).or_insert(Duration::ZERO);
        *age = since.elapsed().max(*age);
    }
    oldest
}

/// The commit that an opening begins with.
pub(super) fn opening(generation: Generation) -> Batch {
    let mut batch = Batch::new();
    let value = generation.0.to_be_bytes();
    batch.put(super::owner::META, OPENED_KEY, value);
    batch
}

/// Counts a thread among those that are to end with the store.
fn spawn(shared: &Arc<Shared>, name: &str, work: impl FnOnce(&Shared) + Send + 'static) {
    shared.lock().threads += 1;
    let counted = Arc::clone(shared);
    let thread = thread::Builder::new().name(name.to_owned());
    let spawned = thread.spawn(move || {
        let ends = Ends(counted);
        work(&ends.0);
    });
    if let Err(cause) = spawned {
        error!(%cause, name, "a thread of the store could not be started");
        let mut state = shared.lock();
        state.threads -= 1;
        state.is_open = false;
        state.fault = Some(StoreError::Io {
            place: shared.place.clone(),
            operation: "start a thread",
            reason: cause.to_string(),
            advice: "raise the process's limit of threads",
        });
    }
}

struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.lock().threads -= 1;
        self.0.ended.notify_all();
    }
}

/// Takes jobs until the store closes.
fn read_on(shared: &Shared, pool: Pool) {
    let mut looked: Option<Instant> = None;
    loop {
        let next = {
            let mut state = shared.lock();
            loop {
                if state.closing {
                    return;
                }
                if let Some(job) = state.reading.of(pool).take() {
                    break Some((state.generation, state.is_open, job));
                }
                let due = pool == Pool::Scans
                    && looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL);
                if due {
                    break None;
                }
                let wake = shared.wakes(pool);
                let woken = wake.wait_timeout(state, LOOK_INTERVAL);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        let Some((generation, is_open, (number, job))) = next else {
            looked = Some(Instant::now());
            shared.look();
            continue;
        };
        let snapshot = if job.generation.is_some_and(|asked| asked != generation) {
            Err(StoreError::Ended)
        } else if is_open {
            shared.engine.snapshot()
        } else {
            Err(shared.closed())
        };
        job.run(snapshot);
        shared.lock().reading.of(pool).done(number);
    }
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
        match pause {
            Some(pause) => {
                let woken = self.work.wait_timeout(state, pause);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(super) fn closed(&self) -> StoreError {
        let fault = self.lock().fault.clone();
        fault.unwrap_or_else(|| StoreError::Closed {
            place: self.place.clone(),
        })
    }

    /// That the engine is still the store that was opened first.
    pub(super) fn check_same(&self, snapshot: &dyn Snapshot) -> Result<(), StoreError> {
        let found = StoreIdentity::read(&self.place, snapshot)?;
        if found.store_id == self.identity.store_id {
            return Ok(());
        }
        Err(StoreError::Foreign {
            place: self.place.clone(),
            what: "store id",
            found: found.store_id.to_string(),
            expected: self.identity.store_id.to_string(),
            advice: "it was swapped for another one while the node ran; put the right one back",
        })
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
            let queued = Queued::Batch { ticket, batch };
            state.queue.push(user.who, queued);
            self.work.notify_one();
        }
        Ok(ticket)
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
            let of_user = change.table.strip_prefix(user);
            if !of_user.is_some_and(|rest| rest.starts_with('/')) {
                return Err(StoreError::ForeignTable {
                    user,
                    table: change.table.clone().into_owned(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn read(&self, pool: Pool, job: ReadJob) {
        self.lock().reading.of(pool).push(job);
        self.wakes(pool).notify_one();
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
    pub(super) fn tell(&self, id: u64, event: StoreEvent) {
        let tell = self
            .lock()
            .users
            .get(&id)
            .map(|user| Arc::clone(&user.tell));
        if let Some(tell) = tell {
            tell(event);
        }
    }

    /// Tells every user.
    pub(super) fn tell_all(&self, event: &StoreEvent) {
        let tells: Vec<Arc<Tell>> = {
            let state = self.lock();
            state
                .users
                .values()
                .map(|user| Arc::clone(&user.tell))
                .collect()
        };
        for tell in tells {
            tell(event.clone());
        }
    }

    /// Looks at what the engine takes up.
    fn look(&self) {
        let usage = self.engine.usage();
        let tables = self
            .engine
            .snapshot()
            .and_then(|snapshot| snapshot.tables());
        let mut state = self.lock();
        if let Ok(usage) = usage {
            state.usage = usage;
        }
        if let Ok(tables) = tables {
            state.tables = tables;
        }
    }
}
