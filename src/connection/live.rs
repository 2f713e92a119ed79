//! A session in which messages flow: its pulse, and what governance owes it. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::fault::SessionFault;
use crate::{
    config::{ConnectionConfig, Endpoint},
    message::{Lane, PerLane},
};

/// Silence of so many heartbeat intervals ends a session.
const DEAD_AFTER_INTERVALS: f64 = 2.5;

/// A live session.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Live {
    pub target: Endpoint,
    /// Names it within this connection's life.
    pub dial: u64,
    pub since: Instant,
    heartbeats: Heartbeats,
    owed: PerLane<Owed>,
    /// When it will have lasted long enough to be trusted; `None` once it has.
    stable_at: Option<Instant>,
    /// Why it is to be left for another one, if it is.
    pub leaving: Option<Leaving>,
}

/// A session is to be left while it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaving {
    pub cause: SwitchCause,
    /// When that is tried (again).
    pub at: Instant,
}

/// Why a session that works is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SwitchCause {
    /// An operator wants another endpoint.
    Operator,
    /// Governance is about to close this one.
    Drain,
    /// Our certificate or token has changed.
    Credentials,
    /// A preferred endpoint is well again.
    Failback,
}

impl SwitchCause {
    /// Bounded label for metrics, and a word for people.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Drain => "drain",
            Self::Credentials => "credentials",
            Self::Failback => "failback",
        }
    }
}

/// The pulse.
#[derive(Debug, Clone, PartialEq)]
struct Heartbeats {
    interval: Duration,
    /// Of the last heartbeat.
    number: u64,
    /// When it was sent.
    sent_at: Instant,
    /// When anything was last heard of governance.
    heard_at: Instant,
}

/// What was sent in a lane and is not acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Owed {
    sent_through: u64,
    acknowledged_through: u64,
    /// Since when nothing of it was acknowledged.
    waiting_since: Option<Instant>,
}

/// What a live session asks for at a moment.
#[derive(Debug, PartialEq)]
pub(super) enum Due {
    /// Send this heartbeat.
    Heartbeat(u64),
    /// It has lasted long enough to be trusted.
    Stable,
}

impl Live {
    pub(super) fn new(
        target: Endpoint,
        dial: u64,
        interval: Duration,
        config: &ConnectionConfig,
        now: Instant,
    ) -> Self {
        Self {
            target,
            dial,
            since: now,
            heartbeats: Heartbeats {
                interval,
                number: 0,
                sent_at: now,
                heard_at: now,
            },
            owed: PerLane::default(),
            stable_at: Some(now + config.backoff.stable_after),
            leaving: None,
        }
    }

    /// Governance has said something.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heartbeats.heard_at = now;
    }

    /// Messages up to here are on their way.
    pub(super) fn sent(&mut self, lane: Lane, through: u64, now: Instant) {
        let owed = self.owed.get_mut(lane);
        owed.sent_through = owed.sent_through.max(through);
        if owed.acknowledged_through < owed.sent_through {
            owed.waiting_since.get_or_insert(now);
        }
    }

    /// Governance holds messages up to here.
    pub(super) fn acknowledged(&mut self, lane: Lane, through: u64, now: Instant) {
        let owed = self.owed.get_mut(lane);
        if through > owed.acknowledged_through {
            owed.acknowledged_through = through;
            owed.waiting_since = (through < owed.sent_through).then_some(now);
        }
    }

    /// How long it took governance to answer this heartbeat, if it is the last one.
    pub(super) fn round_trip(&self, number: u64, now: Instant) -> Option<Duration> {
        (number == self.heartbeats.number).then(|| now.duration_since(self.heartbeats.sent_at))
    }

    /// When [`tick`](Self::tick) has something to say.
    pub(super) fn deadline(&self, config: &ConnectionConfig) -> Instant {
        let pulse = self.next_heartbeat().min(self.dead_at());
        let stalled = self
            .longest_owed()
            .map(|(_, since)| since + config.stall_deadline);
        [stalled, self.stable_at]
            .into_iter()
            .flatten()
            .fold(pulse, Instant::min)
    }

    /// What is due now, or why the session is over.
    pub(super) fn tick(
        &mut self,
        config: &ConnectionConfig,
        now: Instant,
    ) -> Result<Vec<Due>, SessionFault> {
        if self.dead_at() <= now {
            let silence = now.duration_since(self.heartbeats.heard_at);
            return Err(SessionFault::Silent(silence));
        }
        if let Some((lane, since)) = self.longest_owed()
            && since + config.stall_deadline <= now
        {
            let stalled = now.duration_since(since);
            return Err(SessionFault::Stalled { lane, stalled });
        }
        let mut due = Vec::new();
        if self.next_heartbeat() <= now {
            self.heartbeats.number += 1;
            self.heartbeats.sent_at = now;
            due.push(Due::Heartbeat(self.heartbeats.number));
        }
        if self.stable_at.take_if(|at| *at <= now).is_some() {
            due.push(Due::Stable);
        }
        Ok(due)
    }

    fn next_heartbeat(&self) -> Instant {
        self.heartbeats.sent_at + self.heartbeats.interval
    }

    fn dead_at(&self) -> Instant {
        self.heartbeats.heard_at + self.heartbeats.interval.mul_f64(DEAD_AFTER_INTERVALS)
    }

    fn longest_owed(&self) -> Option<(Lane, Instant)> {
        let owed = self.owed.iter();
        owed.filter_map(|(lane, owed)| Some((lane, owed.waiting_since?)))
            .min_by_key(|(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    fn live(now: Instant) -> (Live, ConnectionConfig) {
        let endpoint: Endpoint = "http://127.0.0.1:1".parse().expect("loopback");
        let mut config = ConnectionConfig::new(vec![endpoint.clone()]);
        config.stall_deadline = 4 * S;
        config.backoff.stable_after = 30 * S;
        (Live::new(endpoint, 1, S, &config, now), config)
    }

    #[test]
    fn heartbeats_go_out_each_interval_and_silence_ends_it_after_two_and_a_half() {
        let start = Instant::now();
        let (mut live, config) = live(start);
        assert_eq!(live.deadline(&config), start + S);
        assert_eq!(live.tick(&config, start + S), Ok(vec![Due::Heartbeat(1)]));
        live.heard(start + 1100 * MS);
        assert_eq!(live.round_trip(1, start + 1100 * MS), Some(100 * MS));
        assert_eq!(live.round_trip(7, start + 1100 * MS), None);
        let second = live.tick(&config, start + 2 * S);
        assert_eq!(second, Ok(vec![Due::Heartbeat(2)]));
        let third = live.tick(&config, start + 3 * S);
        assert_eq!(third, Ok(vec![Due::Heartbeat(3)]));
        assert_eq!(live.deadline(&config), start + 3600 * MS);
        let over = live.tick(&config, start + 3600 * MS);
        assert_eq!(over, Err(SessionFault::Silent(2500 * MS)));
    }

    #[test]
    fn a_lane_in_which_nothing_is_acknowledged_is_stalled_though_heartbeats_are_answered() {
        let start = Instant::now();
        let (mut live, config) = live(start);
        live.sent(Lane::Pegin, 3, start);
        live.sent(Lane::Signing, 1, start + S);
        // What comes along keeps the wait alive; what was acknowledged already does not begin one.
        live.acknowledged(Lane::Pegin, 2, start + 2 * S);
        live.acknowledged(Lane::Signing, 1, start + 2 * S);
        live.sent(Lane::Pegin, 9, start + 3 * S);
        live.heard(start + 6 * S - MS);
        assert!(live.tick(&config, start + 6 * S - MS).is_ok());
        live.heard(start + 6 * S);
        let stalled = live.tick(&config, start + 6 * S);
        let expected = SessionFault::Stalled {
            lane: Lane::Pegin,
            stalled: 4 * S,
        };
        assert_eq!(stalled, Err(expected));
    }

    #[test]
    fn an_acknowledgement_of_an_earlier_session_is_not_owed_again() {
        let start = Instant::now();
        let (mut live, config) = live(start);
        live.acknowledged(Lane::Signing, 5, start);
        live.sent(Lane::Signing, 5, start);
        live.heard(start + 20 * S);
        assert!(live.tick(&config, start + 20 * S).is_ok());
    }

    #[test]
    fn it_is_trusted_once_it_has_lasted() {
        let start = Instant::now();
        let (mut live, config) = live(start);
        live.heard(start + 30 * S);
        let due = live.tick(&config, start + 30 * S);
        assert_eq!(due, Ok(vec![Due::Heartbeat(1), Due::Stable]));
        let due = live.tick(&config, start + 30 * S);
        assert_eq!(due, Ok(vec![]), "once");
    }
}
