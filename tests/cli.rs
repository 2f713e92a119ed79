//! The binary, as a user runs it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::process::Output;

use support::process::{binary, free_port, get, governance, node, wait_for};

fn output(args: &[&str]) -> Output {
    binary().args(args).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn the_demo_signs_everything_through_everything() {
    let done = output(&["demo", "--json", "--pegouts", "12"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
    for (key, value) in [
        ("requested", 12),
        ("completed", 12),
        ("consensus_verified", 12),
        ("lost", 0),
        ("duplicates", 0),
        ("actor_restarts", 1),
        ("federation_version", 2),
    ] {
        assert_eq!(report[key], value, "{key} in {report}");
    }
    assert!(report["reconnects"].as_u64() >= Some(2), "{report}");
}

#[test]
fn the_demo_tells_a_person_what_happens() {
    let done = output(&["demo", "--pegouts", "3"]);
    let shown = text(&done.stdout);
    assert!(done.status.success(), "{shown}{}", text(&done.stderr));
    for line in [
        "session 1 is up",
        "cutting the stream",
        "the connection actor panicked",
        "federation 2 is approved",
        "federation 2 signs from here on",
        "verified by consensus  3",
    ] {
        assert!(shown.contains(line), "{line} is missing from:\n{shown}");
    }
}

#[test]
fn the_effective_configuration_is_shown_with_origins_and_without_secrets() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    let shown = binary()
        .args([
            "check-config",
            "--config",
            example,
            "--set",
            "call_deadline=2s",
        ])
        .env("GOVERNANCE_STREAM__CONNECTION__TOKEN", "hunter2")
        .output()
        .expect("runs");
    assert!(shown.status.success());
    let shown = text(&shown.stdout);
    let line = |key: &str| {
        let line = shown
            .lines()
            .find(|line| line.starts_with(key))
            .expect("the key");
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(line("call_deadline"), ["call_deadline", "\"2s\"", "--set"]);
    let token = [
        "connection.token",
        "***",
        "$GOVERNANCE_STREAM__CONNECTION__TOKEN",
    ];
    assert_eq!(line("connection.token "), token);
    assert!(!shown.contains("hunter2"));

    let wrong = output(&[
        "check-config",
        "--config",
        example,
        "--set",
        "call_deadlin=2s",
        "--json",
    ]);
    assert!(!wrong.status.success());
    let wrong: serde_json::Value = serde_json::from_slice(&wrong.stdout).expect("JSON");
    assert_eq!(wrong["valid"], false);
    assert_eq!(wrong["faults"][0]["key"], "call_deadlin");

    let missing = output(&["check-config"]);
    assert!(!missing.status.success());
    let missing = text(&missing.stderr);
    assert!(
        missing.contains("node.node_id") && missing.contains("connection.endpoints"),
        "{missing}"
    );
}

#[test]
fn a_node_runs_against_a_simulator_and_shows_how_it_is() {
    let (simulator, endpoint) = governance(0, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let port = free_port();
    let listen = format!("http.listen=127.0.0.1:{port}");
    let node = node(directory.path(), &endpoint, &[&listen]);
    wait_for("readiness", || {
        get(port, "/readyz").filter(|(status, _)| *status == 200)
    });
    for path in ["/livez", "/startupz"] {
        assert_eq!(
            get(port, path).map(|(status, _)| status),
            Some(200),
            "{path}"
        );
    }
    let (_, metrics) = get(port, "/metrics").expect("answers");
    assert!(metrics.contains("alys_stream_connected 1"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "OpenMetrics");
    let (_, status) = get(port, "/status").expect("answers");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["connection"]["phase"], "connected");
    assert_eq!(get(port, "/nowhere").map(|(status, _)| status), Some(404));

    // Without governance it lives, and is not ready; and stops when it is asked to.
    assert!(simulator.terminate(), "the simulator saw no violation");
    wait_for("unreadiness", || {
        get(port, "/readyz").filter(|(status, _)| *status == 503)
    });
    assert_eq!(get(port, "/livez").map(|(status, _)| status), Some(200));
    assert!(node.terminate(), "a clean end");
}

#[test]
fn a_wrong_first_federation_does_not_run() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    let members = "federation.members=a=0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798,\
                   b=0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let directory = tempfile::tempdir().expect("a directory");
    let done = binary()
        .args([
            "run",
            "--config",
            example,
            "--set",
            members,
            "--set",
            "features.http=false",
        ])
        .current_dir(directory.path())
        .output()
        .expect("runs");
    assert!(!done.status.success());
    assert!(
        text(&done.stderr).contains("the key of member b is another member's as well"),
        "{}",
        text(&done.stderr)
    );
}
