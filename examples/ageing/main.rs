//! What a node costs that has many requests behind it: it makes such a store, starts a node on it as
//! a process of its own, and prints one JSON object:
//! `cargo run --release --example ageing -- --requests 1000000 --json`.
//!
//! Each of the requests was for a peg-out of one burn, is settled, completed, and noted by the chain;
//! one deposit was announced for every ten. A hundred more are open, half of them peg-outs of the
//! bridge. Governance is out of reach. `--directory DIR` keeps the store there, and takes the one
//! that is there.
//!
//! It fails when the start takes longer than `--start-bound-ms` (30 000 unless set: CI's machines
//! stall), or when the started node holds more than 150 MiB.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "it measures real processes in real time, and fails loudly when it cannot go on"
)]
#![cfg(target_os = "linux")]

mod child;
mod node;
mod process;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use governance_stream::stress::Past;
use serde_json::{Value, json};

use self::process::Node;

/// Most that a node may hold in memory after its start.
const RSS_BOUND_MIB: f64 = 150.0;
/// Deposits were one for so many requests.
const REQUESTS_PER_PEGIN: u64 = 10;
/// Requests that are open.
const OPEN: u64 = 100;
/// Callers at once.
const CALLERS: u64 = 100;
/// Requests of each.
const EACH: u64 = 50;
/// Peg-outs that the bridge is asked for, one after the other.
const PEGOUTS: u64 = 50;
/// Requests at most that a node is at work with when it is killed.
const CHURNED: u64 = 10_000;
/// How long it works before it is.
const UNDER_LOAD: Duration = Duration::from_millis(500);

struct Arguments {
    requests: u64,
    json: bool,
    directory: Option<PathBuf>,
    start_bound_ms: f64,
}

const USAGE: &str = "usage: ageing --requests N [--json] [--directory DIR] [--start-bound-ms MS]";

impl Arguments {
    fn read(words: &[String]) -> Option<Self> {
        let mut arguments = Self {
            requests: 100_000,
            json: false,
            directory: None,
            start_bound_ms: 30_000.0,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--json" => arguments.json = true,
                "--requests" => arguments.requests = words.next()?.parse().ok()?,
                "--directory" => arguments.directory = Some(words.next()?.into()),
                "--start-bound-ms" => arguments.start_bound_ms = words.next()?.parse().ok()?,
                _ => return None,
            }
        }
        Some(arguments)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, directory, members] = words.as_slice()
        && word == process::HIDDEN
    {
        child::run(Path::new(directory), members);
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = Arguments::read(&words) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let temporary = tempfile::Builder::new()
        .prefix("ageing-")
        .tempdir()
        .expect("a directory");
    let directory = arguments.directory.as_deref();
    let directory = directory.unwrap_or(temporary.path()).join("store");
    let members = node::members();
    make(&directory, arguments.requests, &members);
    let report = measure(&directory, arguments.requests, &members);
    if arguments.json {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    let faults = faults(&report, arguments.start_bound_ms);
    for fault in &faults {
        eprintln!("not as it should be: {fault}");
    }
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What is beyond its bound.
fn faults(report: &Value, start_bound_ms: f64) -> Vec<String> {
    let bounds = [
        ("start_ms", start_bound_ms),
        ("start_after_kill_ms", start_bound_ms),
        ("rss_mib", RSS_BOUND_MIB),
    ];
    let beyond = bounds.into_iter().filter_map(|(name, bound)| {
        let found = report[name].as_f64().unwrap_or(f64::INFINITY);
        (found > bound).then(|| format!("{name} is {found}, more than {bound}"))
    });
    beyond.collect()
}

/// Makes the store, unless it is there.
fn make(directory: &Path, requests: u64, members: &str) {
    if directory.join("store.redb").exists() {
        let noted = Note::read(directory);
        assert_eq!(
            noted.requests,
            requests,
            "the store at {} is of another number of requests",
            directory.display()
        );
        return;
    }
    let began = Instant::now();
    let (past, mut shown) = (
        Past {
            requests,
            requests_per_pegin: REQUESTS_PER_PEGIN,
        },
        0,
    );
    let progress = &mut |done: u64| {
        if done * 10 / requests.max(1) > shown {
            shown = done * 10 / requests.max(1);
            eprintln!(
                "{}0 % of the store are made after {:.0?}",
                shown,
                began.elapsed()
            );
        }
    };
    past.make(directory, &node::owner(members), progress)
        .expect("the store is made");
    eprintln!("the store is made after {:.0?}", began.elapsed());
    let mut node = Node::start(directory, members);
    node.ask(&format!("open 1 {OPEN}"));
    node.stop();
    Note {
        requests,
        next: OPEN + 1,
    }
    .write(directory);
}

/// What the store holds, beside it.
struct Note {
    requests: u64,
    /// The next new request's number.
    next: u64,
}

impl Note {
    fn read(directory: &Path) -> Self {
        let text = std::fs::read_to_string(directory.join("ageing.json"));
        let text = text.expect("the store was made whole; remove it and make it again");
        let noted: Value = serde_json::from_str(&text).expect("JSON");
        Self {
            requests: noted["requests"].as_u64().expect("a number"),
            next: noted["next"].as_u64().expect("a number"),
        }
    }

    fn write(&self, directory: &Path) {
        let noted = json!({ "requests": self.requests, "next": self.next });
        std::fs::write(directory.join("ageing.json"), noted.to_string()).expect("writable");
    }
}

fn measure(directory: &Path, requests: u64, members: &str) -> Value {
    let mut note = Note::read(directory);
    let mut take = |count: u64| {
        let first = note.next;
        note.next += count;
        // Numbers are used once, whatever becomes of this run.
        note.write(directory);
        first
    };
    let mut node = Node::start(directory, members);
    let (start_ms, rss_mib, open) = (node.start_ms, node.peak_mib(), node.open);
    let bytes = std::fs::metadata(directory.join("store.redb"));
    let file_mib = mib(bytes.expect("it is there").len());
    let accept = node.ask(&format!("accept {} {CALLERS} {EACH}", take(CALLERS * EACH)));
    let pegouts = node.ask(&format!("pegouts {} {PEGOUTS}", take(PEGOUTS)));
    let churned = take(CHURNED);
    node.tell(&format!("churn {churned} {CHURNED} {CALLERS}"));
    std::thread::sleep(UNDER_LOAD);
    let rss_load_mib = node.peak_mib();
    node.kill();
    let mut node = Node::start(directory, members);
    let start_after_kill_ms = node.start_ms;
    let rss_after_kill_mib = node.peak_mib();
    node.ask(&format!("tidy {churned} {CHURNED}"));
    node.stop();
    json!({
        "requests": requests,
        "open": open,
        "file_mib": file_mib,
        "start_ms": start_ms,
        "start_after_kill_ms": start_after_kill_ms,
        "rss_mib": rss_mib,
        "rss_after_kill_mib": rss_after_kill_mib,
        "rss_load_mib": rss_load_mib,
        "accept_p50_ms": accept["p50_ms"],
        "accept_p99_ms": accept["p99_ms"],
        "accepted_per_second": accept["per_second"],
        "pegout_check_ms": pegouts["p50_ms"],
    })
}

fn mib(bytes: u64) -> f64 {
    (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0
}
