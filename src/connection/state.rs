//! The connection's state machine: what it is doing, what may happen, and what follows. Pure.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{
    backoff,
    endpoints::{Endpoints, Hopeless},
    fault::{Remedy, SessionFault},
    live::{Due, Leaving, Live, SwitchCause},
};
use crate::{
    config::{ConnectionConfig, Endpoint},
    health::ConnectionPhase,
    message::Lane,
};

/// How long governance may take to end its side after we ended ours.
pub(super) const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// What the connection is doing. A session is named by its dial, which counts up within this
/// connection's life.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Not started, or stopped.
    Disconnected,
    /// The next attempt comes later.
    BackingOff {
        target: Endpoint,
        until: Instant,
        attempt: u32,
        cause: SessionFault,
    },
    /// The transport is being opened.
    Connecting {
        target: Endpoint,
        dial: u64,
        until: Instant,
    },
    /// The buffer makes an epoch durable for the session.
    Preparing {
        target: Endpoint,
        dial: u64,
        until: Instant,
    },
    /// The registration is sent; governance's answer is awaited.
    Registering {
        target: Endpoint,
        dial: u64,
        until: Instant,
    },
    /// Governance has accepted; the buffer compares the two records.
    Judging {
        target: Endpoint,
        dial: u64,
        interval: Duration,
        until: Instant,
    },
    /// Messages flow.
    Connected(Live),
    /// Messages flow, while the transport of the session that takes over is being opened.
    Switching {
        from: Live,
        to: Endpoint,
        dial: u64,
        cause: SwitchCause,
        until: Instant,
    },
    /// We have said goodbye; governance's end of the stream is awaited.
    Draining {
        target: Endpoint,
        dial: u64,
        until: Instant,
    },
    /// Nothing is sent until an operator has looked at it.
    Quarantined { cause: SessionFault },
    /// No attempt is made until an operator has acted.
    Failed { cause: SessionFault },
}

/// What may happen.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The actor is up.
    Start,
    /// The transport is open, and what was to be checked about it is well.
    Opened { dial: u64 },
    /// The buffer has made an epoch for this dial.
    Prepared { dial: u64 },
    /// Governance accepted the registration, and wants heartbeats this often.
    Registered { dial: u64, interval: Duration },
    /// The two records fit.
    Judged { dial: u64 },
    /// A frame came.
    Heard { dial: u64 },
    /// Messages of the lane are on their way up to here.
    Sent { dial: u64, lane: Lane, through: u64 },
    /// Governance holds the lane up to here.
    Acknowledged { dial: u64, lane: Lane, through: u64 },
    /// Governance will close this session after `grace`.
    Drain { dial: u64, grace: Duration },
    /// The attempt or the session is over.
    Ended { dial: u64, fault: SessionFault },
    /// A probe came back.
    Probed {
        endpoint: Endpoint,
        result: Result<(), SessionFault>,
    },
    /// Certificate or token are other ones than those of the session.
    CredentialsChanged,
    /// A deadline of [`Machine::deadline`] may have passed.
    DeadlineReached,
    /// An operator wants this endpoint; the most preferred that works when `None`.
    Move { target: Option<Endpoint> },
    /// An operator has seen to what held the connection.
    Resume,
    /// The stream is shutting down, and has flushed what it could.
    Shutdown,
}

/// What a dial checks about the open transport, before anything is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing: the registration will show.
    None,
    /// That governance serves there: its breaker was open.
    Serving,
    /// The same, and that it is not behind what was acknowledged: there is a session to lose.
    InStep,
}

/// What follows.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Open the transport.
    Dial {
        target: Endpoint,
        dial: u64,
        check: Check,
    },
    /// Send nothing more on the session `from`: the one of `dial` takes over. `from` ends when
    /// governance has accepted its successor.
    HandOver {
        from: u64,
        dial: u64,
        cause: SwitchCause,
    },
    /// Ask the buffer for an epoch.
    Prepare { dial: u64 },
    /// Register.
    Register { dial: u64 },
    /// Have the buffer compare the two records.
    Judge { dial: u64 },
    /// Messages may flow.
    Begin { target: Endpoint },
    /// Send this heartbeat.
    SendHeartbeat { number: u64 },
    /// See whether an endpoint is well that has no session.
    Probe { endpoint: Endpoint },
    /// Tell governance goodbye and close our half.
    SayGoodbye,
    /// Drop the attempt or the session, whatever it was doing.
    Abandon { dial: u64 },
    /// An attempt, a probe or a session on this endpoint ended in a fault.
    Report {
        target: Endpoint,
        fault: SessionFault,
    },
    /// A planned move to another session did not come about; the present one goes on.
    ReportSwitch {
        to: Endpoint,
        cause: SwitchCause,
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
    /// Counts dials, so that a late answer to an earlier one is known.
    dials: u64,
    endpoints: Endpoints,
}

impl State {
    /// The attempt or session that it is about.
    pub(super) fn dial(&self) -> Option<u64> {
        match self {
            Self::Connecting { dial, .. }
            | Self::Preparing { dial, .. }
            | Self::Registering { dial, .. }
            | Self::Judging { dial, .. }
            | Self::Draining { dial, .. } => Some(*dial),
            Self::Connected(live) | Self::Switching { from: live, .. } => Some(live.dial),
            _ => None,
        }
    }

    /// The endpoint it is about.
    pub(super) fn target(&self) -> Option<&Endpoint> {
        match self {
            Self::BackingOff { target, .. }
            | Self::Connecting { target, .. }
            | Self::Preparing { target, .. }
            | Self::Registering { target, .. }
            | Self::Judging { target, .. }
            | Self::Draining { target, .. } => Some(target),
            Self::Connected(live) | Self::Switching { from: live, .. } => Some(&live.target),
            Self::Disconnected | Self::Quarantined { .. } | Self::Failed { .. } => None,
        }
    }

    /// The session in which messages flow.
    pub(super) fn live(&self) -> Option<&Live> {
        match self {
            Self::Connected(live) | Self::Switching { from: live, .. } => Some(live),
            _ => None,
        }
    }

    /// The same for an operator's eyes.
    pub(super) fn phase(&self) -> ConnectionPhase {
        match self {
            Self::Disconnected => ConnectionPhase::Disconnected,
            Self::Connecting { .. }
            | Self::Preparing { .. }
            | Self::Registering { .. }
            | Self::Judging { .. } => ConnectionPhase::Connecting,
            Self::Connected(_) => ConnectionPhase::Connected,
            Self::Switching { .. } => ConnectionPhase::Switching,
            Self::Draining { .. } => ConnectionPhase::Draining,
            Self::BackingOff { .. } => ConnectionPhase::BackingOff,
            Self::Quarantined { .. } => ConnectionPhase::Quarantined,
            Self::Failed { .. } => ConnectionPhase::Failed,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BackingOff { attempt, cause, .. } => {
                write!(f, "backing off after attempt {attempt}: {cause}")
            }
            Self::Switching { to, cause, .. } => {
                write!(f, "switching to {to} ({})", cause.name())
            }
            Self::Quarantined { cause } => write!(f, "quarantined: {cause}"),
            Self::Failed { cause } => write!(f, "failed: {cause}"),
            other => write!(f, "{}", other.phase()),
        }
    }
}

impl Machine {
    pub(super) fn new(config: ConnectionConfig) -> Self {
        Self {
            endpoints: Endpoints::new(config.clone()),
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

    /// The first attempt is spread like every other one: nodes that start together, after a power
    /// cut say, do not all arrive together.
    fn start(&mut self, now: Instant, random: f64) -> (State, Vec<Action>) {
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
    fn attempt(&mut self, now: Instant) -> Option<(State, Vec<Action>)> {
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

    fn dial(&mut self, now: Instant, check: Check) -> (u64, Instant) {
        self.dials += 1;
        let checking = match check {
            Check::None => Duration::ZERO,
            Check::Serving | Check::InStep => self.config.probe_deadline,
        };
        (self.dials, now + self.config.connect_deadline + checking)
    }

    fn prepare(&self, target: Endpoint, dial: u64, now: Instant) -> (State, Vec<Action>) {
        let until = now + self.config.registration_deadline;
        let state = State::Preparing {
            target,
            dial,
            until,
        };
        (state, vec![Action::Prepare { dial }])
    }

    fn drained(&mut self, mut live: Live, grace: Duration, now: Instant) -> Live {
        // It is no place to come back to before it has had time to close and start again.
        self.endpoints.drained(&live.target, now + grace);
        live.leaving = Some(Leaving {
            cause: SwitchCause::Drain,
            at: now,
        });
        live
    }

    /// Opens the session that takes over from one that is to be left, if it is time.
    fn leave(&mut self, mut live: Live, now: Instant) -> (State, Vec<Action>) {
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
    fn stay(
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

    fn credentials_changed(
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
                    let fault = too_slow("connection", self.config.connect_deadline);
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
                let fault = too_slow("connection", self.config.connect_deadline);
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

    fn move_to(
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
        live.leaving = target
            .filter(|target| *target != live.target)
            .map(|_| Leaving {
                cause: SwitchCause::Operator,
                at: now,
            });
        let (state, dial) = self.leave(live, now);
        actions.extend(dial);
        (state, actions)
    }

    fn say_goodbye(&mut self, state: State, now: Instant) -> (State, Vec<Action>) {
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
    fn lost(&mut self, live: &Live, fault: SessionFault, now: Instant, random: f64) -> Vec<Action> {
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
    fn lose(
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
    fn back_off(
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
#[path = "state_tests.rs"]
mod tests;
