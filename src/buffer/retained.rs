//! What the stream keeps in memory: everything that is open, or retained under a cap; and what each
//! record changes of it. Pure: without clock or I/O.

mod adoption;
mod identity;
mod lane;
mod request;

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use bitcoin::OutPoint;
use prost::{Message as _, bytes::Bytes};

use super::{
    changes::{Changes, Settled},
    record::{DeadLetter, Entry, Expects, OpenRequest, Record},
};
use crate::{
    message::{BurnId, CancelReason, Lane, Outcome, PerLane, Progress, RequestId},
    proto,
    storage::{Batch, HashKey},
};

pub(crate) use self::lane::RetainedLane;
pub use self::{
    identity::{Identity, Restoration},
    lane::Counters,
    request::{Cancel, RequestRecord, Standing},
};

/// Most dead letters kept, and most bytes of their payloads; the oldest go first.
const MAX_DEAD_LETTERS: usize = 1000;
const MAX_DEAD_LETTER_BYTES: u64 = 32 << 20;

/// What is open, or retained under a cap. What has come to its end is here until it is durable and
/// no look-up can have missed it ([`leave`](Self::leave)); from then on it is looked up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Retained {
    /// The stream itself, and its peer.
    pub identity: Identity,
    /// Both directions of each lane.
    pub lanes: PerLane<RetainedLane>,
    requests: HashMap<RequestId, RequestRecord>,
    /// Requests without an outcome.
    open: BTreeMap<u64, RequestId>,
    /// Of them, those that wait for an operator.
    parked: usize,
    /// Who of `requests` pays each burn.
    payers: HashMap<BurnId, Vec<RequestId>>,
    next_request: u64,
    /// Peg-in notices without an answer, and their sequences.
    pegins: HashMap<OutPoint, u64>,
    /// Peg-in notices that governance has answered, and when.
    answered_pegins: HashMap<OutPoint, SystemTime>,
    next_pegin: u64,
    /// Payload bytes of what could not be used, oldest first.
    pub dead_letters: BTreeMap<u64, u64>,
    dead_letter_bytes: u64,
    /// Whether governance has confirmed, since this was read from disk, that it has seen no more of
    /// this store than is in it. Never on disk: an older copy would bring it along.
    is_confirmed: bool,
    changes: Changes,
}

impl Retained {
    /// What is in memory of a stream that has nothing open; without an identity it is a new one,
    /// and gets one with its first commit.
    #[must_use]
    pub(crate) fn new(identity: Option<Identity>) -> Self {
        let mut retained = Self::default();
        match identity {
            Some(identity) => retained.identity = identity,
            None => retained.changes.identity(),
        }
        retained
    }

    /// Takes in how far a lane has come, as it is stored; before its entries.
    pub(super) fn restore_lane(&mut self, lane: Lane, counters: Counters) {
        self.lanes.get_mut(lane).counters = counters;
    }

    /// Takes in a message, as it is stored.
    pub(super) fn restore_entry(&mut self, entry: Entry) {
        if let Expects::PeginAck(outpoint) = entry.expects {
            self.pegins.insert(outpoint, entry.sequence);
        }
        self.lanes.get_mut(entry.lane).insert(entry);
    }

    /// Takes in an open request, as it is stored.
    pub(super) fn restore_request(&mut self, record: RequestRecord) {
        if let Standing::Open { parked, .. } = &record.standing {
            self.parked += usize::from(parked.is_some());
        }
        let id = record.request.request_id.clone();
        self.open.insert(record.number, id.clone());
        self.note_payers(&record.request);
        self.requests.insert(id, record);
    }

    /// Takes in a dead letter, as it is stored.
    pub(super) fn restore_dead_letter(&mut self, number: u64, letter: &DeadLetter) {
        let bytes = letter.payload.len() as u64;
        self.dead_letters.insert(number, bytes);
        self.dead_letter_bytes += bytes;
    }

    /// Takes in the highest numbers that are stored.
    pub(super) fn count_on(&mut self, requests: Option<u64>, pegins: Option<u64>) {
        let after = |last: Option<u64>| last.map_or(0, |last| last + 1);
        self.next_request = after(requests);
        self.next_pegin = after(pegins);
    }

    fn note_payers(&mut self, request: &OpenRequest) {
        for burn in &request.burns {
            let payers = self.payers.entry(*burn).or_default();
            payers.push(request.request_id.clone());
        }
    }

    /// Lets go of what has come to its end, is durable, and can be looked up.
    pub(super) fn leave(&mut self, settled: Settled) {
        match settled {
            Settled::Request(request_id) => {
                let ended = |record: &RequestRecord| !record.is_open();
                if !self.requests.get(&request_id).is_some_and(ended) {
                    return;
                }
                let record = self.requests.remove(&request_id);
                for burn in record.into_iter().flat_map(|record| record.request.burns) {
                    if let Some(payers) = self.payers.get_mut(&burn) {
                        payers.retain(|payer| *payer != request_id);
                        if payers.is_empty() {
                            self.payers.remove(&burn);
                        }
                    }
                }
            }
            Settled::Pegin(outpoint) => drop(self.answered_pegins.remove(&outpoint)),
        }
    }

    /// The rows that changed since the last call, and what may leave memory once they are durable.
    pub(super) fn take_changes(&mut self, hash: HashKey) -> (Batch, Vec<Settled>) {
        let changes = std::mem::take(&mut self.changes);
        changes.into_batch(self, hash)
    }

    /// A request that is open, or has only just come to its end.
    #[must_use]
    pub(crate) fn request(&self, request_id: &RequestId) -> Option<&RequestRecord> {
        self.requests.get(request_id)
    }

    /// The request, if it has no outcome yet.
    #[must_use]
    pub(crate) fn open_request(&self, request_id: &RequestId) -> Option<&RequestRecord> {
        self.requests
            .get(request_id)
            .filter(|record| record.is_open())
    }

    /// Requests without an outcome, oldest first.
    pub(crate) fn open_requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.open.values().filter_map(|id| self.requests.get(id))
    }

    /// Every request that is in memory, in no order.
    #[cfg(test)]
    pub(super) fn requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.requests.values()
    }

    /// How many requests have no outcome, and how many of them wait for an operator.
    #[must_use]
    pub(crate) fn open_and_parked(&self) -> (usize, usize) {
        (self.open.len(), self.parked)
    }

    /// Requests in memory that pay `burn`.
    #[must_use]
    pub(crate) fn payers(&self, burn: &BurnId) -> &[RequestId] {
        self.payers.get(burn).map_or(&[], Vec::as_slice)
    }

    /// An acknowledged message that is no longer kept for a ledger that might be restored.
    #[must_use]
    pub(crate) fn to_prune(&self, limit: usize, since: SystemTime) -> Option<Record> {
        self.lanes.iter().find_map(|(lane, retained)| {
            let sequence = retained.to_prune(limit, since)?;
            Some(Record::Pruned { lane, sequence })
        })
    }

    /// Whether a notice for this outpoint is open, or was only just answered.
    #[must_use]
    pub(crate) fn knows_pegin(&self, outpoint: &OutPoint) -> bool {
        self.pegins.contains_key(outpoint) || self.answered_pegins.contains_key(outpoint)
    }

    /// When the notice was answered, while that is in memory.
    #[must_use]
    pub(crate) fn answered_at(&self, outpoint: &OutPoint) -> Option<SystemTime> {
        self.answered_pegins.get(outpoint).copied()
    }

    /// Whether the notice still waits for its answer.
    #[must_use]
    pub(crate) fn pegin_is_open(&self, outpoint: &OutPoint) -> bool {
        self.pegins.contains_key(outpoint)
    }

    /// Peg-in notices without an answer.
    #[must_use]
    pub(crate) fn open_pegins(&self) -> usize {
        self.pegins.len()
    }

    /// Whether a request was never sent to anyone, as far as can be known now.
    pub(super) fn is_unsent(&self, record: &RequestRecord) -> bool {
        let sent_through = self.lanes.get(Lane::Signing).counters.sent_through;
        record.request.sequence > sent_through && !record.sent_before
    }

    /// Whether governance has confirmed that this store is not an older copy.
    pub(super) fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }

    /// Governance has accepted a registration of this store, and its record fits ours.
    pub(super) fn confirm(&mut self) {
        self.is_confirmed = true;
    }

    /// Adds one fact. Facts about what is not there change nothing.
    pub(crate) fn apply(&mut self, record: &Record) {
        match record {
            Record::Epoch { epoch, opening } => {
                self.identity.epoch = *epoch;
                self.identity.opening = Some(*opening);
                self.changes.identity();
            }
            Record::Ledger(ledger_id) => {
                self.identity.ledger_id = Some(*ledger_id);
                self.changes.identity();
            }
            Record::Adopted(ledger_id) => self.adopt(*ledger_id),
            Record::WentBack => self.went_back(),
            Record::Restored {
                restore_id,
                outbox_id,
            } => self.restore(*restore_id, *outbox_id),
            Record::StoreLost => self.lost(),
            Record::RestoreAllowed => {
                self.identity.restoration = Restoration::Reconciling;
                self.changes.identity();
            }
            Record::Recalled {
                request,
                aside,
                outcome,
            } => self.recall(request, aside.as_ref(), outcome.as_ref()),
            Record::Reopened { record, aside } => self.reopen(record, aside),
            Record::PeginRecalled { outpoint, at } => self.note_answered(*outpoint, *at),
            Record::Reconciled { held } => self.reconciled(held),
            Record::Appended(entry) => self.append(entry),
            Record::SentThrough { lane, sequence } => {
                self.changes.lane(*lane);
                let counters = &mut self.lanes.get_mut(*lane).counters;
                counters.sent_through = counters.sent_through.max(*sequence);
            }
            Record::Withdrawn { lane, sequence } => self.withdraw(*lane, *sequence),
            Record::Acknowledged { lane, through } => self.acknowledge(*lane, *through),
            Record::Pruned { lane, sequence } => {
                if self.lanes.get_mut(*lane).prune(*sequence) {
                    self.changes.entry(*lane, *sequence);
                }
            }
            Record::Opened(request) => self.open(request),
            Record::Progressed {
                request_id,
                collected,
                required,
            } => self.change_open(request_id, |standing| {
                standing.progress.signers = Some((*collected, *required));
            }),
            Record::CancelAsked {
                request_id,
                reason,
                sequence,
            } => {
                self.change_open(request_id, |standing| {
                    *standing.cancel = Some(Cancel {
                        reason: *reason,
                        sequence: Some(*sequence),
                    });
                    standing.progress.deadline_passed |= *reason == CancelReason::Deadline;
                });
            }
            Record::GivenUp { request_id, reason } => {
                self.change_open(request_id, |standing| {
                    standing.cancel.get_or_insert(Cancel {
                        reason: *reason,
                        sequence: None,
                    });
                    standing.progress.deadline_passed |= *reason == CancelReason::Deadline;
                });
            }
            Record::Parked { request_id, reason } => {
                let mut parked = 0;
                self.change_open(request_id, |standing| {
                    if standing.parked.is_none() {
                        *standing.parked = Some(reason.clone());
                        parked = 1;
                    }
                });
                self.parked += parked;
            }
            Record::Settled {
                request_id,
                outcome,
                at,
            } => self.settle(request_id, outcome, *at),
            Record::PeginSettled { outpoint, at } => {
                if let Some(sequence) = self.pegins.remove(outpoint) {
                    self.note_answered(*outpoint, *at);
                    self.answered(Lane::Pegin, sequence);
                }
            }
            Record::Handled {
                lane,
                through,
                message_id,
            } => {
                let counters = &mut self.lanes.get_mut(*lane).counters;
                if *through > counters.handled_through {
                    counters.handled_through = *through;
                    counters.last_handled = Some(*message_id);
                    self.changes.lane(*lane);
                }
            }
            Record::DeadLetter(letter) => self.add_dead_letter(letter),
            Record::DeadLetterDiscarded(number) => self.discard_dead_letter(*number),
        }
    }

    fn add_dead_letter(&mut self, letter: &DeadLetter) {
        let number = self.identity.next_dead_letter;
        self.identity.next_dead_letter += 1;
        self.changes.identity();
        self.restore_dead_letter(number, letter);
        self.changes.dead_letter(number, Some(letter.clone()));
        while self.dead_letters.len() > MAX_DEAD_LETTERS
            || self.dead_letter_bytes > MAX_DEAD_LETTER_BYTES
        {
            let Some((oldest, _)) = self.dead_letters.first_key_value() else {
                return;
            };
            self.discard_dead_letter(*oldest);
        }
    }

    fn discard_dead_letter(&mut self, number: u64) {
        if let Some(bytes) = self.dead_letters.remove(&number) {
            self.dead_letter_bytes -= bytes;
            self.changes.dead_letter(number, None);
        }
    }

    fn append(&mut self, entry: &Entry) {
        let lane = self.lanes.get_mut(entry.lane);
        lane.counters.next_new = entry.sequence + 1;
        lane.insert(entry.clone());
        if let Expects::PeginAck(outpoint) = entry.expects {
            self.pegins.insert(outpoint, entry.sequence);
        }
        self.changes.lane(entry.lane);
        self.changes.entry(entry.lane, entry.sequence);
    }

    fn note_answered(&mut self, outpoint: OutPoint, at: SystemTime) {
        let number = self.next_pegin;
        self.next_pegin += 1;
        self.answered_pegins.insert(outpoint, at);
        self.changes.pegin(number, outpoint);
    }

    fn open(&mut self, request: &OpenRequest) {
        self.take_in(RequestRecord {
            number: self.next_request,
            request: request.clone(),
            sent_before: false,
            aside: None,
            recalled: false,
            standing: Standing::opened(),
        });
    }

    fn recall(&mut self, request: &OpenRequest, aside: Option<&Entry>, outcome: Option<&Outcome>) {
        let settled = outcome.cloned().map(|outcome| Standing::Settled {
            outcome,
            at: request.accepted_at,
        });
        self.take_in(RequestRecord {
            number: self.next_request,
            request: request.clone(),
            sent_before: true,
            aside: aside.cloned(),
            recalled: settled.is_none(),
            standing: settled.unwrap_or_else(Standing::opened),
        });
    }

    /// Takes a request back that was settled as unsent, and was sent.
    fn reopen(&mut self, record: &RequestRecord, aside: &Entry) {
        let request_id = &record.request.request_id;
        if !self.requests.contains_key(request_id) {
            self.note_payers(&record.request);
        }
        self.open.insert(record.number, request_id.clone());
        self.changes.reopened(record.number, request_id);
        let reopened = RequestRecord {
            request: OpenRequest {
                sequence: 0,
                ..record.request.clone()
            },
            sent_before: true,
            aside: Some(aside.clone()),
            recalled: true,
            standing: Standing::opened(),
            ..record.clone()
        };
        self.requests.insert(request_id.clone(), reopened);
    }

    /// Takes in a new request under the next number.
    fn take_in(&mut self, record: RequestRecord) {
        self.next_request = record.number + 1;
        let request_id = record.request.request_id.clone();
        self.note_payers(&record.request);
        if record.is_open() {
            self.open.insert(record.number, request_id.clone());
        }
        self.changes.opened(record.number, &request_id);
        self.requests.insert(request_id, record);
    }

    fn withdraw(&mut self, lane: Lane, sequence: u64) {
        let retained = self.lanes.get_mut(lane);
        // What may have been sent is never taken back.
        if sequence > retained.counters.sent_through
            && let Some(entry) = retained.entries.get_mut(&sequence)
            && entry.kind != proto::Kind::Withdrawn
        {
            let withdrawn = entry.clone();
            entry.become_marker();
            retained.discount(&withdrawn);
            self.changes.entry(lane, sequence);
        }
    }

    fn acknowledge(&mut self, lane: Lane, through: u64) {
        let retained = self.lanes.get_mut(lane);
        let first = retained.counters.first_unacknowledged;
        if through < first {
            return;
        }
        retained.counters.last_acknowledged = retained
            .entries
            .get(&through)
            .map(|entry| (through, entry.message_id));
        let acknowledged: Vec<(u64, bool)> = retained
            .entries
            .range(first..=through)
            .filter_map(|(sequence, entry)| match entry.expects {
                Expects::Nothing => Some((*sequence, true)),
                Expects::Answered => Some((*sequence, entry.is_kept())),
                Expects::Outcome(_) | Expects::PeginAck(_) => None,
            })
            .collect();
        for (sequence, keep) in acknowledged {
            retained.release(sequence, keep);
            if !keep {
                self.changes.entry(lane, sequence);
            }
        }
        retained.counters.first_unacknowledged = through + 1;
        self.changes.lane(lane);
    }

    /// The answer to a message has come: it goes with its acknowledgement, or now if it has that.
    fn answered(&mut self, lane: Lane, sequence: u64) {
        let retained = self.lanes.get_mut(lane);
        let Some(entry) = retained.entries.get_mut(&sequence) else {
            return;
        };
        if entry.kind != proto::Kind::Withdrawn {
            entry.expects = Expects::Answered;
        }
        let keep = entry.is_kept();
        if sequence < retained.counters.first_unacknowledged {
            retained.release(sequence, keep);
        }
        self.changes.entry(lane, sequence);
    }

    fn settle(&mut self, request_id: &RequestId, outcome: &Outcome, at: SystemTime) {
        let Some(record) = self.requests.get_mut(request_id) else {
            return;
        };
        let Standing::Open { parked, cancel, .. } = &record.standing else {
            return;
        };
        let cancel = *cancel;
        self.parked -= usize::from(parked.is_some());
        self.open.remove(&record.number);
        let outcome = outcome.clone();
        record.aside = None;
        record.standing = Standing::Settled { outcome, at };
        let sequence = record.request.sequence;
        self.changes.request(record.number, request_id);
        // Its answer is here: what was not sent by now need not be. After a restore or an adoption an
        // answer may come before its question.
        self.withdraw(Lane::Signing, sequence);
        self.answered(Lane::Signing, sequence);
        if let Some(sequence) = cancel.and_then(|cancel| cancel.sequence) {
            self.answered(Lane::Signing, sequence);
        }
    }

    fn change_open(&mut self, request_id: &RequestId, change: impl FnOnce(OpenStanding<'_>)) {
        if let Some(record) = self.requests.get_mut(request_id)
            && let Standing::Open {
                progress,
                cancel,
                parked,
            } = &mut record.standing
        {
            change(OpenStanding {
                progress,
                cancel,
                parked,
            });
            self.changes.request(record.number, request_id);
        }
    }
}

struct OpenStanding<'a> {
    progress: &'a mut Progress,
    cancel: &'a mut Option<Cancel>,
    parked: &'a mut Option<String>,
}

impl Entry {
    /// Whether a caller brought it, and its lane's capacity must have room for it.
    fn is_callers(&self) -> bool {
        matches!(
            self.kind,
            proto::Kind::SignatureRequest | proto::Kind::PeginNotification
        )
    }

    /// Whether it is kept beyond its acknowledgement and its answer, should governance lose its
    /// record of it: a deposit that governance has forgotten is money that is stuck. What governance
    /// has signed or refused need not be asked for again.
    fn is_kept(&self) -> bool {
        !matches!(
            self.kind,
            proto::Kind::SignatureRequest | proto::Kind::CancelRequest
        )
    }

    /// Takes the message's place in its lane, and says so.
    fn become_marker(&mut self) {
        let marker = proto::Withdrawn {
            message_id: self.message_id.to_bytes().to_vec().into(),
        };
        self.kind = proto::Kind::Withdrawn;
        self.payload = Bytes::from(marker.encode_to_vec());
        self.deadline = None;
        self.expects = Expects::Nothing;
    }
}

#[cfg(test)]
#[path = "retained_tests.rs"]
mod tests;
