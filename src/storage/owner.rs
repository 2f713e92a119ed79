//! Whose store it is: written when it is made, compared each time that it is opened.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::hex::DisplayHex as _;
use prost::Message;
use uuid::Uuid;

use super::{
    batch::{Batch, Table},
    engine::Snapshot,
    error::StoreError,
    index::HashKey,
};
use crate::config::NodeConfig;

/// The format that this version writes. Earlier ones are brought to it when a store is opened.
pub const FORMAT: u32 = 1;

/// What the store keeps of itself.
pub(super) const META: Table = Table::new("store/meta");
const FORMAT_KEY: &[u8] = b"format";
const IDENTITY_KEY: &[u8] = b"identity";
const RESTORED_KEY: &[u8] = b"restored";

/// The node that a store belongs to. A store that belongs to another one is never used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its name in the federation.
    pub node_id: String,
    /// Its sidechain.
    pub chain_id: String,
    /// Its Bitcoin network.
    pub network: String,
    /// Digest of the first federation of its configuration, in hex; `None` for a node that does
    /// not use this crate's chain, and then it is not compared.
    pub first_federation: Option<String>,
}

impl Owner {
    /// The owner that a node's configuration describes.
    #[must_use]
    pub fn of(node: &NodeConfig) -> Self {
        Self {
            node_id: node.node_id.to_string(),
            chain_id: node.chain_id.to_string(),
            network: node.network.to_string(),
            first_federation: None,
        }
    }

    /// The first thing in which `expected` is another one: what, of this one, of that one.
    pub(super) fn difference(&self, expected: &Self) -> Option<(&'static str, String, String)> {
        let pairs = [
            ("node", &self.node_id, &expected.node_id),
            ("chain", &self.chain_id, &expected.chain_id),
            ("network", &self.network, &expected.network),
        ];
        let federations = self
            .first_federation
            .as_ref()
            .zip(expected.first_federation.as_ref())
            .map(|(found, expected)| ("first federation", found, expected));
        pairs
            .into_iter()
            .chain(federations)
            .find(|(_, found, expected)| found != expected)
            .map(|(what, found, expected)| (what, found.clone(), expected.clone()))
    }

    /// As this, with the first federation of its chain.
    #[must_use]
    pub fn with_first_federation(self, digest: &[u8]) -> Self {
        Self {
            first_federation: Some(digest.to_lower_hex_string()),
            ..self
        }
    }
}

/// What names one store, from its making on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreIdentity {
    /// Random; a restored store keeps it.
    pub store_id: Uuid,
    /// Whose it is.
    pub owner: Owner,
    /// When it was made.
    pub created_at: SystemTime,
    pub(super) hash_key: HashKey,
    hash_bytes: [u8; 16],
}

/// That a store was made from a backup: what was committed after it is lost. Its users each do
/// what follows from that, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Names this restore: a user that has dealt with it remembers it by this.
    pub restore_id: Uuid,
    /// The backup's last commit.
    pub backup_commit: u64,
    /// When the backup was made.
    pub backup_at: SystemTime,
    /// When it was restored.
    pub restored_at: SystemTime,
}

#[derive(Clone, PartialEq, Message)]
struct StoredIdentity {
    #[prost(bytes = "vec", tag = "1")]
    store_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    hash_key: Vec<u8>,
    #[prost(string, tag = "3")]
    node_id: String,
    #[prost(string, tag = "4")]
    chain_id: String,
    #[prost(string, tag = "5")]
    network: String,
    #[prost(string, optional, tag = "6")]
    first_federation: Option<String>,
    #[prost(uint64, tag = "7")]
    created_unix_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRestored {
    #[prost(bytes = "vec", tag = "1")]
    restore_id: Vec<u8>,
    #[prost(uint64, tag = "2")]
    backup_commit: u64,
    #[prost(uint64, tag = "3")]
    backup_unix_ms: u64,
    #[prost(uint64, tag = "4")]
    restored_unix_ms: u64,
}

pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn time(unix_ms: u64) -> Result<SystemTime, String> {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(unix_ms))
        .ok_or_else(|| format!("a time that cannot be: {unix_ms}"))
}

/// The format that a store is written in: this row is the same in all of them.
pub(super) fn read_format(place: &str, snapshot: &dyn Snapshot) -> Result<u32, StoreError> {
    let format = snapshot.get(META.name(), FORMAT_KEY)?;
    let format = format.ok_or_else(|| damaged(place, "it has no format number".to_owned()))?;
    <[u8; 4]>::try_from(format.as_slice())
        .map(u32::from_be_bytes)
        .map_err(|_| damaged(place, "its format is no number".to_owned()))
}

/// Writes the format that a store is written in.
pub(super) fn write_format(format: u32, batch: &mut Batch) {
    batch.put(META, FORMAT_KEY, format.to_be_bytes());
}

fn damaged(place: &str, reason: String) -> StoreError {
    StoreError::Damaged {
        place: place.to_owned(),
        reason,
    }
}

impl StoreIdentity {
    pub(super) fn new(owner: Owner) -> Self {
        let hash_bytes = Uuid::new_v4().into_bytes();
        let now = unix_ms(SystemTime::now());
        Self {
            store_id: Uuid::new_v4(),
            owner,
            created_at: UNIX_EPOCH + Duration::from_millis(now),
            hash_key: HashKey::new(hash_bytes),
            hash_bytes,
        }
    }

    /// The first commit of a new store.
    pub(super) fn first_batch(&self) -> Batch {
        let mut batch = Batch::new();
        write_format(FORMAT, &mut batch);
        let stored = StoredIdentity {
            store_id: self.store_id.into_bytes().to_vec(),
            hash_key: self.hash_bytes.to_vec(),
            node_id: self.owner.node_id.clone(),
            chain_id: self.owner.chain_id.clone(),
            network: self.owner.network.clone(),
            first_federation: self.owner.first_federation.clone(),
            created_unix_ms: unix_ms(self.created_at),
        };
        batch.put(META, IDENTITY_KEY, stored.encode_to_vec());
        batch
    }

    /// The secret of its indexes.
    #[must_use]
    pub const fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// Reads it in a snapshot of the store at `place`, which is of this version's format.
    ///
    /// # Errors
    ///
    /// [`StoreError::Format`] when another version wrote it, [`StoreError::Damaged`] when it cannot
    /// be read.
    pub fn read(place: &str, snapshot: &dyn Snapshot) -> Result<Self, StoreError> {
        let found = read_format(place, snapshot)?;
        if found != FORMAT {
            return Err(StoreError::Format {
                place: place.to_owned(),
                found,
                ours: FORMAT,
                advice: "it changed while the node ran; run the version that wrote it",
            });
        }
        Self::read_of_any_format(place, snapshot)
    }

    /// Reads it from a store of any format: this row is the same in all of them.
    pub(super) fn read_of_any_format(
        place: &str,
        snapshot: &dyn Snapshot,
    ) -> Result<Self, StoreError> {
        let damaged = |reason: String| damaged(place, reason);
        let stored = snapshot.get(META.name(), IDENTITY_KEY)?;
        let stored = stored.ok_or_else(|| damaged("it has no identity".to_owned()))?;
        StoredIdentity::decode(stored.as_slice())
            .map_err(|error| error.to_string())
            .and_then(Self::try_from)
            .map_err(|reason| damaged(format!("identity: {reason}")))
    }

    /// Whether the store is `owner`'s.
    pub(super) fn check_owner(&self, place: &str, owner: &Owner) -> Result<(), StoreError> {
        match self.owner.difference(owner) {
            None => Ok(()),
            Some((what, found, expected)) => Err(StoreError::Foreign {
                place: place.to_owned(),
                what,
                found,
                expected,
                advice: "set the configuration as it was when the store was made, or point \
                         `data_dir` at this node's own directory",
            }),
        }
    }
}

impl TryFrom<StoredIdentity> for StoreIdentity {
    type Error = String;

    fn try_from(stored: StoredIdentity) -> Result<Self, String> {
        let hash_bytes = <[u8; 16]>::try_from(stored.hash_key.as_slice());
        let hash_bytes = hash_bytes.map_err(|_| "a hash key of another length".to_owned())?;
        Ok(Self {
            store_id: Uuid::from_slice(&stored.store_id).map_err(|error| error.to_string())?,
            owner: Owner {
                node_id: stored.node_id,
                chain_id: stored.chain_id,
                network: stored.network,
                first_federation: stored.first_federation,
            },
            created_at: time(stored.created_unix_ms)?,
            hash_key: HashKey::new(hash_bytes),
            hash_bytes,
        })
    }
}

impl Restored {
    /// Writes it into the store that is being restored.
    pub(super) fn write(&self, batch: &mut Batch) {
        let stored = StoredRestored {
            restore_id: self.restore_id.into_bytes().to_vec(),
            backup_commit: self.backup_commit,
            backup_unix_ms: unix_ms(self.backup_at),
            restored_unix_ms: unix_ms(self.restored_at),
        };
        batch.put(META, RESTORED_KEY, stored.encode_to_vec());
    }

    /// Reads it; nothing when the store was never restored.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(place: &str, snapshot: &dyn Snapshot) -> Result<Option<Self>, StoreError> {
        let damaged = |reason: String| StoreError::Damaged {
            place: place.to_owned(),
            reason: format!("restored: {reason}"),
        };
        let Some(stored) = snapshot.get(META.name(), RESTORED_KEY)? else {
            return Ok(None);
        };
        let stored = StoredRestored::decode(stored.as_slice());
        let stored = stored.map_err(|error| damaged(error.to_string()))?;
        let restore_id = Uuid::from_slice(&stored.restore_id);
        Ok(Some(Self {
            restore_id: restore_id.map_err(|error| damaged(error.to_string()))?,
            backup_commit: stored.backup_commit,
            backup_at: time(stored.backup_unix_ms).map_err(damaged)?,
            restored_at: time(stored.restored_unix_ms).map_err(damaged)?,
        }))
    }
}
