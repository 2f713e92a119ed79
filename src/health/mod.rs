//! How the stream is doing.

#[cfg(feature = "cli")]
pub mod http;
mod status;

pub(crate) use status::StatusBoard;
pub use status::{
    ConnectionChange, ConnectionPhase, ConnectionStatus, EndpointStatus, Health, LaneStatus,
    Reachability, StreamStatus,
};
