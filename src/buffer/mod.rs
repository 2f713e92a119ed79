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
mod message;
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
use tracing::{error, info, warn};

use self::{
    desk::Desk,
    flight::Flight,
    journal::JournalError,
    record::Record,
    retained::Retained,
    writer::{Ticket, Writer},
};
use crate::{
    connection::ConnectionMessage,
    error::StreamError,
    message::{Outcome, PerLane, RequestId},
    request::{RequestMessage, StandingReply},
    supervisor::SupervisorMessage,
    timer::Timer,
};

pub use self::{
    disk::DiskJournal,
    memory::MemoryJournal,
    message::{Leftover, RequestStanding},
    resume::ResumeFault,
};
pub(crate) use self::{
    inbound::{HandledMessage, Meaning},
    intake::Submission,
    message::{
        BufferArguments, BufferMessage, Listed, OpenedRequest, Outgoing, Reconciled, SessionFacts,
    },
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
