//! The log: what was committed since the tables were last written.
//!
//! A commit is one entry, written twice, one copy behind the other, each at the beginning of a block
//! and in its place vouched for by a checksum. A commit is durable once its entry is. Entries are
//! written one after the other, each when the one before is on the disk: of what was confirmed none
//! is missing before one that is there. A damaged copy has a twin; an entry of which neither copy is
//! whole is one that a power loss cut short, unless a later one is there.
//!
//! ```text
//! copy    number, place of the entry, length and checksum of the changes, checksum of these;
//!         then the changes, then zeros to the end of the block
//! change  length of the table's name, name, length of the key, key,
//!         0 for a removal or the value's length and one, value
//! ```

use std::collections::BTreeMap;

use crate::storage::{
    batch::Change,
    blocks::{Area, BLOCK, Layout, Salt, number},
};

/// Bytes before the changes.
const HEAD: usize = 5 * 8;

/// An entry that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The commit's number.
    pub(super) number: u64,
    /// Where it is in the file.
    pub(super) place: u64,
    /// What it changes.
    pub(super) changes: Vec<Change>,
}

/// The entries after commit `after`, those of each area in order, oldest area first.
pub(super) struct Found {
    pub(super) entries: Vec<(Area, Entry)>,
    /// Copies that are damaged, with a twin that is whole.
    pub(super) damaged_copies: u64,
}

/// Bytes that an entry with these changes takes up.
pub(super) fn entry_bytes(changes: &[&Change]) -> usize {
    let bytes: usize = changes.iter().map(|change| change_bytes(change)).sum();
    2 * (HEAD + bytes).next_multiple_of(BLOCK)
}

fn change_bytes(change: &Change) -> usize {
    let value = change.value.as_ref().map_or(0, Vec::len);
    3 * 4 + change.table.len() + change.key.len() + value
}

/// Both copies of the entry of commit `number`, to be written at `place`.
pub(super) fn encode(salt: Salt, number: u64, place: u64, changes: &[&Change]) -> Vec<u8> {
    let mut content = Vec::new();
    for change in changes {
        put(&mut content, change.table.as_bytes());
        put(&mut content, &change.key);
        match &change.value {
            Some(value) => {
                content.extend_from_slice(&(value.len() as u32 + 1).to_le_bytes());
                content.extend_from_slice(value);
            }
            None => content.extend_from_slice(&[0; 4]),
        }
    }
    let copy = (HEAD + content.len()).next_multiple_of(BLOCK);
    let mut bytes = Vec::with_capacity(2 * copy);
    for at in [place, place + copy as u64] {
        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&number.to_le_bytes());
        head.extend_from_slice(&place.to_le_bytes());
        head.extend_from_slice(&(content.len() as u64).to_le_bytes());
        head.extend_from_slice(&salt.of_log(at, &content));
        let checksum = salt.of_log(at, &head);
        head.extend_from_slice(&checksum);
        let end = bytes.len() + copy;
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&content);
        bytes.resize(end, 0);
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
    bytes.extend_from_slice(part);
}

/// Reads what both areas hold beyond commit `after`.
///
/// # Errors
///
/// What is wrong, when an entry is missing or cannot be read though a later one is there.
pub(super) fn read(layout: Layout, areas: &[Vec<u8>; 2], after: u64) -> Result<Found, String> {
    let mut entries: BTreeMap<u64, (Area, Entry)> = BTreeMap::new();
    let mut whole: BTreeMap<u64, u64> = BTreeMap::new();
    for (area, bytes) in Area::BOTH.into_iter().zip(areas) {
        let start = layout.area_start(area);
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let place = start + at as u64;
            let Some(copy) = Copy::read(layout.salt, place, rest) else {
                at += BLOCK;
                continue;
            };
            at += copy.bytes();
            if copy.number <= after {
                continue;
            }
            let changes = decode(copy.content).ok_or_else(|| {
                format!(
                    "the log's entry of commit {} at byte {place} cannot be read, though its \
                     checksum fits: another version wrote it",
                    copy.number
                )
            })?;
            let entry = Entry {
                number: copy.number,
                place: copy.place,
                changes,
            };
            *whole.entry(copy.number).or_default() += 1;
            if let Some((_, other)) = entries.insert(copy.number, (area, entry))
                && Some(&other) != entries.get(&copy.number).map(|(_, entry)| entry)
            {
                return Err(format!(
                    "the log has two different entries of commit {}, at bytes {} and {}",
                    copy.number, other.place, copy.place
                ));
            }
        }
    }
    for (expected, (number, (_, entry))) in (after.saturating_add(1)..).zip(&entries) {
        if *number != expected {
            return Err(format!(
                "the log's entry of commit {expected} is damaged or missing, and that of commit \
                 {number}, which came later, is at byte {}",
                entry.place
            ));
        }
    }
    let damaged_copies = whole.values().filter(|copies| **copies < 2).count() as u64;
    Ok(Found {
        entries: entries.into_values().collect(),
        damaged_copies,
    })
}

/// A copy that is whole.
struct Copy<'a> {
    number: u64,
    place: u64,
    content: &'a [u8],
}

impl<'a> Copy<'a> {
    /// The copy at byte `at` of the file, where `bytes` begin. `None` if there is none, or it is
    /// damaged.
    fn read(salt: Salt, at: u64, bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let (head, checksum) = head.split_at_checked(HEAD - 8)?;
        if checksum != salt.of_log(at, head) {
            return None;
        }
        let content = rest.get(..usize::try_from(number(head, 16, 8)?).ok()?)?;
        if head.get(24..) != Some(salt.of_log(at, content).as_slice()) {
            return None;
        }
        let copy = Self {
            number: number(head, 0, 8)?,
            place: number(head, 8, 8)?,
            content,
        };
        let is_its_own = at == copy.place || at == copy.place + copy.bytes() as u64;
        is_its_own.then_some(copy)
    }

    fn bytes(&self) -> usize {
        (HEAD + self.content.len()).next_multiple_of(BLOCK)
    }
}

fn decode(mut bytes: &[u8]) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        let table = std::str::from_utf8(take(&mut bytes)?).ok()?.to_owned();
        changes.push(Change {
            table: table.into(),
            key: take(&mut bytes)?.to_vec(),
            value: take_value(&mut bytes)?,
        });
    }
    Some(changes)
}

/// Takes bytes that stand behind their length.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_at_checked(4)?;
    let (part, rest) = rest.split_at_checked(usize::try_from(number(length, 0, 4)?).ok()?)?;
    *bytes = rest;
    Some(part)
}

/// Takes a value that stands behind its length and one; zero stands for none.
fn take_value(bytes: &mut &[u8]) -> Option<Option<Vec<u8>>> {
    let (length, rest) = bytes.split_at_checked(4)?;
    let length = usize::try_from(number(length, 0, 4)?).ok()?;
    let (part, rest) = rest.split_at_checked(length.saturating_sub(1))?;
    *bytes = rest;
    Some((length > 0).then(|| part.to_vec()))
}

/// Whether the entry of commit `number` may have been written where `bytes` begin: damaged or not.
pub(super) fn may_begin(bytes: &[u8], expected: u64) -> bool {
    number(bytes, 0, 8) == Some(expected)
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
