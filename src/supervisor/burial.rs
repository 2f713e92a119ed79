//! What must have ended before a successor starts.

use std::time::Duration;

use ractor::{ActorRef, concurrency::JoinHandle};
use tokio_util::task::TaskTracker;

use super::{Incarnation, SupervisorMessage, SupervisorState, restart::Child};

/// What is left of a dead child.
#[derive(Debug)]
pub(super) struct Remains {
    name: &'static str,
    /// Of the actor; one that never started has none.
    handle: Option<JoinHandle<()>>,
    tasks: TaskTracker,
}

impl<M: ractor::Message> Incarnation<M> {
    pub(super) fn remains(self, child: Child) -> Remains {
        self.tasks.close();
        Remains {
            name: child.name(),
            handle: Some(self.handle),
            tasks: self.tasks,
        }
    }
}

impl Remains {
    /// Of a child that failed before it was one.
    pub(super) fn of_unborn(child: Child, tasks: TaskTracker) -> Self {
        tasks.close();
        Self {
            name: child.name(),
            handle: None,
            tasks,
        }
    }

    /// Waits until actor, tasks and thread have ended.
    pub(super) async fn end(self, within: Duration) -> Result<(), String> {
        let Self {
            name,
            handle,
            tasks,
        } = self;
        let ended = async {
            if let Some(handle) = handle {
                // Its panic was reported to the supervisor; here only its end matters.
                let _ = handle.await;
            }
            tasks.wait().await;
        };
        tokio::time::timeout(within, ended)
            .await
            .map_err(|_| format!("{name}: it or its tasks did not end within {within:?}"))
    }
}

/// Tells the supervisor when a task of its ends without having done its work: a panic in it would
/// leave a tree without children, or one that never finishes to stop.
pub(super) struct Mourner {
    supervisor: Option<ActorRef<SupervisorMessage>>,
    what: &'static str,
}

impl Mourner {
    pub(super) fn new(supervisor: &ActorRef<SupervisorMessage>, what: &'static str) -> Self {
        Self {
            supervisor: Some(supervisor.clone()),
            what,
        }
    }

    pub(super) fn done(mut self) {
        self.supervisor = None;
    }
}

impl Drop for Mourner {
    fn drop(&mut self) {
        if let Some(supervisor) = &self.supervisor {
            let what = format!("{} ended before it was done", self.what);
            // A supervisor that is gone has taken its tasks with it.
            let _ = supervisor.cast(SupervisorMessage::Unburied { what });
        }
    }
}

impl SupervisorState {
    /// Waits as a task for the end of the dead, and then for `pause`; reports either way.
    pub(super) fn bury(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        remains: Vec<Remains>,
        pause: Duration,
    ) {
        self.burials += 1;
        let config = self.args.config.supervision;
        let supervisor = myself.clone();
        let bound = (config.stop_deadline + config.hang_deadline)
            .saturating_mul(u32::try_from(remains.len() + 1).unwrap_or(u32::MAX))
            .saturating_add(pause);
        let burial = async move {
            fault_point!(supervisor, Burial);
            for remains in remains {
                remains.end(config.stop_deadline).await?;
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "paces a restart, outside any handler"
            )]
            tokio::time::sleep(pause).await;
            Ok(())
        };
        let supervisor = myself.clone();
        self.tasks.spawn(async move {
            let mourner = Mourner::new(&supervisor, "a burial");
            let buried: Result<(), String> = tokio::time::timeout(bound, burial)
                .await
                .unwrap_or_else(|_| Err(format!("a burial was not over within {bound:?}")));
            mourner.done();
            let _ = supervisor.cast(match buried {
                Ok(()) => SupervisorMessage::Buried,
                Err(what) => SupervisorMessage::Unburied { what },
            });
        });
    }
}
