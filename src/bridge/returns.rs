//! What the bridge's errands come back with.

use tracing::info;

use super::{
    BridgeState, Fault, Phase,
    event::PegoutEvent,
    input::Input,
    life::{Action, LifeEvent, PegoutStage},
    message::Done,
    unit::{Effect, Unit},
};
use crate::message::RequestId;

impl BridgeState {
    pub(super) fn done(&mut self, done: Done) -> Result<(), Fault> {
        match done {
            Done::Asked { request_id, result } => {
                let event = match result {
                    Ok(()) => LifeEvent::Accepted,
                    Err(reason) => LifeEvent::NotAccepted(reason),
                };
                self.errands.ended(&request_id, Action::Ask);
                self.decide(|decider, unit| {
                    decider.step(unit, &request_id, event)?;
                    // It may end without a word of governance's.
                    unit.effects.push(Effect::Act(request_id, Action::Follow));
                    Ok(())
                })?;
            }
            Done::Cancelled { request_id, event } => {
                self.errands.ended(&request_id, Action::Cancel);
                self.decide(|decider, unit| decider.step(unit, &request_id, event))?;
            }
            Done::Offered { request_id, result } => self.offered(&request_id, result)?,
            Done::Troubled {
                request_id,
                trouble,
            } => self.troubled(request_id, trouble),
            Done::Reported { request_id } => {
                info!(%request_id, "the chain has noted the completed peg-out");
                self.errands.ended(&request_id, Action::Report);
                self.decide(|decider, unit| {
                    decider.reported(unit, &request_id);
                    Ok(())
                })?;
            }
            Done::Looked(events) => {
                self.errands.looked();
                for (request_id, event) in events {
                    self.looked(request_id, event)?;
                }
            }
            Done::Look => self.errands.look(),
            Done::LookedUp {
                generation,
                look_up,
                result,
            } => {
                let federations = self.args.store.federations();
                if let Phase::Ready(ready) = &mut self.phase
                    && ready.generation == generation
                {
                    let around = super::around(&federations, &self.args);
                    ready.looked_up(look_up, result, &around)?;
                }
            }
            // Of an opening of the store that is over; what is current is dealt with before this.
            Done::Loaded { .. } | Done::Store(_) | Done::LoadAgain => {}
        }
        Ok(())
    }

    fn offered(&mut self, request_id: &RequestId, result: Result<(), String>) -> Result<(), Fault> {
        self.errands.ended(request_id, Action::Offer);
        let metrics = self.args.metrics.clone();
        self.decide(|decider, unit| {
            let Some(pegout) = decider.find(request_id) else {
                return Ok(());
            };
            let event = match result {
                Ok(()) => {
                    if *pegout.stage() == PegoutStage::Signed {
                        metrics.record_pegout_broadcast();
                    }
                    let txid = pegout.txid();
                    LifeEvent::Taken { txid }
                }
                Err(reason) => LifeEvent::Refused(reason),
            };
            decider.step(unit, request_id, event)
        })
    }

    /// Shown at once, since nothing of it is written down; told in its turn.
    fn troubled(&mut self, request_id: RequestId, trouble: String) {
        let Phase::Ready(ready) = &mut self.phase else {
            return;
        };
        if ready.memory.set_trouble(&request_id, &trouble) {
            self.args.store.show_trouble(&request_id, &trouble);
            let tell = PegoutEvent::Trouble {
                request_id,
                trouble,
            };
            ready.gather(Unit {
                effects: vec![Effect::Tell(tell)],
                ..Unit::default()
            });
        }
    }

    fn looked(&mut self, request_id: RequestId, event: LifeEvent) -> Result<(), Fault> {
        let Phase::Ready(ready) = &self.phase else {
            return Ok(());
        };
        let Some(held) = ready.memory.get(&request_id) else {
            return Ok(());
        };
        // Meanwhile its signatures may have come.
        let open = held.pegout.stage().takes_signatures();
        if !open && matches!(event, LifeEvent::Ended(_)) {
            return Ok(());
        }
        if held.pegout.is_completed_by(&event) {
            self.take(Input::Complete { request_id, event })
        } else {
            self.decide(|decider, unit| decider.step(unit, &request_id, event))
        }
    }
}
