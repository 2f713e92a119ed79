//! The buffer: the durable truth. It accepts messages for governance, keeps them until governance
//! has them, keeps requests until they have their outcome, and records what subscribers handled.
//!
//! Every change is a batch of records: decided purely, applied, handed to the store, and only once
//! it is durable told to anyone. In memory is what is open or retained; an input about anything else
//! waits until the store has looked it up. After a failed commit nothing that rested on it is told:
//! what is durable is read again, and until then nothing is accepted.

mod audit;
mod changes;
mod commits;
mod cursor;
mod desk;
mod export;
mod flight;
pub mod history;
mod inbound;
mod intake;
mod loading;
mod lookups;
mod message;
#[cfg(feature = "stress")]
pub(crate) mod past;
mod recall;
pub mod record;
mod restoring;
mod resume;
mod retained;
mod stored;
mod tables;

#[cfg(test)]
mod generation_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod test_disk;

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, SystemTime},
};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::{
    changes::Settled,
    commits::{Commits, Ticket},
    desk::Desk,
    flight::Flight,
    loading::Loading,
    lookups::{Found, Key},
    recall::Recollection,
    record::Record,
    tables::Rows,
};
use crate::{
    connection::ConnectionMessage,
    error::StreamError,
    message::{OpeningId, Outcome, PerLane, RequestId},
    request::{RequestMessage, StandingReply},
    storage::{Generation, Leaving, LookUp, StoreError, StoreEvent, User, Waiting},
    supervisor::SupervisorMessage,
    timer::Timer,
};

pub(crate) use self::{
    inbound::{HandledMessage, Meaning},
    intake::Submission,
    message::{
        BufferArguments, BufferMessage, Listed, OpenedRequest, Outgoing, Reconciled, SessionFacts,
    },
    recall::{dead_letter, refused},
    resume::Watermarks,
    retained::Retained,
};
pub use self::{
    message::{Leftover, RequestStanding},
    resume::ResumeFault,
    retained::Restoration,
};

/// The stream's name as a user of the store.
const USER: &str = "stream";
/// Most messages of a lane in flight, whatever window governance grants: what waits for the
/// transport is bounded by it.
pub(crate) const MAX_IN_FLIGHT: u32 = 4096;
/// What governance's pace lets go at once after a rest.
const PACE_BURST: Duration = Duration::from_millis(100);
/// Most questions of callers that wait for the store: how a request stands, a cancel, an operator's.
const MOST_QUESTIONS: usize = 4096;
/// Pause before what could not be read is read again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// When a caller that the store has failed is to ask again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The buffer's state.
#[derive(Debug)]
pub(crate) struct BufferState {
    args: BufferArguments,
    myself: ActorRef<BufferMessage>,
    user: User,
    phase: Phase,
    read_again: Timer,
    /// For what governance's pace holds back.
    pace: Timer,
    intake_closed: bool,
    adoption_allowed: bool,
    /// Names what this process does with the store.
    opening: OpeningId,
    waiting_for_flush: Vec<RpcReplyPort<()>>,
    /// Times that the store was read.
    loads: u64,
}

#[derive(Debug)]
enum Phase {
    Loading(Box<Loading>),
    Ready(Box<Ready>),
}

#[derive(Debug)]
struct Ready {
    /// Of the generation in which it was read.
    commits: Commits,
    retained: Retained,
    /// Times that it was read by this actor.
    loads: u64,
    /// The opening that registered last before it was read.
    opened_before: Option<OpeningId>,
    /// The epoch of a copy of this store that governance serves. The operator sees to the copy, and
    /// then the next epoch is above it; 0 for none.
    fenced_by: u64,
    session: Option<Session>,
    /// What to do once the ticket is committed, in order.
    pending: VecDeque<(Ticket, Vec<Effect>)>,
    /// Handled and recorded, but not acknowledged until governance has taken our answers.
    withheld: PerLane<Option<u64>>,
    /// Inputs about what is not in memory.
    waiting: Waiting<BufferMessage, Key>,
    /// What they may come to need.
    reserved: intake::Waiting,
    /// Of them, those that callers wait for and that need no room.
    questions: usize,
    leaving: Leaving<Settled>,
    /// What governance recalls of this node.
    recollection: Recollection,
    /// What was decided could never be committed.
    fault: Option<StoreError>,
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
    /// No session for this dial of this connection.
    Hold(ActorRef<ConnectionMessage>, u64, ResumeFault),
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
        let buffer = myself.clone();
        let user = args.store.register(USER, move |event| {
            // A buffer that is gone has a successor, which is told on its own.
            let _ = buffer.cast(BufferMessage::Store(event));
        });
        Ok(BufferState {
            args,
            myself,
            user,
            phase: Phase::Loading(Box::default()),
            read_again: Timer::default(),
            pace: Timer::default(),
            intake_closed: false,
            adoption_allowed: false,
            opening: OpeningId::generate(),
            waiting_for_flush: Vec::new(),
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
    /// When the store hangs, can never take what was decided, or has another user under this
    /// name: only a new actor may go on.
    fn receive(&mut self, message: BufferMessage) -> Result<(), StoreError> {
        match (&mut self.phase, message) {
            (_, BufferMessage::AreYouThere { pulse }) => {
                pulse.beat();
                return self.look_at_store();
            }
            // An operator's word is about what comes, and rests on no store.
            (_, BufferMessage::AllowAdoption { reply }) => {
                self.adoption_allowed = true;
                let _ = reply.send(());
            }
            (_, BufferMessage::Store(StoreEvent::Opened(opened))) => {
                if matches!(self.phase, Phase::Ready(_)) {
                    self.begin_again(StoreError::Ended);
                }
                if let Phase::Loading(loading) = &mut self.phase {
                    loading.opened(opened);
                }
                self.load();
            }
            (_, BufferMessage::Store(StoreEvent::Failed(_, fault))) => {
                error!(%fault, "the store failed; nothing is accepted until it is open again");
                self.begin_again(fault);
            }
            (_, BufferMessage::Store(StoreEvent::Replaced)) => return Err(StoreError::Ended),
            (Phase::Loading(_), BufferMessage::LoadAgain) => self.load(),
            (
                Phase::Loading(loading),
                BufferMessage::Loaded {
                    generation: of,
                    retained,
                },
            ) => {
                if !loading.is_of(of) {
                    return Ok(());
                }
                let waiting = std::mem::take(loading).into_waiting();
                match retained {
                    Ok(retained) => self.loaded(of, *retained),
                    Err(fault) => self.not_loaded(of, fault),
                }
                for message in waiting {
                    self.receive(message)?;
                }
            }
            (Phase::Loading(loading), message) => {
                let place = self.user.store().place();
                loading.hold(message, &self.args.config, place);
            }
            (Phase::Ready(ready), BufferMessage::Store(StoreEvent::Committed(of, ticket))) => {
                if of == ready.commits.generation() {
                    self.confirmed(Some(ticket))?;
                }
            }
            (Phase::Ready(ready), BufferMessage::Unchanged { generation: of }) => {
                if of == ready.commits.generation() {
                    self.confirmed(None)?;
                }
            }
            (
                Phase::Ready(ready),
                BufferMessage::Found {
                    generation: of,
                    look_up,
                    found,
                },
            ) => {
                if of == ready.commits.generation() {
                    self.found(look_up, &found)?;
                }
            }
            (Phase::Ready(_), BufferMessage::LookAgain) => self.ask(),
            (Phase::Ready(_), BufferMessage::Loaded { .. } | BufferMessage::LoadAgain) => {}
            (Phase::Ready(_), message) => self.take_up(message)?,
        }
        Ok(())
    }

    /// Has what is open and retained read, once the store is open.
    fn load(&mut self) {
        let Phase::Loading(loading) = &mut self.phase else {
            return;
        };
        let Some((generation, progress)) = loading.begin() else {
            return;
        };
        let user = &self.user;
        let (place, hash) = (user.store().place().to_owned(), user.store().hash_key());
        let buffer = self.myself.clone();
        user.scan(
            generation,
            move |snapshot| {
                let rows = Rows {
                    snapshot,
                    place: &place,
                    hash,
                };
                rows.load(&|rows| progress.add(rows))
            },
            move |retained| {
                let retained = retained.map(Box::new);
                let _ = buffer.cast(BufferMessage::Loaded {
                    generation,
                    retained,
                });
            },
        );
    }

    /// A store that takes too long shows in health first. One that does not answer at all fails
    /// this actor: its callers learn that it is unknown whether they were accepted.
    ///
    /// # Errors
    ///
    /// Past the deadline.
    fn look_at_store(&mut self) -> Result<(), StoreError> {
        let user = &self.user;
        let waited = match &self.phase {
            Phase::Loading(loading) => loading.stands_still_for().max(user.waiting_for()),
            Phase::Ready(_) => user.waiting_for(),
        };
        let deadline = self.args.config.commit_deadline;
        if waited >= deadline {
            let place = user.store().place().to_owned();
            return Err(StoreError::Hung { place, waited });
        }
        let latest = user.store().fault();
        if let (Phase::Loading(loading), Some(fault)) = (&mut self.phase, latest)
            && loading.fault().is_some_and(|known| *known != fault)
        {
            loading.fails_with(fault);
        }
        let store = self.user.store();
        // Whoever else waits, the bridge say, waits for the same disk, and has no health of its own.
        let longest = waited.max(store.waiting_for());
        let ailment = store.ailment();
        let fault = match &self.phase {
            _ if longest >= deadline / 2 => {
                let place = store.place().to_owned();
                let waited = longest;
                Some(StoreError::Hung { place, waited }.to_string())
            }
            Phase::Loading(loading) => loading
                .fault()
                .or(ailment.as_ref())
                .map(ToString::to_string),
            Phase::Ready(_) => ailment.map(|ailment| ailment.to_string()),
        };
        self.show(fault);
        Ok(())
    }

    /// Each time: the board may show what a predecessor said that was killed since.
    fn show(&self, fault: Option<String>) {
        self.args.board.update(|status| status.store_fault = fault);
    }

    /// Nothing that rests on what was not committed is told to anyone: callers learn that it is
    /// unknown, the session ends, and everything begins again from what is durable.
    fn begin_again(&mut self, fault: StoreError) {
        self.show(Some(fault.to_string()));
        let held = match std::mem::replace(&mut self.phase, Phase::Loading(Box::default())) {
            Phase::Loading(loading) => loading.into_waiting(),
            Phase::Ready(mut ready) => {
                if let Some(session) = &ready.session {
                    let epoch = session.epoch;
                    let failed = ConnectionMessage::StoreFailed { epoch };
                    let _ = session.connection.cast(failed);
                }
                ready.waiting.clear()
            }
        };
        self.phase = Phase::Loading(Box::new(Loading::failed(None, held, fault)));
    }

    /// What is durable could not be read, while the store is open: it is tried again.
    fn not_loaded(&mut self, generation: Generation, fault: StoreError) {
        error!(%fault, again_in = ?READ_AGAIN, "what is open could not be read");
        self.show(Some(fault.to_string()));
        self.phase = Phase::Loading(Box::new(Loading::failed(
            Some(generation),
            Vec::new(),
            fault,
        )));
        self.read_again
            .arm(READ_AGAIN, &self.myself, || BufferMessage::LoadAgain);
    }

    fn loaded(&mut self, generation: Generation, retained: Retained) {
        let ailment = self.user.store().ailment();
        self.show(ailment.map(|ailment| ailment.to_string()));
        self.loads += 1;
        self.phase = Phase::Ready(Box::new(Ready::new(generation, retained, self.loads)));
        let restored = self.args.store.restored().cloned();
        if let (Some(restored), Some(mut desk)) = (restored, self.desk()) {
            desk.heed_restore(&restored);
        }
        self.announce_open_requests();
        // A new store's first commit is that of the stream's identity.
        self.decide(BufferMessage::TransmitMore, &Found::default());
    }

    fn confirmed(&mut self, ticket: Option<crate::storage::Ticket>) -> Result<(), StoreError> {
        if let Some(mut desk) = self.desk()
            && let Some(confirmed) = desk.ready.commits.confirmed(ticket)
        {
            desk.confirmed(confirmed)?;
        }
        self.answer_flushed();
        Ok(())
    }

    /// Decides about a message now, or once what it is about has been looked up.
    fn take_up(&mut self, message: BufferMessage) -> Result<(), StoreError> {
        let Phase::Ready(ready) = &mut self.phase else {
            return Ok(());
        };
        let keys = Key::of(&message);
        let refused = self.intake_closed && intake::needs(&message).is_some();
        let waits = ready.waiting.holds(&keys) || !Key::are_in_memory(&keys, &ready.retained);
        if refused || !waits {
            self.decide(message, &Found::default());
            return self.check();
        }
        if let Some((lane, room)) = intake::needs(&message) {
            let (retained, reserved) = (&ready.retained, &mut ready.reserved);
            let free = intake::check_room(retained, &self.args.config, reserved, lane, room);
            if let Err(full) = free {
                refuse_intake(message, full);
                return Ok(());
            }
            let reserved = reserved.get_mut(lane);
            *reserved = *reserved + room;
        }
        if intake::is_question(&message) {
            if ready.questions >= MOST_QUESTIONS {
                let place = self.user.store().place();
                loading::refuse_caller(message, &too_many_questions(place));
                return Ok(());
            }
            ready.questions += 1;
        }
        ready.waiting.push(message, keys);
        self.ask();
        Ok(())
    }

    /// Has what waits looked up, unless a look-up is under way.
    fn ask(&mut self) {
        let Phase::Ready(ready) = &mut self.phase else {
            return;
        };
        let Some((look_up, inputs)) = ready.waiting.ask() else {
            return;
        };
        let keys: HashSet<Key> = inputs.iter().flat_map(|(_, keys)| keys).cloned().collect();
        let (generation, user) = (ready.commits.generation(), &self.user);
        let (place, hash) = (user.store().place().to_owned(), user.store().hash_key());
        let (buffer, unanswered) = (self.myself.clone(), keys.clone());
        user.look_up(
            generation,
            move |snapshot| {
                let rows = Rows {
                    snapshot,
                    place: &place,
                    hash,
                };
                Ok(lookups::find(rows, &keys))
            },
            move |found| {
                let found = found.unwrap_or_else(|fault| Found::failed(unanswered, &fault));
                let found = Box::new(found);
                let _ = buffer.cast(BufferMessage::Found {
                    generation,
                    look_up,
                    found,
                });
            },
        );
    }

    /// Decides about what waited for a look-up. Of what could not be looked up, whoever can ask again
    /// is told to, and the rest is looked up again later, in its place.
    fn found(&mut self, look_up: LookUp, found: &Found) -> Result<(), StoreError> {
        let Phase::Ready(ready) = &mut self.phase else {
            return Ok(());
        };
        let inputs = ready.waiting.answered(look_up);
        let questions = inputs.iter().filter(|input| intake::is_question(input));
        ready.questions -= questions.count();
        for (lane, room) in inputs.iter().filter_map(intake::needs) {
            let reserved = ready.reserved.get_mut(lane);
            *reserved = *reserved - room;
        }
        let mut held = Vec::new();
        for input in inputs {
            let keys = Key::of(&input);
            let Some(fault) = found.fault(&keys) else {
                self.decide(input, found);
                continue;
            };
            error!(%fault, "a look-up failed");
            self.show(Some(fault.to_string()));
            held.extend(loading::refuse_caller(input, fault).map(|input| (input, keys)));
        }
        let Phase::Ready(ready) = &mut self.phase else {
            return Ok(());
        };
        ready.let_go();
        if held.is_empty() {
            self.ask();
        } else {
            ready.waiting.give_back(held);
            self.read_again
                .arm(READ_AGAIN, &self.myself, || BufferMessage::LookAgain);
        }
        self.check()
    }

    /// # Errors
    ///
    /// When what was decided can never be committed.
    fn check(&mut self) -> Result<(), StoreError> {
        match &mut self.phase {
            Phase::Ready(ready) => ready.fault.take().map_or(Ok(()), Err),
            Phase::Loading(_) => Ok(()),
        }
    }

    fn desk(&mut self) -> Option<Desk<'_>> {
        let Phase::Ready(ready) = &mut self.phase else {
            return None;
        };
        Some(Desk {
            args: &self.args,
            myself: &self.myself,
            user: &self.user,
            pace: &mut self.pace,
            ready,
            intake_closed: self.intake_closed,
            opening: self.opening,
        })
    }

    fn decide(&mut self, message: BufferMessage, found: &Found) {
        let adoption_allowed = self.adoption_allowed;
        let Some(mut desk) = self.desk() else {
            return;
        };
        match message {
            BufferMessage::RequestSignatures {
                request,
                trace,
                deadline,
                reply,
            } => {
                desk.request_signatures(request, trace, deadline, reply, found);
            }
            BufferMessage::NotifyPegin {
                notification,
                trace,
                reply,
            } => {
                desk.notify_pegin(notification, trace, reply, found);
            }
            BufferMessage::Cancel {
                request_id,
                reason,
                trace,
                reply,
            } => {
                desk.cancel(&request_id, reason, trace, reply, found);
            }
            BufferMessage::LookUp { request_id, reply } => {
                let standing = desk.look_up(request_id, found);
                desk.stage(Vec::new(), vec![Effect::Answer(reply, standing)]);
            }
            BufferMessage::Announce { request_id } => {
                let open = desk.ready.retained.open_request(&request_id);
                let open = open.map(|record| Effect::Reopened(record.into()));
                desk.stage(Vec::new(), open.into_iter().collect());
            }
            BufferMessage::Restate { request_id } => {
                let stands = RequestMessage::Stands(desk.look_up(request_id.clone(), found));
                desk.stage(Vec::new(), vec![Effect::TellTracker(request_id, stands)]);
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
                let correlated = ConnectionMessage::Correlated {
                    of,
                    through,
                    unknown: desk.unknown(request_ids, found),
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
                let allowed = adoption_allowed || desk.args.config.adopt_ledger;
                if desk.judge_session(epoch, &ack, allowed) {
                    self.adoption_allowed = false;
                }
            }
            BufferMessage::Reconciled { epoch, reconciled } => {
                desk.reconciled(epoch, *reconciled, found);
            }
            BufferMessage::Recollected { epoch, handled } => desk.recollected(epoch, handled),
            BufferMessage::WentBack => desk.went_back(),
            BufferMessage::Fenced { epoch } => desk.ready.fenced_by = epoch,
            BufferMessage::ResumeRestored { store_lost, reply } => {
                desk.resume_restored(store_lost, reply);
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
            BufferMessage::AreYouThere { .. }
            | BufferMessage::AllowAdoption { .. }
            | BufferMessage::Store(_)
            | BufferMessage::Loaded { .. }
            | BufferMessage::LoadAgain
            | BufferMessage::Found { .. }
            | BufferMessage::LookAgain
            | BufferMessage::Unchanged { .. } => {}
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
            "what is open was read"
        );
        ready.publish(&self.args);
        let _ = self
            .args
            .supervisor
            .cast(SupervisorMessage::RequestsRecovered { open });
    }
}

impl Ready {
    fn new(generation: Generation, retained: Retained, loads: u64) -> Self {
        Self {
            commits: Commits::new(generation),
            opened_before: retained.identity.opening,
            fenced_by: 0,
            retained,
            loads,
            session: None,
            pending: VecDeque::new(),
            withheld: PerLane::default(),
            waiting: Waiting::default(),
            reserved: intake::Waiting::default(),
            questions: 0,
            leaving: Leaving::default(),
            recollection: Recollection::default(),
            fault: None,
        }
    }

    /// Lets go of what is settled, durable, and can have been missed by no look-up.
    fn let_go(&mut self) {
        for settled in self.leaving.due(self.waiting.under_way()) {
            self.retained.leave(settled);
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
        args.metrics
            .set_restoration(self.retained.identity.restoration);
        for (lane, retained) in self.retained.lanes.iter() {
            args.metrics
                .set_buffered(lane, retained.unacknowledged(), retained.bytes);
        }
        args.board.set_buffer(&self.retained);
    }
}

fn too_many_questions(place: &str) -> StoreError {
    StoreError::Busy {
        place: place.to_owned(),
        waiting: MOST_QUESTIONS,
    }
}

/// Answers a caller that there is no room.
fn refuse_intake(message: BufferMessage, full: StreamError) {
    if let BufferMessage::RequestSignatures { reply, .. }
    | BufferMessage::NotifyPegin { reply, .. } = message
    {
        let _ = reply.send(Err(full));
    }
}
