//! How the children start, and what is left of those before them.

use std::time::Duration;

use ractor::{
    Actor, ActorProcessingErr, ActorRef, Message, SpawnErr, concurrency::JoinHandle, registry,
};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{Incarnation, Remains, SupervisorMessage, SupervisorState, restart::Child};
use crate::{
    buffer::{BufferActor, BufferArguments},
    config::{Config, InstanceName},
    connection::{ConnectionActor, ConnectionArguments},
    names,
};

/// How long an actor may take before it exists. None of them awaits anything there: one that is
/// not done at once hangs, and the supervisor must not hang with it. Where less than four times as
/// much makes a hang, it is a quarter of that.
const START_DEADLINE: Duration = Duration::from_secs(1);

type Spawned<M> = (ActorRef<M>, JoinHandle<()>);

/// Waits for a start; dropping it undoes it, its name included.
pub(super) async fn within_start_deadline<M: Message>(
    config: &Config,
    spawn: impl Future<Output = Result<Spawned<M>, SpawnErr>>,
) -> Result<Spawned<M>, ActorProcessingErr> {
    let within = START_DEADLINE.min(config.supervision.hang_deadline / 4);
    match tokio::time::timeout(within, spawn).await {
        Ok(spawned) => Ok(spawned?),
        Err(_) => Err(format!("it did not start within {within:?}").into()),
    }
}

/// Ends the actors of a tree of this name that has failed: its supervisor's death has them
/// killed, but nobody has waited for it yet.
pub(super) async fn end_orphans(instance: &InstanceName, within: Duration) {
    let (buffer, connection) = (names::buffer(instance), names::connection(instance));
    let trackers = names::requests(instance);
    for name in registry::registered() {
        if (name == buffer || name == connection || name.starts_with(&trackers))
            && let Some(orphan) = registry::where_is(&name)
        {
            orphan.kill();
            if orphan.wait(Some(within)).await.is_err() {
                warn!(name, "an actor of an earlier tree does not end");
            }
        }
    }
}

impl SupervisorState {
    /// Starts whoever is missing, in order.
    ///
    /// # Errors
    ///
    /// Who did not start, and why. Those before it run.
    pub(super) async fn start_missing(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
    ) -> Result<(), (Child, ActorProcessingErr)> {
        for child in Child::START_ORDER {
            let runs = match child {
                Child::Buffer => self.buffer.is_some(),
                Child::Connection => self.connection.is_some(),
            };
            if !runs {
                let tasks = TaskTracker::new();
                if let Err(failure) = self.start(myself, child, tasks.clone()).await {
                    // It may have started a thread before it failed.
                    self.unborn.push(Remains::of_unborn(child, tasks));
                    return Err((child, failure));
                }
            }
        }
        Ok(())
    }

    async fn start(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        child: Child,
        tasks: TaskTracker,
    ) -> Result<(), ActorProcessingErr> {
        let args = self.args.clone();
        let instance = args.config.instance.clone();
        let cell = myself.get_cell();
        match child {
            Child::Buffer => {
                let name = names::buffer(&instance);
                let args = BufferArguments {
                    instance,
                    config: args.config.buffer,
                    inbound_window: args.config.connection.inbound_window.messages,
                    store: args.store,
                    supervisor: myself.clone(),
                    board: args.board,
                    metrics: args.metrics,
                };
                let buffer = faultable!(BufferActor, Buffer);
                let spawn = Actor::spawn_linked(Some(name), buffer, args, cell);
                let (actor, handle) = within_start_deadline(&self.args.config, spawn).await?;
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
                let connection = faultable!(ConnectionActor, Connection);
                let spawn = Actor::spawn_linked(Some(name), connection, args, cell);
                let (actor, handle) = within_start_deadline(&self.args.config, spawn).await?;
                self.connection = Some(Incarnation {
                    actor,
                    handle,
                    tasks,
                });
            }
        }
        Ok(())
    }
}
