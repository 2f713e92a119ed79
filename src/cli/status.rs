//! `status`.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    ask::NodeArgs,
    asked_to_stop,
    failure::Exit,
    out::{self, plain},
};

/// How often `--watch` looks.
const LOOKS: Duration = Duration::from_secs(1);
/// Changes of the connection that are shown in words; `--json` has all that the node remembers.
const CHANGES_SHOWN: usize = 5;
/// What changes with every heartbeat or message: no news by itself.
const PULSE: [&str; 4] = [
    "last_heartbeat",
    "round_trip_us",
    "messages_sent",
    "messages_received",
];

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Again at each change, looked for every second, until interrupted; with `--json` one object
    /// a line. Heartbeats and counts of messages are no change.
    #[arg(long)]
    watch: bool,
}

/// Fails while the node is unhealthy, so that a script can ask.
pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let mut status = args.node.get("/status").await?;
    out::show(args.node.json, &status, || words(&status));
    if args.watch {
        tokio::select! {
            () = watch(&args.node, &mut status) => {}
            () = asked_to_stop() => {}
        }
    }
    Ok(match status.pointer("/health/state") {
        Some(state) if state != "unhealthy" => Exit::Done.code(),
        _ => Exit::Failed.code(),
    })
}

/// Shows what is new. A node that goes away is: it may come back.
async fn watch(node: &NodeArgs, status: &mut Value) {
    let mut looks = interval(LOOKS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let seen = match node.get("/status").await {
            Ok(seen) => seen,
            Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
        };
        if without_pulse(&seen) != without_pulse(status) {
            out::show(node.json, &seen, || format!("\n{}", words(&seen)));
        }
        *status = seen;
    }
}

fn without_pulse(status: &Value) -> Value {
    let mut status = status.clone();
    if let Some(connection) = status.get_mut("connection").and_then(Value::as_object_mut) {
        for key in PULSE {
            connection.remove(key);
        }
    }
    status
}

fn words(status: &Value) -> String {
    if let Some(error) = status.get("error") {
        return row("error", &plain(error));
    }
    let at = |path: &str| status.pointer(path).unwrap_or(&Value::Null);
    let list = |path: &str| at(path).as_array().map_or(&[][..], Vec::as_slice);
    let mut lines = vec![row("health", &plain(at("/health/state")))];
    let reasons = list("/health/reasons");
    lines.extend(reasons.iter().map(|reason| row("", &plain(reason))));
    lines.push(row("restoration", &restoration(&plain(at("/restoration")))));
    lines.push(row("connection", &connection(at("/connection"))));
    lines.push(row("sessions", &plain(at("/connection/sessions"))));
    lines.push(row("switches", &plain(at("/connection/switches"))));
    lines.push(row(
        "round trip",
        &round_trip(at("/connection/round_trip_us")),
    ));
    lines.push(row("last fault", &plain(at("/connection/last_fault"))));
    for (name, path) in [
        ("certificate", "/connection/certificate_expires"),
        ("token", "/connection/token_expires"),
    ] {
        lines.push(row(name, &expiry(at(path))));
    }
    if let fault @ Value::String(_) = at("/connection/credentials_fault") {
        lines.push(row("", &plain(fault)));
    }
    lines.extend(list("/connection/endpoints").iter().map(endpoint));
    lines.push(row("open", &plain(at("/open_requests"))));
    lines.push(row("parked", &plain(at("/parked_requests"))));
    lines.push(row("letters", &plain(at("/dead_letters"))));
    lines.push(row("restarts", &plain(at("/actor_restarts"))));
    lines.extend(list("/lanes").iter().map(lane));
    let changes = list("/changes");
    let last = changes
        .iter()
        .skip(changes.len().saturating_sub(CHANGES_SHOWN));
    lines.extend(last.map(change));
    lines.join("\n")
}

/// What a store that may lack what this node did waits for, and the next step.
fn restoration(state: &str) -> String {
    match state {
        "waiting" => {
            "waiting: the store was restored. Have governance's operator permit its outbox, then \
             `governance-stream resume --restored --yes`; docs/operations.md, \"Restore\""
        }
        "went_back" => {
            "went back: the store is an older copy than governance has seen. Stop the node; put the \
             newer one back, or `governance-stream restore --in-place`"
        }
        "reconciling" => {
            "reconciling: governance tells what the store lacks; wait for it to end. If the \
             connection is quarantined, have governance's operator permit the outbox, then \
             `governance-stream resume --yes`"
        }
        other => other,
    }
    .to_owned()
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<12}{value}")
}

fn of(value: &Value, key: &str) -> String {
    plain(value.get(key).unwrap_or(&Value::Null))
}

fn phase(value: &Value, key: &str) -> String {
    of(value, key).replace('_', " ")
}

fn connection(value: &Value) -> String {
    let mut text = phase(value, "phase");
    if let Some(Value::String(endpoint)) = value.get("endpoint") {
        text.push_str(&format!(", {endpoint}"));
    }
    if let Some(since) = time(value.get("connected_since")) {
        text.push_str(&format!(", since {}", shown(since)));
    }
    text
}

fn round_trip(microseconds: &Value) -> String {
    match microseconds.as_u64() {
        Some(microseconds) => format!("{:?}", Duration::from_micros(microseconds)),
        None => plain(microseconds),
    }
}

fn expiry(at: &Value) -> String {
    match time(Some(at)) {
        Some(at) if at <= SystemTime::now() => format!("expired {}", shown(at)),
        Some(at) => format!("expires {}", shown(at)),
        None => "-".to_owned(),
    }
}

fn endpoint(endpoint: &Value) -> String {
    let mut text = format!(
        "{} {}",
        of(endpoint, "endpoint"),
        of(endpoint, "reachability")
    );
    for is in ["current", "pinned"] {
        if endpoint.get(is) == Some(&Value::Bool(true)) {
            text.push_str(&format!(", {is}"));
        }
    }
    let failures = endpoint.get("failures").and_then(Value::as_u64);
    if let Some(failures @ 1..) = failures {
        text.push_str(&format!(", failures in a row: {failures}"));
    }
    if let Some(fault @ Value::String(_)) = endpoint.get("last_fault") {
        text.push_str(&format!(", last fault: {}", plain(fault)));
    }
    row("endpoint", &text)
}

fn lane(lane: &Value) -> String {
    let text = format!(
        "{:<11} {} unacknowledged, handled through {}, held up: {}",
        of(lane, "lane"),
        of(lane, "unacknowledged"),
        of(lane, "handled_through"),
        of(lane, "blocked")
    );
    row("lane", &text)
}

/// A change's cause names what it led to, and why where there is a why.
fn change(change: &Value) -> String {
    let (from, to) = (phase(change, "from"), phase(change, "to"));
    let at = time(change.get("at")).map_or_else(|| "-".to_owned(), shown);
    let mut text = format!("{at} {from} -> {to}");
    if let Some(Value::String(endpoint)) = change.get("endpoint") {
        text.push_str(&format!(", {endpoint}"));
    }
    let cause = of(change, "cause");
    if cause != to {
        text.push_str(&format!(": {cause}"));
    }
    row("change", &text)
}

/// A point in time, as the status has it.
fn time(value: Option<&Value>) -> Option<SystemTime> {
    serde_json::from_value(value?.clone()).ok()
}

fn shown(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
