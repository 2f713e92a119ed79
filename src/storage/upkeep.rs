//! What a store keeps of its own upkeep.

use std::time::SystemTime;

use super::{
    batch::Batch,
    engine::Snapshot,
    error::StoreError,
    owner::{META, time, unix_ms},
};

const BACKED_UP_KEY: &[u8] = b"backed_up";
const SCRUBBED_KEY: &[u8] = b"scrubbed";

/// What is known of the store's upkeep. The times are in the store, and survive a restart; what is
/// damaged is found again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Upkeep {
    pub(super) backed_up_at: Option<SystemTime>,
    pub(super) scrubbed_at: Option<SystemTime>,
    /// What a scrub, a commit or an opening found damaged, until a scrub finds nothing.
    pub(super) damaged_blocks: Option<StoreError>,
    /// What a read found damaged. Blocks that are what was written say nothing of it: it stays until
    /// the store is opened by a new process, which reads it again.
    pub(super) damaged_rows: Option<StoreError>,
}

impl Upkeep {
    /// What is damaged, as far as it is known.
    pub(super) fn damage(&self) -> Option<&StoreError> {
        self.damaged_rows.as_ref().or(self.damaged_blocks.as_ref())
    }
}

impl Upkeep {
    pub(super) fn read(place: &str, snapshot: &dyn Snapshot) -> Result<Self, StoreError> {
        let at = |key: &[u8]| {
            let Some(stored) = snapshot.get(META.name(), key)? else {
                return Ok(None);
            };
            let bytes = <[u8; 8]>::try_from(stored.as_slice());
            let at = bytes
                .map_err(|_| "a time of another length".to_owned())
                .and_then(|bytes| time(u64::from_be_bytes(bytes)));
            at.map(Some).map_err(|reason| StoreError::Damaged {
                place: place.to_owned(),
                reason: format!("upkeep: {reason}"),
            })
        };
        Ok(Self {
            backed_up_at: at(BACKED_UP_KEY)?,
            scrubbed_at: at(SCRUBBED_KEY)?,
            damaged_blocks: None,
            damaged_rows: None,
        })
    }
}

/// When a store was last looked after, as is written in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastUpkeep {
    /// When its last backup was made.
    pub backed_up_at: Option<SystemTime>,
    /// When it was last read whole and nothing was damaged.
    pub scrubbed_at: Option<SystemTime>,
}

impl LastUpkeep {
    /// Reads it in a snapshot of the store at `place`.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(place: &str, snapshot: &dyn Snapshot) -> Result<Self, StoreError> {
        let upkeep = Upkeep::read(place, snapshot)?;
        Ok(Self {
            backed_up_at: upkeep.backed_up_at,
            scrubbed_at: upkeep.scrubbed_at,
        })
    }
}

/// The batch that remembers a backup.
pub(super) fn backed_up(at: SystemTime) -> Batch {
    remembered(BACKED_UP_KEY, at)
}

/// The batch that remembers a scrub that found nothing.
pub(super) fn scrubbed(at: SystemTime) -> Batch {
    remembered(SCRUBBED_KEY, at)
}

fn remembered(key: &[u8], at: SystemTime) -> Batch {
    let mut batch = Batch::new();
    batch.put(META, key, unix_ms(at).to_be_bytes());
    batch
}
