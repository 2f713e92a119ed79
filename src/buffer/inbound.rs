//! What a subscriber has handled, and which records that makes. Pure.

use std::time::SystemTime;

use bitcoin::OutPoint;

use super::{
    intake,
    record::{DeadLetter, Expects, Record},
    retained::Retained,
};
use crate::{
    message::{Inbound, Lane, MessageId, Outbound, Outcome, RequestId, SignatureStatus},
    telemetry::TraceContext,
};

/// One message of governance that needs no further delivery.
#[derive(Debug, Clone)]
pub(crate) struct HandledMessage {
    /// Its sequence.
    pub sequence: u64,
    /// Its id.
    pub message_id: MessageId,
    /// What it changes here.
    pub meaning: Meaning,
    /// What governance is told about it, in the same commit.
    pub answer: Option<Outbound>,
    /// Kept when it could not be used.
    pub dead_letter: Option<DeadLetter>,
    /// The trace that it belongs to.
    pub trace: TraceContext,
}

/// What a message means for what is open here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing.
    Nothing,
    /// Signers have answered.
    Progress {
        request_id: RequestId,
        collected: u32,
        required: u32,
    },
    /// A request has its outcome.
    Outcome {
        request_id: RequestId,
        outcome: Outcome,
    },
    /// A peg-in notice is answered.
    PeginAnswered(OutPoint),
    /// A response could not be used: its request, if it is one of ours, waits for an operator.
    Unusable {
        request_id: RequestId,
        reason: String,
    },
}

impl Meaning {
    /// The request that it is about.
    pub(super) fn request_id(&self) -> Option<&RequestId> {
        match self {
            Self::Progress { request_id, .. }
            | Self::Outcome { request_id, .. }
            | Self::Unusable { request_id, .. } => Some(request_id),
            Self::Nothing | Self::PeginAnswered(_) => None,
        }
    }

    /// What a message that its subscriber took means.
    pub(crate) fn of(message: &Inbound) -> Self {
        match message {
            Inbound::SignatureResponse(response) => {
                let request_id = response.request_id.clone();
                match (&response.status, Outcome::from_status(&response.status)) {
                    (_, Some(outcome)) => Self::Outcome {
                        request_id,
                        outcome,
                    },
                    (
                        SignatureStatus::InProgress {
                            collected,
                            required,
                        },
                        None,
                    ) => Self::Progress {
                        request_id,
                        collected: *collected,
                        required: *required,
                    },
                    (_, None) => Self::Nothing,
                }
            }
            Inbound::PeginAck(ack) => Self::PeginAnswered(ack.outpoint),
            Inbound::FederationUpdate(_) | Inbound::ProposalNotification(_) => Self::Nothing,
        }
    }
}

/// The records of a handled run of messages: one commit for watermark, outcomes, answers and dead
/// letters. What was recorded before makes none.
pub(super) fn handled(
    retained: &Retained,
    lane: Lane,
    messages: &[HandledMessage],
    now: SystemTime,
) -> Vec<Record> {
    // The answers of one run follow each other in the lane, before any of them is applied.
    let mut records = Vec::new();
    let counters = retained.lanes.get(lane).counters;
    let mut next_new = counters.next_new;
    let mut expected = counters.handled_through + 1;
    for message in messages {
        if message.sequence != expected {
            continue;
        }
        expected += 1;
        records.extend(meaning(retained, &message.meaning, now));
        records.extend(message.dead_letter.clone().map(Record::DeadLetter));
        if let Some(answer) = &message.answer {
            let mut entry = intake::entry(
                retained,
                answer,
                message.trace.clone(),
                now,
                Expects::Nothing,
            );
            entry.sequence = next_new;
            next_new += 1;
            records.push(Record::Appended(entry));
        }
        records.push(Record::Handled {
            lane,
            through: message.sequence,
            message_id: message.message_id,
        });
    }
    records
}

/// What a message changes here. What is settled already makes no record.
pub(super) fn meaning(retained: &Retained, meaning: &Meaning, now: SystemTime) -> Option<Record> {
    match meaning {
        Meaning::Nothing => None,
        Meaning::Progress {
            request_id,
            collected,
            required,
        } => retained
            .open_request(request_id)
            .map(|_| Record::Progressed {
                request_id: request_id.clone(),
                collected: *collected,
                required: *required,
            }),
        Meaning::Outcome {
            request_id,
            outcome,
        } => retained.open_request(request_id).map(|_| Record::Settled {
            request_id: request_id.clone(),
            outcome: outcome.clone(),
            at: now,
        }),
        Meaning::PeginAnswered(outpoint) => {
            retained
                .pegin_is_open(outpoint)
                .then_some(Record::PeginSettled {
                    outpoint: *outpoint,
                    at: now,
                })
        }
        Meaning::Unusable { request_id, reason } => {
            retained.open_request(request_id).map(|_| Record::Parked {
                request_id: request_id.clone(),
                reason: reason.clone(),
            })
        }
    }
}
