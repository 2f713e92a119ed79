//! What an operator sees: metrics under their fixed names, and one trace from the caller through
//! governance to the subscriber.

mod metrics;
mod trace;

pub use metrics::{METRIC_NAMES, Metrics};
pub use trace::TraceContext;
