//! The buffer: the durable truth. It accepts messages for governance, keeps them until governance
//! has them, keeps requests until they have their outcome, and records what subscribers handled.
//!
//! Every change is a batch of records: decided purely, applied, committed by the journal's
//! thread, and only then told to anyone. After a failed commit nothing that rested on it is told:
//! the journal is closed, opened and read again, with growing pauses, and until then nothing is
//! accepted.

mod changes;
mod desk;
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
use tracing::{error, info, warn};

use self::{
    desk::Desk,
    flight::Flight,
    journal::{Journal, JournalError},
    record::{DeadLetter, Entry, OpenRequest, Record},
    retained::{RequestRecord, Retained, Standing},
    writer::{Ticket, Writer},
};
use crate::{
    config::{BufferConfig, InstanceName},
    connection::{ConnectionMessage, Generation},
    error::StreamError,
    health::StatusBoard,
    message::{
        CancelReason, Lane, LaneState, LedgerId, OutboxId, Outcome, PayloadHash, PeginNotification,
        PerLane, Progress, RegistrationAck, RequestId,
    },
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
