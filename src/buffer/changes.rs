//! Which rows of the stream have changed since they were last committed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::OutPoint;

use super::{
    record::DeadLetter,
    retained::Retained,
    stored::Stored as _,
    tables::{
        BURNS, DEAD_LETTERS, ENTRIES, IDENTITY, IDENTITY_KEY, LANES, OPEN_REQUESTS, OUTPOINTS,
        PEGINS, REQUEST_IDS, REQUESTS, burn_key, entry_key, lane_key, outpoint_key,
    },
};
use crate::{
    message::{Lane, RequestId},
    storage::{Batch, HashKey},
};

/// Keys of changed rows. What changed twice is one row, and what came and went between two
/// commits is never written.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    identity: bool,
    lanes: BTreeSet<Lane>,
    entries: BTreeSet<(Lane, u64)>,
    requests: BTreeMap<u64, RequestId>,
    /// Of the requests, those that are new: they are to be found by id and burns from now on.
    opened: BTreeSet<u64>,
    /// Of the requests, those that were settled: their rows are with those.
    reopened: BTreeSet<u64>,
    /// Deposits that were answered.
    pegins: BTreeMap<u64, OutPoint>,
    /// The letters themselves: memory keeps only their sizes.
    dead_letters: BTreeMap<u64, Option<DeadLetter>>,
}

/// What may leave memory once the batch that it is in is durable, and every look-up asked before
/// that is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    Request(RequestId),
    Pegin(OutPoint),
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

    pub(super) fn opened(&mut self, number: u64, request_id: &RequestId) {
        self.opened.insert(number);
        self.request(number, request_id);
    }

    pub(super) fn reopened(&mut self, number: u64, request_id: &RequestId) {
        self.reopened.insert(number);
        self.request(number, request_id);
    }

    pub(super) fn request(&mut self, number: u64, request_id: &RequestId) {
        self.requests
            .entry(number)
            .or_insert_with(|| request_id.clone());
    }

    pub(super) fn pegin(&mut self, number: u64, outpoint: OutPoint) {
        self.pegins.insert(number, outpoint);
    }

    pub(super) fn dead_letter(&mut self, number: u64, letter: Option<DeadLetter>) {
        self.dead_letters.insert(number, letter);
    }

    /// The rows as they are now, and what may leave memory once they are durable.
    pub(super) fn into_batch(self, now: &Retained, hash: HashKey) -> (Batch, Vec<Settled>) {
        let (mut batch, mut settled) = (Batch::new(), Vec::new());
        if self.identity {
            batch.put(IDENTITY, IDENTITY_KEY, now.identity.encode());
        }
        for lane in self.lanes {
            let counters = now.lanes.get(lane).counters;
            batch.put(LANES, lane_key(lane), counters.encode());
        }
        for (lane, sequence) in self.entries {
            let key = entry_key(lane, sequence);
            match now.lanes.get(lane).entries.get(&sequence) {
                Some(entry) => batch.put(ENTRIES, key, entry.encode()),
                None => batch.remove(ENTRIES, key),
            }
        }
        for (number, request_id) in self.requests {
            let Some(record) = now.request(&request_id) else {
                continue;
            };
            let is_new = self.opened.contains(&number);
            let key = number.to_be_bytes();
            if record.is_open() {
                if self.reopened.contains(&number) {
                    batch.remove(REQUESTS, key);
                }
                batch.put(OPEN_REQUESTS, key, record.encode());
            } else {
                if !is_new {
                    batch.remove(OPEN_REQUESTS, key);
                }
                batch.put(REQUESTS, key, record.encode());
                settled.push(Settled::Request(request_id.clone()));
            }
            if is_new {
                let id = request_id.as_str().as_bytes();
                REQUEST_IDS.add(&mut batch, hash, id, number);
                for burn in &record.request.burns {
                    BURNS.add(&mut batch, hash, &burn_key(burn), number);
                }
            }
        }
        for (number, outpoint) in self.pegins {
            if let Some(at) = now.answered_at(&outpoint) {
                batch.put(PEGINS, number.to_be_bytes(), (outpoint, at).encode());
                OUTPOINTS.add(&mut batch, hash, &outpoint_key(&outpoint), number);
                settled.push(Settled::Pegin(outpoint));
            }
        }
        for (number, letter) in self.dead_letters {
            let key = number.to_be_bytes();
            match letter {
                Some(letter) => batch.put(DEAD_LETTERS, key, letter.encode()),
                None => batch.remove(DEAD_LETTERS, key),
            }
        }
        (batch, settled)
    }
}
