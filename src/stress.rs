//! Faults at will, for tests: an actor, a task or the store's engine panics, returns an error,
//! hangs or is killed at a chosen point of its life.
//!
//! A [`Plan`] is armed for one instance, so that trees of parallel tests do not disturb each
//! other. Only the feature `stress` compiles the points in; nothing of it is in a node.
//!
//! ```
//! use governance_stream::{config::InstanceName, stress::{Fault, Moment, Plan, Point}};
//! let instance = InstanceName::default();
//! let armed = Plan::new(Point::Connection(Moment::Handle), Fault::Panic).after(10).arm(&instance);
//! // ... start a tree of this instance; its connection panics at the eleventh message.
//! assert_eq!(armed.hits(), 0);
//! ```

mod past;

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use crate::{
    config::InstanceName,
    names,
    storage::{Batch, Engine, Limits, MemoryEngine, Owner, Snapshot, Store, StoreError, Usage},
};

pub use past::{Past, past_burn, past_deposit, past_request_id};

/// A moment in an actor's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Before it exists for others.
    PreStart,
    /// Before its first message.
    PostStart,
    /// Before each message.
    Handle,
    /// After its last one.
    PostStop,
}

/// Where a fault may strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// The root of the tree.
    Supervisor(Moment),
    /// The buffer.
    Buffer(Moment),
    /// The connection.
    Connection(Moment),
    /// A request's tracker; [`Plan::only`] chooses one.
    Request(Moment),
    /// The session's task, before it dials.
    SessionDial,
    /// The session's task, before it reads each frame.
    SessionRead,
    /// The task that waits for a subscriber's answer.
    DeliveryWait,
    /// The store's engine, before it is opened again.
    StoreOpen,
    /// The store's engine, before it commits.
    StoreCommit,
    /// The supervisor's task that waits for the end of the dead.
    Burial,
}

impl Point {
    /// Every point there is.
    pub const ALL: [Self; 22] = {
        use Moment::{Handle, PostStart, PostStop, PreStart};
        [
            Self::Supervisor(PreStart),
            Self::Supervisor(PostStart),
            Self::Supervisor(Handle),
            Self::Supervisor(PostStop),
            Self::Buffer(PreStart),
            Self::Buffer(PostStart),
            Self::Buffer(Handle),
            Self::Buffer(PostStop),
            Self::Connection(PreStart),
            Self::Connection(PostStart),
            Self::Connection(Handle),
            Self::Connection(PostStop),
            Self::Request(PreStart),
            Self::Request(PostStart),
            Self::Request(Handle),
            Self::Request(PostStop),
            Self::SessionDial,
            Self::SessionRead,
            Self::DeliveryWait,
            Self::StoreOpen,
            Self::StoreCommit,
            Self::Burial,
        ]
    };

    /// Whether it can have the fault: a task that reports nothing has no error to return.
    #[must_use]
    pub const fn can(self, fault: Fault) -> bool {
        !matches!(
            (self, fault),
            (Self::DeliveryWait | Self::Burial, Fault::Error)
        )
    }
}

/// What strikes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It panics.
    Panic,
    /// It returns an error.
    Error,
    /// It does not go on until the plan is lifted.
    Hang,
    /// The actor that it is, or belongs to, is killed.
    Kill,
}

impl Fault {
    /// Every fault there is.
    pub const ALL: [Self; 4] = [Self::Panic, Self::Error, Self::Hang, Self::Kill];
}

/// What is to happen where, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    point: Point,
    fault: Fault,
    after: u64,
    times: u64,
    only: Option<String>,
}

impl Plan {
    /// Strikes once, at the next pass.
    #[must_use]
    pub const fn new(point: Point, fault: Fault) -> Self {
        Self {
            point,
            fault,
            after: 0,
            times: 1,
            only: None,
        }
    }

    /// Lets so many passes go by first.
    #[must_use]
    pub const fn after(mut self, passes: u64) -> Self {
        self.after = passes;
        self
    }

    /// Strikes at so many passes in a row.
    #[must_use]
    pub const fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Strikes the actor of this registry name only.
    #[must_use]
    pub fn only(mut self, name: impl Into<String>) -> Self {
        self.only = Some(name.into());
        self
    }

    /// From now on, for this instance, until what it returns is dropped.
    #[must_use]
    pub fn arm(self, instance: &InstanceName) -> Armed {
        let armed = Arc::new(Trap {
            instance: instance.clone(),
            counts: Mutex::new((self.after, self.times)),
            plan: self,
            hits: watch::Sender::new(0),
            lifted: watch::Sender::new(false),
            lifted_thread: Condvar::new(),
        });
        let mut traps = traps();
        traps.push(Arc::clone(&armed));
        ARMED.store(traps.len(), Ordering::Release);
        Armed(armed)
    }
}

/// A plan in force. Dropping it takes it back, and lets go on what hangs.
#[derive(Debug)]
pub struct Armed(Arc<Trap>);

impl Armed {
    /// How often it has struck.
    #[must_use]
    pub fn hits(&self) -> u64 {
        *self.0.hits.borrow()
    }

    /// Waits until it has struck so often.
    pub async fn hit(&self, times: u64) {
        let mut hits = self.0.hits.subscribe();
        // The sender lives in `self`.
        let _ = hits.wait_for(|hits| *hits >= times).await;
    }

    /// Lets go on what hangs. It strikes no more.
    pub fn lift(&self) {
        traps_without(&self.0);
        let _counts = self.0.lock();
        self.0.lifted.send_replace(true);
        self.0.lifted_thread.notify_all();
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.lift();
    }
}

/// How many traps there are: a pass costs one load while there is none.
static ARMED: AtomicUsize = AtomicUsize::new(0);
static TRAPS: Mutex<Vec<Arc<Trap>>> = Mutex::new(Vec::new());

fn traps() -> MutexGuard<'static, Vec<Arc<Trap>>> {
    TRAPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn traps_without(trap: &Arc<Trap>) {
    let mut traps = traps();
    traps.retain(|other| !Arc::ptr_eq(other, trap));
    ARMED.store(traps.len(), Ordering::Release);
}

#[derive(Debug)]
struct Trap {
    instance: InstanceName,
    plan: Plan,
    /// Passes that go by first, and strikes that are left.
    counts: Mutex<(u64, u64)>,
    hits: watch::Sender<u64>,
    lifted: watch::Sender<bool>,
    lifted_thread: Condvar,
}

impl Trap {
    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trap that strikes `actor` now.
    fn at(actor: &ActorCell, point: Point) -> Option<Arc<Self>> {
        if ARMED.load(Ordering::Acquire) == 0 {
            return None;
        }
        Self::of(&actor.get_name()?, point)
    }

    /// The trap that strikes what belongs to the actor of this name.
    fn of(name: &str, point: Point) -> Option<Arc<Self>> {
        if ARMED.load(Ordering::Acquire) == 0 {
            return None;
        }
        let instance = name.split('.').next()?;
        let mut traps = traps().clone().into_iter();
        traps.find(|trap| {
            trap.plan.point == point
                && trap.instance.as_str() == instance
                && trap.plan.only.as_ref().is_none_or(|only| only == name)
                && trap.strikes()
        })
    }

    fn strikes(&self) -> bool {
        let mut counts = self.lock();
        let (after, left) = &mut *counts;
        if *after > 0 {
            *after -= 1;
            return false;
        }
        if *left == 0 {
            return false;
        }
        *left -= 1;
        self.hits.send_modify(|hits| *hits += 1);
        true
    }

    async fn hang(&self) {
        let _ = self.lifted.subscribe().wait_for(|lifted| *lifted).await;
    }

    fn hang_thread(&self) {
        let mut counts = self.lock();
        while !*self.lifted.borrow() {
            counts = self
                .lifted_thread
                .wait(counts)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The error that a point returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("told to fail at {0:?}")]
pub struct Struck(Point);

#[allow(clippy::panic, reason = "this is what the fault is")]
fn fall(point: Point) -> ! {
    panic!("told to panic at {point:?}")
}

/// Passes a point of the actor, or of a task of it.
pub(crate) async fn pass(actor: &ActorCell, point: Point) -> Result<(), Struck> {
    let Some(trap) = Trap::at(actor, point) else {
        return Ok(());
    };
    match trap.plan.fault {
        Fault::Panic => fall(point),
        Fault::Error => Err(Struck(point)),
        Fault::Hang => {
            trap.hang().await;
            Ok(())
        }
        Fault::Kill => {
            actor.kill();
            std::future::pending().await
        }
    }
}

/// A store in memory whose engine has points, for one instance.
///
/// # Errors
///
/// When the engine is struck at once.
pub fn store(instance: &InstanceName, owner: &Owner) -> Result<Store, StoreError> {
    let memory: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    Store::create_on(engine(instance, memory), owner)
}

/// An engine with points, for one instance, over another one.
pub fn engine(instance: &InstanceName, engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
    Arc::new(FaultableEngine {
        engine,
        instance: instance.clone(),
    })
}

#[derive(Debug)]
struct FaultableEngine {
    engine: Arc<dyn Engine>,
    instance: InstanceName,
}

impl FaultableEngine {
    /// Passes a point. It does not go on before the plan is lifted: what a thread waits for in an
    /// engine cannot be ended from outside.
    fn pass(&self, point: Point) -> Result<(), StoreError> {
        let name = names::buffer(&self.instance);
        let Some(trap) = Trap::of(&name, point) else {
            return Ok(());
        };
        match trap.plan.fault {
            Fault::Panic => fall(point),
            Fault::Error => Err(StoreError::Io {
                place: "(stress)".to_owned(),
                operation: "go on",
                reason: Struck(point).to_string(),
                advice: "this is a test",
            }),
            Fault::Hang => {
                trap.hang_thread();
                Ok(())
            }
            Fault::Kill => {
                if let Some(buffer) = ractor::registry::where_is(name) {
                    buffer.kill();
                }
                Ok(())
            }
        }
    }
}

impl Engine for FaultableEngine {
    fn place(&self) -> String {
        self.engine.place()
    }

    fn limits(&self) -> Limits {
        self.engine.limits()
    }

    fn open(&self) -> Result<u64, StoreError> {
        self.pass(Point::StoreOpen)?;
        self.engine.open()
    }

    fn commit(&self, number: u64, batches: &[Batch]) -> Result<(), StoreError> {
        self.pass(Point::StoreCommit)?;
        self.engine.commit(number, batches)
    }

    fn close(&self) {
        self.engine.close();
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.engine.snapshot()
    }

    fn usage(&self) -> Result<Usage, StoreError> {
        self.engine.usage()
    }
}

/// An actor whose life has points.
pub(crate) struct Faultable<A> {
    actor: A,
    point: fn(Moment) -> Point,
}

impl<A> Faultable<A> {
    pub(crate) const fn new(actor: A, point: fn(Moment) -> Point) -> Self {
        Self { actor, point }
    }
}

impl<A: fmt::Debug> fmt::Debug for Faultable<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actor.fmt(f)
    }
}

impl<A: Actor> Actor for Faultable<A> {
    type Msg = A::Msg;
    type State = A::State;
    type Arguments = A::Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<A::Msg>,
        args: A::Arguments,
    ) -> Result<A::State, ActorProcessingErr> {
        pass(&myself, (self.point)(Moment::PreStart)).await?;
        self.actor.pre_start(myself, args).await
    }

    async fn post_start(
        &self,
        myself: ActorRef<A::Msg>,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        pass(&myself, (self.point)(Moment::PostStart)).await?;
        self.actor.post_start(myself, state).await
    }

    async fn handle(
        &self,
        myself: ActorRef<A::Msg>,
        message: A::Msg,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        pass(&myself, (self.point)(Moment::Handle)).await?;
        self.actor.handle(myself, message, state).await
    }

    async fn post_stop(
        &self,
        myself: ActorRef<A::Msg>,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        pass(&myself, (self.point)(Moment::PostStop)).await?;
        self.actor.post_stop(myself, state).await
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<A::Msg>,
        event: SupervisionEvent,
        state: &mut A::State,
    ) -> Result<(), ActorProcessingErr> {
        self.actor.handle_supervisor_evt(myself, event, state).await
    }
}
