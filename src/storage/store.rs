//! The store: one engine, one writer thread, and everyone who uses them.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Condvar, Mutex, Weak},
    time::Duration,
};

use prometheus_client::registry::Registry;
use uuid::Uuid;

use super::{
    condition::StoreCondition,
    embedded::{CopyWriter, RedbEngine},
    engine::{Engine, Snapshot},
    error::StoreError,
    format::{MIGRATIONS, migrate},
    index::HashKey,
    memory::MemoryEngine,
    metrics::StoreMetrics,
    opening::Opening,
    owner::{FORMAT, Owner, Restored, StoreIdentity},
    reader::{self, Pool, ReadJob},
    shared::{Shared, State},
    sidecar::Unfinished,
    threads::{Threads, spawn},
    upkeep::Upkeep,
    user::{Generation, StoreEvent, User, VIEWER},
    writer,
};

/// How long dropping the last handle waits for the threads to end.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// Threads that look things up.
const LOOK_UP_THREADS: usize = 2;

/// An open store. Clones are the same store; it closes when the last of them, and the last of its
/// users, is dropped: what was handed in is committed first, unless it fails. Whoever drops the last
/// one waits for that for two seconds at most; on a disk that hangs the threads end when it comes
/// back, and until then nobody else can open what they hold.
///
/// One thread commits for all users, in groups. The batches of one user are committed in the order
/// in which they were handed in, and so are those of all users while they fit one group of 4 MiB;
/// beyond that users take turns, so that none waits for more than one such group of each of the
/// others.
///
/// When a commit fails, the *generation* ends: whatever is not confirmed is void, users are told
/// once, and the engine is opened again with growing pauses until it is what it was, at no earlier
/// commit than the last confirmed one, and takes a commit of the store's own. Then users are told
/// that it is open. That what an earlier, failed commit left in a cache is not taken for durable is
/// the engine's to see to ([`Engine::open`]).
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// Dropped last. Whoever opens the store next finds it free: the threads, too, have let go of
    /// the engine then. A disk that hangs keeps nobody longer.
    _end: AwaitEnd,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("place", &self.0.shared.place)
            .finish_non_exhaustive()
    }
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
        let first = Opening {
            opener: Uuid::new_v4(),
            generation: Generation(1),
        };
        // Memory does not fail.
        let _ = engine.commit(1, &[identity.first_batch(), first.batch()]);
        let opened = Opened {
            engine,
            identity,
            restored: None,
            opener: first.opener,
            confirmed: 1,
            upkeep: Upkeep::default(),
        };
        opened.begin().0
    }

    /// Makes `owner`'s store in a directory, which is made if it is not there, and opens it.
    /// `beside_others` lets other files be in the directory, but no store.
    ///
    /// # Errors
    ///
    /// [`StoreError::Occupied`] when something is there, and what the disk says.
    pub fn create(
        directory: impl AsRef<Path>,
        owner: &Owner,
        beside_others: bool,
    ) -> Result<Self, StoreError> {
        // With its identity in it: a crash leaves no file, or a whole store.
        let identity = StoreIdentity::new(owner.clone());
        let fill = |writer: &mut CopyWriter| {
            let batch = identity.first_batch();
            batch.changes().iter().try_for_each(|change| {
                let value = change.value.clone().unwrap_or_default();
                writer.put(&change.table, change.key.clone(), value)
            })
        };
        let engine = RedbEngine::create_with(directory.as_ref(), beside_others, 1, fill)
            .map_err(StoreError::of_new_file)?;
        Self::open_on(Arc::new(engine), owner)
    }

    /// Opens `owner`'s store in a directory. It makes nothing: a store that has vanished is a fault,
    /// and no new one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Absent`] when there is none, [`StoreError::Held`] while another process has
    /// it, [`StoreError::Foreign`] when it is not `owner`'s, and what else [`StoreError`] names.
    pub fn open(directory: impl AsRef<Path>, owner: &Owner) -> Result<Self, StoreError> {
        Self::open_on(Arc::new(RedbEngine::at(directory)?), owner)
    }

    /// Makes `owner`'s store on an engine that holds nothing, and opens it.
    ///
    /// # Errors
    ///
    /// When it holds something, or fails. A crash on the way leaves an engine that holds nothing or
    /// a whole store.
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

    /// Opens `owner`'s store, brought to this version's format first if it is in an earlier one:
    /// then a copy of it is kept beside it. Blocks for as long as that takes.
    ///
    /// # Errors
    ///
    /// When there is none, it cannot be read, it is not `owner`'s, or its format is newer.
    pub fn open_on(engine: Arc<dyn Engine>, owner: &Owner) -> Result<Self, StoreError> {
        let place = engine.place();
        // What a crash has left of a copy may take up the room that an opening needs.
        drop(engine.copy_place().map(Unfinished::at));
        let found = engine.open()?;
        if found == 0 {
            return Err(StoreError::Absent { place });
        }
        StoreIdentity::read_of_any_format(&place, &*engine.snapshot()?)?
            .check_owner(&place, owner)?;
        let found = migrate(&*engine, found, FORMAT, MIGRATIONS)?;
        let (identity, restored, upkeep) = {
            let snapshot = engine.snapshot()?;
            let identity = StoreIdentity::read(&place, &*snapshot)?;
            let restored = Restored::read(&place, &*snapshot)?;
            (identity, restored, Upkeep::read(&place, &*snapshot)?)
        };
        let first = Opening {
            opener: Uuid::new_v4(),
            generation: Generation(1),
        };
        engine.commit(found + 1, &[first.batch()])?;
        let opened = Opened {
            engine,
            identity,
            restored,
            opener: first.opener,
            confirmed: found + 1,
            upkeep,
        };
        let (store, threads) = opened.begin();
        threads.map(|()| store)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(super) fn shared_handle(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// A handle that does not keep the store open.
    #[must_use]
    pub fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.0))
    }

    /// Why it is closed, if it is: it is being opened again.
    #[must_use]
    pub fn fault(&self) -> Option<StoreError> {
        self.shared().lock().fault.clone()
    }

    /// For how long the oldest batch or look-up of any user has been waiting; zero without one. It
    /// never waits for the disk.
    #[must_use]
    pub fn waiting_for(&self) -> Duration {
        let state = self.shared().lock();
        let look_ups = state.reading.look_ups();
        let since = state.queue.waiting().chain(look_ups.waiting());
        since
            .map(|(_, since)| since.elapsed())
            .max()
            .unwrap_or_default()
    }

    /// What is wrong with it although it may be open: its disk failed and has no room yet
    /// ([`StoreCondition::cramped`]), or something is damaged ([`StoreCondition::damage`]).
    #[must_use]
    pub fn ailment(&self) -> Option<StoreError> {
        let state = self.shared().lock();
        let damage = state.upkeep.damage();
        state.cramped.as_ref().or(damage).cloned()
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
    /// committed or void. The predecessor is told `Replaced` at once, on the thread of whoever
    /// registers.
    ///
    /// A name is a word without a slash, and not `store`: what others hand in is refused.
    pub fn register(
        &self,
        name: &'static str,
        tell: impl Fn(StoreEvent) + Send + Sync + 'static,
    ) -> User {
        let (who, replaced) = self.0.shared.lock().register(name, Arc::new(tell));
        self.0.shared.work.notify_one();
        replaced.tell(&StoreEvent::Replaced);
        User {
            store: self.clone(),
            who,
        }
    }

    /// Reads something, for whoever is no user: what is seen is what is durable. It takes its turn
    /// with other long reads, and on a disk that hangs it waits for as long as that does: whoever
    /// cannot wait sets a deadline. Dropping it drops the answer.
    ///
    /// # Errors
    ///
    /// When it is closed, `Ended` when it failed meanwhile, `Busy` at once when too many reads wait, or
    /// when `read` fails.
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

    /// Registers its metrics, as `alys_stream_store_...`. They are shown for as long as it is open,
    /// and no scrape waits for its disk.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let shared = Arc::downgrade(&self.0.shared);
        self.0.shared.metrics.register(registry, shared);
    }

    /// How it is. Never waits for the disk.
    #[must_use]
    pub fn condition(&self) -> StoreCondition {
        StoreCondition::of(&self.0.shared.lock())
    }
}

/// A store whose engine is open, before anything works on it.
struct Opened {
    engine: Arc<dyn Engine>,
    identity: StoreIdentity,
    restored: Option<Restored>,
    opener: Uuid,
    confirmed: u64,
    upkeep: Upkeep,
}

impl Opened {
    /// Starts the threads. One that cannot be started leaves a store that is closed and says why.
    fn begin(self) -> (Store, Result<(), StoreError>) {
        let shared = Arc::new(Shared {
            place: self.engine.place(),
            engine: self.engine,
            identity: self.identity,
            restored: self.restored,
            opener: self.opener,
            metrics: StoreMetrics::default(),
            state: Mutex::new(State::new(self.confirmed, self.upkeep)),
            work: Condvar::new(),
            look_ups: Condvar::new(),
            scans: Condvar::new(),
            ended: Condvar::new(),
            threads: Arc::default(),
        });
        let threads = spawn_all(&shared);
        if let Err(fault) = &threads {
            // Nobody is registered yet who could be told.
            let _ = shared.lock().fail(fault.clone());
        }
        let inner = Inner {
            _end: AwaitEnd(Arc::clone(&shared.threads)),
            shared,
        };
        (Store(Arc::new(inner)), threads)
    }
}

fn spawn_all(shared: &Arc<Shared>) -> Result<(), StoreError> {
    spawn(shared, "store-writer", writer::work)?;
    for _ in 0..LOOK_UP_THREADS {
        spawn(shared, "store-look-up", |shared| {
            reader::work(shared, Pool::LookUps);
        })?;
    }
    spawn(shared, "store-scan", |shared| {
        reader::work(shared, Pool::Scans);
    })
}

/// A handle that does not keep the store open: for what may outlive a node.
#[derive(Clone)]
pub struct WeakStore(Weak<Inner>);

impl fmt::Debug for WeakStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakStore").finish_non_exhaustive()
    }
}

impl WeakStore {
    /// The store, while somebody keeps it open.
    #[must_use]
    pub fn upgrade(&self) -> Option<Store> {
        self.0.upgrade().map(Store)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        let Shared {
            work,
            look_ups,
            scans,
            ended,
            ..
        } = &*self.shared;
        for wake in [work, look_ups, scans, ended] {
            wake.notify_all();
        }
    }
}

/// Waits for the threads to end when it is dropped.
struct AwaitEnd(Arc<Threads>);

impl Drop for AwaitEnd {
    fn drop(&mut self) {
        self.0.await_end(END_DEADLINE);
    }
}
