//! How the stream is doing.

#[cfg(feature = "cli")]
pub mod http;
mod status;

pub(crate) use status::StatusBoard;
pub use status::{ConnectionPhase, ConnectionStatus, Health, LaneStatus, StreamStatus};
