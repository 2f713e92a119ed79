//! What a store counts, and what it shows when it is asked.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use super::{condition::StoreCondition, error::StoreError, shared::Shared};

/// Base names of a store's metrics, as an alert rule or a dashboard may use them. Counters get
/// `_total`, histograms `_bucket`, `_sum` and `_count` behind it.
pub const STORE_METRIC_NAMES: &[&str] = &[
    "alys_stream_store_commit_seconds",
    "alys_stream_store_failures",
    "alys_stream_store_open",
    "alys_stream_store_damaged",
    "alys_stream_store_confirmed_commit",
    "alys_stream_store_oldest_batch_seconds",
    "alys_stream_store_oldest_look_up_seconds",
    "alys_stream_store_size_bytes",
    "alys_stream_store_free_bytes",
    "alys_stream_store_available_bytes",
    "alys_stream_store_rows",
    "alys_stream_store_backup_timestamp_seconds",
    "alys_stream_store_scrub_timestamp_seconds",
];

/// Counters of one store; clones are the same.
#[derive(Debug, Clone)]
pub struct StoreMetrics(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    commits: Histogram,
    failures: Family<Failure, Counter>,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Commit,
    Open,
    Read,
    Scrub,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Commit, Self::Open, Self::Read, Self::Scrub];

    const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Open => "open",
            Self::Read => "read",
            Self::Scrub => "scrub",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    operation: &'static str,
    cause: &'static str,
}

/// Upper bounds in seconds: an SSD's sync to a disk in trouble.
const COMMIT_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

impl Default for StoreMetrics {
    fn default() -> Self {
        let failures = Family::default();
        // A counter that appears with its first event has no step that an alert could see.
        for operation in Operation::ALL {
            for cause in StoreError::NAMES {
                let operation = operation.name();
                drop(failures.get_or_create(&Failure { operation, cause }));
            }
        }
        Self(Arc::new(Counters {
            commits: Histogram::new(COMMIT_SECONDS),
            failures,
        }))
    }
}

impl StoreMetrics {
    pub(super) fn record_commit(&self, took: Duration) {
        self.0.commits.observe(took.as_secs_f64());
    }

    pub(super) fn record_failure(&self, operation: Operation, fault: &StoreError) {
        let failure = Failure {
            operation: operation.name(),
            cause: fault.name(),
        };
        self.0.failures.get_or_create(&failure).inc();
    }

    /// Registers what is counted, and what `shared` shows for as long as it is open.
    pub(super) fn register(&self, registry: &mut Registry, shared: Weak<Shared>) {
        let registry = registry.sub_registry_with_prefix("alys_stream_store");
        registry.register(
            "commit_seconds",
            "Making one group of batches durable",
            self.0.commits.clone(),
        );
        registry.register(
            "failures",
            "What the store's engine failed to do, by what it was and what was wrong",
            self.0.failures.clone(),
        );
        registry.register_collector(Box::new(Shown(shared)));
    }
}

/// Shows a store's condition at each scrape.
struct Shown(Weak<Shared>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown")
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(shared) = self.0.upgrade() else {
            return Ok(());
        };
        let condition = StoreCondition::of(&shared.lock());
        show(&mut encoder, &condition)
    }
}

fn show(
    encoder: &mut DescriptorEncoder<'_>,
    condition: &StoreCondition,
) -> Result<(), std::fmt::Error> {
    let StoreCondition { usage, .. } = condition;
    let is = |is: bool| f64::from(u8::from(is));
    let single = [
        (
            "open",
            "Whether the store is open: 0 while it is being opened again",
            Some(is(condition.fault.is_none())),
        ),
        (
            "damaged",
            "Whether something that was read, or scrubbed, was not what was written",
            Some(is(condition.damage.is_some())),
        ),
        (
            "confirmed_commit",
            "The last commit that is known to be durable",
            Some(condition.confirmed as f64),
        ),
        (
            "size_bytes",
            "Bytes that the store takes up where it is kept",
            Some(usage.bytes as f64),
        ),
        (
            "free_bytes",
            "Bytes of the store that hold nothing",
            Some(usage.free_bytes as f64),
        ),
        (
            "available_bytes",
            "Bytes that are left to the store on its disk or under its quota",
            usage.available_bytes.map(|bytes| bytes as f64),
        ),
        (
            "backup_timestamp_seconds",
            "When the last backup was made, in seconds since 1970; 0 when never",
            Some(seconds(condition.backed_up_at)),
        ),
        (
            "scrub_timestamp_seconds",
            "When the store was last read whole and sound, in seconds since 1970; 0 when never",
            Some(seconds(condition.scrubbed_at)),
        ),
    ];
    for (name, help, value) in single {
        if let Some(value) = value {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
    }
    let ages = |ages: &std::collections::BTreeMap<&'static str, Duration>| {
        let seconds = ages
            .iter()
            .map(|(user, age)| ((*user).to_owned(), age.as_secs_f64()));
        seconds.collect::<Vec<_>>()
    };
    let rows = condition.tables.iter();
    let rows = rows.map(|(table, rows)| (table.clone(), *rows as f64));
    let labelled = [
        (
            "oldest_batch_seconds",
            "For how long the oldest batch has been waiting for its commit, by user",
            "user",
            ages(&condition.batches),
        ),
        (
            "oldest_look_up_seconds",
            "For how long the oldest look-up has been waiting for its answer, by user",
            "user",
            ages(&condition.look_ups),
        ),
        ("rows", "Rows by table", "table", rows.collect()),
    ];
    for (name, help, label, values) in labelled {
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let mut encoder = encoder.encode_descriptor(name, help, None, kind)?;
        for (of, value) in values {
            let labels = [(label, of)];
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn seconds(at: Option<SystemTime>) -> f64 {
    let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0.0, |since| since.as_secs_f64())
}
