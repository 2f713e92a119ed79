//! The root of the tree. It does no work of its own: it starts its children, starts them again
//! when they die, and gives up when they die too often, so that the node's own supervisor sees it.

mod burial;
mod restart;
mod shutdown;
mod start;
mod trackers;
mod watch;

use std::fmt;

use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent,
    concurrency::JoinHandle,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use self::{
    burial::Remains,
    restart::{Child, Decision, Restarts},
    trackers::Trackers,
    watch::{Verdict, Watch},
};
use crate::{
    buffer::{BufferMessage, Leftover, OpenedRequest},
    config::{Config, SupervisionConfig},
    connection::ConnectionMessage,
    error::StreamError,
    health::StatusBoard,
    message::RequestId,
    pulse::Pulse,
    request::RequestMessage,
    routing::Subscribers,
    storage::Store,
    stream::SharedVersion,
    telemetry::Metrics,
};

/// What the supervisor is told.
#[derive(Debug)]
pub(crate) enum SupervisorMessage {
    /// The buffer has accepted requests: each gets a tracker.
    RequestsOpened { opened: Vec<OpenedRequest> },
    /// The request of a tracker that died is open.
    RequestReopened { opened: OpenedRequest },
    /// Tell this request's tracker, which had not started when the buffer looked for it. What
    /// was opened before it has its tracker by now.
    TellTracker {
        request_id: RequestId,
        message: RequestMessage,
    },
    /// The buffer has read its journal: these requests are open.
    RequestsRecovered { open: Vec<OpenedRequest> },
    /// Deliver what can be delivered, stop everything, and say what is left.
    Shutdown {
        reply: RpcReplyPort<Result<Leftover, StreamError>>,
    },

    /// Show that you live, and ask the children whether they do.
    LookAround { pulse: Pulse },
    /// The dead of one burial are gone, tasks and threads included.
    Buried,
    /// The dead would not end.
    Unburied { what: String },
    /// Everything has stopped.
    ShutDown {
        leftover: Result<Leftover, StreamError>,
        reply: RpcReplyPort<Result<Leftover, StreamError>>,
    },
}

/// What a tree needs to start.
#[derive(Clone)]
pub(crate) struct TreeArguments {
    pub config: Config,
    pub store: Store,
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
    trackers: Trackers,
    watch: Watch,
    /// Burials under way. While there is one nobody starts: it may be a predecessor's.
    burials: usize,
    /// What is left of children that did not start; buried with the next.
    unborn: Vec<Remains>,
    /// Waits for the dead, the shutdown, and the watch over this actor itself.
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
        let config = args.config.supervision;
        start::end_orphans(&args.config.instance, config.stop_deadline).await;
        let mut state = SupervisorState {
            restarts: Restarts::new(config),
            args,
            buffer: None,
            connection: None,
            trackers: Trackers::default(),
            watch: Watch::new(&config),
            burials: 0,
            unborn: Vec::new(),
            tasks: JoinSet::new(),
            shutting_down: false,
        };
        let started = state.start_missing(&myself).await;
        started.map_err(|(_, failure)| failure)?;
        state.tasks.spawn(keep_watch(myself, config));
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
            SupervisorMessage::RequestReopened { opened } => {
                state.restart_trackers(&myself, vec![opened]).await;
            }
            SupervisorMessage::TellTracker {
                request_id,
                message,
            } => {
                if let Some(tracker) = state.trackers.of(&request_id) {
                    let _ = tracker.cast(message);
                }
            }
            SupervisorMessage::RequestsRecovered { open } => {
                for tracker in state.trackers.all() {
                    let _ = tracker.cast(RequestMessage::Refresh);
                }
                state.restart_trackers(&myself, open).await;
            }
            SupervisorMessage::LookAround { pulse } => {
                pulse.beat();
                if !state.shutting_down {
                    return state.look_around(&myself);
                }
            }
            SupervisorMessage::Buried => {
                state.burials = state.burials.saturating_sub(1);
                if !state.shutting_down
                    && state.burials == 0
                    && let Err((child, failure)) = state.start_missing(&myself).await
                {
                    warn!(child = child.name(), %failure, "did not start");
                    return state.child_died(&myself, child);
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
                state.tracker_ended(cell.get_id(), &cause);
                Ok(())
            }
        }
    }
}

impl Drop for SupervisorState {
    fn drop(&mut self) {
        // ractor kills children that run, and leaves alone one that hangs as it stops: that one
        // would keep the journal from the next tree.
        if let Some(buffer) = &self.buffer {
            buffer.actor.kill();
        }
        if let Some(connection) = &self.connection {
            connection.actor.kill();
        }
        self.trackers.all().for_each(|tracker| tracker.kill());
        self.args.board.update(|status| status.running = false);
    }
}

/// Asks the supervisor itself for its sign of life, which is also its time to look around. One
/// that gives none is killed: the node's supervisor sees it, and starts another tree.
async fn keep_watch(supervisor: ActorRef<SupervisorMessage>, config: SupervisionConfig) {
    let mut watch = Watch::new(&config);
    loop {
        #[allow(
            clippy::disallowed_methods,
            reason = "paces the rounds, outside any handler"
        )]
        tokio::time::sleep(config.watch_interval).await;
        match watch.look(supervisor.get_id()) {
            Verdict::Ask(pulse) => {
                // One that takes no more messages is ending; it may hang in that.
                let _ = supervisor.cast(SupervisorMessage::LookAround { pulse });
            }
            Verdict::Wait => {}
            Verdict::Hung | Verdict::Unkillable => {
                error!("the supervisor hangs; it is killed");
                supervisor.kill();
                return;
            }
        }
    }
}

impl SupervisorState {
    /// Asks everyone for a sign of life. Who gave none in time has died.
    fn look_around(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
    ) -> Result<(), ActorProcessingErr> {
        // In the order of the starts: the buffer's death is the connection's too.
        for child in Child::START_ORDER {
            let actor = match child {
                Child::Buffer => self.buffer.as_ref().map(|buffer| buffer.actor.get_cell()),
                Child::Connection => self
                    .connection
                    .as_ref()
                    .map(|connection| connection.actor.get_cell()),
            };
            let Some(actor) = actor else { continue };
            match self.watch.look(actor.get_id()) {
                Verdict::Ask(pulse) => {
                    // One that is gone is reported by ractor.
                    let _told = match child {
                        Child::Buffer => actor
                            .send_message(BufferMessage::AreYouThere { pulse })
                            .is_ok(),
                        Child::Connection => actor
                            .send_message(ConnectionMessage::AreYouThere { pulse })
                            .is_ok(),
                    };
                }
                Verdict::Wait => {}
                Verdict::Hung | Verdict::Unkillable => {
                    error!(child = child.name(), cause = "hung", "child died");
                    self.child_died(myself, child)?;
                }
            }
        }
        self.watch_trackers().map_err(Into::into)
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
        let mut remains = std::mem::take(&mut self.unborn);
        // In the reverse of the start order.
        for child in children.iter().rev() {
            let gone = match child {
                Child::Buffer => self.buffer.take().map(|buffer| {
                    buffer.actor.kill();
                    self.watch.forget(buffer.actor.get_id());
                    buffer.remains(*child)
                }),
                Child::Connection => self.connection.take().map(|connection| {
                    connection.actor.kill();
                    self.watch.forget(connection.actor.get_id());
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
        self.bury(myself, remains, after);
        Ok(())
    }
}
