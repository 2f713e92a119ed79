//! What came of a demo.

use std::time::Duration;

use serde::Serialize;

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub requested: usize,
    pub completed: usize,
    pub consensus_verified: usize,
    pub lost: usize,
    pub duplicates: u64,
    pub reconnects: u64,
    pub actor_restarts: u64,
    pub federation_version: u32,
    pub violations: Vec<String>,
    pub latency_ms: Latency,
    pub elapsed_ms: u128,
}

/// From the request to the Bitcoin network.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    median: u128,
    p99: u128,
    max: u128,
}

impl Latency {
    /// Of times in ascending order.
    pub(super) fn of(sorted: &[Duration]) -> Self {
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(index).copied().unwrap_or_default().as_millis()
        };
        Self {
            median: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

impl Report {
    /// What is not as it should be.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |right: bool, fault: String| {
            if !right {
                faults.push(fault);
            }
        };
        let requested = self.requested;
        expect(
            self.completed == requested,
            format!("{} of {requested} completed", self.completed),
        );
        expect(
            self.consensus_verified == requested,
            format!(
                "{} of {requested} verified by consensus",
                self.consensus_verified
            ),
        );
        expect(self.lost == 0, format!("{} lost", self.lost));
        expect(
            self.duplicates == 0,
            format!("{} duplicated", self.duplicates),
        );
        expect(
            self.reconnects >= 2,
            format!("{} reconnects, not 2", self.reconnects),
        );
        expect(
            self.actor_restarts == 1,
            format!("{} restarts, not 1", self.actor_restarts),
        );
        let version = self.federation_version;
        expect(version == 2, format!("federation version {version}, not 2"));
        expect(
            self.violations.is_empty(),
            format!("violations: {:?}", self.violations),
        );
        faults
    }

    pub(super) fn print_table(&self) {
        let latency_ms = &self.latency_ms;
        println!();
        for (name, value) in [
            ("requested", self.requested.to_string()),
            ("completed", self.completed.to_string()),
            ("verified by consensus", self.consensus_verified.to_string()),
            ("lost", self.lost.to_string()),
            ("duplicated", self.duplicates.to_string()),
            ("restarts", self.actor_restarts.to_string()),
            ("reconnects", self.reconnects.to_string()),
            ("federation version", self.federation_version.to_string()),
            (
                "latency",
                format!(
                    "median {} ms, p99 {} ms, max {} ms",
                    latency_ms.median, latency_ms.p99, latency_ms.max
                ),
            ),
            ("elapsed", format!("{} ms", self.elapsed_ms)),
        ] {
            println!("{name:>22}  {value}");
        }
    }
}
