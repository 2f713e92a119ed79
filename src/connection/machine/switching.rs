//! Switching: how a session that works is left for another one, at an operator's word, because
//! governance drains its endpoint, for other credentials, or for a preferred endpoint. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::Machine;
use crate::{
    config::Endpoint,
    connection::{
        backoff,
        fault::SessionFault,
        live::{Leaving, Live, SwitchCause},
        state::{Action, Check, State},
    },
};

impl Machine {
    pub(super) fn drained(&mut self, mut live: Live, grace: Duration, now: Instant) -> Live {
        // It is no place to come back to before it has had time to close and start again.
        self.endpoints.drained(&live.target, now + grace);
        live.leaving = Some(Leaving {
            cause: SwitchCause::Drain,
            at: now,
        });
        live
    }

    /// Opens the session that takes over from one that is to be left, if it is time.
    pub(super) fn leave(&mut self, mut live: Live, now: Instant) -> (State, Vec<Action>) {
        let Some(Leaving { cause, .. }) = live.leaving.filter(|leaving| leaving.at <= now) else {
            return (State::Connected(live), Vec::new());
        };
        let to = match cause {
            SwitchCause::Credentials => Some(live.target.clone()),
            // Behind one name there may be several servers: the same one again is better than none.
            SwitchCause::Drain => {
                let other = self.endpoints.instead_of(&live.target, now);
                other.or_else(|| Some(live.target.clone()))
            }
            SwitchCause::Operator => self.endpoints.pinned().cloned(),
            SwitchCause::Failback => self.endpoints.better_than(&live.target, now),
        };
        let Some(to) = to else {
            live.leaving = None;
            return (State::Connected(live), Vec::new());
        };
        if to != live.target {
            self.endpoints.begin(&to, now);
        }
        self.endpoints.stop_watching();
        let check = Check::InStep;
        let (dial, until) = self.dial(now, check);
        let action = Action::Dial {
            target: to.clone(),
            dial,
            check,
        };
        let state = State::Switching {
            from: live,
            to,
            dial,
            cause,
            until,
        };
        (state, vec![action])
    }

    /// A switch did not come about: the present session goes on.
    #[allow(clippy::too_many_arguments, reason = "the fields of one state")]
    pub(super) fn stay(
        &mut self,
        mut from: Live,
        to: Endpoint,
        dial: u64,
        cause: SwitchCause,
        fault: SessionFault,
        now: Instant,
        random: f64,
    ) -> (State, Vec<Action>) {
        let mut at = now + backoff::delay(&self.config.backoff, 1, random);
        if to == from.target {
            // The endpoint has a session that works: what failed is what we came with.
            at = at.max(now + self.config.backoff.initial);
        } else {
            self.endpoints.failed(&to, &fault, now, random);
            at = at.max(self.endpoints.admits_at(&to, now));
        }
        let again = Leaving { cause, at };
        from.leaving = match (from.leaving, cause) {
            // It came up meanwhile.
            (Some(other), _) if other.cause != cause => Some(other),
            // Going back waits for the other endpoint to be well again.
            (_, SwitchCause::Failback) => None,
            _ => Some(again),
        };
        self.endpoints.watch_others(&from.target, now, random);
        let actions = vec![
            Action::Abandon { dial },
            Action::ReportSwitch { to, cause, fault },
        ];
        (State::Connected(from), actions)
    }

    pub(super) fn credentials_changed(
        &mut self,
        state: State,
        now: Instant,
        random: f64,
    ) -> (State, Vec<Action>) {
        self.endpoints.credentials_changed();
        let leaving = Leaving {
            cause: SwitchCause::Credentials,
            at: now,
        };
        match state {
            State::Connected(mut live) => {
                live.leaving = Some(leaving);
                self.leave(live, now)
            }
            // The dial that is under way may have read the old ones.
            State::Switching {
                mut from,
                to,
                dial,
                cause,
                until,
            } => {
                from.leaving = Some(leaving);
                (
                    State::Switching {
                        from,
                        to,
                        dial,
                        cause,
                        until,
                    },
                    Vec::new(),
                )
            }
            State::BackingOff { attempt, cause, .. } if cause.is_about_credentials() => {
                self.back_off(attempt, cause, now, random)
            }
            other => (other, Vec::new()),
        }
    }

    pub(super) fn move_to(
        &mut self,
        state: State,
        target: Option<Endpoint>,
        now: Instant,
    ) -> (State, Vec<Action>) {
        self.endpoints.pin(target.clone());
        let (mut live, mut actions) = match state {
            State::Connected(live) => (live, Vec::new()),
            State::Switching { from, to, dial, .. } => {
                self.endpoints.given_up(&to, now);
                (from, vec![Action::Abandon { dial }])
            }
            other => {
                let abandon = other.dial().map(|dial| Action::Abandon { dial });
                if let Some(given_up) = other.target() {
                    self.endpoints.given_up(given_up, now);
                }
                let (state, dial) = self.attempt(now).unwrap_or((other, Vec::new()));
                return (state, abandon.into_iter().chain(dial).collect());
            }
        };
        live.leaving = match (target, live.leaving) {
            (Some(target), _) if target != live.target => Some(Leaving {
                cause: SwitchCause::Operator,
                at: now,
            }),
            // What must be left is left, wherever the session is to be.
            (_, Some(leaving))
                if matches!(leaving.cause, SwitchCause::Drain | SwitchCause::Credentials) =>
            {
                Some(leaving)
            }
            _ => None,
        };
        let (state, dial) = self.leave(live, now);
        actions.extend(dial);
        (state, actions)
    }
}
