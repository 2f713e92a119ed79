//! What comes from the stream: signatures to be applied, and answers to peg-in notices.

use std::time::Instant;

use ractor::{ActorProcessingErr, ActorRef};
use tracing::{info, info_span, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{
    BridgeState, event::PegoutEvent, message::BridgeMessage, pegout::Applied, store::Seen,
};
use crate::{
    message::SignatureResponse,
    routing::{Answer, BridgeEvent, Delivered, Delivery, Handled},
};

impl BridgeState {
    /// Handles a batch, makes it durable, and only then says so and acts on it.
    pub(super) async fn deliver(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        delivery: Delivery<BridgeEvent>,
    ) -> Result<(), ActorProcessingErr> {
        let Delivery { messages, reply } = delivery;
        let signatures = |message: &Delivered<BridgeEvent>| {
            matches!(message.event, BridgeEvent::SignatureResponse { .. })
        };
        let untold = self.args.store.lock().federations.is_empty();
        let handled = if untold && messages.iter().any(signatures) {
            Handled {
                answers: Vec::new(),
                failure: Some("the chain has not told which federations there are".to_owned()),
            }
        } else {
            let mut answers = Vec::new();
            for message in &messages {
                answers.push(self.receive(message)?);
            }
            match self.settle(myself).await {
                Ok(()) => Handled {
                    answers,
                    failure: None,
                },
                Err(error) => Handled {
                    answers: Vec::new(),
                    failure: Some(error.to_string()),
                },
            }
        };
        // A stream that is gone will deliver again what it did not record.
        let _ = reply.send(handled);
        Ok(())
    }

    fn receive(
        &mut self,
        message: &Delivered<BridgeEvent>,
    ) -> Result<Option<Answer>, ActorProcessingErr> {
        let span = info_span!("bridge.receive", lane = %message.lane, sequence = message.sequence);
        let _ = span.set_parent(message.trace.clone());
        let _entered = span.enter();
        let store = self.args.store.clone();
        let reject = |reason| Answer::Reject { reason };
        if let Seen::Handled(rejected) = store.change(|known| known.seen(message)) {
            info!("delivered again; it was handled before");
            return Ok(rejected.map(reject));
        }
        let rejected = match &message.event {
            BridgeEvent::SignatureResponse { response, late } => {
                if *late {
                    info!(request_id = %response.request_id, "response after the deadline");
                }
                let misfit = self.respond(response)?.err();
                if let Some(reason) = &misfit {
                    warn!(request_id = %response.request_id, reason, "response of no use");
                }
                misfit
            }
            BridgeEvent::PeginAck(ack) => {
                info!(outpoint = %ack.outpoint, status = ?ack.status, "peg-in");
                store.change(|known| known.set_pegin(ack.outpoint, ack.status.clone()));
                None
            }
        };
        store.change(|known| known.handled(message, rejected.clone()));
        Ok(rejected.map(reject))
    }

    /// Applies a response; the inner error says why it is of no use.
    fn respond(
        &mut self,
        response: &SignatureResponse,
    ) -> Result<Result<(), String>, ActorProcessingErr> {
        let (request_id, began) = (&response.request_id, Instant::now());
        let applied = self.args.store.change(|known| {
            let version = response.federation_version;
            let federation = known.federation(version);
            let federation = federation.map(|(federation, _)| federation.clone());
            let pegout = known
                .pegout_mut(request_id)
                .ok_or_else(|| format!("no peg-out of this bridge is {request_id}"))?;
            let federation = federation.ok_or_else(|| format!("no federation {version} here"))?;
            let applied = pegout.respond(response, &federation);
            applied.map_err(|misfit| misfit.to_string())
        });
        let Applied { bad, event } = match applied {
            Ok(applied) => applied,
            Err(reason) => return Ok(Err(reason)),
        };
        self.args.metrics.record_signatures_applied(began.elapsed());
        for fault in bad {
            warn!(%request_id, %fault, "bad signature");
            let member = fault
                .member()
                .map_or_else(|| "none".to_owned(), ToString::to_string);
            self.args.metrics.record_bad_signature(&member);
            let request_id = request_id.clone();
            self.unsaid
                .push(PegoutEvent::BadSignature { request_id, fault });
        }
        if let Some(event) = event {
            self.step(request_id, event)?;
        }
        Ok(Ok(()))
    }
}
