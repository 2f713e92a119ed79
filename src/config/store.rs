//! How the store is looked after.

use std::time::Duration;

use super::{ConfigFault, reader::Reader};

/// How the store is looked after while the node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreSettings {
    /// Percent of the file that hold nothing, from which on it is compacted.
    pub compact_above_free_percent: u32,
    /// Bytes of a file that is too small to be compacted.
    pub compact_from_bytes: u64,
    /// From the end of one scrub of the whole file to the next one's begin.
    pub scrub_interval: Duration,
    /// Bytes that a scrub reads in a second.
    pub scrub_bytes_per_second: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            compact_above_free_percent: 50,
            compact_from_bytes: 64 << 20,
            scrub_interval: Duration::from_secs(7 * 24 * 3600),
            scrub_bytes_per_second: 4 << 20,
        }
    }
}

impl Reader {
    pub(super) fn store(&mut self) -> StoreSettings {
        const PERCENT: &str = "store.compact_above_free_percent";
        const INTERVAL: &str = "store.scrub_interval";
        const PACE: &str = "store.scrub_bytes_per_second";
        let defaults = StoreSettings::default();
        let percent = "10 to 100, in percent of the file";
        let pace = "at least 65536, in bytes a second";
        let store = StoreSettings {
            compact_above_free_percent: self.parsed(
                PERCENT,
                defaults.compact_above_free_percent,
                percent,
            ),
            compact_from_bytes: self.parsed(
                "store.compact_from_bytes",
                defaults.compact_from_bytes,
                "a number of bytes",
            ),
            scrub_interval: self.duration(INTERVAL, defaults.scrub_interval),
            scrub_bytes_per_second: self.parsed(PACE, defaults.scrub_bytes_per_second, pace),
        };
        let mut require = |fits: bool, key, value: String, expected| {
            if !fits {
                self.refuse(ConfigFault::new(key, value, expected));
            }
        };
        let shown = store.compact_above_free_percent.to_string();
        require(
            (10..=100).contains(&store.compact_above_free_percent),
            PERCENT,
            shown,
            percent,
        );
        let shown = humantime::format_duration(store.scrub_interval).to_string();
        require(
            store.scrub_interval >= Duration::from_secs(60),
            INTERVAL,
            shown,
            "at least 1min",
        );
        let shown = store.scrub_bytes_per_second.to_string();
        require(store.scrub_bytes_per_second >= 1 << 16, PACE, shown, pace);
        store
    }
}
