//! What a bridge has in memory: the peg-outs that are open, or that change. Pure.
//!
//! Each is as it was decided, durable or not. A peg-out that has come to its end leaves once that is
//! durable; whoever asks for it then finds it in the store.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bitcoin::{Amount, OutPoint};

use super::{
    event::Pause,
    life::PegoutStage,
    pegout::{Kept, Pegout},
    stored::HandledDelivery,
    tables::{Loaded, Row},
};
use crate::{
    message::{Lane, OccurrenceId, RequestId},
    routing::Delivered,
};

/// Deliveries of a lane that are remembered: more than can be on their way again.
pub(super) const REMEMBERED: usize = 8192;

#[derive(Debug, Default)]
pub(super) struct Memory {
    pegouts: BTreeMap<RequestId, Held>,
    /// Who in memory spends a coin.
    spenders: HashMap<OutPoint, BTreeSet<RequestId>>,
    /// By lane, and number in the order in which they came.
    deliveries: BTreeMap<(Lane, u64), HandledDelivery>,
    /// Where each of them is.
    occurrences: HashMap<OccurrenceId, (Lane, u64)>,
    pub pauses: BTreeSet<Pause>,
    next_number: u64,
}

/// A peg-out in memory.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub number: u64,
    pub pegout: Arc<Pegout>,
    /// Changes of it that are not known to be durable.
    unconfirmed: u32,
}

/// What is known of a message that is delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is new.
    New,
    /// It was handled before.
    Handled {
        /// Where that is remembered.
        place: (Lane, u64),
        /// Why it was rejected then, if it was.
        rejected: Option<String>,
    },
}

impl Memory {
    pub(super) fn new(loaded: Loaded) -> Self {
        let places = loaded.deliveries.iter();
        let occurrences = places.map(|(place, handled)| (handled.occurrence_id, *place));
        let mut memory = Self {
            occurrences: occurrences.collect(),
            deliveries: loaded.deliveries,
            pauses: loaded.pauses,
            next_number: loaded.next_number,
            ..Self::default()
        };
        for row in loaded.pegouts {
            memory.hold(row);
        }
        memory
    }

    /// Takes a peg-out in as it is on disk, unless it is here: what is here is newer.
    pub(super) fn hold(&mut self, row: Row) {
        let request_id = row.pegout.request_id().clone();
        if self.pegouts.contains_key(&request_id) {
            return;
        }
        for (outpoint, _) in row.pegout.coins() {
            let spenders = self.spenders.entry(*outpoint).or_default();
            spenders.insert(request_id.clone());
        }
        let held = Held {
            number: row.number,
            pegout: Arc::new(row.pegout),
            unconfirmed: 0,
        };
        self.pegouts.insert(request_id, held);
    }

    /// Takes a new peg-out in, and gives it its number.
    pub(super) fn begin(&mut self, pegout: Pegout) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.hold(Row { number, pegout });
        number
    }

    pub(super) fn get(&self, request_id: &RequestId) -> Option<&Held> {
        self.pegouts.get(request_id)
    }

    pub(super) fn has(&self, request_id: &RequestId) -> bool {
        self.pegouts.contains_key(request_id)
    }

    pub(super) fn pegouts(&self) -> impl Iterator<Item = &Arc<Pegout>> {
        self.pegouts.values().map(|held| &held.pegout)
    }

    /// Puts a peg-out in the place of what it was; a change that is not durable yet.
    pub(super) fn change(&mut self, request_id: &RequestId, pegout: Arc<Pegout>) {
        if let Some(held) = self.pegouts.get_mut(request_id) {
            held.pegout = pegout;
            held.unconfirmed += 1;
        }
    }

    /// A change of a peg-out is durable. Whether it may leave: nothing of it is undecided, and
    /// nothing is to be done about it. `reports`: whether the chain is told of completed ones.
    pub(super) fn confirm(&mut self, request_id: &RequestId, reports: bool) -> bool {
        let Some(held) = self.pegouts.get_mut(request_id) else {
            return false;
        };
        held.unconfirmed = held.unconfirmed.saturating_sub(1);
        self.may_leave(request_id, reports)
    }

    /// Whether a peg-out may leave.
    pub(super) fn may_leave(&self, request_id: &RequestId, reports: bool) -> bool {
        self.pegouts.get(request_id).is_some_and(|held| {
            let done = match held.pegout.kept() {
                Kept::Open => false,
                Kept::Unreported => !reports,
                Kept::Ended => true,
            };
            done && held.unconfirmed == 0
        })
    }

    /// Lets a peg-out go.
    pub(super) fn remove(&mut self, request_id: &RequestId) {
        let Some(held) = self.pegouts.remove(request_id) else {
            return;
        };
        for (outpoint, _) in held.pegout.coins() {
            if let Some(spenders) = self.spenders.get_mut(outpoint) {
                spenders.remove(request_id);
                if spenders.is_empty() {
                    self.spenders.remove(outpoint);
                }
            }
        }
    }

    /// Who else here spends one of its coins and could still be overtaken.
    pub(super) fn rivals(&self, pegout: &Pegout) -> BTreeSet<RequestId> {
        let spenders = pegout.coins().iter();
        let spenders = spenders.filter_map(|(outpoint, _)| self.spenders.get(outpoint));
        let others = spenders
            .flatten()
            .filter(|id| *id != pegout.request_id())
            .filter(|id| {
                let stage = self.pegouts.get(*id).map(|held| held.pegout.stage());
                stage.is_some_and(|stage| {
                    !matches!(
                        stage,
                        PegoutStage::Completed { .. } | PegoutStage::Superseded { .. }
                    )
                })
            });
        others.cloned().collect()
    }

    /// Whether a peg-out here said that a coin holds anything but `amount`: what, and which.
    pub(super) fn told_otherwise(
        &self,
        outpoint: &OutPoint,
        amount: Amount,
    ) -> Option<(Amount, RequestId)> {
        let mut spenders = self.spenders.get(outpoint)?.iter();
        spenders.find_map(|id| {
            let pegout = &self.pegouts.get(id)?.pegout;
            let mut coins = pegout.coins().iter();
            let told = coins.find(|(other, told)| other == outpoint && *told != amount)?;
            Some((told.1, id.clone()))
        })
    }

    /// Notes what keeps a peg-out from going on; whether that is news. It is not written down: a
    /// restarted bridge meets it again.
    pub(super) fn set_trouble(&mut self, request_id: &RequestId, trouble: &str) -> bool {
        let held = self.pegouts.get_mut(request_id);
        held.is_some_and(|held| Arc::make_mut(&mut held.pegout).set_trouble(trouble.to_owned()))
    }

    /// Whether a result was handled before, whatever message brings it: then it is counted, and
    /// nothing else is to be done.
    pub(super) fn see<E>(&mut self, message: &Delivered<E>) -> Seen {
        let place = self.occurrences.get(&message.occurrence_id).copied();
        let known = place.and_then(|place| Some((place, self.deliveries.get_mut(&place)?)));
        let Some((place, known)) = known else {
            return Seen::New;
        };
        known.times += 1;
        Seen::Handled {
            place,
            rejected: known.rejected.clone(),
        }
    }

    /// A message is handled: the place of what is remembered of it, and of what is forgotten for it.
    pub(super) fn handled<E>(
        &mut self,
        message: &Delivered<E>,
        rejected: Option<String>,
    ) -> ((Lane, u64), Option<(Lane, u64)>) {
        let lane = message.lane;
        let mut of_lane = self.deliveries.range((lane, 0)..=(lane, u64::MAX));
        let oldest = of_lane.next().map(|(place, _)| *place);
        let last = of_lane.next_back().map(|(place, _)| *place).or(oldest);
        let place = (lane, last.map_or(1, |(_, number)| number + 1));
        let handled = HandledDelivery {
            occurrence_id: message.occurrence_id,
            sequence: message.sequence,
            message_id: message.message_id,
            times: 1,
            rejected,
        };
        self.occurrences.insert(handled.occurrence_id, place);
        self.deliveries.insert(place, handled);
        let forgotten =
            oldest.filter(|(_, number)| number.saturating_add(REMEMBERED as u64) <= place.1);
        if let Some(gone) = forgotten.and_then(|place| self.deliveries.remove(&place)) {
            self.occurrences.remove(&gone.occurrence_id);
        }
        (place, forgotten)
    }

    pub(super) fn delivery(&self, place: (Lane, u64)) -> Option<&HandledDelivery> {
        self.deliveries.get(&place)
    }
}
