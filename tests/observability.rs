//! Rules, dashboard, runbooks and configurations name what exists.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use governance_stream::{storage::STORE_METRIC_NAMES, telemetry::METRIC_NAMES};

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("observability")
        .join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every metric that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !word(c));
    words
        .filter(|word| word.starts_with("alys_stream_"))
        .map(str::to_owned)
        .collect()
}

/// Whether a name is that of a metric, with what its type puts behind it.
fn is_of(name: &str, base: &str) -> bool {
    name.strip_prefix(base)
        .is_some_and(|suffix| matches!(suffix, "" | "_total" | "_bucket" | "_sum" | "_count"))
}

fn all_names() -> impl Iterator<Item = &'static str> {
    METRIC_NAMES.iter().chain(STORE_METRIC_NAMES).copied()
}

fn exists(name: &str) -> bool {
    all_names().any(|base| is_of(name, base))
}

#[test]
fn rules_dashboard_and_runbooks_name_only_metrics_that_exist() {
    let runbooks =
        fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("observability/runbooks"))
            .expect("runbooks")
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .map(|name| format!("runbooks/{name}"));
    let files = [
        "prometheus/alerts.yml",
        "prometheus/alerts_test.yml",
        "grafana/governance-stream.json",
    ];
    for file in files.into_iter().map(str::to_owned).chain(runbooks) {
        for name in named(&read(&file)) {
            assert!(exists(&name), "{file} names {name}, which does not exist");
        }
    }
}

#[test]
fn each_alert_has_a_severity_a_test_and_a_runbook() {
    let (rules, tests) = (
        read("prometheus/alerts.yml"),
        read("prometheus/alerts_test.yml"),
    );
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    assert_eq!(rules.matches("severity: ").count(), alerts.len());
    for alert in alerts {
        assert!(
            tests.contains(&format!("name: {alert} fires")),
            "{alert} is never shown to fire"
        );
        assert!(
            tests.contains(&format!("name: {alert} is quiet")),
            "{alert} is never shown quiet"
        );
        let runbook = read(&format!("runbooks/{alert}.md"));
        for part in [
            "What it means",
            "What is at risk",
            "Look at",
            "Do.",
            "Do not",
        ] {
            assert!(runbook.contains(part), "{alert}'s runbook lacks {part:?}");
        }
    }
}

#[test]
fn the_dashboard_is_json_and_each_panel_explains_itself() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("grafana/governance-stream.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() >= 10);
    for panel in panels {
        assert!(
            panel["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{panel}"
        );
        assert!(
            panel["targets"]
                .as_array()
                .is_some_and(|targets| !targets.is_empty()),
            "{panel}"
        );
    }
}

/// Metrics that no panel shows, and why not.
const LEFT_OUT: [(&str, &str); 3] = [
    (
        "alys_stream_stream_errors",
        "the same as connection_failures, which says where",
    ),
    (
        "alys_stream_journal_failures",
        "goes with the journal, whose place the store takes",
    ),
    (
        "alys_stream_journal_commit_seconds",
        "goes with the journal, whose place the store takes",
    ),
];

#[test]
fn every_metric_has_a_panel_or_a_reason_to_have_none() {
    let shown = named(&read("grafana/governance-stream.json"));
    for base in all_names() {
        let has_panel = shown.iter().any(|name| is_of(name, base));
        let left_out = LEFT_OUT.iter().any(|(name, _)| *name == base);
        assert_ne!(has_panel, left_out, "{base}");
    }
}

#[test]
fn no_two_panels_lie_in_one_place_or_share_an_id() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("grafana/governance-stream.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let all = |key: fn(&serde_json::Value) -> String| {
        let values: BTreeSet<String> = panels.iter().map(key).collect();
        assert_eq!(values.len(), panels.len(), "{values:?}");
    };
    all(|panel| panel["id"].to_string());
    all(|panel| panel["title"].to_string());
    all(|panel| format!("{} {}", panel["gridPos"]["x"], panel["gridPos"]["y"]));
}

#[test]
fn scraper_and_collector_listen_where_a_node_looks_by_default() {
    let example = include_str!("../config.example.toml");
    assert!(example.contains("listen = \"127.0.0.1:9464\""));
    assert!(read("prometheus/prometheus.yml").contains("127.0.0.1:9464"));
    assert!(example.contains("http://127.0.0.1:4317"));
    assert!(read("otel-collector/config.yaml").contains("127.0.0.1:4317"));
}
