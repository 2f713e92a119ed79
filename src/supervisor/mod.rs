//! The root of the tree. It does no work of its own: it starts its children, starts them again
//! when they die, and gives up when they die too often, so that the node's own supervisor sees it.

mod restart;
mod shutdown;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent,
    concurrency::JoinHandle,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use self::restart::{Child, Decision, Restarts};
use crate::{
    buffer::{
        BufferActor, BufferArguments, BufferMessage, Leftover, OpenedRequest, journal::Journal,
    },
    config::Config,
    connection::{ConnectionActor, ConnectionArguments, ConnectionMessage},
    health::StatusBoard,
    message::RequestId,
    names,
    request::{RequestArguments, RequestMessage, RequestTracker},
    routing::Subscribers,
    stream::SharedVersion,
    telemetry::Metrics,
};

/// What the supervisor is told.
#[derive(Debug)]
pub(crate) enum SupervisorMessage {
    /// The buffer has accepted requests: each gets a tracker.
    RequestsOpened { opened: Vec<OpenedRequest> },
    /// Tell this request's tracker, which had not started when the buffer looked for it. What
    /// was opened before it has its tracker by now.
    TellTracker {
        request_id: RequestId,
        message: RequestMessage,
    },
    /// The buffer has read its journal: these requests are open.
    RequestsRecovered { open: Vec<OpenedRequest> },
    /// Deliver what can be delivered, stop everything, and say what is left.
    Shutdown { reply: RpcReplyPort<Leftover> },

    /// The dead are gone, tasks and threads included: these children may start again.
    Buried { children: &'static [Child] },
    /// The dead would not end.
    Unburied { what: String },
    /// Everything has stopped.
    ShutDown {
        leftover: Leftover,
        reply: RpcReplyPort<Leftover>,
    },
}

/// What a tree needs to start.
#[derive(Clone)]
pub(crate) struct TreeArguments {
    pub config: Config,
    pub journal: Arc<dyn Journal>,
    pub subscribers: Subscribers,
    pub federation_version: SharedVersion,
    pub board: StatusBoard,
    pub metrics: Metrics,
}

impl fmt::Debug for TreeArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeArguments")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The supervisor's state.
#[derive(Debug)]
pub(crate) struct SupervisorState {
    args: TreeArguments,
    restarts: Restarts,
    buffer: Option<Incarnation<BufferMessage>>,
    connection: Option<Incarnation<ConnectionMessage>>,
    /// Open requests by their tracker.
    trackers: HashMap<ActorId, RequestId>,
    /// Waits for the dead, and the shutdown.
    tasks: JoinSet<()>,
    shutting_down: bool,
}

/// One life of a child: the actor, and everything that must end before its successor starts.
#[derive(Debug)]
struct Incarnation<M: ractor::Message> {
    actor: ActorRef<M>,
    handle: JoinHandle<()>,
    tasks: TaskTracker,
}

/// What is left of a dead child.
#[derive(Debug)]
struct Remains {
    name: &'static str,
    handle: JoinHandle<()>,
    tasks: TaskTracker,
}

impl<M: ractor::Message> Incarnation<M> {
    fn remains(self, child: Child) -> Remains {
        self.tasks.close();
        Remains {
            name: child.name(),
            handle: self.handle,
            tasks: self.tasks,
        }
    }
}

impl Remains {
    /// Waits until actor, tasks and thread have ended.
    async fn end(self, within: Duration) -> Result<(), String> {
        let Self {
            name,
            handle,
            tasks,
        } = self;
        let ended = async {
            // Its panic was reported to the supervisor; here only its end matters.
            let _ = handle.await;
            tasks.wait().await;
        };
        tokio::time::timeout(within, ended)
            .await
            .map_err(|_| format!("{name}: its tasks did not end within {within:?}"))
    }
}

/// The actor.
#[derive(Debug)]
pub(crate) struct StreamSupervisor;

impl Actor for StreamSupervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = TreeArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        args: TreeArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let mut state = SupervisorState {
            restarts: Restarts::new(args.config.supervision),
            args,
            buffer: None,
            connection: None,
            trackers: HashMap::new(),
            tasks: JoinSet::new(),
            shutting_down: false,
        };
        for child in Child::START_ORDER {
            state.start(&myself, child).await?;
        }
        state.args.board.update(|status| status.running = true);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::RequestsOpened { opened } => {
                state.start_trackers(&myself, opened).await;
            }
            SupervisorMessage::TellTracker {
                request_id,
                message,
            } => {
                let name = names::request(&state.args.config.instance, &request_id);
                if let Some(tracker) = ActorRef::<RequestMessage>::where_is(name) {
                    let _ = tracker.cast(message);
                }
            }
            SupervisorMessage::RequestsRecovered { open } => {
                for name in state.trackers.values() {
                    let name = names::request(&state.args.config.instance, name);
                    if let Some(tracker) = ActorRef::<RequestMessage>::where_is(name) {
                        let _ = tracker.cast(RequestMessage::Refresh);
                    }
                }
                state.start_trackers(&myself, open).await;
            }
            SupervisorMessage::Buried { children } => {
                for child in children {
                    if !state.shutting_down
                        && let Err(failure) = state.start(&myself, *child).await
                    {
                        warn!(child = child.name(), %failure, "did not start");
                        return state.child_died(&myself, *child);
                    }
                }
            }
            SupervisorMessage::Unburied { what } => return Err(what.into()),
            SupervisorMessage::Shutdown { reply } => state.shut_down(&myself, reply),
            SupervisorMessage::ShutDown { leftover, reply } => {
                let _ = reply.send(leftover);
                myself.stop(Some("shut down".to_owned()));
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, cause) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                (cell, reason.unwrap_or_else(|| "stopped".to_owned()))
            }
            _ => return Ok(()),
        };
        while state.tasks.try_join_next().is_some() {}
        if state.shutting_down {
            return Ok(());
        }
        match state.child_of(&cell) {
            Some(child) => {
                error!(child = child.name(), cause, "child died");
                state.child_died(&myself, child)
            }
            None => {
                state.tracker_ended(&cell, &cause);
                Ok(())
            }
        }
    }
}

impl Drop for SupervisorState {
    fn drop(&mut self) {
        self.args.board.update(|status| status.running = false);
    }
}

impl SupervisorState {
    async fn start(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        child: Child,
    ) -> Result<(), ActorProcessingErr> {
        let args = self.args.clone();
        let instance = args.config.instance.clone();
        let tasks = TaskTracker::new();
        match child {
            Child::Buffer => {
                let name = names::buffer(&instance);
                let args = BufferArguments {
                    instance,
                    config: args.config.buffer,
                    inbound_window: args.config.connection.inbound_window.messages,
                    journal: args.journal,
                    supervisor: myself.clone(),
                    board: args.board,
                    metrics: args.metrics,
                    tasks: tasks.clone(),
                };
                let (actor, handle) =
                    Actor::spawn_linked(Some(name), BufferActor, args, myself.get_cell()).await?;
                self.buffer = Some(Incarnation {
                    actor,
                    handle,
                    tasks,
                });
            }
            Child::Connection => {
                let buffer = self.buffer.as_ref().ok_or("the buffer starts first")?;
                let name = names::connection(&instance);
                let args = ConnectionArguments {
                    node: args.config.node,
                    config: args.config.connection,
                    buffer: buffer.actor.clone(),
                    subscribers: args.subscribers,
                    federation_version: args.federation_version,
                    board: args.board,
                    metrics: args.metrics,
                    tasks: tasks.clone(),
                };
                let cell = myself.get_cell();
                let (actor, handle) =
                    Actor::spawn_linked(Some(name), ConnectionActor, args, cell).await?;
                self.connection = Some(Incarnation {
                    actor,
                    handle,
                    tasks,
                });
            }
        }
        Ok(())
    }

    /// Which child the cell is a life of. An earlier life is nobody's.
    fn child_of(&self, cell: &ActorCell) -> Option<Child> {
        let is = |actor: Option<ActorId>| actor == Some(cell.get_id());
        if is(self.buffer.as_ref().map(|buffer| buffer.actor.get_id())) {
            Some(Child::Buffer)
        } else if is(self
            .connection
            .as_ref()
            .map(|connection| connection.actor.get_id()))
        {
            Some(Child::Connection)
        } else {
            None
        }
    }

    /// Takes down who must not outlive it, and has all of them started again once nothing is
    /// left of them.
    fn child_died(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        child: Child,
    ) -> Result<(), ActorProcessingErr> {
        let Decision::Restart { after } = self.restarts.child_died(Instant::now()) else {
            let config = &self.args.config.supervision;
            return Err(format!(
                "children died more than {} times in {:?}, last the {}: see its errors above",
                config.max_restarts,
                config.restart_window,
                child.name()
            )
            .into());
        };
        let children = child.restarts();
        let mut remains = Vec::new();
        // In the reverse of the start order.
        for child in children.iter().rev() {
            let gone = match child {
                Child::Buffer => self.buffer.take().map(|buffer| {
                    buffer.actor.kill();
                    buffer.remains(*child)
                }),
                Child::Connection => self.connection.take().map(|connection| {
                    connection.actor.kill();
                    connection.remains(*child)
                }),
            };
            remains.extend(gone);
            self.args.metrics.record_restart(child.name());
        }
        let restarted = children.len() as u64;
        self.args
            .board
            .update(|status| status.actor_restarts += restarted);
        info!(child = child.name(), ?after, "restarting");
        let within = self.args.config.supervision.stop_deadline;
        let supervisor = myself.clone();
        self.tasks.spawn(async move {
            for remains in remains {
                if let Err(what) = remains.end(within).await {
                    let _ = supervisor.cast(SupervisorMessage::Unburied { what });
                    return;
                }
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "paces a restart, outside any handler"
            )]
            tokio::time::sleep(after).await;
            let _ = supervisor.cast(SupervisorMessage::Buried { children });
        });
        Ok(())
    }

    async fn start_trackers(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        opened: Vec<OpenedRequest>,
    ) {
        if self.shutting_down {
            return;
        }
        for opened in opened {
            let request_id = opened.request_id.clone();
            let instance = self.args.config.instance.clone();
            let name = names::request(&instance, &request_id);
            if ActorRef::<RequestMessage>::where_is(name.clone()).is_some() {
                continue;
            }
            let args = RequestArguments { instance, opened };
            let cell = myself.get_cell();
            match Actor::spawn_linked(Some(name), RequestTracker, args, cell).await {
                Ok((tracker, _)) => {
                    self.trackers.insert(tracker.get_id(), request_id);
                }
                Err(failure) => {
                    warn!(request = %request_id, %failure, "tracker did not start");
                    self.tracker_died(request_id);
                }
            }
        }
    }

    fn tracker_ended(&mut self, cell: &ActorCell, cause: &str) {
        let Some(request_id) = self.trackers.remove(&cell.get_id()) else {
            return;
        };
        if cause == crate::request::SETTLED {
            self.restarts.tracker_done(&request_id);
        } else {
            warn!(request = %request_id, cause, "tracker died");
            self.tracker_died(request_id);
        }
    }

    fn tracker_died(&mut self, request_id: RequestId) {
        let message = match self.restarts.tracker_died(&request_id) {
            Decision::Restart { .. } => {
                self.args.metrics.record_restart("request");
                self.args.board.update(|status| status.actor_restarts += 1);
                BufferMessage::Announce { request_id }
            }
            Decision::GiveUp => {
                let deaths = self.args.config.supervision.max_tracker_restarts + 1;
                let reason = format!("its tracker died {deaths} times; see the log for why");
                BufferMessage::Park { request_id, reason }
            }
        };
        // A buffer that is gone announces every open request when it is back.
        if let Some(buffer) = &self.buffer {
            let _ = buffer.actor.cast(message);
        }
    }
}
