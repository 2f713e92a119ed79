//! Subscribers that record what they are told, and fail as a test wants them to.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use governance_stream::{
    Answer, BridgeEvent, ChainEvent, Delivered, Delivery,
    message::{FederationUpdateAck, ProposalAck},
};
use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus};
use tokio::sync::watch;

use super::PATIENCE;

/// What a recorder does with the next messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Handles them.
    Well,
    /// Panics at the message of this many from now (0: the next).
    PanicsAt(usize),
    /// Refuses the message of this many from now, once.
    FailsAt(usize),
    /// Finds everything of no use.
    Rejects,
    /// Takes deliveries, and never replies.
    Stuck,
}

type Answers<E> = fn(&E) -> Option<Answer>;

#[derive(Debug)]
struct Shared<E> {
    events: watch::Sender<Vec<Delivered<E>>>,
    mood: Mutex<Mood>,
}

/// A recording subscriber under one name; what it recorded outlives it.
pub struct Recorder<E> {
    name: String,
    shared: Arc<Shared<E>>,
    answers: Answers<E>,
    actor: Option<ActorRef<Delivery<E>>>,
}

pub type Bridge = Recorder<BridgeEvent>;
pub type Chain = Recorder<ChainEvent>;

impl Bridge {
    pub async fn start(name: &str) -> Self {
        let mut recorder = Self::absent(name, |_| None);
        recorder.appear().await;
        recorder
    }
}

impl Chain {
    pub async fn start(name: &str) -> Self {
        let mut recorder = Self::absent(name, accept);
        recorder.appear().await;
        recorder
    }
}

fn accept(event: &ChainEvent) -> Option<Answer> {
    Some(match event {
        ChainEvent::FederationUpdate(update) => Answer::FederationUpdate(FederationUpdateAck {
            version: update.version,
            verdict: Ok(()),
        }),
        ChainEvent::Proposal(proposal) => Answer::Proposal(ProposalAck {
            proposal_id: proposal.proposal_id.clone(),
        }),
    })
}

impl<E: fmt::Debug + Clone + Send + Sync + 'static> Recorder<E> {
    /// One that is not there yet.
    pub fn absent(name: &str, answers: Answers<E>) -> Self {
        let shared = Shared {
            events: watch::Sender::new(Vec::new()),
            mood: Mutex::new(Mood::Well),
        };
        Self {
            name: name.to_owned(),
            shared: Arc::new(shared),
            answers,
            actor: None,
        }
    }

    /// Registers it, or a new one in place of one that died.
    pub async fn appear(&mut self) {
        if let Some(old) = self.actor.take() {
            let _ = old.wait(Some(PATIENCE)).await;
        }
        let arguments = (Arc::clone(&self.shared), self.answers);
        let spawned = Actor::spawn(Some(self.name.clone()), RecorderActor::default(), arguments);
        self.actor = Some(spawned.await.expect("the name is free").0);
    }

    pub fn mood(&self, mood: Mood) {
        *self.shared.mood.lock().expect("not poisoned") = mood;
    }

    /// Whether it has died of its mood.
    pub fn is_dead(&self) -> bool {
        self.actor
            .as_ref()
            .is_none_or(|actor| actor.get_status() == ActorStatus::Stopped)
    }

    /// Waits for its death.
    pub async fn death(&self) {
        if let Some(actor) = &self.actor {
            actor.wait(Some(PATIENCE)).await.expect("dies");
        }
    }

    /// Waits until it has recorded `count` messages, and gives all of them.
    pub async fn recorded(&self, count: usize) -> Vec<Delivered<E>> {
        let mut events = self.shared.events.subscribe();
        let waited =
            tokio::time::timeout(PATIENCE, events.wait_for(|events| events.len() >= count)).await;
        match waited {
            Ok(Ok(events)) => events.clone(),
            _ => panic!(
                "{} of {count} messages came to {}",
                self.so_far().len(),
                self.name
            ),
        }
    }

    pub fn so_far(&self) -> Vec<Delivered<E>> {
        self.shared.events.borrow().clone()
    }

    pub async fn stop(&self) {
        if let Some(actor) = &self.actor {
            let _ = actor.stop_and_wait(None, Some(PATIENCE)).await;
        }
    }
}

struct RecorderActor<E>(std::marker::PhantomData<fn(E)>);

impl<E> Default for RecorderActor<E> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<E: fmt::Debug + Clone + Send + Sync + 'static> Actor for RecorderActor<E> {
    type Msg = Delivery<E>;
    type State = (Arc<Shared<E>>, Answers<E>, Vec<Delivery<E>>);
    type Arguments = (Arc<Shared<E>>, Answers<E>);

    async fn pre_start(
        &self,
        _: ActorRef<Self::Msg>,
        (shared, answers): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok((shared, answers, Vec::new()))
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        delivery: Self::Msg,
        (shared, answers, kept): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if *shared.mood.lock().expect("not poisoned") == Mood::Stuck {
            kept.push(delivery);
            return Ok(());
        }
        delivery.handle_each(|message| {
            let mut mood = shared.mood.lock().expect("not poisoned");
            match *mood {
                Mood::PanicsAt(0) => {
                    *mood = Mood::Well;
                    drop(mood);
                    panic!("as the test wants it");
                }
                Mood::FailsAt(0) => {
                    *mood = Mood::Well;
                    return Err("as the test wants it".to_owned());
                }
                Mood::PanicsAt(more) => *mood = Mood::PanicsAt(more - 1),
                Mood::FailsAt(more) => *mood = Mood::FailsAt(more - 1),
                Mood::Rejects => {
                    let reason = "as the test wants it".to_owned();
                    return Ok(Some(Answer::Reject { reason }));
                }
                Mood::Well | Mood::Stuck => {}
            }
            shared
                .events
                .send_modify(|events| events.push(message.clone()));
            Ok(answers(&message.event))
        });
        Ok(())
    }
}
