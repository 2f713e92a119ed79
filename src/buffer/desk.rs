//! The buffer at work on one message: decide, stage, and, once it is durable, carry out.

use std::{collections::HashSet, time::SystemTime};

use ractor::{ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tracing::{debug, info, info_span, warn};

use super::{
    BufferArguments, BufferMessage, Effect, MAX_IN_FLIGHT, Outgoing, PACE_BURST, Ready, Reconciled,
    RequestStanding, Session, SessionFacts,
    commits::{Confirmed, Sent},
    flight::Flight,
    inbound::{self, HandledMessage},
    intake::{self, Intake, Submission},
    lookups::{Found, Known},
    record::{DeadLetter, Record},
    resume::{self, ResumeFault},
    retained::{RequestRecord, Restoration, Standing},
};
use crate::{
    config::WindowConfig,
    connection::ConnectionMessage,
    error::StreamError,
    message::{
        CancelReason, Lane, LaneState, OpeningId, PeginNotification, PerLane, RegistrationAck,
        RequestId,
    },
    names,
    pace::Pace,
    request::RequestMessage,
    storage::{StoreError, User},
    supervisor::SupervisorMessage,
    telemetry::TraceContext,
    timer::Timer,
};

/// The actor's hands for one message: decide, stage, and later carry out.
pub(super) struct Desk<'a> {
    pub(super) args: &'a BufferArguments,
    pub(super) myself: &'a ActorRef<BufferMessage>,
    pub(super) user: &'a User,
    pub(super) pace: &'a mut Timer,
    pub(super) ready: &'a mut Ready,
    pub(super) intake_closed: bool,
    pub(super) opening: OpeningId,
}

type Reply = RpcReplyPort<Result<(), StreamError>>;

impl Desk<'_> {
    pub(super) fn request_signatures(
        &mut self,
        request: Submission,
        trace: TraceContext,
        deadline: SystemTime,
        reply: Reply,
        found: &Found,
    ) {
        let span = info_span!("accept", request = %request.request_id);
        trace.adopt(&span);
        let _entered = span.enter();
        if self.intake_closed {
            let _ = reply.send(Err(StreamError::ShuttingDown));
            return;
        }
        let tx_type = request.tx_type;
        let intake = intake::signature_request(
            self.known(found),
            &self.args.config,
            request,
            TraceContext::of(&span).or(trace),
            SystemTime::now(),
            deadline,
        );
        if matches!(intake, Ok(Intake::Accepted(_))) {
            self.args.metrics.record_signature_request(tx_type.name());
        }
        self.take_in(intake, Some(reply));
    }

    pub(super) fn notify_pegin(
        &mut self,
        notification: PeginNotification,
        trace: TraceContext,
        reply: Reply,
        found: &Found,
    ) {
        let span = info_span!("accept", outpoint = %notification.outpoint());
        trace.adopt(&span);
        let _entered = span.enter();
        if self.intake_closed {
            let _ = reply.send(Err(StreamError::ShuttingDown));
            return;
        }
        let intake = intake::pegin(
            self.known(found),
            &self.args.config,
            notification,
            TraceContext::of(&span).or(trace),
            SystemTime::now(),
        );
        self.take_in(intake, Some(reply));
    }

    pub(super) fn cancel(
        &mut self,
        request_id: &RequestId,
        reason: CancelReason,
        trace: TraceContext,
        reply: Option<Reply>,
        found: &Found,
    ) {
        let retained = &self.ready.retained;
        if let (CancelReason::Deadline, Some(record)) = (reason, retained.open_request(request_id))
        {
            self.args
                .metrics
                .record_request_timeout(record.request.tx_type.name());
        }
        let now = SystemTime::now();
        let intake = intake::cancel(self.known(found), request_id, reason, trace, now);
        self.take_in(intake, reply);
    }

    pub(super) fn take_in(&mut self, intake: Result<Intake, StreamError>, reply: Option<Reply>) {
        let (records, answer) = match intake {
            Ok(Intake::Accepted(records)) => (records, Ok(())),
            Ok(Intake::Known) => (Vec::new(), Ok(())),
            Err(error) => {
                debug!(%error, "refused");
                (Vec::new(), Err(error))
            }
        };
        let effects = reply
            .map(|reply| Effect::Reply(reply, answer))
            .into_iter()
            .collect();
        self.stage(records, effects);
    }

    pub(super) fn known<'b>(&'b self, found: &'b Found) -> Known<'b> {
        Known {
            retained: &self.ready.retained,
            found,
        }
    }

    /// Which of these were never made here.
    pub(super) fn unknown(&self, request_ids: Vec<RequestId>, found: &Found) -> HashSet<RequestId> {
        let known = self.known(found);
        let ids = request_ids.into_iter();
        ids.filter(|id| known.request(id).is_none()).collect()
    }

    pub(super) fn look_up(
        &self,
        request_id: RequestId,
        found: &Found,
    ) -> Result<RequestStanding, StreamError> {
        match self.known(found).request(&request_id) {
            Some(record) => standing(record),
            None => Err(intake::unknown(&self.ready.retained, &request_id)),
        }
    }

    pub(super) fn prepare_session(&mut self, connection: ActorRef<ConnectionMessage>, dial: u64) {
        if self.hold(&connection, dial) {
            return;
        }
        let retained = &self.ready.retained;
        let identity = retained.identity;
        let epoch = identity.epoch.max(self.ready.fenced_by) + 1;
        let opening = self.opening;
        let facts = SessionFacts {
            dial,
            epoch,
            opening,
            opened_before: self.ready.opened_before,
            outbox_id: identity.outbox_id,
            restored: identity.restoration == Restoration::Reconciling,
            ledger_id: identity.ledger_id,
            lanes: PerLane::from_fn(|lane| {
                let lane = retained.lanes.get(lane).counters;
                LaneState {
                    first_retained: lane.first_unacknowledged,
                    next_new: lane.next_new,
                    next_expected: lane.handled_through + 1,
                    last_received: lane.last_handled,
                    window_messages: 0,
                    window_bytes: 0,
                }
            }),
            adoptions: identity.adoptions,
            loads: self.ready.loads,
            late: retained
                .open_requests()
                .filter(|record| record.is_late())
                .map(|record| record.request.request_id.clone())
                .collect(),
        };
        self.ready.session = Some(Session {
            epoch,
            connection,
            flight: None,
        });
        let prepared = ConnectionMessage::SessionPrepared(Box::new(facts));
        self.stage(
            vec![Record::Epoch { epoch, opening }],
            vec![Effect::TellConnection(prepared)],
        );
    }

    /// Whether another ledger was adopted.
    pub(super) fn judge_session(
        &mut self,
        epoch: u64,
        ack: &RegistrationAck,
        may_adopt: bool,
    ) -> bool {
        let retained = &self.ready.retained;
        let Some(session) = self
            .ready
            .session
            .as_mut()
            .filter(|session| session.epoch == epoch)
        else {
            return false;
        };
        let known = retained.identity.ledger_id;
        let changed = known.is_some_and(|known| known != ack.ledger_id);
        let adopts = changed && may_adopt;
        if let Err(fault) = resume::judge(retained, ack) {
            let fault = if adopts { ResumeFault::Adopted } else { fault };
            warn!(%fault, epoch, "session refused");
            // The next session begins with the new ledger, as one with any other does.
            let adopted = adopts.then_some(Record::Adopted(ack.ledger_id));
            // It stays so, whatever its callers bring meanwhile.
            let went_back = fault.went_back().then_some(Record::WentBack);
            let refused = ConnectionMessage::SessionRefused { epoch, fault };
            self.stage(
                adopted.into_iter().chain(went_back).collect(),
                vec![Effect::TellConnection(refused)],
            );
            return adopts;
        }
        let mut records = resume::resumed(retained, ack);
        for record in &records {
            self.ready.retained.apply(record);
        }
        self.ready.retained.confirm();
        let given_up = intake::given_up(&self.ready.retained, SystemTime::now());
        for record in &given_up {
            self.ready.retained.apply(record);
        }
        records.extend(given_up);
        let pace = ack.limits.max_messages_per_second;
        let pace = pace.map(|rate| Pace::new(rate, PACE_BURST, Instant::now()));
        let granted = |lane| {
            let theirs = ack.lanes.get(lane);
            WindowConfig {
                messages: theirs.window_messages.min(MAX_IN_FLIGHT),
                bytes: theirs.window_bytes,
            }
        };
        session.flight = Some(Flight::new(&self.ready.retained, granted, pace));
        let mut effects = vec![Effect::TellConnection(ConnectionMessage::SessionJudged {
            epoch,
        })];
        if self.ready.retained.identity.reconciling {
            self.ready.recollection.begin();
            let listed = resume::listed(&self.ready.retained);
            info!(
                requests = listed.len(),
                "reconciling with governance's ledger"
            );
            let reconcile = ConnectionMessage::Reconcile { epoch, listed };
            effects.push(Effect::TellConnection(reconcile));
        }
        self.commit(records, effects);
        false
    }

    /// Governance's ledger was compared with ours: what it does not know is sent again, and what
    /// nobody here waits for is cancelled there.
    pub(super) fn reconciled(&mut self, epoch: u64, reconciled: Reconciled, found: &Found) {
        let current = self.ready.session.as_ref().map(|session| session.epoch);
        if current != Some(epoch) || !self.ready.retained.identity.reconciling {
            return;
        }
        if self.ready.retained.identity.restoration == Restoration::Reconciling {
            self.recollect(epoch, reconciled, found);
            return;
        }
        info!(
            held = reconciled.held.len(),
            unlisted = reconciled.unlisted.len(),
            "reconciled"
        );
        let records = resume::reconciled(&self.ready.retained, reconciled, SystemTime::now());
        self.stage(records, Vec::new());
    }

    pub(super) fn acknowledged(&mut self, epoch: u64, lanes: &[(Lane, u64)]) {
        let Some(session) = self
            .ready
            .session
            .as_mut()
            .filter(|session| session.epoch == epoch)
        else {
            return;
        };
        let Some(flight) = &mut session.flight else {
            return;
        };
        let mut records = Vec::new();
        for &(lane, through) in lanes {
            if !flight.covers(lane, through) {
                warn!(%lane, through, "governance acknowledged what was never sent");
                let fault = ConnectionMessage::AcknowledgedTooMuch {
                    epoch,
                    lane,
                    through,
                };
                self.stage(Vec::new(), vec![Effect::TellConnection(fault)]);
                return;
            }
            flight.acknowledged(lane, through);
            if through
                >= self
                    .ready
                    .retained
                    .lanes
                    .get(lane)
                    .counters
                    .first_unacknowledged
            {
                records.push(Record::Acknowledged { lane, through });
            }
        }
        self.stage(records, Vec::new());
    }

    pub(super) fn handled(&mut self, adoptions: u64, lane: Lane, messages: &[HandledMessage]) {
        let retained = &self.ready.retained;
        let now = SystemTime::now();
        if adoptions != retained.identity.adoptions {
            // Their place in the lane is that of a ledger that is gone; what they mean is not.
            let meanings = messages.iter().map(|message| &message.meaning);
            let records = meanings.filter_map(|meaning| inbound::meaning(retained, meaning, now));
            let records = records.collect();
            self.stage(records, Vec::new());
            return;
        }
        let records = inbound::handled(retained, lane, messages, now);
        if let Some(last) = messages.last() {
            *self.ready.withheld.get_mut(lane) = Some(last.sequence);
        }
        self.stage(records, Vec::new());
    }

    /// Has governance acknowledged what is recorded. While as many of our answers wait in a lane
    /// as messages were granted, it is not: governance's window stays shut, and what waits here
    /// stays bounded.
    pub(super) fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        for lane in Lane::ALL {
            let retained = self.ready.retained.lanes.get(lane);
            let answers = retained.unacknowledged().saturating_sub(retained.used);
            if answers <= u64::from(self.args.inbound_window)
                && let Some(through) = self.ready.withheld.get_mut(lane).take()
            {
                // What was handled after something that a failed commit lost is not recorded.
                let through = through.min(retained.counters.handled_through);
                let recorded = ConnectionMessage::Recorded { lane, through };
                effects.push(Effect::TellConnection(recorded));
            }
        }
    }

    /// Applies the records, and has them committed together with what may be transmitted because
    /// of them. The effects come after the commit.
    pub(super) fn stage(&mut self, records: Vec<Record>, effects: Vec<Effect>) {
        for record in &records {
            self.ready.retained.apply(record);
        }
        self.commit(records, effects);
    }

    /// As [`stage`](Self::stage), for records that are applied already.
    pub(super) fn commit(&mut self, mut records: Vec<Record>, mut effects: Vec<Effect>) {
        for record in &records {
            self.derive(record, &mut effects);
        }
        self.forget();
        self.acknowledge(&mut effects);
        self.transmit(&mut records, &mut effects);
        if records.is_empty() && self.ready.pending.is_empty() {
            self.carry_out(effects);
        } else {
            // Without records too: what is told must not overtake what it rests on.
            let ready = &mut *self.ready;
            match ready.commits.queue(self.user, &mut ready.retained) {
                Ok((ticket, sent)) => {
                    self.ready.pending.push_back((ticket, effects));
                    self.heed(sent);
                }
                Err(fault) => self.ready.fault = Some(fault),
            }
        }
    }

    /// Lets go of what has been kept long enough. It is committed with the next group; should it
    /// not be, it is let go of again.
    pub(super) fn forget(&mut self) {
        let (config, now) = (&self.args.config, SystemTime::now());
        let since = now.checked_sub(config.acknowledged_for);
        let since = since.unwrap_or(SystemTime::UNIX_EPOCH);
        let retained = &mut self.ready.retained;
        while let Some(record) = retained.to_prune(config.acknowledged_retained, since) {
            retained.apply(&record);
        }
    }

    pub(super) fn transmit(&mut self, records: &mut Vec<Record>, effects: &mut Vec<Effect>) {
        if let Some(session) = &mut self.ready.session
            && let Some(flight) = &mut session.flight
        {
            let now = Instant::now();
            let (sent, outgoing) = flight.transmit(&mut self.ready.retained, now);
            records.extend(sent);
            if let Some(until) = flight.paced_until() {
                let pause = until.saturating_duration_since(now);
                self.pace
                    .arm(pause, self.myself, || BufferMessage::TransmitMore);
            }
            if !outgoing.is_empty() {
                effects.push(Effect::Transmit(session.epoch, outgoing));
            }
        }
    }

    /// What a record entails for others, once it is durable.
    pub(super) fn derive(&self, record: &Record, effects: &mut Vec<Effect>) {
        match record {
            Record::Opened(request) => effects.push(Effect::Opened(vec![request.into()])),
            Record::CancelAsked {
                request_id, reason, ..
            }
            | Record::GivenUp { request_id, reason } => {
                if *reason == CancelReason::Deadline {
                    let late = ConnectionMessage::MarkLate(request_id.clone());
                    effects.push(Effect::TellConnection(late));
                }
                effects.extend(self.restate(request_id));
            }
            Record::Progressed { request_id, .. } | Record::Parked { request_id, .. } => {
                effects.extend(self.restate(request_id));
            }
            Record::Settled {
                request_id,
                outcome,
                ..
            } => {
                effects.extend(self.restate(request_id));
                if let Some(record) = self.ready.retained.request(request_id) {
                    let accepted_at = record.request.accepted_at;
                    effects.push(Effect::Completed(outcome.clone(), accepted_at));
                }
            }
            Record::DeadLetter(letter) => {
                self.args.metrics.record_dead_letter(letter.lane);
                let DeadLetter {
                    lane,
                    sequence,
                    reason,
                    ..
                } = letter;
                warn!(%lane, sequence, reason, "message of governance kept as a dead letter");
            }
            _ => {}
        }
    }

    /// Tells its tracker how a request stands that is in memory.
    fn restate(&self, request_id: &RequestId) -> Option<Effect> {
        let record = self.ready.retained.request(request_id)?;
        let stands = RequestMessage::Stands(standing(record));
        Some(Effect::TellTracker(request_id.clone(), stands))
    }

    /// What rests on what is durable now is told and done; the next batch is on its way.
    pub(super) fn confirmed(&mut self, confirmed: Confirmed) -> Result<(), StoreError> {
        let ready = &mut *self.ready;
        let sent = ready.commits.send(self.user, &mut ready.retained)?;
        self.heed(sent);
        let mut due = Vec::new();
        while let Some((_, effects)) = self
            .ready
            .pending
            .pop_front_if(|(ticket, _)| *ticket <= confirmed.through)
        {
            due.extend(effects);
        }
        let under_way = self.ready.waiting.under_way();
        for settled in confirmed.settled {
            self.ready.leaving.push(under_way, settled);
        }
        // Before anyone is told of it: whoever was told finds it in the status.
        self.ready.publish(self.args);
        self.carry_out(due);
        self.ready.let_go();
        Ok(())
    }

    fn heed(&self, sent: Sent) {
        if sent == Sent::Unchanged {
            let generation = self.ready.commits.generation();
            let _ = self.myself.cast(BufferMessage::Unchanged { generation });
        }
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        // One group's messages travel together, in one cast.
        let mut transmission: Option<(u64, Vec<Outgoing>)> = None;
        let mut opened = Vec::new();
        let mut early = Vec::new();
        for effect in effects {
            match effect {
                Effect::Reply(reply, answer) => {
                    let _ = reply.send(answer);
                }
                Effect::TellConnection(message) => self.tell_connection(message),
                Effect::Hold(connection, dial, fault) => {
                    let _ = connection.cast(ConnectionMessage::SessionHeld { dial, fault });
                }
                Effect::TellTracker(request_id, message) => {
                    let name = names::request(&self.args.instance, &request_id);
                    match ActorRef::<RequestMessage>::where_is(name) {
                        Some(tracker) => {
                            let _ = tracker.cast(message);
                        }
                        // It may be about to start: the supervisor knows when it has.
                        None => early.push((request_id, message)),
                    }
                }
                Effect::Answer(reply, standing) => {
                    let _ = reply.send(standing);
                }
                Effect::Discarded(reply, known) => {
                    let _ = reply.send(known);
                }
                Effect::LetterHandled(reply) => {
                    let _ = reply.send(());
                }
                Effect::Opened(requests) => opened.extend(requests),
                Effect::Reopened(opened) => {
                    let reopened = SupervisorMessage::RequestReopened { opened };
                    let _ = self.args.supervisor.cast(reopened);
                }
                Effect::Completed(outcome, accepted_at) => {
                    let latency = accepted_at.elapsed().unwrap_or_default();
                    self.args
                        .metrics
                        .record_request_completed(outcome.name(), latency);
                }
                Effect::Transmit(epoch, outgoing) => match &mut transmission {
                    Some((same, messages)) if *same == epoch => messages.extend(outgoing),
                    _ => transmission = Some((epoch, outgoing)),
                },
            }
        }
        if !opened.is_empty() {
            let _ = self
                .args
                .supervisor
                .cast(SupervisorMessage::RequestsOpened { opened });
        }
        for (request_id, message) in early {
            let message = SupervisorMessage::TellTracker {
                request_id,
                message,
            };
            let _ = self.args.supervisor.cast(message);
        }
        if let Some((epoch, messages)) = transmission {
            self.tell_connection(ConnectionMessage::Transmit { epoch, messages });
        }
    }

    pub(super) fn tell_connection(&self, message: ConnectionMessage) {
        if let Some(session) = &self.ready.session {
            // One that died is replaced, and asks for a new session.
            let _ = session.connection.cast(message);
        }
    }
}

/// How a request stands, as its caller sees it.
fn standing(record: &RequestRecord) -> Result<RequestStanding, StreamError> {
    match &record.standing {
        Standing::Settled { outcome, .. } => Ok(RequestStanding::Settled(outcome.clone())),
        Standing::Open {
            parked: Some(reason),
            ..
        } => Err(StreamError::NeedsOperator {
            request_id: record.request.request_id.clone(),
            reason: reason.clone(),
        }),
        Standing::Open { progress, .. } => Ok(RequestStanding::Open(*progress)),
    }
}
