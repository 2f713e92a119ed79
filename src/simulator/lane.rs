//! One lane of one node as the ledger keeps it, both directions. Pure.

use std::collections::BTreeMap;

use crate::proto;

/// Highest priority first.
pub(super) const LANES: [proto::Lane; 4] = [
    proto::Lane::Signing,
    proto::Lane::Federation,
    proto::Lane::Pegin,
    proto::Lane::Proposal,
];

/// The lane that a number names.
pub(super) fn lane_of(number: i32) -> Option<proto::Lane> {
    LANES.into_iter().find(|lane| i32::from(*lane) == number)
}

/// What waits for a node, or was sent to it and is not acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    pub message_id: [u8; 16],
    /// Names what it tells, however often that is queued.
    pub occurrence_id: [u8; 16],
    pub kind: proto::Kind,
    pub payload: Vec<u8>,
    pub trace: (String, String),
}

impl Queued {
    /// As it goes out.
    pub(super) fn to_wire(&self, lane: proto::Lane, sequence: u64) -> proto::SequencedMessage {
        proto::SequencedMessage {
            lane: lane.into(),
            sequence,
            message_id: self.message_id.to_vec().into(),
            redelivered: false,
            traceparent: self.trace.0.clone(),
            tracestate: self.trace.1.clone(),
            remaining_ms: 0,
            kind: self.kind.into(),
            payload: self.payload.clone().into(),
            occurrence_id: self.occurrence_id.to_vec().into(),
        }
    }
}

/// Our record of one lane.
#[derive(Debug, Default)]
pub(super) struct LaneRecord {
    /// Every message taken from the node: its id.
    received: BTreeMap<u64, Vec<u8>>,
    /// Of what we took, what the node has been told.
    told_through: u64,
    /// What the node has not acknowledged.
    queue: BTreeMap<u64, Queued>,
    last_queued: u64,
    acknowledged: u64,
    acknowledged_id: Option<[u8; 16]>,
    /// In this session.
    sent_through: u64,
    /// In any session.
    ever_sent: u64,
    /// What the node grants.
    window: (u64, u64),
}

/// What a sequenced message of the node is to this lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    New,
    /// Taken before, under the same id.
    Again,
}

impl LaneRecord {
    fn next_expected(&self) -> u64 {
        self.received
            .last_key_value()
            .map_or(1, |(last, _)| last + 1)
    }

    /// Adds a message for the node.
    pub(super) fn push(&mut self, message: Queued) {
        self.last_queued += 1;
        self.queue.insert(self.last_queued, message);
    }

    /// Messages that the node has not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.queue.len()
    }

    /// What we say of this lane in a registration.
    pub(super) fn state(&self, lane: proto::Lane, window: (u32, u64)) -> proto::LaneState {
        let last = self.received.last_key_value();
        proto::LaneState {
            lane: lane.into(),
            first_retained: self.acknowledged + 1,
            next_new: self.last_queued + 1,
            next_expected: self.next_expected(),
            last_received_message_id: last.map(|(_, id)| id.clone()).unwrap_or_default().into(),
            window_messages: window.0,
            window_bytes: window.1,
        }
    }

    /// Of what we sent, what the node holds.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Takes a message from the record.
    pub(super) fn remember_arrived(&mut self, message: &proto::SequencedMessage) {
        self.received
            .insert(message.sequence, message.message_id.to_vec());
    }

    /// Takes an acknowledgement from the record.
    pub(super) fn remember_acknowledged(&mut self, through: u64) -> Result<(), String> {
        self.sent_through = self.sent_through.max(through);
        self.acknowledge(through)
    }

    /// The record ends here. What was sent is not in it: all of it may have been.
    pub(super) fn remembered(&mut self) {
        self.ever_sent = self.last_queued;
    }

    /// Begins a session in which nothing of the node's word counts but its window.
    pub(super) fn begin(&mut self, theirs: &proto::LaneState) {
        self.sent_through = self.acknowledged;
        self.told_through = self.next_expected() - 1;
        self.window = (theirs.window_messages.into(), theirs.window_bytes);
    }

    /// Begins a session with what the node says of this lane.
    pub(super) fn resume(&mut self, theirs: &proto::LaneState) -> Result<(), String> {
        let (ours, first) = (self.next_expected(), self.acknowledged + 1);
        if theirs.next_new < ours || theirs.next_expected < first {
            // Its history went back. It is the node's to see that: it sends nothing then.
            self.begin(theirs);
            return Ok(());
        }
        if !(theirs.first_retained..=theirs.next_new).contains(&ours) {
            return Err(format!(
                "we expect {ours}, the node has {} to {}",
                theirs.first_retained, theirs.next_new
            ));
        }
        let next = self.last_queued + 1;
        if !(first..=next).contains(&theirs.next_expected) {
            return Err(format!(
                "the node expects {}, we have {first} to {next}",
                theirs.next_expected
            ));
        }
        let through = theirs.next_expected - 1;
        let known = match self.queue.get(&through) {
            Some(queued) => Some(queued.message_id),
            None => self.acknowledged_id,
        };
        if through > 0 && known.map(Vec::from) != Some(theirs.last_received_message_id.to_vec()) {
            return Err(format!("the node holds another message as {through}"));
        }
        self.sent_through = through;
        self.ever_sent = self.ever_sent.max(through);
        self.acknowledge(through)?;
        self.told_through = ours - 1;
        self.window = (theirs.window_messages.into(), theirs.window_bytes);
        Ok(())
    }

    /// Takes the node's acknowledgement.
    pub(super) fn acknowledge(&mut self, through: u64) -> Result<(), String> {
        if through > self.sent_through {
            return Err(format!(
                "acknowledged {through}, sent {}",
                self.sent_through
            ));
        }
        if through > self.acknowledged {
            self.acknowledged_id = self.queue.get(&through).map(|queued| queued.message_id);
            self.queue = self.queue.split_off(&(through + 1));
            self.acknowledged = through;
        }
        Ok(())
    }

    /// Judges a message of the node, with the window that it was granted.
    pub(super) fn arrive(
        &mut self,
        message: &proto::SequencedMessage,
        window: u64,
    ) -> Result<Arrival, String> {
        let (sequence, id) = (message.sequence, message.message_id.as_ref());
        if id.len() != 16 {
            return Err(format!(
                "sequence {sequence} has a message_id of {} bytes",
                id.len()
            ));
        }
        if let Some(known) = self.received.get(&sequence) {
            return if known != id {
                Err(format!("sequence {sequence} came again as another message"))
            } else if !message.redelivered {
                Err(format!("sequence {sequence} came again without saying so"))
            } else {
                Ok(Arrival::Again)
            };
        }
        let expected = self.next_expected();
        if sequence != expected {
            return Err(format!("sequence {sequence} came, {expected} was due"));
        }
        if sequence - self.told_through > window {
            return Err(format!(
                "sequence {sequence} is beyond the window of {window}"
            ));
        }
        self.received.insert(sequence, id.to_vec());
        Ok(Arrival::New)
    }

    /// The acknowledgement that is due, or any when `always`.
    pub(super) fn acknowledgement(
        &mut self,
        lane: proto::Lane,
        always: bool,
    ) -> Option<proto::Acknowledgement> {
        let through_sequence = self.next_expected() - 1;
        if through_sequence == self.told_through && !(always && through_sequence > 0) {
            return None;
        }
        self.told_through = through_sequence;
        Some(proto::Acknowledgement {
            lane: lane.into(),
            through_sequence,
        })
    }

    /// The next message that the node's window has room for.
    pub(super) fn next_to_send(&mut self, lane: proto::Lane) -> Option<proto::SequencedMessage> {
        let sequence = self.sent_through + 1;
        let queued = self.queue.get(&sequence)?;
        let in_flight = self
            .queue
            .range(..sequence)
            .map(|(_, queued)| queued.payload.len() as u64);
        let (messages, bytes) = in_flight.fold((0, 0), |(n, sum), size| (n + 1, sum + size));
        let room = messages < self.window.0 && bytes + queued.payload.len() as u64 <= self.window.1;
        if messages > 0 && !room {
            return None;
        }
        let message = proto::SequencedMessage {
            redelivered: sequence <= self.ever_sent,
            ..queued.to_wire(lane, sequence)
        };
        self.sent_through = sequence;
        self.ever_sent = self.ever_sent.max(sequence);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(id: u8) -> Queued {
        let trace = (String::new(), String::new());
        Queued {
            message_id: [id; 16],
            occurrence_id: [id; 16],
            kind: proto::Kind::PeginAck,
            payload: vec![0; 10],
            trace,
        }
    }

    fn arriving(sequence: u64, id: u8, redelivered: bool) -> proto::SequencedMessage {
        proto::SequencedMessage {
            sequence,
            message_id: vec![id; 16].into(),
            redelivered,
            ..Default::default()
        }
    }

    fn theirs(next_expected: u64, last: Vec<u8>, window: (u32, u64)) -> proto::LaneState {
        proto::LaneState {
            first_retained: 1,
            next_new: 1,
            next_expected,
            last_received_message_id: last.into(),
            window_messages: window.0,
            window_bytes: window.1,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_in_order_and_marked() {
        let lane = proto::Lane::Pegin;
        let mut record = LaneRecord::default();
        record
            .resume(&theirs(1, Vec::new(), (10, 1000)))
            .expect("fresh");
        (1..=3).for_each(|id| record.push(queued(id)));
        let sent: Vec<_> = std::iter::from_fn(|| record.next_to_send(lane)).collect();
        assert_eq!(
            sent.iter()
                .map(|m| (m.sequence, m.redelivered))
                .collect::<Vec<_>>(),
            [(1, false), (2, false), (3, false)]
        );
        record
            .resume(&theirs(2, vec![1; 16], (10, 1000)))
            .expect("agrees");
        let again: Vec<_> = std::iter::from_fn(|| record.next_to_send(lane)).collect();
        assert_eq!(
            again
                .iter()
                .map(|m| (m.sequence, m.redelivered))
                .collect::<Vec<_>>(),
            [(2, true), (3, true)]
        );
        assert!(
            record.resume(&theirs(3, vec![9; 16], (10, 1000))).is_err(),
            "another history"
        );
        assert!(
            record.resume(&theirs(5, vec![3; 16], (10, 1000))).is_err(),
            "never made"
        );
        assert!(record.acknowledge(4).is_err(), "never sent");
    }

    #[test]
    fn the_nodes_window_is_kept_and_one_message_always_fits() {
        let lane = proto::Lane::Pegin;
        let mut record = LaneRecord::default();
        record
            .resume(&theirs(1, Vec::new(), (2, 5)))
            .expect("fresh");
        (1..=3).for_each(|id| record.push(queued(id)));
        assert_eq!(
            std::iter::from_fn(|| record.next_to_send(lane)).count(),
            1,
            "bytes"
        );
        record.acknowledge(1).expect("sent");
        assert_eq!(std::iter::from_fn(|| record.next_to_send(lane)).count(), 1);
    }

    #[test]
    fn a_node_that_breaks_the_sequence_is_found_out() {
        let mut record = LaneRecord::default();
        assert_eq!(record.arrive(&arriving(1, 1, false), 2), Ok(Arrival::New));
        assert_eq!(record.arrive(&arriving(1, 1, true), 2), Ok(Arrival::Again));
        assert!(
            record.arrive(&arriving(1, 1, false), 2).is_err(),
            "unmarked"
        );
        assert!(
            record.arrive(&arriving(1, 2, true), 2).is_err(),
            "another id"
        );
        assert!(record.arrive(&arriving(3, 3, false), 2).is_err(), "a gap");
        assert_eq!(record.arrive(&arriving(2, 2, false), 2), Ok(Arrival::New));
        assert!(
            record.arrive(&arriving(3, 3, false), 2).is_err(),
            "beyond the window"
        );
        assert_eq!(
            record
                .acknowledgement(proto::Lane::Pegin, false)
                .map(|ack| ack.through_sequence),
            Some(2)
        );
        assert!(record.acknowledgement(proto::Lane::Pegin, false).is_none());
        assert_eq!(record.arrive(&arriving(3, 3, false), 2), Ok(Arrival::New));
    }
}
