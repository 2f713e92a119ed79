//! Reads what is durable of a chain, and verifies it again.

use bitcoin::hex::DisplayHex as _;

use super::{
    fault::FederationFault,
    federation::Federation,
    known::Known,
    payment_rows::PaymentRows,
    schedule::Schedule,
    stored::{self, EVENTS, HEIGHT, PROPOSALS, REFUSAL, STATE, UPDATES, damaged},
};
use crate::storage::{Scan, Snapshot, StoreError, Table};

/// What a chain begins with.
pub(super) struct Loaded {
    pub(super) known: Known,
    /// The number of the last payment.
    pub(super) last_payment: u64,
}

/// Reads what follows the configured federation. Payments stay where they are.
///
/// # Errors
///
/// When something cannot be read, or does not follow what was configured.
pub(super) fn load(rows: PaymentRows<'_>, configured: Schedule) -> Result<Loaded, StoreError> {
    let PaymentRows {
        snapshot, place, ..
    } = rows;
    let mut known = Known::new(configured);
    each(snapshot, UPDATES, |key, row| {
        let damaged = |reason: String| damaged(place, UPDATES, key, reason);
        let update = stored::read_update(row).map_err(damaged)?;
        let schedule = &mut known.schedule;
        schedule.restore(&update).map_err(|fault| match fault {
            FederationFault::OtherHistory(_) if update.previous_version == 1 => {
                other_first(place, &update.previous_config_hash, schedule.first())
            }
            other => damaged(other.to_string()),
        })
    })?;
    each(snapshot, PROPOSALS, |key, row| {
        let proposal = stored::read_proposal(row);
        let proposal = proposal.map_err(|reason| damaged(place, PROPOSALS, key, reason))?;
        known.proposals.restore(proposal);
        Ok(())
    })?;
    each(snapshot, EVENTS, |key, row| {
        let event = stored::read_event(row);
        let event = event.map_err(|reason| damaged(place, EVENTS, key, reason))?;
        known.events.restore(event);
        Ok(())
    })?;
    let state = |key: &str| snapshot.get(STATE.name(), key.as_bytes());
    if let Some(row) = state(HEIGHT)? {
        let height = stored::read_height(&row);
        let height = height.map_err(|reason| damaged(place, STATE, HEIGHT.as_bytes(), reason))?;
        known.schedule.set_height(height);
    }
    if let Some(row) = state(REFUSAL)? {
        let refusal = stored::read_refusal(&row);
        let refusal =
            refusal.map_err(|reason| damaged(place, STATE, REFUSAL.as_bytes(), reason))?;
        known.refusal = Some(refusal);
    }
    Ok(Loaded {
        known,
        last_payment: rows.last_number()?,
    })
}

fn each(
    snapshot: &dyn Snapshot,
    table: Table,
    mut read: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    // Few: versions, open proposals, and the last events.
    let rows = snapshot.scan(table.name(), Scan::first(usize::MAX))?;
    rows.iter().try_for_each(|(key, row)| read(key, row))
}

/// The store's own check stands before this one; it is for a store that was made without it.
fn other_first(place: &str, begun_with: &[u8], configured: &Federation) -> StoreError {
    StoreError::Foreign {
        place: place.to_owned(),
        what: "first federation",
        found: begun_with.to_lower_hex_string(),
        expected: format!(
            "{}, {} of {}, with the address {},",
            configured.digest().as_hex(),
            configured.threshold(),
            configured.members().len(),
            configured.address(),
        ),
        advice: "set [federation], node.network and node.chain_id as they were, or keep the data \
                 of another federation in a directory of its own",
    }
}
