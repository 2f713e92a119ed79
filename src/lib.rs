//! scaffold
#![forbid(unsafe_code)]

pub mod bridge;
mod buffer;
pub mod chain;
pub mod config;
mod connection;
mod error;
mod health;
pub mod message;
mod names;
mod request;
mod routing;
#[cfg(feature = "simulator")]
pub mod simulator;
mod stream;
mod supervisor;
pub mod telemetry;
mod timer;

/// The generated wire types of `proto/governance/v1/governance.proto`, whose comments say what
/// each field means.
#[allow(missing_docs, clippy::all, unreachable_pub, unused_qualifications)]
pub mod proto {
    tonic::include_proto!("governance.v1");
}

pub use buffer::{
    Leftover, MemoryJournal, RequestStanding, ResumeFault,
    journal::{self, Journal, JournalError},
    retained,
};
pub use connection::SessionFault;
pub use error::{Retry, StreamError};
#[cfg(feature = "cli")]
pub use health::http;
pub use health::{ConnectionPhase, ConnectionStatus, Health, LaneStatus, StreamStatus};
pub use routing::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber, SubscriberError,
};
pub use stream::{GovernanceStream, RequestHandle, StreamArguments};
