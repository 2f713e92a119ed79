//! A sign of life.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Asked of an actor by message, given in its handler. It costs the asker no message back, so that
/// thousands may be asked at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<AtomicBool>);

impl Pulse {
    /// The actor has come to the question.
    pub(crate) fn beat(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has.
    pub(crate) fn has_beaten(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
