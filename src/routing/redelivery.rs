//! A dead letter, delivered once more at an operator's word.

use ractor::RpcReplyPort;
use tokio::sync::oneshot;

use super::{
    Answer, BridgeEvent, Delivered, Delivery, Handled,
    router::{Subscribers, chain_event},
};
use crate::{
    buffer::{Meaning, record::DeadLetter},
    message::{Inbound, Lane, MessageId, OccurrenceId, wire},
};

impl Subscribers {
    /// Hands a dead letter to its subscriber once more. `Ok` is what it means.
    pub(crate) async fn redeliver(&self, letter: DeadLetter) -> Result<Meaning, String> {
        let DeadLetter {
            lane,
            sequence,
            message_id,
            occurrence_id,
            kind,
            payload,
            ..
        } = letter;
        let content = wire::decode(lane, kind, &payload).map_err(|error| error.to_string())?;
        let meaning = Meaning::of(&content);
        let (reply, answer) = oneshot::channel();
        // One that came without a name goes by its id.
        let occurrence_id = occurrence_id.unwrap_or_else(|| message_id.into());
        let identity = (lane, sequence, message_id, occurrence_id);
        let handed = match content {
            Inbound::SignatureResponse(response) => {
                let late = true;
                let event = BridgeEvent::SignatureResponse { response, late };
                self.bridge.hand_over(alone(identity, event, reply.into()))
            }
            Inbound::PeginAck(ack) => {
                let event = BridgeEvent::PeginAck(ack);
                self.bridge.hand_over(alone(identity, event, reply.into()))
            }
            content => match chain_event(content) {
                Some(event) => self.chain.hand_over(alone(identity, event, reply.into())),
                None => return Err("nobody takes this message".to_owned()),
            },
        };
        handed.map_err(|error| error.to_string())?;
        let handled = answer
            .await
            .map_err(|_| "its subscriber dropped it without a reply".to_owned())?;
        match (handled.failure, handled.answers.into_iter().next()) {
            (Some(failure), _) => Err(failure),
            (None, Some(Some(Answer::Reject { reason }))) => Err(reason),
            (None, Some(_)) => Ok(meaning),
            (None, None) => Err("its subscriber did not handle it".to_owned()),
        }
    }
}

/// A delivery of one message, under the identity that it came with.
fn alone<E>(
    (lane, sequence, message_id, occurrence_id): (Lane, u64, MessageId, OccurrenceId),
    event: E,
    reply: RpcReplyPort<Handled>,
) -> Delivery<E> {
    let message = Delivered {
        lane,
        sequence,
        message_id,
        occurrence_id,
        redelivered: true,
        trace: opentelemetry::Context::new(),
        event,
    };
    Delivery {
        messages: vec![message],
        reply,
    }
}
