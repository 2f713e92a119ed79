//! How rows are written: protobuf messages of our own, so that a later version can read what an
//! earlier one wrote.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::{OutPoint, Txid, hashes::Hash as _};
use prost::{Message, bytes::Bytes};
use uuid::Uuid;

use super::{
    record::{DeadLetter, Entry, Expects, OpenRequest},
    retained::{Cancel, Counters, Identity, RequestRecord, Restoration, Standing},
};
use crate::{
    message::{
        BurnId, CancelReason, FailureCode, Lane, LedgerId, MessageId, OccurrenceId, OpeningId,
        OutboxId, Outcome, Progress, wire,
    },
    proto,
    telemetry::TraceContext,
};

/// A value that can be written and read back.
pub(super) trait Stored: Sized {
    /// As bytes.
    fn encode(&self) -> Vec<u8>;
    /// From bytes of [`encode`](Self::encode); why they are none otherwise.
    fn decode(bytes: &[u8]) -> Result<Self, String>;
}

macro_rules! stored {
    ($type:ty, $form:ident) => {
        impl Stored for $type {
            fn encode(&self) -> Vec<u8> {
                $form::from(self).encode_to_vec()
            }
            fn decode(bytes: &[u8]) -> Result<Self, String> {
                let form = $form::decode(bytes).map_err(|error| error.to_string())?;
                Self::try_from(form)
            }
        }
    };
}

stored!(Identity, StoredIdentity);
stored!(Counters, StoredCounters);
stored!(Entry, StoredEntry);
stored!(RequestRecord, StoredRequest);
stored!(DeadLetter, StoredDeadLetter);
stored!((OutPoint, SystemTime), StoredPegin);

#[derive(Clone, PartialEq, Message)]
struct StoredIdentity {
    #[prost(bytes = "vec", tag = "1")]
    outbox_id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(bytes = "vec", optional, tag = "3")]
    ledger_id: Option<Vec<u8>>,
    #[prost(uint64, tag = "4")]
    adoptions: u64,
    #[prost(bool, tag = "5")]
    reconciling: bool,
    #[prost(uint64, tag = "6")]
    next_dead_letter: u64,
    #[prost(bytes = "vec", optional, tag = "7")]
    restored_by: Option<Vec<u8>>,
    /// 0 for none, else 1 + the standing's place in [`RESTORATIONS`].
    #[prost(uint32, tag = "8")]
    restoration: u32,
    #[prost(bytes = "vec", optional, tag = "9")]
    opening: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredCounters {
    #[prost(uint64, tag = "1")]
    next_new: u64,
    #[prost(uint64, tag = "2")]
    first_unacknowledged: u64,
    #[prost(uint64, tag = "3")]
    last_acknowledged: u64,
    #[prost(bytes = "vec", optional, tag = "4")]
    last_acknowledged_id: Option<Vec<u8>>,
    #[prost(uint64, tag = "5")]
    sent_through: u64,
    #[prost(uint64, tag = "6")]
    handled_through: u64,
    #[prost(bytes = "vec", optional, tag = "7")]
    last_handled: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredEntry {
    #[prost(enumeration = "proto::Lane", tag = "1")]
    lane: i32,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(bytes = "vec", tag = "3")]
    message_id: Vec<u8>,
    #[prost(enumeration = "proto::Kind", tag = "4")]
    kind: i32,
    #[prost(bytes = "bytes", tag = "5")]
    payload: Bytes,
    #[prost(string, tag = "6")]
    traceparent: String,
    #[prost(string, tag = "7")]
    tracestate: String,
    #[prost(uint64, tag = "8")]
    accepted_at: u64,
    #[prost(uint64, optional, tag = "9")]
    deadline: Option<u64>,
    #[prost(oneof = "StoredExpects", tags = "10, 11, 12")]
    expects: Option<StoredExpects>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum StoredExpects {
    #[prost(string, tag = "10")]
    Outcome(String),
    #[prost(message, tag = "11")]
    PeginAck(StoredOutPoint),
    #[prost(bool, tag = "12")]
    Answered(bool),
}

#[derive(Clone, PartialEq, Message)]
struct StoredOutPoint {
    #[prost(bytes = "vec", tag = "1")]
    txid: Vec<u8>,
    #[prost(uint32, tag = "2")]
    vout: u32,
}

#[derive(Clone, PartialEq, Message)]
struct StoredBurn {
    #[prost(bytes = "vec", tag = "1")]
    tx_hash: Vec<u8>,
    #[prost(uint32, tag = "2")]
    log_index: u32,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRequest {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(string, tag = "2")]
    request_id: String,
    #[prost(bytes = "vec", tag = "3")]
    payload_hash: Vec<u8>,
    #[prost(enumeration = "proto::TxType", tag = "4")]
    tx_type: i32,
    #[prost(uint64, tag = "5")]
    sequence: u64,
    #[prost(message, repeated, tag = "6")]
    burns: Vec<StoredBurn>,
    #[prost(message, repeated, tag = "7")]
    spends: Vec<StoredOutPoint>,
    #[prost(uint64, tag = "8")]
    accepted_at: u64,
    #[prost(uint64, tag = "9")]
    deadline: u64,
    #[prost(bool, tag = "10")]
    sent_before: bool,
    #[prost(oneof = "StoredStanding", tags = "11, 12")]
    standing: Option<StoredStanding>,
    #[prost(message, optional, tag = "14")]
    aside: Option<StoredEntry>,
    #[prost(bool, tag = "15")]
    recalled: bool,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum StoredStanding {
    #[prost(message, tag = "11")]
    Open(StoredOpen),
    #[prost(message, tag = "12")]
    Settled(StoredSettled),
}

#[derive(Clone, PartialEq, Message)]
struct StoredOpen {
    #[prost(bool, tag = "1")]
    has_signers: bool,
    #[prost(uint32, tag = "2")]
    collected: u32,
    #[prost(uint32, tag = "3")]
    required: u32,
    #[prost(bool, tag = "4")]
    deadline_passed: bool,
    /// 0 for none, else 1 + the reason's place in [`CANCEL_REASONS`].
    #[prost(uint32, tag = "5")]
    cancel_reason: u32,
    /// 0 while it waits.
    #[prost(uint64, tag = "6")]
    cancel_sequence: u64,
    #[prost(string, optional, tag = "7")]
    parked: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredSettled {
    #[prost(uint64, tag = "1")]
    at: u64,
    /// 0 for outcomes that governance did not give.
    #[prost(enumeration = "proto::SignatureStatus", tag = "2")]
    status: i32,
    #[prost(enumeration = "proto::FailureCode", tag = "3")]
    failure: i32,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(bool, tag = "5")]
    signatures_released: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StoredPegin {
    #[prost(message, optional, tag = "1")]
    outpoint: Option<StoredOutPoint>,
    #[prost(uint64, tag = "2")]
    at: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredDeadLetter {
    #[prost(enumeration = "proto::Lane", tag = "1")]
    lane: i32,
    #[prost(uint64, tag = "2")]
    sequence: u64,
    #[prost(bytes = "vec", tag = "3")]
    message_id: Vec<u8>,
    #[prost(int32, tag = "4")]
    kind: i32,
    #[prost(bytes = "bytes", tag = "5")]
    payload: Bytes,
    #[prost(string, tag = "6")]
    reason: String,
    #[prost(uint64, tag = "7")]
    at: u64,
    #[prost(bytes = "vec", optional, tag = "8")]
    occurrence_id: Option<Vec<u8>>,
}

const CANCEL_REASONS: [CancelReason; 2] = [CancelReason::Caller, CancelReason::Deadline];
const RESTORATIONS: [Restoration; 3] = [
    Restoration::Waiting,
    Restoration::Reconciling,
    Restoration::WentBack,
];

/// 1 + the value's place among these; 0 for any other.
fn place_of<T: PartialEq>(values: &[T], value: &T) -> u32 {
    let place = values.iter().position(|known| known == value);
    place.map_or(0, |place| u32::try_from(place + 1).unwrap_or(0))
}

/// The value whose [`place_of`] this is.
fn at_place<T: Copy>(values: &[T], place: u32) -> Option<T> {
    let place = (place as usize).checked_sub(1)?;
    values.get(place).copied()
}

/// Microseconds since the Unix epoch; what is stored is never older.
fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn time(micros: u64) -> SystemTime {
    let end = UNIX_EPOCH + Duration::from_secs(u32::MAX.into());
    UNIX_EPOCH
        .checked_add(Duration::from_micros(micros))
        .unwrap_or(end)
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    <[u8; N]>::try_from(bytes).map_err(|_| format!("{} bytes where {N} belong", bytes.len()))
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn lane(number: i32) -> Result<Lane, String> {
    wire::lane_from_wire(number).map_err(text)
}

impl From<&OutPoint> for StoredOutPoint {
    fn from(outpoint: &OutPoint) -> Self {
        Self {
            txid: outpoint.txid.to_byte_array().to_vec(),
            vout: outpoint.vout,
        }
    }
}

impl TryFrom<StoredOutPoint> for OutPoint {
    type Error = String;

    fn try_from(form: StoredOutPoint) -> Result<Self, String> {
        let txid = Txid::from_byte_array(array(&form.txid)?);
        Ok(Self::new(txid, form.vout))
    }
}

impl From<&Identity> for StoredIdentity {
    fn from(identity: &Identity) -> Self {
        Self {
            outbox_id: identity.outbox_id.to_bytes().to_vec(),
            opening: identity.opening.map(|id| id.to_bytes().to_vec()),
            epoch: identity.epoch,
            ledger_id: identity.ledger_id.map(|id| id.to_bytes().to_vec()),
            adoptions: identity.adoptions,
            reconciling: identity.reconciling,
            next_dead_letter: identity.next_dead_letter,
            restored_by: identity.restored_by.map(|id| id.into_bytes().to_vec()),
            restoration: place_of(&RESTORATIONS, &identity.restoration),
        }
    }
}

impl TryFrom<StoredIdentity> for Identity {
    type Error = String;

    fn try_from(form: StoredIdentity) -> Result<Self, String> {
        let ledger_id = form.ledger_id.map(|id| LedgerId::from_slice(&id));
        let restored_by = form.restored_by.map(|id| Uuid::from_slice(&id));
        let opening = form.opening.map(|id| OpeningId::from_slice(&id));
        Ok(Self {
            outbox_id: OutboxId::from_slice(&form.outbox_id).map_err(text)?,
            epoch: form.epoch,
            opening: opening.transpose().map_err(text)?,
            ledger_id: ledger_id.transpose().map_err(text)?,
            adoptions: form.adoptions,
            reconciling: form.reconciling,
            next_dead_letter: form.next_dead_letter,
            restored_by: restored_by.transpose().map_err(text)?,
            restoration: at_place(&RESTORATIONS, form.restoration).unwrap_or_default(),
        })
    }
}

impl From<&Counters> for StoredCounters {
    fn from(counters: &Counters) -> Self {
        Self {
            next_new: counters.next_new,
            first_unacknowledged: counters.first_unacknowledged,
            last_acknowledged: counters.last_acknowledged.map_or(0, |(last, _)| last),
            last_acknowledged_id: counters
                .last_acknowledged
                .map(|(_, id)| id.to_bytes().to_vec()),
            sent_through: counters.sent_through,
            handled_through: counters.handled_through,
            last_handled: counters.last_handled.map(|id| id.to_bytes().to_vec()),
        }
    }
}

impl TryFrom<StoredCounters> for Counters {
    type Error = String;

    fn try_from(form: StoredCounters) -> Result<Self, String> {
        let id = |id: Option<Vec<u8>>| id.map(|id| MessageId::from_slice(&id)).transpose();
        let last = id(form.last_acknowledged_id).map_err(text)?;
        let counters = Self {
            next_new: form.next_new,
            first_unacknowledged: form.first_unacknowledged,
            last_acknowledged: last.map(|id| (form.last_acknowledged, id)),
            sent_through: form.sent_through,
            handled_through: form.handled_through,
            last_handled: id(form.last_handled).map_err(text)?,
        };
        let fit = (1..=counters.next_new).contains(&counters.first_unacknowledged)
            && counters.sent_through < counters.next_new;
        fit.then_some(counters)
            .ok_or_else(|| format!("counters that cannot be: {counters:?}"))
    }
}

impl From<&Entry> for StoredEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            lane: proto::Lane::from(entry.lane).into(),
            sequence: entry.sequence,
            message_id: entry.message_id.to_bytes().to_vec(),
            kind: entry.kind.into(),
            payload: entry.payload.clone(),
            traceparent: entry.trace.traceparent.clone(),
            tracestate: entry.trace.tracestate.clone(),
            accepted_at: micros(entry.accepted_at),
            deadline: entry.deadline.map(micros),
            expects: match &entry.expects {
                Expects::Nothing => None,
                Expects::Answered => Some(StoredExpects::Answered(true)),
                Expects::Outcome(id) => Some(StoredExpects::Outcome(id.to_string())),
                Expects::PeginAck(outpoint) => Some(StoredExpects::PeginAck(outpoint.into())),
            },
        }
    }
}

impl TryFrom<StoredEntry> for Entry {
    type Error = String;

    fn try_from(form: StoredEntry) -> Result<Self, String> {
        let kind = proto::Kind::try_from(form.kind).map_err(text)?;
        Ok(Self {
            lane: lane(form.lane)?,
            sequence: form.sequence,
            message_id: MessageId::from_slice(&form.message_id).map_err(text)?,
            kind,
            payload: form.payload,
            trace: TraceContext {
                traceparent: form.traceparent,
                tracestate: form.tracestate,
            },
            accepted_at: time(form.accepted_at),
            deadline: form.deadline.map(time),
            expects: match form.expects {
                None => Expects::Nothing,
                Some(StoredExpects::Answered(_)) => Expects::Answered,
                Some(StoredExpects::Outcome(id)) => Expects::Outcome(id.parse().map_err(text)?),
                Some(StoredExpects::PeginAck(outpoint)) => Expects::PeginAck(outpoint.try_into()?),
            },
        })
    }
}

impl From<&RequestRecord> for StoredRequest {
    fn from(record: &RequestRecord) -> Self {
        let request = &record.request;
        let burn = |burn: &BurnId| StoredBurn {
            tx_hash: burn.tx_hash.to_vec(),
            log_index: burn.log_index,
        };
        Self {
            number: record.number,
            request_id: request.request_id.to_string(),
            payload_hash: request.payload_hash.to_vec(),
            tx_type: proto::TxType::from(request.tx_type).into(),
            sequence: request.sequence,
            burns: request.burns.iter().map(burn).collect(),
            spends: request.spends.iter().map(Into::into).collect(),
            accepted_at: micros(request.accepted_at),
            deadline: micros(request.deadline),
            sent_before: record.sent_before,
            aside: record.aside.as_ref().map(Into::into),
            recalled: record.recalled,
            standing: Some(match &record.standing {
                Standing::Open {
                    progress,
                    cancel,
                    parked,
                } => {
                    let reason = |cancel: &Cancel| place_of(&CANCEL_REASONS, &cancel.reason);
                    let (collected, required) = progress.signers.unwrap_or_default();
                    StoredStanding::Open(StoredOpen {
                        has_signers: progress.signers.is_some(),
                        collected,
                        required,
                        deadline_passed: progress.deadline_passed,
                        cancel_reason: cancel.as_ref().map_or(0, reason),
                        cancel_sequence: cancel.and_then(|cancel| cancel.sequence).unwrap_or(0),
                        parked: parked.clone(),
                    })
                }
                Standing::Settled { outcome, at } => {
                    StoredStanding::Settled(store_outcome(outcome, *at))
                }
            }),
        }
    }
}

impl TryFrom<StoredRequest> for RequestRecord {
    type Error = String;

    fn try_from(form: StoredRequest) -> Result<Self, String> {
        let tx_type = wire::tx_type_from_wire(form.tx_type).map_err(text)?;
        let burn = |burn: StoredBurn| {
            Ok::<_, String>(BurnId {
                tx_hash: array(&burn.tx_hash)?,
                log_index: burn.log_index,
            })
        };
        let burns = form.burns.into_iter().map(burn).collect::<Result<_, _>>()?;
        let spends = form.spends.into_iter().map(TryInto::try_into);
        Ok(Self {
            number: form.number,
            request: OpenRequest {
                request_id: form.request_id.parse().map_err(text)?,
                payload_hash: array(&form.payload_hash)?,
                tx_type,
                sequence: form.sequence,
                burns,
                spends: spends.collect::<Result<_, _>>()?,
                accepted_at: time(form.accepted_at),
                deadline: time(form.deadline),
            },
            sent_before: form.sent_before,
            aside: form.aside.map(TryInto::try_into).transpose()?,
            recalled: form.recalled,
            standing: match form.standing.ok_or("a request without a standing")? {
                StoredStanding::Open(open) => {
                    let reason = at_place(&CANCEL_REASONS, open.cancel_reason);
                    Standing::Open {
                        progress: Progress {
                            signers: open.has_signers.then_some((open.collected, open.required)),
                            deadline_passed: open.deadline_passed,
                        },
                        cancel: reason.map(|reason| Cancel {
                            reason,
                            sequence: Some(open.cancel_sequence).filter(|sequence| *sequence > 0),
                        }),
                        parked: open.parked,
                    }
                }
                StoredStanding::Settled(settled) => Standing::Settled {
                    at: time(settled.at),
                    outcome: read_outcome(settled)?,
                },
            },
        })
    }
}

fn store_outcome(outcome: &Outcome, at: SystemTime) -> StoredSettled {
    use proto::SignatureStatus as Status;
    let mut form = StoredSettled {
        at: micros(at),
        ..StoredSettled::default()
    };
    let status = match outcome {
        Outcome::Complete => Status::Complete,
        Outcome::Failed { code, reason } => {
            form.reason.clone_from(reason);
            match code {
                Some(code) => {
                    form.failure = proto::FailureCode::from(*code).into();
                    Status::Failed
                }
                None => Status::Timeout,
            }
        }
        Outcome::Rejected { reason } => {
            form.reason.clone_from(reason);
            form.failure = proto::FailureCode::InvalidRequest.into();
            Status::Failed
        }
        Outcome::Cancelled {
            signatures_released,
        } => {
            form.signatures_released = *signatures_released;
            Status::Cancelled
        }
        Outcome::ExpiredUnsent => Status::Unspecified,
    };
    form.status = status.into();
    form
}

fn read_outcome(form: StoredSettled) -> Result<Outcome, String> {
    use proto::SignatureStatus as Status;
    let reason = form.reason;
    Ok(match Status::try_from(form.status).map_err(text)? {
        Status::Complete => Outcome::Complete,
        Status::Failed => match wire::failure_code_from_wire(form.failure).map_err(text)? {
            FailureCode::InvalidRequest => Outcome::Rejected { reason },
            code => Outcome::Failed {
                code: Some(code),
                reason,
            },
        },
        Status::Timeout => Outcome::Failed { code: None, reason },
        Status::Cancelled => Outcome::Cancelled {
            signatures_released: form.signatures_released,
        },
        Status::Unspecified => Outcome::ExpiredUnsent,
        status @ (Status::Pending | Status::InProgress) => {
            return Err(format!("{} is no outcome", status.as_str_name()));
        }
    })
}

impl From<&(OutPoint, SystemTime)> for StoredPegin {
    fn from((outpoint, at): &(OutPoint, SystemTime)) -> Self {
        Self {
            outpoint: Some(outpoint.into()),
            at: micros(*at),
        }
    }
}

impl TryFrom<StoredPegin> for (OutPoint, SystemTime) {
    type Error = String;

    fn try_from(form: StoredPegin) -> Result<Self, String> {
        let outpoint = form.outpoint.ok_or("a peg-in without its outpoint")?;
        Ok((outpoint.try_into()?, time(form.at)))
    }
}

impl From<&DeadLetter> for StoredDeadLetter {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            lane: proto::Lane::from(letter.lane).into(),
            sequence: letter.sequence,
            message_id: letter.message_id.to_bytes().to_vec(),
            occurrence_id: letter.occurrence_id.map(|id| id.to_bytes().to_vec()),
            kind: letter.kind,
            payload: letter.payload.clone(),
            reason: letter.reason.clone(),
            at: micros(letter.at),
        }
    }
}

impl TryFrom<StoredDeadLetter> for DeadLetter {
    type Error = String;

    fn try_from(form: StoredDeadLetter) -> Result<Self, String> {
        Ok(Self {
            lane: lane(form.lane)?,
            sequence: form.sequence,
            message_id: MessageId::from_slice(&form.message_id).map_err(text)?,
            occurrence_id: form
                .occurrence_id
                .map(|id| OccurrenceId::from_slice(&id))
                .transpose()
                .map_err(text)?,
            kind: form.kind,
            payload: form.payload,
            reason: form.reason,
            at: time(form.at),
        })
    }
}
