//! One persistent, supervised gRPC stream between a federated Bitcoin sidechain node and the
//! service that holds the federation's keys.
//!
//! Signature requests for peg-outs, peg-in notices and node status go out; signatures, federation
//! updates and proposals come in. What a call has accepted survives the process, and reaches
//! governance or its caller learns a terminal outcome; whatever actor, endpoint or subscriber fails on the way heals
//! without a person. The crate holds no Bitcoin key and signs nothing.
//!
//! ```text
//! node's own supervisor
//! └── StreamSupervisor            "governance"               restarts its children, owns no data
//!     ├── BufferActor             "governance.buffer"        lanes, outcomes: the truth
//!     ├── ConnectionActor         "governance.connection"    one session: dial, register, route
//!     └── RequestTracker (many)   "governance.request.<id>"  deadline, progress, outcome
//!
//! found by name at each delivery, owned by the node:
//!     bridge                      "bridge"                   signatures, peg-in answers
//!     chain                       "chain"                    federation updates, proposals
//! ```
//!
//! # In a node
//!
//! ```no_run
//! use governance_stream::{GovernanceStream, StreamArguments, config::{Config, NodeConfig}};
//! use governance_stream::storage::{Owner, Store};
//! # async fn node(
//! #     public_key: bitcoin::secp256k1::PublicKey,
//! #     request: governance_stream::message::SignatureRequest,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let node = NodeConfig {
//!     node_id: "node-1".parse()?,
//!     public_key,
//!     chain_id: "alys".parse()?,
//!     network: bitcoin::Network::Bitcoin,
//! };
//! let config = Config::new(node, vec!["http://127.0.0.1:50051".parse()?]);
//! // Made once, by `governance-stream init` or `Store::create`; a lost one is never made anew in passing.
//! let store = Store::open("/var/lib/alys/governance", &Owner::of(&config.node))?;
//! let stream = GovernanceStream::start(StreamArguments::new(config, store)).await?;
//! let request = stream.request_signatures(request).await?; // accepted: it will have an outcome
//! println!("{}", request.outcome(std::time::Duration::from_secs(600)).await?);
//! stream.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Start it under your own supervisor with [`GovernanceStream::start_linked`]. Your bridge and
//! chain are actors registered under the configured names, whose messages can be made from a
//! [`Delivery`]; they may come later, die and come back. `examples/embed.rs` shows all of it.
//!
//! # Where things are
//!
//! | module | what |
//! |---|---|
//! | [`GovernanceStream`] | the handle that a node holds |
//! | [`Delivery`], [`Subscriber`] | the contract with the node's actors |
//! | [`StreamError`] | what a call can end in, and whether to ask again |
//! | [`config`] | every setting, checked; files, environment and flags |
//! | [`message`] | what crosses the stream, as types that cannot hold an invalid value |
//! | [`bridge`], [`chain`] | complete subscribers: from signatures to the Bitcoin network, from updates to the federation |
//! | [`storage`] | the store: everything durable, in one place |
//! | [`history`], [`record`] | what the stream has in it |
//! | [`telemetry`] | metrics and trace context |
//! | [`proto`] | the wire |
//! | `testing` | whether a subscriber keeps to the contract (feature `testing`) |
//! | `simulator` | governance itself, for tests (feature `simulator`) |
//! | `stress` | faults of actors and tasks at will, for tests (feature `stress`) |
//!
//! # Features
//!
//! `cli` (default) is the operator's binary and its HTTP endpoints; `simulator` (default) plays
//! governance, with signing keys; `stress` lets tests fault the tree. A node wants none of them:
//! `default-features = false`. Its tests want `testing`, which puts its own bridge and chain through
//! the subscriber contract.
#![forbid(unsafe_code)]

#[macro_use]
mod hooks;

pub mod bridge;
mod buffer;
pub mod chain;
pub mod config;
mod connection;
mod error;
mod health;
pub mod message;
mod names;
mod owned;
mod pace;
mod pulse;
mod request;
mod routing;
#[cfg(feature = "simulator")]
pub mod simulator;
pub mod storage;
mod stream;
#[cfg(feature = "stress")]
pub mod stress;
mod supervisor;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod timer;

/// The generated wire types of `proto/governance/v1/governance.proto`, whose comments say what
/// each field means.
#[allow(
    missing_docs,
    clippy::all,
    unreachable_pub,
    unused_qualifications,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("governance.v1");
}

pub use buffer::{Leftover, RequestStanding, Restoration, ResumeFault, history, record};
pub use connection::SessionFault;
pub use error::{Retry, StreamError};
#[cfg(feature = "cli")]
pub use health::http;
pub use health::{
    ConnectionChange, ConnectionPhase, ConnectionStatus, EndpointStatus, Health, LaneStatus,
    Reachability, StreamStatus,
};
pub use routing::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber, SubscriberError,
};
pub use stream::{GovernanceStream, RequestHandle, StreamArguments};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
