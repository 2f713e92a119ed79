//! What it changes to adopt another ledger of governance, or to be restored from a backup: sequences
//! begin again from 1.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{Cancel, Restoration, Retained, Standing};
use crate::{
    buffer::record::{Entry, Expects},
    message::{Lane, LedgerId, OutboxId, RequestId},
    proto,
};

impl Retained {
    /// Governance has another ledger: it is told everything again that it may lack. The one before
    /// can no longer confirm that this store is not an older copy: where it has not, what is open
    /// may have been sent to it, and the new one is to recall what this store may lack.
    pub(super) fn adopt(&mut self, ledger_id: LedgerId) {
        if !self.is_confirmed {
            self.identity.restoration = Restoration::Reconciling;
            self.mark_possibly_sent();
        }
        self.identity.ledger_id = Some(ledger_id);
        self.renumber();
    }

    /// The store was restored: what is open may have been sent since the backup, and governance may
    /// have taken and sent more under the sequences that come next. So there is another outbox.
    pub(super) fn restore(&mut self, restore_id: Uuid, outbox_id: OutboxId) {
        self.identity.outbox_id = outbox_id;
        self.identity.restored_by = Some(restore_id);
        self.identity.restoration = Restoration::Waiting;
        self.mark_possibly_sent();
        self.renumber();
    }

    /// The store is new, and its node is not. Governance has taken nothing of its outbox yet, so that
    /// sequences stay.
    pub(super) fn lost(&mut self) {
        self.identity.restoration = Restoration::Reconciling;
        self.identity.reconciling = true;
        self.changes.identity();
        self.mark_possibly_sent();
    }

    /// Governance has seen more of this store than is in it.
    pub(super) fn went_back(&mut self) {
        self.identity.restoration = Restoration::WentBack;
        self.changes.identity();
        self.mark_possibly_sent();
    }

    fn mark_possibly_sent(&mut self) {
        for request_id in self.open.values() {
            if let Some(record) = self.requests.get_mut(request_id) {
                record.sent_before = true;
                self.changes.request(record.number, request_id);
            }
        }
    }

    /// Both directions of every lane begin again: each lane in its old order with what is
    /// unacknowledged, unanswered or retained. A request that is to be cancelled is not made
    /// again: its place is taken by a marker, and its cancel follows.
    fn renumber(&mut self) {
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
            // What was recalled never had a place, and is older than what has one.
            let mut placeless = Vec::new();
            if lane == Lane::Signing {
                placeless.append(&mut aside.placeless);
                // In the places that their markers have, or had.
                entries.append(&mut aside.placed);
            }
            let placeless = placeless.into_iter().map(|entry| (0, entry));
            for (sequence, mut entry) in placeless.chain(entries) {
                let next_new = self.lanes.get(lane).counters.next_new;
                if let Expects::Outcome(request_id) = &entry.expects
                    && let Some(record) = self.requests.get_mut(request_id)
                {
                    self.changes.request(record.number, request_id);
                    match &mut record.standing {
                        Standing::Open {
                            cancel: Some(cancel),
                            ..
                        } if cancel.sequence == Some(sequence) => cancel.sequence = Some(next_new),
                        standing => {
                            record.sent_before |= sequence <= old.counters.sent_through;
                            record.request.sequence = next_new;
                            if matches!(
                                standing,
                                Standing::Open {
                                    cancel: Some(Cancel {
                                        sequence: Some(_),
                                        ..
                                    }),
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

    /// The messages that are set aside. Every open request is nowhere from now on, until its message
    /// is appended again: a place of the old numbering is another message's in the new one.
    fn take_aside(&mut self) -> Aside {
        let mut aside = Aside::default();
        for request_id in self.open.values() {
            if let Some(record) = self.requests.get_mut(request_id) {
                let place = std::mem::take(&mut record.request.sequence);
                match record.aside.take() {
                    Some(entry) if place == 0 => aside.placeless.push(entry),
                    Some(entry) => drop(aside.placed.insert(place, entry)),
                    None => {}
                }
                self.changes.request(record.number, request_id);
            }
        }
        aside
    }

    /// The ledger holds these requests: what would make them again becomes a marker. What governance
    /// recalled is as good as what this store had.
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
        for request_id in self.open.values() {
            if let Some(record) = self.requests.get_mut(request_id)
                && std::mem::take(&mut record.recalled)
            {
                self.changes.request(record.number, request_id);
            }
        }
        self.identity.reconciling = false;
        self.identity.restoration = Restoration::None;
        self.changes.identity();
    }
}

/// Messages that are set aside with their requests.
#[derive(Debug, Default)]
struct Aside {
    /// By the places that markers have taken.
    placed: BTreeMap<u64, Entry>,
    /// Of requests that were recalled, in the order of their numbers.
    placeless: Vec<Entry>,
}
