//! What one input comes to: rows, what they show once they are durable, and what is done then.

use std::{collections::BTreeSet, sync::Arc};

use ractor::RpcReplyPort;
use tracing::Span;

use super::{
    event::{Pause, PegoutEvent},
    life::Action,
    message::{AskAgain, CancelAnswer, PegoutRefusal},
    pegout::Pegout,
};
use crate::{message::RequestId, routing::Handled, storage::Batch};

/// Is committed whole. Nothing of it is shown, told or acted on before that.
#[derive(Debug, Default)]
pub(super) struct Unit {
    pub batch: Batch,
    /// Peg-outs as the batch has them.
    pub pegouts: Vec<Arc<Pegout>>,
    /// What pauses peg-outs, when that has changed.
    pub pauses: Option<BTreeSet<Pause>>,
    pub effects: Vec<Effect>,
}

/// What is done once what it rests on is durable.
#[derive(Debug)]
pub(super) enum Effect {
    Tell(PegoutEvent),
    /// The trace in which a peg-out was asked for.
    Trace(RequestId, Span),
    Act(RequestId, Action),
    /// Take everything up from where it is.
    TakeUp,
    Reply(Reply),
}

/// An answer that waits for what it says to be durable.
#[derive(Debug)]
pub(super) enum Reply {
    Begun(
        RpcReplyPort<Result<(), PegoutRefusal>>,
        Result<(), PegoutRefusal>,
    ),
    Cancels(RpcReplyPort<Result<CancelAnswer, AskAgain>>, CancelAnswer),
    Paused(RpcReplyPort<Result<(), AskAgain>>),
    Handled(RpcReplyPort<Handled>, Handled),
}

impl Unit {
    pub(super) fn reply(reply: Reply) -> Self {
        Self {
            effects: vec![Effect::Reply(reply)],
            ..Self::default()
        }
    }
}

impl Reply {
    /// Whoever asked may be gone by now; a stream that is gone will deliver again.
    pub(super) fn send(self) {
        match self {
            Self::Begun(reply, verdict) => drop(reply.send(verdict)),
            Self::Cancels(reply, answer) => drop(reply.send(Ok(answer))),
            Self::Paused(reply) => drop(reply.send(Ok(()))),
            Self::Handled(reply, handled) => drop(reply.send(handled)),
        }
    }

    /// Says that it is not known whether it was done.
    pub(super) fn refuse(self, reason: &AskAgain) {
        match self {
            Self::Begun(reply, _) => drop(reply.send(Err(reason.clone().into()))),
            Self::Cancels(reply, _) => drop(reply.send(Err(reason.clone()))),
            Self::Paused(reply) => drop(reply.send(Err(reason.clone()))),
            Self::Handled(reply, _) => fail(reply, reason),
        }
    }
}

/// Has a delivery come again.
pub(super) fn fail(reply: RpcReplyPort<Handled>, reason: &AskAgain) {
    let failed = Handled {
        answers: Vec::new(),
        failure: Some(reason.to_string()),
    };
    let _ = reply.send(failed);
}
