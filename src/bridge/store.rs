//! What a bridge knows. It outlives the actor, so that a restarted one goes on where it was, and
//! the process when it is given a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bitcoin::OutPoint;
use tokio::sync::{RwLock, RwLockReadGuard, broadcast, watch};

use super::{
    event::{FEED, PausedBy, PegoutEvent},
    life::{Action, Impossible, LifeEvent, PegoutStage},
    pegout::{Pegout, SignatureStanding},
    stored::{self, HandledDelivery},
};
use crate::{
    chain::{Federation, FederationStanding, Federations},
    durable::{DurableMap, RowChanges, StoreError},
    message::{Lane, MessageId, PeginStatus, RequestId},
    routing::Delivered,
};

/// Deliveries of a lane that are remembered: more than can be on their way again.
const REMEMBERED: usize = 8192;

/// A bridge's peg-outs, peg-ins and federations. Clones are the same store.
#[derive(Debug, Clone)]
pub struct BridgeStore {
    known: Arc<Mutex<Known>>,
    changed: watch::Sender<u64>,
    events: broadcast::Sender<PegoutEvent>,
    file: Option<DurableMap>,
    /// Held for reading by whoever asks the stream for signatures, each time that he does.
    asking: Arc<RwLock<()>>,
}

impl Default for BridgeStore {
    fn default() -> Self {
        Self {
            known: Arc::default(),
            changed: watch::Sender::default(),
            events: broadcast::Sender::new(FEED),
            file: None,
            asking: Arc::default(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pegouts: BTreeMap<RequestId, Pegout>,
    pegins: BTreeMap<OutPoint, PeginStatus>,
    deliveries: BTreeMap<(Lane, u64), HandledDelivery>,
    paused: bool,
    pub federations: Federations,
    /// Rows that are not durable yet.
    dirty: BTreeSet<Key>,
    /// Peg-outs among them as they were last durable: what others see.
    before: BTreeMap<RequestId, Option<Pegout>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Pegout(RequestId),
    Pegin(OutPoint),
    Delivery(Lane, u64),
    Paused,
}

/// What an event has made of a peg-out.
#[derive(Debug)]
pub(super) struct Step {
    /// Its new stage, if it is another one.
    pub stage: Option<PegoutStage>,
    /// What is to be done about it.
    pub action: Option<Action>,
    /// Others that this one's completion has overtaken.
    pub overtaken: Vec<RequestId>,
}

impl Key {
    fn name(&self) -> String {
        match self {
            Self::Pegout(request_id) => format!("pegout/{request_id}"),
            Self::Pegin(outpoint) => format!("pegin/{outpoint}"),
            Self::Delivery(lane, sequence) => format!("delivery/{lane}/{sequence:020}"),
            Self::Paused => "paused/operator".to_owned(),
        }
    }
}

/// What is known of a message that is delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is new.
    New,
    /// It was handled before: why it was rejected then, if it was.
    Handled(Option<String>),
}

impl Known {
    pub(super) fn federation(&self, version: u32) -> Option<&(Federation, FederationStanding)> {
        self.federations
            .iter()
            .find(|(federation, _)| federation.version() == version)
    }

    pub(super) fn pegout(&self, request_id: &RequestId) -> Option<&Pegout> {
        self.pegouts.get(request_id)
    }

    /// Every peg-out that was ever begun.
    pub(super) fn pegouts(&self) -> impl Iterator<Item = &Pegout> {
        self.pegouts.values()
    }

    /// A peg-out, to change.
    pub(super) fn pegout_mut(&mut self, request_id: &RequestId) -> Option<&mut Pegout> {
        self.touch(request_id);
        self.pegouts.get_mut(request_id)
    }

    /// Notes that a peg-out is about to change.
    fn touch(&mut self, request_id: &RequestId) {
        let pegout = self.pegouts.get(request_id);
        let before = self.before.entry(request_id.clone());
        before.or_insert_with(|| pegout.cloned());
        self.dirty.insert(Key::Pegout(request_id.clone()));
    }

    /// A peg-out as it was last durable.
    fn durable(&self, request_id: &RequestId) -> Option<&Pegout> {
        match self.before.get(request_id) {
            Some(before) => before.as_ref(),
            None => self.pegouts.get(request_id),
        }
    }

    /// Every peg-out as it was last durable.
    fn all_durable(&self) -> impl Iterator<Item = &Pegout> {
        self.pegouts.keys().filter_map(|id| self.durable(id))
    }

    /// Takes an event of a peg-out; nothing when it is not known.
    pub(super) fn step(
        &mut self,
        request_id: &RequestId,
        event: LifeEvent,
    ) -> Result<Option<Step>, Impossible> {
        let Some(mut pegout) = self.pegouts.get(request_id).cloned() else {
            return Ok(None);
        };
        let before = pegout.stage().clone();
        let action = pegout.apply(event)?;
        let stage = Some(pegout.stage().clone()).filter(|stage| *stage != before);
        let mut overtaken = Vec::new();
        if stage.is_some() {
            self.touch(request_id);
            self.pegouts.insert(request_id.clone(), pegout.clone());
        }
        if let Some(PegoutStage::Completed { .. }) = stage {
            let spent: BTreeSet<OutPoint> = pegout.request().spends().collect();
            let open = |other: &&Pegout| {
                !matches!(
                    other.stage(),
                    PegoutStage::Completed { .. } | PegoutStage::Superseded { .. }
                )
            };
            let rivals = self.pegouts.values().filter(open);
            overtaken = rivals
                .filter(|other| other.spends_any(&spent))
                .map(|other| other.request_id().clone())
                .collect();
        }
        Ok(Some(Step {
            stage,
            action,
            overtaken,
        }))
    }

    /// What is to be done about every peg-out as it is found.
    pub(super) fn derived(&self) -> Vec<(RequestId, Action)> {
        let pegouts = self.pegouts.iter();
        pegouts
            .filter_map(|(id, pegout)| Some((id.clone(), pegout.derived()?)))
            .collect()
    }

    /// Peg-outs that something outside of the bridge will move on.
    pub(super) fn followed(&self) -> Vec<Pegout> {
        let followed = |pegout: &&Pegout| pegout.derived() == Some(Action::Follow);
        self.pegouts.values().filter(followed).cloned().collect()
    }

    /// Notes what keeps a peg-out from going on; whether that is news.
    pub(super) fn set_trouble(&mut self, request_id: &RequestId, trouble: String) -> bool {
        // It is not written down: a restarted bridge meets it again.
        let pegout = self.pegouts.get_mut(request_id);
        pegout.is_some_and(|pegout| pegout.set_trouble(trouble))
    }

    /// The chain has noted that a peg-out is completed.
    pub(super) fn set_reported(&mut self, request_id: &RequestId) {
        if let Some(pegout) = self.pegout_mut(request_id) {
            pegout.set_reported();
        }
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.dirty.insert(Key::Paused);
    }

    /// The version that peg-outs begin with, once the chain has told.
    pub(super) fn active_federation(&self) -> Option<&Federation> {
        let mut federations = self.federations.iter();
        let active = federations.find(|(_, s)| *s == FederationStanding::Active);
        active.map(|(federation, _)| federation)
    }

    /// Who has stopped peg-outs, if someone has.
    pub(super) fn paused_by(&self) -> Option<PausedBy> {
        if self.paused {
            return Some(PausedBy::Operator);
        }
        let active = self.active_federation()?;
        let version = active.version();
        active
            .is_paused()
            .then_some(PausedBy::Governance { version })
    }

    pub(super) fn add_pegout(&mut self, pegout: Pegout) {
        let request_id = pegout.request_id().clone();
        self.touch(&request_id);
        self.pegouts.insert(request_id, pegout);
    }

    pub(super) fn set_pegin(&mut self, outpoint: OutPoint, status: PeginStatus) {
        self.dirty.insert(Key::Pegin(outpoint));
        self.pegins.insert(outpoint, status);
    }

    /// Whether a message was handled before, under the same identity: then it is counted, and
    /// nothing else is to be done.
    pub(super) fn seen<E>(&mut self, message: &Delivered<E>) -> Seen {
        let (lane, sequence) = (message.lane, message.sequence);
        match self.deliveries.get_mut(&(lane, sequence)) {
            Some(known) if known.message_id == message.message_id => {
                known.times += 1;
                self.dirty.insert(Key::Delivery(lane, sequence));
                Seen::Handled(known.rejected.clone())
            }
            // The place belonged to a ledger that is gone.
            Some(_) | None => Seen::New,
        }
    }

    pub(super) fn handled<E>(&mut self, message: &Delivered<E>, rejected: Option<String>) {
        let (lane, sequence) = (message.lane, message.sequence);
        let handled = HandledDelivery {
            message_id: message.message_id,
            times: 1,
            rejected,
        };
        self.deliveries.insert((lane, sequence), handled);
        self.dirty.insert(Key::Delivery(lane, sequence));
        let of_lane = self.deliveries.range((lane, 0)..=(lane, u64::MAX));
        let oldest = of_lane.map(|(key, _)| *key).next();
        if let Some((lane, oldest)) = oldest
            && oldest + (REMEMBERED as u64) <= sequence
        {
            self.deliveries.remove(&(lane, oldest));
            self.dirty.insert(Key::Delivery(lane, oldest));
        }
    }

    fn row(&self, key: &Key) -> Option<Vec<u8>> {
        match key {
            Key::Pegout(request_id) => self.pegouts.get(request_id).map(stored::write_pegout),
            Key::Pegin(outpoint) => {
                let status = self.pegins.get(outpoint)?;
                Some(stored::write_pegin(outpoint, status))
            }
            Key::Delivery(lane, sequence) => {
                let delivery = self.deliveries.get(&(*lane, *sequence))?;
                Some(stored::write_delivery(delivery))
            }
            Key::Paused => self.paused.then(Vec::new),
        }
    }

    fn read(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        let (sort, key) = name.split_once('/').ok_or("a key without a sort")?;
        match sort {
            "pegout" => {
                let pegout = stored::read_pegout(value)?;
                self.pegouts.insert(pegout.request_id().clone(), pegout);
            }
            "pegin" => {
                let (outpoint, status) = stored::read_pegin(value)?;
                self.pegins.insert(outpoint, status);
            }
            "delivery" => {
                let (lane, sequence) = key.split_once('/').ok_or("a key without a sequence")?;
                let lane = Lane::ALL.into_iter().find(|known| known.name() == lane);
                let sequence = sequence.parse::<u64>().map_err(|error| error.to_string())?;
                let key = (lane.ok_or("an unknown lane")?, sequence);
                self.deliveries.insert(key, stored::read_delivery(value)?);
            }
            "paused" => self.paused = true,
            _ => return Err("an unknown sort".to_owned()),
        }
        Ok(())
    }
}

impl BridgeStore {
    /// A store that knows nothing yet, and lives as long as the process.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store in a file, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// When the file cannot be used, or holds what is none of a bridge's.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let file = DurableMap::open(path.as_ref())?;
        let mut known = Known::default();
        for (name, value) in file.load()? {
            known
                .read(&name, &value)
                .map_err(|reason| file.damaged(&name, reason))?;
        }
        Ok(Self {
            known: Arc::new(Mutex::new(known)),
            file: Some(file),
            ..Self::default()
        })
    }

    /// Every peg-out as it is durable, in the order of their ids.
    #[must_use]
    pub fn pegouts(&self) -> Vec<Pegout> {
        self.lock().all_durable().cloned().collect()
    }

    /// How far each peg-out has come, in the order of their ids.
    #[must_use]
    pub fn stages(&self) -> Vec<(RequestId, PegoutStage)> {
        let stage = |pegout: &Pegout| (pegout.request_id().clone(), pegout.stage().clone());
        self.lock().all_durable().map(stage).collect()
    }

    /// One peg-out, as it is durable.
    #[must_use]
    pub fn pegout(&self, request_id: &RequestId) -> Option<Pegout> {
        self.lock().durable(request_id).cloned()
    }

    /// One peg-out, with what is not durable yet.
    pub(super) fn latest(&self, request_id: &RequestId) -> Option<Pegout> {
        self.lock().pegouts.get(request_id).cloned()
    }

    /// Leave to ask the stream once for a peg-out's signatures; nothing when it is cancelled.
    pub(super) async fn leave_to_ask(
        &self,
        request_id: &RequestId,
    ) -> Option<RwLockReadGuard<'_, ()>> {
        let leave = self.asking.read().await;
        let pegout = self.latest(request_id)?;
        (!pegout.stage().is_cancelled()).then_some(leave)
    }

    /// Waits until nobody is asking any more who had leave to before this call: be it an errand of
    /// a bridge that is dead, or one that a pause has cut off in the middle.
    pub(super) async fn until_nobody_asks(&self) {
        drop(self.asking.write().await);
    }

    /// Whose signatures for a peg-out are here; nothing when it, or its federation, is not known.
    #[must_use]
    pub fn signature_standing(&self, request_id: &RequestId) -> Option<SignatureStanding> {
        let known = self.lock();
        let pegout = known.durable(request_id)?;
        let (federation, _) = known.federation(pegout.request().federation_version())?;
        Some(pegout.signature_standing(federation.threshold()))
    }

    /// What governance said of a deposit, once it has.
    #[must_use]
    pub fn pegin(&self, outpoint: &OutPoint) -> Option<PeginStatus> {
        self.lock().pegins.get(outpoint).cloned()
    }

    /// Deposits that governance has answered.
    #[must_use]
    pub fn pegins(&self) -> Vec<OutPoint> {
        self.lock().pegins.keys().copied().collect()
    }

    /// The latest deliveries: their identity, and how often each of them came.
    #[must_use]
    pub fn deliveries(&self) -> Vec<(Lane, u64, MessageId, u64)> {
        let known = self.lock();
        let deliveries = known.deliveries.iter();
        deliveries
            .map(|((lane, sequence), known)| (*lane, *sequence, known.message_id, known.times))
            .collect()
    }

    /// The version that peg-outs begin with, once the chain has told.
    #[must_use]
    pub fn active_federation(&self) -> Option<u32> {
        self.lock().active_federation().map(Federation::version)
    }

    /// Who has stopped peg-outs, if someone has.
    #[must_use]
    pub fn paused_by(&self) -> Option<PausedBy> {
        self.lock().paused_by()
    }

    /// Every step of every peg-out from now on. A listener that is slow misses the oldest ones,
    /// and is told how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PegoutEvent> {
        self.events.subscribe()
    }

    pub(super) fn tell(&self, event: PegoutEvent) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    /// Changes whenever anything here does.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is a single insertion or a call on one peg-out: a panic leaves the rest
        // whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|revision| *revision += 1);
        result
    }

    /// Makes every change so far durable, and visible. After an error the changes wait for the next
    /// call.
    pub(super) async fn commit(&self) -> Result<(), StoreError> {
        let (keys, changes) = {
            let mut known = self.lock();
            let keys = std::mem::take(&mut known.dirty);
            let rows = keys.iter().map(|key| (key.name(), known.row(key)));
            let changes: RowChanges = rows.collect();
            (keys, changes)
        };
        if changes.is_empty() {
            return Ok(());
        }
        if let Some(file) = self.file.clone() {
            let path = file.clone();
            let written = tokio::task::spawn_blocking(move || file.commit(&changes)).await;
            let written = written.unwrap_or_else(|error| Err(path.damaged("", error)));
            if written.is_err() {
                self.lock().dirty.extend(keys);
                return written;
            }
        }
        // The one actor that changes anything has waited here.
        self.change(|known| known.before.clear());
        Ok(())
    }
}
