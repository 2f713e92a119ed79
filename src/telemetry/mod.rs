//! What an operator sees: metrics under their fixed names, and one trace from the caller through
//! governance to the subscriber.

mod metrics;
#[cfg(feature = "cli")]
mod setup;
mod trace;

pub use metrics::{METRIC_NAMES, Metrics};
#[cfg(feature = "cli")]
pub use setup::{TelemetryError, TelemetryGuard, install};
pub use trace::TraceContext;
