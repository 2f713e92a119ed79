//! The thread that looks after a store beside its users: it scrubs and compacts.

use std::{
    ops::ControlFlow,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{
    backup_error::BackupError,
    compaction::{CompactionPolicy, compact},
    engine::Usage,
    error::StoreError,
    scrubbing::{Pace, scrub},
    shared::Shared,
    store::Store,
    threads::spawn,
};

/// How a store is looked after while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpkeepSettings {
    /// How often it is looked at whether there is something to do.
    pub look_every: Duration,
    /// How long after one scrub the next one begins.
    pub scrub_every: Duration,
    /// Bytes that a scrub reads in a second.
    pub scrub_bytes_per_second: u64,
    /// When free space is given back.
    pub compaction: CompactionPolicy,
}

impl Store {
    /// Has it looked after until it closes. To be called once.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn start_upkeep(&self, settings: UpkeepSettings) -> Result<(), StoreError> {
        spawn(self.shared_handle(), "store-upkeep", move |shared| {
            work(shared, settings);
        })
    }
}

fn work(shared: &Shared, settings: UpkeepSettings) {
    let mut left = None;
    while shared.rest(settings.look_every) {
        let (is_open, usage, scrubbed_at) = {
            let state = shared.lock();
            (state.is_open, state.usage, state.upkeep.scrubbed_at)
        };
        if !is_open {
            continue;
        }
        if settings.compaction.is_due(&usage) && is_worth(&usage, left.as_ref()) {
            left = compact_now(shared).or(left);
        }
        if !is_due(scrubbed_at, settings.scrub_every, SystemTime::now()) {
            continue;
        }
        let pace = Pace::BytesPerSecond(settings.scrub_bytes_per_second);
        match scrub(shared, pace, &mut |_| {}) {
            Ok(report) if report.is_mendable() => {
                // What is damaged is free, or in memory still: a copy is without it.
                left = compact_now(shared).or(left);
                let again = scrub(shared, pace, &mut |_| {});
                info!(
                    ?again,
                    "the store was scrubbed again after damage was left behind"
                );
            }
            Ok(_) => {}
            Err(error) => info!(%error, "a scrub of the store was broken off"),
        }
    }
}

/// Compacts; what that has left, if it came to an end.
fn compact_now(shared: &Shared) -> Option<Usage> {
    let mut go_on = |_| {
        if shared.lock().closing {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    match compact(shared, &mut go_on) {
        Ok(Some(done)) => {
            info!(?done, "the store has given back free space");
            return Some(shared.lock().usage);
        }
        Ok(None) | Err(BackupError::Busy | BackupError::Cancelled) => {}
        Err(error) => warn!(%error, "the store could not give back free space"),
    }
    None
}

/// Whether another compaction may give back what the last one has left. What is free is an estimate:
/// what was called free then, may never be.
fn is_worth(usage: &Usage, left: Option<&Usage>) -> bool {
    left.is_none_or(|left| {
        let clearly = left.bytes / 4;
        usage.bytes >= left.bytes.saturating_add(clearly)
            || usage.free_bytes >= left.free_bytes.saturating_add(clearly)
    })
}

/// Whether something that was done last at `last` is to be done again. A clock that went back is no
/// reason not to.
fn is_due(last: Option<SystemTime>, every: Duration, now: SystemTime) -> bool {
    let since = last.map(|last| now.duration_since(last));
    !matches!(since, Some(Ok(since)) if since < every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_compaction_has_left_is_not_compacted_again_until_there_is_more() {
        let usage = |bytes, free_bytes| Usage {
            bytes,
            free_bytes,
            available_bytes: None,
        };
        let left = usage(400, 250);
        assert!(is_worth(&left, None));
        assert!(!is_worth(&left, Some(&left)));
        assert!(!is_worth(&usage(499, 349), Some(&left)));
        assert!(is_worth(&usage(500, 250), Some(&left)), "it has grown");
        assert!(is_worth(&usage(400, 350), Some(&left)), "rows have gone");
    }

    #[test]
    fn a_scrub_is_due_when_there_was_none_for_long_or_the_clock_went_back() {
        let (day, now) = (Duration::from_secs(86400), SystemTime::now());
        assert!(is_due(None, day, now));
        assert!(is_due(Some(now - day), day, now));
        assert!(!is_due(Some(now - day / 2), day, now));
        assert!(is_due(Some(now + day), day, now));
    }
}
