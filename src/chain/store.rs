//! What a chain knows. It outlives the actor, and the process when its store does.
//!
//! Nothing is in force before it is durable: a change is made on a copy and handed in, and takes the
//! place of what was known when the store says that it is durable. Changes that come meanwhile are
//! made on that copy. A change that was begun is carried through, whatever becomes of whoever began
//! it: the chain's registration with the store is here, and not the actor's.

use std::{fmt, sync::Arc, time::SystemTime};

use tokio::sync::{oneshot, watch};

use super::{
    Federations,
    driver::Shared,
    event::NumberedEvent,
    fault::{FederationFault, Refusal},
    federation::Federation,
    height::{HeightError, HeightReport},
    known::{Draft, Known},
    payment_rows::{PaymentPage, PaymentRows},
    payments::{NotNoted, Noted, NumberedPayment},
    proposals::Proposal,
    schedule::{Schedule, Scheduling},
    staging::Phase,
};
use crate::{
    bridge::PegoutCompleted,
    message::{BurnId, FederationUpdate},
    storage::{Store, StoreError},
};

/// What a chain knows. Clones are the same.
///
/// In memory are the versions of the federation, the height, open proposals and the last events;
/// payments are on disk, and looked up there.
#[derive(Clone)]
pub struct ChainStore(Arc<Shared>);

impl fmt::Debug for ChainStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainStore")
            .field("phase", self.0.lock().staging.phase())
            .finish_non_exhaustive()
    }
}

impl ChainStore {
    /// The chain of this store, which it is a user of, and what is durable of it. `schedule` holds
    /// the configured first federation: every later one is verified against it again. Waits while
    /// the store is being opened again.
    ///
    /// # Errors
    ///
    /// When what there is cannot be read, or does not follow the configured first federation, or
    /// another chain takes this one's place.
    pub async fn open(store: &Store, schedule: Schedule) -> Result<Self, StoreError> {
        let shared = Shared::register(store, schedule);
        let mut changed = shared.changed.subscribe();
        loop {
            match shared.lock().staging.phase() {
                Phase::Open(_) => break,
                Phase::Unreadable(_, fault) => return Err(fault.clone()),
                Phase::Replaced => return Err(StoreError::Ended),
                Phase::Closed(_) | Phase::Loading(..) => {}
            }
            // `shared` holds the sender.
            let _ = changed.changed().await;
        }
        Ok(Self(shared))
    }

    /// Every version with its standing, the first one first.
    #[must_use]
    pub fn federations(&self) -> Federations {
        self.known().federations()
    }

    /// The version that signs now.
    #[must_use]
    pub fn active(&self) -> Federation {
        self.known().schedule.active().clone()
    }

    /// The version with the highest number, active or not: what this node lacks comes after it.
    #[must_use]
    pub fn latest_version(&self) -> Federation {
        self.known().schedule.latest().clone()
    }

    /// The sidechain's best height, as far as it was reported.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.known().schedule.height()
    }

    /// Every proposal, whose vote ends first the first.
    #[must_use]
    pub fn proposals(&self) -> Vec<Proposal> {
        self.known().proposals.list(SystemTime::now())
    }

    /// What happened after the event of this number, the oldest first; everything that is kept
    /// after 0.
    #[must_use]
    pub fn events_after(&self, number: u64) -> Vec<NumberedEvent> {
        self.known().events.after(number).cloned().collect()
    }

    /// The last update that was not followed.
    #[must_use]
    pub fn last_refusal(&self) -> Option<Refusal> {
        self.known().refusal.clone()
    }

    /// Changes whenever anything here does: then [`events_after`](Self::events_after) may have more.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Whether another chain has taken this one's place at the store: then this one is over, and
    /// takes nothing any more.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        *self.0.lock().staging.phase() == Phase::Replaced
    }

    /// Why nothing is taken now, if it is so: what is in force stays so meanwhile.
    #[must_use]
    pub fn fault(&self) -> Option<StoreError> {
        let state = self.0.lock();
        let is_open = state.staging.open_in().is_some();
        (!is_open).then(|| state.staging.refusal())
    }

    /// Completed peg-outs that the bridge has told, a page of them.
    ///
    /// # Errors
    ///
    /// When the store is closed, or they cannot be read.
    pub async fn payments(&self, page: PaymentPage) -> Result<Vec<NumberedPayment>, StoreError> {
        self.read(true, move |rows| rows.page(page)).await
    }

    /// The completed peg-out that paid this burn; the first one, should there be more.
    ///
    /// # Errors
    ///
    /// As [`payments`](Self::payments).
    pub async fn payment_of(&self, burn: &BurnId) -> Result<Option<PegoutCompleted>, StoreError> {
        let payments = self.payments_of(burn).await?;
        Ok(payments.into_iter().next().map(|found| found.payment))
    }

    /// Every completed peg-out that paid this burn, the first one first. More than one must never
    /// be.
    ///
    /// # Errors
    ///
    /// As [`payments`](Self::payments).
    pub async fn payments_of(&self, burn: &BurnId) -> Result<Vec<NumberedPayment>, StoreError> {
        let burn = *burn;
        self.read(false, move |rows| rows.of_burn(&burn)).await
    }

    /// Verifies an update and schedules it; the same one again is fine. For a chain actor of the
    /// node's own: this crate's is told by message. Once it was called, what becomes of the future
    /// does not matter to the change.
    ///
    /// `present_since` is the height since which the node has been there to take an update without
    /// a break. One that was due before may come late; 0 refuses whatever comes late.
    ///
    /// # Errors
    ///
    /// When it is not known to be durable, and not in force: ask again. The inner error is why it is
    /// not followed.
    pub async fn follow(
        &self,
        update: FederationUpdate,
        present_since: u64,
    ) -> Result<Result<Scheduling, FederationFault>, StoreError> {
        self.changed(move |draft| draft.follow(&update, present_since))
            .await
    }

    /// Takes the sidechain's height, and what it makes active or undoes. For a chain actor of the
    /// node's own: this crate's is told by message.
    ///
    /// # Errors
    ///
    /// When it is lower without a reorganisation, or is not known to be durable, and not in force.
    pub async fn report_height(&self, report: HeightReport) -> Result<(), HeightError> {
        self.changed(move |draft| draft.report_height(report))
            .await?
    }

    /// Notes a completed peg-out; the same one again is fine. For a chain actor of the node's own:
    /// this crate's is told by message.
    ///
    /// # Errors
    ///
    /// When another one was noted under its id, or it is not known to be durable: tell it again.
    pub async fn note_completed(&self, completed: PegoutCompleted) -> Result<Noted, NotNoted> {
        let (tell, told) = oneshot::channel();
        self.note(completed, move |noted| {
            // Nobody waits for it any more.
            let _ = tell.send(noted);
        });
        told.await
            .unwrap_or(Err(NotNoted::Store(StoreError::Ended)))
    }

    async fn changed<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> T,
    ) -> Result<T, StoreError> {
        let (tell, told) = oneshot::channel();
        self.change(change, move |changed| {
            // Nobody waits for it any more.
            let _ = tell.send(changed);
        });
        told.await.unwrap_or(Err(StoreError::Ended))
    }

    /// Changes what is known, durably or not at all. `answer` is told once it is in force, on the
    /// store's thread, or at once when nothing has to be waited for; it must not wait.
    pub(super) fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Draft) -> T,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        self.0.change(change, answer);
    }

    /// Notes a completed peg-out; `answer` as with [`change`](Self::change).
    pub(super) fn note(
        &self,
        completed: PegoutCompleted,
        answer: impl FnOnce(Result<Noted, NotNoted>) + Send + 'static,
    ) {
        let told = {
            let mut state = self.0.lock();
            let told = state.note(completed, Box::new(answer));
            state.proceed(&Arc::downgrade(&self.0));
            told
        };
        told.tell();
    }

    /// Reads payments on the store's threads.
    async fn read<T: Send + 'static>(
        &self,
        long: bool,
        read: impl FnOnce(PaymentRows<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (tell, told) = oneshot::channel();
        {
            let state = self.0.lock();
            let generation = state.staging.readable_in()?;
            state.read(generation, long, read, move |result| {
                // Nobody waits for it any more.
                let _ = tell.send(result);
            });
        }
        told.await.unwrap_or(Err(StoreError::Ended))
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(self.0.lock().staging.known())
    }

    /// Completed peg-outs that are in memory.
    #[cfg(test)]
    pub(super) fn payments_in_memory(&self) -> usize {
        self.0.lock().staging.payments().in_memory()
    }
}

#[cfg(test)]
#[cfg(feature = "simulator")]
#[path = "store_tests.rs"]
mod tests;
