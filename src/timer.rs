//! A timer that ends with its owner.

use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::AbortHandle;

/// At most one pending message to an actor. Arming it again, disarming it or dropping it takes the
/// pending one back: a dropped ractor timer would go on and keep its dead actor alive.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<AbortHandle>);

impl Timer {
    /// Sends the message to `actor` after `pause`.
    pub(crate) fn arm<M: Message>(
        &mut self,
        pause: Duration,
        actor: &ActorRef<M>,
        message: impl Fn() -> M + Send + 'static,
    ) {
        self.disarm();
        self.0 = Some(actor.send_after(pause, message).abort_handle());
    }

    /// Takes the pending message back.
    pub(crate) fn disarm(&mut self) {
        if let Some(pending) = self.0.take() {
            pending.abort();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}
