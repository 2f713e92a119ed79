//! What the buffer does until it knows what is durable.

use std::{
    collections::HashSet,
    mem::{Discriminant, discriminant},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ractor::ActorRef;

use super::{
    ASK_AGAIN, BufferMessage, MOST_QUESTIONS,
    intake::{self, Waiting},
    refuse_intake,
    retained::Retained,
    too_many_questions,
};
use crate::{
    config::BufferConfig,
    connection::ConnectionMessage,
    error::StreamError,
    message::RequestId,
    storage::{Generation, StoreError},
};

/// The store is being opened or read. What comes meanwhile waits, within the bounds that hold at
/// any time; once a fault is known, callers are refused with it.
#[derive(Debug, Default)]
pub(super) struct Loading {
    /// The one that is open, as far as the store has said.
    generation: Option<Generation>,
    waiting: Vec<BufferMessage>,
    /// The session that was asked for last: whoever asked before has given it up.
    session: Option<(ActorRef<ConnectionMessage>, u64)>,
    /// Of what waits, what trackers say.
    said: HashSet<Said>,
    reserved: Waiting,
    questions: usize,
    fault: Option<StoreError>,
    progress: Option<Progress>,
}

/// What a tracker says of its request: said again, it is no news.
type Said = (Discriminant<BufferMessage>, RequestId);

/// How far a load has come.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<Read>>);

#[derive(Debug)]
struct Read {
    rows: usize,
    moved: Instant,
}

impl Progress {
    /// So many rows more were read.
    pub(super) fn add(&self, rows: usize) {
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        read.rows += rows;
        read.moved = Instant::now();
    }
}

impl Loading {
    /// After a failure, which left this generation open if any: what waits and cannot ask again goes
    /// on waiting.
    pub(super) fn failed(
        generation: Option<Generation>,
        waiting: Vec<BufferMessage>,
        fault: StoreError,
    ) -> Self {
        let mut loading = Self {
            generation,
            ..Self::default()
        };
        for message in waiting {
            if let Some(held) = refuse(message, &fault) {
                loading.keep(held);
            }
        }
        loading.fault = Some(fault);
        loading
    }

    /// The store is open. What is read of an earlier generation is read for nobody.
    pub(super) fn opened(&mut self, generation: Generation) {
        if self.generation != Some(generation) {
            self.progress = None;
        }
        self.generation = Some(generation);
    }

    /// Whether this generation is open.
    pub(super) fn is_of(&self, generation: Generation) -> bool {
        self.generation == Some(generation)
    }

    /// A load begins, if the store is open and none is under way.
    pub(super) fn begin(&mut self) -> Option<(Generation, Progress)> {
        let generation = self.generation.filter(|_| self.progress.is_none())?;
        let progress = Progress(Arc::new(Mutex::new(Read {
            rows: 0,
            moved: Instant::now(),
        })));
        self.progress = Some(progress.clone());
        Some((generation, progress))
    }

    /// For how long the load that is under way has read nothing.
    pub(super) fn stands_still_for(&self) -> Duration {
        let since = self.progress.as_ref().map(|progress| {
            let read = progress.0.lock().unwrap_or_else(PoisonError::into_inner);
            read.moved.elapsed()
        });
        since.unwrap_or_default()
    }

    /// The store fails in another way by now: whoever is refused hears of that.
    pub(super) fn fails_with(&mut self, fault: StoreError) {
        self.fault = Some(fault);
    }

    pub(super) fn fault(&self) -> Option<&StoreError> {
        self.fault.as_ref()
    }

    /// Has a message wait, or answers it.
    pub(super) fn hold(&mut self, message: BufferMessage, config: &BufferConfig, place: &str) {
        if let Some(fault) = &self.fault {
            if let Some(held) = refuse(message, fault) {
                self.keep(held);
            }
            return;
        }
        if let Some((lane, room)) = intake::needs(&message) {
            let nothing = Retained::new(None);
            let free = intake::check_room(&nothing, config, &self.reserved, lane, room);
            if let Err(full) = free {
                refuse_intake(message, full);
                return;
            }
            let reserved = self.reserved.get_mut(lane);
            *reserved = *reserved + room;
        }
        if intake::is_question(&message) {
            if self.questions >= MOST_QUESTIONS {
                refuse_caller(message, &too_many_questions(place));
                return;
            }
            self.questions += 1;
        }
        self.keep(message);
    }

    /// Has a message wait, unless it says what another one has said.
    fn keep(&mut self, message: BufferMessage) {
        if let BufferMessage::PrepareSession { connection, dial } = message {
            self.session = Some((connection, dial));
            return;
        }
        if said(&message).is_none_or(|said| self.said.insert(said)) {
            self.waiting.push(message);
        }
    }

    /// What waits, in order; a session begins with what everyone else has said.
    pub(super) fn into_waiting(mut self) -> Vec<BufferMessage> {
        let session = self
            .session
            .map(|(connection, dial)| BufferMessage::PrepareSession { connection, dial });
        self.waiting.extend(session);
        self.waiting
    }
}

fn said(message: &BufferMessage) -> Option<Said> {
    match message {
        BufferMessage::Announce { request_id }
        | BufferMessage::Restate { request_id }
        | BufferMessage::Park { request_id, .. }
        | BufferMessage::Cancel {
            request_id,
            reply: None,
            ..
        } => Some((discriminant(message), request_id.clone())),
        _ => None,
    }
}

/// After the end of a generation: answers a caller that the store has failed, drops what ended with
/// it, and gives back what can wait.
pub(super) fn refuse(message: BufferMessage, fault: &StoreError) -> Option<BufferMessage> {
    match message {
        // They are about a session or a generation that ends with the failure.
        BufferMessage::JudgeSession { .. }
        | BufferMessage::ReadWatermarks { .. }
        | BufferMessage::Acknowledged { .. }
        | BufferMessage::PauseSession { .. }
        | BufferMessage::SessionEnded { .. }
        | BufferMessage::Correlate { .. }
        | BufferMessage::Reconciled { .. }
        | BufferMessage::Recollected { .. }
        | BufferMessage::TransmitMore
        | BufferMessage::LookAgain
        | BufferMessage::Store(_)
        | BufferMessage::Found { .. }
        | BufferMessage::Unchanged { .. } => None,
        message => refuse_caller(message, fault),
    }
}

/// Answers a caller that the store has failed; gives back what nobody waits for by a call.
pub(super) fn refuse_caller(message: BufferMessage, fault: &StoreError) -> Option<BufferMessage> {
    let refused = || StreamError::Store {
        fault: fault.clone(),
        retry_after: ASK_AGAIN,
    };
    match message {
        BufferMessage::RequestSignatures { reply, .. }
        | BufferMessage::NotifyPegin { reply, .. }
        | BufferMessage::ResumeRestored { reply, .. }
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
        // Its caller learns that there was no answer.
        BufferMessage::DiscardDeadLetter { .. }
        | BufferMessage::LetterHandled { .. }
        | BufferMessage::TakeStock { .. }
        | BufferMessage::ReadWatermarks { .. }
        | BufferMessage::AllowAdoption { .. } => None,
        // Its caller waits for governance too, for as long as it likes; nothing more is to come in.
        message @ BufferMessage::CloseIntake { .. } => Some(message),
        // One that is added is to be told apart: does a caller wait for it?
        message @ (BufferMessage::Cancel { reply: None, .. }
        | BufferMessage::Announce { .. }
        | BufferMessage::Restate { .. }
        | BufferMessage::Park { .. }
        | BufferMessage::PrepareSession { .. }
        | BufferMessage::JudgeSession { .. }
        | BufferMessage::Correlate { .. }
        | BufferMessage::Acknowledged { .. }
        | BufferMessage::Reconciled { .. }
        | BufferMessage::Recollected { .. }
        | BufferMessage::Handled { .. }
        | BufferMessage::SessionEnded { .. }
        | BufferMessage::PauseSession { .. }
        | BufferMessage::TransmitMore
        | BufferMessage::AreYouThere { .. }
        | BufferMessage::Store(_)
        | BufferMessage::Loaded { .. }
        | BufferMessage::LoadAgain
        | BufferMessage::Found { .. }
        | BufferMessage::WentBack
        | BufferMessage::Fenced { .. }
        | BufferMessage::LookAgain
        | BufferMessage::Unchanged { .. }) => Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_load_is_under_way_in_each_generation() {
        let mut loading = Loading::default();
        assert!(loading.begin().is_none(), "the store is not open");
        for number in 1..3 {
            // Also where nobody said that the one before had failed.
            loading.opened(Generation(number));
            let begun = loading.begin().map(|(generation, _)| generation);
            assert_eq!(begun, Some(Generation(number)));
            loading.opened(Generation(number));
            assert!(loading.begin().is_none(), "it goes on");
        }
    }

    /// A store that takes its time to open does not gather any number of questions.
    #[test]
    fn more_questions_than_may_wait_are_refused_at_once() {
        let (mut loading, config) = (Loading::default(), BufferConfig::default());
        let mut asked = Vec::new();
        for number in 0..=MOST_QUESTIONS {
            let (reply, mut told) = ractor::concurrency::oneshot();
            let request_id = format!("r-{number}").parse().expect("valid");
            let reply = reply.into();
            let question = BufferMessage::LookUp { request_id, reply };
            loading.hold(question, &config, "here");
            asked.push(told.try_recv());
        }
        let refused = asked.pop().expect("the last one").expect("at once");
        assert!(
            matches!(
                &refused,
                Err(StreamError::Store {
                    fault: StoreError::Busy { .. },
                    ..
                })
            ),
            "{refused:?}"
        );
        assert!(asked.iter().all(Result::is_err), "they wait");
        assert_eq!(loading.into_waiting().len(), MOST_QUESTIONS);
    }
}
