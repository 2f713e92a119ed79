//! Bugs that are put in on purpose, so that the verdict is seen to find them: each lies at the
//! border between the stream and whoever uses it, and does its harm to one message or request.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use governance_stream::message::{MessageId, Outcome};

use crate::subscribers::{Told, What};

/// So many chances pass first: by then there is something to mix it up with.
const AFTER: u32 = 3;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A message is handled, and its subscriber never told.
    Lost,
    /// A message is told twice, the second time as if it were the first.
    Repeated,
    /// A message is told after the one that follows it in its lane.
    Swapped,
    /// A message comes again as another one.
    Forked,
    /// A message comes again, as one may, but while nobody dies.
    Returned,
    /// The bridge is told another outcome than the caller.
    Changed,
    /// The answer of a subscriber never comes to governance.
    Unanswered,
    /// A request is made once more under another name.
    Doubled,
    /// A request is said to be accepted, and is not made.
    Dropped,
    /// A request has another outcome later.
    Revised,
}

impl Bug {
    pub(crate) const ALL: [Self; 10] = [
        Self::Lost,
        Self::Repeated,
        Self::Swapped,
        Self::Forked,
        Self::Returned,
        Self::Changed,
        Self::Unanswered,
        Self::Doubled,
        Self::Dropped,
        Self::Revised,
    ];
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl FromStr for Bug {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let named = Self::ALL.into_iter().find(|bug| bug.to_string() == name);
        named.ok_or(())
    }
}

/// The bug of this run, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Plant {
    bug: Option<Bug>,
    harm: Mutex<Harm>,
    nobody_dies: AtomicBool,
}

#[derive(Debug, Default)]
struct Harm {
    chances: u32,
    /// The message or request that it is done to, as the verdict names it.
    victim: Option<String>,
    /// To be told after the next one of its lane.
    held: Option<Told>,
}

impl Plant {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self {
            bug,
            ..Self::default()
        }
    }

    /// From now on.
    pub(crate) fn nobody_dies(&self) {
        self.nobody_dies.store(true, Ordering::Relaxed);
    }

    fn harm(&self) -> MutexGuard<'_, Harm> {
        self.harm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is the bug and `name` its victim, each time that it comes.
    pub(crate) fn befalls(&self, bug: Bug, name: &str) -> bool {
        if self.bug != Some(bug) {
            return false;
        }
        let mut harm = self.harm();
        harm.chances += 1;
        if harm.victim.is_none() && harm.chances > AFTER {
            println!("planted: {bug}, at {name}");
            harm.victim = Some(name.to_owned());
        }
        harm.victim.as_deref() == Some(name)
    }

    /// What its subscriber is told instead of this.
    pub(crate) fn told(&self, mut told: Told) -> Vec<Told> {
        if let Some(held) = self.harm().held.take_if(|held| held.lane == told.lane) {
            return vec![told, held];
        }
        let name = told.to_string();
        if self.befalls(Bug::Lost, &name) {
            return Vec::new();
        }
        if self.befalls(Bug::Repeated, &name) {
            return vec![told.clone(), told];
        }
        // One that came before may come again at any time.
        if !told.redelivered && self.befalls(Bug::Swapped, &name) {
            self.harm().held = Some(told);
            return Vec::new();
        }
        let mut again = Told {
            redelivered: true,
            ..told.clone()
        };
        if self.befalls(Bug::Forked, &name) {
            again.message_id = MessageId::generate();
            return vec![told, again];
        }
        if self.nobody_dies.load(Ordering::Relaxed) && self.befalls(Bug::Returned, &name) {
            return vec![told, again];
        }
        if let What::Settled(id, outcome) = &mut told.what
            && self.befalls(Bug::Changed, id)
        {
            *outcome = another(outcome);
        }
        vec![told]
    }

    /// Whether one of these violations is the bug's; `None` where none was planted.
    pub(crate) fn is_found(&self, violations: &[String]) -> Option<bool> {
        self.bug?;
        let victim = self.harm().victim.clone();
        Some(victim.is_some_and(|name| violations.iter().any(|words| words.contains(&name))))
    }
}

/// Some other outcome.
pub(crate) fn another(outcome: &Outcome) -> Outcome {
    if *outcome == Outcome::Complete {
        Outcome::ExpiredUnsent
    } else {
        Outcome::Complete
    }
}
