//! What an operator does: with a running node over its socket, with one that is down in its
//! directory.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc,
};

use bitcoin::Psbt;
use serde_json::Value;
use support::process::{
    PATIENCE, Process, ask, binary, data, free_port, governance, node, outbox, until_healthy,
    wait_for,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A command of the binary.
fn command(args: &[&str]) -> Output {
    binary().args(args).output().expect("runs")
}

/// Its JSON.
fn json(done: &Output) -> Value {
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_slice(&done.stdout).expect("JSON")
}

fn start(directory: &Path) -> (Process, Process) {
    let (simulator, endpoint) = governance(0, &[]);
    let node = node(directory, &endpoint, &["features.http=false"]);
    until_healthy(directory);
    (simulator, node)
}

#[test]
fn a_pegout_and_a_deposit_by_hand_and_what_is_left_of_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let data = data(directory);
    let dir = data.to_str().expect("UTF-8");
    let (simulator, running) = start(directory);
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&data.join("operator.sock")), 0o600);
    assert_eq!(mode(&data), 0o700);

    // The sample says which command has it signed.
    let psbt = directory.join("sample.psbt");
    let psbt = psbt.to_str().expect("UTF-8");
    let sample = command(&["sample-pegout", psbt]);
    let line = text(&sample.stdout);
    let mut args: Vec<&str> = line.split_whitespace().skip(1).collect();
    args.extend(["--data-dir", dir]);
    let signed = command(&args);
    assert!(signed.status.success(), "{}", text(&signed.stderr));
    let steps = text(&signed.stdout);
    let last = steps.lines().last().expect("steps");
    assert!(last.starts_with("sample-1: broadcast as "), "{steps}");
    wait_for("the transaction", || {
        (std::fs::read_dir(outbox(directory)).ok()?.count() == 1).then_some(())
    });
    // Again it is the same request; under another id its burn is paid, by the same coin.
    args.push("--json");
    assert_eq!(json(&command(&args))["state"], "broadcast");
    // A burn that is paid with another coin is refused.
    let other = directory.join("other.psbt");
    let other = other.to_str().expect("UTF-8");
    command(&["sample-pegout", "--number", "2", other]);
    let mut rival = args.clone();
    for (at, value) in [(2, other), (4, "stranger")] {
        rival[at] = value;
    }
    let refused = command(&rival);
    let refused = text(&refused.stderr);
    assert!(
        refused.contains("burns[0].script_pubkey"),
        "it pays someone else: {refused}"
    );
    let read = |path| -> Psbt {
        let psbt = std::fs::read_to_string(path).expect("a PSBT");
        psbt.parse().expect("a PSBT")
    };
    let mut spending = read(other);
    spending.unsigned_tx.output = read(psbt).unsigned_tx.output;
    std::fs::write(other, spending.to_string()).expect("written");
    for (at, value) in [(2, other), (4, "rival")] {
        rival[at] = value;
    }
    let refused = command(&rival);
    assert!(!refused.status.success());
    let refused = text(&refused.stderr);
    assert!(
        refused.contains("is paid by request sample-1 already"),
        "{refused}"
    );

    let outpoint = format!("{}:0", "ab".repeat(32));
    let pegin = |address: &str| {
        command(&[
            "pegin",
            "--outpoint",
            &outpoint,
            "--amount-sat",
            "5000",
            "--evm-address",
            address,
            "--data-dir",
            dir,
            "--json",
        ])
    };
    let address = format!("0x{}", "07".repeat(20));
    assert_eq!(json(&pegin(&address))["accepted"], true);
    let wrong = pegin("0x07");
    assert!(
        text(&wrong.stderr).contains("evm_address"),
        "{}",
        text(&wrong.stderr)
    );
    wait_for("governance's answer", || {
        let (_, answered) = ask(directory, "GET", "/pegins", &Value::Null)?;
        (answered["answered"][0] == outpoint.as_str()).then_some(())
    });
    let unknown = command(&["cancel", "nobody", "--data-dir", dir]);
    assert!(text(&unknown.stderr).contains("request nobody is unknown"));
    let settled = command(&["cancel", "sample-1", "--data-dir", dir]);
    assert!(settled.status.success(), "what has its outcome keeps it");

    let status = json(&command(&["status", "--data-dir", dir, "--json"]));
    assert_eq!(status["health"]["state"], "healthy");
    let shown = text(&command(&["status", "--data-dir", dir]).stdout);
    assert!(
        shown.contains("health      healthy") && shown.contains("pegin"),
        "{shown}"
    );
    let asked = command(&["resume", "--data-dir", dir]);
    let said = text(&asked.stdout);
    assert!(
        asked.status.success() && said.contains("nothing is held up"),
        "{said}"
    );
    assert!(
        command(&["resume", "--yes", "--data-dir", dir])
            .status
            .success()
    );
    let none = command(&["dead-letters", "discard", "7", "--data-dir", dir]);
    assert!(text(&none.stderr).contains("there is no dead letter 7"));
    assert_eq!(none.status.code(), Some(3));

    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
    let gone = command(&["status", "--data-dir", dir]);
    assert!(
        text(&gone.stderr).contains("no node listens"),
        "{}",
        text(&gone.stderr)
    );
}

/// Lines of a process's standard output, as they come.
fn lines(process: &mut Process) -> mpsc::Receiver<String> {
    let stdout = process.0.stdout.take().expect("piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if sender.send(line.expect("UTF-8")).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn the_session_moves_at_the_operators_word_and_whoever_watches_sees_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let data = data(directory);
    let dir = data.to_str().expect("UTF-8");
    let (first, second) = (free_port(), free_port());
    let also = format!("127.0.0.1:{second}");
    let (simulator, _) = governance(first, &["--listen", &also]);
    let (first, second) = (
        format!("http://127.0.0.1:{first}"),
        format!("http://127.0.0.1:{second}"),
    );
    let running = node(
        directory,
        &format!("{first},{second}"),
        &[
            "features.http=false",
            "connection.heartbeat_interval=100ms",
            "connection.probe_interval=50ms",
            "connection.failback_after=100ms",
        ],
    );
    let current = |endpoint: &str| {
        let (_, status) = ask(directory, "GET", "/status", &Value::Null)?;
        let endpoints = status["connection"]["endpoints"].as_array()?;
        let found = endpoints.iter().find(|known| known["endpoint"] == endpoint);
        let current = found.is_some_and(|known| known["current"] == true);
        (current && status["health"]["state"] == "healthy").then_some(status)
    };
    wait_for("a session", || current(&first));

    let watch = || {
        let watch = ["status", "--watch", "--json", "--data-dir", dir];
        let watch = binary().args(watch).stdout(Stdio::piped()).spawn();
        let mut watch = Process(watch.expect("starts"));
        let seen = lines(&mut watch);
        (watch, seen)
    };
    let next = |seen: &mpsc::Receiver<String>| {
        let line = seen.recv_timeout(PATIENCE).expect("a line");
        serde_json::from_str::<Value>(&line).expect("one object a line")
    };
    let ((brief, moves), (mut watch, seen)) = (watch(), watch());
    assert_eq!(next(&moves)["connection"]["switches"], 0);

    let moved = command(&["connect", &second, "--data-dir", dir]);
    assert!(moved.status.success(), "{}", text(&moved.stderr));
    assert!(text(&moved.stdout).contains(&second));
    let status = wait_for("the second endpoint", || current(&second));
    assert_eq!(status["connection"]["switches"], 1);
    assert_eq!(status["connection"]["endpoints"][1]["pinned"], true);
    while next(&moves)["connection"]["switches"] != 1 {}
    assert!(brief.terminate(), "whoever has seen enough ends it");
    wait_for("a round trip, and a probe", || {
        let connection = &current(&second)?["connection"];
        let probed = connection["endpoints"][0]["reachability"] == "up";
        (connection["round_trip_us"].is_u64() && probed).then_some(())
    });
    let shown = text(&command(&["status", "--data-dir", dir]).stdout);
    for line in [
        format!("connection  connected, {second}, since "),
        "switches    1".to_owned(),
        "certificate -".to_owned(),
        "token       -".to_owned(),
        format!("endpoint    {first} up"),
        format!("endpoint    {second} up, current, pinned"),
        format!("connected -> switching, {first}: switching to {second} (operator)"),
    ] {
        assert!(shown.contains(&line), "{line} is missing from:\n{shown}");
    }

    // What may not be dialled is refused, and the pin stays.
    for wrong in ["http://192.0.2.1:1", "https://governance.example:1"] {
        let refused = command(&["connect", wrong, "--data-dir", dir]);
        assert!(!refused.status.success(), "{wrong}");
    }
    assert!(!command(&["connect", "--data-dir", dir]).status.success());
    assert!(current(&second).is_some());

    let taken_back = ["connect", "--by-preference", "--json", "--data-dir", dir];
    assert_eq!(json(&command(&taken_back))["endpoint"], Value::Null);
    let status = wait_for("the preferred endpoint", || current(&first));
    assert_eq!(status["connection"]["switches"], 2);
    assert_eq!(status["connection"]["endpoints"][1]["pinned"], false);

    // A node that goes away is a change too, and no end of the watch.
    assert!(running.terminate(), "drains and ends well");
    while next(&seen)["error"].is_null() {}
    assert!(watch.is_running());
    assert!(!watch.terminate(), "the last it saw was no healthy node");
    assert!(simulator.terminate(), "no violation");
}

#[test]
fn moving_is_no_way_out_of_quarantine() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let data = data(directory);
    let dir = data.to_str().expect("UTF-8");
    let (simulator, endpoint) = governance(0, &[]);
    let set = ["features.http=false"];
    let first = tempfile::tempdir().expect("a directory");
    let known = node(first.path(), &endpoint, &set);
    let phase = |directory: &Path, wanted: &str| {
        let (_, status) = ask(directory, "GET", "/status", &Value::Null)?;
        (status["connection"]["phase"] == wanted).then_some(status)
    };
    wait_for("a session", || phase(first.path(), "connected"));
    // The same name with another journal: governance's operator has to allow it.
    let running = node(directory, &endpoint, &set);
    wait_for("quarantine", || phase(directory, "quarantined"));
    for how in [endpoint.as_str(), "--by-preference"] {
        let refused = command(&["connect", how, "--data-dir", dir]);
        assert!(!refused.status.success());
        let refused = text(&refused.stderr);
        assert!(
            refused.contains("quarantined") && refused.contains("`resume` comes first"),
            "{refused}"
        );
    }
    assert!(phase(directory, "quarantined").is_some());
    assert!(running.terminate() && known.terminate());
    drop(simulator);
}

#[test]
fn what_is_cancelled_while_it_waits_is_never_asked_for_and_its_burn_is_paid_under_another_id() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let data = data(directory);
    let dir = data.to_str().expect("UTF-8");
    let (simulator, endpoint) = governance(0, &[]);
    let set = ["features.http=false"];
    let mut running = node(directory, &endpoint, &set);
    until_healthy(directory);
    let said = |args: &[&str]| {
        let done = command(&[args, &["--data-dir", dir]].concat());
        assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
        text(&done.stdout).trim().to_owned()
    };
    said(&["pegouts", "pause", "--yes"]);
    let psbt = directory.join("sample.psbt");
    let sample = command(&["sample-pegout", psbt.to_str().expect("UTF-8")]);
    let line = text(&sample.stdout);
    let line = line.trim().trim_end_matches(" --wait");
    let pegout: Vec<&str> = line.split_whitespace().skip(1).collect();
    let waiting = said(&pegout);
    assert!(waiting.contains("paused by the operator"), "{waiting}");

    let cancelled = "sample-1: cancelled before anyone was asked to sign it";
    assert_eq!(said(&["cancel", "sample-1"]), cancelled);
    running.kill();
    running = node(directory, &endpoint, &set);
    until_healthy(directory);
    assert_eq!(
        said(&["cancel", "sample-1"]),
        cancelled,
        "again is the same"
    );
    said(&["pegouts", "resume", "--yes"]);
    assert_eq!(said(&pegout), cancelled, "and so is the peg-out");
    let again = line.replace("sample-1", "again");
    let again: Vec<&str> = again.split_whitespace().skip(1).collect();
    let paid = said(&[&again, &["--wait"][..]].concat());
    assert!(paid.contains("again: broadcast as "), "{paid}");
    assert_eq!(said(&["pegouts", "show", "sample-1"]), cancelled);
    // What the stream has is the stream's to cancel.
    assert!(said(&["cancel", "again"]).contains("its outcome says"));

    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
    let kept = command(&["requests", "list", "--data-dir", dir, "--json"]);
    let kept = json(&kept);
    let ids = kept["requests"].as_array().expect("a list").iter();
    let ids: Vec<&Value> = ids.map(|request| &request["request_id"]).collect();
    assert_eq!(ids, ["again"], "nothing else was ever asked for");
}

#[test]
fn members_who_are_away_for_a_while_sign_once_they_are_back() {
    let too_many = command(&["simulator", "--offline-members", "4"]);
    assert!(!too_many.status.success());
    let complaint = text(&too_many.stderr);
    assert!(complaint.contains("there are 3 members"), "{complaint}");

    let directory = tempfile::tempdir().expect("a directory");
    let data = data(directory.path());
    let dir = data.to_str().expect("UTF-8");
    let away = ["--offline-members", "2", "--offline-for", "500ms"];
    let (simulator, endpoint) = governance(0, &away);
    let running = node(directory.path(), &endpoint, &["features.http=false"]);
    until_healthy(directory.path());
    let psbt = directory.path().join("sample.psbt");
    let sample = command(&["sample-pegout", psbt.to_str().expect("UTF-8")]);
    let line = text(&sample.stdout);
    let mut args: Vec<&str> = line.split_whitespace().skip(1).collect();
    args.extend(["--data-dir", dir]);
    let signed = command(&args);
    assert!(signed.status.success(), "{}", text(&signed.stderr));
    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
}

#[test]
fn a_second_node_does_not_start_on_the_same_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let (simulator, running) = start(directory.path());
    let mut second = node(
        directory.path(),
        "http://127.0.0.1:1",
        &["features.http=false"],
    );
    let ended = second.0.wait().expect("ends");
    assert!(!ended.success());
    let log = std::fs::read_to_string(directory.path().join("node.log")).expect("there");
    assert!(log.contains("in use by process"), "{log}");
    assert!(
        ask(directory.path(), "GET", "/status", &Value::Null).is_some(),
        "the first one's socket is left alone"
    );
    assert!(running.terminate());
    drop(simulator);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    let line = format!(
        "{} check-config --config {example} | head -1",
        env!("CARGO_BIN_EXE_governance-stream")
    );
    let done = Command::new("sh")
        .args(["-c", &line])
        .output()
        .expect("runs");
    assert_eq!(text(&done.stderr), "");
}
