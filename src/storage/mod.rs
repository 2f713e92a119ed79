//! The store: everything durable, in one place.
//!
//! The node opens it before it starts anything that uses it; it belongs to no tree. Buffer, bridge
//! and chain are its users, each with a name and with tables of its own.

mod batch;
mod engine;
mod error;
mod index;
mod memory;

pub use batch::{Batch, Change, Table};
pub use engine::{Engine, Limits, Row, Scan, Snapshot, Usage};
pub use error::StoreError;
pub use index::{HashKey, Index};
pub use memory::MemoryEngine;
