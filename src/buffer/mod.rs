//! The buffer: the durable truth. It accepts messages for governance, keeps them until governance
//! has them, keeps requests until they have their outcome, and records what subscribers handled.
//!
//! Every change is a batch of records: decided purely, applied, committed by the journal's
//! thread, and only then told to anyone. After a failed commit nothing that rested on it is told:
//! the journal is closed, opened and read again, with growing pauses, and until then nothing is
//! accepted.

mod changes;
mod disk;
mod flight;
mod inbound;
mod intake;
pub mod journal;
mod memory;
pub mod record;
mod resume;
pub mod retained;
mod stored;
mod turn;
mod writer;

#[cfg(test)]
mod model_tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, info_span, warn};

use self::{
    flight::Flight,
    intake::Intake,
    journal::{Journal, JournalError},
    record::{DeadLetter, Entry, OpenRequest, Record},
    retained::{RequestRecord, Retained, Standing},
    writer::{Ticket, Writer},
};
use crate::{
    config::{BufferConfig, InstanceName, WindowConfig},
    connection::{ConnectionMessage, Generation},
    error::StreamError,
    health::StatusBoard,
    message::{
        CancelReason, Lane, LaneState, LedgerId, OutboxId, Outcome, PayloadHash, PeginNotification,
        PerLane, Progress, RegistrationAck, RequestId,
    },
    names,
    pace::Pace,
    pulse::Pulse,
    request::{RequestMessage, StandingReply},
    supervisor::SupervisorMessage,
    telemetry::{Metrics, TraceContext},
    timer::Timer,
};

pub use self::{disk::DiskJournal, memory::MemoryJournal, resume::ResumeFault};
pub(crate) use self::{
    inbound::{HandledMessage, Meaning},
    intake::Submission,
    resume::Watermarks,
};

/// Most messages of a lane in flight, whatever window governance grants: what waits for the
/// transport is bounded by it.
pub(crate) const MAX_IN_FLIGHT: u32 = 4096;
/// What governance's pace lets go at once after a rest.
const PACE_BURST: Duration = Duration::from_millis(100);
/// Pause before a failed journal is opened again; doubles up to the longest with each failure.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_REOPEN_PAUSE: Duration = Duration::from_secs(5);

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
    /// Which of these requests were never made here? Answers to them are of no use.
    Correlate {
        connection: ActorRef<ConnectionMessage>,
        /// The queues that the answers wait in.
        of: Generation,
        through: u64,
        request_ids: Vec<RequestId>,
    },
    /// What has governance acknowledged so far?
    ReadWatermarks { reply: RpcReplyPort<Watermarks> },
    /// Governance holds these lanes up to here.
    Acknowledged { epoch: u64, lanes: Vec<(Lane, u64)> },
    /// Governance has said how our open requests stand in its ledger.
    Reconciled {
        epoch: u64,
        reconciled: Box<Reconciled>,
    },
    /// An operator lets the next session adopt another ledger.
    AllowAdoption { reply: RpcReplyPort<()> },
    /// Dead letters, oldest first.
    ListDeadLetters {
        reply: RpcReplyPort<Vec<(u64, DeadLetter)>>,
    },
    /// An operator has dealt with a dead letter.
    DiscardDeadLetter {
        number: u64,
        reply: RpcReplyPort<bool>,
    },
    /// A dead letter was delivered after all.
    LetterHandled {
        number: u64,
        meaning: Meaning,
        reply: RpcReplyPort<()>,
    },
    /// Subscribers have handled these messages. Counts whichever session brought them.
    Handled {
        /// Ledgers adopted when they came: an earlier ledger's sequences mean nothing now.
        adoptions: u64,
        lane: Lane,
        messages: Vec<HandledMessage>,
    },
    /// The session is over: send nothing more on it.
    SessionEnded { epoch: u64 },

    /// Governance wants nothing for a while.
    PauseSession { epoch: u64, pause: Duration },
    /// The pace that governance asked for lets more go.
    TransmitMore,
    /// Show that you live, and look whether the journal's thread does.
    AreYouThere { pulse: Pulse },
    /// Time to open a failed journal again.
    Reopen,
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
    /// Its id.
    pub request_id: RequestId,
    /// When it was accepted.
    pub accepted_at: SystemTime,
    /// When governance is asked to cancel it.
    pub deadline: SystemTime,
    /// How far it has come.
    pub progress: Progress,
}

impl From<&RequestRecord> for OpenedRequest {
    fn from(record: &RequestRecord) -> Self {
        let progress = match &record.standing {
            Standing::Open { progress, .. } => *progress,
            Standing::Settled { .. } | Standing::Forgotten => Progress::default(),
        };
        Self {
            progress,
            ..Self::from(&record.request)
        }
    }
}

impl From<&OpenRequest> for OpenedRequest {
    fn from(request: &OpenRequest) -> Self {
        Self {
            request_id: request.request_id.clone(),
            accepted_at: request.accepted_at,
            deadline: request.deadline,
            progress: Progress::default(),
        }
    }
}

/// An open request, as governance is told of it after its ledger was adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its id.
    pub request_id: RequestId,
    /// Its payload's.
    pub payload_hash: PayloadHash,
    /// Whether it is to be cancelled: it is not made again.
    pub cancelled: bool,
}

/// How the listed requests stand in governance's ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reconciled {
    /// Those that it holds, open or settled.
    pub held: Vec<RequestId>,
    /// Those that it holds open and that were not listed.
    pub unlisted: Vec<RequestId>,
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
    /// Ledgers adopted so far.
    pub adoptions: u64,
    /// Times that the journal was read: what was handled and not committed before is forgotten.
    pub loads: u64,
    /// Open requests whose deadline has passed: their responses are marked late.
    pub late: Vec<RequestId>,
}

/// What the buffer needs to start.
#[derive(Debug, Clone)]
pub(crate) struct BufferArguments {
    pub instance: InstanceName,
    pub config: BufferConfig,
    /// Messages of governance that may be in flight in each lane: as many answers to them may
    /// wait before it is granted more.
    pub inbound_window: u32,
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
    myself: ActorRef<BufferMessage>,
    writer: Writer,
    phase: Phase,
    reopen: Timer,
    /// For what governance's pace holds back.
    pace: Timer,
    /// Before the next attempt, should the journal fail now.
    reopen_pause: Duration,
    intake_closed: bool,
    adoption_allowed: bool,
    waiting_for_flush: Vec<RpcReplyPort<()>>,
    /// Whether health shows that the journal takes too long.
    slow_shown: bool,
    /// Times that the journal was read.
    loads: u64,
}

#[derive(Debug)]
enum Phase {
    /// The journal's thread is reading, or has failed and will try again; messages wait for it.
    Loading {
        waiting: Vec<BufferMessage>,
        fault: Option<JournalError>,
    },
    Ready(Box<Ready>),
}

#[derive(Debug)]
struct Ready {
    retained: Retained,
    /// Times that it was read by this actor.
    loads: u64,
    session: Option<Session>,
    /// What to do once the ticket is committed, in order.
    pending: VecDeque<(Ticket, Vec<Effect>)>,
    /// Handled and recorded, but not acknowledged until governance has taken our answers.
    withheld: PerLane<Option<u64>>,
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
    Discarded(RpcReplyPort<bool>, bool),
    LetterHandled(RpcReplyPort<()>),
    Opened(Vec<OpenedRequest>),
    Reopened(OpenedRequest),
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
        let journal = Arc::clone(&args.journal);
        let metrics = args.metrics.clone();
        let writer = Writer::start(journal, myself.clone(), metrics, args.tasks.token())?;
        Ok(BufferState {
            args,
            myself,
            writer,
            phase: Phase::Loading {
                waiting: Vec::new(),
                fault: None,
            },
            reopen: Timer::default(),
            pace: Timer::default(),
            reopen_pause: REOPEN_PAUSE,
            intake_closed: false,
            adoption_allowed: false,
            waiting_for_flush: Vec::new(),
            slow_shown: false,
            loads: 0,
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
    /// # Errors
    ///
    /// When the journal's thread has ended or hangs: only a new actor gets a new one.
    fn receive(&mut self, message: BufferMessage) -> Result<(), JournalError> {
        match (&mut self.phase, message) {
            (_, BufferMessage::AreYouThere { pulse }) => {
                pulse.beat();
                return self.look_at_journal();
            }
            (_, BufferMessage::Committed(Err(JournalError::ThreadEnded))) => {
                return Err(JournalError::ThreadEnded);
            }
            (_, BufferMessage::Loaded(Err(error)) | BufferMessage::Committed(Err(error))) => {
                self.journal_failed(error);
            }
            (_, BufferMessage::Reopen) => self.writer.load(),
            (Phase::Loading { waiting, .. }, BufferMessage::Loaded(Ok(retained))) => {
                let waiting = std::mem::take(waiting);
                self.loaded(*retained);
                for message in waiting {
                    self.receive(message)?;
                }
            }
            (Phase::Loading { waiting, fault }, message) => match fault {
                Some(fault) => {
                    let retry_after = self.reopen_pause;
                    waiting.extend(refuse(message, fault, retry_after));
                }
                None => waiting.push(message),
            },
            (Phase::Ready(_), message) => self.work(message),
        }
        Ok(())
    }

    /// A journal that takes too long shows in health first. One that does not answer at all fails
    /// this actor: its callers learn that it is unknown whether they were accepted.
    ///
    /// # Errors
    ///
    /// Past the deadline.
    fn look_at_journal(&mut self) -> Result<(), JournalError> {
        let (waited, deadline) = (self.writer.at_work_for(), self.args.config.commit_deadline);
        let hung = JournalError::Hung { waited };
        if waited >= deadline {
            self.args.metrics.record_journal_failure(hung.name());
            return Err(hung);
        }
        let slow = waited >= deadline / 2;
        if slow || std::mem::replace(&mut self.slow_shown, slow) {
            self.slow_shown = slow;
            let fault = match &self.phase {
                _ if slow => Some(hung.to_string()),
                Phase::Loading { fault, .. } => fault.as_ref().map(ToString::to_string),
                Phase::Ready(_) => None,
            };
            self.args
                .board
                .update(|status| status.journal_fault = fault);
        }
        Ok(())
    }

    /// Nothing that rests on what was not committed is told to anyone: callers learn that it is
    /// unknown, the session ends, and everything begins again from what was kept.
    fn journal_failed(&mut self, fault: JournalError) {
        error!(%fault, again_in = ?self.reopen_pause, "journal failed");
        self.writer.failed();
        self.args.metrics.record_journal_failure(fault.name());
        let shown = fault.to_string();
        self.args
            .board
            .update(|status| status.journal_fault = Some(shown));
        let mut waiting = match &mut self.phase {
            Phase::Loading { waiting, .. } => std::mem::take(waiting),
            Phase::Ready(ready) => {
                if let Some(session) = &ready.session {
                    let epoch = session.epoch;
                    let failed = ConnectionMessage::JournalFailed { epoch };
                    let _ = session.connection.cast(failed);
                }
                Vec::new()
            }
        };
        waiting = waiting
            .into_iter()
            .filter_map(|message| refuse(message, &fault, self.reopen_pause))
            .collect();
        self.phase = Phase::Loading {
            waiting,
            fault: Some(fault),
        };
        self.reopen
            .arm(self.reopen_pause, &self.myself, || BufferMessage::Reopen);
        self.reopen_pause = (self.reopen_pause * 2).min(LONGEST_REOPEN_PAUSE);
    }

    fn loaded(&mut self, retained: Retained) {
        self.args.board.update(|status| status.journal_fault = None);
        self.loads += 1;
        self.phase = Phase::Ready(Box::new(Ready::new(retained, self.loads)));
        self.announce_open_requests();
        // Its thread waits for the first commit: that of a new journal's identity.
        if let Phase::Ready(ready) = &mut self.phase {
            self.writer.done(&mut ready.retained);
        }
    }

    fn work(&mut self, message: BufferMessage) {
        let Phase::Ready(ready) = &mut self.phase else {
            return;
        };
        let mut desk = Desk {
            args: &self.args,
            myself: &self.myself,
            writer: &mut self.writer,
            pace: &mut self.pace,
            ready,
            intake_closed: self.intake_closed,
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
                let open = open.map(|record| Effect::Reopened(record.into()));
                desk.stage(Vec::new(), open.into_iter().collect());
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
                self.intake_closed = true;
                self.waiting_for_flush.push(flushed);
            }
            BufferMessage::TakeStock { reply } => {
                let _ = reply.send(desk.ready.leftover());
            }
            BufferMessage::Correlate {
                connection,
                of,
                through,
                request_ids,
            } => {
                let ids = request_ids.into_iter();
                let unknown = ids.filter(|id| desk.ready.retained.request(id).is_none());
                let correlated = ConnectionMessage::Correlated {
                    of,
                    through,
                    unknown: unknown.collect(),
                };
                let _ = connection.cast(correlated);
            }
            BufferMessage::ReadWatermarks { reply } => {
                let _ = reply.send(Watermarks::of(&desk.ready.retained));
            }
            BufferMessage::PrepareSession { connection, dial } => {
                desk.prepare_session(connection, dial);
            }
            BufferMessage::JudgeSession { epoch, ack } => {
                let allowed = self.adoption_allowed || desk.args.config.adopt_ledger;
                if desk.judge_session(epoch, &ack, allowed) {
                    self.adoption_allowed = false;
                }
            }
            BufferMessage::Reconciled { epoch, reconciled } => {
                desk.reconciled(epoch, *reconciled);
            }
            BufferMessage::AllowAdoption { reply } => {
                self.adoption_allowed = true;
                let _ = reply.send(());
            }
            BufferMessage::ListDeadLetters { reply } => {
                let letters = desk.ready.retained.dead_letters.iter();
                let letters = letters.map(|(number, letter)| (*number, letter.clone()));
                let _ = reply.send(letters.collect());
            }
            BufferMessage::DiscardDeadLetter { number, reply } => {
                let known = desk.ready.retained.dead_letters.contains_key(&number);
                let discarded = vec![Record::DeadLetterDiscarded(number)];
                desk.stage(discarded, vec![Effect::Discarded(reply, known)]);
            }
            BufferMessage::LetterHandled {
                number,
                meaning,
                reply,
            } => {
                let now = SystemTime::now();
                let mut records = vec![Record::DeadLetterDiscarded(number)];
                records.extend(inbound::meaning(&desk.ready.retained, &meaning, now));
                desk.stage(records, vec![Effect::LetterHandled(reply)]);
            }
            BufferMessage::Acknowledged { epoch, lanes } => desk.acknowledged(epoch, &lanes),
            BufferMessage::Handled {
                adoptions,
                lane,
                messages,
            } => desk.handled(adoptions, lane, &messages),
            BufferMessage::PauseSession { epoch, pause } => {
                let session = desk.ready.session.as_mut();
                let session = session.filter(|session| session.epoch == epoch);
                if let Some(flight) = session.and_then(|session| session.flight.as_mut()) {
                    flight.pause(Instant::now() + pause);
                    desk.stage(Vec::new(), Vec::new());
                }
            }
            BufferMessage::TransmitMore => desk.stage(Vec::new(), Vec::new()),
            BufferMessage::SessionEnded { epoch } => {
                desk.ready.session.take_if(|session| session.epoch == epoch);
            }
            BufferMessage::Committed(Ok(ticket)) => {
                self.reopen_pause = REOPEN_PAUSE;
                desk.committed(ticket);
            }
            BufferMessage::Committed(Err(_))
            | BufferMessage::Loaded(_)
            | BufferMessage::Reopen
            | BufferMessage::AreYouThere { .. } => {}
        }
        self.answer_flushed();
    }

    fn answer_flushed(&mut self) {
        let Phase::Ready(ready) = &self.phase else {
            return;
        };
        let unacknowledged = ready.leftover().unacknowledged;
        if ready.pending.is_empty() && unacknowledged.iter().all(|(_, count)| *count == 0) {
            for reply in self.waiting_for_flush.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    /// After a restart of this actor every open request gets its tracker, and trackers that
    /// outlived it learn what they missed.
    fn announce_open_requests(&self) {
        let Phase::Ready(ready) = &self.phase else {
            return;
        };
        let retained = &ready.retained;
        let open: Vec<OpenedRequest> = retained.open_requests().map(Into::into).collect();
        info!(
            open_requests = open.len(),
            open_pegins = retained.open_pegins(),
            unacknowledged = ?ready.leftover().unacknowledged,
            dead_letters = retained.dead_letters.len(),
            epoch = retained.identity.epoch,
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
    fn new(retained: Retained, loads: u64) -> Self {
        Self {
            retained,
            loads,
            session: None,
            pending: VecDeque::new(),
            withheld: PerLane::default(),
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
    myself: &'a ActorRef<BufferMessage>,
    writer: &'a mut Writer,
    pace: &'a mut Timer,
    ready: &'a mut Ready,
    intake_closed: bool,
}

/// Answers a caller that the journal has failed; gives back what can wait for it.
fn refuse(
    message: BufferMessage,
    fault: &JournalError,
    retry_after: Duration,
) -> Option<BufferMessage> {
    let refused = || StreamError::Journal {
        fault: fault.clone(),
        retry_after,
    };
    match message {
        BufferMessage::RequestSignatures { reply, .. }
        | BufferMessage::NotifyPegin { reply, .. }
        | BufferMessage::Cancel {
            reply: Some(reply), ..
        } => {
            let _ = reply.send(Err(refused()));
            None
        }
        BufferMessage::LookUp { reply, .. } => {
            let _ = reply.send(Err(refused()));
            None
        }
        // Their callers learn that there was no answer.
        BufferMessage::ListDeadLetters { .. } | BufferMessage::DiscardDeadLetter { .. } => None,
        // They are about a session that ends with the failure.
        BufferMessage::JudgeSession { .. }
        | BufferMessage::ReadWatermarks { .. }
        | BufferMessage::Reconciled { .. }
        | BufferMessage::Acknowledged { .. }
        | BufferMessage::PauseSession { .. }
        | BufferMessage::SessionEnded { .. } => None,
        message => Some(message),
    }
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
        if self.intake_closed {
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
        if self.intake_closed {
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
        let record = self.ready.retained.request(&request_id);
        match record.map(|record| &record.standing) {
            Some(Standing::Settled { outcome, .. }) => {
                Ok(RequestStanding::Settled(outcome.clone()))
            }
            Some(Standing::Open {
                parked: Some(reason),
                ..
            }) => Err(StreamError::NeedsOperator {
                request_id,
                reason: reason.clone(),
            }),
            Some(Standing::Open { progress, .. }) => Ok(RequestStanding::Open(*progress)),
            Some(Standing::Forgotten) | None => Err(StreamError::UnknownRequest { request_id }),
        }
    }

    fn prepare_session(&mut self, connection: ActorRef<ConnectionMessage>, dial: u64) {
        let retained = &self.ready.retained;
        let identity = retained.identity;
        let epoch = identity.epoch + 1;
        let facts = SessionFacts {
            dial,
            epoch,
            outbox_id: identity.outbox_id,
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
            vec![Record::Epoch(epoch)],
            vec![Effect::TellConnection(prepared)],
        );
    }

    /// Whether another ledger was adopted.
    fn judge_session(&mut self, epoch: u64, ack: &RegistrationAck, may_adopt: bool) -> bool {
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
            let refused = ConnectionMessage::SessionRefused { epoch, fault };
            self.stage(
                adopted.into_iter().collect(),
                vec![Effect::TellConnection(refused)],
            );
            return adopts;
        }
        let records = resume::resumed(retained, ack);
        for record in &records {
            self.ready.retained.apply(record);
        }
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
    fn reconciled(&mut self, epoch: u64, reconciled: Reconciled) {
        let current = self.ready.session.as_ref().map(|session| session.epoch);
        if current != Some(epoch) || !self.ready.retained.identity.reconciling {
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

    fn handled(&mut self, adoptions: u64, lane: Lane, messages: &[HandledMessage]) {
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
    fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
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
        self.forget();
        self.acknowledge(&mut effects);
        self.transmit(&mut records, &mut effects);
        if records.is_empty() && self.ready.pending.is_empty() {
            self.carry_out(effects);
        } else {
            // Without records too: what is told must not overtake what it rests on.
            let ticket = self.writer.queue(&mut self.ready.retained);
            self.ready.pending.push_back((ticket, effects));
        }
    }

    /// Lets go of what has been kept long enough. It is committed with the next group; should it
    /// not be, it is let go of again.
    fn forget(&mut self) {
        let (config, now) = (&self.args.config, SystemTime::now());
        let since = |age| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let (settled, acknowledged) = (since(config.settled_for), since(config.acknowledged_for));
        let retained = &mut self.ready.retained;
        while let Some(record) = retained
            .to_forget(config.settled_retained, settled)
            .or_else(|| retained.to_prune(config.acknowledged_retained, acknowledged))
        {
            retained.apply(&record);
        }
    }

    fn transmit(&mut self, records: &mut Vec<Record>, effects: &mut Vec<Effect>) {
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
    fn derive(&self, record: &Record, effects: &mut Vec<Effect>) {
        match record {
            Record::Opened(request) => effects.push(Effect::Opened(vec![request.into()])),
            Record::CancelAsked {
                request_id, reason, ..
            } => {
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
                ..
            } => {
                effects.push(self.restate(request_id));
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

    fn restate(&self, request_id: &RequestId) -> Effect {
        let standing = self.look_up(request_id.clone());
        Effect::TellTracker(request_id.clone(), RequestMessage::Stands(standing))
    }

    fn committed(&mut self, through: Ticket) {
        self.writer.done(&mut self.ready.retained);
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

    fn tell_connection(&self, message: ConnectionMessage) {
        if let Some(session) = &self.ready.session {
            // One that died is replaced, and asks for a new session.
            let _ = session.connection.cast(message);
        }
    }
}
