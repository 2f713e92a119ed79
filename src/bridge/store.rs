//! What a bridge shows: of what is in memory, what is durable; of everything else, what is in the
//! store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bitcoin::OutPoint;
use tokio::sync::{RwLock, RwLockReadGuard, broadcast, watch};

use super::{
    event::{FEED, Pause, PausedBy, PegoutEvent},
    pegout::{Pegout, SignatureStanding},
    tables,
};
use crate::{
    chain::{Federation, FederationStanding, Federations},
    message::{Lane, MessageId, PeginStatus, RequestId},
    storage::{Store, StoreError},
};

/// What a bridge has made durable, as others see it. Clones are the same.
///
/// The truth are the rows in the [`Store`]: a bridge that starts reads what is open there. This is a
/// view of them which outlives the actor, so that listeners stay, and so that whoever is still asking
/// the stream for a bridge that has died is seen by the next one.
#[derive(Debug, Clone)]
pub struct BridgeStore {
    store: Store,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shown: Mutex<Shown>,
    changed: watch::Sender<u64>,
    events: broadcast::Sender<PegoutEvent>,
    /// Held for reading by whoever asks the stream for signatures, each time that he does.
    asking: RwLock<()>,
}

#[derive(Debug, Default)]
struct Shown {
    /// Whether a bridge has read its rows, and nothing has befallen the store since.
    loaded: bool,
    pegouts: BTreeMap<RequestId, Arc<Pegout>>,
    pauses: BTreeSet<Pause>,
    /// Told by the chain, and not durable here.
    federations: Arc<Federations>,
}

/// A part of a list of peg-outs, the newest first.
#[derive(Debug, Clone, Default)]
pub struct PegoutPage {
    /// Its peg-outs.
    pub pegouts: Vec<Arc<Pegout>>,
    /// The next page begins before this; nothing when this is the last one.
    pub next: Option<u64>,
}

impl PegoutPage {
    /// Peg-outs of a page at most.
    pub const MOST: usize = 256;
}

impl BridgeStore {
    /// The view of a store's bridge. A process has one of each store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self {
            store,
            shared: Arc::new(Shared {
                shown: Mutex::default(),
                changed: watch::Sender::default(),
                events: broadcast::Sender::new(FEED),
                asking: RwLock::default(),
            }),
        }
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether a bridge has read its rows. Until then, and while the store fails, what is in memory
    /// is as it was last known.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.lock().loaded
    }

    /// Peg-outs that have not come to their end, in the order of their ids; some that just have.
    #[must_use]
    pub fn open_pegouts(&self) -> Vec<Arc<Pegout>> {
        self.lock().pegouts.values().cloned().collect()
    }

    /// One peg-out, wherever it is.
    ///
    /// # Errors
    ///
    /// When it is not in memory, and the store cannot be read.
    pub async fn pegout(&self, request_id: &RequestId) -> Result<Option<Arc<Pegout>>, StoreError> {
        if let Some(pegout) = self.open_pegout(request_id) {
            return Ok(Some(pegout));
        }
        let (hash, request_id) = (self.store.hash_key(), request_id.clone());
        let found = self
            .store
            .view(move |snapshot| tables::find_pegout(snapshot, hash, &request_id))
            .await?;
        Ok(found.map(|row| Arc::new(row.pegout)))
    }

    /// Peg-outs below a number, or from the newest on; [`PegoutPage::MOST`] at most.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn pegouts(
        &self,
        before: Option<u64>,
        limit: usize,
    ) -> Result<PegoutPage, StoreError> {
        let page = self
            .store
            .view(move |snapshot| read_page(snapshot, before, limit))
            .await?;
        Ok(self.with_troubles(page))
    }

    /// What a page's peg-outs say beside what is written down.
    pub(super) fn with_troubles(&self, mut page: PegoutPage) -> PegoutPage {
        let shown = self.lock();
        for pegout in &mut page.pegouts {
            if let Some(open) = shown.pegouts.get(pegout.request_id()) {
                *pegout = Arc::clone(open);
            }
        }
        page
    }

    /// Whose signatures for a peg-out are here; nothing when its federation is not known.
    #[must_use]
    pub fn signature_standing(&self, pegout: &Pegout) -> Option<SignatureStanding> {
        let (shown, version) = (self.lock(), pegout.federation_version());
        let mut federations = shown.federations.iter();
        let (federation, _) =
            federations.find(|(federation, _)| federation.version() == version)?;
        Some(pegout.signature_standing(federation.threshold()))
    }

    /// What governance said of a deposit, once it has.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn pegin(&self, outpoint: &OutPoint) -> Result<Option<PeginStatus>, StoreError> {
        let outpoint = *outpoint;
        self.store
            .view(move |snapshot| tables::find_pegin(snapshot, &outpoint))
            .await
    }

    /// Deposits that governance has answered, those after one or from the first on, in the order of
    /// their txids' bytes.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn pegins(
        &self,
        after: Option<OutPoint>,
        limit: usize,
    ) -> Result<Vec<OutPoint>, StoreError> {
        self.store
            .view(move |snapshot| tables::pegins(snapshot, after, limit))
            .await
    }

    /// The latest deliveries, a few thousand of each lane: the message that brought each of them
    /// first, and how often it came since.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub async fn deliveries(&self) -> Result<Vec<(Lane, u64, MessageId, u64)>, StoreError> {
        let deliveries = self.store.view(tables::deliveries).await?.into_iter();
        let shown = deliveries.map(|((lane, _), d)| (lane, d.sequence, d.message_id, d.times));
        Ok(shown.collect())
    }

    /// The version that peg-outs begin with, once the chain has told.
    #[must_use]
    pub fn active_federation(&self) -> Option<u32> {
        active(&self.lock().federations).map(Federation::version)
    }

    /// Who has stopped peg-outs: everyone who has. Not known before a bridge has read its rows.
    #[must_use]
    pub fn paused_by(&self) -> Vec<PausedBy> {
        let shown = self.lock();
        let pauses = shown.pauses.iter().map(|pause| PausedBy::from(*pause));
        let active = active(&shown.federations).filter(|active| active.is_paused());
        let quorum = active.map(Federation::version);
        let quorum = quorum.map(|version| PausedBy::Governance { version });
        pauses.chain(quorum).collect()
    }

    /// Every step of every peg-out from now on. A listener that is slow misses the oldest ones,
    /// and is told how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PegoutEvent> {
        self.shared.events.subscribe()
    }

    /// Changes whenever anything here does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    pub(super) fn tell(&self, event: PegoutEvent) {
        // Nobody has to listen.
        let _ = self.shared.events.send(event);
    }

    pub(super) fn open_pegout(&self, request_id: &RequestId) -> Option<Arc<Pegout>> {
        self.lock().pegouts.get(request_id).cloned()
    }

    pub(super) fn federations(&self) -> Arc<Federations> {
        Arc::clone(&self.lock().federations)
    }

    pub(super) fn set_federations(&self, federations: Federations) {
        self.change(|shown| shown.federations = Arc::new(federations));
    }

    /// A bridge begins to read its rows: what is shown is what was durable before.
    pub(super) fn set_loading(&self) {
        self.change(|shown| shown.loaded = false);
    }

    /// What a bridge has read.
    pub(super) fn set_loaded<'a>(
        &self,
        pegouts: impl Iterator<Item = &'a Arc<Pegout>>,
        pauses: &BTreeSet<Pause>,
    ) {
        let named = |pegout: &Arc<Pegout>| (pegout.request_id().clone(), Arc::clone(pegout));
        let pegouts = pegouts.map(named).collect();
        self.change(|shown| {
            shown.loaded = true;
            shown.pegouts = pegouts;
            shown.pauses.clone_from(pauses);
        });
    }

    /// What has become durable.
    pub(super) fn show(&self, pegouts: Vec<Arc<Pegout>>, pauses: Option<BTreeSet<Pause>>) {
        if pegouts.is_empty() && pauses.is_none() {
            // Something else has changed: a delivery, a peg-in.
            self.change(|_| ());
            return;
        }
        self.change(|shown| {
            for mut pegout in pegouts {
                let before = shown.pegouts.get(pegout.request_id());
                let before = before.filter(|before| before.stage() == pegout.stage());
                if let Some(trouble) = before.and_then(|before| before.trouble()) {
                    Arc::make_mut(&mut pegout).set_trouble(trouble.to_owned());
                }
                shown.pegouts.insert(pegout.request_id().clone(), pegout);
            }
            shown.pauses = pauses.unwrap_or_else(|| std::mem::take(&mut shown.pauses));
        });
    }

    /// What keeps a peg-out from going on.
    pub(super) fn show_trouble(&self, request_id: &RequestId, trouble: &str) {
        self.change(|shown| {
            if let Some(pegout) = shown.pegouts.get_mut(request_id) {
                Arc::make_mut(pegout).set_trouble(trouble.to_owned());
            }
        });
    }

    /// These are found in the store from now on.
    pub(super) fn let_go(&self, request_ids: &[RequestId]) {
        let mut shown = self.lock();
        for request_id in request_ids {
            shown.pegouts.remove(request_id);
        }
    }

    /// Leave to ask the stream once for a peg-out's signatures. None for one that is cancelled, or
    /// has come to its end, or while the rows are being read: whoever asks is to end then, and is
    /// sent again when there is need.
    pub(super) async fn leave_to_ask(
        &self,
        request_id: &RequestId,
    ) -> Option<RwLockReadGuard<'_, ()>> {
        let leave = self.shared.asking.read().await;
        let shown = self.lock();
        let pegout = shown.pegouts.get(request_id).filter(|_| shown.loaded)?;
        (!pegout.stage().is_cancelled()).then_some(leave)
    }

    /// Waits until nobody is asking any more who had leave to before this call: be it an errand of
    /// a bridge that is dead, or one that a pause has cut off in the middle. Called when it is
    /// durable, and shown, that a peg-out is being cancelled: nobody gets leave after that.
    pub(super) async fn until_nobody_asks(&self) {
        drop(self.shared.asking.write().await);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        // Each change is a few insertions: a panic leaves the rest whole.
        let shown = self.shared.shown.lock();
        shown.unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.lock());
        self.shared.changed.send_modify(|revision| *revision += 1);
    }
}

/// The federation that peg-outs begin with.
fn active(federations: &Federations) -> Option<&Federation> {
    let mut federations = federations.iter();
    let active = federations.find(|(_, standing)| *standing == FederationStanding::Active);
    active.map(|(federation, _)| federation)
}

pub(super) fn read_page(
    snapshot: &dyn crate::storage::Snapshot,
    before: Option<u64>,
    limit: usize,
) -> Result<PegoutPage, StoreError> {
    let limit = limit.clamp(1, PegoutPage::MOST);
    let rows = tables::newest_pegouts(snapshot, before, limit)?;
    let is_full = rows.len() == limit;
    let last = rows.last().map(|row| row.number);
    Ok(PegoutPage {
        pegouts: rows.into_iter().map(|row| Arc::new(row.pegout)).collect(),
        next: last.filter(|last| is_full && *last > 1),
    })
}
