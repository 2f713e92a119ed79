//! Finds numbered rows by a key of any length: an index row is a keyed hash and the number.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::{
    batch::{Batch, Table},
    engine::{Scan, Snapshot},
    error::StoreError,
};

/// The secret that a store's indexes are hashed with: whoever chooses keys cannot choose where
/// they fall.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey([u8; 16]);

impl HashKey {
    /// From its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    fn hash(self, key: &[u8]) -> [u8; 16] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(key);
        hasher.finish128().as_u128().to_be_bytes()
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// Rows `hash(key) number → nothing`, so that adding one reads nothing. Two keys may have one
/// hash: whoever looks a key up compares it with what is in the numbered row.
#[derive(Debug, Clone, Copy)]
pub struct Index(Table);

impl Index {
    /// The index that is kept in `table`.
    #[must_use]
    pub const fn new(table: Table) -> Self {
        Self(table)
    }

    /// Has `number` found under `key`.
    pub fn add(self, batch: &mut Batch, hash: HashKey, key: &[u8], number: u64) {
        batch.put(self.0, row_key(hash, key, number), Vec::new());
    }

    /// Has `number` found under `key` no more.
    pub fn remove(self, batch: &mut Batch, hash: HashKey, key: &[u8], number: u64) {
        batch.remove(self.0, row_key(hash, key, number));
    }

    /// The key of the row that has `number` found under `key`.
    pub(crate) fn row(hash: HashKey, key: &[u8], number: u64) -> Vec<u8> {
        row_key(hash, key, number)
    }

    /// The table that it is kept in.
    pub(crate) const fn table(self) -> Table {
        self.0
    }

    /// The number in the key of one of its rows.
    pub(crate) fn number(row_key: &[u8]) -> Option<u64> {
        number(row_key)
    }

    /// Numbers that may be `key`'s, the oldest first.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn find(
        self,
        snapshot: &dyn Snapshot,
        hash: HashKey,
        key: &[u8],
    ) -> Result<Vec<u64>, StoreError> {
        let prefix = hash.hash(key);
        let (first, last) = (with_number(prefix, 0), with_number(prefix, u64::MAX));
        let range = Scan {
            to: std::ops::Bound::Included(&last),
            ..Scan::first(usize::MAX).from(&first)
        };
        let rows = snapshot.scan(self.0.name(), range)?;
        Ok(rows.iter().filter_map(|(key, _)| number(key)).collect())
    }
}

fn row_key(hash: HashKey, key: &[u8], number: u64) -> Vec<u8> {
    with_number(hash.hash(key), number)
}

fn with_number(hash: [u8; 16], number: u64) -> Vec<u8> {
    [hash.as_slice(), number.to_be_bytes().as_slice()].concat()
}

fn number(row_key: &[u8]) -> Option<u64> {
    let number = row_key.get(16..)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}
