//! What a bridge knows. It outlives the actor, so that a restarted one goes on where it was, and
//! the process when it is given a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bitcoin::OutPoint;
use tokio::sync::watch;

use super::{
    pegout::{Pegout, PegoutStage},
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
#[derive(Debug, Clone, Default)]
pub struct BridgeStore {
    known: Arc<Mutex<Known>>,
    changed: watch::Sender<u64>,
    file: Option<DurableMap>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pegouts: BTreeMap<RequestId, Pegout>,
    pegins: BTreeMap<OutPoint, PeginStatus>,
    deliveries: BTreeMap<(Lane, u64), HandledDelivery>,
    pub federations: Federations,
    /// Rows that are not in the file yet.
    dirty: BTreeSet<Key>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Pegout(RequestId),
    Pegin(OutPoint),
    Delivery(Lane, u64),
}

impl Key {
    fn name(&self) -> String {
        match self {
            Self::Pegout(request_id) => format!("pegout/{request_id}"),
            Self::Pegin(outpoint) => format!("pegin/{outpoint}"),
            Self::Delivery(lane, sequence) => format!("delivery/{lane}/{sequence:020}"),
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

    /// A peg-out, to change.
    pub(super) fn pegout_mut(&mut self, request_id: &RequestId) -> Option<&mut Pegout> {
        let pegout = self.pegouts.get_mut(request_id)?;
        self.dirty.insert(Key::Pegout(request_id.clone()));
        Some(pegout)
    }

    pub(super) fn add_pegout(&mut self, pegout: Pegout) {
        let request_id = pegout.request_id().clone();
        self.dirty.insert(Key::Pegout(request_id.clone()));
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
            changed: watch::Sender::default(),
            file: Some(file),
        })
    }

    /// Every peg-out, in the order of their ids.
    #[must_use]
    pub fn pegouts(&self) -> Vec<Pegout> {
        self.lock().pegouts.values().cloned().collect()
    }

    /// How far each peg-out has come, in the order of their ids.
    #[must_use]
    pub fn stages(&self) -> Vec<(RequestId, PegoutStage)> {
        let stage = |pegout: &Pegout| (pegout.request_id().clone(), pegout.stage().clone());
        self.lock().pegouts.values().map(stage).collect()
    }

    /// One peg-out.
    #[must_use]
    pub fn pegout(&self, request_id: &RequestId) -> Option<Pegout> {
        self.lock().pegouts.get(request_id).cloned()
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
        let known = self.lock();
        let active = known
            .federations
            .iter()
            .find(|(_, s)| *s == FederationStanding::Active);
        active.map(|(federation, _)| federation.version())
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

    /// Makes every change so far durable. After an error the changes wait for the next call.
    pub(super) async fn commit(&self) -> Result<(), StoreError> {
        let (keys, changes) = {
            let mut known = self.lock();
            let keys = std::mem::take(&mut known.dirty);
            let rows = keys.iter().map(|key| (key.name(), known.row(key)));
            let changes: RowChanges = rows.collect();
            (keys, changes)
        };
        let Some(file) = self.file.clone().filter(|_| !changes.is_empty()) else {
            return Ok(());
        };
        let path = file.clone();
        let written = tokio::task::spawn_blocking(move || file.commit(&changes)).await;
        let written = written.unwrap_or_else(|error| Err(path.damaged("", error)));
        if written.is_err() {
            self.lock().dirty.extend(keys);
        }
        written
    }
}
