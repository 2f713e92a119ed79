//! The bridge: has peg-outs signed, and follows them through the Bitcoin network to their end.
//!
//! An implementation of the subscriber contract, and what the binary runs; a node may bring its
//! own. It is a user of the node's store, where its rows are (`tables.rs`); a [`BridgeStore`] shows
//! what is durable of them. In memory is what is open; everything else is looked up.
//!
//! Every step of a peg-out is one event of the table in `life.rs`. It is decided (`decide.rs`),
//! handed to the store, and shown, told and acted on once the store says that it is durable
//! (`ready.rs`). When the store fails, nothing that is not durable is told: callers are to ask again,
//! deliveries come again, and everything begins from what is read. A bridge that begins derives from
//! each stage what is to be done: it asks again for what it does not know to be accepted (the
//! request's id makes that safe), offers again what it does not know to be taken, and looks for what
//! it does not know to be final.

mod act;
mod admission;
mod backend;
#[cfg(feature = "bitcoind")]
mod bitcoind;
mod completion;
mod decide;
mod embedded;
mod errands;
mod event;
mod input;
mod life;
mod memory;
mod message;
mod outbox;
#[cfg(feature = "stress")]
pub(crate) mod past;
mod pauses;
mod pegout;
mod psbt_check;
mod psbt_fault;
mod questions;
mod ready;
mod receive;
mod returns;
mod signatures;
mod store;
mod stored;
mod tables;
mod unit;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::Semaphore;
use tracing::{error, warn};

use crate::{
    Restoration,
    chain::Federations,
    storage::{Generation, StoreError, StoreEvent, User},
    timer::Timer,
};

pub use backend::{Acceptance, Asking, BitcoinBackend, Sighting, SignedTransaction, Unavailable};
#[cfg(feature = "bitcoind")]
pub use bitcoind::BitcoinCore;
pub use completion::{CompletionNotice, CompletionSubscriber, PegoutCompleted};
pub use embedded::EmbeddedBitcoin;
pub use event::{PausedBy, PegoutEvent};
pub use life::{PegoutFailure, PegoutStage, Place};
pub use message::{AskAgain, BridgeArguments, BridgeMessage, CancelAnswer, Errand, PegoutRefusal};
pub use outbox::FileOutbox;
pub use pegout::{Pegout, SignatureStanding};
pub use psbt_check::check_psbt;
pub use psbt_fault::PsbtFault;
pub use signatures::{
    BadSignature, FinaliseError, Signatures, Verifier, check_consensus, finalise,
};
pub use store::{BridgeStore, PegoutPage};
pub use tables::{find_pegin, recorded_pegout};

use act::Errands;
use decide::Decider;
use event::Pause;
use input::Input;
use life::Impossible;
use message::Done;
use questions::refuse;
use ready::{Around, Confirmed, Ready};
use tables::{Found, Loaded};
use unit::{Effect, Reply, Unit};

/// Pause before rows that could not be read are read again.
const LOAD_AGAIN: Duration = Duration::from_secs(1);
/// Requests that wait while rows are read. One more is refused.
const MOST_WAITING: usize = 64;
/// Questions that the store is being asked at once. One more is refused.
const MOST_QUESTIONS: usize = 256;

/// The bridge actor.
#[derive(Debug)]
pub struct BridgeActor;

/// Its state.
#[derive(Debug)]
pub struct BridgeState {
    args: BridgeArguments,
    myself: ActorRef<BridgeMessage>,
    user: User,
    phase: Phase,
    errands: Errands,
    /// Whether it was last shown that peg-outs are paused.
    paused: bool,
    /// Permits of those who ask the store something.
    questions: Arc<Semaphore>,
    load_again: Timer,
}

#[derive(Debug)]
enum Phase {
    /// Rows are being read, or the store has failed.
    Loading {
        /// That of the store's last opening.
        generation: Option<Generation>,
        /// Requests, while nothing has failed.
        waiting: Vec<BridgeMessage>,
        /// What has failed.
        fault: Option<StoreError>,
    },
    Ready(Box<Ready>),
}

impl Actor for BridgeActor {
    type Msg = BridgeMessage;
    type State = BridgeState;
    type Arguments = BridgeArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        args.store.set_loading();
        let bridge = myself.clone();
        let tell = move |event| {
            // A bridge that is gone needs to know nothing.
            let _ = bridge.cast(Done::Store(event).into());
        };
        Ok(BridgeState {
            user: args.store.store().register(tables::USER, tell),
            phase: Phase::Loading {
                generation: None,
                waiting: Vec::new(),
                fault: None,
            },
            errands: Errands::new(args.clone(), myself.clone()),
            paused: false,
            questions: Arc::new(Semaphore::new(MOST_QUESTIONS)),
            load_again: Timer::default(),
            myself,
            args,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.errands.reap();
        state.receive(message)?;
        Ok(())
    }
}

/// Why a bridge gives up, for its supervisor to start another one.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error("another bridge uses the store now")]
    Replaced,
}

impl BridgeState {
    fn receive(&mut self, message: BridgeMessage) -> Result<(), Fault> {
        match (&mut self.phase, message) {
            (_, BridgeMessage::Done(Errand(Done::Store(event)))) => self.heed_store(event)?,
            (_, BridgeMessage::Done(Errand(Done::LoadAgain))) => self.load(),
            (
                Phase::Loading { generation, .. },
                BridgeMessage::Done(Errand(Done::Loaded {
                    generation: of,
                    result,
                })),
            ) => {
                if *generation == Some(of) {
                    self.loaded(of, result)?;
                }
            }
            (_, BridgeMessage::UpdateFederations { federations, reply }) => {
                self.set_federations(federations);
                let _ = reply.send(());
            }
            (Phase::Loading { waiting, fault, .. }, message) => match fault {
                Some(fault) => refuse(message, &AskAgain::new(fault)),
                None if !message.may_wait() || waiting.len() >= MOST_WAITING => {
                    refuse(message, &AskAgain::new("the bridge's rows are being read"));
                }
                None => waiting.push(message),
            },
            (Phase::Ready(_), message) => self.work(message)?,
        }
        self.go_on()
    }

    /// # Errors
    ///
    /// When another bridge has registered with the store.
    fn heed_store(&mut self, event: StoreEvent) -> Result<(), Fault> {
        match (event, &mut self.phase) {
            (StoreEvent::Opened(opened), phase) => {
                match phase {
                    Phase::Loading {
                        generation, fault, ..
                    } => (*generation, *fault) = (Some(opened), None),
                    Phase::Ready(_) => self.begin_again(Some(opened), StoreError::Ended),
                }
                self.load();
            }
            (StoreEvent::Committed(of, ticket), Phase::Ready(ready)) => {
                if of == ready.generation
                    && let Some(confirmed) = ready.committed(ticket)
                {
                    self.carry_out(confirmed);
                }
            }
            (StoreEvent::Failed(_, fault), _) => {
                error!(%fault, "the bridge's store failed; what was not durable counts for nothing");
                self.begin_again(None, fault);
            }
            (StoreEvent::Replaced, _) => return Err(Fault::Replaced),
            (StoreEvent::Committed(..), Phase::Loading { .. }) => {}
        }
        Ok(())
    }

    /// Nothing that is not durable is told to anyone, and what is in memory counts for nothing: it
    /// is read again.
    fn begin_again(&mut self, generation: Option<Generation>, fault: StoreError) {
        self.args.store.set_loading();
        self.errands.forget();
        self.load_again.disarm();
        let reason = AskAgain::new(&fault);
        let loading = Phase::Loading {
            generation,
            waiting: Vec::new(),
            fault: Some(fault),
        };
        match std::mem::replace(&mut self.phase, loading) {
            Phase::Ready(ready) => ready.give_up(&reason),
            Phase::Loading { waiting, .. } => {
                for message in waiting {
                    refuse(message, &reason);
                }
            }
        }
    }

    /// Has the rows read, once the store is open.
    fn load(&mut self) {
        let Phase::Loading {
            generation: Some(generation),
            ..
        } = self.phase
        else {
            return;
        };
        let (bridge, reports) = (self.myself.clone(), self.args.completions.is_some());
        self.user.scan(
            generation,
            move |snapshot| tables::load(snapshot, reports).map(Box::new),
            move |result| {
                let loaded = Done::Loaded { generation, result };
                let _ = bridge.cast(loaded.into());
            },
        );
    }

    fn loaded(
        &mut self,
        generation: Generation,
        result: Result<Box<Loaded>, StoreError>,
    ) -> Result<(), Fault> {
        let loaded = match result {
            Ok(loaded) => loaded,
            // The store tells when it is open again.
            Err(StoreError::Ended) => return Ok(()),
            Err(fault) => {
                error!(%fault, again_in = ?LOAD_AGAIN, "the bridge's rows cannot be read");
                self.begin_again(Some(generation), fault);
                self.load_again
                    .arm(LOAD_AGAIN, &self.myself, || Done::LoadAgain.into());
                return Ok(());
            }
        };
        let store = self.args.store.clone();
        let dealt_with = loaded.restored;
        let reports = self.args.completions.is_some();
        let mut ready = Ready::new(generation, *loaded, store.store().hash_key(), reports);
        store.set_loaded(ready.memory.pegouts(), &ready.memory.pauses);
        if let Some(restored) = store.store().restored()
            && dealt_with != Some(restored.restore_id)
        {
            warn!(
                restore_id = %restored.restore_id,
                "the store was restored from a backup; peg-outs are paused until the operator resumes"
            );
            let mut unit = Unit::default();
            ready.memory.pauses.insert(Pause::Restore);
            tables::put_pause(&mut unit.batch, Pause::Restore, true);
            tables::put_restored(&mut unit.batch, restored.restore_id);
            unit.pauses = Some(ready.memory.pauses.clone());
            ready.gather(unit);
        }
        let waiting = match std::mem::replace(&mut self.phase, Phase::Ready(Box::new(ready))) {
            Phase::Loading { waiting, .. } => waiting,
            Phase::Ready(_) => Vec::new(),
        };
        self.take_up();
        waiting
            .into_iter()
            .try_for_each(|message| self.work(message))
    }

    /// Looks up what is waited for, hands in what is decided, and does what is durable.
    fn go_on(&mut self) -> Result<(), Fault> {
        let Phase::Ready(ready) = &mut self.phase else {
            return Ok(());
        };
        let generation = ready.generation;
        if let Some((look_up, hash, wanted)) = ready.ask() {
            let bridge = self.myself.clone();
            self.user.look_up(
                generation,
                move |snapshot| tables::look_up(snapshot, hash, &wanted),
                move |result| {
                    let looked_up = Done::LookedUp {
                        generation,
                        look_up,
                        result,
                    };
                    let _ = bridge.cast(looked_up.into());
                },
            );
        }
        while let Phase::Ready(ready) = &mut self.phase {
            match ready.hand_in(&self.user) {
                Ok(None) => break,
                Ok(Some(confirmed)) => self.carry_out(confirmed),
                Err(fault) => {
                    error!(%fault, "the store does not take what the bridge hands in");
                    self.begin_again(Some(generation), fault);
                    self.load();
                }
            }
        }
        if let Phase::Ready(ready) = &mut self.phase {
            let gone = ready.let_go();
            self.args.store.let_go(&gone);
            for request_id in &gone {
                self.errands.let_go(request_id);
            }
        }
        Ok(())
    }

    /// Shows what is durable, then tells it, replies and acts.
    fn carry_out(&mut self, confirmed: Confirmed) {
        let Confirmed {
            pegouts,
            pauses,
            effects,
        } = confirmed;
        self.args.store.show(pegouts, pauses);
        let held = self.show_pause();
        for effect in effects {
            match effect {
                Effect::Tell(event) => self.tell(event),
                Effect::Trace(request_id, span) => self.errands.trace(request_id, span),
                Effect::Act(request_id, action) => self.errands.act(request_id, action, held),
                Effect::TakeUp => self.errands.take_up(held),
                Effect::Reply(reply) => reply.send(),
            }
        }
    }

    fn tell(&self, event: PegoutEvent) {
        if let PegoutEvent::Stage { stage, .. } = &event {
            match stage {
                PegoutStage::Completed { .. } => self.args.metrics.record_pegout_completed(),
                PegoutStage::Failed(_) => self.args.metrics.record_pegout_failed(),
                _ => {}
            }
        }
        self.args.store.tell(event);
    }

    /// Does what is to be done about everything that is open.
    fn take_up(&mut self) {
        let held = self.show_pause();
        self.errands.take_up(held);
    }

    fn work(&mut self, message: BridgeMessage) -> Result<(), Fault> {
        match message {
            BridgeMessage::Deliver(delivery) => self.take(Input::Deliver(delivery))?,
            BridgeMessage::InitiatePegout { reply, .. } if self.is_restoring() => {
                let _ = reply.send(Err(PegoutRefusal::Restoring));
            }
            BridgeMessage::InitiatePegout {
                request,
                span,
                reply,
            } => self.take(Input::Begin {
                request,
                span,
                reply,
            })?,
            BridgeMessage::CancelPegout { request_id, reply } => {
                self.take(Input::Cancel { request_id, reply })?;
            }
            BridgeMessage::SetPaused { paused, reply } => {
                let before = self.is_paused();
                self.decide(|decider, unit| {
                    decider.set_paused(unit, paused);
                    unit.effects.push(Effect::Reply(Reply::Paused(reply)));
                    Ok(())
                })?;
                self.heed_pause(before);
            }
            BridgeMessage::Done(Errand(done)) => self.done(done)?,
            question => self.answer(question),
        }
        Ok(())
    }

    /// Whether governance has yet to recall what this store lacks.
    fn is_restoring(&self) -> bool {
        self.args.stream.status().restoration != Restoration::None
    }

    fn take(&mut self, input: Input) -> Result<(), Fault> {
        let federations = self.args.store.federations();
        if let Phase::Ready(ready) = &mut self.phase {
            ready.take(input, &around(&federations, &self.args))?;
        }
        Ok(())
    }

    /// Decides something with what is in memory.
    fn decide(
        &mut self,
        decide: impl FnOnce(&mut Decider<'_>, &mut Unit) -> Result<(), Impossible>,
    ) -> Result<(), Fault> {
        let federations = self.args.store.federations();
        if let Phase::Ready(ready) = &mut self.phase {
            let mut unit = Unit::default();
            let (nothing, around) = (Found::default(), around(&federations, &self.args));
            decide(&mut ready.decider(&nothing, &around), &mut unit)?;
            ready.gather(unit);
        }
        Ok(())
    }
}

/// What decisions are made with beside the rows.
fn around<'a>(federations: &'a Federations, args: &'a BridgeArguments) -> Around<'a> {
    Around {
        federations,
        now: SystemTime::now(),
        metrics: &args.metrics,
    }
}
