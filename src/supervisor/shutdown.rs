//! How the tree stops: intake first, then what can still be delivered, then everything, leaves
//! before roots.

use std::time::Duration;

use ractor::{ActorCell, ActorRef, RpcReplyPort, rpc::CallResult};
use tracing::{info, warn};

use super::{Child, Remains, SupervisorMessage, SupervisorState, burial::Mourner};
use crate::{
    buffer::{BufferMessage, Leftover},
    connection::ConnectionMessage,
    error::StreamError,
    health::{ConnectionPhase, StatusBoard},
};

/// How long an actor may take to answer a question while everything stops.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Everything that is to be stopped.
struct Stopping {
    buffer: Option<(ActorRef<BufferMessage>, Remains)>,
    connection: Option<(ActorRef<ConnectionMessage>, Remains)>,
    trackers: Vec<ActorCell>,
    board: StatusBoard,
    drain_deadline: Duration,
    stop_deadline: Duration,
}

impl SupervisorState {
    /// Begins the shutdown. It runs as a task; the handler must stay free for the children's ends.
    pub(super) fn shut_down(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        reply: RpcReplyPort<Result<Leftover, StreamError>>,
    ) {
        if std::mem::replace(&mut self.shutting_down, true) {
            // The first caller gets the answer; this one learns from the dropped reply.
            return;
        }
        let children = myself.get_cell().get_children();
        let singletons = [
            self.buffer.as_ref().map(|buffer| buffer.actor.get_id()),
            self.connection
                .as_ref()
                .map(|connection| connection.actor.get_id()),
        ];
        let stopping = Stopping {
            buffer: self
                .buffer
                .take()
                .map(|buffer| (buffer.actor.clone(), buffer.remains(Child::Buffer))),
            connection: self.connection.take().map(|connection| {
                (
                    connection.actor.clone(),
                    connection.remains(Child::Connection),
                )
            }),
            trackers: children
                .into_iter()
                .filter(|child| !singletons.contains(&Some(child.get_id())))
                .collect(),
            board: self.args.board.clone(),
            drain_deadline: self.args.config.drain_deadline,
            stop_deadline: self.args.config.supervision.stop_deadline,
        };
        let supervisor = myself.clone();
        self.tasks.spawn(async move {
            let mourner = Mourner::new(&supervisor, "the shutdown");
            let leftover = stopping.stop().await;
            mourner.done();
            let _ = supervisor.cast(SupervisorMessage::ShutDown { leftover, reply });
        });
    }
}

impl Stopping {
    async fn stop(self) -> Result<Leftover, StreamError> {
        let Self {
            buffer,
            connection,
            trackers,
            board,
            drain_deadline,
            stop_deadline,
        } = self;
        if let Some((buffer, _)) = &buffer {
            let flushed = buffer.call(
                |flushed| BufferMessage::CloseIntake { flushed },
                Some(drain_deadline),
            );
            tokio::select! {
                biased;
                flushed = flushed => match flushed {
                    Ok(CallResult::Success(())) => info!("everything is acknowledged"),
                    _ => warn!(?drain_deadline, "not everything was acknowledged in time"),
                },
                () = waits_for_operator(&board) => {
                    warn!("nothing can be delivered before an operator has acted");
                }
            }
        }
        if let Some((connection, _)) = &connection {
            let goodbye = |stopped| ConnectionMessage::Shutdown { stopped };
            if connection
                .call(goodbye, Some(ANSWER_DEADLINE))
                .await
                .is_err()
            {
                warn!("the connection was gone already");
            }
        }
        let leftover = match &buffer {
            Some((buffer, _)) => {
                let stock = |reply| BufferMessage::TakeStock { reply };
                match buffer.call(stock, Some(ANSWER_DEADLINE)).await {
                    Ok(CallResult::Success(leftover)) => Ok(leftover),
                    _ => Err(StreamError::LeftoverUnknown),
                }
            }
            // It died and has no successor yet: its store may hold anything.
            None => Err(StreamError::LeftoverUnknown),
        };
        for tracker in trackers {
            stop(&tracker, stop_deadline).await;
        }
        if let Some((connection, remains)) = connection {
            stop(&connection.get_cell(), stop_deadline).await;
            end(remains, stop_deadline).await;
        }
        if let Some((buffer, remains)) = buffer {
            stop(&buffer.get_cell(), stop_deadline).await;
            drop(buffer);
            end(remains, stop_deadline).await;
        }
        match &leftover {
            Ok(leftover) => info!(?leftover, "stopped"),
            Err(error) => warn!(%error, "stopped"),
        }
        leftover
    }
}

/// Returns once the connection sends nothing without an operator's word: waiting for a delivery is
/// of no use then.
async fn waits_for_operator(board: &StatusBoard) {
    let mut status = board.watch();
    let waits = status.wait_for(|status| {
        let phase = status.connection.phase;
        matches!(
            phase,
            ConnectionPhase::Quarantined | ConnectionPhase::Failed
        )
    });
    // The board lives as long as it is waited on.
    let _ = waits.await;
}

/// Stops an actor; one that does not listen is killed.
async fn stop(actor: &ActorCell, within: Duration) {
    if actor
        .stop_and_wait(Some("shutdown".to_owned()), Some(within))
        .await
        .is_err()
    {
        actor.kill();
    }
}

async fn end(remains: Remains, within: Duration) {
    if let Err(what) = remains.end(within).await {
        warn!(what, "left behind by the shutdown");
    }
}
