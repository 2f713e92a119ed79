//! The buffer: the durable truth. It accepts messages for governance, keeps them until governance
//! has them, keeps requests until they have their outcome, and records what subscribers handled.
//!
//! Every change is a batch of records: decided purely, applied, committed by the journal's
//! thread, and only then told to anyone. A failed commit fails the actor; its successor reads
//! what was kept, so that nothing is ever told that is not durable.

mod flight;
mod inbound;
mod intake;
pub mod journal;
mod memory;
mod resume;
pub mod retained;
mod writer;

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, info_span, warn};

use self::{
    flight::Flight,
    intake::Intake,
    journal::{DeadLetter, Entry, Journal, JournalError, OpenRequest, Record},
    resume::Sender,
    retained::{Known, RequestRecord, Retained, Standing},
    writer::{Ticket, Writer},
};
use crate::{
    config::{BufferConfig, InstanceName, WindowConfig},
    connection::ConnectionMessage,
    error::StreamError,
    health::StatusBoard,
    message::{
        CancelReason, Lane, LaneState, LedgerId, OutboxId, Outcome, PeginNotification, PerLane,
        Progress, RegistrationAck, RequestId,
    },
    names,
    request::{RequestMessage, StandingReply},
    supervisor::SupervisorMessage,
    telemetry::{Metrics, TraceContext},
};

pub(crate) use self::{
    inbound::{HandledMessage, Meaning},
    intake::Submission,
};
pub use self::{memory::MemoryJournal, resume::ResumeFault};

/// Most messages of a lane in flight, whatever window governance grants: what waits for the
/// transport is bounded by it.
pub(crate) const MAX_IN_FLIGHT: u32 = 4096;

/// What the buffer is asked and told.
#[derive(Debug)]
pub(crate) enum BufferMessage {
    /// Accept a signature request.
    RequestSignatures {
        request: Submission,
        trace: TraceContext,
        deadline: SystemTime,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// Accept a peg-in notice.
    NotifyPegin {
        notification: PeginNotification,
        trace: TraceContext,
        reply: RpcReplyPort<Result<(), StreamError>>,
    },
    /// Withdraw a request, or ask governance to cancel it.
    Cancel {
        request_id: RequestId,
        reason: CancelReason,
        trace: TraceContext,
        reply: Option<RpcReplyPort<Result<(), StreamError>>>,
    },
    /// How does this request stand?
    LookUp {
        request_id: RequestId,
        reply: StandingReply,
    },
    /// Announce this open request to the supervisor again: its tracker died.
    Announce { request_id: RequestId },
    /// Tell this request's tracker how it stands: it may have missed something.
    Restate { request_id: RequestId },
    /// This request's tracker dies again and again.
    Park {
        request_id: RequestId,
        reason: String,
    },
    /// Accept nothing more, and say when governance has acknowledged everything.
    CloseIntake { flushed: RpcReplyPort<()> },
    /// What is left?
    TakeStock { reply: RpcReplyPort<Leftover> },

    /// The connection is about to dial: make an epoch for it.
    PrepareSession {
        connection: ActorRef<ConnectionMessage>,
        dial: u64,
    },
    /// Governance accepted the registration: do the two records fit?
    JudgeSession {
        epoch: u64,
        ack: Box<RegistrationAck>,
    },
    /// Governance holds these lanes up to here.
    Acknowledged { epoch: u64, lanes: Vec<(Lane, u64)> },
    /// Subscribers have handled these messages. Counts whichever session brought them.
    Handled {
        lane: Lane,
        messages: Vec<HandledMessage>,
    },
    /// The session is over: send nothing more on it.
    SessionEnded { epoch: u64 },

    /// The journal's thread has read what was kept.
    Loaded(Result<Box<Retained>, JournalError>),
    /// The journal's thread has committed everything up to this ticket.
    Committed(Result<Ticket, JournalError>),
}

/// How a request stands, as its caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestStanding {
    /// Governance has not answered finally.
    Open(Progress),
    /// It has its outcome.
    Settled(Outcome),
}

/// An open request, as its tracker needs to know it.
#[derive(Debug, Clone)]
pub(crate) struct OpenedRequest {
    /// As it was accepted.
    pub request: OpenRequest,
    /// How far it has come.
    pub progress: Progress,
}

impl From<&RequestRecord> for OpenedRequest {
    fn from(record: &RequestRecord) -> Self {
        let progress = match &record.standing {
            Standing::Open { progress, .. } => *progress,
            Standing::Settled(_) => Progress::default(),
        };
        Self {
            request: record.request.clone(),
            progress,
        }
    }
}

/// What a shutdown leaves behind in the journal; a later start takes it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leftover {
    /// Messages that governance has not acknowledged, by lane.
    pub unacknowledged: PerLane<u64>,
    /// Requests without an outcome.
    pub open_requests: usize,
}

impl Leftover {
    /// Whether everything that was accepted has come to its end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open_requests == 0 && self.unacknowledged.iter().all(|(_, count)| *count == 0)
    }
}

/// A message for the wire.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    /// As it was accepted.
    pub entry: Entry,
    /// Whether it may have been transmitted before.
    pub redelivered: bool,
}

/// What a registration says of us.
#[derive(Debug)]
pub(crate) struct SessionFacts {
    /// The dial they were asked for.
    pub dial: u64,
    /// Names the session.
    pub epoch: u64,
    /// Names this journal.
    pub outbox_id: OutboxId,
    /// Governance's ledger, if known.
    pub ledger_id: Option<LedgerId>,
    /// Each lane's record; the windows are the connection's to fill in.
    pub lanes: PerLane<LaneState>,
    /// Open requests whose deadline has passed: their responses are marked late.
    pub late: Vec<RequestId>,
}

/// What the buffer needs to start.
#[derive(Debug, Clone)]
pub(crate) struct BufferArguments {
    pub instance: InstanceName,
    pub config: BufferConfig,
    pub journal: Arc<dyn Journal>,
    pub supervisor: ActorRef<SupervisorMessage>,
    pub board: StatusBoard,
    pub metrics: Metrics,
    /// Tracks this incarnation's thread; the successor starts once it is empty.
    pub tasks: TaskTracker,
}

/// The buffer's state.
#[derive(Debug)]
pub(crate) struct BufferState {
    args: BufferArguments,
    writer: Writer,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The journal's thread is reading; messages wait for it.
    Loading(Vec<BufferMessage>),
    Ready(Box<Ready>),
}

#[derive(Debug)]
struct Ready {
    retained: Retained,
    session: Option<Session>,
    /// What to do once the ticket is committed, in order.
    pending: VecDeque<(Ticket, Vec<Effect>)>,
    intake_closed: bool,
    waiting_for_flush: Vec<RpcReplyPort<()>>,
}

#[derive(Debug)]
struct Session {
    epoch: u64,
    connection: ActorRef<ConnectionMessage>,
    /// From the moment the two records were found to fit.
    flight: Option<Flight>,
}

/// What is done once its records are durable.
#[derive(Debug)]
enum Effect {
    Reply(
        RpcReplyPort<Result<(), StreamError>>,
        Result<(), StreamError>,
    ),
    TellConnection(ConnectionMessage),
    TellTracker(RequestId, RequestMessage),
    Answer(StandingReply, Result<RequestStanding, StreamError>),
    Opened(Vec<OpenedRequest>),
    Transmit(u64, Vec<Outgoing>),
    Completed(Outcome, SystemTime),
}

/// The actor.
#[derive(Debug)]
pub(crate) struct BufferActor;

impl Actor for BufferActor {
    type Msg = BufferMessage;
    type State = BufferState;
    type Arguments = BufferArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<BufferMessage>,
        args: BufferArguments,
    ) -> Result<BufferState, ActorProcessingErr> {
        let writer = Writer::start(Arc::clone(&args.journal), myself, args.tasks.token())?;
        Ok(BufferState {
            args,
            writer,
            phase: Phase::Loading(Vec::new()),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<BufferMessage>,
        message: BufferMessage,
        state: &mut BufferState,
    ) -> Result<(), ActorProcessingErr> {
        state.receive(message).map_err(Into::into)
    }
}

impl BufferState {
    fn receive(&mut self, message: BufferMessage) -> Result<(), JournalError> {
        match (&mut self.phase, message) {
            (Phase::Loading(waiting), BufferMessage::Loaded(retained)) => {
                let waiting = std::mem::take(waiting);
                self.phase = Phase::Ready(Box::new(Ready::new(*retained?)));
                self.announce_open_requests();
                waiting
                    .into_iter()
                    .try_for_each(|message| self.receive(message))
            }
            (_, BufferMessage::Committed(Err(error)) | BufferMessage::Loaded(Err(error))) => {
                Err(error)
            }
            (Phase::Loading(waiting), message) => {
                waiting.push(message);
                Ok(())
            }
            (Phase::Ready(_), message) => {
                self.work(message);
                Ok(())
            }
        }
    }

    /// Everything but a failed journal, which fails the actor.
    fn work(&mut self, message: BufferMessage) {
        let Phase::Ready(ready) = &mut self.phase else {
            return;
        };
        let mut desk = Desk {
            args: &self.args,
            writer: &mut self.writer,
            ready,
        };
        match message {
            BufferMessage::RequestSignatures {
                request,
                trace,
                deadline,
                reply,
            } => {
                desk.request_signatures(request, trace, deadline, reply);
            }
            BufferMessage::NotifyPegin {
                notification,
                trace,
                reply,
            } => {
                desk.notify_pegin(notification, trace, reply);
            }
            BufferMessage::Cancel {
                request_id,
                reason,
                trace,
                reply,
            } => {
                desk.cancel(&request_id, reason, trace, reply);
            }
            BufferMessage::LookUp { request_id, reply } => {
                let standing = desk.look_up(request_id);
                desk.stage(Vec::new(), vec![Effect::Answer(reply, standing)]);
            }
            BufferMessage::Announce { request_id } => {
                let open = desk.ready.retained.open_request(&request_id);
                let open = open.map(|record| vec![record.into()]);
                desk.stage(Vec::new(), open.map(Effect::Opened).into_iter().collect());
            }
            BufferMessage::Restate { request_id } => {
                let restated = desk.restate(&request_id);
                desk.stage(Vec::new(), vec![restated]);
            }
            BufferMessage::Park { request_id, reason } => {
                if desk.ready.retained.open_request(&request_id).is_some() {
                    warn!(request = %request_id, reason, "request needs an operator");
                    desk.stage(vec![Record::Parked { request_id, reason }], Vec::new());
                }
            }
            BufferMessage::CloseIntake { flushed } => {
                desk.ready.intake_closed = true;
                desk.ready.waiting_for_flush.push(flushed);
                desk.answer_flushed();
            }
            BufferMessage::TakeStock { reply } => {
                let _ = reply.send(desk.ready.leftover());
            }
            BufferMessage::PrepareSession { connection, dial } => {
                desk.prepare_session(connection, dial);
            }
            BufferMessage::JudgeSession { epoch, ack } => desk.judge_session(epoch, &ack),
            BufferMessage::Acknowledged { epoch, lanes } => desk.acknowledged(epoch, &lanes),
            BufferMessage::Handled { lane, messages } => desk.handled(lane, &messages),
            BufferMessage::SessionEnded { epoch } => {
                desk.ready.session.take_if(|session| session.epoch == epoch);
            }
            BufferMessage::Committed(Ok(ticket)) => desk.committed(ticket),
            BufferMessage::Committed(Err(_)) | BufferMessage::Loaded(_) => {}
        }
    }

    /// After a restart of this actor every open request gets its tracker, and trackers that
    /// outlived it learn what they missed.
    fn announce_open_requests(&self) {
        let Phase::Ready(ready) = &self.phase else {
            return;
        };
        let open: Vec<OpenedRequest> = ready
            .retained
            .open_requests()
            .into_iter()
            .map(Into::into)
            .collect();
        info!(
            open_requests = open.len(),
            epoch = ready.retained.epoch,
            "journal read"
        );
        ready.publish(&self.args);
        let _ = self
            .args
            .supervisor
            .cast(SupervisorMessage::RequestsRecovered { open });
    }
}

impl Ready {
    fn new(retained: Retained) -> Self {
        Self {
            retained,
            session: None,
            pending: VecDeque::new(),
            intake_closed: false,
            waiting_for_flush: Vec::new(),
        }
    }

    fn leftover(&self) -> Leftover {
        Leftover {
            unacknowledged: PerLane::from_fn(|lane| self.retained.lanes.get(lane).unacknowledged()),
            open_requests: self.retained.open_and_parked().0,
        }
    }

    fn publish(&self, args: &BufferArguments) {
        let (open, parked) = self.retained.open_and_parked();
        args.metrics.set_requests(open, parked);
        for (lane, retained) in self.retained.lanes.iter() {
            args.metrics
                .set_buffered(lane, retained.unacknowledged(), retained.bytes);
        }
        args.board.set_buffer(&self.retained);
    }
}

/// The actor's hands for one message: decide, stage, and later carry out.
struct Desk<'a> {
    args: &'a BufferArguments,
    writer: &'a mut Writer,
    ready: &'a mut Ready,
}

type Reply = RpcReplyPort<Result<(), StreamError>>;

impl Desk<'_> {
    fn request_signatures(
        &mut self,
        request: Submission,
        trace: TraceContext,
        deadline: SystemTime,
        reply: Reply,
    ) {
        let span = info_span!("accept", request = %request.request_id);
        trace.adopt(&span);
        let _entered = span.enter();
        if self.ready.intake_closed {
            let _ = reply.send(Err(StreamError::ShuttingDown));
            return;
        }
        let tx_type = request.tx_type;
        let intake = intake::signature_request(
            &self.ready.retained,
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

    fn notify_pegin(&mut self, notification: PeginNotification, trace: TraceContext, reply: Reply) {
        let span = info_span!("accept", outpoint = %notification.outpoint());
        trace.adopt(&span);
        let _entered = span.enter();
        if self.ready.intake_closed {
            let _ = reply.send(Err(StreamError::ShuttingDown));
            return;
        }
        let intake = intake::pegin(
            &self.ready.retained,
            &self.args.config,
            notification,
            TraceContext::of(&span).or(trace),
            SystemTime::now(),
        );
        self.take_in(intake, Some(reply));
    }

    fn cancel(
        &mut self,
        request_id: &RequestId,
        reason: CancelReason,
        trace: TraceContext,
        reply: Option<Reply>,
    ) {
        let retained = &self.ready.retained;
        if let (CancelReason::Deadline, Some(record)) = (reason, retained.open_request(request_id))
        {
            self.args
                .metrics
                .record_request_timeout(record.request.tx_type.name());
        }
        let intake = intake::cancel(retained, request_id, reason, trace, SystemTime::now());
        self.take_in(intake, reply);
    }

    fn take_in(&mut self, intake: Result<Intake, StreamError>, reply: Option<Reply>) {
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

    fn look_up(&self, request_id: RequestId) -> Result<RequestStanding, StreamError> {
        match self.ready.retained.known(&request_id) {
            Known::Request(RequestRecord { standing, .. }) => match standing {
                Standing::Settled(outcome) => Ok(RequestStanding::Settled(outcome.clone())),
                Standing::Open {
                    parked: Some(reason),
                    ..
                } => Err(StreamError::NeedsOperator {
                    request_id,
                    reason: reason.clone(),
                }),
                Standing::Open { progress, .. } => Ok(RequestStanding::Open(*progress)),
            },
            Known::Unknown | Known::Forgotten(_) => Err(StreamError::UnknownRequest { request_id }),
        }
    }

    fn prepare_session(&mut self, connection: ActorRef<ConnectionMessage>, dial: u64) {
        let retained = &self.ready.retained;
        let epoch = retained.epoch + 1;
        let facts = SessionFacts {
            dial,
            epoch,
            outbox_id: retained.outbox_id,
            ledger_id: retained.ledger_id,
            lanes: PerLane::from_fn(|lane| {
                let lane = retained.lanes.get(lane);
                LaneState {
                    first_retained: lane.first_unacknowledged,
                    next_new: lane.next_new,
                    next_expected: lane.handled_through + 1,
                    last_received: lane.last_handled,
                    window_messages: 0,
                    window_bytes: 0,
                }
            }),
            late: retained
                .open_requests()
                .into_iter()
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
            vec![Record::Epoch(epoch)],
            vec![Effect::TellConnection(prepared)],
        );
    }

    fn judge_session(&mut self, epoch: u64, ack: &RegistrationAck) {
        let retained = &self.ready.retained;
        let Some(session) = self
            .ready
            .session
            .as_mut()
            .filter(|session| session.epoch == epoch)
        else {
            return;
        };
        if let Err(fault) = judge(retained, ack) {
            warn!(%fault, epoch, "session refused");
            let refused = ConnectionMessage::SessionRefused { epoch, fault };
            self.stage(Vec::new(), vec![Effect::TellConnection(refused)]);
            return;
        }
        let mut records = Vec::new();
        if retained.ledger_id != Some(ack.ledger_id) {
            records.push(Record::Ledger(ack.ledger_id));
        }
        for (lane, theirs) in ack.lanes.iter() {
            if theirs.next_expected > retained.lanes.get(lane).first_unacknowledged {
                records.push(Record::Acknowledged {
                    lane,
                    through: theirs.next_expected - 1,
                });
            }
        }
        for record in &records {
            self.ready.retained.apply(record);
        }
        session.flight = Some(Flight::new(&self.ready.retained, |lane| {
            let theirs = ack.lanes.get(lane);
            WindowConfig {
                messages: theirs.window_messages.min(MAX_IN_FLIGHT),
                bytes: theirs.window_bytes,
            }
        }));
        let judged = ConnectionMessage::SessionJudged { epoch };
        self.commit(records, vec![Effect::TellConnection(judged)]);
    }

    fn acknowledged(&mut self, epoch: u64, lanes: &[(Lane, u64)]) {
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
            if through >= self.ready.retained.lanes.get(lane).first_unacknowledged {
                records.push(Record::Acknowledged { lane, through });
            }
        }
        self.stage(records, Vec::new());
    }

    fn handled(&mut self, lane: Lane, messages: &[HandledMessage]) {
        let records = inbound::handled(&self.ready.retained, lane, messages, SystemTime::now());
        let mut effects = Vec::new();
        if let Some(last) = messages.last() {
            let recorded = ConnectionMessage::Recorded {
                lane,
                through: last.sequence,
            };
            effects.push(Effect::TellConnection(recorded));
        }
        self.stage(records, effects);
    }

    /// Applies the records, and has them committed together with what may be transmitted because
    /// of them. The effects come after the commit.
    fn stage(&mut self, records: Vec<Record>, effects: Vec<Effect>) {
        for record in &records {
            self.ready.retained.apply(record);
        }
        self.commit(records, effects);
    }

    /// As [`stage`](Self::stage), for records that are applied already.
    fn commit(&mut self, mut records: Vec<Record>, mut effects: Vec<Effect>) {
        for record in &records {
            self.derive(record, &mut effects);
        }
        while let Some(forgotten) = self
            .ready
            .retained
            .to_forget(self.args.config.settled_retained)
        {
            let record = Record::Forgotten(forgotten.clone());
            self.ready.retained.apply(&record);
            records.push(record);
        }
        self.transmit(&mut records, &mut effects);
        if records.is_empty() && self.ready.pending.is_empty() {
            self.carry_out(effects);
        } else {
            // Without records too: what is told must not overtake what it rests on.
            let ticket = self.writer.queue(records);
            self.ready.pending.push_back((ticket, effects));
        }
    }

    /// Takes what the windows allow. That it may have been sent is part of this commit, so that
    /// "never sent" is a durable fact.
    fn transmit(&mut self, records: &mut Vec<Record>, effects: &mut Vec<Effect>) {
        let retained = &mut self.ready.retained;
        let Some(session) = &mut self.ready.session else {
            return;
        };
        let Some(flight) = &mut session.flight else {
            return;
        };
        let taken = flight.take(retained);
        if taken.is_empty() {
            return;
        }
        let outgoing = taken
            .iter()
            .filter_map(|(lane, sequence)| {
                let lane = retained.lanes.get(*lane);
                let entry = lane.entries.get(sequence)?.clone();
                Some(Outgoing {
                    entry,
                    redelivered: *sequence <= lane.sent_through,
                })
            })
            .collect();
        for lane in Lane::ALL {
            let last = taken.iter().rev().find(|(taken, _)| *taken == lane);
            if let Some(&(lane, sequence)) = last
                && sequence > retained.lanes.get(lane).sent_through
            {
                let record = Record::SentThrough { lane, sequence };
                retained.apply(&record);
                records.push(record);
            }
        }
        effects.push(Effect::Transmit(session.epoch, outgoing));
    }

    /// What a record entails for others, once it is durable.
    fn derive(&self, record: &Record, effects: &mut Vec<Effect>) {
        match record {
            Record::Opened(request) => effects.push(Effect::Opened(vec![OpenedRequest {
                request: request.clone(),
                progress: Progress::default(),
            }])),
            Record::CancelAsked { request_id, reason } => {
                if *reason == CancelReason::Deadline {
                    let late = ConnectionMessage::MarkLate(request_id.clone());
                    effects.push(Effect::TellConnection(late));
                }
                effects.push(self.restate(request_id));
            }
            Record::Progressed { request_id, .. } | Record::Parked { request_id, .. } => {
                effects.push(self.restate(request_id));
            }
            Record::Settled {
                request_id,
                outcome,
            } => {
                effects.push(self.restate(request_id));
                if let Known::Request(record) = self.ready.retained.known(request_id) {
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

    fn restate(&self, request_id: &RequestId) -> Effect {
        let standing = self.look_up(request_id.clone());
        Effect::TellTracker(request_id.clone(), RequestMessage::Stands(standing))
    }

    fn committed(&mut self, through: Ticket) {
        self.writer.committed();
        let mut due = Vec::new();
        while let Some((_, effects)) = self
            .ready
            .pending
            .pop_front_if(|(ticket, _)| *ticket <= through)
        {
            due.extend(effects);
        }
        // Before anyone is told of it: whoever was told finds it in the status.
        self.ready.publish(self.args);
        self.carry_out(due);
        self.answer_flushed();
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
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
                Effect::Opened(requests) => opened.extend(requests),
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

    fn tell_connection(&self, message: ConnectionMessage) {
        if let Some(session) = &self.ready.session {
            // One that died is replaced, and asks for a new session.
            let _ = session.connection.cast(message);
        }
    }

    fn answer_flushed(&mut self) {
        let unacknowledged = self.ready.leftover().unacknowledged;
        if self.ready.pending.is_empty() && unacknowledged.iter().all(|(_, count)| *count == 0) {
            for reply in self.ready.waiting_for_flush.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}

/// Whether both directions of every lane fit governance's record.
fn judge(retained: &Retained, ack: &RegistrationAck) -> Result<(), ResumeFault> {
    if retained
        .ledger_id
        .is_some_and(|known| known != ack.ledger_id)
    {
        return Err(ResumeFault::LedgerChanged);
    }
    for (lane, theirs) in ack.lanes.iter() {
        let ours = retained.lanes.get(lane);
        let us = Sender {
            first_retained: ours.first_unacknowledged,
            next_new: ours.next_new,
        };
        resume::judge(
            lane,
            us,
            theirs.next_expected,
            theirs.last_received,
            |sequence| {
                let acknowledged = ours.last_acknowledged.filter(|(last, _)| *last == sequence);
                let kept = ours.entries.get(&sequence).map(|entry| entry.message_id);
                kept.or(acknowledged.map(|(_, message_id)| message_id))
            },
        )?;
        let them = Sender {
            first_retained: theirs.first_retained,
            next_new: theirs.next_new,
        };
        resume::judge(lane, them, ours.handled_through + 1, None, |_| None)?;
    }
    Ok(())
}
