//! What is accepted, and which records that makes. Pure: decides, changes nothing.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use bitcoin::OutPoint;
use prost::bytes::Bytes;

use super::{
    BufferMessage,
    lookups::Known,
    record::{Entry, Expects, OpenRequest, Record},
    retained::{Cancel, RequestRecord, Restoration, Retained, Standing},
};
use crate::{
    config::BufferConfig,
    error::StreamError,
    message::{
        BurnId, CancelReason, CancelRequest, Lane, MessageId, Outbound, Outcome, PayloadHash,
        PeginNotification, PegoutBinding, PerLane, RequestId, SignatureRequest, TransactionType,
        wire,
    },
    proto,
    telemetry::TraceContext,
};

/// When a full lane is worth another try.
const FULL_RETRY_AFTER: Duration = Duration::from_millis(500);

/// No peg-in notice takes more.
const NOTICE_BYTES: u64 = 128;

/// What a call amounts to.
#[derive(Debug, PartialEq)]
pub(super) enum Intake {
    /// New: these records, in one commit.
    Accepted(Vec<Record>),
    /// The same call was accepted before; nothing is to be done.
    Known,
}

/// A signature request on its way in: encoded by its caller, so that the one actor that everything
/// passes through has less to do.
#[derive(Debug)]
pub(crate) struct Submission {
    /// The caller's idempotency key.
    pub request_id: RequestId,
    pub(super) payload_hash: PayloadHash,
    /// What its transaction is for.
    pub tx_type: TransactionType,
    pub(super) burns: Vec<BurnId>,
    pub(super) spends: Vec<OutPoint>,
    pub(super) encoded: (proto::Kind, Bytes),
}

impl Submission {
    /// Bytes that it takes up in its lane.
    pub(super) fn bytes(&self) -> u64 {
        self.encoded.1.len() as u64
    }

    /// What is kept of it, but for its message, which is at `sequence`.
    pub(super) fn opened(
        self,
        sequence: u64,
        accepted_at: SystemTime,
        deadline: SystemTime,
    ) -> OpenRequest {
        OpenRequest {
            request_id: self.request_id,
            payload_hash: self.payload_hash,
            tx_type: self.tx_type,
            sequence,
            burns: self.burns,
            spends: self.spends,
            accepted_at,
            deadline,
        }
    }
}

impl From<SignatureRequest> for Submission {
    fn from(request: SignatureRequest) -> Self {
        Self {
            request_id: request.request_id().clone(),
            payload_hash: request.payload_hash(),
            tx_type: request.tx_type(),
            burns: request.burns().iter().map(PegoutBinding::burn).collect(),
            spends: request.spends().collect(),
            encoded: wire::encode(&Outbound::SignatureRequest(Box::new(request))),
        }
    }
}

#[cfg(test)]
use bitcoin::{
    Txid,
    hashes::{Hash as _, sha256::Hash},
};

#[cfg(test)]
impl Submission {
    /// What the sample of this number pays.
    pub(super) fn sample_burn(number: u64) -> BurnId {
        BurnId {
            tx_hash: Hash::hash(&number.to_le_bytes()).to_byte_array(),
            log_index: 0,
        }
    }

    /// One whose transaction is of no matter to the lanes.
    pub(super) fn sample(number: u64) -> Self {
        let request_id: RequestId = format!("r-{number}").parse().expect("valid");
        Self {
            payload_hash: Hash::hash(&number.to_le_bytes()).to_byte_array(),
            tx_type: TransactionType::Pegout,
            burns: vec![Self::sample_burn(number)],
            spends: vec![OutPoint::new(Txid::hash(&number.to_be_bytes()), 0)],
            encoded: (
                proto::Kind::SignatureRequest,
                Bytes::from(request_id.to_string()),
            ),
            request_id,
        }
    }
}

/// A message for governance at the end of its lane.
pub(super) fn entry(
    retained: &Retained,
    message: &Outbound,
    trace: TraceContext,
    now: SystemTime,
    expects: Expects,
) -> Entry {
    let encoded = wire::encode(message);
    encoded_entry(retained, message.lane(), encoded, trace, now, expects)
}

pub(super) fn encoded_entry(
    retained: &Retained,
    lane: Lane,
    (kind, payload): (proto::Kind, Bytes),
    trace: TraceContext,
    now: SystemTime,
    expects: Expects,
) -> Entry {
    Entry {
        lane,
        sequence: retained.lanes.get(lane).counters.next_new,
        message_id: MessageId::generate(),
        kind,
        payload,
        trace,
        accepted_at: now,
        deadline: None,
        expects,
    }
}

/// A signature request: new, known, or in conflict with one under the same id.
pub(super) fn signature_request(
    known: Known<'_>,
    config: &BufferConfig,
    request: Submission,
    trace: TraceContext,
    now: SystemTime,
    deadline: SystemTime,
) -> Result<Intake, StreamError> {
    let retained = known.retained;
    match known.request(&request.request_id) {
        Some(known)
            if known.request.payload_hash == request.payload_hash
                || known.request.is_tombstone() =>
        {
            return Ok(Intake::Known);
        }
        Some(_) => {
            let request_id = request.request_id;
            return Err(StreamError::Conflict { request_id });
        }
        None => check_restored(retained)?,
    }
    let inputs: HashSet<OutPoint> = request.spends.iter().copied().collect();
    for burn in &request.burns {
        if let Some(rival) = known.rival(burn, &inputs) {
            return Err(StreamError::AlreadyPaid {
                burn: *burn,
                earlier: rival.clone(),
            });
        }
    }
    let expects = Expects::Outcome(request.request_id.clone());
    let encoded = request.encoded.clone();
    let entry = Entry {
        deadline: Some(deadline),
        ..encoded_entry(retained, Lane::Signing, encoded, trace, now, expects)
    };
    check_room(
        retained,
        config,
        &Waiting::default(),
        entry.lane,
        Room::of(&entry),
    )?;
    let opened = request.opened(entry.sequence, now, deadline);
    Ok(Intake::Accepted(vec![
        Record::Appended(entry),
        Record::Opened(opened),
    ]))
}

/// A peg-in notice: new, or known by its outpoint.
pub(super) fn pegin(
    known: Known<'_>,
    config: &BufferConfig,
    notification: PeginNotification,
    trace: TraceContext,
    now: SystemTime,
) -> Result<Intake, StreamError> {
    let (outpoint, retained) = (notification.outpoint(), known.retained);
    if known.pegin(&outpoint) {
        return Ok(Intake::Known);
    }
    let message = Outbound::PeginNotification(notification);
    let entry = entry(retained, &message, trace, now, Expects::PeginAck(outpoint));
    check_room(
        retained,
        config,
        &Waiting::default(),
        entry.lane,
        Room::of(&entry),
    )?;
    Ok(Intake::Accepted(vec![Record::Appended(entry)]))
}

/// Withdraws a request that was never sent; asks governance to cancel one that may have been. A store
/// cannot know that it is an older copy before it has met governance: until then what it never sent is
/// given up only, and stays open. Never refused for lack of room: a request's cancel was reserved when the request was accepted.
pub(super) fn cancel(
    known: Known<'_>,
    request_id: &RequestId,
    reason: CancelReason,
    trace: TraceContext,
    now: SystemTime,
) -> Result<Intake, StreamError> {
    let retained = known.retained;
    let Some(record) = known.request(request_id) else {
        return Err(unknown(retained, request_id));
    };
    let Standing::Open {
        cancel, progress, ..
    } = &record.standing
    else {
        return Ok(Intake::Known);
    };
    let news = match cancel {
        None => true,
        // What waits is decided when governance confirms this store; the deadline is told now.
        Some(cancel) => {
            let passed = reason == CancelReason::Deadline && !progress.deadline_passed;
            cancel.sequence.is_none() && passed
        }
    };
    if !news {
        return Ok(Intake::Known);
    }
    if cancel.is_some() || (retained.is_unsent(record) && !retained.is_confirmed()) {
        let request_id = request_id.clone();
        return Ok(Intake::Accepted(vec![Record::GivenUp {
            request_id,
            reason,
        }]));
    }
    let next_new = retained.lanes.get(Lane::Signing).counters.next_new;
    let records = give_up(retained, record, reason, trace, now, next_new);
    Ok(Intake::Accepted(records))
}

/// What was given up before governance had confirmed this store, which it has done now.
pub(super) fn given_up(retained: &Retained, now: SystemTime) -> Vec<Record> {
    let (mut records, mut next_new) = (
        Vec::new(),
        retained.lanes.get(Lane::Signing).counters.next_new,
    );
    for record in retained.open_requests() {
        if let Standing::Open {
            cancel:
                Some(Cancel {
                    reason,
                    sequence: None,
                }),
            ..
        } = &record.standing
        {
            let untraced = TraceContext::default();
            let decided = give_up(retained, record, *reason, untraced, now, next_new);
            let appended = |record: &&Record| matches!(record, Record::Appended(_));
            next_new += decided.iter().filter(appended).count() as u64;
            records.extend(decided);
        }
    }
    records
}

/// Withdraws an open request that was never sent, or has governance cancel it.
fn give_up(
    retained: &Retained,
    record: &RequestRecord,
    reason: CancelReason,
    trace: TraceContext,
    now: SystemTime,
    next_new: u64,
) -> Vec<Record> {
    let (lane, sequence) = (Lane::Signing, record.request.sequence);
    let request_id = record.request.request_id.clone();
    let withdrawn = (sequence > retained.lanes.get(lane).counters.sent_through)
        .then_some(Record::Withdrawn { lane, sequence });
    if retained.is_unsent(record) {
        let outcome = Outcome::ExpiredUnsent;
        let settled = Record::Settled {
            request_id,
            outcome,
            at: now,
        };
        return withdrawn.into_iter().chain([settled]).collect();
    }
    let message = Outbound::CancelRequest(CancelRequest {
        request_id: request_id.clone(),
        reason,
    });
    let expects = Expects::Outcome(request_id.clone());
    let entry = Entry {
        sequence: next_new,
        ..entry(retained, &message, trace, now, expects)
    };
    let asked = Record::CancelAsked {
        request_id,
        reason,
        sequence: entry.sequence,
    };
    let cancel = [Record::Appended(entry), asked];
    withdrawn.into_iter().chain(cancel).collect()
}

/// # Errors
///
/// While the store may lack requests that this node made: what would be new may not be.
fn check_restored(retained: &Retained) -> Result<(), StreamError> {
    match retained.identity.restoration {
        Restoration::None => Ok(()),
        Restoration::Waiting | Restoration::WentBack | Restoration::Reconciling => {
            Err(StreamError::Restoring)
        }
    }
}

/// What is said of a request that this store does not know: it was never made, unless the store
/// may lack it.
pub(super) fn unknown(retained: &Retained, request_id: &RequestId) -> StreamError {
    let unknown = || StreamError::UnknownRequest {
        request_id: request_id.clone(),
    };
    check_restored(retained).err().unwrap_or_else(unknown)
}

/// Messages that take up room in a lane, and their payload bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Room {
    fn of(entry: &Entry) -> Self {
        Self::one(entry.payload.len() as u64)
    }

    /// Of one message.
    pub(super) fn one(bytes: u64) -> Self {
        Self { messages: 1, bytes }
    }
}

impl std::ops::Sub for Room {
    type Output = Self;

    fn sub(self, less: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(less.messages),
            bytes: self.bytes.saturating_sub(less.bytes),
        }
    }
}

impl std::ops::Add for Room {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            messages: self.messages + more.messages,
            bytes: self.bytes + more.bytes,
        }
    }
}

/// Room for `more` that a caller brings, in its lane and in all, beside what waits to be decided.
/// What follows from it (a cancel, a marker) and what answers governance needs none: the former is
/// bounded by what was accepted, the latter by the window that governance was granted.
pub(super) fn check_room(
    retained: &Retained,
    config: &BufferConfig,
    waiting: &Waiting,
    lane: Lane,
    more: Room,
) -> Result<(), StreamError> {
    let used = |lane: Lane| {
        let kept = retained.lanes.get(lane);
        let kept = Room {
            messages: kept.used,
            bytes: kept.bytes,
        };
        kept + *waiting.get(lane)
    };
    let all = Lane::ALL
        .into_iter()
        .fold(Room::default(), |sum, lane| sum + used(lane));
    let lane_used = used(lane);
    let limits = [
        (
            lane_used.messages,
            more.messages,
            config.lane_messages,
            "messages",
        ),
        (lane_used.bytes, more.bytes, config.lane_bytes, "bytes"),
        (
            all.messages,
            more.messages,
            config.total_messages,
            "messages of all lanes",
        ),
        (
            all.bytes,
            more.bytes,
            config.total_bytes,
            "bytes of all lanes",
        ),
    ];
    match limits
        .into_iter()
        .find(|(used, more, capacity, _)| used + more > *capacity)
    {
        Some((used, _, capacity, unit)) => Err(StreamError::BufferFull {
            lane,
            used,
            capacity,
            unit,
            retry_after: FULL_RETRY_AFTER,
        }),
        None => Ok(()),
    }
}

/// The room that a caller's message may come to need, if it may.
pub(super) fn needs(message: &BufferMessage) -> Option<(Lane, Room)> {
    match message {
        BufferMessage::RequestSignatures { request, .. } => {
            Some((Lane::Signing, Room::one(request.bytes())))
        }
        BufferMessage::NotifyPegin { .. } => Some((Lane::Pegin, Room::one(NOTICE_BYTES))),
        _ => None,
    }
}

/// Whether a caller waits for its answer, and it needs no room: such inputs are bounded by their count.
pub(super) fn is_question(message: &BufferMessage) -> bool {
    matches!(
        message,
        BufferMessage::LookUp { .. }
            | BufferMessage::Cancel { reply: Some(_), .. }
            | BufferMessage::ResumeRestored { .. }
            | BufferMessage::DiscardDeadLetter { .. }
            | BufferMessage::TakeStock { .. }
            | BufferMessage::LetterHandled { .. }
            | BufferMessage::ReadWatermarks { .. }
    )
}

/// Room that inputs which are not decided yet may come to need, by lane.
pub(super) type Waiting = PerLane<Room>;
