//! The commit that each opening of a store begins with, and what it tells apart.

use uuid::Uuid;

use super::{batch::Batch, engine::Snapshot, error::StoreError, owner::META, user::Generation};

const OPENED_KEY: &[u8] = b"opened";

/// Who opened a store last: written by the first commit of each opening. A store that is opened
/// again by the same process must still say so; if it does not, another process has written to it
/// meanwhile, or it is another copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening {
    /// Random for each process that opens it.
    pub(super) opener: Uuid,
    pub(super) generation: Generation,
}

impl Opening {
    /// Writes it.
    pub(super) fn write(self, batch: &mut Batch) {
        let mut value = self.opener.into_bytes().to_vec();
        value.extend_from_slice(&self.generation.0.to_be_bytes());
        batch.put(META, OPENED_KEY, value);
    }

    /// The batch that an opening begins with.
    pub(super) fn batch(self) -> Batch {
        let mut batch = Batch::new();
        self.write(&mut batch);
        batch
    }

    /// That the store was opened last by `opener`.
    pub(super) fn check(
        place: &str,
        snapshot: &dyn Snapshot,
        opener: Uuid,
    ) -> Result<(), StoreError> {
        let stored = snapshot.get(META.name(), OPENED_KEY)?;
        let found = stored
            .as_deref()
            .and_then(|value| value.get(..16))
            .and_then(|bytes| Uuid::from_slice(bytes).ok());
        if found == Some(opener) {
            return Ok(());
        }
        Err(StoreError::Foreign {
            place: place.to_owned(),
            what: "last opener",
            found: found.map_or_else(|| "nobody".to_owned(), |found| found.to_string()),
            expected: opener.to_string(),
            advice: "another process has written to it while this one ran, or a restored copy was \
                     put in its place; stop the node, and find out which copy is the right one",
        })
    }
}
