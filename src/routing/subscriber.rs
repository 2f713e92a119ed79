//! What the stream gives to the node's actors that take its messages, and what they give back.
//! `crate::testing` (feature `testing`) lists the rules that they keep to, and checks them.

use std::{fmt, sync::Arc};

use opentelemetry::Context;
use ractor::{ActorRef, RpcReplyPort};

use crate::message::{
    FederationUpdate, FederationUpdateAck, Lane, MessageId, OccurrenceId, PeginAck, ProposalAck,
    ProposalNotification, RecalledRequest, SignatureResponse,
};

/// What the bridge is told.
#[derive(Debug, Clone, PartialEq)]
pub enum BridgeEvent {
    /// Signatures for a request, or why there are none.
    SignatureResponse {
        /// What governance says.
        response: SignatureResponse,
        /// Whether it came after the request's local deadline; still to be used.
        late: bool,
    },
    /// A deposit was recorded, or not.
    PeginAck(PeginAck),
    /// Governance has recalled a request of this node to a store that was restored: to be followed
    /// like one that this bridge has made, unless it knows it. Its answers come behind it.
    RequestRecalled(Box<RecalledRequest>),
}

/// What the chain is told.
#[derive(Debug, Clone, PartialEq)]
pub enum ChainEvent {
    /// The federation changes. To be verified, made durable and answered with
    /// [`Answer::FederationUpdate`].
    FederationUpdate(Box<FederationUpdate>),
    /// A proposal to be kept, shown, and answered with [`Answer::Proposal`].
    Proposal(ProposalNotification),
}

/// One message of governance with its identity.
#[derive(Debug, Clone)]
pub struct Delivered<E> {
    /// The lane it came in.
    pub lane: Lane,
    /// Its place in the lane; 0 for what governance recalls to a restored store, which is outside of
    /// the lanes.
    pub sequence: u64,
    /// Its id.
    pub message_id: MessageId,
    /// Names what it tells, and is what a message is known by: after a crash between *handled* and
    /// *recorded* a message comes again, and after a ledger was adopted or a store was restored it
    /// does so under another sequence and id. What was handled under this name is not handled again.
    pub occurrence_id: OccurrenceId,
    /// Whether this sequence may have been delivered before.
    pub redelivered: bool,
    /// The trace that it belongs to: the parent of whatever the subscriber does about it.
    pub trace: Context,
    /// The message.
    pub event: E,
}

/// What a subscriber sends back to governance in the same commit that records the message as
/// handled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// For [`ChainEvent::FederationUpdate`].
    FederationUpdate(FederationUpdateAck),
    /// For [`ChainEvent::Proposal`].
    Proposal(ProposalAck),
    /// The message cannot be used, and never will be: it is kept as a dead letter.
    Reject {
        /// For people.
        reason: String,
    },
}

/// How much of a [`Delivery`] is handled: a prefix of it, each message with its answer.
#[derive(Debug, Default)]
pub struct Handled {
    /// One entry for each handled message, from the first on.
    pub answers: Vec<Option<Answer>>,
    /// Why the message after the prefix was not handled; it will come again.
    pub failure: Option<String>,
}

/// An ordered batch of one lane. One is outstanding per lane; it comes again, from the first
/// message that is not handled, after a failure, a dropped reply port or a crash, never because
/// the subscriber takes its time.
#[derive(Debug)]
pub struct Delivery<E> {
    /// In the lane's order, at least one.
    pub messages: Vec<Delivered<E>>,
    /// Handled means durable at the subscriber.
    pub reply: RpcReplyPort<Handled>,
}

impl<E> Delivery<E> {
    /// Handles each message in order and replies. Stops at the first failure, which is told to
    /// the stream and not lost.
    pub fn handle_each<F>(self, mut handle: F)
    where
        F: FnMut(&Delivered<E>) -> Result<Option<Answer>, String>,
    {
        let mut handled = Handled::default();
        for message in &self.messages {
            match handle(message) {
                Ok(answer) => handled.answers.push(answer),
                Err(failure) => {
                    handled.failure = Some(failure);
                    break;
                }
            }
        }
        // A stream that is gone will deliver again what it did not record.
        let _ = self.reply.send(handled);
    }
}

/// Why a subscriber could not be given a delivery.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscriberError {
    /// No actor of that name and message type is registered.
    #[error("no actor named `{name}` takes {message}; register one, and the lane goes on")]
    Absent {
        /// The name that was looked up.
        name: String,
        /// The message type that was looked up.
        message: &'static str,
    },
    /// It took the delivery and went away without a reply.
    #[error("`{name}` dropped a delivery without a reply (it panicked, stopped or forgot it)")]
    Dropped {
        /// The subscriber.
        name: String,
    },
    /// It refused the message.
    #[error("`{name}` failed: {failure}")]
    Failed {
        /// The subscriber.
        name: String,
        /// Its own words.
        failure: String,
    },
}

/// Finds a subscriber by name at each delivery, so that one its owner restarted under the same
/// name is found again.
pub struct Subscriber<E> {
    name: String,
    hand_over: Arc<HandOver<E>>,
}

type HandOver<E> = dyn Fn(&str, Delivery<E>) -> Result<(), SubscriberError> + Send + Sync;

impl<E: Send + 'static> Subscriber<E> {
    /// A subscriber registered under `name` whose message type is `M`. An actor with messages of
    /// its own implements `From<Delivery<E>>` for them; one without uses `Delivery<E>` itself.
    pub fn named<M>(name: impl Into<String>) -> Self
    where
        M: ractor::Message + From<Delivery<E>>,
    {
        Self {
            name: name.into(),
            hand_over: Arc::new(|name, delivery| {
                let absent = || SubscriberError::Absent {
                    name: name.to_owned(),
                    message: std::any::type_name::<M>(),
                };
                let actor = ActorRef::<M>::where_is(name).ok_or_else(absent)?;
                actor.cast(M::from(delivery)).map_err(|_| absent())
            }),
        }
    }

    /// The registry name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands a delivery to whoever holds the name now.
    ///
    /// # Errors
    ///
    /// [`SubscriberError::Absent`] when nobody does.
    pub(crate) fn hand_over(&self, delivery: Delivery<E>) -> Result<(), SubscriberError> {
        (self.hand_over)(&self.name, delivery)
    }
}

impl<E> Clone for Subscriber<E> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            hand_over: Arc::clone(&self.hand_over),
        }
    }
}

impl<E> fmt::Debug for Subscriber<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
