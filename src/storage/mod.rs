//! The store: everything durable, in one place.
//!
//! The node opens it before it starts anything that uses it; it belongs to no tree. Buffer, bridge
//! and chain are its users, each with a name and with tables of its own.

mod batch;
mod blocks;
mod checksummed;
#[cfg(test)]
mod conformance;
mod copies;
mod embedded;
mod engine;
mod error;
#[cfg(test)]
mod faulty_disk;
mod index;
mod memory;
mod overlay;
mod scrub;

pub use batch::{Batch, Change, Table};
pub use embedded::{CopyWriter, ReadOnlyFile, RedbEngine, verify_file};
pub use engine::{Engine, Limits, Row, Scan, Snapshot, Usage};
pub use error::StoreError;
pub use index::{HashKey, Index};
pub use memory::MemoryEngine;
pub use scrub::{Scrubbed, Verified};
