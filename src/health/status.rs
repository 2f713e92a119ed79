//! How the stream is doing, put together from what its actors last said. Pure.

use std::{collections::VecDeque, fmt, sync::Arc, time::SystemTime};

use serde::Serialize;
use tokio::sync::{broadcast, watch};

use crate::{
    buffer::{Restoration, Retained},
    message::Lane,
};

/// One answer to "is it well?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reasons", rename_all = "snake_case")]
pub enum Health {
    /// A session is live, every lane moves.
    Healthy,
    /// Something needs attention soon; nothing is lost meanwhile.
    Degraded(Vec<String>),
    /// Nothing moves until a person acts, or the tree is down.
    Unhealthy(Vec<String>),
}

/// What the connection is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionPhase {
    /// Not started, or stopped.
    #[default]
    Disconnected,
    /// Dialling, registering or comparing records.
    Connecting,
    /// A session is live.
    Connected,
    /// A session is live, and another one is about to take over from it.
    Switching,
    /// Saying goodbye.
    Draining,
    /// Waiting for the next attempt.
    BackingOff,
    /// Sending nothing until an operator has looked at it.
    Quarantined,
    /// Not trying again until an operator has acted.
    Failed,
}

impl fmt::Display for ConnectionPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "disconnected",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Switching => "switching",
            Self::Draining => "draining",
            Self::BackingOff => "backing off",
            Self::Quarantined => "quarantined",
            Self::Failed => "failed",
        })
    }
}

/// The session with governance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ConnectionStatus {
    /// What it is doing.
    pub phase: ConnectionPhase,
    /// The endpoint of the session, or of the attempt.
    pub endpoint: Option<String>,
    /// When the live session began.
    pub connected_since: Option<SystemTime>,
    /// When governance last answered a heartbeat.
    pub last_heartbeat: Option<SystemTime>,
    /// Sequenced messages handed to the transport.
    pub messages_sent: u64,
    /// Sequenced messages taken from governance.
    pub messages_received: u64,
    /// Sessions that governance accepted; every one after the first is a reconnection.
    pub sessions: u64,
    /// Why the last session or attempt ended.
    pub last_fault: Option<String>,
    /// How long governance took to answer the last heartbeat, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Sessions that took over from one that worked.
    pub switches: u64,
    /// How long the last of them held up what was to be sent, in microseconds.
    pub switch_pause_us: Option<u64>,
    /// Every endpoint, most preferred first.
    pub endpoints: Vec<EndpointStatus>,
    /// When the session's client certificate expires.
    pub certificate_expires: Option<SystemTime>,
    /// When the session's token expires, where it says so.
    pub token_expires: Option<SystemTime>,
    /// Why certificate, key or token cannot be read now; a live session goes on with the ones that
    /// it began with.
    pub credentials_fault: Option<String>,
}

/// Whether an endpoint is worth trying.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachability {
    /// Nobody has tried lately.
    #[default]
    Unknown,
    /// It has the session, or its probes come through.
    Up,
    /// Its breaker is open.
    Down,
    /// One attempt is finding out.
    Probing,
}

/// One endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    /// Which.
    pub endpoint: String,
    /// Whether it has the session, or is being tried for it.
    pub current: bool,
    /// Whether an operator wants this one and no other.
    pub pinned: bool,
    /// Whether it is worth trying.
    pub reachability: Reachability,
    /// Failures in a row.
    pub failures: u32,
    /// The last of them.
    pub last_fault: Option<String>,
}

/// One change of what the connection is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionChange {
    /// When.
    pub at: SystemTime,
    /// What it was doing.
    pub from: ConnectionPhase,
    /// What it does now.
    pub to: ConnectionPhase,
    /// The endpoint that it is about.
    pub endpoint: Option<String>,
    /// Why.
    pub cause: String,
}

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneStatus {
    /// Which.
    pub lane: Lane,
    /// Messages that governance has not acknowledged.
    pub unacknowledged: u64,
    /// Payload bytes kept for governance.
    pub bytes: u64,
    /// Highest sequence of governance that is handled.
    pub handled_through: u64,
    /// Why its subscriber does not take messages, when it does not.
    pub blocked: Option<String>,
}

/// Everything at once. Serialises to JSON as `/status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamStatus {
    /// One answer.
    pub health: Health,
    /// The session.
    pub connection: ConnectionStatus,
    /// The last changes of what the connection is doing, oldest first.
    pub changes: VecDeque<ConnectionChange>,
    /// Highest priority first.
    pub lanes: Vec<LaneStatus>,
    /// Requests without an outcome.
    pub open_requests: usize,
    /// Of them, those that need an operator.
    pub parked_requests: usize,
    /// Messages of governance that could not be used.
    pub dead_letters: usize,
    /// Whether the store may lack what this node did, and what it waits for.
    pub restoration: Restoration,
    /// What is wrong with the store: why it takes nothing, or what is damaged or runs short.
    pub store_fault: Option<String>,
    /// Restarts by the supervisor since the start.
    pub actor_restarts: u64,
    /// Whether the tree runs.
    pub running: bool,
}

impl StreamStatus {
    /// A tree that has not started.
    fn new() -> Self {
        let lane = |lane| LaneStatus {
            lane,
            unacknowledged: 0,
            bytes: 0,
            handled_through: 0,
            blocked: None,
        };
        let mut status = Self {
            health: Health::Healthy,
            connection: ConnectionStatus::default(),
            changes: VecDeque::new(),
            lanes: Lane::ALL.into_iter().map(lane).collect(),
            open_requests: 0,
            parked_requests: 0,
            dead_letters: 0,
            restoration: Restoration::None,
            store_fault: None,
            actor_restarts: 0,
            running: false,
        };
        status.health = status.judge();
        status
    }

    /// Whether a session is live.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(
            self.connection.phase,
            ConnectionPhase::Connected | ConnectionPhase::Switching
        )
    }

    fn judge(&self) -> Health {
        let connection = &self.connection;
        let fault = || connection.last_fault.as_deref().unwrap_or("no attempt yet");
        if !self.running {
            return Health::Unhealthy(vec!["the tree is not running".to_owned()]);
        }
        if let Some(fault) = &self.store_fault {
            return Health::Unhealthy(vec![fault.clone()]);
        }
        if let ConnectionPhase::Quarantined | ConnectionPhase::Failed = connection.phase {
            let reason = format!(
                "the connection is {} and waits for an operator: {}",
                connection.phase,
                fault()
            );
            return Health::Unhealthy(vec![reason]);
        }
        if self.restoration == Restoration::Waiting {
            let reason = "the store was restored from a backup: nothing is sent, and no signature \
                          request is taken, until an operator says `resume --restored --yes`";
            return Health::Unhealthy(vec![reason.to_owned()]);
        }
        if self.restoration == Restoration::WentBack {
            let reason = "the store is an older copy than governance has seen: nothing is sent, and no \
                          signature request is taken, until it is marked by `restore --in-place`";
            return Health::Unhealthy(vec![reason.to_owned()]);
        }
        let mut reasons = Vec::new();
        if self.restoration == Restoration::Reconciling {
            let reason = "governance has yet to recall what this store lacks; no signature request is \
                          taken until then";
            reasons.push(reason.to_owned());
        }
        if let Some(fault) = &connection.credentials_fault {
            reasons.push(format!("the next session cannot begin: {fault}"));
        }
        if !self.is_connected() {
            reasons.push(format!(
                "no session with governance ({}): {}",
                connection.phase,
                fault()
            ));
        }
        for lane in &self.lanes {
            if let Some(blocked) = &lane.blocked {
                reasons.push(format!("lane {} is held up: {blocked}", lane.lane));
            }
        }
        if self.parked_requests > 0 {
            reasons.push(format!(
                "{} requests need an operator",
                self.parked_requests
            ));
        }
        if reasons.is_empty() {
            Health::Healthy
        } else {
            Health::Degraded(reasons)
        }
    }
}

/// Changes that the status shows.
const CHANGES_SHOWN: usize = 32;
/// Changes that may wait for a slow watcher; it is told how many it missed.
const CHANGES_WAITING: usize = 256;

/// Where the actors post how they are doing. It outlives them all.
#[derive(Debug, Clone)]
pub(crate) struct StatusBoard {
    status: Arc<watch::Sender<StreamStatus>>,
    changes: broadcast::Sender<ConnectionChange>,
}

impl StatusBoard {
    pub(crate) fn new() -> Self {
        Self {
            status: Arc::new(watch::Sender::new(StreamStatus::new())),
            changes: broadcast::Sender::new(CHANGES_WAITING),
        }
    }

    /// Every change of the connection from now on, none of them left out.
    pub(crate) fn watch_changes(&self) -> broadcast::Receiver<ConnectionChange> {
        self.changes.subscribe()
    }

    /// Posts what the connection does now, and why.
    pub(crate) fn connection_changed(
        &self,
        change: ConnectionChange,
        update: impl FnOnce(&mut StreamStatus),
    ) {
        self.update(|status| {
            status.connection.phase = change.to;
            update(status);
            status.changes.push_back(change.clone());
            if status.changes.len() > CHANGES_SHOWN {
                status.changes.pop_front();
            }
        });
        // Nobody need be watching.
        let _ = self.changes.send(change);
    }

    /// The latest, and every change from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<StreamStatus> {
        self.status.subscribe()
    }

    /// The latest.
    pub(crate) fn latest(&self) -> StreamStatus {
        self.status.borrow().clone()
    }

    /// Posts a change; watchers wake only when it changes something.
    pub(crate) fn update(&self, change: impl FnOnce(&mut StreamStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            status.health = status.judge();
            *status != before
        });
    }

    /// Counts messages; watchers are not woken for it.
    pub(crate) fn count_messages(&self, sent: u64, received: u64) {
        self.status.send_if_modified(|status| {
            status.connection.messages_sent += sent;
            status.connection.messages_received += received;
            false
        });
    }

    /// What the buffer holds.
    pub(crate) fn set_buffer(&self, retained: &Retained) {
        self.update(|status| {
            (status.open_requests, status.parked_requests) = retained.open_and_parked();
            status.dead_letters = retained.dead_letters.len();
            status.restoration = retained.identity.restoration;
            for lane in &mut status.lanes {
                let retained = retained.lanes.get(lane.lane);
                lane.unacknowledged = retained.unacknowledged();
                lane.bytes = retained.bytes;
                lane.handled_through = retained.counters.handled_through;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> StatusBoard {
        let board = StatusBoard::new();
        board.update(|status| {
            status.running = true;
            status.connection.phase = ConnectionPhase::Connected;
        });
        board
    }

    #[test]
    fn a_tree_that_does_not_run_is_unhealthy() {
        assert!(matches!(
            StatusBoard::new().latest().health,
            Health::Unhealthy(_)
        ));
    }

    #[test]
    fn a_live_session_with_moving_lanes_is_healthy() {
        assert_eq!(connected().latest().health, Health::Healthy);
    }

    #[test]
    fn a_blocked_lane_degrades_and_is_named() {
        let board = connected();
        board.update(|status| {
            for lane in &mut status.lanes {
                if lane.lane == Lane::Pegin {
                    lane.blocked = Some("no actor named `bridge`".to_owned());
                }
            }
        });
        let Health::Degraded(reasons) = board.latest().health else {
            panic!("not degraded")
        };
        assert_eq!(reasons, ["lane pegin is held up: no actor named `bridge`"]);
    }

    #[test]
    fn a_quarantined_connection_is_unhealthy_and_says_why() {
        let board = connected();
        board.update(|status| {
            status.connection.phase = ConnectionPhase::Quarantined;
            status.connection.last_fault = Some("fenced".to_owned());
        });
        let Health::Unhealthy(reasons) = board.latest().health else {
            panic!("not unhealthy")
        };
        assert!(
            reasons.iter().any(|reason| reason.contains("fenced")),
            "{reasons:?}"
        );
    }

    #[test]
    fn watchers_wake_for_changes_only() {
        let board = connected();
        let mut watcher = board.watch();
        watcher.mark_unchanged();
        board.update(|_| {});
        assert!(!watcher.has_changed().expect("board lives"));
        board.update(|status| status.open_requests = 1);
        assert!(watcher.has_changed().expect("board lives"));
    }
}
