//! Which rows are committed while a copy is made. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use super::batch::Batch;

/// A row's table and key.
pub(super) type RowName = (Cow<'static, str>, Vec<u8>);

/// The rows that were put or removed since they were noted last. The writer notes a batch when its
/// commit is over, whatever came of it: what a snapshot taken later does not show, is noted later.
#[derive(Debug)]
pub(super) struct Noted {
    /// The copy that it is noted for.
    copy: u64,
    /// Whether what is left is being copied: from then on the copy is not cancelled.
    pub(super) is_last: bool,
    rows: BTreeSet<RowName>,
    bytes: usize,
}

impl Noted {
    /// Nothing yet, for the copy of this number.
    pub(super) fn of(copy: u64) -> Self {
        Self {
            copy,
            is_last: false,
            rows: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Whether it is noted for this copy.
    pub(super) fn is_of(&self, copy: u64) -> bool {
        self.copy == copy
    }

    pub(super) fn note(&mut self, batches: &[Batch]) {
        for change in batches.iter().flat_map(Batch::changes) {
            let row = (change.table.clone(), change.key.clone());
            let bytes = row.0.len() + row.1.len();
            if self.rows.insert(row) {
                self.bytes += bytes;
            }
        }
    }

    /// Bytes of the names of what is noted.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is noted, in order; nothing is noted any more.
    pub(super) fn take(&mut self) -> BTreeSet<RowName> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::batch::Table, *};

    #[test]
    fn a_row_is_noted_once_however_often_it_changes() {
        let mut noted = Noted::of(1);
        let mut batch = Batch::new();
        batch.put(Table::new("a/rows"), *b"key", *b"value");
        batch.remove(Table::new("a/rows"), *b"key");
        noted.note(&[batch.clone(), batch]);
        assert_eq!(noted.bytes(), 9);
        assert_eq!(noted.take().len(), 1);
        assert!(noted.bytes() == 0 && noted.take().is_empty());
    }
}
