//! Hands messages to the node's actors, one delivery at a time in each lane.

use std::{collections::HashSet, time::Duration};

use prost::bytes::Bytes;
use ractor::RpcReplyPort;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::info_span;

use super::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber, SubscriberError,
    inbox::{Arrival, Arrived, Inbox, LaneFault, Step},
};
use crate::{
    buffer::{HandledMessage, Meaning, record::DeadLetter},
    config::WindowConfig,
    message::{
        Inbound, InvalidMessage, Lane, MessageId, OccurrenceId, Outbound, PerLane, Reject,
        RequestId, wire,
    },
    proto,
    telemetry::{Metrics, TraceContext},
};

/// A subscriber that has not answered for this long is shown in health. It is not asked again:
/// slow is not failed.
const SLOW_AFTER: Duration = Duration::from_secs(5);

/// Who takes governance's messages.
#[derive(Debug, Clone)]
pub(crate) struct Subscribers {
    pub bridge: Subscriber<BridgeEvent>,
    pub chain: Subscriber<ChainEvent>,
}

/// How a delivery ended.
#[derive(Debug)]
pub(crate) struct Report {
    pub lane: Lane,
    pub delivery: u64,
    pub result: Result<Handled, SubscriberError>,
}

/// A delivery whose answer is awaited.
#[derive(Debug)]
pub(crate) struct Awaited {
    lane: Lane,
    delivery: u64,
    name: String,
    answer: oneshot::Receiver<Handled>,
}

impl Awaited {
    /// Waits for as long as the subscriber takes.
    pub(crate) async fn report(self) -> Report {
        let Self {
            lane,
            delivery,
            name,
            answer,
        } = self;
        let result = answer.await.map_err(|_| SubscriberError::Dropped { name });
        Report {
            lane,
            delivery,
            result,
        }
    }
}

/// The lanes' queues and where they lead.
#[derive(Debug)]
pub(crate) struct Router {
    subscribers: Subscribers,
    metrics: Metrics,
    inboxes: PerLane<Lanes>,
    /// Requests whose local deadline has passed: their responses are marked late.
    late: HashSet<RequestId>,
    /// Answers whose requests are to be looked up.
    uncorrelated: Vec<(u64, RequestId)>,
}

#[derive(Debug)]
struct Lanes {
    inbox: Inbox,
    /// Why the last delivery failed, until one succeeds.
    failure: Option<SubscriberError>,
    failing_since: Option<Instant>,
}

impl Router {
    /// Empty queues, behind what the buffer has recorded.
    pub(crate) fn new(
        subscribers: Subscribers,
        window: WindowConfig,
        metrics: Metrics,
        recorded: impl Fn(Lane) -> (u64, Option<MessageId>),
    ) -> Self {
        let inboxes = PerLane::from_fn(|lane| {
            let (through, last) = recorded(lane);
            Lanes {
                inbox: Inbox::new(window, through, last),
                failure: None,
                failing_since: None,
            }
        });
        Self {
            subscribers,
            metrics,
            inboxes,
            late: HashSet::new(),
            uncorrelated: Vec::new(),
        }
    }

    /// Responses to this request are late from now on.
    pub(crate) fn mark_late(&mut self, request_id: RequestId) {
        self.late.insert(request_id);
    }

    /// Takes a message off its frame.
    pub(crate) fn accept(
        &mut self,
        message: proto::SequencedMessage,
    ) -> Result<(Lane, Arrival), String> {
        let lane = wire::lane_from_wire(message.lane).map_err(|error| error.to_string())?;
        let fault = |error: &dyn std::fmt::Display| format!("lane {lane}: {error}");
        let message_id =
            MessageId::from_slice(&message.message_id).map_err(|error| fault(&error))?;
        let kind = proto::Kind::try_from(message.kind)
            .unwrap_or_default()
            .as_str_name();
        let (sequence, size) = (message.sequence, message.payload.len());
        let metrics = &self.metrics;
        let uncorrelated = &mut self.uncorrelated;
        let arrived = || {
            metrics.record_message_received(lane, kind);
            let trace = TraceContext::from_wire(message.traceparent, message.tracestate);
            let span = info_span!("deliver", %lane, sequence, kind);
            trace.adopt(&span);
            // A message without it could be handled twice: it is as malformed as one whose payload is.
            let occurrence_id = OccurrenceId::from_slice(&message.occurrence_id);
            let content = wire::decode(lane, message.kind, &message.payload)
                .and_then(|content| occurrence_id.clone().map(|_| content));
            if content.is_err() {
                metrics.record_serialization_error(lane);
            }
            let answers = match &content {
                Ok(Inbound::SignatureResponse(response)) => Some(response.request_id.clone()),
                _ => None,
            };
            uncorrelated.extend(answers.clone().map(|request_id| (sequence, request_id)));
            Arrived {
                answers,
                sequence,
                message_id,
                occurrence_id: occurrence_id.ok(),
                redelivered: message.redelivered,
                trace: TraceContext::of(&span).or(trace),
                _span: span,
                kind: message.kind,
                // A copy: the bytes that came are a part of their frame's, and would keep all of it
                // in memory for as long as this message waits.
                payload: Bytes::copy_from_slice(&message.payload),
                content,
            }
        };
        let inbox = &mut self.inboxes.get_mut(lane).inbox;
        let arrival = inbox.accept(sequence, message_id, size, arrived);
        arrival
            .map(|arrival| (lane, arrival))
            .map_err(|error: LaneFault| fault(&error))
    }

    /// Answers that came since the last call, whose requests are to be looked up: up to which
    /// sequence, and which they are.
    pub(crate) fn take_uncorrelated(&mut self) -> Option<(u64, Vec<RequestId>)> {
        let (through, _) = self.uncorrelated.last()?;
        let through = *through;
        let request_ids = self.uncorrelated.drain(..);
        Some((through, request_ids.map(|(_, id)| id).collect()))
    }

    /// Answers up to this sequence were looked up; these are to requests that nobody made.
    pub(crate) fn correlated(&mut self, through: u64, unknown: &HashSet<RequestId>) {
        let lanes = self.inboxes.get_mut(Lane::Signing);
        lanes.inbox.correlated(through, unknown);
    }

    /// Starts what can be started: deliveries whose answers are to be awaited, and messages that
    /// need no delivery.
    pub(crate) fn advance(&mut self, now: Instant) -> (Vec<Awaited>, Vec<(Lane, HandledMessage)>) {
        let (mut awaited, mut handled) = (Vec::new(), Vec::new());
        for lane in Lane::ALL {
            while let Some(step) = self.inboxes.get_mut(lane).inbox.next_step(now) {
                match step {
                    Step::Discard(arrived) => handled.push((lane, discard(lane, *arrived))),
                    Step::Deliver(delivery, batch) => match self.hand_over(lane, delivery, batch) {
                        Ok(delivery) => awaited.push(delivery),
                        Err(error) => {
                            let failed = Report {
                                lane,
                                delivery,
                                result: Err(error),
                            };
                            self.delivered(failed, now);
                        }
                    },
                }
            }
        }
        (awaited, handled)
    }

    /// A delivery ended: returns what is handled now.
    pub(crate) fn delivered(&mut self, report: Report, now: Instant) -> Vec<HandledMessage> {
        let Report {
            lane,
            delivery,
            result,
        } = report;
        let name = self.subscriber(lane).to_owned();
        let (answers, failure) = match result {
            Ok(Handled {
                answers,
                failure: None,
            }) => (answers, None),
            Ok(Handled {
                answers,
                failure: Some(failure),
            }) => (answers, Some(SubscriberError::Failed { name, failure })),
            Err(error) => (Vec::new(), Some(error)),
        };
        self.metrics.record_delivery(
            lane,
            match &failure {
                None => "handled",
                Some(SubscriberError::Absent { .. }) => "absent",
                Some(SubscriberError::Dropped { .. }) => "dropped",
                Some(SubscriberError::Failed { .. }) => "failed",
            },
        );
        let lanes = self.inboxes.get_mut(lane);
        let arrived = lanes
            .inbox
            .delivered(delivery, answers.len(), failure.is_some(), now);
        if failure.is_none() {
            lanes.failing_since = None;
        } else {
            lanes.failing_since.get_or_insert(now);
        }
        lanes.failure = failure;
        arrived
            .into_iter()
            .zip(answers)
            .map(|(arrived, answer)| self.handled(lane, arrived, answer))
            .collect()
    }

    /// When [`advance`](Self::advance) is worth calling again, if time alone decides it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.inboxes
            .iter()
            .filter_map(|(_, lanes)| lanes.inbox.deadline())
            .min()
    }

    /// Why the lane's subscriber does not take messages, if it does not.
    pub(crate) fn blocked(&self, lane: Lane, now: Instant) -> Option<String> {
        let lanes = self.inboxes.get(lane);
        let since = lanes.failing_since.or(lanes.inbox.outstanding_since());
        let blocked = since
            .map(|since| now.duration_since(since))
            .unwrap_or_default();
        self.metrics.set_delivery_blocked(lane, blocked);
        match &lanes.failure {
            Some(failure) => Some(failure.to_string()),
            None if blocked >= SLOW_AFTER => Some(format!(
                "`{}` has not answered for {} s",
                self.subscriber(lane),
                blocked.as_secs()
            )),
            None => None,
        }
    }

    fn subscriber(&self, lane: Lane) -> &str {
        match lane {
            Lane::Signing | Lane::Pegin => self.subscribers.bridge.name(),
            Lane::Federation | Lane::Proposal => self.subscribers.chain.name(),
        }
    }

    fn hand_over(
        &self,
        lane: Lane,
        delivery: u64,
        batch: Vec<Arrived>,
    ) -> Result<Awaited, SubscriberError> {
        let (reply, answer) = oneshot::channel();
        let name = match lane {
            Lane::Signing | Lane::Pegin => hand_over(
                &self.subscribers.bridge,
                lane,
                batch,
                |message| self.bridge_event(message),
                reply.into(),
            ),
            Lane::Federation | Lane::Proposal => hand_over(
                &self.subscribers.chain,
                lane,
                batch,
                chain_event,
                reply.into(),
            ),
        }?;
        Ok(Awaited {
            lane,
            delivery,
            name,
            answer,
        })
    }

    fn bridge_event(&self, message: Inbound) -> Option<BridgeEvent> {
        match message {
            Inbound::SignatureResponse(response) => {
                let late = self.late.contains(&response.request_id);
                Some(BridgeEvent::SignatureResponse { response, late })
            }
            Inbound::PeginAck(ack) => Some(BridgeEvent::PeginAck(ack)),
            Inbound::FederationUpdate(_) | Inbound::ProposalNotification(_) => None,
        }
    }

    /// What a message that its subscriber took amounts to.
    fn handled(&mut self, lane: Lane, arrived: Arrived, answer: Option<Answer>) -> HandledMessage {
        let meaning = arrived
            .content
            .as_ref()
            .map_or(Meaning::Nothing, Meaning::of);
        if let Meaning::Outcome { request_id, .. } = &meaning {
            self.late.remove(request_id);
        }
        let answer = match answer_of(lane, answer) {
            (_, Some(reason)) => return rejected(lane, arrived, reason),
            (answer, None) => answer,
        };
        HandledMessage {
            sequence: arrived.sequence,
            message_id: arrived.message_id,
            meaning,
            answer,
            dead_letter: None,
            trace: arrived.trace,
        }
    }
}

/// What a subscriber's answer is on the wire, or why the message is of no use.
pub(super) fn answer_of(lane: Lane, answer: Option<Answer>) -> (Option<Outbound>, Option<String>) {
    let answer = match answer {
        None => None,
        Some(Answer::FederationUpdate(ack)) => Some(Outbound::FederationUpdateAck(ack)),
        Some(Answer::Proposal(ack)) => Some(Outbound::ProposalAck(ack)),
        Some(Answer::Reject { reason }) => return (None, Some(reason)),
    };
    // An answer of another lane is a subscriber's mistake; governance would not expect it.
    (answer.filter(|answer| answer.lane() == lane), None)
}

pub(super) fn chain_event(message: Inbound) -> Option<ChainEvent> {
    match message {
        Inbound::FederationUpdate(update) => Some(ChainEvent::FederationUpdate(update)),
        Inbound::ProposalNotification(proposal) => Some(ChainEvent::Proposal(proposal)),
        Inbound::SignatureResponse(_) | Inbound::PeginAck(_) => None,
    }
}

fn hand_over<E: Send + 'static>(
    subscriber: &Subscriber<E>,
    lane: Lane,
    batch: Vec<Arrived>,
    event: impl Fn(Inbound) -> Option<E>,
    reply: RpcReplyPort<Handled>,
) -> Result<String, SubscriberError> {
    // Every message of a lane has that lane's event: decoding has checked its kind.
    let messages = batch.into_iter().filter_map(|arrived| {
        Some(Delivered {
            lane,
            sequence: arrived.sequence,
            message_id: arrived.message_id,
            occurrence_id: arrived.occurrence_id?,
            redelivered: arrived.redelivered,
            trace: arrived.trace.to_context(),
            event: event(arrived.content.ok()?)?,
        })
    });
    subscriber.hand_over(Delivery {
        messages: messages.collect(),
        reply,
    })?;
    Ok(subscriber.name().to_owned())
}

/// A message that did not convert.
fn discard(lane: Lane, arrived: Arrived) -> HandledMessage {
    let reason = match &arrived.content {
        Err(invalid) => invalid.to_string(),
        Ok(_) => InvalidMessage::new("kind", arrived.kind, "of this lane").to_string(),
    };
    rejected(lane, arrived, reason)
}

/// Kept as a dead letter, and governance is told.
fn rejected(lane: Lane, arrived: Arrived, reason: String) -> HandledMessage {
    let request_id = wire::request_id_of(arrived.kind, &arrived.payload);
    let reject = Reject {
        sequence: arrived.sequence,
        request_id: request_id.clone(),
        reason: reason.clone(),
    };
    let meaning = request_id.map_or(Meaning::Nothing, |request_id| Meaning::Unusable {
        request_id,
        reason: format!("governance's answer could not be used: {reason}"),
    });
    HandledMessage {
        sequence: arrived.sequence,
        message_id: arrived.message_id,
        meaning,
        answer: Some(Outbound::Reject(lane, reject)),
        dead_letter: Some(DeadLetter {
            lane,
            sequence: arrived.sequence,
            message_id: arrived.message_id,
            occurrence_id: arrived.occurrence_id,
            kind: arrived.kind,
            payload: arrived.payload,
            reason,
            at: std::time::SystemTime::now(),
        }),
        trace: arrived.trace,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// S7: ten bytes in a frame of a mebibyte keep ten bytes in memory.
    #[test]
    fn a_payload_does_not_keep_its_frame_in_memory() {
        let message = |sequence, payload: Vec<u8>| proto::SequencedMessage {
            lane: proto::Lane::Pegin.into(),
            sequence,
            message_id: MessageId::generate().to_bytes().to_vec().into(),
            occurrence_id: OccurrenceId::generate().to_bytes().to_vec().into(),
            kind: proto::Kind::PeginAck.into(),
            payload: payload.into(),
            ..Default::default()
        };
        let frame = proto::StreamResponse {
            messages: vec![message(1, vec![0xff; 10]), message(2, vec![0xff; 1 << 20])],
            ..Default::default()
        };
        let frame = Bytes::from(frame.encode_to_vec());
        let addresses = frame.as_ptr_range();
        let decoded = proto::StreamResponse::decode(frame).expect("decodes");
        let first = decoded.messages.into_iter().next().expect("two");
        assert!(
            addresses.contains(&first.payload.as_ptr()),
            "it came as a slice"
        );
        let subscribers = Subscribers {
            bridge: Subscriber::named::<crate::bridge::BridgeMessage>("nobody"),
            chain: Subscriber::named::<crate::chain::ChainMessage>("nobody"),
        };
        let window = WindowConfig {
            messages: 8,
            bytes: 4 << 20,
        };
        let mut router = Router::new(subscribers, window, Metrics::default(), |_| (0, None));
        router.accept(first).expect("in order");
        let Some(Step::Discard(arrived)) = router
            .inboxes
            .get_mut(Lane::Pegin)
            .inbox
            .next_step(Instant::now())
        else {
            panic!("it cannot be used");
        };
        assert_eq!(arrived.payload.as_ref(), [0xff; 10]);
        assert!(!addresses.contains(&arrived.payload.as_ptr()));
    }
}
