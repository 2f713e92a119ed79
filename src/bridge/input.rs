//! What the bridge decides with what is on disk: it waits until that is looked up. Pure.

use bitcoin::OutPoint;
use ractor::RpcReplyPort;
use tracing::Span;

use super::{
    life::LifeEvent,
    memory::Memory,
    message::{AskAgain, CancelAnswer, PegoutRefusal},
    tables::Wanted,
    unit,
};
use crate::{
    message::{RequestId, SignatureRequest},
    routing::{BridgeEvent, Delivery},
};

#[derive(Debug)]
pub(super) enum Input {
    /// Begin a peg-out.
    Begin {
        request: Box<SignatureRequest>,
        span: Span,
        reply: RpcReplyPort<Result<(), PegoutRefusal>>,
    },
    /// End one that the stream is not known to have.
    Cancel {
        request_id: RequestId,
        reply: RpcReplyPort<Result<CancelAnswer, AskAgain>>,
    },
    /// Take what governance sends.
    Deliver(Delivery<BridgeEvent>),
    /// One is completed by this, which overtakes others.
    Complete {
        request_id: RequestId,
        event: LifeEvent,
    },
}

/// Inputs that share one are decided in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Request(RequestId),
    Coin(OutPoint),
}

impl Input {
    /// What it is about.
    pub(super) fn keys(&self, memory: &Memory) -> Vec<Key> {
        let request = |id: &RequestId| Key::Request(id.clone());
        match self {
            Self::Begin { request: begun, .. } => {
                let coins = begun.spends().map(Key::Coin);
                coins.chain([request(begun.request_id())]).collect()
            }
            Self::Cancel { request_id, .. } => vec![request(request_id)],
            Self::Deliver(delivery) => answered(delivery).map(request).collect(),
            Self::Complete { request_id, .. } => {
                let held = memory.get(request_id);
                let coins = held.into_iter().flat_map(|held| held.pegout.coins());
                let coins = coins.map(|(outpoint, _)| Key::Coin(*outpoint));
                coins.chain([request(request_id)]).collect()
            }
        }
    }

    /// What it wants to know that is not in memory.
    pub(super) fn want(&self, memory: &Memory, wanted: &mut Wanted) {
        match self {
            Self::Begin { request, .. } => {
                if !memory.has(request.request_id()) {
                    wanted.ids.insert(request.request_id().clone());
                    let unproven = request.coins().filter(|coin| !coin.proven);
                    let coins = unproven.map(|coin| (coin.outpoint, coin.amount));
                    wanted.coins.extend(coins);
                }
            }
            Self::Cancel { request_id, .. } => {
                if !memory.has(request_id) {
                    wanted.ids.insert(request_id.clone());
                }
            }
            Self::Deliver(delivery) => {
                let absent = answered(delivery).filter(|id| !memory.has(id));
                wanted.ids.extend(absent.cloned());
            }
            Self::Complete { request_id, .. } => {
                if let Some(held) = memory.get(request_id) {
                    let coins = held.pegout.coins().iter();
                    wanted.spent.extend(coins.map(|(outpoint, _)| *outpoint));
                }
            }
        }
    }

    /// Whether someone waits for its answer who could ask for more: not governance, whose
    /// deliveries are one a lane, and not the bridge itself.
    pub(super) const fn is_request(&self) -> bool {
        matches!(self, Self::Begin { .. } | Self::Cancel { .. })
    }

    /// It is not decided. What completes a peg-out is seen again at the next look.
    pub(super) fn refuse(self, reason: &AskAgain) {
        match self {
            Self::Begin { reply, .. } => drop(reply.send(Err(reason.clone().into()))),
            Self::Cancel { reply, .. } => drop(reply.send(Err(reason.clone()))),
            Self::Deliver(delivery) => unit::fail(delivery.reply, reason),
            Self::Complete { .. } => {}
        }
    }
}

/// The requests that a delivery's messages are about.
fn answered(delivery: &Delivery<BridgeEvent>) -> impl Iterator<Item = &RequestId> {
    let messages = delivery.messages.iter();
    messages.filter_map(|message| match &message.event {
        BridgeEvent::SignatureResponse { response, .. } => Some(&response.request_id),
        BridgeEvent::RequestRecalled(recalled) => Some(&recalled.request_id),
        BridgeEvent::PeginAck(_) => None,
    })
}

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.coins.is_empty() && self.spent.is_empty()
    }
}
