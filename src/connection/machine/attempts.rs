//! Attempts: how one begins, and what follows when one, or a session, has ended. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::Machine;
use crate::{
    config::Endpoint,
    connection::{
        backoff,
        endpoints::Hopeless,
        fault::{Remedy, SessionFault},
        live::{Leaving, Live, SwitchCause},
        state::{Action, Check, State},
    },
};

/// How long governance may take to end its side after we ended ours.
pub(super) const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

impl Machine {
    /// The first attempt is spread like every other one: nodes that start together, after a power
    /// cut say, do not all arrive together.
    pub(super) fn start(&mut self, now: Instant, random: f64) -> (State, Vec<Action>) {
        let Some(first) = self.endpoints.next(now) else {
            return (State::Disconnected, Vec::new());
        };
        let state = State::BackingOff {
            target: first.target,
            until: now + backoff::delay(&self.config.backoff, 1, random),
            attempt: 0,
            cause: SessionFault::Starting,
        };
        (state, Vec::new())
    }

    /// Begins the next attempt, if there is an endpoint for it.
    pub(super) fn attempt(&mut self, now: Instant) -> Option<(State, Vec<Action>)> {
        let target = self.endpoints.next(now)?.target;
        let check = if self.endpoints.begin(&target, now) {
            Check::Serving
        } else {
            Check::None
        };
        let (dial, until) = self.dial(now, check);
        let action = Action::Dial {
            target: target.clone(),
            dial,
            check,
        };
        Some((
            State::Connecting {
                target,
                dial,
                until,
            },
            vec![action],
        ))
    }

    pub(super) fn dial(&mut self, now: Instant, check: Check) -> (u64, Instant) {
        self.dials += 1;
        let checking = match check {
            Check::None => Duration::ZERO,
            Check::Serving | Check::InStep => self.config.probe_deadline,
        };
        (self.dials, now + self.config.dial_deadline() + checking)
    }

    pub(super) fn prepare(
        &self,
        target: Endpoint,
        dial: u64,
        now: Instant,
    ) -> (State, Vec<Action>) {
        let until = now + self.config.registration_deadline;
        let state = State::Preparing {
            target,
            dial,
            until,
        };
        (state, vec![Action::Prepare { dial }])
    }

    pub(super) fn say_goodbye(&mut self, state: State, now: Instant) -> (State, Vec<Action>) {
        let mut actions = vec![Action::SayGoodbye];
        let live = match state {
            State::Switching { from, dial, .. } => {
                actions.push(Action::Abandon { dial });
                from
            }
            State::Connected(live) => live,
            other => return (other, Vec::new()),
        };
        let Live { target, dial, .. } = live;
        let until = now + GOODBYE_DEADLINE;
        (
            State::Draining {
                target,
                dial,
                until,
            },
            actions,
        )
    }

    /// A live session is over.
    pub(super) fn lost(
        &mut self,
        live: &Live,
        fault: SessionFault,
        now: Instant,
        random: f64,
    ) -> Vec<Action> {
        self.endpoints.stop_watching();
        // Credentials that were good when it began: they are read once more before the breaker
        // takes the refusal for final.
        let was_drained = matches!(
            live.leaving,
            Some(Leaving {
                cause: SwitchCause::Drain,
                ..
            })
        );
        if !was_drained {
            let refused = fault.remedy() == Remedy::Slowly;
            let counted = if refused {
                &SessionFault::Closed
            } else {
                &fault
            };
            self.endpoints.failed(&live.target, counted, now, random);
        }
        let (target, dial) = (live.target.clone(), live.dial);
        vec![Action::Abandon { dial }, Action::Report { target, fault }]
    }

    /// The attempt or session is over: decides what comes next.
    pub(super) fn lose(
        &mut self,
        state: State,
        fault: SessionFault,
        now: Instant,
        random: f64,
    ) -> (State, Vec<Action>) {
        let actions = match &state {
            State::Connected(live) => self.lost(live, fault.clone(), now, random),
            state => {
                let mut actions = Vec::new();
                actions.extend(state.dial().map(|dial| Action::Abandon { dial }));
                if let Some(target) = state.target() {
                    self.endpoints.failed(target, &fault, now, random);
                    let (target, fault) = (target.clone(), fault.clone());
                    actions.push(Action::Report { target, fault });
                }
                actions
            }
        };
        if fault.remedy() == Remedy::Quarantine {
            return (State::Quarantined { cause: fault }, actions);
        }
        let attempt = match state.target() {
            Some(target) => self.endpoints.failures(target),
            None => 0,
        };
        let (state, _) = match self.endpoints.hopeless() {
            Some(Hopeless::Quarantine(cause)) => (State::Quarantined { cause }, Vec::new()),
            Some(Hopeless::Fail(cause)) => (State::Failed { cause }, Vec::new()),
            None => self.back_off(attempt, fault, now, random),
        };
        (state, actions)
    }

    /// Waits for the next endpoint that may be tried. One that nobody has failed on lately is not
    /// stormed by everyone who lost another one.
    pub(super) fn back_off(
        &mut self,
        attempt: u32,
        cause: SessionFault,
        now: Instant,
        random: f64,
    ) -> (State, Vec<Action>) {
        let Some(next) = self.endpoints.next(now) else {
            return (State::Disconnected, Vec::new());
        };
        let spread = backoff::delay(&self.config.backoff, 1, random);
        let until = if next.at <= now {
            now + spread
        } else {
            next.at
        };
        let state = State::BackingOff {
            target: next.target,
            until,
            attempt,
            cause,
        };
        (state, Vec::new())
    }
}
