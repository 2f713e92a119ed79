//! What is accepted, and which records that makes. Pure: decides, changes nothing.

use std::time::{Duration, SystemTime};

use bitcoin::OutPoint;
use prost::bytes::Bytes;

use super::{
    record::{Entry, Expects, OpenRequest, Record},
    retained::{Retained, Standing},
};
use crate::{
    config::BufferConfig,
    error::StreamError,
    message::{
        BurnId, CancelReason, CancelRequest, Lane, MessageId, Outbound, Outcome, PayloadHash,
        PeginNotification, PegoutBinding, RequestId, SignatureRequest, TransactionType, wire,
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
    burns: Vec<BurnId>,
    spends: Vec<OutPoint>,
    encoded: (proto::Kind, Bytes),
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
impl Submission {
    /// One whose transaction is of no matter to the lanes.
    pub(super) fn sample(number: u64) -> Self {
        let request_id: RequestId = format!("r-{number}").parse().expect("valid");
        Self {
            payload_hash: [1; 32],
            tx_type: TransactionType::Pegout,
            burns: Vec::new(),
            spends: Vec::new(),
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
        burns,
        spends,
        encoded,
    } = request;
    match retained.request(&request_id) {
        Some(known) if known.request.payload_hash == payload_hash => return Ok(Intake::Known),
        Some(_) => return Err(StreamError::Conflict { request_id }),
        None => {}
    }
    for burn in &burns {
        if let Some(rival) = retained.rival(burn, &spends) {
            return Err(StreamError::AlreadyPaid {
                burn: *burn,
                earlier: rival.clone(),
            });
        }
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
        burns,
        spends,
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
    let Some(record) = retained.request(request_id) else {
        return Err(StreamError::UnknownRequest {
            request_id: request_id.clone(),
        });
    };
    let Standing::Open { cancel: None, .. } = &record.standing else {
        return Ok(Intake::Known);
    };
    let (lane, sequence) = (Lane::Signing, record.request.sequence);
    let request_id = request_id.clone();
    let unsent = sequence > retained.lanes.get(lane).counters.sent_through;
    let withdrawn = unsent.then_some(Record::Withdrawn { lane, sequence });
    if unsent && !record.sent_before {
        let outcome = Outcome::ExpiredUnsent;
        let settled = Record::Settled {
            request_id,
            outcome,
            at: now,
        };
        return Ok(Intake::Accepted(
            withdrawn.into_iter().chain([settled]).collect(),
        ));
    }
    let message = Outbound::CancelRequest(CancelRequest {
        request_id: request_id.clone(),
        reason,
    });
    let expects = Expects::Outcome(request_id.clone());
    let entry = entry(retained, &message, trace, now, expects);
    let asked = Record::CancelAsked {
        request_id,
        reason,
        sequence: entry.sequence,
    };
    let cancel = [Record::Appended(entry), asked];
    Ok(Intake::Accepted(
        withdrawn.into_iter().chain(cancel).collect(),
    ))
}

/// Room for a message that a caller brings, in its lane and in all. What follows from it (a
/// cancel, a marker) and what answers governance needs none: the former is bounded by what was
/// accepted, the latter by the window that governance was granted.
fn check_room(
    retained: &Retained,
    config: &BufferConfig,
    entry: &Entry,
) -> Result<(), StreamError> {
    let lane = retained.lanes.get(entry.lane);
    let size = entry.payload.len() as u64;
    let (used, bytes) = retained
        .lanes
        .iter()
        .fold((0, 0), |(used, bytes), (_, lane)| {
            (used + lane.used, bytes + lane.bytes)
        });
    let limits = [
        (lane.used, 1, config.lane_messages, "messages"),
        (lane.bytes, size, config.lane_bytes, "bytes"),
        (used, 1, config.total_messages, "messages of all lanes"),
        (bytes, size, config.total_bytes, "bytes of all lanes"),
    ];
    match limits
        .into_iter()
        .find(|(used, more, capacity, _)| used + more > *capacity)
    {
        Some((used, _, capacity, unit)) => Err(StreamError::BufferFull {
            lane: entry.lane,
            used,
            capacity,
            unit,
            retry_after: FULL_RETRY_AFTER,
        }),
        None => Ok(()),
    }
}
