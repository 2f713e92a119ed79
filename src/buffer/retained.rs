//! What a journal's rows amount to, and what each record changes. Pure: without clock or I/O.

mod adoption;
mod lane;
mod request;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::SystemTime,
};

use bitcoin::OutPoint;
use prost::{Message as _, bytes::Bytes};

use super::{
    changes::Changes,
    journal::{Identity, Row},
    record::{DeadLetter, Entry, Expects, OpenRequest, Record},
};
use crate::{
    message::{BurnId, CancelReason, Lane, Outcome, PerLane, Progress, RequestId},
    proto,
};

pub use self::{
    lane::{Counters, RetainedLane},
    request::{Cancel, RequestRecord, Standing},
};

/// Most dead letters kept; the oldest go first.
const MAX_DEAD_LETTERS: usize = 1000;

/// Everything the stream knows durably.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retained {
    /// The journal itself, and its peer.
    pub identity: Identity,
    /// Both directions of each lane.
    pub lanes: PerLane<RetainedLane>,
    /// Every request there ever was: ids stay taken, burns stay paid.
    requests: HashMap<RequestId, RequestRecord>,
    /// Settled requests whose outcome is kept, oldest first, to be forgotten in that order.
    settled: VecDeque<RequestId>,
    /// Requests without an outcome.
    open: BTreeMap<u64, RequestId>,
    /// Of them, those that wait for an operator.
    parked: usize,
    /// Who pays each burn, cancelled requests included.
    payments: HashMap<BurnId, Vec<RequestId>>,
    next_request: u64,
    /// Peg-in notices without an answer, and their sequences.
    pegins: HashMap<OutPoint, u64>,
    /// Peg-in notices that governance has answered, and when.
    settled_pegins: BTreeMap<u64, (OutPoint, SystemTime)>,
    settled_outpoints: HashMap<OutPoint, u64>,
    next_pegin: u64,
    /// What could not be used, oldest first.
    pub dead_letters: BTreeMap<u64, DeadLetter>,
    next_dead_letter: u64,
    changes: Changes,
}

impl Retained {
    /// What the rows of a journal amount to.
    #[must_use]
    pub fn from_rows(rows: Vec<Row>) -> Self {
        let mut retained = Self::default();
        let mut entries = Vec::new();
        let mut requests = Vec::new();
        // A journal that was never committed to has no rows; its identity is then written first.
        let mut is_new = true;
        for row in rows {
            match row {
                Row::Identity(identity) => {
                    retained.identity = identity;
                    is_new = false;
                }
                Row::Lane(lane, counters) => retained.lanes.get_mut(lane).counters = counters,
                Row::Entry { entry, .. } => entries.extend(entry),
                Row::Request { request, .. } => requests.push(*request),
                Row::Pegin { number, settled } => {
                    if let Some((outpoint, at)) = settled {
                        retained.settled_pegins.insert(number, (outpoint, at));
                        retained.settled_outpoints.insert(outpoint, number);
                    }
                }
                Row::DeadLetter { number, letter } => {
                    retained
                        .dead_letters
                        .extend(letter.map(|letter| (number, letter)));
                }
            }
        }
        for entry in entries {
            if let Expects::PeginAck(outpoint) = entry.expects {
                retained.pegins.insert(outpoint, entry.sequence);
            }
            retained.lanes.get_mut(entry.lane).insert(entry);
        }
        requests.sort_unstable_by_key(|request| request.number);
        let mut settled = Vec::new();
        for record in requests {
            let id = record.request.request_id.clone();
            match &record.standing {
                Standing::Open { parked, .. } => {
                    retained.open.insert(record.number, id.clone());
                    retained.parked += usize::from(parked.is_some());
                }
                Standing::Settled { at, .. } => settled.push((*at, record.number, id.clone())),
                Standing::Forgotten => {}
            }
            for burn in &record.request.burns {
                retained.payments.entry(*burn).or_default().push(id.clone());
            }
            retained.requests.insert(id, record);
        }
        settled.sort_unstable();
        retained.settled = settled.into_iter().map(|(_, _, id)| id).collect();
        let last = |numbers: Option<u64>| numbers.map_or(0, |last| last + 1);
        retained.next_request = last(retained.requests.values().map(|r| r.number).max());
        retained.next_pegin = last(retained.settled_pegins.last_key_value().map(|(n, _)| *n));
        retained.next_dead_letter = last(retained.dead_letters.last_key_value().map(|(n, _)| *n));
        retained.changes = Changes::default();
        if is_new {
            retained.changes.identity();
        }
        retained
    }

    /// The rows that changed since the last call.
    pub fn take_changes(&mut self) -> Vec<Row> {
        let changes = std::mem::take(&mut self.changes);
        changes.into_rows(self)
    }

    /// What is known about a request id.
    #[must_use]
    pub fn request(&self, request_id: &RequestId) -> Option<&RequestRecord> {
        self.requests.get(request_id)
    }

    /// The request, if it has no outcome yet.
    #[must_use]
    pub fn open_request(&self, request_id: &RequestId) -> Option<&RequestRecord> {
        self.requests
            .get(request_id)
            .filter(|record| record.is_open())
    }

    /// Requests without an outcome, oldest first.
    pub fn open_requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.open.values().filter_map(|id| self.requests.get(id))
    }

    /// Every request there ever was, in no order.
    pub fn requests(&self) -> impl Iterator<Item = &RequestRecord> {
        self.requests.values()
    }

    /// How many requests have no outcome, and how many of them wait for an operator.
    #[must_use]
    pub fn open_and_parked(&self) -> (usize, usize) {
        (self.open.len(), self.parked)
    }

    /// An earlier request that pays `burn` and shares no input with `spends`: both could be
    /// mined, and the burn be paid twice.
    #[must_use]
    pub fn rival(&self, burn: &BurnId, spends: &[OutPoint]) -> Option<&RequestId> {
        self.payments.get(burn)?.iter().find(|earlier| {
            self.requests.get(earlier).is_some_and(|earlier| {
                let shared = |input| spends.contains(input);
                !earlier.request.spends.iter().any(shared)
            })
        })
    }

    /// What is no longer kept, with `limit` of each sort allowed that are younger than `since`.
    #[must_use]
    pub fn to_forget(&self, limit: usize, since: SystemTime) -> Option<Record> {
        if let Some(oldest) = self.settled.front() {
            let expired = || match self.requests.get(oldest).map(|r| &r.standing) {
                Some(Standing::Settled { at, .. }) => *at < since,
                _ => true,
            };
            if self.settled.len() > limit || expired() {
                return Some(Record::Forgotten(oldest.clone()));
            }
        }
        if let Some((_, (outpoint, at))) = self.settled_pegins.first_key_value()
            && (self.settled_pegins.len() > limit || *at < since)
        {
            return Some(Record::PeginForgotten(*outpoint));
        }
        None
    }

    /// An acknowledged message that is no longer kept for a ledger that might be restored.
    #[must_use]
    pub fn to_prune(&self, limit: usize, since: SystemTime) -> Option<Record> {
        self.lanes.iter().find_map(|(lane, retained)| {
            let sequence = retained.to_prune(limit, since)?;
            Some(Record::Pruned { lane, sequence })
        })
    }

    /// Whether a notice for this outpoint was accepted, answered or not.
    #[must_use]
    pub fn knows_pegin(&self, outpoint: &OutPoint) -> bool {
        self.pegins.contains_key(outpoint) || self.settled_outpoints.contains_key(outpoint)
    }

    /// Whether the notice still waits for its answer.
    #[must_use]
    pub fn pegin_is_open(&self, outpoint: &OutPoint) -> bool {
        self.pegins.contains_key(outpoint)
    }

    /// Peg-in notices without an answer.
    #[must_use]
    pub fn open_pegins(&self) -> usize {
        self.pegins.len()
    }

    /// Adds one fact. Facts about what is not there change nothing.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Epoch(epoch) => {
                self.identity.epoch = *epoch;
                self.changes.identity();
            }
            Record::Ledger(ledger_id) => {
                self.identity.ledger_id = Some(*ledger_id);
                self.changes.identity();
            }
            Record::Adopted(ledger_id) => self.adopt(*ledger_id),
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
                        sequence: *sequence,
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
            Record::Forgotten(request_id) => {
                if let Some(record) = self.requests.get_mut(request_id)
                    && !record.is_open()
                {
                    self.settled.pop_front_if(|oldest| oldest == request_id);
                    record.standing = Standing::Forgotten;
                    self.changes.request(record.number, request_id);
                }
            }
            Record::PeginSettled { outpoint, at } => {
                if let Some(sequence) = self.pegins.remove(outpoint) {
                    let number = self.next_pegin;
                    self.next_pegin += 1;
                    self.settled_pegins.insert(number, (*outpoint, *at));
                    self.settled_outpoints.insert(*outpoint, number);
                    self.changes.pegin(number);
                    self.answered(Lane::Pegin, sequence);
                }
            }
            Record::PeginForgotten(outpoint) => {
                if let Some(number) = self.settled_outpoints.remove(outpoint) {
                    self.settled_pegins.remove(&number);
                    self.changes.pegin(number);
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
            Record::DeadLetter(letter) => {
                if self.dead_letters.len() >= MAX_DEAD_LETTERS
                    && let Some((oldest, _)) = self.dead_letters.pop_first()
                {
                    self.changes.dead_letter(oldest);
                }
                let number = self.next_dead_letter;
                self.next_dead_letter += 1;
                self.dead_letters.insert(number, letter.clone());
                self.changes.dead_letter(number);
            }
            Record::DeadLetterDiscarded(number) => {
                if self.dead_letters.remove(number).is_some() {
                    self.changes.dead_letter(*number);
                }
            }
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

    fn open(&mut self, request: &OpenRequest) {
        let number = self.next_request;
        self.next_request += 1;
        let request_id = request.request_id.clone();
        for burn in &request.burns {
            let payers = self.payments.entry(*burn).or_default();
            payers.push(request_id.clone());
        }
        self.open.insert(number, request_id.clone());
        self.changes.request(number, &request_id);
        let record = RequestRecord {
            number,
            request: request.clone(),
            sent_before: false,
            aside: None,
            standing: Standing::Open {
                progress: Progress::default(),
                cancel: None,
                parked: None,
            },
        };
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
        self.settled.push_back(request_id.clone());
        self.answered(Lane::Signing, sequence);
        if let Some(cancel) = cancel {
            self.answered(Lane::Signing, cancel.sequence);
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

    pub(super) fn lane_row(&self, lane: Lane) -> Row {
        Row::Lane(lane, self.lanes.get(lane).counters)
    }

    pub(super) fn entry_row(&self, lane: Lane, sequence: u64) -> Row {
        let entry = self.lanes.get(lane).entries.get(&sequence).cloned();
        Row::Entry {
            lane,
            sequence,
            entry,
        }
    }

    pub(super) fn request_row(&self, number: u64, request_id: &RequestId) -> Option<Row> {
        let request = Box::new(self.requests.get(request_id)?.clone());
        Some(Row::Request { number, request })
    }

    pub(super) fn pegin_row(&self, number: u64) -> Row {
        let settled = self.settled_pegins.get(&number).copied();
        Row::Pegin { number, settled }
    }

    pub(super) fn dead_letter_row(&self, number: u64) -> Row {
        let letter = self.dead_letters.get(&number).cloned();
        Row::DeadLetter { number, letter }
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
