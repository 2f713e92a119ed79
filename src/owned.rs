//! Tasks whose panic is their owner's.

use ractor::{ActorRef, Message};
use tracing::error;

/// Runs `task` for `owner`, which is killed should the task panic: it would wait for the task's
/// report for ever, while its supervisor knows what to do about a death.
pub(crate) async fn owned<M: Message>(
    owner: ActorRef<M>,
    what: &'static str,
    task: impl Future<Output = ()>,
) {
    let _fuse = Fuse { owner, what };
    task.await;
}

struct Fuse<M: Message> {
    owner: ActorRef<M>,
    what: &'static str,
}

impl<M: Message> Drop for Fuse<M> {
    fn drop(&mut self) {
        // An abort drops it too, and is no fault.
        if std::thread::panicking() {
            error!(task = self.what, "task panicked; its actor dies of it");
            self.owner.kill();
        }
    }
}
