//! What a store counts.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

use super::error::StoreError;

/// Counters of one store; clones are the same.
#[derive(Debug, Clone)]
pub struct StoreMetrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    commits: Histogram,
    failures: Family<Cause, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: String,
}

/// Upper bounds in seconds: an SSD's sync to a disk in trouble.
const COMMIT_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

impl Default for StoreMetrics {
    fn default() -> Self {
        Self(Arc::new(Counters {
            commits: Histogram::new(COMMIT_SECONDS),
            failures: Family::default(),
        }))
    }
}

impl StoreMetrics {
    pub(super) fn record_commit(&self, took: Duration) {
        self.0.commits.observe(took.as_secs_f64());
    }

    pub(super) fn record_failure(&self, fault: &StoreError) {
        let cause = fault.name().to_owned();
        self.0.failures.get_or_create(&Cause { cause }).inc();
    }
}
