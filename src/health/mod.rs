//! How the stream is doing.

mod status;

pub(crate) use status::StatusBoard;
pub use status::{ConnectionPhase, ConnectionStatus, Health, LaneStatus, StreamStatus};
