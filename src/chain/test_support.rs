//! What the tests of the chain share: a disk that fails, and governance's updates.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use bitcoin::Network;
use redb::{Database, DatabaseError, StorageBackend};

use super::{Federation, FederationPolicy, Schedule};
use crate::{
    config::FirstFederation,
    durable::{DurableMap, StoreError},
    message::{ChainId, FederationMember, FederationUpdate},
    proto,
    simulator::{FederationView, RotationPlan, Simulator, SimulatorConfig},
};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A disk that holds what was synced, and may or may not hold the rest.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk(Arc<Mutex<DiskState>>);

#[derive(Debug, Default)]
struct DiskState {
    synced: Vec<u8>,
    current: Vec<u8>,
    /// So many writes and syncs succeed; the others fail.
    fails_after: Option<usize>,
}

impl DiskState {
    fn act(&mut self) -> io::Result<()> {
        match &mut self.fails_after {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.0.lock().expect("no panic while it is held")
    }

    /// So many writes and syncs succeed from now on; `None`: all of them.
    pub(super) fn fail_after(&self, operations: Option<usize>) {
        self.lock().fails_after = operations;
    }

    /// The power goes: of each sector that was not synced the disk has the old or the new content,
    /// and of the file the old or the new length.
    pub(super) fn lose_power(&self, mut chance: u64) {
        let mut disk = self.lock();
        let mut new = || {
            // Knuth's generator: any mixture will do.
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            chance >> 63 == 1
        };
        let mut left = disk.synced.clone();
        left.resize(left.len().max(disk.current.len()), 0);
        for (sector, current) in left.chunks_mut(SECTOR).zip(disk.current.chunks(SECTOR)) {
            if new() {
                sector[..current.len()].copy_from_slice(current);
            }
        }
        let length = if new() {
            disk.current.len()
        } else {
            disk.synced.len()
        };
        left.truncate(length);
        (disk.synced, disk.current, disk.fails_after) = (left.clone(), left, None);
    }

    /// Another disk, which holds the same.
    pub(super) fn copy(&self) -> Self {
        let current = self.lock().current.clone();
        Self(Arc::new(Mutex::new(DiskState {
            synced: current.clone(),
            current,
            fails_after: None,
        })))
    }

    pub(super) fn map(&self) -> Result<DurableMap, StoreError> {
        let disk = self.clone();
        let open = move || -> Result<Database, DatabaseError> {
            Database::builder().create_with_backend(disk.clone())
        };
        DurableMap::open_with(Path::new("chain.redb"), open)
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("fits")
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().current.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (disk, at) = (self.lock(), place(offset));
        let data = disk.current.get(at..at + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.act()?;
        disk.current.resize(place(len), 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.act()?;
        disk.synced = disk.current.clone();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut disk, at) = (self.lock(), place(offset));
        disk.act()?;
        disk.current[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

pub(super) const PLAN: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 110,
    notice_blocks: 10,
    grace_blocks: 50,
    kind: proto::FederationUpdateKind::Scheduled,
};

pub(super) async fn governance() -> Simulator {
    let started = Simulator::start(SimulatorConfig::default()).await;
    started.expect("the simulator starts")
}

/// The schedule of a node of this chain that starts with this federation.
pub(super) fn schedule(view: &FederationView, chain: &str) -> Schedule {
    let chain: ChainId = chain.parse().expect("valid");
    let first = FirstFederation {
        threshold: u32::try_from(view.threshold).expect("small"),
        members: view
            .members
            .iter()
            .map(|(id, public_key)| FederationMember {
                id: id.parse().expect("valid"),
                public_key: *public_key,
                active: true,
            })
            .collect(),
    };
    let first = Federation::first(&first, Network::Regtest, &chain).expect("a federation");
    Schedule::new(first, chain, FederationPolicy::default())
}

/// The update that governance would announce next.
pub(super) fn update(simulator: &Simulator, plan: &RotationPlan) -> FederationUpdate {
    let update = simulator.build_update(plan).expect("possible");
    update.try_into().expect("well formed")
}
