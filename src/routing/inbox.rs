//! One lane's messages on their way to the subscriber. Pure.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use prost::bytes::Bytes;
use tokio::time::Instant;
use tracing::Span;

use crate::{
    config::WindowConfig,
    message::{Inbound, InvalidMessage, MessageId, OccurrenceId, RequestId},
    telemetry::TraceContext,
};

/// Most messages in one delivery.
const MAX_BATCH: usize = 256;
/// Pause before a failed delivery is tried again; doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// No pause is longer.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A message of governance that was taken off its frame.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    /// Its place in the lane.
    pub sequence: u64,
    /// Its id.
    pub message_id: MessageId,
    /// Names what it tells, if it says so as it must; without it, `content` is of no use.
    pub occurrence_id: Option<OccurrenceId>,
    /// Whether it may have come before.
    pub redelivered: bool,
    /// The trace that it belongs to.
    pub trace: TraceContext,
    /// Open until the message is handled.
    pub _span: Span,
    /// What it claims to be, as on the wire.
    pub kind: i32,
    /// Its raw bytes.
    pub payload: Bytes,
    /// What it says, if it can be used.
    pub content: Result<Inbound, InvalidMessage>,
    /// The request that it answers, until the buffer has said whether there is one.
    pub answers: Option<RequestId>,
}

/// What became of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is new and waits for its delivery.
    New,
    /// It waits here already, or was handled before; it is not delivered again.
    Duplicate,
}

/// How governance broke the lane's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaneFault {
    /// A message is missing.
    #[error("sequence {sequence} came, {expected} was expected")]
    Gap { sequence: u64, expected: u64 },
    /// Two messages under one sequence.
    #[error("sequence {sequence} came again as another message")]
    Forked { sequence: u64 },
    /// More than was granted.
    #[error("sequence {sequence} is beyond the window of {messages} messages, {bytes} bytes")]
    WindowExceeded {
        sequence: u64,
        messages: u32,
        bytes: u64,
    },
}

/// What is to be done next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Deliver this batch; its number comes back with the result.
    Deliver(u64, Vec<Arrived>),
    /// This message cannot be used: it is a dead letter.
    Discard(Box<Arrived>),
}

/// The lane's queue. At most one delivery is outstanding; it is always the queue's head.
#[derive(Debug)]
pub(crate) struct Inbox {
    window: WindowConfig,
    queue: VecDeque<Arrived>,
    bytes: u64,
    /// Highest sequence that needs no further delivery, and its id.
    handled: (u64, Option<MessageId>),
    outstanding: Option<Outstanding>,
    deliveries: u64,
    failures: u32,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
struct Outstanding {
    delivery: u64,
    since: Instant,
}

impl Inbox {
    /// An empty one, behind what is handled.
    pub(crate) fn new(
        window: WindowConfig,
        handled_through: u64,
        last_handled: Option<MessageId>,
    ) -> Self {
        Self {
            window,
            queue: VecDeque::new(),
            bytes: 0,
            handled: (handled_through, last_handled),
            outstanding: None,
            deliveries: 0,
            failures: 0,
            retry_at: None,
        }
    }

    /// Takes a message in, or says how governance broke the lane's order. What came before, on
    /// this session or an earlier one, is known by its sequence and id.
    pub(crate) fn accept(
        &mut self,
        sequence: u64,
        message_id: MessageId,
        size: usize,
        arrived: impl FnOnce() -> Arrived,
    ) -> Result<Arrival, LaneFault> {
        let expected = self.expected();
        if sequence > expected || sequence == 0 {
            return Err(LaneFault::Gap { sequence, expected });
        }
        if sequence < expected {
            let (handled_through, last_handled) = self.handled;
            let known = if sequence == handled_through {
                last_handled
            } else {
                let waiting = sequence.checked_sub(handled_through + 1);
                let waiting = waiting.and_then(|index| usize::try_from(index).ok());
                waiting
                    .and_then(|index| self.queue.get(index))
                    .map(|arrived| arrived.message_id)
            };
            return match known {
                Some(known) if known != message_id => Err(LaneFault::Forked { sequence }),
                _ => Ok(Arrival::Duplicate),
            };
        }
        let WindowConfig { messages, bytes } = self.window;
        let size = size as u64;
        let fits = self.queue.len() < messages as usize && self.bytes + size <= bytes;
        if !fits && !self.queue.is_empty() {
            return Err(LaneFault::WindowExceeded {
                sequence,
                messages,
                bytes,
            });
        }
        self.bytes += size;
        self.queue.push_back(arrived());
        Ok(Arrival::New)
    }

    /// Every answer up to here is one to a request of ours, but for those to the `unknown` ones,
    /// which cannot be used.
    pub(crate) fn correlated(&mut self, through: u64, unknown: &HashSet<RequestId>) {
        let due = self
            .queue
            .iter_mut()
            .take_while(|arrived| arrived.sequence <= through);
        for arrived in due {
            let request_id = arrived.answers.take();
            if let Some(request_id) = request_id.filter(|id| unknown.contains(id)) {
                let expected = "a request that this node has made";
                let invalid = InvalidMessage::new("request_id", request_id, expected);
                arrived.content = Err(invalid);
            }
        }
    }

    /// What is to be done now, if anything.
    pub(crate) fn next_step(&mut self, now: Instant) -> Option<Step> {
        if self.outstanding.is_some() || self.retry_at.is_some_and(|retry_at| retry_at > now) {
            return None;
        }
        let first = self.queue.front()?;
        if first.answers.is_some() {
            return None;
        }
        if first.content.is_err() {
            return self.pop().map(|arrived| Step::Discard(Box::new(arrived)));
        }
        let batch = self
            .queue
            .iter_mut()
            .take_while(|arrived| arrived.content.is_ok() && arrived.answers.is_none());
        // Should one come again, it says so.
        let hand_out = |arrived: &mut Arrived| {
            let handed_out = arrived.clone();
            arrived.redelivered = true;
            handed_out
        };
        let batch = batch.take(MAX_BATCH).map(hand_out).collect();
        self.deliveries += 1;
        self.outstanding = Some(Outstanding {
            delivery: self.deliveries,
            since: now,
        });
        Some(Step::Deliver(self.deliveries, batch))
    }

    /// The delivery is over: the subscriber has handled its first `handled` messages, which are
    /// returned, and the rest comes again: at once, or after a pause if it `failed`.
    pub(crate) fn delivered(
        &mut self,
        delivery: u64,
        handled: usize,
        failed: bool,
        now: Instant,
    ) -> Vec<Arrived> {
        if self
            .outstanding
            .take_if(|outstanding| outstanding.delivery == delivery)
            .is_none()
        {
            return Vec::new();
        }
        if failed {
            let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures));
            self.failures = if handled > 0 {
                0
            } else {
                self.failures.saturating_add(1)
            };
            self.retry_at = Some(now + pause.min(MAX_PAUSE));
        } else {
            self.failures = 0;
            self.retry_at = None;
        }
        (0..handled).map_while(|_| self.pop()).collect()
    }

    /// When [`next_step`](Self::next_step) is worth asking again, if time alone decides it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
            .filter(|_| self.outstanding.is_none() && !self.queue.is_empty())
    }

    /// Since when the subscriber has the outstanding delivery.
    pub(crate) fn outstanding_since(&self) -> Option<Instant> {
        self.outstanding
            .as_ref()
            .map(|outstanding| outstanding.since)
    }

    fn expected(&self) -> u64 {
        self.handled.0 + self.queue.len() as u64 + 1
    }

    fn pop(&mut self) -> Option<Arrived> {
        let arrived = self.queue.pop_front()?;
        self.bytes -= arrived.payload.len() as u64;
        self.handled = (arrived.sequence, Some(arrived.message_id));
        Some(arrived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{PeginAck, PeginStatus};

    const WINDOW: WindowConfig = WindowConfig {
        messages: 8,
        bytes: 1000,
    };

    fn arrived(sequence: u64, message_id: MessageId, usable: bool) -> Arrived {
        let ack = PeginAck {
            outpoint: bitcoin::OutPoint::null(),
            status: PeginStatus::Recorded,
        };
        Arrived {
            sequence,
            message_id,
            occurrence_id: Some(OccurrenceId::generate()),
            redelivered: false,
            trace: TraceContext::default(),
            _span: Span::none(),
            kind: 0,
            payload: Bytes::from_static(&[0; 10]),
            content: if usable {
                Ok(Inbound::PeginAck(ack))
            } else {
                Err(InvalidMessage::new("kind", 0, "known"))
            },
            answers: None,
        }
    }

    fn accept(inbox: &mut Inbox, sequence: u64) -> Result<Arrival, LaneFault> {
        let message_id = MessageId::generate();
        inbox.accept(sequence, message_id, 10, || {
            arrived(sequence, message_id, true)
        })
    }

    fn sequences(step: Option<Step>) -> (u64, Vec<u64>) {
        match step {
            Some(Step::Deliver(delivery, batch)) => (
                delivery,
                batch.iter().map(|arrived| arrived.sequence).collect(),
            ),
            other => panic!("expected a delivery, got {other:?}"),
        }
    }

    #[test]
    fn one_delivery_is_outstanding_and_the_next_holds_what_came_meanwhile() {
        let (mut inbox, now) = (Inbox::new(WINDOW, 0, None), Instant::now());
        accept(&mut inbox, 1).expect("in order");
        let (delivery, batch) = sequences(inbox.next_step(now));
        assert_eq!(batch, [1]);
        accept(&mut inbox, 2).expect("in order");
        accept(&mut inbox, 3).expect("in order");
        assert!(inbox.next_step(now).is_none());
        assert_eq!(inbox.delivered(delivery, 1, false, now).len(), 1);
        assert_eq!(sequences(inbox.next_step(now)).1, [2, 3]);
    }

    #[test]
    fn a_failure_brings_the_unhandled_rest_again_after_a_growing_pause() {
        let (mut inbox, mut now) = (
            Inbox::new(WINDOW, 4, Some(MessageId::generate())),
            Instant::now(),
        );
        for sequence in 5..=7 {
            accept(&mut inbox, sequence).expect("in order");
        }
        let (delivery, _) = sequences(inbox.next_step(now));
        assert_eq!(inbox.delivered(delivery, 1, true, now).len(), 1);
        for pause in [50, 50, 100, 200, 400, 800, 1000, 1000] {
            let due = inbox.deadline().expect("a retry is due");
            assert_eq!(due - now, Duration::from_millis(pause));
            assert!(inbox.next_step(now).is_none());
            now = due;
            let (delivery, batch) = sequences(inbox.next_step(now));
            assert_eq!(batch, [6, 7], "the same messages in the same order");
            inbox.delivered(delivery, 0, true, now);
        }
    }

    #[test]
    fn a_late_report_of_an_earlier_delivery_changes_nothing() {
        let (mut inbox, now) = (Inbox::new(WINDOW, 0, None), Instant::now());
        accept(&mut inbox, 1).expect("in order");
        let (delivery, _) = sequences(inbox.next_step(now));
        assert!(inbox.delivered(delivery + 1, 1, false, now).is_empty());
        assert!(inbox.next_step(now).is_none(), "still outstanding");
    }

    #[test]
    fn gaps_forks_and_excess_are_faults_and_duplicates_are_not() {
        let mut inbox = Inbox::new(WINDOW, 0, None);
        assert_eq!(
            accept(&mut inbox, 2),
            Err(LaneFault::Gap {
                sequence: 2,
                expected: 1
            })
        );
        let first = MessageId::generate();
        let mut accept_first = |id| inbox.accept(1, id, 10, || arrived(1, id, true));
        assert_eq!(accept_first(first), Ok(Arrival::New));
        assert_eq!(accept_first(first), Ok(Arrival::Duplicate));
        assert_eq!(
            accept_first(MessageId::generate()),
            Err(LaneFault::Forked { sequence: 1 })
        );
        for sequence in 2..=8 {
            accept(&mut inbox, sequence).expect("within the window");
        }
        assert!(matches!(
            accept(&mut inbox, 9),
            Err(LaneFault::WindowExceeded { .. })
        ));
        let (delivery, _) = sequences(inbox.next_step(Instant::now()));
        inbox.delivered(delivery, 1, false, Instant::now());
        assert_eq!(
            inbox.accept(1, MessageId::generate(), 10, || unreachable!(
                "handled before"
            )),
            Err(LaneFault::Forked { sequence: 1 }),
            "the last handled message is known by its id"
        );
    }

    #[test]
    fn an_answer_waits_until_it_is_known_whether_anyone_asked() {
        let (mut inbox, now) = (Inbox::new(WINDOW, 0, None), Instant::now());
        let name = |sequence: u64| -> RequestId { format!("r{sequence}").parse().expect("valid") };
        for sequence in 1..=3 {
            let id = MessageId::generate();
            let answer = || Arrived {
                answers: Some(name(sequence)),
                ..arrived(sequence, id, true)
            };
            inbox.accept(sequence, id, 10, answer).expect("in order");
        }
        assert!(inbox.next_step(now).is_none());
        inbox.correlated(2, &HashSet::from([name(1)]));
        let discarded = inbox.next_step(now);
        assert!(
            matches!(&discarded, Some(Step::Discard(dead)) if dead.sequence == 1),
            "nobody asked: {discarded:?}"
        );
        let (delivery, batch) = sequences(inbox.next_step(now));
        assert_eq!(batch, [2]);
        inbox.delivered(delivery, 1, false, now);
        assert!(inbox.next_step(now).is_none(), "the third is not known yet");
        inbox.correlated(3, &HashSet::new());
        assert_eq!(sequences(inbox.next_step(now)).1, [3]);
    }

    #[test]
    fn an_unusable_message_is_discarded_in_its_turn() {
        let (mut inbox, now) = (Inbox::new(WINDOW, 0, None), Instant::now());
        accept(&mut inbox, 1).expect("in order");
        let id = MessageId::generate();
        inbox
            .accept(2, id, 10, || arrived(2, id, false))
            .expect("in order");
        accept(&mut inbox, 3).expect("in order");
        let (delivery, batch) = sequences(inbox.next_step(now));
        assert_eq!(batch, [1]);
        inbox.delivered(delivery, 1, false, now);
        assert!(matches!(inbox.next_step(now), Some(Step::Discard(dead)) if dead.sequence == 2));
        assert_eq!(sequences(inbox.next_step(now)).1, [3]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_subscriber_does_it_gets_everything_in_order(
            total in 1..40_u64,
            answers in proptest::collection::vec((0..10_usize, proptest::bool::ANY), 0..60),
        ) {
            let mut now = Instant::now();
            let mut inbox = Inbox::new(WINDOW, 0, None);
            let (mut next, mut handled) = (1, 0);
            let well = std::iter::repeat_n((usize::MAX, false), 200);
            for (taken, fails) in answers.into_iter().chain(well) {
                while next <= total && accept(&mut inbox, next).is_ok() {
                    next += 1;
                }
                let Some(step) = inbox.next_step(now) else {
                    if let Some(deadline) = inbox.deadline() {
                        now = deadline;
                    }
                    continue;
                };
                let Step::Deliver(delivery, batch) = step else { panic!("usable") };
                proptest::prop_assert!(inbox.next_step(now).is_none(), "one is outstanding");
                let sequences: Vec<u64> = batch.iter().map(|arrived| arrived.sequence).collect();
                let expected: Vec<u64> = (handled + 1..next).collect();
                proptest::prop_assert_eq!(&sequences, &expected);
                let taken = taken.min(batch.len());
                let done = inbox.delivered(delivery, taken, fails, now);
                proptest::prop_assert_eq!(done.len(), taken);
                handled += taken as u64;
            }
            proptest::prop_assert_eq!(handled, total);
        }
    }
}
