//! The handle that a node holds.

mod request_handle;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use ractor::{Actor, ActorCell, ActorRef, Message, RpcReplyPort, rpc::CallResult};
use tokio::sync::{broadcast, watch};

use crate::{
    buffer::{BufferMessage, Leftover, RequestStanding, Submission, history, record::DeadLetter},
    config::{Config, Endpoint},
    connection::ConnectionMessage,
    error::StreamError,
    health::{ConnectionChange, StatusBoard, StreamStatus},
    message::{CancelReason, NodeStatus, PeginNotification, RequestId, SignatureRequest},
    names, request,
    routing::{BridgeEvent, ChainEvent, Delivery, Subscriber, Subscribers},
    storage::{Store, StoreError, WeakStore},
    supervisor::{StreamSupervisor, SupervisorMessage, TreeArguments},
    telemetry::{Metrics, TraceContext},
};

pub use request_handle::RequestHandle;

/// What stopping the actors may add to the drain.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// What a stream needs to start.
#[derive(Clone)]
pub struct StreamArguments {
    /// Checked at the start.
    pub config: Config,
    /// Outlives the tree: a tree that is started again with it goes on where the last one ended.
    pub store: Store,
    /// Takes signatures and peg-in acknowledgements.
    pub bridge: Subscriber<BridgeEvent>,
    /// Takes federation updates and proposals.
    pub chain: Subscriber<ChainEvent>,
    /// Where the tree counts.
    pub metrics: Metrics,
}

impl StreamArguments {
    /// What is accepted lives as long as `store` does: one on disk survives the process, one in
    /// memory does not. Metrics that nobody reads, and subscribers under the configured names whose
    /// message type is the bare [`Delivery`].
    #[must_use]
    pub fn new(config: Config, store: Store) -> Self {
        Self {
            store,
            bridge: Subscriber::named::<Delivery<BridgeEvent>>(&config.subscribers.bridge),
            chain: Subscriber::named::<Delivery<ChainEvent>>(&config.subscribers.chain),
            metrics: Metrics::default(),
            config,
        }
    }
}

impl fmt::Debug for StreamArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamArguments")
            .field("config", &self.config)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// A running stream. Clones are the same stream. It finds its actors by name, so that it goes on
/// working when they are restarted, and when the whole tree is started again under its name.
#[derive(Debug, Clone)]
pub struct GovernanceStream {
    supervisor: ActorCell,
    config: Arc<Config>,
    /// The tree keeps it open: a handle may outlive the node.
    store: WeakStore,
    board: StatusBoard,
    federation_version: SharedVersion,
    metrics: Metrics,
}

impl GovernanceStream {
    /// Starts a tree of its own. When it gives up, [`status`](Self::status) shows it as not
    /// running.
    ///
    /// # Errors
    ///
    /// [`StreamError::Config`] with every fault of the configuration, [`StreamError::Startup`]
    /// when an instance of this name runs already.
    pub async fn start(arguments: StreamArguments) -> Result<Self, StreamError> {
        Self::spawn(arguments, None).await
    }

    /// Starts a tree under the node's supervisor, which sees it fail when it gives up, and may
    /// start another one with the same store.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_linked(
        arguments: StreamArguments,
        supervisor: ActorCell,
    ) -> Result<Self, StreamError> {
        Self::spawn(arguments, Some(supervisor)).await
    }

    async fn spawn(
        arguments: StreamArguments,
        parent: Option<ActorCell>,
    ) -> Result<Self, StreamError> {
        let StreamArguments {
            config,
            store,
            bridge,
            chain,
            metrics,
        } = arguments;
        config.check()?;
        let board = StatusBoard::new();
        let federation_version = SharedVersion::default();
        let name = names::supervisor(&config.instance);
        let tree = TreeArguments {
            config: config.clone(),
            store: store.clone(),
            subscribers: Subscribers { bridge, chain },
            federation_version: federation_version.clone(),
            board: board.clone(),
            metrics: metrics.clone(),
        };
        let startup = |reason: String| StreamError::Startup {
            instance: config.instance.to_string(),
            reason,
        };
        let root = faultable!(StreamSupervisor, Supervisor);
        let spawn = async {
            match parent {
                None => Actor::spawn(Some(name), root, tree).await,
                Some(parent) => Actor::spawn_linked(Some(name), root, tree, parent).await,
            }
        };
        let within = config.call_deadline;
        let (supervisor, _) = tokio::time::timeout(within, spawn)
            .await
            .map_err(|_| startup(format!("it did not start within {within:?}")))?
            .map_err(|error| startup(error.to_string()))?;
        let supervisor = supervisor.get_cell();
        Ok(Self {
            supervisor,
            config: Arc::new(config),
            store: store.downgrade(),
            board,
            federation_version,
            metrics,
        })
    }

    /// Where the tree counts, for the subscribers of this crate.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The root of the tree, for a node that wants to link or watch it.
    #[must_use]
    pub fn supervisor(&self) -> &ActorCell {
        &self.supervisor
    }

    /// Asks the federation to sign. Returns once the request is accepted: from then on it
    /// survives every actor, reaches governance, and has exactly one outcome. It is asked to be
    /// cancelled after the configured deadline of its type.
    ///
    /// The same request under the same id may be made again at any time; it is accepted once.
    ///
    /// # Errors
    ///
    /// [`StreamError::Conflict`] when the id was used for another payload,
    /// [`StreamError::AlreadyPaid`] when a burn is paid by a request that shares no input,
    /// [`StreamError::BufferFull`], [`StreamError::Store`], [`StreamError::ShuttingDown`]:
    /// nothing was accepted.
    /// [`StreamError::Indeterminate`], [`StreamError::DeadlineExceeded`]: it may have been; ask
    /// again.
    pub async fn request_signatures(
        &self,
        request: SignatureRequest,
    ) -> Result<RequestHandle, StreamError> {
        let deadline = request::deadline(&self.config.requests, request.tx_type());
        self.request_signatures_within(request, deadline).await
    }

    /// As [`request_signatures`](Self::request_signatures), with a deadline of its own. It is
    /// no part of the request: asking again with another one changes nothing.
    ///
    /// # Errors
    ///
    /// As [`request_signatures`](Self::request_signatures).
    pub async fn request_signatures_within(
        &self,
        request: SignatureRequest,
        deadline: Duration,
    ) -> Result<RequestHandle, StreamError> {
        let request_id = request.request_id().clone();
        let (trace, now) = (TraceContext::current(), SystemTime::now());
        let deadline = now
            .checked_add(deadline)
            .unwrap_or(now + Duration::from_secs(u32::MAX.into()));
        let request = Submission::from(request);
        self.ask_buffer(
            "request_signatures",
            Some(format!("request {request_id}")),
            |reply| BufferMessage::RequestSignatures {
                request,
                trace,
                deadline,
                reply,
            },
        )
        .await??;
        Ok(self.request(request_id))
    }

    /// A request that was accepted earlier, by this process or the one before.
    #[must_use]
    pub fn request(&self, request_id: RequestId) -> RequestHandle {
        RequestHandle {
            stream: self.clone(),
            request_id,
        }
    }

    /// Tells governance of a deposit. Returns once the notice is accepted; the bridge is told
    /// when governance has answered. A notice for a known outpoint is accepted once.
    ///
    /// # Errors
    ///
    /// As [`request_signatures`](Self::request_signatures), but for the conflict.
    pub async fn notify_pegin(&self, notification: PeginNotification) -> Result<(), StreamError> {
        let trace = TraceContext::current();
        let what = format!("peg-in {}", notification.outpoint());
        self.ask_buffer("notify_pegin", Some(what), |reply| {
            BufferMessage::NotifyPegin {
                notification,
                trace,
                reply,
            }
        })
        .await?
    }

    /// Withdraws a request that was never sent, or asks governance to cancel it. The outcome says
    /// what came of it.
    ///
    /// # Errors
    ///
    /// [`StreamError::UnknownRequest`].
    pub async fn cancel(&self, request_id: RequestId) -> Result<(), StreamError> {
        let trace = TraceContext::current();
        let what = format!("cancel of {request_id}");
        self.ask_buffer("cancel", Some(what), |reply| BufferMessage::Cancel {
            request_id,
            reason: CancelReason::Caller,
            trace,
            reply: Some(reply),
        })
        .await?
    }

    /// Tells governance how the node is, now or not at all: it is neither kept nor repeated.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotConnected`].
    pub async fn report_status(&self, status: NodeStatus) -> Result<(), StreamError> {
        let name = names::connection(&self.config.instance);
        let message = |reply| ConnectionMessage::ReportStatus { status, reply };
        self.ask(name, "report_status", None, message).await?
    }

    /// The federation version that the node holds active; told at the next registration.
    pub fn set_federation_version(&self, version: u32) {
        self.federation_version.set(version);
    }

    /// Leaves the present endpoint for this one, and stays with it: the session moves without a
    /// gap as soon as the new endpoint is well, and no other is tried meanwhile.
    ///
    /// # Errors
    ///
    /// [`StreamError::Config`] when it may not be dialled with this configuration,
    /// [`StreamError::NotRunning`].
    pub fn connect(&self, target: Endpoint) -> Result<(), StreamError> {
        let mut config = Config::clone(&self.config);
        config.connection.endpoints = vec![target.clone()];
        config.check()?;
        let target = Some(target);
        self.tell_connection(ConnectionMessage::Connect { target })
    }

    /// Takes back what [`connect`](Self::connect) asked for: the most preferred endpoint that is
    /// well is used again.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`].
    pub fn connect_by_preference(&self) -> Result<(), StreamError> {
        self.tell_connection(ConnectionMessage::Connect { target: None })
    }

    /// Tries again what a fault has stopped: leaves quarantine, or a pause before the next
    /// attempt. What caused it must have been seen to first: the runbooks say how.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`].
    pub fn resume(&self) -> Result<(), StreamError> {
        self.tell_connection(ConnectionMessage::Resume)
    }

    /// Goes on with another ledger, should governance have one: it was restored or replaced, as
    /// its operator confirms. Both directions of every lane begin again, and every open request
    /// is compared with what the new ledger holds before anything is sent.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`].
    pub async fn adopt_ledger(&self) -> Result<(), StreamError> {
        self.ask_buffer("adopt_ledger", None, |reply| BufferMessage::AllowAdoption {
            reply,
        })
        .await?;
        self.resume()
    }

    /// Has a store that was restored from a backup, or is new where governance knows this node, ask
    /// governance for what it lacks: every request that this node made, and every answer. Governance's
    /// operator must permit its outbox as well. Nothing is sent before both have acted, and no
    /// signature request is taken before the last of it is recorded.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRestored`] when nothing waits for it, [`StreamError::NotRunning`],
    /// [`StreamError::Store`].
    pub async fn resume_restored(&self) -> Result<(), StreamError> {
        let name = names::connection(&self.config.instance);
        let store_lost = self
            .ask(name, "resume_restored", None, |reply| {
                ConnectionMessage::IsStoreLost { reply }
            })
            .await?;
        self.ask_buffer("resume_restored", None, |reply| {
            BufferMessage::ResumeRestored { store_lost, reply }
        })
        .await??;
        self.resume()
    }

    /// The store that it keeps everything in, while somebody has it open.
    ///
    /// # Errors
    ///
    /// [`StreamError::Store`] when nobody has.
    pub fn store(&self) -> Result<Store, StreamError> {
        let closed = || StoreError::Closed {
            place: self.config.instance.to_string(),
        };
        Ok(self.store.upgrade().ok_or_else(closed)?)
    }

    /// Messages of governance that could not be used, oldest first, each with its number.
    ///
    /// # Errors
    ///
    /// [`StreamError::Store`].
    pub async fn dead_letters(&self) -> Result<Vec<(u64, DeadLetter)>, StreamError> {
        let everything = history::Page {
            before: None,
            limit: usize::MAX,
        };
        let mut letters = history::view(&self.store()?, move |history| {
            history.dead_letters(everything)
        })
        .await?;
        letters.reverse();
        Ok(letters)
    }

    /// Removes a dead letter for good; whether there was one of that number.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`], [`StreamError::Indeterminate`].
    pub async fn discard_dead_letter(&self, number: u64) -> Result<bool, StreamError> {
        let what = format!("the end of dead letter {number}");
        self.ask_buffer("discard_dead_letter", Some(what), |reply| {
            BufferMessage::DiscardDeadLetter { number, reply }
        })
        .await
    }

    /// Hands a dead letter to its subscriber again, under the identity that it came with: after an
    /// upgrade, or once what it speaks of is known here. It remains one unless it is handled; why
    /// it was not is the inner error.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`], [`StreamError::DeadlineExceeded`] when the subscriber takes
    /// its time.
    pub async fn requeue_dead_letter(
        &self,
        number: u64,
    ) -> Result<Result<(), String>, StreamError> {
        let store = self.store()?;
        let letter = history::view(&store, move |history| history.dead_letter(number));
        let Some(letter) = letter.await? else {
            return Ok(Err(format!("there is no dead letter {number}")));
        };
        let name = names::connection(&self.config.instance);
        let letter = Box::new(letter);
        self.ask(name, "requeue_dead_letter", None, |reply| {
            ConnectionMessage::Redeliver {
                number,
                letter,
                reply,
            }
        })
        .await
    }

    /// Makes the connection actor panic, as a bug would: shows that the tree heals.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`].
    #[cfg(feature = "simulator")]
    pub fn panic_connection(&self) -> Result<(), StreamError> {
        self.tell_connection(ConnectionMessage::Panic)
    }

    /// How everything is, as of now.
    #[must_use]
    pub fn status(&self) -> StreamStatus {
        self.board.latest()
    }

    /// How everything is, and every change. Counters of messages do not wake the watcher.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<StreamStatus> {
        self.board.watch()
    }

    /// Every change of what the connection is doing, with its cause; a receiver that is too slow is
    /// told how many it missed.
    #[must_use]
    pub fn watch_connection(&self) -> broadcast::Receiver<ConnectionChange> {
        self.board.watch_changes()
    }

    /// Accepts nothing more, delivers what it can within the configured deadline, says goodbye to
    /// governance, and stops every actor. What is left stays in the store.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotRunning`] when it has stopped already, or someone else is stopping it;
    /// [`StreamError::LeftoverUnknown`] when it has stopped, and its store did not say what is left.
    pub async fn shutdown(&self) -> Result<Leftover, StreamError> {
        let supervision = &self.config.supervision;
        let within = self.config.drain_deadline + 4 * supervision.stop_deadline + STOP_MARGIN;
        let supervisor: ActorRef<SupervisorMessage> = self.supervisor.clone().into();
        let leftover = self
            .call(supervisor, "shutdown", None, within, |reply| {
                SupervisorMessage::Shutdown { reply }
            })
            .await?;
        // The reply comes just before the supervisor's own end.
        let _ = self.supervisor.wait(Some(supervision.stop_deadline)).await;
        leftover
    }

    async fn look_up(&self, request_id: &RequestId) -> Result<RequestStanding, StreamError> {
        let request_id = request_id.clone();
        self.ask_buffer("look_up", None, |reply| BufferMessage::LookUp {
            request_id,
            reply,
        })
        .await?
    }

    fn tell_connection(&self, message: ConnectionMessage) -> Result<(), StreamError> {
        let actor = names::connection(&self.config.instance);
        let not_running = || StreamError::NotRunning {
            actor: actor.clone(),
        };
        let connection =
            ActorRef::<ConnectionMessage>::where_is(actor.clone()).ok_or_else(not_running)?;
        connection.cast(message).map_err(|_| not_running())
    }

    async fn ask_buffer<T: Send + 'static>(
        &self,
        operation: &'static str,
        accepts: Option<String>,
        message: impl FnOnce(RpcReplyPort<T>) -> BufferMessage,
    ) -> Result<T, StreamError> {
        let name = names::buffer(&self.config.instance);
        self.ask(name, operation, accepts, message).await
    }

    async fn ask<M: Message, T: Send + 'static>(
        &self,
        name: String,
        operation: &'static str,
        accepts: Option<String>,
        message: impl FnOnce(RpcReplyPort<T>) -> M,
    ) -> Result<T, StreamError> {
        let actor =
            ActorRef::<M>::where_is(name.clone()).ok_or(StreamError::NotRunning { actor: name })?;
        self.call(
            actor,
            operation,
            accepts,
            self.config.call_deadline,
            message,
        )
        .await
    }

    /// `accepts` names what may have been accepted when the answer is lost.
    async fn call<M: Message, T: Send + 'static>(
        &self,
        actor: ActorRef<M>,
        operation: &'static str,
        accepts: Option<String>,
        deadline: Duration,
        message: impl FnOnce(RpcReplyPort<T>) -> M,
    ) -> Result<T, StreamError> {
        let not_running = || StreamError::NotRunning {
            actor: actor.get_name().unwrap_or_else(|| operation.to_owned()),
        };
        match actor.call(message, Some(deadline)).await {
            Ok(CallResult::Success(answer)) => Ok(answer),
            Ok(CallResult::Timeout) => Err(StreamError::DeadlineExceeded {
                operation,
                deadline,
            }),
            Ok(CallResult::SenderError) => Err(match accepts {
                Some(what) => StreamError::Indeterminate { what },
                None => not_running(),
            }),
            Err(_) => Err(not_running()),
        }
    }
}

/// The federation version that the node holds active, shared with the connection.
#[derive(Debug, Clone)]
pub(crate) struct SharedVersion(Arc<AtomicU32>);

impl Default for SharedVersion {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1)))
    }
}

impl SharedVersion {
    pub(crate) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, version: u32) {
        self.0.store(version, Ordering::Relaxed);
    }
}
