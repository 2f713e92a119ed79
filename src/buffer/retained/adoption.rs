//! What it changes to adopt another ledger of governance.

use std::collections::BTreeMap;

use super::{Retained, Standing};
use crate::{
    buffer::record::{Entry, Expects},
    message::{Lane, LedgerId, RequestId},
    proto,
};

impl Retained {
    /// Both directions of every lane begin again: each lane in its old order with what is
    /// unacknowledged, unanswered or retained. A request that is to be cancelled is not made
    /// again: its place is taken by a marker, and its cancel follows.
    pub(super) fn adopt(&mut self, ledger_id: LedgerId) {
        self.identity.ledger_id = Some(ledger_id);
        self.identity.adoptions += 1;
        self.identity.reconciling = true;
        self.changes.identity();
        let mut aside = self.take_aside();
        for lane in Lane::ALL {
            let old = std::mem::take(self.lanes.get_mut(lane));
            self.changes.lane(lane);
            for sequence in old.entries.keys() {
                self.changes.entry(lane, *sequence);
            }
            let mut entries = old.entries;
            if lane == Lane::Signing {
                // In the places that their markers have, or had.
                entries.append(&mut aside);
            }
            for (sequence, mut entry) in entries {
                let next_new = self.lanes.get(lane).counters.next_new;
                if let Expects::Outcome(request_id) = &entry.expects
                    && let Some(record) = self.requests.get_mut(request_id)
                {
                    self.changes.request(record.number, request_id);
                    match &mut record.standing {
                        Standing::Open {
                            cancel: Some(cancel),
                            ..
                        } if cancel.sequence == sequence => cancel.sequence = next_new,
                        standing => {
                            record.sent_before |= sequence <= old.counters.sent_through;
                            record.request.sequence = next_new;
                            if matches!(
                                standing,
                                Standing::Open {
                                    cancel: Some(_),
                                    ..
                                }
                            ) {
                                entry.become_marker();
                            }
                        }
                    }
                }
                if entry.expects == Expects::Answered {
                    if !entry.is_kept() {
                        // Its answer is here: the new ledger need not know it.
                        continue;
                    }
                    entry.expects = Expects::Nothing;
                }
                self.append(&Entry {
                    sequence: next_new,
                    ..entry
                });
            }
        }
    }

    /// The messages that markers have taken the places of, by those places. Every open request is
    /// nowhere from now on, until its message is appended again: a place of the old numbering is
    /// another message's in the new one.
    fn take_aside(&mut self) -> BTreeMap<u64, Entry> {
        let mut aside = BTreeMap::new();
        for request_id in self.open.values() {
            if let Some(record) = self.requests.get_mut(request_id) {
                let place = std::mem::take(&mut record.request.sequence);
                aside.extend(record.aside.take().map(|entry| (place, entry)));
                self.changes.request(record.number, request_id);
            }
        }
        aside
    }

    /// The new ledger holds these requests: what would make them again becomes a marker.
    pub(super) fn reconciled(&mut self, held: &[RequestId]) {
        for request_id in held {
            let Some(record) = self.requests.get_mut(request_id) else {
                continue;
            };
            let (lane, sequence) = (Lane::Signing, record.request.sequence);
            let entry = self.lanes.get(lane).entries.get(&sequence);
            if let Some(entry) = entry.filter(|entry| entry.kind == proto::Kind::SignatureRequest)
                && record.is_open()
            {
                record.aside = Some(entry.clone());
                record.sent_before = true;
                self.changes.request(record.number, request_id);
                self.withdraw(lane, sequence);
            }
        }
        self.identity.reconciling = false;
        self.changes.identity();
    }
}
