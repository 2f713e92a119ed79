//! Time that passes for a waiting request, whatever is done to the wall clock and however long the
//! machine sleeps.

use std::time::Duration;

use tokio::time::Instant;

/// How often a sleep of the machine is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The time that is left to a request. It is counted by the monotonic clock, which no one sets,
/// and by the time since boot where there is one, which goes on while the machine sleeps.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
    since: Instant,
    boot: Option<Duration>,
}

impl Patience {
    pub(super) fn new(left: Duration, now: Instant, boot: Option<Duration>) -> Self {
        Self {
            left,
            since: now,
            boot,
        }
    }

    /// What is left now.
    pub(super) fn left(&self, now: Instant, boot: Option<Duration>) -> Duration {
        let awake = now.saturating_duration_since(self.since);
        let passed = match (self.boot, boot) {
            (Some(since), Some(now)) => now.saturating_sub(since).max(awake),
            _ => awake,
        };
        self.left.saturating_sub(passed)
    }

    /// When to look again.
    pub(super) fn next_look(&self, left: Duration) -> Duration {
        left.min(LOOK_EVERY)
    }
}

/// Time since boot, sleep included.
pub(super) fn since_boot() -> Option<Duration> {
    // Linux keeps it in a file of the kernel's; nothing is read from a disk.
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_counts_and_the_wall_clock_does_not() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let patience = Patience::new(60 * second, start, Some(100 * second));
        let left = |awake: u32, boot: Option<u32>| {
            let boot = boot.map(|boot| boot * second);
            patience.left(start + awake * second, boot).as_secs()
        };
        assert_eq!(left(10, Some(110)), 50, "awake all the time");
        assert_eq!(left(10, Some(150)), 10, "asleep for forty seconds");
        assert_eq!(left(10, Some(500)), 0, "asleep for longer than was left");
        assert_eq!(left(10, None), 50, "no such clock");
        assert_eq!(patience.next_look(60 * second), LOOK_EVERY);
        assert_eq!(patience.next_look(second), second);
    }
}
