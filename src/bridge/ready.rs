//! A bridge that has read its rows: inputs wait for look-ups, units wait for their commit.
//!
//! At most one batch is with the store. What is decided meanwhile gathers, in order, to become the
//! next one; and what is to be done about a unit is done when it, and all before it, are durable.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use super::{
    decide::Decider,
    event::Pause,
    input::{Input, Key},
    life::Impossible,
    memory::Memory,
    message::AskAgain,
    pegout::Pegout,
    tables::{Found, Loaded, Wanted},
    unit::{Effect, Unit},
};
use crate::{
    chain::Federations,
    message::RequestId,
    storage::{Batch, Generation, HashKey, Leaving, LookUp, StoreError, Ticket, User, Waiting},
    telemetry::Metrics,
};

/// Requests that wait for a look-up. One more is refused.
const MOST_WAITING: usize = 256;
/// Bytes that wait for the store, beyond which no request is taken.
const MOST_GATHERED: usize = 32 << 20;
/// Units that wait for the store, beyond which no request is taken.
const MOST_UNITS: usize = 4096;
/// Bytes of a batch, unless its first unit alone is larger.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Ready {
    pub generation: Generation,
    pub memory: Memory,
    hash: HashKey,
    /// Whether a chain is told of completed peg-outs.
    reports: bool,
    waiting: Waiting<Input, Key>,
    leaving: Leaving<RequestId>,
    /// Those that have left, and are still shown as if they had not.
    gone: Vec<RequestId>,
    gathered: VecDeque<Unit>,
    gathered_bytes: usize,
    in_flight: Option<(Ticket, Vec<Unit>)>,
}

/// What decisions are made with beside the rows.
#[derive(Debug)]
pub(super) struct Around<'a> {
    pub federations: &'a Federations,
    pub now: SystemTime,
    pub metrics: &'a Metrics,
}

/// What has become durable.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    pub pegouts: Vec<Arc<Pegout>>,
    pub pauses: Option<BTreeSet<Pause>>,
    pub effects: Vec<Effect>,
}

impl Ready {
    pub(super) fn new(
        generation: Generation,
        loaded: Loaded,
        hash: HashKey,
        reports: bool,
    ) -> Self {
        Self {
            generation,
            memory: Memory::new(loaded),
            hash,
            reports,
            waiting: Waiting::default(),
            leaving: Leaving::default(),
            gone: Vec::new(),
            gathered: VecDeque::new(),
            gathered_bytes: 0,
            in_flight: None,
        }
    }

    /// Decides an input at once when memory has all that it takes, and nothing waits that it is to
    /// come after; else it waits. A request is refused when too much waits.
    ///
    /// # Errors
    ///
    /// An event that cannot befall a peg-out at its stage.
    pub(super) fn take(&mut self, input: Input, around: &Around<'_>) -> Result<(), Impossible> {
        if input.is_request() && self.is_full() {
            let reason = "too much waits for the bridge's store";
            input.refuse(&AskAgain::new(reason));
            return Ok(());
        }
        let keys = input.keys(&self.memory);
        let mut wanted = Wanted::default();
        input.want(&self.memory, &mut wanted);
        if wanted.is_empty() && !self.waiting.holds(&keys) {
            return self.decide(input, &Found::default(), around);
        }
        // A peg-out that is about to complete is seen again and again.
        let is_again = matches!(&input, Input::Complete { request_id: id, .. }
            if self.waiting.iter().any(
                |other| matches!(other, Input::Complete { request_id, .. } if request_id == id)));
        if !is_again {
            self.waiting.push(input, keys);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let waiting = self.waiting.iter().filter(|input| input.is_request());
        waiting.count() >= MOST_WAITING
            || self.gathered_bytes >= MOST_GATHERED
            || self.gathered.len() >= MOST_UNITS
    }

    /// The next look-up, with its name; nothing while one is under way, or when nothing waits.
    pub(super) fn ask(&mut self) -> Option<(LookUp, HashKey, Wanted)> {
        // What leaves now is looked up with the rest.
        self.forget();
        let (look_up, inputs) = self.waiting.ask()?;
        let mut wanted = Wanted::default();
        for (input, _) in inputs {
            input.want(&self.memory, &mut wanted);
        }
        Some((look_up, self.hash, wanted))
    }

    /// A look-up is answered: its inputs are decided in order, on memory first. When it failed they
    /// are refused.
    ///
    /// # Errors
    ///
    /// An event that cannot befall a peg-out at its stage.
    pub(super) fn looked_up(
        &mut self,
        look_up: LookUp,
        result: Result<Found, StoreError>,
        around: &Around<'_>,
    ) -> Result<(), Impossible> {
        let inputs = self.waiting.answered(look_up);
        match result {
            Ok(found) => {
                for input in inputs {
                    self.decide(input, &found, around)?;
                }
            }
            Err(error) => {
                for input in inputs {
                    input.refuse(&AskAgain::new(&error));
                }
            }
        }
        Ok(())
    }

    fn decide(
        &mut self,
        input: Input,
        found: &Found,
        around: &Around<'_>,
    ) -> Result<(), Impossible> {
        let units = self.decider(found, around).decide(input)?;
        units.into_iter().for_each(|unit| self.gather(unit));
        Ok(())
    }

    /// For what needs nothing that is not in memory.
    pub(super) fn decider<'a>(
        &'a mut self,
        found: &'a Found,
        around: &'a Around<'_>,
    ) -> Decider<'a> {
        Decider {
            memory: &mut self.memory,
            found,
            federations: around.federations,
            hash: self.hash,
            now: around.now,
            metrics: around.metrics,
        }
    }

    /// Takes a unit behind all that were decided before.
    pub(super) fn gather(&mut self, unit: Unit) {
        self.gathered_bytes += unit.batch.bytes();
        self.gathered.push_back(unit);
    }

    /// Hands the next batch to the store, unless it has one. What rests on no batch is confirmed at
    /// once, and given.
    ///
    /// # Errors
    ///
    /// When the store does not take the batch: nothing of it is committed.
    pub(super) fn hand_in(&mut self, user: &User) -> Result<Option<Confirmed>, StoreError> {
        if self.in_flight.is_some() {
            return Ok(None);
        }
        let mut batch = Batch::new();
        let mut units = Vec::new();
        while let Some(unit) = self.gathered.front() {
            let bytes = batch.bytes() + unit.batch.bytes();
            if !batch.is_empty() && bytes > BATCH_BYTES {
                break;
            }
            let Some(mut unit) = self.gathered.pop_front() else {
                break;
            };
            let own = std::mem::take(&mut unit.batch);
            self.gathered_bytes = self.gathered_bytes.saturating_sub(own.bytes());
            if batch.is_empty() {
                batch = own;
            } else {
                own.changes()
                    .iter()
                    .for_each(|change| batch.push(change.clone()));
            }
            units.push(unit);
        }
        if units.is_empty() {
            return Ok(None);
        }
        if batch.is_empty() {
            return Ok(Some(self.confirm(units)));
        }
        let handed_in = user.commit(self.generation, batch);
        // Before an error is told, so that whoever waits for these is refused with the rest.
        let ticket = handed_in.clone().unwrap_or_default();
        self.in_flight = Some((ticket, units));
        handed_in.map(|_| None)
    }

    /// Everything up to this ticket is durable.
    pub(super) fn committed(&mut self, ticket: Ticket) -> Option<Confirmed> {
        let (_, units) = self.in_flight.take_if(|(own, _)| *own <= ticket)?;
        Some(self.confirm(units))
    }

    fn confirm(&mut self, units: Vec<Unit>) -> Confirmed {
        let mut confirmed = Confirmed::default();
        for unit in units {
            for pegout in unit.pegouts {
                let request_id = pegout.request_id();
                if self.memory.confirm(request_id, self.reports) {
                    let under_way = self.waiting.under_way();
                    self.leaving.push(under_way, request_id.clone());
                }
                confirmed.pegouts.push(pegout);
            }
            confirmed.pauses = unit.pauses.or(confirmed.pauses);
            confirmed.effects.extend(unit.effects);
        }
        confirmed
    }

    /// Lets those leave memory that may now.
    fn forget(&mut self) {
        for request_id in self.leaving.due(self.waiting.under_way()) {
            // One that was taken up again stays.
            if self.memory.may_leave(&request_id, self.reports) {
                self.memory.remove(&request_id);
                self.gone.push(request_id);
            }
        }
    }

    /// Those that have left memory since this was asked last.
    pub(super) fn let_go(&mut self) -> Vec<RequestId> {
        self.forget();
        std::mem::take(&mut self.gone)
    }

    /// Nothing that is not durable is told: whoever waits is to ask again, and whatever was to be
    /// done is not.
    pub(super) fn give_up(mut self, reason: &AskAgain) {
        let in_flight = self.in_flight.take().into_iter();
        let units = in_flight.flat_map(|(_, units)| units).chain(self.gathered);
        for effect in units.flat_map(|unit| unit.effects) {
            if let Effect::Reply(reply) = effect {
                reply.refuse(reason);
            }
        }
        for input in self.waiting.clear() {
            input.refuse(reason);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "simulator")]
#[path = "ready_tests.rs"]
mod tests;
