//! A store that is made with everything in it: old at once, in minutes instead of years.

use std::{collections::BTreeMap, path::Path};

use super::{
    batch::{Batch, Change},
    embedded::{CopyWriter, RedbEngine},
    error::StoreError,
    index::HashKey,
    owner::{Owner, StoreIdentity},
};

/// Keys of this length or more are hashes and ids: they come in no order, and are written in order
/// at the end.
const RANDOM_KEY: usize = 24;

/// Takes the rows of a store that is being made. The file is what a compaction would leave.
#[derive(Debug)]
pub struct Filling<'a> {
    writer: &'a mut CopyWriter,
    /// The last key of each table whose rows come in order.
    last: BTreeMap<String, Vec<u8>>,
    later: BTreeMap<String, Unordered>,
}

/// Rows that come in no order.
#[derive(Debug, Default)]
struct Unordered {
    /// One after the other: the length of the key, the key, the length of the value, the value.
    rows: Vec<u8>,
    /// Where each begins.
    places: Vec<u64>,
}

impl Unordered {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.places.push(self.rows.len() as u64);
        for part in [key, value] {
            // Longer ones are none that come here.
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            self.rows.extend(length.to_le_bytes());
            self.rows.extend(part);
        }
    }

    fn part(&self, place: usize) -> &[u8] {
        let bytes = self.rows.get(place..).unwrap_or_default();
        let (length, rest) = bytes.split_first_chunk::<2>().unwrap_or((&[0; 2], &[]));
        let length = usize::from(u16::from_le_bytes(*length));
        rest.get(..length).unwrap_or_default()
    }

    fn key(&self, place: u64) -> &[u8] {
        self.part(usize::try_from(place).unwrap_or(usize::MAX))
    }

    fn sorted(mut self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let mut places = std::mem::take(&mut self.places);
        places.sort_unstable_by(|one, other| self.key(*one).cmp(self.key(*other)));
        places.into_iter().map(move |place| {
            let key = self.key(place).to_vec();
            let value = usize::try_from(place).unwrap_or(usize::MAX);
            let value = self.part(value.saturating_add(2 + key.len())).to_vec();
            (key, value)
        })
    }
}

impl Filling<'_> {
    /// Adds rows. What a batch removes is gone, if it was there.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    pub fn add(&mut self, batches: &[Batch]) -> Result<(), StoreError> {
        let mut changes: Vec<&Change> = batches.iter().flat_map(Batch::changes).collect();
        changes.sort_by(|one, other| one.table.cmp(&other.table));
        for change in changes {
            match &change.value {
                Some(value) if change.key.len() >= RANDOM_KEY => {
                    let later = self.later.entry(change.table.to_string());
                    later.or_default().push(&change.key, value);
                }
                Some(value) => {
                    let last = self.last.entry(change.table.to_string()).or_default();
                    if change.key > *last {
                        last.clone_from(&change.key);
                    }
                    let (key, value) = (change.key.clone(), value.clone());
                    self.writer.put(&change.table, key, value)?;
                }
                None => {
                    let last = self.last.get(change.table.as_ref());
                    if last.is_some_and(|last| change.key <= *last) {
                        self.writer.remove(&change.table, change.key.clone())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), StoreError> {
        for (table, rows) in self.later {
            for (key, value) in rows.sorted() {
                self.writer.put(&table, key, value)?;
            }
        }
        Ok(())
    }
}

/// Makes `owner`'s store in a directory that holds none, with what `fill` adds, which is told the
/// secret of its indexes. The store comes into being whole, or not at all.
///
/// # Errors
///
/// [`StoreError::Occupied`] when something is there, and what the disk says.
pub fn create_filled(
    directory: &Path,
    owner: &Owner,
    fill: impl FnOnce(&mut Filling<'_>, HashKey) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let identity = StoreIdentity::new(owner.clone());
    let engine = RedbEngine::create_with(directory, false, 1, |writer| {
        let mut filling = Filling {
            writer,
            last: BTreeMap::new(),
            later: BTreeMap::new(),
        };
        filling.add(&[identity.first_batch()])?;
        fill(&mut filling, identity.hash_key())?;
        filling.finish()
    })?;
    drop(engine);
    Ok(())
}
