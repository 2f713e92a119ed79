//! What the log of a file holds beyond its tables.

use std::{io, sync::Arc};

use super::{
    fault::{damaged, io_error},
    log,
    memtable::{Layers, Memtable},
};
use crate::storage::{blocks::Area, checksummed::Checksummed, error::StoreError};

/// Where the next entry goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Position {
    pub(super) area: Area,
    /// Bytes from the beginning of the area.
    pub(super) at: u64,
}

/// A log as it was found.
#[derive(Debug)]
pub(super) struct Logged {
    /// What is in it. Of two areas the older one's changes are frozen: they were on their way into
    /// the tables.
    pub(super) layers: Layers,
    /// The last commit whose changes are frozen.
    pub(super) frozen: Option<u64>,
    pub(super) position: Position,
    /// The entries as they are written, by place: the opening writes and syncs them once more.
    pub(super) entries: Vec<(u64, Vec<u8>)>,
    /// Copies that are damaged, with a twin that is whole.
    pub(super) damaged_copies: u64,
}

impl Logged {
    /// Reads the log of a file whose tables are those of commit `tables`.
    ///
    /// # Errors
    ///
    /// When a commit that was confirmed is missing in it, or may be in what cannot be read.
    pub(super) fn read(place: &str, file: &Checksummed, tables: u64) -> Result<Self, StoreError> {
        let layout = file.layout();
        let [(first, unreadable), (second, more)] = Area::BOTH.map(|area| file.read_log(area));
        let areas = [first, second];
        let found = log::read(layout, &areas, tables).map_err(|reason| damaged(place, reason))?;
        let mut logged = Self {
            layers: Layers {
                commit: tables,
                active: Arc::default(),
                frozen: None,
            },
            frozen: None,
            position: Position::default(),
            entries: Vec::new(),
            damaged_copies: found.damaged_copies,
        };
        for (area, entry) in found.entries {
            let is_first = logged.entries.is_empty();
            if !is_first && area != logged.position.area {
                let full: Arc<Memtable> = std::mem::take(&mut logged.layers.active);
                logged.layers.frozen = Some(full);
                logged.frozen = Some(logged.layers.commit);
            }
            let changes: Vec<_> = entry.changes.iter().collect();
            let bytes = log::encode(layout.salt, entry.number, entry.place, &changes);
            logged.layers.active.add(entry.number, &entry.changes);
            logged.layers.commit = entry.number;
            let end = entry.place + bytes.len() as u64;
            logged.position = Position {
                area,
                at: end.saturating_sub(layout.area_start(area)),
            };
            match logged.entries.last_mut() {
                Some((start, before)) if *start + before.len() as u64 == entry.place => {
                    before.extend_from_slice(&bytes);
                }
                _ => logged.entries.push((entry.place, bytes)),
            }
        }
        // The next entry begins where the last one ends, or at the beginning of an area. If that can
        // be read, and is none, no entry is hidden: each has two copies.
        let next = logged.layers.commit.saturating_add(1);
        let hides_one = |at: u64| {
            Area::BOTH.into_iter().zip(&areas).any(|(area, bytes)| {
                let start = layout.area_start(area);
                let end = start + bytes.len() as u64;
                let is_current = area == logged.position.area;
                let begins = [Some(0), is_current.then_some(logged.position.at)];
                begins.into_iter().flatten().any(|offset| {
                    let begins = usize::try_from(offset).ok();
                    let begins = begins.and_then(|offset| bytes.get(offset..));
                    let is_one = begins.is_some_and(|bytes| log::may_begin(bytes, next));
                    at == start + offset || (is_one && (start + offset..end).contains(&at))
                })
            })
        };
        let is_read = |at: u64| {
            let mut entries = logged.entries.iter();
            entries.any(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&at))
        };
        let unreadable = unreadable.iter().chain(&more);
        let mut hiding = unreadable.filter(|(at, _)| !is_read(*at) && hides_one(*at));
        if let Some((at, error)) = hiding.next() {
            let error = io::Error::new(error.kind(), format!("byte {at}: {error}"));
            return Err(io_error(place, "read its log", &error));
        }
        let durable = file.noted_durable();
        if logged.layers.commit < durable {
            let last = logged.layers.commit;
            return Err(damaged(
                place,
                format!(
                    "its log ends with commit {last}, and commit {durable} was confirmed: both \
                     copies of an entry are damaged, or the disk lost them"
                ),
            ));
        }
        Ok(logged)
    }
}
