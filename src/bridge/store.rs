//! What a bridge knows. It outlives the actor, so that a restarted one goes on where it was.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bitcoin::OutPoint;
use tokio::sync::watch;

use super::pegout::{Pegout, PegoutStage};
use crate::{
    chain::{Federation, FederationStanding, Federations},
    message::{PeginStatus, RequestId},
};

/// A bridge's peg-outs, peg-ins and federations. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct BridgeStore {
    known: Arc<Mutex<Known>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pub pegouts: BTreeMap<RequestId, Pegout>,
    pub pegins: BTreeMap<OutPoint, PeginStatus>,
    pub federations: Federations,
}

impl Known {
    pub(super) fn federation(&self, version: u32) -> Option<&(Federation, FederationStanding)> {
        self.federations
            .iter()
            .find(|(federation, _)| federation.version() == version)
    }
}

impl BridgeStore {
    /// A store that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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
}
