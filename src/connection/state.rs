//! What the connection is doing, what may happen to it, and what follows.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::{
    fault::SessionFault,
    live::{Live, SwitchCause},
};
use crate::{config::Endpoint, health::ConnectionPhase, message::Lane};

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
