//! How fast a session may send. Pure.

use std::time::{Duration, Instant};

/// A sender may send a tenth of a second's messages at once.
const BURST: Duration = Duration::from_millis(100);
/// Or so many.
const LEAST_BURST: f64 = 16.0;
/// What was sent evenly may come bunched by as much: neither side's machine keeps perfect time.
const JITTER: Duration = Duration::from_millis(250);

/// A token bucket, full at first.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    capacity: f64,
    left: f64,
    since: Option<Instant>,
}

impl Pace {
    /// `None` when there is no limit.
    pub(super) fn new(per_second: u32) -> Option<Self> {
        let rate = f64::from(per_second);
        let burst = (rate * BURST.as_secs_f64()).max(LEAST_BURST);
        let capacity = burst + rate * JITTER.as_secs_f64();
        (per_second > 0).then_some(Self {
            per_second: rate,
            capacity,
            left: capacity,
            since: None,
        })
    }

    /// Takes `messages` that came at `now`.
    pub(super) fn take(&mut self, messages: usize, now: Instant) -> Result<(), String> {
        let passed = self
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let refilled = self.left + passed.as_secs_f64() * self.per_second;
        self.since = Some(now);
        self.left = refilled.min(self.capacity) - messages as f64;
        if self.left < 0.0 {
            return Err(format!(
                "{messages} messages are {} too many for {} a second",
                -self.left.floor(),
                self.per_second
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_to_the_rate_passes_for_ever_and_what_does_not_is_caught() {
        assert!(Pace::new(0).is_none());
        let mut now = Instant::now();
        let mut pace = Pace::new(100).expect("a limit");
        pace.take(16, now).expect("a burst");
        for _ in 0..1000 {
            now += BURST;
            pace.take(10, now).expect("a tenth of a second's");
        }
        let mut fast = Pace::new(100).expect("a limit");
        let caught = (0..1000).find(|_| {
            now += BURST;
            fast.take(12, now).is_err()
        });
        assert!(caught.is_some_and(|steps| steps < 30), "{caught:?}");
    }

    #[test]
    fn what_was_held_up_may_come_at_once() {
        let now = Instant::now();
        let mut pace = Pace::new(1000).expect("a limit");
        pace.take(100, now).expect("a burst");
        pace.take(0, now + BURST).expect("nothing");
        let late = now + BURST + JITTER;
        pace.take(350, late).expect("what two waits let through");
        pace.take(1, late).expect_err("one more");
    }
}
