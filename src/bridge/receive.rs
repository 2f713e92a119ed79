//! What comes from the stream: signatures to be applied, and answers to peg-in notices.

use std::time::Instant;

use tracing::{error, info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    decide::Decider,
    event::PegoutEvent,
    life::{Action, Impossible, LifeEvent, PegoutStage},
    memory::Seen,
    pegout::{Applied, Pegout},
    tables,
    unit::{Effect, Reply, Unit},
};
use crate::{
    message::{RecalledRequest, SignatureResponse},
    routing::{Answer, BridgeEvent, Delivered, Delivery, Handled},
};

impl Decider<'_> {
    /// Takes a batch: a unit for each message, the answer with the last. Should an earlier one be
    /// durable when a later one fails, it is known when it comes again.
    pub(super) fn deliver(
        &mut self,
        delivery: Delivery<BridgeEvent>,
    ) -> Result<Vec<Unit>, Impossible> {
        let Delivery { messages, reply } = delivery;
        let mut units = Vec::with_capacity(messages.len() + 1);
        let mut handled = Handled::default();
        for message in &messages {
            let mut unit = Unit::default();
            handled.answers.push(self.receive(&mut unit, message)?);
            units.push(unit);
        }
        units.push(Unit::reply(Reply::Handled(reply, handled)));
        Ok(units)
    }

    fn receive(
        &mut self,
        unit: &mut Unit,
        message: &Delivered<BridgeEvent>,
    ) -> Result<Option<Answer>, Impossible> {
        let span = info_span!("bridge.receive", lane = %message.lane, sequence = message.sequence);
        let _ = span.set_parent(message.trace.clone());
        let _entered = span.enter();
        let reject = |reason| Answer::Reject { reason };
        if let Seen::Handled { place, rejected } = self.memory.see(message) {
            info!("delivered again; it was handled before");
            let delivery = self.memory.delivery(place);
            tables::put_delivery(&mut unit.batch, place, delivery);
            return Ok(rejected.map(reject));
        }
        let rejected = match &message.event {
            BridgeEvent::SignatureResponse { response, late } => {
                if *late {
                    info!(request_id = %response.request_id, "response after the deadline");
                }
                let misfit = self.respond(unit, response)?.err();
                if let Some(reason) = &misfit {
                    warn!(request_id = %response.request_id, reason, "response of no use");
                }
                misfit
            }
            BridgeEvent::PeginAck(ack) => {
                info!(outpoint = %ack.outpoint, status = ?ack.status, "peg-in");
                tables::put_pegin(&mut unit.batch, &ack.outpoint, &ack.status);
                None
            }
            BridgeEvent::RequestRecalled(recalled) => self.recall(unit, recalled)?.err(),
        };
        let (place, forgotten) = self.memory.handled(message, rejected.clone());
        let delivery = self.memory.delivery(place);
        tables::put_delivery(&mut unit.batch, place, delivery);
        if let Some(forgotten) = forgotten {
            tables::put_delivery(&mut unit.batch, forgotten, None);
        }
        Ok(rejected.map(reject))
    }

    /// Takes in a request of this node that governance recalls to a restored store: it is followed
    /// like one that was made here, and its answers come behind it. What admits a new peg-out is not
    /// asked: this one may be signed already. The inner error says why it is of no use.
    fn recall(
        &mut self,
        unit: &mut Unit,
        recalled: &RecalledRequest,
    ) -> Result<Result<(), String>, Impossible> {
        let request_id = &recalled.request_id;
        let Some(request) = &recalled.request else {
            return Ok(Ok(()));
        };
        match self.find(request_id) {
            Some(known) if known.payload_hash() == request.payload_hash() => {
                // The stream has it, whatever was known of that.
                self.step(unit, request_id, LifeEvent::Accepted)?;
            }
            Some(_) => {
                let fault = "another peg-out of this bridge has its id";
                error!(%request_id, fault, "a recalled request needs an operator");
                return Ok(Err(fault.to_owned()));
            }
            None => {
                info!(%request_id, txid = %request.txid(), "a peg-out that this store lacked");
                self.hold_new(unit, Pegout::recalled(request.clone(), self.now));
                // A lost store is paused as a restored one is: an operator looks before it goes on.
                self.pause_for_restore(unit);
                let (request_id, stage) = (request_id.clone(), PegoutStage::SignaturesRequested);
                let follow = Effect::Act(request_id.clone(), Action::Follow);
                let tell = Effect::Tell(PegoutEvent::Stage { request_id, stage });
                unit.effects.extend([tell, follow]);
            }
        }
        Ok(Ok(()))
    }

    /// Applies a response; the inner error says why it is of no use.
    fn respond(
        &mut self,
        unit: &mut Unit,
        response: &SignatureResponse,
    ) -> Result<Result<(), String>, Impossible> {
        let (request_id, began) = (&response.request_id, Instant::now());
        let Some(before) = self.find(request_id) else {
            return Ok(Err(format!("no peg-out of this bridge is {request_id}")));
        };
        let version = response.federation_version;
        let mut federations = self.federations.iter();
        let federation = federations.find(|(federation, _)| federation.version() == version);
        let Some((federation, _)) = federation else {
            return Ok(Err(format!("no federation {version} here")));
        };
        let mut pegout = (*before).clone();
        let Applied { bad, event } = match pegout.respond(response, federation) {
            Ok(applied) => applied,
            Err(misfit) => return Ok(Err(misfit.to_string())),
        };
        self.metrics.record_signatures_applied(began.elapsed());
        for fault in bad {
            warn!(%request_id, %fault, "bad signature");
            let member = fault
                .member()
                .map_or_else(|| "none".to_owned(), ToString::to_string);
            self.metrics.record_bad_signature(&member);
            let request_id = request_id.clone();
            let tell = PegoutEvent::BadSignature { request_id, fault };
            unit.effects.push(Effect::Tell(tell));
        }
        let action = match event {
            Some(event) => pegout.apply(event, self.now)?,
            None => None,
        };
        self.record(unit, &before, pegout);
        let act = action.map(|action| Effect::Act(request_id.clone(), action));
        unit.effects.extend(act);
        Ok(Ok(()))
    }

    pub(super) fn is_response(message: &Delivered<BridgeEvent>) -> bool {
        matches!(message.event, BridgeEvent::SignatureResponse { .. })
    }
}
