//! What an input makes of a bridge's peg-outs: changes in memory, and the units that make them
//! durable. Pure, but for what it counts and logs.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use tracing::{info, warn};

use super::{
    admission,
    event::{Pause, PegoutEvent},
    input::Input,
    life::{Action, Impossible, LifeEvent, PegoutStage},
    memory::Memory,
    message::{AskAgain, CancelAnswer, PegoutRefusal},
    pegout::Pegout,
    tables::{self, Found, Row},
    unit::{self, Effect, Reply, Unit},
};
use crate::{
    chain::Federations,
    message::{RequestId, SignatureRequest},
    storage::HashKey,
    telemetry::Metrics,
};

/// Everything that a decision is made with.
#[derive(Debug)]
pub(super) struct Decider<'a> {
    pub memory: &'a mut Memory,
    /// What was looked up for this input.
    pub found: &'a Found,
    pub federations: &'a Federations,
    pub hash: HashKey,
    pub now: SystemTime,
    pub metrics: &'a Metrics,
}

impl Decider<'_> {
    /// Decides an input.
    ///
    /// # Errors
    ///
    /// An event that cannot befall a peg-out at its stage.
    pub(super) fn decide(&mut self, input: Input) -> Result<Vec<Unit>, Impossible> {
        match input {
            Input::Begin {
                request,
                span,
                reply,
            } => {
                let request_id = request.request_id().clone();
                let mut unit = Unit::default();
                let begun = self.begin(&mut unit, *request);
                if matches!(begun, Ok(true)) {
                    let trace = Effect::Trace(request_id.clone(), span);
                    let stage = PegoutStage::Requested;
                    let ask = Effect::Act(request_id.clone(), Action::Ask);
                    let tell = Effect::Tell(PegoutEvent::Stage { request_id, stage });
                    unit.effects.extend([trace, tell, ask]);
                }
                let reply = Reply::Begun(reply, begun.map(|_| ()));
                unit.effects.push(Effect::Reply(reply));
                Ok(vec![unit])
            }
            Input::Cancel { request_id, reply } => {
                let mut unit = Unit::default();
                let answer = self.cancel(&mut unit, &request_id)?;
                let reply = Reply::Cancels(reply, answer);
                unit.effects.push(Effect::Reply(reply));
                Ok(vec![unit])
            }
            Input::Deliver(delivery) => {
                if self.federations.is_empty() && delivery.messages.iter().any(Self::is_response) {
                    let reason = "the chain has not told which federations there are";
                    unit::fail(delivery.reply, &AskAgain::new(reason));
                    return Ok(Vec::new());
                }
                self.deliver(delivery)
            }
            Input::Complete { request_id, event } => {
                let mut unit = Unit::default();
                self.step(&mut unit, &request_id, event)?;
                Ok(vec![unit])
            }
        }
    }

    /// Whether it is begun now; the same one again is no news.
    fn begin(&mut self, unit: &mut Unit, request: SignatureRequest) -> Result<bool, PegoutRefusal> {
        if let Some(pegout) = self.find(request.request_id()) {
            return if pegout.payload_hash() == request.payload_hash() {
                Ok(false)
            } else {
                Err(PegoutRefusal::Conflict(request.request_id().clone()))
            };
        }
        admission::check(&request, self.federations, |outpoint, amount| {
            let told = self.memory.told_otherwise(outpoint, amount);
            told.or_else(|| self.found.told.get(&(*outpoint, amount)).cloned())
        })?;
        self.hold_new(unit, Pegout::new(request, self.now));
        Ok(true)
    }

    /// Takes in a peg-out that is new here.
    pub(super) fn hold_new(&mut self, unit: &mut Unit, pegout: Pegout) {
        let request_id = pegout.request_id().clone();
        let number = self.memory.begin(pegout.clone());
        tables::index_pegout(&mut unit.batch, self.hash, number, &pegout);
        tables::put_pegout(&mut unit.batch, number, &pegout, None);
        let pegout = Arc::new(pegout);
        self.memory.change(&request_id, Arc::clone(&pegout));
        unit.pegouts.push(pegout);
    }

    /// Ends a peg-out before the stream has it. While it is `Requested` nobody knows whether it
    /// has: a bridge that died, or a pause, may have cut off whoever was asking.
    fn cancel(
        &mut self,
        unit: &mut Unit,
        request_id: &RequestId,
    ) -> Result<CancelAnswer, Impossible> {
        let Some(pegout) = self.find(request_id) else {
            return Ok(CancelAnswer::Unknown);
        };
        Ok(match pegout.stage() {
            PegoutStage::Requested | PegoutStage::Cancelling => {
                self.step(unit, request_id, LifeEvent::CancelAsked)?;
                CancelAnswer::Ends
            }
            PegoutStage::Cancelled => CancelAnswer::Ends,
            _ => CancelAnswer::AtStream,
        })
    }

    /// The peg-out of this id as it was decided last: in memory, or else as it was found.
    pub(super) fn find(&self, request_id: &RequestId) -> Option<Arc<Pegout>> {
        let held = self.memory.get(request_id);
        let held = held.map(|held| Arc::clone(&held.pegout));
        held.or_else(|| {
            let row = self.found.pegouts.get(request_id)?;
            Some(Arc::new(row.pegout.clone()))
        })
    }

    /// Takes an event of a peg-out; nothing happens to one that is not known.
    pub(super) fn step(
        &mut self,
        unit: &mut Unit,
        request_id: &RequestId,
        event: LifeEvent,
    ) -> Result<(), Impossible> {
        let Some(before) = self.find(request_id) else {
            return Ok(());
        };
        let mut pegout = (*before).clone();
        let action = pegout.apply(event, self.now)?;
        self.record(unit, &before, pegout);
        let act = action.map(|action| Effect::Act(request_id.clone(), action));
        unit.effects.extend(act);
        Ok(())
    }

    /// Puts a peg-out in the place of what it was. When it is completed by that, it has overtaken
    /// whoever else spends one of its coins.
    pub(super) fn record(&mut self, unit: &mut Unit, before: &Pegout, pegout: Pegout) {
        let request_id = pegout.request_id().clone();
        let stage = Some(pegout.stage()).filter(|stage| *stage != before.stage());
        let stage = stage.cloned();
        // Responses are counted, and signatures come, without another stage.
        let counted = pegout.responses() != before.responses();
        let reported = pegout.is_reported() != before.is_reported();
        if stage.is_none() && !counted && !reported {
            return;
        }
        if !self.memory.has(&request_id) {
            let Some(row) = self.found_row(&request_id) else {
                return;
            };
            self.memory.hold(row);
        }
        let Some(number) = self.memory.get(&request_id).map(|held| held.number) else {
            return;
        };
        tables::put_pegout(&mut unit.batch, number, &pegout, Some(before.kept()));
        let pegout = Arc::new(pegout);
        self.memory.change(&request_id, Arc::clone(&pegout));
        unit.pegouts.push(Arc::clone(&pegout));
        let Some(stage) = stage else {
            return;
        };
        match &stage {
            PegoutStage::Failed(failure) => warn!(%request_id, %failure, "peg-out failed"),
            stage => info!(%request_id, ?stage, "peg-out"),
        }
        let is_completed = matches!(stage, PegoutStage::Completed { .. });
        let tell = PegoutEvent::Stage { request_id, stage };
        unit.effects.push(Effect::Tell(tell));
        if is_completed {
            self.overtake(unit, &pegout);
        }
    }

    fn found_row(&self, request_id: &RequestId) -> Option<Row> {
        let found = self.found.pegouts.get(request_id);
        let found = found.or_else(|| self.found.failed.get(request_id));
        found.cloned()
    }

    /// Has everyone who spends one of its coins know that it is spent for good.
    fn overtake(&mut self, unit: &mut Unit, by: &Pegout) {
        for row in self.found.failed.values() {
            let mut coins = row.pegout.coins().iter();
            let spent = |outpoint| by.coins().iter().any(|(spent, _)| *spent == outpoint);
            let is_other = row.pegout.request_id() != by.request_id();
            if is_other && coins.any(|(outpoint, _)| spent(*outpoint)) {
                self.memory.hold(row.clone());
            }
        }
        for other in self.memory.rivals(by) {
            let Some(before) = self.find(&other) else {
                continue;
            };
            let mut pegout = (*before).clone();
            let by = by.request_id().clone();
            // Whoever cannot be overtaken is as it was.
            if pegout.apply(LifeEvent::Overtaken { by }, self.now).is_ok() {
                self.record(unit, &before, pegout);
            }
        }
    }

    /// The chain has noted that a peg-out is completed.
    pub(super) fn reported(&mut self, unit: &mut Unit, request_id: &RequestId) {
        if let Some(before) = self.find(request_id) {
            let mut pegout = (*before).clone();
            pegout.set_reported();
            self.record(unit, &before, pegout);
        }
    }

    /// Pauses peg-outs at the operator's word, or has them go on whatever has paused them.
    pub(super) fn set_paused(&mut self, unit: &mut Unit, paused: bool) {
        let before = self.memory.pauses.clone();
        if paused {
            self.memory.pauses.insert(Pause::Operator);
        } else {
            self.memory.pauses.clear();
        }
        self.change_pauses(unit, &before);
    }

    /// Stops peg-outs, since the store lacked some.
    pub(super) fn pause_for_restore(&mut self, unit: &mut Unit) {
        let before = self.memory.pauses.clone();
        self.memory.pauses.insert(Pause::Restore);
        self.change_pauses(unit, &before);
    }

    fn change_pauses(&mut self, unit: &mut Unit, before: &BTreeSet<Pause>) {
        for pause in Pause::ALL {
            let now = self.memory.pauses.contains(&pause);
            if now != before.contains(&pause) {
                tables::put_pause(&mut unit.batch, pause, now);
            }
        }
        if self.memory.pauses != *before {
            unit.pauses = Some(self.memory.pauses.clone());
            unit.effects.push(Effect::TakeUp);
        }
    }
}
