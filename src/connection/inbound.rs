//! What comes from governance, and what becomes of it: the answer to a registration, frames,
//! deliveries to the subscribers.

use std::time::{Duration, SystemTime};

use ractor::{RpcReplyPort, rpc::CallResult};
use tokio::time::Instant;
use tracing::warn;

use super::{
    ConnectionMessage, ConnectionState, Generation, REDELIVERY_DEADLINE, SessionFault,
    fault::Phase,
    line::Registered,
    session::InboundFrame,
    state::{Event, ImpossibleEvent, State},
};
use crate::{
    buffer::{BufferMessage, HandledMessage, record::DeadLetter},
    message::{GovernanceError, GovernanceErrorCode, Lane, RegistrationAck, wire},
    proto::{self, stream_response::Control},
    routing::{Arrival, Report, Router},
};

/// How long nothing is sent when governance wants less and does not say for how long.
const RATE_LIMITED_PAUSE: Duration = Duration::from_secs(1);

impl ConnectionState {
    pub(super) fn frame_received(
        &mut self,
        dial: u64,
        frame: InboundFrame,
    ) -> Result<(), ImpossibleEvent> {
        // One of a session that is over, or was taken over from: its successor brings it again.
        if self.machine.state().dial() != Some(dial) {
            return Ok(());
        }
        self.args.metrics.record_frame_received();
        self.happen(Event::Heard { dial })?;
        match self.machine.state() {
            State::Registering { .. } => self.registration_answered(dial, frame.frame),
            State::Judging { .. } => {
                if let Some(line) = self.lines.current_mut() {
                    line.early.push(frame);
                }
                Ok(())
            }
            _ => self.take_in(dial, frame.frame),
        }
    }

    /// The first frame of a session: nothing may come before governance's answer.
    fn registration_answered(
        &mut self,
        dial: u64,
        frame: proto::StreamResponse,
    ) -> Result<(), ImpossibleEvent> {
        let ack = match frame.control {
            Some(Control::RegistrationAck(ack)) => ack,
            Some(Control::Error(error)) => {
                return self.refused(dial, GovernanceError::from(error), Phase::Registering);
            }
            _ => {
                let fault = "a frame came before the answer to the registration".to_owned();
                return self.end(dial, SessionFault::Protocol(fault));
            }
        };
        if !frame.messages.is_empty() || !frame.acknowledgements.is_empty() {
            let fault = "the answer to the registration came with something else".to_owned();
            return self.end(dial, SessionFault::Protocol(fault));
        }
        let ack = match RegistrationAck::try_from(ack) {
            Ok(ack) => Box::new(ack),
            Err(invalid) => return self.end(dial, invalid.within("registration_ack").into()),
        };
        let epoch = self.lines.epoch_of(dial);
        if ack.node_id != self.args.node.node_id || Some(ack.epoch) != epoch {
            let fault = format!(
                "the registration of node {} in epoch {} was answered, ours is {} in epoch {}",
                ack.node_id,
                ack.epoch,
                self.args.node.node_id,
                epoch.unwrap_or_default(),
            );
            return self.end(dial, SessionFault::Protocol(fault));
        }
        if let Some(fault) = self.misjudged(&ack) {
            return self.end(dial, fault);
        }
        if let Some(line) = self.lines.current_mut() {
            line.limits = ack.limits.clone();
        }
        let interval = ack.heartbeat_interval;
        self.ack = Some(ack);
        self.happen(Event::Registered { dial, interval })
    }

    /// Why a store may not go on that governance takes for another kind than it takes itself for.
    fn misjudged(&self, ack: &RegistrationAck) -> Option<SessionFault> {
        let Registered {
            outbox_id,
            restored,
            ..
        } = self.lines.current()?.registration?;
        match (restored, ack.recall_due) {
            // It may lack what was signed: an operator has it treated as a restored one.
            (false, true) => Some(SessionFault::StoreLost { outbox_id }),
            (true, false) => {
                let fault = "a restored store was accepted as one that is not";
                Some(SessionFault::Protocol(fault.to_owned()))
            }
            _ => None,
        }
    }

    fn refused(
        &mut self,
        dial: u64,
        error: GovernanceError,
        phase: Phase,
    ) -> Result<(), ImpossibleEvent> {
        let registered = self.lines.current().and_then(|line| line.registration);
        self.end(dial, SessionFault::refused(error, registered, phase))
    }

    /// What came before the two records were found to fit.
    pub(super) fn take_in_early(&mut self, dial: u64) -> Result<(), ImpossibleEvent> {
        let early = self
            .lines
            .current_mut()
            .map(|line| std::mem::take(&mut line.early));
        for frame in early.unwrap_or_default() {
            if self.is_live(dial) {
                self.take_in(dial, frame.frame)?;
            }
        }
        Ok(())
    }

    fn is_live(&self, dial: u64) -> bool {
        let live = self.machine.state().live();
        live.is_some_and(|live| live.dial == dial)
    }

    /// A frame of a session that is judged: acknowledgements, then messages, then control.
    fn take_in(&mut self, dial: u64, frame: proto::StreamResponse) -> Result<(), ImpossibleEvent> {
        self.take_acknowledgements(dial, &frame.acknowledgements)?;
        let news = self.take_messages(dial, frame.messages)?;
        if !self.is_live(dial) {
            return Ok(());
        }
        let now = Instant::now();
        let within_limits = self
            .lines
            .current_mut()
            .is_none_or(|line| news || line.idle_frame(now));
        if !within_limits {
            let limit = self.args.config.idle_frames_per_second;
            let fault = format!("more than {limit} frames a second that bring nothing new");
            return self.end(dial, SessionFault::Excess(fault));
        }
        match frame.control {
            Some(control) => self.take_control(dial, control),
            None => Ok(()),
        }
    }

    fn take_acknowledgements(
        &mut self,
        dial: u64,
        acknowledgements: &[proto::Acknowledgement],
    ) -> Result<(), ImpossibleEvent> {
        if acknowledgements.is_empty() {
            return Ok(());
        }
        if acknowledgements.len() > Lane::ALL.len() {
            let fault = format!("{} acknowledgements in a frame", acknowledgements.len());
            return self.end(dial, SessionFault::Protocol(fault));
        }
        let mut lanes = Vec::with_capacity(acknowledgements.len());
        for ack in acknowledgements {
            match wire::lane_from_wire(ack.lane) {
                Ok(lane) => lanes.push((lane, ack.through_sequence)),
                Err(invalid) => return self.end(dial, invalid.within("acknowledgements").into()),
            }
        }
        for &(lane, through) in &lanes {
            self.happen(Event::Acknowledged {
                dial,
                lane,
                through,
            })?;
        }
        if let Some(epoch) = self.lines.epoch_of(dial) {
            self.tell_buffer(BufferMessage::Acknowledged { epoch, lanes });
        }
        Ok(())
    }

    /// Whether there was something new among them.
    fn take_messages(
        &mut self,
        dial: u64,
        messages: Vec<proto::SequencedMessage>,
    ) -> Result<bool, ImpossibleEvent> {
        let (received, mut news) = (messages.len() as u64, false);
        for message in messages {
            let Some(router) = &mut self.router else {
                break;
            };
            match router.accept(message) {
                Ok((_, Arrival::New)) => news = true,
                Ok((lane, Arrival::Duplicate)) => {
                    self.acknowledgements.tell_again(lane, Instant::now());
                }
                Err(fault) => {
                    self.end(dial, SessionFault::Protocol(fault))?;
                    break;
                }
            }
        }
        let answers = self.router.as_mut().and_then(Router::take_uncorrelated);
        if let Some((through, request_ids)) = answers {
            self.tell_buffer(BufferMessage::Correlate {
                connection: self.myself.clone(),
                of: self.generation,
                through,
                request_ids,
            });
        }
        if received > 0 {
            self.args.board.count_messages(0, received);
            self.advance_deliveries();
        }
        Ok(news)
    }

    fn take_control(&mut self, dial: u64, control: Control) -> Result<(), ImpossibleEvent> {
        match control {
            Control::HeartbeatAck(ack) => {
                self.heartbeat_answered(ack.number);
                Ok(())
            }
            Control::Drain(drain) => {
                let grace = Duration::from_millis(drain.grace_ms.into());
                let reason = wire::for_people(drain.reason, 256);
                warn!(reason, ?grace, "governance will end this session");
                self.happen(Event::Drain { dial, grace })
            }
            Control::Error(error) => self.governance_error(dial, GovernanceError::from(error)),
            Control::RegistrationAck(_) => {
                let fault = "the registration was answered twice".to_owned();
                self.end(dial, SessionFault::Protocol(fault))
            }
            Control::ReconcileResponse(answer) => self.reconciliation_answered(dial, answer),
            Control::RecallPage(page) => self.recall_told(dial, page),
        }
    }

    fn heartbeat_answered(&mut self, number: u64) {
        let live = self.machine.state().live();
        if let Some(round_trip) = live.and_then(|live| live.round_trip(number, Instant::now())) {
            self.args.metrics.record_heartbeat(round_trip);
            let now = SystemTime::now();
            self.args.board.update(|status| {
                status.connection.last_heartbeat = Some(now);
                status.connection.round_trip_us = u64::try_from(round_trip.as_micros()).ok();
            });
        }
    }

    fn governance_error(
        &mut self,
        dial: u64,
        error: GovernanceError,
    ) -> Result<(), ImpossibleEvent> {
        self.args.metrics.record_governance_error(error.code.name());
        if error.code.ends_session() {
            return self.refused(dial, error, Phase::Live);
        }
        if error.code == GovernanceErrorCode::RateLimited
            && let Some(epoch) = self.lines.epoch_of(dial)
        {
            let pause = error.retry_after.unwrap_or(RATE_LIMITED_PAUSE);
            self.tell_buffer(BufferMessage::PauseSession { epoch, pause });
        }
        // What concerns a request comes as its sequenced response; this is for the operator.
        warn!(%error, request = error.request_id.as_ref().map(tracing::field::display), "governance reports an error");
        self.args.board.update(|status| {
            status.connection.last_fault = Some(error.to_string());
        });
        Ok(())
    }

    pub(super) fn delivery_ended(&mut self, of: Generation, report: Report) {
        let lane = report.lane;
        let router = if of == self.generation {
            self.router.as_mut()
        } else {
            let former = self.former.as_mut().filter(|(former, _)| *former == of);
            former.map(|(_, router)| router)
        };
        if let Some(router) = router {
            let handled = router.delivered(report, Instant::now());
            self.record(of, lane, handled);
            self.advance_deliveries();
            self.post_blocked();
        }
    }

    /// Starts every delivery that can be started.
    pub(super) fn advance_deliveries(&mut self) {
        let Some(router) = &mut self.router else {
            return;
        };
        let (awaited, handled) = router.advance(Instant::now());
        let of = self.generation;
        for delivery in awaited {
            let connection = self.myself.clone();
            let report = async move {
                fault_point!(connection, DeliveryWait);
                let report = delivery.report().await;
                // A connection that is gone starts again from what is recorded.
                let _ = connection.cast(ConnectionMessage::DeliveryEnded { of, report });
            };
            self.spawn("delivery", report);
        }
        for (lane, handled) in handled {
            self.record(of, lane, vec![handled]);
        }
    }

    fn record(&self, of: Generation, lane: Lane, messages: Vec<HandledMessage>) {
        if !messages.is_empty() {
            self.tell_buffer(BufferMessage::Handled {
                adoptions: of.adoptions,
                lane,
                messages,
            });
        }
    }

    /// Decodes a dead letter anew and hands it to its subscriber, outside its lane: its place
    /// there is taken. It stays a dead letter until it is handled.
    pub(super) fn redeliver(
        &mut self,
        number: u64,
        letter: DeadLetter,
        reply: RpcReplyPort<Result<(), String>>,
    ) {
        let (subscribers, buffer) = (self.args.subscribers.clone(), self.args.buffer.clone());
        let redelivery = async move {
            let handled = |meaning| {
                let message = |reply| BufferMessage::LetterHandled {
                    number,
                    meaning,
                    reply,
                };
                buffer.call(message, Some(REDELIVERY_DEADLINE))
            };
            let redelivered = subscribers.redeliver(letter);
            let result = match tokio::time::timeout(REDELIVERY_DEADLINE, redelivered).await {
                Ok(Ok(meaning)) => match handled(meaning).await {
                    Ok(CallResult::Success(())) => Ok(()),
                    _ => Err(
                        "it was handled, but the store did not say so; it may come again"
                            .to_owned(),
                    ),
                },
                Ok(Err(failure)) => Err(failure),
                Err(_) => Err(format!(
                    "its subscriber did not answer within {REDELIVERY_DEADLINE:?}"
                )),
            };
            let _ = reply.send(result);
        };
        self.spawn("redelivery", redelivery);
    }

    pub(super) fn post_blocked(&self) {
        let Some(router) = &self.router else { return };
        let now = Instant::now();
        let blocked: Vec<_> = Lane::ALL
            .into_iter()
            .map(|lane| (lane, router.blocked(lane, now)))
            .collect();
        self.args.board.update(|status| {
            for (lane, blocked) in blocked {
                if let Some(lane) = status.lanes.iter_mut().find(|status| status.lane == lane) {
                    lane.blocked = blocked;
                }
            }
        });
    }
}
