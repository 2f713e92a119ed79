//! How much of something may happen in a second. Pure: time is an argument.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, FakeRelativeClock},
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::time::Instant;

type Limiter = RateLimiter<
    NotKeyed,
    InMemoryState,
    FakeRelativeClock,
    NoOpMiddleware<<FakeRelativeClock as governor::clock::Clock>::Instant>,
>;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Pace {
    limiter: Limiter,
    clock: FakeRelativeClock,
    /// What the clock shows.
    at: Instant,
}

impl Pace {
    /// `per_second` on the average, and a burst of what comes in `burst` at most, which is full at
    /// the start.
    pub(crate) fn new(per_second: NonZeroU32, burst: Duration, now: Instant) -> Self {
        let burst = f64::from(per_second.get()) * burst.as_secs_f64();
        // Saturates: a burst is at most what there is of numbers.
        let burst = NonZeroU32::new(burst as u32).unwrap_or(NonZeroU32::MIN);
        let clock = FakeRelativeClock::default();
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Self {
            limiter: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
            at: now,
        }
    }

    /// Takes one; otherwise says when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.clock.advance(now.saturating_duration_since(self.at));
        self.at = self.at.max(now);
        match self.limiter.check() {
            Ok(()) => Ok(()),
            Err(not_until) => Err(self.at + not_until.wait_time_from(self.clock.now())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(per_second: u32, burst: Duration, now: Instant) -> Pace {
        Pace::new(NonZeroU32::new(per_second).expect("some"), burst, now)
    }

    #[test]
    fn a_burst_then_one_at_a_time() {
        let now = Instant::now();
        let mut pace = pace(100, Duration::from_millis(100), now);
        assert!((0..10).all(|_| pace.take(now).is_ok()));
        let next = pace.take(now).expect_err("the burst is over");
        assert_eq!(next, now + Duration::from_millis(10));
        assert!(pace.take(next).is_ok());
        assert!(pace.take(next).is_err());
    }

    #[test]
    fn over_any_second_it_is_the_rate_and_a_burst() {
        let start = Instant::now();
        let mut pace = pace(50, Duration::from_millis(100), start);
        let taken = (0..2000)
            .filter(|ms| pace.take(start + Duration::from_millis(*ms)).is_ok())
            .count();
        assert!((100..=106).contains(&taken), "{taken} in two seconds");
    }

    #[test]
    fn a_slow_pace_still_lets_one_go() {
        let now = Instant::now();
        let mut pace = pace(1, Duration::from_millis(100), now);
        assert!(pace.take(now).is_ok());
        assert_eq!(pace.take(now), Err(now + Duration::from_secs(1)));
    }
}
