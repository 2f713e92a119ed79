//! The node's subscribers: they keep what they are told, and sometimes panic, fail or dawdle.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bitcoin::OutPoint;
use governance_stream::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery,
    message::{FederationUpdateAck, Lane, MessageId, Outcome, ProposalAck},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::plant::{Bug, Plant};

/// Pause before one that died comes back.
const AWAY: Duration = Duration::from_millis(20);

/// How it takes the next messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Mood {
    #[default]
    Well,
    /// Panics at the next message, once.
    Panics,
    /// Keeps the next message, and panics before it can say so, once.
    PanicsUnheard,
    /// Refuses the next message, once.
    Fails,
    /// Takes so long over each batch.
    Slow(Duration),
}

/// One message as it was told.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) lane: Lane,
    pub(crate) sequence: u64,
    pub(crate) message_id: MessageId,
    pub(crate) redelivered: bool,
    pub(crate) what: What,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.lane, self.sequence)
    }
}

/// What it was about, as far as it is checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    Progress,
    Settled(String, Outcome),
    Deposit(OutPoint),
    Update(u32),
    Proposal(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Progress => f.write_str("progress"),
            Self::Settled(id, outcome) => write!(f, "{id} {outcome}"),
            Self::Deposit(outpoint) => write!(f, "deposit {outpoint}"),
            Self::Update(version) => write!(f, "update {version}"),
            Self::Proposal(id) => f.write_str(id),
        }
    }
}

/// What a subscriber makes of an event.
pub(crate) trait Event: Clone + Send + Sync + Sized + 'static {
    fn take(&self) -> (What, Option<Answer>);
}

impl Event for BridgeEvent {
    fn take(&self) -> (What, Option<Answer>) {
        let what = match self {
            Self::SignatureResponse { response, .. } => {
                let id = response.request_id.to_string();
                let outcome = Outcome::from_status(&response.status);
                outcome.map_or(What::Progress, |outcome| What::Settled(id, outcome))
            }
            Self::PeginAck(ack) => What::Deposit(ack.outpoint),
            // The soak restores no store.
            Self::RequestRecalled(_) => What::Progress,
        };
        (what, None)
    }
}

impl Event for ChainEvent {
    fn take(&self) -> (What, Option<Answer>) {
        match self {
            Self::FederationUpdate(update) => {
                let version = update.version;
                let ack = FederationUpdateAck {
                    version,
                    verdict: Ok(()),
                };
                (What::Update(version), Some(Answer::FederationUpdate(ack)))
            }
            Self::Proposal(proposal) => {
                let proposal_id = proposal.proposal_id.clone();
                let what = What::Proposal(proposal_id.to_string());
                (what, Some(Answer::Proposal(ProposalAck { proposal_id })))
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    told: Mutex<Vec<Told>>,
    mood: Mutex<Mood>,
    plant: Arc<Plant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A subscriber under one name, started again whenever it dies; what it was told outlives it.
pub(crate) struct Recorder<E> {
    shared: Arc<Shared>,
    _event: PhantomData<fn(E)>,
}

impl<E: Event> Recorder<E> {
    pub(crate) fn start(name: &str, plant: &Arc<Plant>) -> Self {
        let shared = Arc::new(Shared {
            plant: Arc::clone(plant),
            ..Shared::default()
        });
        let (name, of_the_actor) = (name.to_owned(), Arc::clone(&shared));
        tokio::spawn(async move {
            loop {
                let actor = RecorderActor::<E>(PhantomData);
                let spawned = Actor::spawn(Some(name.clone()), actor, Arc::clone(&of_the_actor));
                if let Ok((_, life)) = spawned.await {
                    let _ = life.await;
                }
                tokio::time::sleep(AWAY).await;
            }
        });
        Self {
            shared,
            _event: PhantomData,
        }
    }

    pub(crate) fn mood(&self, mood: Mood) {
        *lock(&self.shared.mood) = mood;
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        lock(&self.shared.told).clone()
    }
}

struct RecorderActor<E>(PhantomData<fn(E)>);

impl<E: Event> Actor for RecorderActor<E> {
    type Msg = Delivery<E>;
    type State = Arc<Shared>;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        shared: Arc<Shared>,
    ) -> Result<Arc<Shared>, ActorProcessingErr> {
        Ok(shared)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Delivery<E>,
        shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        let mood = *lock(&shared.mood);
        if let Mood::Slow(pause) = mood {
            tokio::time::sleep(pause).await;
        }
        delivery.handle_each(|message| take(shared, message));
        Ok(())
    }
}

fn take<E: Event>(shared: &Shared, message: &Delivered<E>) -> Result<Option<Answer>, String> {
    let mut mood = lock(&shared.mood);
    match *mood {
        Mood::Panics => {
            *mood = Mood::Well;
            drop(mood);
            panic!("told to panic as a subscriber");
        }
        Mood::Fails => {
            *mood = Mood::Well;
            return Err("told to fail".to_owned());
        }
        Mood::Well | Mood::PanicsUnheard | Mood::Slow(_) => {}
    }
    let (what, answer) = message.event.take();
    let told = Told {
        lane: message.lane,
        sequence: message.sequence,
        message_id: message.message_id,
        redelivered: message.redelivered,
        what,
    };
    let plant = &shared.plant;
    let answer = answer.filter(|_| !plant.befalls(Bug::Unanswered, &told.what.to_string()));
    lock(&shared.told).extend(plant.told(told));
    if let Mood::PanicsUnheard = *mood {
        *mood = Mood::Well;
        drop(mood);
        panic!("told to panic as a subscriber");
    }
    Ok(answer)
}
