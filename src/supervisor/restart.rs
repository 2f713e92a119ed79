//! Who is restarted when, and when no longer. Pure.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{config::SupervisionConfig, message::RequestId};

/// The supervisor's children that exist once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Child {
    /// The durable truth.
    Buffer,
    /// The session with governance.
    Connection,
}

impl Child {
    /// Every child, in the order in which they start. They stop in the reverse order.
    pub(crate) const START_ORDER: [Self; 2] = [Self::Buffer, Self::Connection];

    /// Its name in logs and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Buffer => "buffer",
            Self::Connection => "connection",
        }
    }

    /// Who is restarted when this one dies, in start order: the connection holds sequences that
    /// the buffer handed out, so that it cannot outlive it.
    pub(crate) const fn restarts(self) -> &'static [Self] {
        match self {
            Self::Buffer => &[Self::Buffer, Self::Connection],
            Self::Connection => &[Self::Connection],
        }
    }
}

/// What is done about a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Start again after a pause.
    Restart {
        /// How long.
        after: Duration,
    },
    /// Too many deaths: someone else must look at it.
    GiveUp,
}

/// The deaths so far.
#[derive(Debug)]
pub(crate) struct Restarts {
    config: SupervisionConfig,
    /// Deaths of buffer and connection within the window, oldest first.
    recent: VecDeque<Instant>,
    /// Deaths of each open request's tracker.
    trackers: HashMap<RequestId, usize>,
}

impl Restarts {
    pub(crate) fn new(config: SupervisionConfig) -> Self {
        Self {
            config,
            recent: VecDeque::new(),
            trackers: HashMap::new(),
        }
    }

    /// Buffer or connection died.
    pub(crate) fn child_died(&mut self, now: Instant) -> Decision {
        let window = self.config.restart_window;
        self.recent
            .retain(|death| now.duration_since(*death) < window);
        if self.recent.len() >= self.config.max_restarts {
            return Decision::GiveUp;
        }
        let doublings = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        self.recent.push_back(now);
        let pause = self
            .config
            .restart_pause
            .saturating_mul(2_u32.saturating_pow(doublings));
        Decision::Restart {
            after: pause.min(self.config.max_restart_pause),
        }
    }

    /// A request's tracker died.
    pub(crate) fn tracker_died(&mut self, request_id: &RequestId) -> Decision {
        let deaths = self.trackers.entry(request_id.clone()).or_default();
        *deaths += 1;
        if *deaths > self.config.max_tracker_restarts {
            Decision::GiveUp
        } else {
            Decision::Restart {
                after: Duration::ZERO,
            }
        }
    }

    /// The request is settled: its budget is of no more use.
    pub(crate) fn tracker_done(&mut self, request_id: &RequestId) {
        self.trackers.remove(request_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts() -> Restarts {
        Restarts::new(SupervisionConfig {
            max_restarts: 5,
            restart_window: Duration::from_secs(60),
            max_tracker_restarts: 3,
            restart_pause: Duration::from_millis(50),
            max_restart_pause: Duration::from_millis(300),
            ..SupervisionConfig::default()
        })
    }

    #[test]
    fn restarts_are_paced_up_to_the_maximum_and_then_given_up() {
        let (mut restarts, now) = (restarts(), Instant::now());
        let pauses: Vec<_> = (0..6).map(|_| restarts.child_died(now)).collect();
        let restart = |ms| Decision::Restart {
            after: Duration::from_millis(ms),
        };
        assert_eq!(
            pauses,
            [
                restart(50),
                restart(100),
                restart(200),
                restart(300),
                restart(300),
                Decision::GiveUp
            ]
        );
    }

    #[test]
    fn deaths_outside_the_window_do_not_count() {
        let (mut restarts, start) = (restarts(), Instant::now());
        for death in 0..20 {
            let now = start + Duration::from_secs(13 * death);
            assert_ne!(restarts.child_died(now), Decision::GiveUp, "death {death}");
        }
    }

    #[test]
    fn each_tracker_has_its_own_budget() {
        let mut restarts = restarts();
        let (poisonous, other) = (
            RequestId::new("a").expect("valid"),
            RequestId::new("b").expect("valid"),
        );
        let restart = Decision::Restart {
            after: Duration::ZERO,
        };
        for _ in 0..3 {
            assert_eq!(restarts.tracker_died(&poisonous), restart);
        }
        assert_eq!(restarts.tracker_died(&poisonous), Decision::GiveUp);
        assert_eq!(restarts.tracker_died(&other), restart);
        restarts.tracker_done(&poisonous);
        assert_eq!(restarts.tracker_died(&poisonous), restart);
    }

    #[test]
    fn the_buffer_takes_the_connection_with_it_and_starts_first() {
        assert_eq!(Child::Buffer.restarts(), Child::START_ORDER);
        assert_eq!(Child::Connection.restarts(), [Child::Connection]);
    }
}
