//! What governance recalls to a restored store, on its way to the subscribers: outside the lanes, in
//! the order in which it was recalled, each of it until its subscriber has it.

use std::time::Duration;

use ractor::RpcReplyPort;
use tokio::sync::oneshot;

use super::{
    BridgeEvent, ChainEvent, Delivered, Delivery, Handled, Subscriber, SubscriberError,
    router::{Subscribers, answer_of, chain_event},
};
use crate::{
    buffer::{HandledMessage, Meaning, dead_letter, refused},
    message::{Inbound, Lane, MessageId, OccurrenceId, Outbound, Recalled, RequestId, wire},
    telemetry::TraceContext,
};

/// Most messages in one delivery.
const MAX_BATCH: usize = 256;
/// Pause before a subscriber that is absent or fails is tried again; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A recalled message under its name.
#[derive(Debug, Clone)]
struct Named<E> {
    lane: Lane,
    occurrence_id: OccurrenceId,
    event: E,
    /// What it means once its subscriber has it.
    meaning: Meaning,
    /// The request that it is about, if it is about one.
    request_id: Option<RequestId>,
    /// As on the wire, should it be of no use.
    kind: i32,
    payload: prost::bytes::Bytes,
}

/// Whose it is.
enum Addressed {
    Bridge(Named<BridgeEvent>),
    Chain(Named<ChainEvent>),
    Nobody,
}

/// What is in the way, for the status: the lane, and why.
pub(crate) type Blocked<'a> = &'a (dyn Fn(Lane, Option<String>) + Send + Sync);

impl Subscribers {
    /// Hands a page to its subscribers. Ends when they have all of it: what is absent or fails is
    /// tried again for as long as this is polled.
    pub(crate) async fn hand_on(
        &self,
        page: Vec<Recalled>,
        blocked: Blocked<'_>,
    ) -> Vec<HandledMessage> {
        let mut handled = Vec::new();
        let (mut to_bridge, mut to_chain) = (Vec::new(), Vec::new());
        for entry in page {
            match addressed(entry) {
                Addressed::Bridge(message) => {
                    handled.extend(deliver(&self.chain, &mut to_chain, blocked).await);
                    to_bridge.push(message);
                }
                Addressed::Chain(message) => {
                    handled.extend(deliver(&self.bridge, &mut to_bridge, blocked).await);
                    to_chain.push(message);
                }
                Addressed::Nobody => {}
            }
        }
        handled.extend(deliver(&self.chain, &mut to_chain, blocked).await);
        handled.extend(deliver(&self.bridge, &mut to_bridge, blocked).await);
        handled
    }
}

fn addressed(entry: Recalled) -> Addressed {
    match entry {
        Recalled::Request(request) => {
            let Some(sent) = &request.request else {
                // Nothing is known of it but that it never will be signed.
                return Addressed::Nobody;
            };
            let (kind, payload) = wire::encode(&Outbound::SignatureRequest(Box::new(sent.clone())));
            Addressed::Bridge(Named {
                lane: Lane::Signing,
                occurrence_id: OccurrenceId::of_request(&request.request_id),
                request_id: Some(request.request_id.clone()),
                event: BridgeEvent::RequestRecalled(request),
                meaning: Meaning::Nothing,
                kind: kind.into(),
                payload,
            })
        }
        Recalled::Result {
            occurrence_id,
            result,
            kind,
            payload,
        } => {
            let named = Named {
                lane: result.lane(),
                occurrence_id,
                event: (),
                meaning: Meaning::of(&result),
                request_id: wire::request_id_of(kind, &payload),
                kind,
                payload,
            };
            match result {
                Inbound::SignatureResponse(response) => {
                    let late = true;
                    Addressed::Bridge(named.with(BridgeEvent::SignatureResponse { response, late }))
                }
                Inbound::PeginAck(ack) => Addressed::Bridge(named.with(BridgeEvent::PeginAck(ack))),
                content => match chain_event(content) {
                    Some(event) => Addressed::Chain(named.with(event)),
                    None => Addressed::Nobody,
                },
            }
        }
        Recalled::Pegin(_) | Recalled::Unusable { .. } => Addressed::Nobody,
    }
}

/// Delivers until nothing is left.
async fn deliver<E: Clone + Send + 'static>(
    subscriber: &Subscriber<E>,
    waiting: &mut Vec<Named<E>>,
    blocked: Blocked<'_>,
) -> Vec<HandledMessage> {
    let mut handled = Vec::new();
    let mut pause = FIRST_PAUSE;
    while let Some(first) = waiting.first() {
        let lane = first.lane;
        let batch = waiting.iter().take_while(|message| message.lane == lane);
        let batch: Vec<_> = batch.take(MAX_BATCH).map(delivered).collect();
        let most = batch.len();
        let (answers, failure) = match hand_over(subscriber, batch).await {
            Ok(Handled { answers, failure }) => (answers, failure),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let count = answers.len().min(most);
        let taken = waiting.drain(..count).zip(answers);
        handled.extend(taken.map(|(message, answer)| message.handled(answer)));
        if count > 0 {
            pause = FIRST_PAUSE;
        }
        let failed = failure.is_some() || count == 0;
        blocked(lane, failure);
        if failed {
            wait(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
    handled
}

fn delivered<E: Clone>(message: &Named<E>) -> Delivered<E> {
    Delivered {
        lane: message.lane,
        sequence: 0,
        message_id: MessageId::generate(),
        occurrence_id: message.occurrence_id,
        redelivered: true,
        trace: opentelemetry::Context::new(),
        event: message.event.clone(),
    }
}

async fn hand_over<E: Send + 'static>(
    subscriber: &Subscriber<E>,
    messages: Vec<Delivered<E>>,
) -> Result<Handled, SubscriberError> {
    let (reply, answer): (RpcReplyPort<Handled>, _) = {
        let (reply, answer) = oneshot::channel();
        (reply.into(), answer)
    };
    subscriber.hand_over(Delivery { messages, reply })?;
    let name = subscriber.name().to_owned();
    answer.await.map_err(|_| SubscriberError::Dropped { name })
}

impl Named<()> {
    fn with<E>(self, event: E) -> Named<E> {
        let Self {
            lane,
            occurrence_id,
            event: (),
            meaning,
            request_id,
            kind,
            payload,
        } = self;
        Named {
            lane,
            occurrence_id,
            event,
            meaning,
            request_id,
            kind,
            payload,
        }
    }
}

impl<E> Named<E> {
    fn handled(self, answer: Option<super::Answer>) -> HandledMessage {
        let (answer, rejected) = answer_of(self.lane, answer);
        let (meaning, letter) = match rejected {
            None => (self.meaning, None),
            Some(reason) => {
                let meaning = refused(self.request_id, &reason);
                let now = std::time::SystemTime::now();
                let mut letter = dead_letter(self.kind, self.payload, reason, now);
                letter.occurrence_id = Some(self.occurrence_id);
                (meaning, Some(letter))
            }
        };
        HandledMessage {
            sequence: 0,
            message_id: MessageId::generate(),
            meaning,
            answer,
            dead_letter: letter,
            trace: TraceContext::default(),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "paces a delivery's task, not an actor"
)]
async fn wait(pause: Duration) {
    tokio::time::sleep(pause).await;
}
