//! A task's word on what came of it, which comes also when the task panics.

use ractor::ActorRef;

use super::ConnectionMessage;

/// What a task owes its actor. It is told when this is dropped: at the task's end, in its panic,
/// or with its future, when the report is late and changes nothing.
pub(super) struct LastWord<T, F: Fn(T) -> ConnectionMessage> {
    connection: ActorRef<ConnectionMessage>,
    message: F,
    found: Option<T>,
}

impl<T, F: Fn(T) -> ConnectionMessage> LastWord<T, F> {
    /// `otherwise` is what is told of a task that does not come to its [end](Self::end).
    pub(super) fn new(connection: ActorRef<ConnectionMessage>, otherwise: T, message: F) -> Self {
        Self {
            connection,
            message,
            found: Some(otherwise),
        }
    }

    /// This came of it.
    pub(super) fn end(mut self, found: T) {
        self.found = Some(found);
    }
}

impl<T, F: Fn(T) -> ConnectionMessage> Drop for LastWord<T, F> {
    fn drop(&mut self) {
        if let Some(found) = self.found.take() {
            // An actor that is gone needs no report.
            let _ = self.connection.cast((self.message)(found));
        }
    }
}
