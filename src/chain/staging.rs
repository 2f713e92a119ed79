//! What is in force, what is handed in, and who waits for it. Pure: the shell commits and looks up.
//!
//! ```text
//! Closed ─▶ Loading ─▶ Open ─▶ Closed (the store failed: what is not confirmed is void) …
//!              └─▶ Unreadable: read again when something comes
//! ```
//!
//! What was in force before a failure stays in force until what is durable has been read again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    known::Known,
    load::Loaded,
    payments::{Found, NotNoted, Noted, Payments},
};
use crate::{
    bridge::PegoutCompleted,
    storage::{Generation, StoreError, Ticket},
};

/// Changes that may wait for their commit. More are refused, so that a disk that hangs fills no
/// memory.
pub(super) const MAX_PENDING: usize = 1024;
/// Completed peg-outs that may wait for a look-up or a commit. Fewer, so that they take no room from
/// governance.
pub(super) const MAX_NOTES: usize = 512;

/// Told once what was asked for is durable, or cannot be.
pub(super) type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Told once a completed peg-out is noted, or cannot be.
pub(super) type NoteAnswer = Box<dyn FnOnce(Result<Noted, NotNoted>) + Send>;

/// Whom to tell, once nothing is locked.
#[must_use]
#[derive(Default)]
pub(super) struct Told(Vec<Box<dyn FnOnce() + Send>>);

impl Told {
    pub(super) fn one(answer: Answer, durable: Result<(), StoreError>) -> Self {
        let mut told = Self::default();
        told.push(answer, durable);
        told
    }

    /// Others after these.
    pub(super) fn and(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    fn push(&mut self, answer: Answer, durable: Result<(), StoreError>) {
        self.0.push(Box::new(move || answer(durable)));
    }

    pub(super) fn note(&mut self, answer: NoteAnswer, noted: Result<Noted, NotNoted>) {
        self.0.push(Box::new(move || answer(noted)));
    }

    pub(super) fn tell(self) {
        for tell in self.0 {
            tell();
        }
    }
}

/// How the chain stands with its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// The store is not open, or has not said so; why.
    Closed(Option<StoreError>),
    /// What is durable is being read; why that failed before.
    Loading(Generation, Option<StoreError>),
    /// What is durable cannot be read, or used.
    Unreadable(Generation, StoreError),
    /// Changes are taken.
    Open(Generation),
    /// Another chain uses the store: this one is over.
    Replaced,
}

/// Handed in and not confirmed.
struct Pending {
    ticket: Ticket,
    then: Then,
    answers: Vec<Answer>,
}

/// What a commit brings into force.
enum Then {
    Known(Arc<Known>),
    Noted(u64),
}

/// What is in force, and what is on its way there.
pub(super) struct Staging {
    /// The store's, for people.
    place: String,
    phase: Phase,
    /// In force: durable.
    known: Arc<Known>,
    /// With everything that is handed in.
    staged: Arc<Known>,
    pending: VecDeque<Pending>,
    payments: Payments<NoteAnswer>,
}

impl Staging {
    pub(super) fn new(place: String, known: Known) -> Self {
        let known = Arc::new(known);
        Self {
            place,
            phase: Phase::Closed(None),
            staged: Arc::clone(&known),
            known,
            pending: VecDeque::new(),
            payments: Payments::after(0),
        }
    }

    pub(super) fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(super) fn known(&self) -> &Arc<Known> {
        &self.known
    }

    /// The generation in which changes are taken.
    pub(super) fn open_in(&self) -> Option<Generation> {
        match self.phase {
            Phase::Open(generation) => Some(generation),
            _ => None,
        }
    }

    /// The generation in which rows can be read.
    pub(super) fn readable_in(&self) -> Result<Generation, StoreError> {
        match &self.phase {
            Phase::Open(generation)
            | Phase::Loading(generation, _)
            | Phase::Unreadable(generation, _) => Ok(*generation),
            Phase::Closed(_) | Phase::Replaced => Err(self.refusal()),
        }
    }

    /// Why nothing is taken now.
    pub(super) fn refusal(&self) -> StoreError {
        match &self.phase {
            Phase::Closed(Some(fault))
            | Phase::Loading(_, Some(fault))
            | Phase::Unreadable(_, fault) => fault.clone(),
            Phase::Closed(None) | Phase::Loading(_, None) => StoreError::Closed {
                place: self.place.clone(),
            },
            Phase::Open(_) | Phase::Replaced => StoreError::Ended,
        }
    }

    /// What a change begins with; `waited` is for how long the store has not answered.
    ///
    /// # Errors
    ///
    /// Why none is taken now.
    pub(super) fn begin(
        &self,
        waited: impl FnOnce() -> Duration,
    ) -> Result<(Generation, Arc<Known>), StoreError> {
        let generation = self.open_in().ok_or_else(|| self.refusal())?;
        self.check_room(self.pending.len(), MAX_PENDING, waited)?;
        Ok((generation, Arc::clone(&self.staged)))
    }

    fn check_room(
        &self,
        taken: usize,
        most: usize,
        waited: impl FnOnce() -> Duration,
    ) -> Result<(), StoreError> {
        if taken < most {
            return Ok(());
        }
        Err(StoreError::Hung {
            place: self.place.clone(),
            waited: waited(),
        })
    }

    /// A change was handed in.
    pub(super) fn handed_in(&mut self, ticket: Ticket, known: Known, answer: Answer) {
        self.staged = Arc::new(known);
        self.pending.push_back(Pending {
            ticket,
            then: Then::Known(Arc::clone(&self.staged)),
            answers: vec![answer],
        });
    }

    /// A change is not taken, since the generation it was made in is over.
    pub(super) fn refused(&self, answer: Answer) -> Told {
        let reason = match self.open_in() {
            Some(_) => StoreError::Ended,
            None => self.refusal(),
        };
        Told::one(answer, Err(reason))
    }

    /// Something was decided that changes nothing: it holds once everything does on which it rests.
    pub(super) fn rests(&mut self, answer: Answer) -> Told {
        let mut told = Told::default();
        match self.pending.back_mut() {
            Some(last) => last.answers.push(answer),
            None => told.push(answer, Ok(())),
        }
        told
    }

    /// Has a completed peg-out wait for what is on disk.
    pub(super) fn note(
        &mut self,
        completed: PegoutCompleted,
        answer: NoteAnswer,
        waited: impl FnOnce() -> Duration,
    ) -> Told {
        let mut told = Told::default();
        let taken = self.pending.len() + self.payments.waiting();
        let admitted = match self.open_in() {
            Some(_) => self.check_room(taken, MAX_NOTES, waited),
            None => Err(self.refusal()),
        };
        match admitted {
            Ok(()) => self.payments.push(completed, answer),
            Err(reason) => told.note(answer, Err(reason.into())),
        }
        told
    }

    pub(super) fn payments(&mut self) -> &mut Payments<NoteAnswer> {
        &mut self.payments
    }

    /// Judges a completed peg-out by what was found. `commit` hands it in.
    pub(super) fn judge_note(
        &mut self,
        completed: PegoutCompleted,
        found: &Found,
        answer: NoteAnswer,
        commit: impl FnOnce(u64, &PegoutCompleted, bool) -> Result<Ticket, StoreError>,
    ) -> Told {
        let judged = self.payments.judge(&completed, found);
        let (noted, to_write, is_new) = match judged {
            Ok(judged) => (Ok(judged.noted), judged.number, judged.is_new),
            Err(fault) => (Err(NotNoted::Fault(fault)), None, false),
        };
        let when_durable = |answer: NoteAnswer| -> Answer {
            Box::new(move |durable| answer(durable.map_err(NotNoted::Store).and(noted)))
        };
        let Some(number) = to_write else {
            return self.rests(when_durable(answer));
        };
        let mut told = Told::default();
        match commit(number, &completed, is_new) {
            Ok(ticket) => {
                let handed_in = self.payments.handed_in(number, completed);
                self.pending.push_back(Pending {
                    ticket,
                    then: Then::Noted(handed_in),
                    answers: vec![when_durable(answer)],
                });
            }
            Err(reason) => told.note(answer, Err(reason.into())),
        }
        told
    }

    /// The store is open: what is durable is to be read.
    pub(super) fn opened(&mut self, generation: Generation) {
        if self.phase != Phase::Replaced {
            self.phase = Phase::Loading(generation, None);
        }
    }

    /// What could not be read is to be read once more, if it is so.
    pub(super) fn read_again(&mut self) -> Option<Generation> {
        let Phase::Unreadable(generation, fault) = &self.phase else {
            return None;
        };
        let (generation, fault) = (*generation, fault.clone());
        self.phase = Phase::Loading(generation, Some(fault));
        Some(generation)
    }

    /// What is durable is read.
    pub(super) fn loaded(&mut self, generation: Generation, loaded: Result<Loaded, StoreError>) {
        match &self.phase {
            Phase::Loading(now, _) if *now == generation => {}
            _ => return,
        }
        match loaded {
            Ok(loaded) => {
                self.known = Arc::new(loaded.known);
                self.staged = Arc::clone(&self.known);
                self.payments = Payments::after(loaded.last_payment);
                self.phase = Phase::Open(generation);
            }
            // The store has failed, and is about to say so.
            Err(StoreError::Ended) => self.phase = Phase::Closed(None),
            Err(fault) => self.phase = Phase::Unreadable(generation, fault),
        }
    }

    /// Everything up to this is durable, and in force from now on.
    pub(super) fn committed(&mut self, generation: Generation, through: Ticket) -> Told {
        let mut told = Told::default();
        if self.open_in() != Some(generation) {
            return told;
        }
        while let Some(done) = self.pending.pop_front_if(|next| next.ticket <= through) {
            match done.then {
                Then::Known(known) => self.known = known,
                Then::Noted(handed_in) => self.payments.confirmed(handed_in),
            }
            for answer in done.answers {
                told.push(answer, Ok(()));
            }
        }
        told
    }

    /// The generation has ended.
    pub(super) fn failed(&mut self, fault: &StoreError) -> Told {
        if self.phase == Phase::Replaced {
            return Told::default();
        }
        self.phase = Phase::Closed(Some(fault.clone()));
        self.give_up(fault)
    }

    /// Another chain has taken the place of this one.
    pub(super) fn replaced(&mut self) -> Told {
        self.phase = Phase::Replaced;
        self.give_up(&StoreError::Ended)
    }

    /// What is not confirmed is void: it is to be asked for again.
    fn give_up(&mut self, fault: &StoreError) -> Told {
        let mut told = Told::default();
        self.staged = Arc::clone(&self.known);
        for pending in std::mem::take(&mut self.pending) {
            for answer in pending.answers {
                told.push(answer, Err(fault.clone()));
            }
        }
        for answer in self.payments.clear() {
            told.note(answer, Err(fault.clone().into()));
        }
        told
    }
}
