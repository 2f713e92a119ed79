//! The connection's state machine. Pure.

mod attempts;
mod switching;

use tokio::time::Instant;

use super::{
    endpoints::Endpoints,
    fault::SessionFault,
    live::{Due, Leaving, Live, SwitchCause},
    state::{Action, Event, ImpossibleEvent, State},
};
use crate::config::{ConnectionConfig, Endpoint};

/// The machine: its state, and what it remembers between attempts.
#[derive(Debug)]
pub(super) struct Machine {
    config: ConnectionConfig,
    state: State,
    /// Counts dials, so that a late answer to an earlier one is known.
    dials: u64,
    endpoints: Endpoints,
}

impl Machine {
    /// At rest, with an operator's choice that still holds.
    pub(super) fn new(config: ConnectionConfig, pinned: Option<Endpoint>) -> Self {
        let mut endpoints = Endpoints::new(config.clone());
        endpoints.pin(pinned);
        Self {
            endpoints,
            config,
            state: State::Disconnected,
            dials: 0,
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// When [`Event::DeadlineReached`] is due.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::BackingOff { until, .. }
            | State::Connecting { until, .. }
            | State::Preparing { until, .. }
            | State::Registering { until, .. }
            | State::Judging { until, .. }
            | State::Draining { until, .. } => Some(*until),
            State::Connected(live) => {
                let leaving = match live.leaving {
                    Some(leaving) => Some(leaving.at),
                    None => self.endpoints.better_at(&live.target),
                };
                let others = [leaving, self.endpoints.next_probe_at(now)];
                let session = live.deadline(&self.config);
                Some(others.into_iter().flatten().fold(session, Instant::min))
            }
            State::Switching { from, until, .. } => Some(from.deadline(&self.config).min(*until)),
            State::Disconnected | State::Quarantined { .. } | State::Failed { .. } => None,
        }
    }

    /// Moves on. `random` is uniform in `0.0..1.0`. Events of an attempt or session that is not
    /// the current one are late and change nothing.
    pub(super) fn handle(
        &mut self,
        event: Event,
        now: Instant,
        random: f64,
    ) -> Result<Vec<Action>, ImpossibleEvent> {
        if self.is_late(&event) {
            return Ok(Vec::new());
        }
        let state = std::mem::replace(&mut self.state, State::Disconnected);
        let (state, actions) = match (state, event) {
            (State::Disconnected, Event::Start) => self.start(now, random),

            (State::Connecting { target, dial, .. }, Event::Opened { .. }) => {
                self.prepare(target, dial, now)
            }
            (
                State::Switching {
                    from,
                    to,
                    dial,
                    cause,
                    ..
                },
                Event::Opened { dial: opened },
            ) if opened == dial => {
                let from = from.dial;
                let (state, prepare) = self.prepare(to, dial, now);
                let hand_over = Action::HandOver { from, dial, cause };
                (state, [vec![hand_over], prepare].concat())
            }
            (State::Preparing { target, dial, .. }, Event::Prepared { .. }) => {
                let until = now + self.config.registration_deadline;
                let state = State::Registering {
                    target,
                    dial,
                    until,
                };
                (state, vec![Action::Register { dial }])
            }
            (State::Registering { target, dial, .. }, Event::Registered { interval, .. }) => {
                let interval = interval.min(self.config.heartbeat_interval);
                let until = now + self.config.registration_deadline;
                let state = State::Judging {
                    target,
                    dial,
                    interval,
                    until,
                };
                (state, vec![Action::Judge { dial }])
            }
            (
                State::Judging {
                    target,
                    dial,
                    interval,
                    ..
                },
                Event::Judged { .. },
            ) => {
                self.endpoints.accepted(&target);
                self.endpoints.watch_others(&target, now, random);
                let begin = Action::Begin {
                    target: target.clone(),
                };
                let live = Live::new(target, dial, interval, &self.config, now);
                (State::Connected(live), vec![begin])
            }

            (State::Connected(live), event) if is_traffic(&event) => {
                (State::Connected(traffic(live, &event, now)), Vec::new())
            }
            (
                State::Switching {
                    from,
                    to,
                    dial,
                    cause,
                    until,
                },
                event,
            ) if is_traffic(&event) => {
                let from = traffic(from, &event, now);
                let state = State::Switching {
                    from,
                    to,
                    dial,
                    cause,
                    until,
                };
                (state, Vec::new())
            }
            // What comes before the session is judged, or after our goodbye, says nothing new.
            (
                state
                @ (State::Registering { .. } | State::Judging { .. } | State::Draining { .. }),
                Event::Heard { .. } | Event::Acknowledged { .. } | Event::Drain { .. },
            ) => (state, Vec::new()),
            (State::Connected(live), Event::Drain { grace, .. }) => {
                let live = self.drained(live, grace, now);
                self.leave(live, now)
            }
            (
                State::Switching {
                    from,
                    to,
                    dial,
                    cause,
                    until,
                },
                Event::Drain { grace, .. },
            ) => {
                let from = self.drained(from, grace, now);
                let state = State::Switching {
                    from,
                    to,
                    dial,
                    cause,
                    until,
                };
                (state, Vec::new())
            }

            (State::Draining { dial, .. }, Event::Ended { .. }) => (
                State::Disconnected,
                vec![Action::Abandon { dial }, Action::Stopped],
            ),
            (
                State::Switching {
                    from,
                    to,
                    dial,
                    cause,
                    ..
                },
                Event::Ended { dial: ended, fault },
            ) if ended == dial => self.stay(from, to, dial, cause, fault, now, random),
            // The old session is lost before its successor is there: that one goes on alone.
            (
                State::Switching {
                    from,
                    to,
                    dial,
                    until,
                    ..
                },
                Event::Ended { fault, .. },
            ) => {
                let actions = self.lost(&from, fault, now, random);
                (
                    State::Connecting {
                        target: to,
                        dial,
                        until,
                    },
                    actions,
                )
            }
            (state, Event::Ended { fault, .. }) => self.lose(state, fault, now, random),

            (state, Event::Probed { endpoint, result }) => {
                self.endpoints.probed(&endpoint, &result, now, random);
                let report = result.err().map(|fault| Action::Report {
                    target: endpoint,
                    fault,
                });
                (state, report.into_iter().collect())
            }

            (state, Event::CredentialsChanged) => self.credentials_changed(state, now, random),

            (state, Event::DeadlineReached) => self.overdue(state, now, random),

            (
                state @ State::Draining { .. },
                Event::Move { .. } | Event::Resume | Event::Shutdown,
            ) => (state, Vec::new()),
            // What holds the connection is not seen to by naming an endpoint.
            (
                state @ (State::Disconnected | State::Quarantined { .. } | State::Failed { .. }),
                Event::Move { target },
            ) => {
                self.endpoints.pin(target);
                (state, Vec::new())
            }
            (state, Event::Move { target }) => self.move_to(state, target, now),

            (
                state @ (State::Quarantined { .. }
                | State::Failed { .. }
                | State::BackingOff { .. }),
                Event::Resume,
            ) => {
                self.endpoints.forgive();
                self.attempt(now).unwrap_or((state, Vec::new()))
            }
            (state, Event::Resume) => (state, Vec::new()),

            (state @ (State::Connected(_) | State::Switching { .. }), Event::Shutdown) => {
                self.say_goodbye(state, now)
            }
            (state, Event::Shutdown) => {
                let abandon = state.dial().map(|dial| Action::Abandon { dial });
                let actions = abandon.into_iter().chain([Action::Stopped]).collect();
                (State::Disconnected, actions)
            }

            (state, event) => {
                self.state = state.clone();
                let (state, event) = (Box::new(state), Box::new(event));
                return Err(ImpossibleEvent { state, event });
            }
        };
        self.state = state;
        Ok(actions)
    }

    /// Whether the event is about an attempt or a session that is not a current one.
    fn is_late(&self, event: &Event) -> bool {
        match event {
            Event::Opened { dial } | Event::Ended { dial, .. } => {
                let switching =
                    matches!(&self.state, State::Switching { dial: next, .. } if next == dial);
                self.state.dial() != Some(*dial) && !switching
            }
            Event::Prepared { dial }
            | Event::Registered { dial, .. }
            | Event::Judged { dial }
            | Event::Heard { dial }
            | Event::Sent { dial, .. }
            | Event::Acknowledged { dial, .. }
            | Event::Drain { dial, .. } => self.state.dial() != Some(*dial),
            Event::Start
            | Event::Probed { .. }
            | Event::CredentialsChanged
            | Event::DeadlineReached
            | Event::Move { .. }
            | Event::Resume
            | Event::Shutdown => false,
        }
    }

    fn overdue(&mut self, state: State, now: Instant, random: f64) -> (State, Vec<Action>) {
        let buffer = |awaited, within| SessionFault::Buffer { awaited, within };
        let too_slow = |awaited, within| SessionFault::TooSlow { awaited, within };
        let registration_deadline = self.config.registration_deadline;
        match state {
            State::Connected(live) => self.tick(live, now, random),
            State::Switching {
                mut from,
                to,
                dial,
                cause,
                until,
            } => match from.tick(&self.config, now) {
                Err(fault) => {
                    let actions = self.lost(&from, fault, now, random);
                    (
                        State::Connecting {
                            target: to,
                            dial,
                            until,
                        },
                        actions,
                    )
                }
                Ok(_) if until <= now => {
                    let fault = too_slow("connection", self.config.dial_deadline());
                    self.stay(from, to, dial, cause, fault, now, random)
                }
                Ok(due) => {
                    let actions = self.carried(&from, due);
                    (
                        State::Switching {
                            from,
                            to,
                            dial,
                            cause,
                            until,
                        },
                        actions,
                    )
                }
            },
            state if self.waits_longer(&state, now) => (state, Vec::new()),
            State::BackingOff { attempt, cause, .. } => match self.endpoints.next(now) {
                Some(next) if next.at <= now => self
                    .attempt(now)
                    .unwrap_or((State::Disconnected, Vec::new())),
                _ => self.back_off(attempt, cause, now, random),
            },
            State::Connecting { .. } => {
                let fault = too_slow("connection", self.config.dial_deadline());
                self.lose(state, fault, now, random)
            }
            State::Preparing { .. } => {
                self.lose(state, buffer("epoch", registration_deadline), now, random)
            }
            State::Registering { .. } => {
                let fault = too_slow("registration answer", registration_deadline);
                self.lose(state, fault, now, random)
            }
            State::Judging { .. } => {
                self.lose(state, buffer("verdict", registration_deadline), now, random)
            }
            State::Draining { dial, .. } => (
                State::Disconnected,
                vec![Action::Abandon { dial }, Action::Stopped],
            ),
            state @ (State::Disconnected | State::Quarantined { .. } | State::Failed { .. }) => {
                (state, Vec::new())
            }
        }
    }

    fn waits_longer(&self, state: &State, now: Instant) -> bool {
        match state {
            State::BackingOff { until, .. }
            | State::Connecting { until, .. }
            | State::Preparing { until, .. }
            | State::Registering { until, .. }
            | State::Judging { until, .. }
            | State::Draining { until, .. } => now < *until,
            _ => false,
        }
    }

    fn tick(&mut self, mut live: Live, now: Instant, random: f64) -> (State, Vec<Action>) {
        let due = match live.tick(&self.config, now) {
            Ok(due) => due,
            Err(fault) => return self.lose(State::Connected(live), fault, now, random),
        };
        let mut actions = self.carried(&live, due);
        let probes = self.endpoints.due_probes(now).into_iter();
        actions.extend(probes.map(|endpoint| Action::Probe { endpoint }));
        if self.endpoints.better_than(&live.target, now).is_some() {
            let failback = Leaving {
                cause: SwitchCause::Failback,
                at: now,
            };
            live.leaving.get_or_insert(failback);
        }
        let (state, leave) = self.leave(live, now);
        actions.extend(leave);
        (state, actions)
    }

    fn carried(&mut self, live: &Live, due: Vec<Due>) -> Vec<Action> {
        let mut actions = Vec::new();
        for due in due {
            match due {
                Due::Heartbeat(number) => actions.push(Action::SendHeartbeat { number }),
                Due::Stable => self.endpoints.stable(&live.target),
            }
        }
        actions
    }
}

/// What only moves a live session's own account.
fn is_traffic(event: &Event) -> bool {
    matches!(
        event,
        Event::Heard { .. } | Event::Sent { .. } | Event::Acknowledged { .. }
    )
}

fn traffic(mut live: Live, event: &Event, now: Instant) -> Live {
    match event {
        Event::Sent { lane, through, .. } => live.sent(*lane, *through, now),
        Event::Acknowledged { lane, through, .. } => live.acknowledged(*lane, *through, now),
        _ => live.heard(now),
    }
    live
}

#[cfg(test)]
mod tests;
