//! The connection's state machine: what it is doing, what may happen, and what follows. Pure.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{
    backoff,
    fault::{Remedy, SessionFault},
};
use crate::{
    config::{ConnectionConfig, Endpoint},
    health::ConnectionPhase,
};

/// Silence of so many heartbeat intervals ends a session.
const DEAD_AFTER_INTERVALS: f64 = 2.5;
/// How long governance may take to end its side after we ended ours.
pub(super) const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// What the connection is doing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Not started, or stopped.
    Disconnected,
    /// The buffer makes an epoch durable for the coming dial.
    Preparing {
        target: Endpoint,
        dial: u64,
        until: Instant,
    },
    /// The transport is being opened.
    Connecting {
        target: Endpoint,
        epoch: u64,
        until: Instant,
    },
    /// The registration is sent; governance's answer is awaited.
    Registering {
        target: Endpoint,
        epoch: u64,
        until: Instant,
    },
    /// Governance has accepted; the buffer compares the two records.
    Judging {
        target: Endpoint,
        epoch: u64,
        interval: Duration,
        until: Instant,
    },
    /// Messages flow.
    Connected {
        target: Endpoint,
        epoch: u64,
        since: Instant,
        heartbeats: Heartbeats,
    },
    /// We have said goodbye; governance's end of the stream is awaited.
    Draining {
        target: Endpoint,
        epoch: u64,
        until: Instant,
    },
    /// The next attempt comes later.
    BackingOff {
        until: Instant,
        attempt: u32,
        cause: SessionFault,
    },
    /// Nothing is sent until an operator has looked at it.
    Quarantined { cause: SessionFault },
    /// No attempt is made until an operator has acted.
    Failed { cause: SessionFault },
}

/// The pulse of a live session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Heartbeats {
    interval: Duration,
    /// Of the last heartbeat.
    number: u64,
    /// When it was sent.
    sent_at: Instant,
    /// When anything was last heard of governance.
    heard_at: Instant,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The actor is up.
    Start,
    /// The buffer has made an epoch for this dial.
    Prepared { dial: u64, epoch: u64 },
    /// The transport is open and the registration on its way.
    Opened { epoch: u64 },
    /// Governance accepted the registration, and wants heartbeats this often.
    Registered { epoch: u64, interval: Duration },
    /// The two records fit.
    Judged { epoch: u64 },
    /// A frame came.
    Heard { epoch: u64 },
    /// The session is over.
    Ended { epoch: u64, fault: SessionFault },
    /// A deadline of [`State::deadline`] may have passed.
    DeadlineReached,
    /// An operator wants this endpoint.
    Move { target: Endpoint },
    /// An operator has seen to what held the connection.
    Resume,
    /// The stream is shutting down, and has flushed what it could.
    Shutdown,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Ask the buffer for an epoch.
    Prepare { dial: u64 },
    /// Open the transport and register.
    Dial { target: Endpoint, epoch: u64 },
    /// Have the buffer compare the two records.
    Judge { epoch: u64 },
    /// Messages may flow.
    Begin { target: Endpoint },
    /// Send this heartbeat.
    SendHeartbeat { number: u64 },
    /// Tell governance goodbye and close our half.
    SayGoodbye,
    /// Drop the session, whatever it was doing.
    Abandon { epoch: u64 },
    /// An attempt or a session on this endpoint ended in a fault.
    Report {
        target: Endpoint,
        fault: SessionFault,
    },
    /// Nothing of the connection is left.
    Stopped,
}

/// An event that cannot happen in a state: a bug on one side or the other.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{event:?} cannot happen while {state}")]
pub(super) struct ImpossibleEvent {
    pub(super) state: Box<State>,
    pub(super) event: Box<Event>,
}

/// The machine: its state, and what it remembers between attempts.
#[derive(Debug)]
pub(super) struct Machine {
    config: ConnectionConfig,
    state: State,
    /// Consecutive attempts that did not lead to a stable session.
    attempt: u32,
    /// Counts dials, so that a late answer to an earlier one is known.
    dials: u64,
    /// Which configured endpoint is tried.
    endpoint: usize,
    /// The operator's choice, instead of the configured ones.
    pinned: Option<Endpoint>,
    /// Endpoints in a row that were behind what governance had acknowledged.
    behind: usize,
}

impl State {
    /// When [`Event::DeadlineReached`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Preparing { until, .. }
            | Self::Connecting { until, .. }
            | Self::Registering { until, .. }
            | Self::Judging { until, .. }
            | Self::Draining { until, .. }
            | Self::BackingOff { until, .. } => Some(*until),
            Self::Connected { heartbeats, .. } => {
                Some(heartbeats.next_at().min(heartbeats.dead_at()))
            }
            Self::Disconnected | Self::Quarantined { .. } | Self::Failed { .. } => None,
        }
    }

    /// The session it is about.
    pub(super) fn epoch(&self) -> Option<u64> {
        match self {
            Self::Connecting { epoch, .. }
            | Self::Registering { epoch, .. }
            | Self::Judging { epoch, .. }
            | Self::Connected { epoch, .. }
            | Self::Draining { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    /// The endpoint it is about.
    pub(super) fn target(&self) -> Option<&Endpoint> {
        match self {
            Self::Preparing { target, .. }
            | Self::Connecting { target, .. }
            | Self::Registering { target, .. }
            | Self::Judging { target, .. }
            | Self::Connected { target, .. }
            | Self::Draining { target, .. } => Some(target),
            _ => None,
        }
    }

    /// The same for an operator's eyes.
    pub(super) fn phase(&self) -> ConnectionPhase {
        match self {
            Self::Disconnected => ConnectionPhase::Disconnected,
            Self::Preparing { .. }
            | Self::Connecting { .. }
            | Self::Registering { .. }
            | Self::Judging { .. } => ConnectionPhase::Connecting,
            Self::Connected { .. } => ConnectionPhase::Connected,
            Self::Draining { .. } => ConnectionPhase::Draining,
            Self::BackingOff { .. } => ConnectionPhase::BackingOff,
            Self::Quarantined { .. } => ConnectionPhase::Quarantined,
            Self::Failed { .. } => ConnectionPhase::Failed,
        }
    }

    /// Whether messages may flow on this session.
    pub(super) fn is_connected(&self, of: u64) -> bool {
        matches!(self, Self::Connected { epoch, .. } if *epoch == of)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackingOff { attempt, cause, .. } => {
                write!(f, "backing off after attempt {attempt}: {cause}")
            }
            Self::Quarantined { cause } => write!(f, "quarantined: {cause}"),
            Self::Failed { cause } => write!(f, "failed: {cause}"),
            other => write!(f, "{}", other.phase()),
        }
    }
}

impl Heartbeats {
    fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            number: 0,
            sent_at: now,
            heard_at: now,
        }
    }

    fn next_at(&self) -> Instant {
        self.sent_at + self.interval
    }

    fn dead_at(&self) -> Instant {
        self.heard_at + self.interval.mul_f64(DEAD_AFTER_INTERVALS)
    }

    /// How long it took governance to answer this heartbeat, if it is the last one.
    pub(super) fn round_trip(&self, number: u64, now: Instant) -> Option<Duration> {
        (number == self.number).then(|| now.duration_since(self.sent_at))
    }
}

impl Machine {
    pub(super) fn new(config: ConnectionConfig) -> Self {
        Self {
            config,
            state: State::Disconnected,
            attempt: 0,
            dials: 0,
            endpoint: 0,
            pinned: None,
            behind: 0,
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Moves on. `random` is uniform in `0.0..1.0`. Events of a session that is not the current
    /// one are late and change nothing.
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
            (State::Disconnected, Event::Start) => self.prepare(now),

            (State::Preparing { target, .. }, Event::Prepared { epoch, .. }) => {
                let until = now + self.config.connect_deadline;
                let dial = Action::Dial {
                    target: target.clone(),
                    epoch,
                };
                (
                    State::Connecting {
                        target,
                        epoch,
                        until,
                    },
                    vec![dial],
                )
            }
            (State::Connecting { target, epoch, .. }, Event::Opened { .. }) => {
                let until = now + self.config.registration_deadline;
                (
                    State::Registering {
                        target,
                        epoch,
                        until,
                    },
                    Vec::new(),
                )
            }
            (State::Registering { target, epoch, .. }, Event::Registered { interval, .. }) => {
                let interval = interval.min(self.config.heartbeat_interval);
                let until = now + self.config.registration_deadline;
                (
                    State::Judging {
                        target,
                        epoch,
                        interval,
                        until,
                    },
                    vec![Action::Judge { epoch }],
                )
            }
            (
                State::Judging {
                    target,
                    epoch,
                    interval,
                    ..
                },
                Event::Judged { .. },
            ) => {
                let begin = Action::Begin {
                    target: target.clone(),
                };
                let heartbeats = Heartbeats::new(interval, now);
                (
                    State::Connected {
                        target,
                        epoch,
                        since: now,
                        heartbeats,
                    },
                    vec![begin],
                )
            }

            (
                State::Connected {
                    target,
                    epoch,
                    since,
                    mut heartbeats,
                },
                Event::Heard { .. },
            ) => {
                heartbeats.heard_at = now;
                (
                    State::Connected {
                        target,
                        epoch,
                        since,
                        heartbeats,
                    },
                    Vec::new(),
                )
            }
            // What comes before the session is judged, or after our goodbye, says nothing new.
            (
                state
                @ (State::Registering { .. } | State::Judging { .. } | State::Draining { .. }),
                Event::Heard { .. },
            ) => (state, Vec::new()),

            (State::Draining { .. }, Event::Ended { epoch, .. }) => (
                State::Disconnected,
                vec![Action::Abandon { epoch }, Action::Stopped],
            ),
            (state, Event::Ended { fault, .. }) => self.lose(state, fault, now, random),

            (state, Event::DeadlineReached) => {
                if state.deadline().is_some_and(|deadline| deadline <= now) {
                    self.overdue(state, now, random)
                } else {
                    (state, Vec::new())
                }
            }

            (
                State::Draining {
                    target,
                    epoch,
                    until,
                },
                Event::Move { .. },
            ) => (
                State::Draining {
                    target,
                    epoch,
                    until,
                },
                Vec::new(),
            ),
            (state, Event::Move { target }) => {
                self.pinned = Some(target);
                self.attempt = 0;
                let mut actions: Vec<Action> = state
                    .epoch()
                    .map(|epoch| Action::Abandon { epoch })
                    .into_iter()
                    .collect();
                if let State::Connected { target, .. } = state {
                    actions.push(Action::Report {
                        target,
                        fault: SessionFault::Moved,
                    });
                }
                let (state, prepare) = self.prepare(now);
                actions.extend(prepare);
                (state, actions)
            }

            (
                State::Quarantined { .. } | State::Failed { .. } | State::BackingOff { .. },
                Event::Resume,
            ) => {
                self.attempt = 0;
                self.prepare(now)
            }
            (state, Event::Resume) => (state, Vec::new()),

            (State::Connected { target, epoch, .. }, Event::Shutdown) => {
                let until = now + GOODBYE_DEADLINE;
                (
                    State::Draining {
                        target,
                        epoch,
                        until,
                    },
                    vec![Action::SayGoodbye],
                )
            }
            (state @ State::Draining { .. }, Event::Shutdown) => (state, Vec::new()),
            (state, Event::Shutdown) => {
                let abandon = state.epoch().map(|epoch| Action::Abandon { epoch });
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

    /// Whether the event is about a dial or a session that is not the current one.
    fn is_late(&self, event: &Event) -> bool {
        match event {
            Event::Prepared { dial, .. } => {
                !matches!(&self.state, State::Preparing { dial: current, .. } if current == dial)
                    && *dial <= self.dials
            }
            Event::Opened { epoch }
            | Event::Registered { epoch, .. }
            | Event::Judged { epoch }
            | Event::Heard { epoch }
            | Event::Ended { epoch, .. } => self.state.epoch() != Some(*epoch),
            Event::Start
            | Event::DeadlineReached
            | Event::Move { .. }
            | Event::Resume
            | Event::Shutdown => false,
        }
    }

    fn prepare(&mut self, now: Instant) -> (State, Vec<Action>) {
        let configured = self
            .config
            .endpoints
            .get(self.endpoint)
            .or(self.config.endpoints.first());
        let Some(target) = self.pinned.as_ref().or(configured).cloned() else {
            return (State::Disconnected, Vec::new());
        };
        self.dials += 1;
        let dial = self.dials;
        let until = now + self.config.connect_deadline;
        (
            State::Preparing {
                target,
                dial,
                until,
            },
            vec![Action::Prepare { dial }],
        )
    }

    fn overdue(&mut self, state: State, now: Instant, random: f64) -> (State, Vec<Action>) {
        let too_slow = |awaited, within| SessionFault::TooSlow { awaited, within };
        match state {
            State::Preparing { .. } => {
                let fault = too_slow("epoch from the buffer", self.config.connect_deadline);
                self.lose(state, fault, now, random)
            }
            State::Connecting { .. } => {
                let fault = too_slow("connection", self.config.connect_deadline);
                self.lose(state, fault, now, random)
            }
            State::Registering { .. } => {
                let fault = too_slow("registration answer", self.config.registration_deadline);
                self.lose(state, fault, now, random)
            }
            State::Judging { .. } => {
                let fault = too_slow("verdict of the buffer", self.config.registration_deadline);
                self.lose(state, fault, now, random)
            }
            State::Connected {
                target,
                epoch,
                since,
                mut heartbeats,
            } => {
                if heartbeats.dead_at() <= now {
                    let fault = SessionFault::Silent(now.duration_since(heartbeats.heard_at));
                    let state = State::Connected {
                        target,
                        epoch,
                        since,
                        heartbeats,
                    };
                    return self.lose(state, fault, now, random);
                }
                heartbeats.number += 1;
                heartbeats.sent_at = now;
                let send = Action::SendHeartbeat {
                    number: heartbeats.number,
                };
                (
                    State::Connected {
                        target,
                        epoch,
                        since,
                        heartbeats,
                    },
                    vec![send],
                )
            }
            State::Draining { epoch, .. } => (
                State::Disconnected,
                vec![Action::Abandon { epoch }, Action::Stopped],
            ),
            State::BackingOff { .. } => self.prepare(now),
            state @ (State::Disconnected | State::Quarantined { .. } | State::Failed { .. }) => {
                (state, Vec::new())
            }
        }
    }

    /// The attempt or session is over: decides what comes next.
    fn lose(
        &mut self,
        state: State,
        fault: SessionFault,
        now: Instant,
        random: f64,
    ) -> (State, Vec<Action>) {
        let mut actions = Vec::new();
        if let Some(epoch) = state.epoch() {
            actions.push(Action::Abandon { epoch });
        }
        if let Some(target) = state.target() {
            actions.push(Action::Report {
                target: target.clone(),
                fault: fault.clone(),
            });
        }
        let stable = matches!(&state, State::Connected { since, .. }
            if now.duration_since(*since) >= self.config.backoff.stable_after);
        self.attempt = if stable {
            1
        } else {
            self.attempt.saturating_add(1)
        };
        self.behind = if fault.is_behind() {
            self.behind + 1
        } else {
            0
        };
        let others = self.pinned.is_none() && self.behind < self.config.endpoints.len();
        let pause = backoff::delay(&self.config.backoff, self.attempt, random);
        let until = match fault.remedy() {
            // Another endpoint may have what this one lacks.
            Remedy::Quarantine if fault.is_behind() && others => now + pause,
            Remedy::Quarantine => {
                self.behind = 0;
                return (State::Quarantined { cause: fault }, actions);
            }
            Remedy::GiveUp => return (State::Failed { cause: fault }, actions),
            Remedy::BackOff => now + pause,
            Remedy::After(at_least) => now + pause.max(at_least),
            Remedy::Slowly => now + self.config.backoff.max,
        };
        self.endpoint = (self.endpoint + 1) % self.config.endpoints.len().max(1);
        (
            State::BackingOff {
                until,
                attempt: self.attempt,
                cause: fault,
            },
            actions,
        )
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
