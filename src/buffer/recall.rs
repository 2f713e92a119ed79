//! What governance recalls of this node, and which records that makes of a store that lacks it. Pure.
//!
//! Everything here may come again: the exchange begins anew with each session until its last page is
//! committed, and what is known by then makes no record.

use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, SystemTime},
};

use bitcoin::{
    OutPoint,
    hashes::{Hash as _, sha256},
    hex::DisplayHex as _,
};
use prost::bytes::Bytes;
use tracing::{error, warn};

use super::{
    inbound::{self, HandledMessage, Meaning},
    intake::{self, Submission},
    lookups::Known,
    record::{DeadLetter, Entry, Expects, OpenRequest, Record},
    retained::{Retained, Standing},
};
use crate::{
    message::{
        Inbound, Lane, MessageId, Outbound, Outcome, PeginNotification, Recalled, RequestId, wire,
    },
    proto,
    telemetry::TraceContext,
};

/// When governance is asked to cancel a recalled request that is still open.
const DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// One entry of a page, as far as it concerns the stream itself.
#[derive(Debug)]
pub(super) enum Remembered {
    /// A request of this node.
    Request(Box<Submission>),
    /// An id that was cancelled before its request came.
    Tombstone {
        request_id: RequestId,
        signatures_released: bool,
    },
    /// A deposit that was notified.
    Deposit(PeginNotification),
    /// The answer to the deposit before it.
    Answered(OutPoint),
    /// A result that is of no use.
    Unusable {
        kind: i32,
        payload: Bytes,
        reason: String,
    },
    /// A result whose subscriber tells what it means.
    Result,
}

impl From<&Recalled> for Remembered {
    fn from(recalled: &Recalled) -> Self {
        match recalled {
            Recalled::Request(recalled) => match &recalled.request {
                Some(request) => Self::Request(Box::new(request.clone().into())),
                None => Self::Tombstone {
                    request_id: recalled.request_id.clone(),
                    signatures_released: recalled.signatures_released,
                },
            },
            Recalled::Pegin(notification) => Self::Deposit(*notification),
            Recalled::Result { result, .. } => match result {
                Inbound::PeginAck(ack) => Self::Answered(ack.outpoint),
                _ => Self::Result,
            },
            Recalled::Unusable {
                kind,
                payload,
                reason,
            } => Self::Unusable {
                kind: *kind,
                payload: payload.clone(),
                reason: reason.to_string(),
            },
        }
    }
}

/// What an exchange has come to, beside what is committed of it.
#[derive(Debug, Default)]
pub(super) struct Recollection {
    /// The page that is being dealt with.
    pub(super) page: Option<Page>,
    /// The deposit that came last, while its answer may be the next entry.
    deposit: Option<PeginNotification>,
    /// Our open requests that pay a burn of a recalled one, and share no input with it.
    rivals: BTreeSet<RequestId>,
    /// Known here, recalled in an exchange that broke: should an adoption have given their messages
    /// places since, they are not sent.
    held: Vec<RequestId>,
    /// Ids under which governance holds another request than this store: what it answered to that one
    /// is no answer to ours.
    conflicting: BTreeSet<RequestId>,
    /// Recalled by this process, and not yet followed by a tracker.
    opened: Vec<RequestId>,
    /// Dead letters of this process: one of each.
    letters: HashSet<sha256::Hash>,
}

/// What a page says beside its entries.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) held: Vec<RequestId>,
    pub(super) more: bool,
}

impl Recollection {
    /// An exchange begins, from its first page.
    pub(super) fn begin(&mut self) {
        self.page = None;
        self.deposit = None;
        self.rivals.clear();
        self.held.clear();
        self.conflicting.clear();
    }

    /// Requests that governance has recalled, for their trackers.
    pub(super) fn take_opened(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.opened)
    }

    /// Takes in a page. What it answers is recorded when the subscribers have it.
    pub(super) fn take_in(
        &mut self,
        known: Known<'_>,
        page: Vec<Remembered>,
        more: bool,
        now: SystemTime,
    ) -> Vec<Record> {
        let mut records = Records::new(known.retained, now);
        for entry in page {
            let deposit = self.deposit.take();
            if let (Some(deposit), Remembered::Answered(outpoint)) = (&deposit, &entry)
                && deposit.outpoint() == *outpoint
            {
                records.answered(*outpoint);
                continue;
            }
            records.notify(deposit);
            match entry {
                Remembered::Request(submission) => self.request(known, *submission, &mut records),
                Remembered::Tombstone {
                    request_id,
                    signatures_released,
                } => {
                    if known.request(&request_id).is_none() {
                        let outcome = Outcome::Cancelled {
                            signatures_released,
                        };
                        records.push(Record::Recalled {
                            request: OpenRequest::tombstone(request_id, now),
                            aside: None,
                            outcome: Some(outcome),
                        });
                    }
                }
                Remembered::Deposit(notification) => {
                    self.deposit = Some(notification)
                        .filter(|notification| !known.pegin(&notification.outpoint()));
                }
                Remembered::Unusable {
                    kind,
                    payload,
                    reason,
                } => self.dead_letter(kind, payload, reason, &mut records),
                Remembered::Answered(_) | Remembered::Result => {}
            }
        }
        if !more {
            records.notify(self.deposit.take());
        }
        records.all
    }

    fn request(&mut self, known: Known<'_>, recalled: Submission, records: &mut Records<'_>) {
        let rivals = rivals(known.retained, &recalled);
        self.rivals.extend(rivals);
        let request_id = recalled.request_id.clone();
        match known.request(&request_id) {
            None => {
                self.opened.push(request_id);
                let (request, aside) = records.made_of(recalled);
                records.push(Record::Recalled {
                    request,
                    aside: Some(aside),
                    outcome: None,
                });
            }
            Some(ours) if ours.request.payload_hash == recalled.payload_hash => {
                // It was sent for all that, by this store as it was before it went back.
                if let Standing::Settled {
                    outcome: Outcome::ExpiredUnsent,
                    ..
                } = &ours.standing
                {
                    warn!(request = %request_id, "settled as unsent, and sent; it is open again");
                    self.opened.push(request_id.clone());
                    let (_, aside) = records.made_of(recalled);
                    records.push(Record::Reopened {
                        record: Box::new(ours.clone()),
                        aside,
                    });
                }
                self.held.push(request_id);
            }
            Some(ours) => {
                let reason = format!(
                    "governance holds another request under the id {request_id} than this store; \
                     neither takes the other's place, and the burns of both are bound"
                );
                error!(request = %request_id, reason, "needs an operator");
                self.conflicting.insert(request_id.clone());
                if ours.is_open() {
                    records.push(Record::Parked {
                        request_id,
                        reason: reason.clone(),
                    });
                }
                let (kind, payload) = recalled.encoded.clone();
                self.dead_letter(kind.into(), payload, reason, records);
                self.bind_burns(known, recalled, records);
            }
        }
    }

    /// Keeps the burns of a request whose id is another one's: under an id that nobody asks for.
    fn bind_burns(&mut self, known: Known<'_>, recalled: Submission, records: &mut Records<'_>) {
        let Some(stand_in) = stand_in(&recalled) else {
            return;
        };
        if known.request(&stand_in).is_none() {
            let (request, _) = records.made_of(recalled);
            records.push(Record::Recalled {
                request: OpenRequest {
                    request_id: stand_in,
                    ..request
                },
                aside: None,
                outcome: Some(Outcome::Cancelled {
                    signatures_released: true,
                }),
            });
        }
    }

    fn dead_letter(
        &mut self,
        kind: i32,
        payload: Bytes,
        reason: String,
        records: &mut Records<'_>,
    ) {
        records.park(kind, &payload, &reason);
        if self.letters.insert(sha256::Hash::hash(&payload)) {
            let letter = dead_letter(kind, payload, reason, records.now);
            records.push(Record::DeadLetter(letter));
        }
    }

    /// What the results of a page mean, when their subscribers have them.
    pub(super) fn handled(
        &mut self,
        retained: &Retained,
        handled: Vec<HandledMessage>,
        now: SystemTime,
    ) -> Vec<Record> {
        let mut records = Records::new(retained, now);
        for message in handled {
            let is_ours = message
                .meaning
                .request_id()
                .is_none_or(|id| !self.conflicting.contains(id));
            if is_ours {
                let meaning = inbound::meaning(retained, &message.meaning, now);
                records.all.extend(meaning);
            }
            if let Some(letter) = message.dead_letter
                && self.letters.insert(sha256::Hash::hash(&letter.payload))
            {
                records.push(Record::DeadLetter(letter));
            }
            if let Some(answer) = message.answer {
                records.answer(&answer, message.trace);
            }
        }
        records.all
    }

    /// The exchange is over. What this store would send and must not is ended: another request for
    /// its burn was signed, or may be, and both could be mined.
    pub(super) fn over(
        &mut self,
        retained: &Retained,
        mut held: Vec<RequestId>,
        now: SystemTime,
    ) -> Vec<Record> {
        held.append(&mut self.held);
        let mut records = Vec::new();
        for request_id in std::mem::take(&mut self.rivals) {
            let Some(record) = retained.open_request(&request_id) else {
                continue;
            };
            let is_set_aside = record.recalled || record.aside.is_some();
            let is_ours_alone = !held.contains(&request_id) && !is_set_aside;
            if let Standing::Open { cancel: None, .. } = &record.standing
                && is_ours_alone
            {
                error!(request = %request_id, "its burn is paid by a request that this store did not know");
                let (lane, sequence) = (Lane::Signing, record.request.sequence);
                records.push(Record::Withdrawn { lane, sequence });
                let reason = "another request for its burn was made by this node, and this store \
                              did not know of it; this one was not sent"
                    .to_owned();
                records.push(Record::Settled {
                    request_id,
                    outcome: Outcome::Rejected { reason },
                    at: now,
                });
            }
        }
        records.push(Record::Reconciled { held });
        records
    }
}

/// Records of one commit; what is appended to a lane follows what was before it.
struct Records<'a> {
    retained: &'a Retained,
    now: SystemTime,
    appended: crate::message::PerLane<u64>,
    all: Vec<Record>,
}

impl<'a> Records<'a> {
    fn new(retained: &'a Retained, now: SystemTime) -> Self {
        Self {
            retained,
            now,
            appended: crate::message::PerLane::default(),
            all: Vec::new(),
        }
    }

    fn push(&mut self, record: Record) {
        self.all.push(record);
    }

    fn append(&mut self, mut entry: Entry) {
        let appended = self.appended.get_mut(entry.lane);
        entry.sequence += *appended;
        *appended += 1;
        self.push(Record::Appended(entry));
    }

    /// Whether a deposit has its message or its answer by now. Its own notice may have come after it
    /// was recalled, and it may be recalled twice: one of two messages would never be answered.
    fn know(&self, outpoint: &OutPoint) -> bool {
        let is_its = |record: &Record| match record {
            Record::PeginRecalled { outpoint: its, .. } => its == outpoint,
            Record::Appended(entry) => entry.expects == Expects::PeginAck(*outpoint),
            _ => false,
        };
        self.retained.knows_pegin(outpoint) || self.all.iter().any(is_its)
    }

    /// A deposit came with its answer. That of one that is open here is recorded when its subscriber
    /// has it, as any other.
    fn answered(&mut self, outpoint: OutPoint) {
        if !self.know(&outpoint) {
            let at = self.now;
            self.push(Record::PeginRecalled { outpoint, at });
        }
    }

    /// A deposit without an answer is notified again, which governance knows.
    fn notify(&mut self, deposit: Option<PeginNotification>) {
        if let Some(notification) = deposit.filter(|deposit| !self.know(&deposit.outpoint())) {
            let expects = Expects::PeginAck(notification.outpoint());
            let message = Outbound::PeginNotification(notification);
            let untraced = TraceContext::default();
            let entry = intake::entry(self.retained, &message, untraced, self.now, expects);
            self.append(entry);
        }
    }

    /// What a subscriber answers to a result that governance recalled, unless it waits already.
    fn answer(&mut self, answer: &Outbound, trace: TraceContext) {
        let entry = intake::entry(self.retained, answer, trace, self.now, Expects::Nothing);
        let kept = self.retained.lanes.get(entry.lane).entries.values();
        let appended = self.all.iter().filter_map(|record| match record {
            Record::Appended(entry) => Some(entry),
            _ => None,
        });
        let is_same = |other: &Entry| other.kind == entry.kind && other.payload == entry.payload;
        if !kept.chain(appended).any(is_same) {
            self.append(entry);
        }
    }

    /// The request that an answer of no use belongs to waits for an operator.
    fn park(&mut self, kind: i32, payload: &Bytes, reason: &str) {
        let answers = kind == i32::from(proto::Kind::SignatureResponse);
        if let Some(request_id) = wire::request_id_of(kind, payload).filter(|_| answers) {
            self.push(Record::Parked {
                request_id,
                reason: format!("governance's answer could not be used: {reason}"),
            });
        }
    }

    /// A request of ours, and its message.
    fn made_of(&self, recalled: Submission) -> (OpenRequest, Entry) {
        let deadline = self.now + DEADLINE;
        let expects = Expects::Outcome(recalled.request_id.clone());
        let entry = Entry {
            deadline: Some(deadline),
            ..intake::encoded_entry(
                self.retained,
                Lane::Signing,
                recalled.encoded.clone(),
                TraceContext::default(),
                self.now,
                expects,
            )
        };
        (recalled.opened(0, self.now, deadline), entry)
    }
}

/// Stands where no payload hash is known.
const NO_CONTENT: [u8; 32] = [0; 32];

impl OpenRequest {
    /// Whether it is of an id that governance has a tombstone for: nothing is known of its request,
    /// and whoever asks under that id has the tombstone's outcome.
    pub(super) fn is_tombstone(&self) -> bool {
        self.payload_hash == NO_CONTENT
    }

    /// Of an id that is taken, and of whose request nothing is known.
    fn tombstone(request_id: RequestId, now: SystemTime) -> Self {
        Self {
            request_id,
            payload_hash: NO_CONTENT,
            tx_type: crate::message::TransactionType::Pegout,
            sequence: 0,
            burns: Vec::new(),
            spends: Vec::new(),
            accepted_at: now,
            deadline: now,
        }
    }
}

/// Open requests that pay a burn of this one, and could be mined beside it.
fn rivals(retained: &Retained, recalled: &Submission) -> Vec<RequestId> {
    let payers = recalled.burns.iter().flat_map(|burn| retained.payers(burn));
    let rivals = payers.filter(|payer| {
        let open = retained.open_request(payer);
        **payer != recalled.request_id
            && open.is_some_and(|open| {
                let mut inputs = open.request.spends.iter();
                !inputs.any(|input| recalled.spends.contains(input))
            })
    });
    rivals.cloned().collect()
}

/// The id under which the burns of a request are kept whose own id is another one's.
pub(super) fn stand_in(recalled: &Submission) -> Option<RequestId> {
    let hash = recalled.payload_hash.as_hex().to_string();
    let id = format!("recalled:{}", hash.get(..48)?);
    id.parse().ok()
}

/// A result that is of no use, as an operator finds it.
pub(crate) fn dead_letter(kind: i32, payload: Bytes, reason: String, at: SystemTime) -> DeadLetter {
    let lane = match proto::Kind::try_from(kind) {
        Ok(proto::Kind::FederationUpdate) => Lane::Federation,
        Ok(proto::Kind::PeginAck | proto::Kind::PeginNotification) => Lane::Pegin,
        Ok(proto::Kind::ProposalNotification) => Lane::Proposal,
        _ => Lane::Signing,
    };
    DeadLetter {
        lane,
        sequence: 0,
        message_id: MessageId::generate(),
        occurrence_id: None,
        kind,
        payload,
        reason,
        at,
    }
}

/// What governance's answer to a request of ours comes to when its subscriber has no use for it.
pub(crate) fn refused(request_id: Option<RequestId>, reason: &str) -> Meaning {
    request_id.map_or(Meaning::Nothing, |request_id| Meaning::Unusable {
        request_id,
        reason: format!("governance's answer could not be used: {reason}"),
    })
}

#[cfg(test)]
mod tests {
    use bitcoin::{Amount, Txid};

    use super::{super::lookups::Found, *};
    use crate::message::EvmAddress;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn notice() -> PeginNotification {
        let outpoint = OutPoint::new(Txid::hash(b"1"), 0);
        let address = EvmAddress::from_bytes([7; 20]);
        PeginNotification::new(outpoint, Amount::from_sat(1000), address).expect("valid")
    }

    fn known<'a>(retained: &'a Retained, found: &'a Found) -> Known<'a> {
        Known { retained, found }
    }

    /// A recalled deposit waits for the next page, and its own notice comes meanwhile: a second
    /// message would be one that nothing ever answers.
    #[test]
    fn a_recalled_deposit_that_is_notified_meanwhile_has_one_message() {
        for answered in [false, true] {
            let (mut retained, found) = (Retained::new(None), Found::default());
            let (mut recollection, notice) = (Recollection::default(), notice());
            let page = vec![Remembered::Deposit(notice)];
            let records = recollection.take_in(known(&retained, &found), page, true, NOW);
            assert_eq!(records, []);
            let entry = intake::entry(
                &retained,
                &Outbound::PeginNotification(notice),
                TraceContext::default(),
                NOW,
                Expects::PeginAck(notice.outpoint()),
            );
            retained.apply(&Record::Appended(entry));
            let answer = Remembered::Answered(notice.outpoint());
            let page = answered.then_some(answer).into_iter().collect();
            let records = recollection.take_in(known(&retained, &found), page, false, NOW);
            assert_eq!(records, [], "answered: {answered}");
        }
    }

    /// Governance may say a thing twice.
    #[test]
    fn a_deposit_that_is_recalled_twice_has_one_message_or_answer() {
        let (retained, found) = (Retained::new(None), Found::default());
        let notice = notice();
        let deposit = || Remembered::Deposit(notice);
        let answer = || Remembered::Answered(notice.outpoint());
        for page in [
            vec![deposit(), deposit()],
            vec![deposit(), answer(), deposit()],
            vec![deposit(), answer(), deposit(), answer()],
        ] {
            let mut recollection = Recollection::default();
            let records = recollection.take_in(known(&retained, &found), page, false, NOW);
            assert_eq!(records.len(), 1, "{records:?}");
        }
    }
}
