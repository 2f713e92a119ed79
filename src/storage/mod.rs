//! The store: everything durable, in one place.
//!
//! The node opens a [`Store`] before it starts anything that uses it; it belongs to no tree.
//! Buffer, bridge and chain are its [`User`]s, each with a name, and with tables of its own whose
//! names begin with that. A node's own subscribers may be users too: what they commit is then as
//! durable, and as whole after a crash, as the stream itself.
//!
//! A user is told by [`StoreEvent`]s, and never waits for a disk: it hands a [`Batch`] in, goes on
//! deciding, and does what rests on the batch once it is told that it is durable. After a failure
//! it reads what there is and begins again.

mod backup;
mod backup_error;
mod batch;
mod blocks;
mod caretaker;
mod checksummed;
mod compaction;
mod condition;
#[cfg(test)]
mod conformance;
mod copies;
mod copying;
mod embedded;
mod engine;
mod error;
#[cfg(any(test, feature = "stress"))]
mod faulty;
#[cfg(test)]
mod faulty_disk;
#[cfg(feature = "stress")]
mod filled;
mod format;
mod index;
mod medium;
mod memory;
mod metrics;
mod noted;
mod opening;
mod overlay;
mod owner;
mod queue;
mod reader;
mod restore;
mod scrub;
mod scrubbing;
mod shared;
mod sidecar;
mod store;
#[cfg(test)]
mod store_tests;
mod threads;
mod upkeep;
mod user;
mod waiting;
mod writer;

pub use backup::{backup_stopped, verify_backup};
pub use backup_error::BackupError;
pub use batch::{Batch, Change, Table};
pub use caretaker::UpkeepSettings;
pub use compaction::{Compacted, CompactionPolicy};
pub use condition::StoreCondition;
pub use copying::{CopyProgress, CopyStage, OnProgress};
pub use embedded::{CopyWriter, ReadOnlyFile, RedbEngine, verify_file, verify_stopped};
pub use engine::{Engine, Limits, Row, Scan, Snapshot, Usage};
pub use error::StoreError;
#[cfg(any(test, feature = "stress"))]
pub use faulty::{FaultyEngine, Hang, Kept};
#[cfg(feature = "stress")]
pub use filled::{Filling, create_filled};
pub use index::{HashKey, Index};
pub use memory::MemoryEngine;
pub use metrics::{STORE_METRIC_NAMES, StoreMetrics};
pub use owner::{FORMAT, Owner, Restored, StoreIdentity};
pub use restore::{Replace, RestoreReport, restore, restore_in_place};
pub use scrub::{Scrubbed, Verified};
pub use scrubbing::ScrubReport;
pub use sidecar::Backup;
pub use store::{Store, WeakStore};
pub use upkeep::LastUpkeep;
pub use user::{Generation, StoreEvent, Ticket, User};
pub use waiting::{Leaving, LookUp, Waiting, WithKeys};
