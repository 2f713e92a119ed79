//! How a chain's rows are written.
//!
//! The chain is the store's user `chain`, with these tables. Numbers in keys are big-endian, so that
//! their order is that of the rows; a message is a protobuf message of this file.
//!
//! | table | key | row |
//! |---|---|---|
//! | `chain/updates` | version, 4 bytes | `StoredUpdate`: an update that was verified, and the height then |
//! | `chain/proposals` | the proposal's id | `governance.v1.ProposalNotification`; 1024 at most |
//! | `chain/events` | number, 8 bytes, from 1 | `StoredEvent`; the last 256 |
//! | `chain/state` | `height` | the sidechain's best height, 8 bytes |
//! | | `refusal` | `StoredRefusal`: the last update that was not followed |
//! | `chain/payments` | number, 8 bytes, from 1 | `StoredPayment`: a completed peg-out, for ever |
//! | `chain/payment_ids` | keyed hash of the request id, number | nothing |
//! | `chain/payment_burns` | keyed hash of a burn (transaction hash, log index in 4 bytes), number | nothing |
//!
//! The first federation is in none of them: it is configured, its digest is compared by the store
//! (`storage::Owner`), and each update is verified again, from the first one on, whenever it is read.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bitcoin::{Address, BlockHash, Txid, address::NetworkUnchecked, hashes::Hash as _};
use prost::Message as _;

use super::{
    event::{FederationEvent, NumberedEvent},
    fault::Refusal,
};
use crate::{
    bridge::{PegoutCompleted, Place},
    message::{BurnId, FederationUpdate, ProposalNotification},
    proto,
    storage::{StoreError, Table},
};

pub(super) const UPDATES: Table = Table::new("chain/updates");
pub(super) const PROPOSALS: Table = Table::new("chain/proposals");
pub(super) const EVENTS: Table = Table::new("chain/events");
pub(super) const STATE: Table = Table::new("chain/state");
pub(super) const PAYMENTS: Table = Table::new("chain/payments");
pub(super) const PAYMENT_IDS: Table = Table::new("chain/payment_ids");
pub(super) const PAYMENT_BURNS: Table = Table::new("chain/payment_burns");

/// Keys of [`STATE`].
pub(super) const HEIGHT: &str = "height";
pub(super) const REFUSAL: &str = "refusal";

/// An update with the height at which it was accepted.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredUpdate {
    #[prost(uint64, tag = "1")]
    height: u64,
    #[prost(message, optional, tag = "2")]
    update: Option<proto::FederationUpdate>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredEvent {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(uint64, tag = "2")]
    height: u64,
    /// [`FederationEvent::name`].
    #[prost(string, tag = "3")]
    name: String,
    #[prost(uint32, tag = "4")]
    version: u32,
    /// The version before, for what changes the active one.
    #[prost(uint32, tag = "5")]
    before: u32,
    #[prost(string, tag = "6")]
    address: String,
    #[prost(uint64, tag = "7")]
    activation_height: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredRefusal {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(uint64, tag = "3")]
    at_unix_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredBurn {
    #[prost(bytes = "vec", tag = "1")]
    tx_hash: Vec<u8>,
    #[prost(uint32, tag = "2")]
    log_index: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPayment {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(message, repeated, tag = "2")]
    burns: Vec<StoredBurn>,
    #[prost(bytes = "vec", tag = "3")]
    txid: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    block: Vec<u8>,
    #[prost(uint32, tag = "5")]
    height: u32,
}

/// That a row cannot be read.
pub(super) fn damaged(place: &str, table: Table, key: &[u8], reason: impl ToString) -> StoreError {
    StoreError::Damaged {
        place: place.to_owned(),
        reason: format!(
            "{}, row {}: {}",
            table.name(),
            key.escape_ascii(),
            reason.to_string()
        ),
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

pub(super) fn write_update(height: u64, update: &FederationUpdate) -> Vec<u8> {
    StoredUpdate {
        height,
        update: Some(update.into()),
    }
    .encode_to_vec()
}

pub(super) fn read_update(bytes: &[u8]) -> Result<FederationUpdate, String> {
    let stored = StoredUpdate::decode(bytes).map_err(text)?;
    let update = stored.update.ok_or("an update of nothing")?;
    FederationUpdate::try_from(update).map_err(text)
}

pub(super) fn write_proposal(proposal: &ProposalNotification) -> Vec<u8> {
    proto::ProposalNotification::from(proposal).encode_to_vec()
}

pub(super) fn read_proposal(bytes: &[u8]) -> Result<ProposalNotification, String> {
    let stored = proto::ProposalNotification::decode(bytes).map_err(text)?;
    ProposalNotification::try_from(stored).map_err(text)
}

pub(super) fn write_payment(completed: &PegoutCompleted) -> Vec<u8> {
    let burns = completed.burns.iter().map(|burn| StoredBurn {
        tx_hash: burn.tx_hash.to_vec(),
        log_index: burn.log_index,
    });
    StoredPayment {
        request_id: completed.request_id.to_string(),
        burns: burns.collect(),
        txid: completed.txid.to_byte_array().to_vec(),
        block: completed.place.block.to_byte_array().to_vec(),
        height: completed.place.height,
    }
    .encode_to_vec()
}

pub(super) fn read_payment(bytes: &[u8]) -> Result<PegoutCompleted, String> {
    let stored = StoredPayment::decode(bytes).map_err(text)?;
    let burns = stored.burns.iter().map(|burn| {
        Ok::<_, String>(BurnId {
            tx_hash: burn.tx_hash.as_slice().try_into().map_err(text)?,
            log_index: burn.log_index,
        })
    });
    Ok(PegoutCompleted {
        request_id: stored.request_id.parse().map_err(text)?,
        burns: burns.collect::<Result<_, _>>()?,
        txid: Txid::from_slice(&stored.txid).map_err(text)?,
        place: Place {
            block: BlockHash::from_slice(&stored.block).map_err(text)?,
            height: stored.height,
        },
    })
}

pub(super) fn write_height(height: u64) -> Vec<u8> {
    height.to_be_bytes().to_vec()
}

pub(super) fn read_height(bytes: &[u8]) -> Result<u64, String> {
    read_number(bytes)
}

pub(super) fn read_number(bytes: &[u8]) -> Result<u64, String> {
    <[u8; 8]>::try_from(bytes)
        .map(u64::from_be_bytes)
        .map_err(|_| format!("{} bytes, expected 8", bytes.len()))
}

pub(super) fn write_event(numbered: &NumberedEvent) -> Vec<u8> {
    let stored = StoredEvent {
        number: numbered.number,
        height: numbered.height,
        name: numbered.event.name().to_owned(),
        ..StoredEvent::default()
    };
    let stored = match &numbered.event {
        FederationEvent::Scheduled {
            version,
            activation_height,
        } => StoredEvent {
            version: *version,
            activation_height: *activation_height,
            ..stored
        },
        FederationEvent::Updated {
            old_version: before,
            new_version: version,
            new_address: address,
        }
        | FederationEvent::Undone {
            undone_version: before,
            active_version: version,
            active_address: address,
        } => StoredEvent {
            version: *version,
            before: *before,
            address: address.to_string(),
            ..stored
        },
        FederationEvent::Retired { version } | FederationEvent::Reinstated { version } => {
            StoredEvent {
                version: *version,
                ..stored
            }
        }
    };
    stored.encode_to_vec()
}

pub(super) fn read_event(bytes: &[u8]) -> Result<NumberedEvent, String> {
    let stored = StoredEvent::decode(bytes).map_err(text)?;
    let (version, before) = (stored.version, stored.before);
    // Its network was checked when the version was.
    let address = || -> Result<Address, String> {
        let address = Address::<NetworkUnchecked>::from_str(&stored.address).map_err(text)?;
        Ok(address.assume_checked())
    };
    let event = match stored.name.as_str() {
        "scheduled" => FederationEvent::Scheduled {
            version,
            activation_height: stored.activation_height,
        },
        "updated" => FederationEvent::Updated {
            old_version: before,
            new_version: version,
            new_address: address()?,
        },
        "undone" => FederationEvent::Undone {
            undone_version: before,
            active_version: version,
            active_address: address()?,
        },
        "retired" => FederationEvent::Retired { version },
        "reinstated" => FederationEvent::Reinstated { version },
        other => return Err(format!("an event called {other:?}")),
    };
    Ok(NumberedEvent {
        number: stored.number,
        height: stored.height,
        event,
    })
}

pub(super) fn write_refusal(refusal: &Refusal) -> Vec<u8> {
    let since = refusal.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    StoredRefusal {
        version: refusal.version,
        reason: refusal.reason.clone(),
        at_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    }
    .encode_to_vec()
}

pub(super) fn read_refusal(bytes: &[u8]) -> Result<Refusal, String> {
    let stored = StoredRefusal::decode(bytes).map_err(text)?;
    let at: Option<SystemTime> = UNIX_EPOCH.checked_add(Duration::from_millis(stored.at_unix_ms));
    Ok(Refusal {
        version: stored.version,
        reason: stored.reason,
        at: at.ok_or("a time that cannot be")?,
    })
}
