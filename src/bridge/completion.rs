//! Telling the node's chain that a burn is paid.

use std::{fmt, sync::Arc};

use bitcoin::Txid;
use ractor::{ActorRef, RpcReplyPort};

use super::life::Place;
use crate::{
    message::{BurnId, RequestId},
    routing::SubscriberError,
};

/// A peg-out whose transaction is as deep as it has to be: its burns are paid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PegoutCompleted {
    /// Names it: told again, it is the same.
    pub request_id: RequestId,
    /// The burns that it paid.
    pub burns: Vec<BurnId>,
    /// With this transaction.
    pub txid: Txid,
    /// In this block.
    pub place: Place,
}

/// A completed peg-out on its way. It comes again until it is answered with `Ok`, which means that
/// it is durable there.
#[derive(Debug)]
pub struct CompletionNotice {
    /// What is told.
    pub completed: PegoutCompleted,
    /// `Err` says why it could not be noted now.
    pub reply: RpcReplyPort<Result<(), String>>,
}

type HandOver = dyn Fn(&str, CompletionNotice) -> Result<(), SubscriberError> + Send + Sync;

/// Who is told, found by name each time, so that one its owner restarted is found again.
#[derive(Clone)]
pub struct CompletionSubscriber {
    name: String,
    hand_over: Arc<HandOver>,
}

impl CompletionSubscriber {
    /// An actor registered under `name` whose message type is `M`.
    pub fn named<M>(name: impl Into<String>) -> Self
    where
        M: ractor::Message + From<CompletionNotice>,
    {
        Self {
            name: name.into(),
            hand_over: Arc::new(|name, notice| {
                let absent = || SubscriberError::Absent {
                    name: name.to_owned(),
                    message: std::any::type_name::<M>(),
                };
                let actor = ActorRef::<M>::where_is(name).ok_or_else(absent)?;
                actor.cast(M::from(notice)).map_err(|_| absent())
            }),
        }
    }

    pub(super) fn hand_over(&self, notice: CompletionNotice) -> Result<(), SubscriberError> {
        (self.hand_over)(&self.name, notice)
    }
}

impl fmt::Debug for CompletionSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionSubscriber")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
