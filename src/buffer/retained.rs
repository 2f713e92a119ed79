//! What a journal's records amount to. Pure: the fold of records, without clock or I/O.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bitcoin::OutPoint;
use prost::{Message as _, bytes::Bytes};

use super::journal::{DeadLetter, Entry, Expects, OpenRequest, Record};
use crate::{
    message::{
        CancelReason, Lane, LedgerId, MessageId, OutboxId, Outcome, PayloadHash, PerLane, Progress,
        RequestId,
    },
    proto,
};

/// Most dead letters kept; the oldest go first.
const MAX_DEAD_LETTERS: usize = 1000;

/// Everything the stream knows durably.
#[derive(Debug, Clone, PartialEq)]
pub struct Retained {
    /// Names this journal.
    pub outbox_id: OutboxId,
    /// The last session's epoch; 0 before the first.
    pub epoch: u64,
    /// Governance's ledger, once registered.
    pub ledger_id: Option<LedgerId>,
    /// Both directions of each lane.
    pub lanes: PerLane<RetainedLane>,
    /// Every request that is open or whose outcome is kept.
    requests: HashMap<RequestId, RequestRecord>,
    /// Settled requests, oldest first, to be forgotten in that order.
    settled: VecDeque<RequestId>,
    /// Requests without an outcome.
    open: usize,
    /// Of them, those that wait for an operator.
    parked: usize,
    /// Ids whose outcome is no longer kept.
    tombstones: HashMap<RequestId, PayloadHash>,
    /// Peg-in notices without an answer, and their sequences.
    pegins: HashMap<OutPoint, u64>,
    /// Peg-in notices that governance has answered.
    settled_pegins: HashSet<OutPoint>,
    /// What could not be used, oldest first.
    pub dead_letters: VecDeque<DeadLetter>,
}

/// One lane, both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct RetainedLane {
    /// What governance has not acknowledged or not answered, by sequence.
    pub entries: BTreeMap<u64, Entry>,
    /// Sum of their payloads.
    pub bytes: u64,
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

impl Default for RetainedLane {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            bytes: 0,
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
    pub fn unacknowledged(&self) -> u64 {
        self.next_new - self.first_unacknowledged
    }

    fn release(&mut self, sequence: u64) {
        if let Some(entry) = self.entries.remove(&sequence) {
            self.bytes -= entry.payload.len() as u64;
        }
    }

    /// The answer has come: the entry goes with its acknowledgement, or now if it has that.
    fn answered(&mut self, sequence: u64) {
        if sequence < self.first_unacknowledged {
            self.release(sequence);
        } else if let Some(entry) = self.entries.get_mut(&sequence) {
            entry.expects = Expects::Nothing;
        }
    }
}

/// A request and how it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// As it was accepted.
    pub request: OpenRequest,
    /// How it stands.
    pub standing: Standing,
}

/// How a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Governance has not answered finally.
    Open {
        /// How far it has come.
        progress: Progress,
        /// Whether governance was asked to cancel it.
        cancel: Option<CancelReason>,
        /// Why it waits for an operator, if it does.
        parked: Option<String>,
    },
    /// It has its outcome.
    Settled(Outcome),
}

/// What is known about an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<'a> {
    /// Never accepted.
    Unknown,
    /// Open, or settled with its outcome kept.
    Request(&'a RequestRecord),
    /// Settled, outcome forgotten.
    Forgotten(PayloadHash),
}

impl Default for Retained {
    fn default() -> Self {
        Self {
            outbox_id: OutboxId::generate(),
            epoch: 0,
            ledger_id: None,
            lanes: PerLane::default(),
            requests: HashMap::new(),
            settled: VecDeque::new(),
            open: 0,
            parked: 0,
            tombstones: HashMap::new(),
            pegins: HashMap::new(),
            settled_pegins: HashSet::new(),
            dead_letters: VecDeque::new(),
        }
    }
}

impl Retained {
    /// What is known about a request id.
    #[must_use]
    pub fn known(&self, request_id: &RequestId) -> Known<'_> {
        match (
            self.requests.get(request_id),
            self.tombstones.get(request_id),
        ) {
            (Some(record), _) => Known::Request(record),
            (None, Some(payload_hash)) => Known::Forgotten(*payload_hash),
            (None, None) => Known::Unknown,
        }
    }

    /// The request, if it has no outcome yet.
    #[must_use]
    pub fn open_request(&self, request_id: &RequestId) -> Option<&RequestRecord> {
        self.requests
            .get(request_id)
            .filter(|record| record.is_open())
    }

    /// Requests without an outcome, oldest first.
    #[must_use]
    pub fn open_requests(&self) -> Vec<&RequestRecord> {
        let mut open: Vec<_> = self
            .requests
            .values()
            .filter(|record| record.is_open())
            .collect();
        open.sort_unstable_by_key(|record| record.request.sequence);
        open
    }

    /// How many requests have no outcome, and how many of them wait for an operator.
    #[must_use]
    pub fn open_and_parked(&self) -> (usize, usize) {
        (self.open, self.parked)
    }

    /// The oldest settled request, if more than `limit` outcomes are kept.
    #[must_use]
    pub fn to_forget(&self, limit: usize) -> Option<&RequestId> {
        if self.settled.len() > limit {
            self.settled.front()
        } else {
            None
        }
    }

    /// Whether a notice for this outpoint was accepted, answered or not.
    #[must_use]
    pub fn knows_pegin(&self, outpoint: &OutPoint) -> bool {
        self.pegins.contains_key(outpoint) || self.settled_pegins.contains(outpoint)
    }

    /// Whether the notice still waits for its answer.
    #[must_use]
    pub fn pegin_is_open(&self, outpoint: &OutPoint) -> bool {
        self.pegins.contains_key(outpoint)
    }

    /// Adds one fact. Facts about what is not there change nothing.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Epoch(epoch) => self.epoch = *epoch,
            Record::Ledger(ledger_id) => self.ledger_id = Some(*ledger_id),
            Record::Appended(entry) => self.append(entry),
            Record::SentThrough { lane, sequence } => {
                let lane = self.lanes.get_mut(*lane);
                lane.sent_through = lane.sent_through.max(*sequence);
            }
            Record::Withdrawn { lane, sequence } => self.withdraw(*lane, *sequence),
            Record::Acknowledged { lane, through } => self.acknowledge(*lane, *through),
            Record::Opened(request) => {
                self.open += 1;
                let standing = Standing::Open {
                    progress: Progress::default(),
                    cancel: None,
                    parked: None,
                };
                self.requests.insert(
                    request.request_id.clone(),
                    RequestRecord {
                        request: request.clone(),
                        standing,
                    },
                );
            }
            Record::Progressed {
                request_id,
                collected,
                required,
            } => {
                if let Some((progress, ..)) = self.open_standing(request_id) {
                    progress.signers = Some((*collected, *required));
                }
            }
            Record::CancelAsked { request_id, reason } => {
                if let Some((progress, cancel, _)) = self.open_standing(request_id) {
                    *cancel = Some(*reason);
                    progress.deadline_passed |= *reason == CancelReason::Deadline;
                }
            }
            Record::Parked { request_id, reason } => {
                if let Some((_, _, parked @ None)) = self.open_standing(request_id) {
                    *parked = Some(reason.clone());
                    self.parked += 1;
                }
            }
            Record::Settled {
                request_id,
                outcome,
            } => self.settle(request_id, outcome),
            Record::Forgotten(request_id) => {
                if self.settled.front() == Some(request_id) {
                    self.settled.pop_front();
                }
                if let Some(record) = self.requests.remove(request_id) {
                    self.tombstones
                        .insert(request_id.clone(), record.request.payload_hash);
                }
            }
            Record::PeginSettled(outpoint) => {
                if let Some(sequence) = self.pegins.remove(outpoint) {
                    self.settled_pegins.insert(*outpoint);
                    self.lanes.get_mut(Lane::Pegin).answered(sequence);
                }
            }
            Record::Handled {
                lane,
                through,
                message_id,
            } => {
                let lane = self.lanes.get_mut(*lane);
                if *through > lane.handled_through {
                    lane.handled_through = *through;
                    lane.last_handled = Some(*message_id);
                }
            }
            Record::DeadLetter(letter) => {
                if self.dead_letters.len() >= MAX_DEAD_LETTERS {
                    self.dead_letters.pop_front();
                }
                self.dead_letters.push_back(letter.clone());
            }
        }
    }

    fn append(&mut self, entry: &Entry) {
        let lane = self.lanes.get_mut(entry.lane);
        lane.next_new = entry.sequence + 1;
        lane.bytes += entry.payload.len() as u64;
        lane.entries.insert(entry.sequence, entry.clone());
        if let Expects::PeginAck(outpoint) = entry.expects {
            self.pegins.insert(outpoint, entry.sequence);
        }
    }

    fn withdraw(&mut self, lane: Lane, sequence: u64) {
        let lane = self.lanes.get_mut(lane);
        if let Some(entry) = lane.entries.get_mut(&sequence) {
            let marker = proto::Withdrawn {
                message_id: entry.message_id.to_bytes().to_vec().into(),
            };
            let payload: Bytes = marker.encode_to_vec().into();
            lane.bytes = lane.bytes - entry.payload.len() as u64 + payload.len() as u64;
            entry.kind = proto::Kind::Withdrawn;
            entry.payload = payload;
            entry.deadline = None;
            entry.expects = Expects::Nothing;
        }
    }

    fn acknowledge(&mut self, lane: Lane, through: u64) {
        let lane = self.lanes.get_mut(lane);
        if through < lane.first_unacknowledged {
            return;
        }
        lane.last_acknowledged = lane
            .entries
            .get(&through)
            .map(|entry| (through, entry.message_id));
        let acknowledged: Vec<u64> = lane
            .entries
            .range(lane.first_unacknowledged..=through)
            .filter(|(_, entry)| entry.expects == Expects::Nothing)
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in acknowledged {
            lane.release(sequence);
        }
        lane.first_unacknowledged = through + 1;
    }

    fn settle(&mut self, request_id: &RequestId, outcome: &Outcome) {
        let Some(record) = self.requests.get_mut(request_id) else {
            return;
        };
        let Standing::Open { parked, .. } = &record.standing else {
            return;
        };
        self.parked -= usize::from(parked.is_some());
        self.open -= 1;
        record.standing = Standing::Settled(outcome.clone());
        let sequence = record.request.sequence;
        self.settled.push_back(request_id.clone());
        self.lanes.get_mut(Lane::Signing).answered(sequence);
    }

    fn open_standing(
        &mut self,
        request_id: &RequestId,
    ) -> Option<(
        &mut Progress,
        &mut Option<CancelReason>,
        &mut Option<String>,
    )> {
        match &mut self.requests.get_mut(request_id)?.standing {
            Standing::Open {
                progress,
                cancel,
                parked,
            } => Some((progress, cancel, parked)),
            Standing::Settled(_) => None,
        }
    }
}

impl RequestRecord {
    /// Whether it has no outcome yet.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.standing, Standing::Open { .. })
    }

    /// Whether it is open past its deadline.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(&self.standing, Standing::Open { progress, .. } if progress.deadline_passed)
    }
}

#[cfg(test)]
#[path = "retained_tests.rs"]
mod tests;
