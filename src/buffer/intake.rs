//! What is accepted, and which records that makes. Pure: decides, changes nothing.

use std::time::{Duration, SystemTime};

use prost::bytes::Bytes;

use super::{
    journal::{Entry, Expects, OpenRequest, Record},
    retained::{Known, Retained, Standing},
};
use crate::{
    config::BufferConfig,
    error::StreamError,
    message::{
        CancelReason, CancelRequest, Lane, MessageId, Outbound, Outcome, PayloadHash,
        PeginNotification, RequestId, SignatureRequest, TransactionType, wire,
    },
    proto,
    telemetry::TraceContext,
};

/// When a full lane is worth another try.
const FULL_RETRY_AFTER: Duration = Duration::from_millis(500);

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
    payload_hash: PayloadHash,
    /// What its transaction is for.
    pub tx_type: TransactionType,
    encoded: (proto::Kind, Bytes),
}

impl From<SignatureRequest> for Submission {
    fn from(request: SignatureRequest) -> Self {
        Self {
            request_id: request.request_id().clone(),
            payload_hash: request.payload_hash(),
            tx_type: request.tx_type(),
            encoded: wire::encode(&Outbound::SignatureRequest(Box::new(request))),
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

fn encoded_entry(
    retained: &Retained,
    lane: Lane,
    (kind, payload): (proto::Kind, Bytes),
    trace: TraceContext,
    now: SystemTime,
    expects: Expects,
) -> Entry {
    Entry {
        lane,
        sequence: retained.lanes.get(lane).next_new,
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
    retained: &Retained,
    config: &BufferConfig,
    request: Submission,
    trace: TraceContext,
    now: SystemTime,
    deadline: SystemTime,
) -> Result<Intake, StreamError> {
    let Submission {
        request_id,
        payload_hash,
        tx_type,
        encoded,
    } = request;
    let known = match retained.known(&request_id) {
        Known::Unknown => None,
        Known::Request(record) => Some(record.request.payload_hash),
        Known::Forgotten(payload_hash) => Some(payload_hash),
    };
    match known {
        Some(known) if known == payload_hash => return Ok(Intake::Known),
        Some(_) => return Err(StreamError::Conflict { request_id }),
        None => {}
    }
    let expects = Expects::Outcome(request_id.clone());
    let entry = Entry {
        deadline: Some(deadline),
        ..encoded_entry(retained, Lane::Signing, encoded, trace, now, expects)
    };
    check_room(retained, config, &entry)?;
    let opened = OpenRequest {
        request_id,
        payload_hash,
        tx_type,
        sequence: entry.sequence,
        accepted_at: now,
        deadline,
    };
    Ok(Intake::Accepted(vec![
        Record::Appended(entry),
        Record::Opened(opened),
    ]))
}

/// A peg-in notice: new, or known by its outpoint.
pub(super) fn pegin(
    retained: &Retained,
    config: &BufferConfig,
    notification: PeginNotification,
    trace: TraceContext,
    now: SystemTime,
) -> Result<Intake, StreamError> {
    let outpoint = notification.outpoint();
    if retained.knows_pegin(&outpoint) {
        return Ok(Intake::Known);
    }
    let message = Outbound::PeginNotification(notification);
    let entry = entry(retained, &message, trace, now, Expects::PeginAck(outpoint));
    check_room(retained, config, &entry)?;
    Ok(Intake::Accepted(vec![Record::Appended(entry)]))
}

/// Withdraws a request that was never sent; asks governance to cancel one that may have been.
/// Never refused for lack of room: a request's cancel was reserved when the request was accepted.
pub(super) fn cancel(
    retained: &Retained,
    request_id: &RequestId,
    reason: CancelReason,
    trace: TraceContext,
    now: SystemTime,
) -> Result<Intake, StreamError> {
    let record = match retained.known(request_id) {
        Known::Unknown => {
            return Err(StreamError::UnknownRequest {
                request_id: request_id.clone(),
            });
        }
        Known::Forgotten(_) => return Ok(Intake::Known),
        Known::Request(record) => record,
    };
    match &record.standing {
        Standing::Settled(_)
        | Standing::Open {
            cancel: Some(_), ..
        } => Ok(Intake::Known),
        Standing::Open { cancel: None, .. } => {
            let lane = Lane::Signing;
            let sequence = record.request.sequence;
            let request_id = request_id.clone();
            if sequence > retained.lanes.get(lane).sent_through {
                let outcome = Outcome::ExpiredUnsent;
                return Ok(Intake::Accepted(vec![
                    Record::Withdrawn { lane, sequence },
                    Record::Settled {
                        request_id,
                        outcome,
                    },
                ]));
            }
            let message = Outbound::CancelRequest(CancelRequest {
                request_id: request_id.clone(),
                reason,
            });
            let entry = entry(retained, &message, trace, now, Expects::Nothing);
            Ok(Intake::Accepted(vec![
                Record::Appended(entry),
                Record::CancelAsked { request_id, reason },
            ]))
        }
    }
}

fn check_room(
    retained: &Retained,
    config: &BufferConfig,
    entry: &Entry,
) -> Result<(), StreamError> {
    let lane = retained.lanes.get(entry.lane);
    let full = |used, capacity, unit| StreamError::BufferFull {
        lane: entry.lane,
        used,
        capacity,
        unit,
        retry_after: FULL_RETRY_AFTER,
    };
    let messages = lane.entries.len() as u64;
    if messages >= config.lane_messages {
        return Err(full(messages, config.lane_messages, "messages"));
    }
    if lane.bytes + entry.payload.len() as u64 > config.lane_bytes {
        return Err(full(lane.bytes, config.lane_bytes, "bytes"));
    }
    Ok(())
}
