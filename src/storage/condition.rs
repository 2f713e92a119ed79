//! How a store is, for health and metrics.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use super::{engine::Usage, error::StoreError, shared::State, user::Who};

/// How a store is. Asking never waits for the disk.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StoreCondition {
    /// Why it is closed, if it is: it is being opened again.
    pub fault: Option<StoreError>,
    /// Why its disk failed last, while less is left on it than a group of commits takes: it may be
    /// open, and fails again as soon as a commit finds no room.
    pub cramped: Option<StoreError>,
    /// The last commit that is known to be durable.
    pub confirmed: u64,
    /// For how long the oldest batch of each user has been waiting; zero for a user without one.
    pub batches: BTreeMap<&'static str, Duration>,
    /// For how long the oldest look-up of each user has been waiting; zero for a user without one.
    pub look_ups: BTreeMap<&'static str, Duration>,
    /// What the engine takes up, as of a few seconds ago.
    pub usage: Usage,
    /// Rows by table, as of a few seconds ago.
    pub tables: Vec<(String, u64)>,
    /// What a read found damaged since this process opened the store, or a scrub since the last one
    /// that found nothing. The store may be open all the same: what is damaged is what nobody needs at present.
    pub damage: Option<StoreError>,
    /// When its last backup was made, by this store or the one that it was copied from.
    pub backed_up_at: Option<SystemTime>,
    /// When it was last read whole and nothing was damaged.
    pub scrubbed_at: Option<SystemTime>,
}

impl StoreCondition {
    pub(super) fn of(state: &State) -> Self {
        let oldest = |waiting: &mut dyn Iterator<Item = (Who, Instant)>| {
            let mut oldest: BTreeMap<_, _> =
                state.users().map(|name| (name, Duration::ZERO)).collect();
            for (who, since) in waiting {
                let age = oldest.entry(who.name).or_insert(Duration::ZERO);
                *age = since.elapsed().max(*age);
            }
            oldest
        };
        Self {
            fault: state.fault.clone(),
            cramped: state.cramped.clone(),
            confirmed: state.confirmed,
            batches: oldest(&mut state.queue.waiting()),
            look_ups: oldest(&mut state.reading.look_ups().waiting()),
            usage: state.usage,
            tables: state.tables.clone(),
            damage: state.upkeep.damage().cloned(),
            backed_up_at: state.upkeep.backed_up_at,
            scrubbed_at: state.upkeep.scrubbed_at,
        }
    }
}
