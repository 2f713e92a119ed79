//! Drives the chain by what its store tells: hands in, looks up, reads, and tells whoever waits.
//!
//! It runs on the store's threads and on those of whoever asks, and waits for no disk on any of
//! them. Nobody is told anything while something is locked, nor while this keeps the chain alive: who
//! is told may let go of the chain, and of the store with it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tracing::{error, info};

use super::{
    known::{Draft, Known},
    load::{Loaded, load},
    payment_rows::{self, PaymentRows},
    payments::Found,
    schedule::Schedule,
    staging::{Answer, NoteAnswer, Phase, Staging, Told},
};
use crate::{
    bridge::PegoutCompleted,
    storage::{Generation, HashKey, LookUp, Snapshot, Store, StoreError, StoreEvent, User},
};

/// The chain's name among the users of a store.
const USER: &str = "chain";

/// A chain and its registration with the store.
pub(super) struct Shared {
    /// Held while a change is judged, which may take milliseconds, so that one follows another. The
    /// store's threads never wait for it.
    judging: Mutex<()>,
    state: Mutex<State>,
    pub(super) changed: watch::Sender<u64>,
}

pub(super) struct State {
    /// Set from the registration on.
    user: Option<User>,
    pub(super) staging: Staging,
}

impl Shared {
    /// Registers with the store. What is durable is read once the store says that it is open.
    pub(super) fn register(store: &Store, schedule: Schedule) -> Arc<Self> {
        let shared = Arc::new(Self {
            judging: Mutex::default(),
            state: Mutex::new(State {
                user: None,
                staging: Staging::new(store.place().to_owned(), Known::new(schedule)),
            }),
            changed: watch::Sender::default(),
        });
        let weak = Arc::downgrade(&shared);
        // Whatever the store tells waits until the registration is known here.
        let mut state = shared.lock();
        state.user = Some(store.register(USER, move |event| on(&weak, &event)));
        drop(state);
        shared
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done between two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges a change on a copy of what is handed in, and hands it in.
    pub(super) fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Draft) -> T,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        // What it guards is no data.
        let turn = self.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let (generation, staged) = match self.begin() {
            Ok(begun) => begun,
            Err(reason) => {
                drop(turn);
                return answer(Err(reason));
            }
        };
        let mut draft = Draft::new(&staged, SystemTime::now());
        let result = change(&mut draft);
        let answer = Box::new(move |durable: Result<(), _>| answer(durable.map(|()| result)));
        let told = self.lock().hand_in(generation, draft, answer);
        drop(turn);
        told.tell();
    }

    fn begin(self: &Arc<Self>) -> Result<(Generation, Arc<Known>), StoreError> {
        let mut state = self.lock();
        let begun = state.begin();
        if begun.is_err() {
            state.proceed(&Arc::downgrade(self));
        }
        begun
    }

    fn take(self: &Arc<Self>, event: &StoreEvent) -> Told {
        let mut state = self.lock();
        let told = match event {
            StoreEvent::Opened(generation) => {
                state.staging.opened(*generation);
                state.load(&Arc::downgrade(self), *generation);
                Told::default()
            }
            StoreEvent::Committed(generation, ticket) => {
                state.staging.committed(*generation, *ticket)
            }
            StoreEvent::Failed(_, fault) => state.staging.failed(fault),
            StoreEvent::Replaced => state.staging.replaced(),
        };
        state.proceed(&Arc::downgrade(self));
        told
    }
}

impl State {
    fn begin(&self) -> Result<(Generation, Arc<Known>), StoreError> {
        self.staging.begin(|| waited(self.user.as_ref()))
    }

    /// Has a completed peg-out noted once what is on disk is known.
    pub(super) fn note(&mut self, completed: PegoutCompleted, answer: NoteAnswer) -> Told {
        let Self { user, staging } = self;
        staging.note(completed, answer, || waited(user.as_ref()))
    }

    fn hand_in(&mut self, generation: Generation, draft: Draft, answer: Answer) -> Told {
        if self.staging.open_in() != Some(generation) {
            return self.staging.refused(answer);
        }
        let (Some((known, batch)), Some(user)) = (draft.finish(), &self.user) else {
            return self.staging.rests(answer);
        };
        match user.commit(generation, batch) {
            Ok(ticket) => {
                self.staging.handed_in(ticket, known, answer);
                Told::default()
            }
            Err(reason) => Told::one(answer, Err(reason)),
        }
    }

    /// Reads on the store's threads; on the one for what takes longer, if it is `long`.
    pub(super) fn read<T: Send + 'static>(
        &self,
        generation: Generation,
        long: bool,
        read: impl FnOnce(PaymentRows<'_>) -> Result<T, StoreError> + Send + 'static,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let Some(user) = &self.user else {
            return answer(Err(StoreError::Ended));
        };
        let (place, hash) = (user.store().place().to_owned(), user.store().hash_key());
        let read = move |snapshot: &dyn Snapshot| {
            read(PaymentRows {
                snapshot,
                place: &place,
                hash,
            })
        };
        if long {
            user.scan(generation, read, answer);
        } else {
            user.look_up(generation, read, answer);
        }
    }

    /// Asks for what is to be read or looked up next.
    pub(super) fn proceed(&mut self, shared: &Weak<Shared>) {
        if let Some(generation) = self.staging.read_again() {
            self.load(shared, generation);
        }
        let Some(generation) = self.staging.open_in() else {
            return;
        };
        let Some((look_up, asked)) = self.staging.payments().ask() else {
            return;
        };
        let shared = Weak::clone(shared);
        self.read(
            generation,
            false,
            move |rows| asked.iter().map(|asked| rows.concerning(asked)).collect(),
            move |found| looked_up(&shared, generation, look_up, found),
        );
    }

    fn load(&self, shared: &Weak<Shared>, generation: Generation) {
        let configured = self.staging.known().schedule.as_configured();
        let shared = Weak::clone(shared);
        self.read(
            generation,
            true,
            move |rows| load(rows, configured),
            move |result| loaded(&shared, generation, result),
        );
    }

    fn judge_notes(
        &mut self,
        generation: Generation,
        look_up: LookUp,
        found: Result<Vec<Found>, StoreError>,
    ) -> Told {
        let mut told = Told::default();
        if self.staging.open_in() != Some(generation) {
            return told;
        }
        let asked = self.staging.payments().answered(look_up);
        let Self { user, staging } = self;
        match (found, user) {
            (Ok(found), Some(user)) => {
                let hash = user.store().hash_key();
                for ((completed, answer), found) in asked.into_iter().zip(found) {
                    let commit = |number, completed: &PegoutCompleted, is_new| {
                        commit(user, generation, hash, number, completed, is_new)
                    };
                    told.and(staging.judge_note(completed, &found, answer, commit));
                }
            }
            (found, _) => {
                let fault = found.err().unwrap_or(StoreError::Ended);
                for (_, answer) in asked {
                    told.note(answer, Err(fault.clone().into()));
                }
            }
        }
        staging.payments().settle();
        told
    }
}

/// For how long the store has not answered.
fn waited(user: Option<&User>) -> Duration {
    user.map(User::waiting_for).unwrap_or_default()
}

fn commit(
    user: &User,
    generation: Generation,
    hash: HashKey,
    number: u64,
    completed: &PegoutCompleted,
    is_new: bool,
) -> Result<crate::storage::Ticket, StoreError> {
    let batch = payment_rows::write(hash, number, completed, is_new);
    user.commit(generation, batch)
}

/// The store tells something.
fn on(shared: &Weak<Shared>, event: &StoreEvent) {
    act(shared, |shared| shared.take(event));
}

/// What is durable is read.
fn loaded(shared: &Weak<Shared>, generation: Generation, result: Result<Loaded, StoreError>) {
    act(shared, |shared| {
        let mut state = shared.lock();
        state.staging.loaded(generation, result);
        match state.staging.phase() {
            Phase::Unreadable(_, fault) => error!(%fault, "the chain cannot be read"),
            phase => info!(
                ?phase,
                height = state.staging.known().schedule.height(),
                "chain read"
            ),
        }
        Told::default()
    });
}

/// What completed peg-outs need is looked up.
fn looked_up(
    shared: &Weak<Shared>,
    generation: Generation,
    look_up: LookUp,
    found: Result<Vec<Found>, StoreError>,
) {
    act(shared, |shared| {
        let mut state = shared.lock();
        let told = state.judge_notes(generation, look_up, found);
        state.proceed(&Arc::downgrade(shared));
        told
    });
}

/// Does something, says that something may have changed, and tells whoever waits.
fn act(shared: &Weak<Shared>, act: impl FnOnce(&Arc<Shared>) -> Told) {
    let Some(shared) = shared.upgrade() else {
        return;
    };
    let told = act(&shared);
    let changed = shared.changed.clone();
    drop(shared);
    changed.send_modify(|revision| *revision += 1);
    told.tell();
}
