//! From messages to frames. Pure.

use std::time::SystemTime;

use prost::{Message as _, bytes::Bytes};

use crate::{
    buffer::Outgoing,
    message::{Lane, Limits},
    proto,
};

/// Room in a frame for acknowledgements and its own framing.
const RESERVED: usize = 512;

/// Packs messages, in their order, into as few frames as governance's limits allow.
pub(super) fn pack(
    messages: Vec<Outgoing>,
    limits: &Limits,
    now: SystemTime,
) -> Vec<proto::StreamRequest> {
    let budget = limits.max_frame_bytes.saturating_sub(RESERVED);
    let mut frames = Vec::new();
    let mut frame = proto::StreamRequest::default();
    let mut size = 0;
    for outgoing in messages {
        let message = to_wire(outgoing, now);
        // Its length, key and length prefix.
        let length = message.encoded_len() + 8;
        let full = frame.messages.len() >= limits.max_messages_per_frame || size + length > budget;
        if full && !frame.messages.is_empty() {
            frames.push(std::mem::take(&mut frame));
            size = 0;
        }
        size += length;
        frame.messages.push(message);
    }
    if !frame.messages.is_empty() {
        frames.push(frame);
    }
    frames
}

/// With what is left of its deadline now: clocks need not agree.
fn to_wire(Outgoing { entry, redelivered }: Outgoing, now: SystemTime) -> proto::SequencedMessage {
    let remaining = entry
        .deadline
        .and_then(|deadline| deadline.duration_since(now).ok());
    proto::SequencedMessage {
        lane: lane(entry.lane),
        sequence: entry.sequence,
        message_id: entry.message_id.to_bytes().to_vec().into(),
        redelivered,
        traceparent: entry.trace.traceparent,
        tracestate: entry.trace.tracestate,
        remaining_ms: remaining
            .and_then(|left| u64::try_from(left.as_millis()).ok())
            .unwrap_or_default(),
        kind: entry.kind.into(),
        payload: entry.payload,
        occurrence_id: Bytes::new(),
    }
}

fn lane(lane: Lane) -> i32 {
    proto::Lane::from(lane).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        buffer::record::{Entry, Expects},
        message::MessageId,
        telemetry::TraceContext,
    };

    fn outgoing(sequence: u64, size: usize, deadline: Option<SystemTime>) -> Outgoing {
        Outgoing {
            entry: Entry {
                lane: Lane::Signing,
                sequence,
                message_id: MessageId::generate(),
                kind: proto::Kind::SignatureRequest,
                payload: Bytes::from(vec![7; size]),
                trace: TraceContext::default(),
                accepted_at: SystemTime::UNIX_EPOCH,
                deadline,
                expects: Expects::Nothing,
            },
            redelivered: false,
        }
    }

    fn limits(max_frame_bytes: usize, max_messages_per_frame: usize) -> Limits {
        Limits {
            max_frame_bytes,
            max_message_bytes: 1 << 20,
            max_messages_per_frame,
            max_messages_per_second: None,
        }
    }

    #[test]
    fn a_frame_carries_many_messages_in_order_and_stays_within_the_limits() {
        let limits = limits(8192, 10);
        let messages = (1..=100)
            .map(|sequence| outgoing(sequence, 900, None))
            .collect();
        let frames = pack(messages, &limits, SystemTime::now());
        assert!(
            frames
                .iter()
                .all(|frame| frame.encoded_len() <= limits.max_frame_bytes)
        );
        assert!(
            frames
                .iter()
                .all(|frame| (1..=10).contains(&frame.messages.len()))
        );
        assert!(frames.len() < 20, "{} frames", frames.len());
        let sequences: Vec<u64> = frames
            .iter()
            .flat_map(|frame| &frame.messages)
            .map(|m| m.sequence)
            .collect();
        assert_eq!(sequences, (1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_left_of_a_deadline_is_told_and_never_negative() {
        let now = SystemTime::now();
        let at = |deadline| {
            pack(vec![outgoing(1, 1, deadline)], &limits(8192, 10), now)
                .first()
                .and_then(|frame| frame.messages.first())
                .map(|message| message.remaining_ms)
        };
        assert_eq!(at(Some(now + Duration::from_millis(1500))), Some(1500));
        assert_eq!(at(Some(now - Duration::from_secs(1))), Some(0));
        assert_eq!(at(None), Some(0));
    }
}
