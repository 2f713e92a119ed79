//! What the bridge answers without deciding anything, and what it answers when it cannot decide.

use std::sync::Arc;

use tracing::debug;

use super::{
    BridgeState, Phase,
    message::{AskAgain, BridgeMessage},
    pegout::Pegout,
    store, tables, unit,
};
use crate::{message::RequestId, storage::StoreError};

impl BridgeMessage {
    /// Whether it is somebody's who waits for an answer, and may wait until rows are read. Governance
    /// sends a delivery again, and errands are sent again.
    pub(super) const fn may_wait(&self) -> bool {
        !matches!(self, Self::Deliver(_) | Self::Done(_))
    }
}

impl BridgeState {
    /// Answers a question: from what is durable of what is in memory, or from the store.
    pub(super) fn answer(&self, question: BridgeMessage) {
        let view = self.args.store.clone();
        match question {
            BridgeMessage::GetPegoutStatus { request_id, reply } => {
                self.find(request_id, move |found| drop(reply.send(found)));
            }
            BridgeMessage::GetSignatureStatus { request_id, reply } => {
                self.find(request_id, move |found| {
                    let standing = found.map(|pegout| view.signature_standing(pegout.as_deref()?));
                    let _ = reply.send(standing);
                });
            }
            BridgeMessage::ListPegouts {
                before,
                limit,
                reply,
            } => {
                let (Phase::Ready(ready), Ok(permit)) =
                    (&self.phase, Arc::clone(&self.questions).try_acquire_owned())
                else {
                    let _ = reply.send(Err(busy()));
                    return;
                };
                self.user.scan(
                    ready.generation,
                    move |snapshot| store::read_page(snapshot, before, limit),
                    move |page| {
                        let page = page.map(|page| view.with_troubles(page));
                        let _ = reply.send(page.map_err(AskAgain::new));
                        drop(permit);
                    },
                );
            }
            other => refuse(other, &busy()),
        }
    }

    /// Finds a peg-out wherever it is, as it is durable.
    fn find(
        &self,
        request_id: RequestId,
        answer: impl FnOnce(Result<Option<Arc<Pegout>>, AskAgain>) + Send + 'static,
    ) {
        if let Some(pegout) = self.args.store.open_pegout(&request_id) {
            answer(Ok(Some(pegout)));
            return;
        }
        let permit = Arc::clone(&self.questions).try_acquire_owned();
        let (Phase::Ready(ready), Ok(permit)) = (&self.phase, permit) else {
            answer(Err(busy()));
            return;
        };
        let hash = self.args.store.store().hash_key();
        self.user.look_up(
            ready.generation,
            move |snapshot| tables::find_pegout(snapshot, hash, &request_id),
            move |found: Result<_, StoreError>| {
                let found = found.map(|row| row.map(|row: tables::Row| Arc::new(row.pegout)));
                answer(found.map_err(AskAgain::new));
                drop(permit);
            },
        );
    }
}

fn busy() -> AskAgain {
    AskAgain::new("the bridge's store has too much to answer")
}

/// Answers a message that is not dealt with.
pub(super) fn refuse(message: BridgeMessage, reason: &AskAgain) {
    let refused = || reason.clone();
    // Whoever asked may be gone by now.
    match message {
        BridgeMessage::Deliver(delivery) => unit::fail(delivery.reply, reason),
        BridgeMessage::InitiatePegout { reply, .. } => drop(reply.send(Err(refused().into()))),
        BridgeMessage::CancelPegout { reply, .. } => drop(reply.send(Err(refused()))),
        BridgeMessage::GetPegoutStatus { reply, .. } => drop(reply.send(Err(refused()))),
        BridgeMessage::GetSignatureStatus { reply, .. } => drop(reply.send(Err(refused()))),
        BridgeMessage::ListPegouts { reply, .. } => drop(reply.send(Err(refused()))),
        BridgeMessage::SetPaused { reply, .. } => drop(reply.send(Err(refused()))),
        BridgeMessage::UpdateFederations { reply, .. } => drop(reply),
        BridgeMessage::Done(done) => debug!(?done, "an errand is derived again"),
    }
}
