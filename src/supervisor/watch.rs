//! Who owes a sign of life, and for how long. Pure.

use std::collections::{HashMap, HashSet};

use ractor::ActorId;

use crate::{config::SupervisionConfig, pulse::Pulse};

/// What is done about an actor in a round.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Ask it for a sign of life.
    Ask(Pulse),
    /// It still has time for the last one.
    Wait,
    /// It is to be killed.
    Hung,
    /// It was killed, and is still there: its thread does not come back from what it does.
    Unkillable,
}

/// The actors that are asked. Time is counted in rounds, which are at least the interval apart: a
/// machine that slept, or a process that was stopped, has slept through one round and not through
/// everyone's deadline.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Rounds that a question may stay without an answer.
    patience: u32,
    owed: HashMap<ActorId, Owed>,
    /// Killed for it, and not yet known to be dead.
    hung: HashSet<ActorId>,
}

#[derive(Debug)]
struct Owed {
    pulse: Pulse,
    rounds: u32,
}

impl Watch {
    pub(crate) fn new(config: &SupervisionConfig) -> Self {
        let interval = config.watch_interval.as_nanos().max(1);
        let rounds = config.hang_deadline.as_nanos().div_ceil(interval);
        Self {
            patience: u32::try_from(rounds).unwrap_or(u32::MAX).max(1),
            owed: HashMap::new(),
            hung: HashSet::new(),
        }
    }

    /// The actor's turn in a round. It is asked anew only once it has answered: a mailbox that
    /// nobody empties does not fill with questions.
    pub(crate) fn look(&mut self, actor: ActorId) -> Verdict {
        match self.owed.get_mut(&actor) {
            Some(owed) if !owed.pulse.has_beaten() => {
                owed.rounds += 1;
                if owed.rounds < self.patience {
                    Verdict::Wait
                } else if self.hung.insert(actor) {
                    owed.rounds = 0;
                    Verdict::Hung
                } else {
                    Verdict::Unkillable
                }
            }
            Some(_) | None => {
                let pulse = Pulse::default();
                let owed = Owed {
                    pulse: pulse.clone(),
                    rounds: 0,
                };
                self.owed.insert(actor, owed);
                Verdict::Ask(pulse)
            }
        }
    }

    /// The actor is gone; whether it was killed because it hung.
    pub(crate) fn forget(&mut self, actor: ActorId) -> bool {
        self.owed.remove(&actor);
        self.hung.remove(&actor)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ACTOR: ActorId = ActorId::Local(7);

    fn watch() -> Watch {
        Watch::new(&SupervisionConfig {
            watch_interval: Duration::from_secs(5),
            hang_deadline: Duration::from_secs(15),
            ..SupervisionConfig::default()
        })
    }

    fn ask(watch: &mut Watch) -> Pulse {
        match watch.look(ACTOR) {
            Verdict::Ask(pulse) => pulse,
            other => panic!("not asked but {other:?}"),
        }
    }

    #[test]
    fn an_actor_that_answers_is_asked_in_every_round() {
        let mut watch = watch();
        for _ in 0..10 {
            ask(&mut watch).beat();
        }
        assert!(!watch.forget(ACTOR));
    }

    #[test]
    fn one_that_is_slow_has_all_of_its_time() {
        let mut watch = watch();
        let pulse = ask(&mut watch);
        assert!(matches!(watch.look(ACTOR), Verdict::Wait));
        assert!(matches!(watch.look(ACTOR), Verdict::Wait));
        pulse.beat();
        ask(&mut watch);
    }

    #[test]
    fn one_that_does_not_answer_is_hung_after_its_deadline_and_unkillable_after_another() {
        let mut watch = watch();
        ask(&mut watch);
        for _ in 0..2 {
            assert!(matches!(watch.look(ACTOR), Verdict::Wait));
        }
        assert!(matches!(watch.look(ACTOR), Verdict::Hung));
        for _ in 0..2 {
            assert!(matches!(watch.look(ACTOR), Verdict::Wait));
        }
        assert!(matches!(watch.look(ACTOR), Verdict::Unkillable));
    }

    #[test]
    fn the_cause_of_its_death_is_known() {
        let mut watch = watch();
        for _ in 0..4 {
            watch.look(ACTOR);
        }
        assert!(watch.forget(ACTOR), "it was killed because it hung");
        assert!(!watch.forget(ACTOR), "another death has another cause");
    }
}
