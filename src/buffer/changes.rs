//! Which rows of a journal have changed since they were last committed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{journal::Row, retained::Retained};
use crate::message::{Lane, RequestId};

/// Keys of changed rows. What changed twice is one row, and what came and went between two
/// commits is never written.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    identity: bool,
    lanes: BTreeSet<Lane>,
    entries: BTreeSet<(Lane, u64)>,
    requests: BTreeMap<u64, RequestId>,
    pegins: BTreeSet<u64>,
    dead_letters: BTreeSet<u64>,
}

/// What is known does not depend on what of it is committed.
impl PartialEq for Changes {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Changes {
    pub(super) fn identity(&mut self) {
        self.identity = true;
    }

    pub(super) fn lane(&mut self, lane: Lane) {
        self.lanes.insert(lane);
    }

    pub(super) fn entry(&mut self, lane: Lane, sequence: u64) {
        self.entries.insert((lane, sequence));
    }

    pub(super) fn request(&mut self, number: u64, request_id: &RequestId) {
        self.requests
            .entry(number)
            .or_insert_with(|| request_id.clone());
    }

    pub(super) fn pegin(&mut self, number: u64) {
        self.pegins.insert(number);
    }

    pub(super) fn dead_letter(&mut self, number: u64) {
        self.dead_letters.insert(number);
    }

    /// The rows as they are now, each sort in the order of its keys.
    pub(super) fn into_rows(self, now: &Retained) -> Vec<Row> {
        let identity = self.identity.then_some(Row::Identity(now.identity));
        let lanes = self.lanes.into_iter().map(|lane| now.lane_row(lane));
        let entries = self.entries.into_iter();
        let requests = self.requests.into_iter();
        identity
            .into_iter()
            .chain(lanes)
            .chain(entries.map(|(lane, sequence)| now.entry_row(lane, sequence)))
            .chain(requests.filter_map(|(number, id)| now.request_row(number, &id)))
            .chain(self.pegins.into_iter().map(|number| now.pegin_row(number)))
            .chain(
                self.dead_letters
                    .into_iter()
                    .map(|number| now.dead_letter_row(number)),
            )
            .collect()
    }
}
