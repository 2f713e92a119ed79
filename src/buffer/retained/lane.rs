//! One lane.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use crate::{
    buffer::record::{Entry, Expects},
    message::MessageId,
};

/// One lane, both directions.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RetainedLane {
    /// What governance has not acknowledged or not answered, and what is kept for a ledger that
    /// might be restored, by sequence.
    pub entries: BTreeMap<u64, Entry>,
    /// Of the entries, those kept for a restored ledger only.
    pub(super) retired: BTreeSet<u64>,
    /// What counts against the lane's capacity: messages that callers brought and that are
    /// unacknowledged or unanswered. What follows from them has its room reserved.
    pub used: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// How far the lane has come.
    pub counters: Counters,
}

/// How far a lane has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Sequence of the next message.
    pub next_new: u64,
    /// Lowest sequence that governance has not acknowledged.
    pub first_unacknowledged: u64,
    /// The highest acknowledged sequence and its id: what two histories are compared by.
    pub last_acknowledged: Option<(u64, MessageId)>,
    /// Highest sequence that may have been transmitted; 0 for none.
    pub sent_through: u64,
    /// Highest sequence of governance that is handled; 0 for none.
    pub handled_through: u64,
    /// Id of that message.
    pub last_handled: Option<MessageId>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            next_new: 1,
            first_unacknowledged: 1,
            last_acknowledged: None,
            sent_through: 0,
            handled_through: 0,
            last_handled: None,
        }
    }
}

impl RetainedLane {
    /// Messages that governance has not acknowledged.
    #[must_use]
    pub(crate) fn unacknowledged(&self) -> u64 {
        self.counters.next_new - self.counters.first_unacknowledged
    }

    /// The oldest entry that is kept for a restored ledger only, if there are more than `limit`
    /// of them or it was accepted before `since`.
    pub(super) fn to_prune(&self, limit: usize, since: SystemTime) -> Option<u64> {
        let oldest = *self.retired.first()?;
        let expired = || {
            let entry = self.entries.get(&oldest);
            entry.is_none_or(|entry| entry.accepted_at < since)
        };
        (self.retired.len() > limit || expired()).then_some(oldest)
    }

    /// Lets go of an entry that is kept for a restored ledger only; whether it was there.
    pub(super) fn prune(&mut self, sequence: u64) -> bool {
        let there = self.retired.remove(&sequence);
        if there {
            self.entries.remove(&sequence);
        }
        there
    }

    /// Nothing counts on the entry any more.
    pub(super) fn release(&mut self, sequence: u64, keep: bool) {
        if let Some(entry) = self.entries.get(&sequence).cloned()
            && !self.retired.contains(&sequence)
        {
            self.discount(&entry);
            if keep {
                self.retired.insert(sequence);
            } else {
                self.entries.remove(&sequence);
            }
        }
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let acknowledged = entry.sequence < self.counters.first_unacknowledged;
        if acknowledged && matches!(entry.expects, Expects::Nothing | Expects::Answered) {
            self.retired.insert(entry.sequence);
        } else if entry.is_callers() {
            self.used += 1;
            self.bytes += entry.payload.len() as u64;
        }
        self.entries.insert(entry.sequence, entry);
    }

    /// It takes no room any more.
    pub(super) fn discount(&mut self, entry: &Entry) {
        if entry.is_callers() {
            self.used -= 1;
            self.bytes -= entry.payload.len() as u64;
        }
    }
}
