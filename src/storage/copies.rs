//! The copies at a file's beginning: written twice, read as one.

use std::io;

use redb::StorageBackend;

use super::blocks::{self, HEADER, Header, Layout, PREAMBLE, PREAMBLES, Preamble, Salt};

/// Writes both copies of a header.
pub(super) fn write_header(
    storage: &dyn StorageBackend,
    salt: Salt,
    header: &Header,
) -> io::Result<()> {
    for place in header.places() {
        storage.write(place, &header.encode(salt, place))?;
    }
    Ok(())
}

/// The file's layout, and how many copies of the preamble are damaged.
pub(super) fn read_layout(storage: &dyn StorageBackend) -> io::Result<(Layout, u64)> {
    let mut found = Vec::new();
    for place in PREAMBLES {
        let mut bytes = [0; PREAMBLE];
        let read = storage.read(place, &mut bytes);
        found.push(read.map_or(Preamble::Unreadable, |()| blocks::read_preamble(&bytes)));
    }
    let layouts: Vec<Layout> = found
        .iter()
        .filter_map(|preamble| match preamble {
            Preamble::Ours(layout) => Some(*layout),
            Preamble::OtherLayout(_) | Preamble::Unreadable => None,
        })
        .collect();
    let other = found.iter().find_map(|preamble| match preamble {
        Preamble::OtherLayout(layout) => Some(layout),
        Preamble::Ours(_) | Preamble::Unreadable => None,
    });
    match (layouts.as_slice(), other) {
        ([layout], None) => Ok((*layout, 1)),
        ([layout, second], _) if layout == second => Ok((*layout, 0)),
        ([], Some(layout)) => Err(damage(format!(
            "its blocks are laid out in version {layout}, which this program does not read"
        ))),
        ([], None) => Err(damage(
            "it is another program's file, or both copies of its preamble, at bytes 0 and 20480, \
             are damaged",
        )),
        _ => Err(damage(
            "its preambles, at bytes 0 and 20480, are of two files",
        )),
    }
}

/// The last header, and how many copies of both headers are damaged.
pub(super) fn read_headers(storage: &dyn StorageBackend, salt: Salt) -> io::Result<(Header, u64)> {
    let mut damaged = 0;
    let mut last = Vec::new();
    for pair in [blocks::places(0), blocks::places(1)] {
        let mut whole: Option<Header> = None;
        for place in pair {
            let mut bytes = [0; HEADER];
            let read = storage.read(place, &mut bytes).ok();
            match read.and_then(|()| Header::decode(salt, place, &bytes)) {
                Some(header) if whole.as_ref().is_none_or(|w| w.number < header.number) => {
                    whole = Some(header);
                }
                Some(_) => {}
                None => damaged += 1,
            }
        }
        let [first, second] = pair;
        // A write that the power cut short leaves old or new sectors. This is something else, and
        // what is in the other pair may be older than what was confirmed.
        last.push(whole.ok_or_else(|| {
            damage(format!(
                "both copies of a header, at bytes {first} and {second}, are damaged; what the \
                 other one says may be older than what was confirmed"
            ))
        })?);
    }
    last.sort_by_key(|header| std::cmp::Reverse(header.number));
    match last.as_slice() {
        [last, before] if before.number + 1 == last.number => Ok((last.clone(), damaged)),
        [last, before] => Err(damage(format!(
            "header {} stands beside header {}: the disk lost a write that it had confirmed",
            before.number, last.number
        ))),
        _ => Err(damage("it has no header")),
    }
}

/// What is there is not what was written.
pub(super) fn damage(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}
