//! Whether one endpoint may be tried now. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What an endpoint's failures so far allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// An attempt may be made, but not before this.
    Closed { not_before: Option<Instant> },
    /// Nobody tries before this; then one attempt finds out.
    Open { until: Instant },
    /// That attempt is being made: nobody else tries meanwhile, nor before this if nothing is
    /// heard of it.
    HalfOpen { until: Instant },
}

/// One endpoint's circuit breaker. It opens after failures in a row, or at once after one that
/// leaves no doubt; how long it stays open is its caller's pause.
#[derive(Debug, Clone, Copy)]
pub(super) struct Breaker {
    gate: Gate,
    /// In a row, since a session was last stable.
    failures: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            gate: Gate::Closed { not_before: None },
            failures: 0,
        }
    }
}

impl Breaker {
    pub(super) fn gate(&self) -> Gate {
        self.gate
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// When an attempt may be made.
    pub(super) fn admits_at(&self, now: Instant) -> Instant {
        match self.gate {
            Gate::Closed { not_before } => not_before.map_or(now, |at| at.max(now)),
            Gate::Open { until } | Gate::HalfOpen { until } => until.max(now),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.gate, Gate::Closed { .. })
    }

    /// An attempt or a probe begins, and will have ended by `until`; whether it is the one that
    /// finds out.
    pub(super) fn begin(&mut self, until: Instant) -> bool {
        let trial = !self.is_closed();
        if trial {
            self.gate = Gate::HalfOpen { until };
        }
        trial
    }

    /// An attempt, a probe or a session failed: the next one comes after `pause`.
    pub(super) fn failed(&mut self, now: Instant, pause: Duration, opens_at: u32) {
        self.failures = self.failures.saturating_add(1);
        let at = now + pause;
        self.gate = if self.failures >= opens_at {
            Gate::Open { until: at }
        } else {
            Gate::Closed {
                not_before: Some(at),
            }
        };
    }

    /// Keeps everyone away until `at`, though nothing has failed.
    pub(super) fn open_until(&mut self, at: Instant) {
        self.gate = Gate::Open { until: at };
    }

    /// Has the next attempt wait until `at`: the last one failed for reasons of our own.
    pub(super) fn wait_until(&mut self, at: Instant) {
        self.gate = match self.gate {
            Gate::Closed { .. } => Gate::Closed {
                not_before: Some(at),
            },
            Gate::Open { .. } | Gate::HalfOpen { .. } => Gate::Open { until: at },
        };
    }

    /// An attempt or a probe came through. The pauses do not start small again before a session
    /// was [stable](Self::stable).
    pub(super) fn succeeded(&mut self) {
        self.gate = Gate::Closed { not_before: None };
    }

    /// A session has lasted long enough to be trusted.
    pub(super) fn stable(&mut self) {
        self.failures = 0;
    }

    /// What made it fail has changed: it may be tried, as if it never had.
    pub(super) fn forgive(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn it_opens_after_failures_in_a_row_and_lets_one_attempt_find_out() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        let ends = now + 60 * S;
        assert!(!breaker.begin(ends), "a closed one needs no finding out");
        breaker.failed(now, S, 2);
        assert!(breaker.is_closed());
        assert_eq!(breaker.admits_at(now), now + S, "but not at once");
        breaker.failed(now, 2 * S, 2);
        assert_eq!(breaker.gate(), Gate::Open { until: now + 2 * S });
        assert_eq!(breaker.admits_at(now + 5 * S), now + 5 * S);
        assert!(breaker.begin(ends));
        assert_eq!(breaker.admits_at(now + 5 * S), ends, "one at a time");
        breaker.failed(now + 5 * S, 4 * S, 2);
        assert_eq!(breaker.gate(), Gate::Open { until: now + 9 * S });
        breaker.begin(ends);
        breaker.succeeded();
        assert!(breaker.is_closed());
    }

    #[test]
    fn failures_count_on_until_a_session_was_stable() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(now, S, 2);
        breaker.succeeded();
        breaker.failed(now, S, 2);
        assert!(
            !breaker.is_closed(),
            "accepted and lost again is no success"
        );
        breaker.succeeded();
        breaker.stable();
        breaker.failed(now, S, 2);
        assert!(breaker.is_closed());
    }
}
