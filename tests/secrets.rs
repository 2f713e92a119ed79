//! No secret in a log, in a trace, in the metrics, in the status, in an error or on a terminal.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::{fs, path::Path};

use serde_json::{Value, json};
use support::{
    certificates::{Authority, Files, Pair},
    collector::Collector,
    process::{Process, ask, binary, free_port, get, governance, node_with, wait_for},
};

const GOOD_TOKEN: &str = "good-token-4f1d7b7c5b0e";
const WRONG_TOKEN: &str = "wrong-token-93a2c4d6e8f0";
const TOKEN_KEY: &str = "GOVERNANCE_STREAM__CONNECTION__TOKEN";

/// The lines of a key's PEM that hold the key.
fn lines_of(key: &str) -> Vec<String> {
    let lines = key.lines().filter(|line| !line.starts_with("-----"));
    lines.map(str::to_owned).collect()
}

/// Governance behind mutual TLS and a token, a node's files, and where its traces go.
struct Scene {
    files: Files,
    nodes: Authority,
    port: u16,
    served: Files,
    collector: Collector,
}

impl Scene {
    fn new() -> (Self, Pair) {
        let (ca, nodes) = (Authority::new("governance"), Authority::new("nodes"));
        let (client, server) = (nodes.client(), ca.server(&["127.0.0.1"]));
        let files = Files::new(&ca, Some(&client));
        // The service's own files: it shows what they call node.pem.
        let served = Files::new(&nodes, Some(&server));
        let scene = Self {
            files,
            nodes,
            port: free_port(),
            served,
            collector: Collector::start(),
        };
        (scene, client)
    }

    fn governance(&self) -> (Process, String) {
        let at = |name| self.served.path(name).display().to_string();
        let (certificate, key, ca) = (at("node.pem"), at("node.key"), at("ca.pem"));
        // It is killed and comes back with what it knew.
        let ledger = at("ledger");
        let args = [
            "--directory",
            &ledger,
            "--token",
            GOOD_TOKEN,
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
            "--client-ca",
            &ca,
        ];
        governance(self.port, &args)
    }

    /// What a node is told, but for its token.
    fn set(&self, http: u16) -> Vec<String> {
        let at = |name| self.files.path(name).display().to_string();
        vec![
            format!("connection.tls.ca_file={}", at("ca.pem")),
            format!("connection.tls.cert_file={}", at("node.pem")),
            format!("connection.tls.key_file={}", at("node.key")),
            format!("http.listen=127.0.0.1:{http}"),
            "connection.backoff.initial=10ms".to_owned(),
            "connection.backoff.max=50ms".to_owned(),
            "telemetry.log=debug".to_owned(),
            "telemetry.log_format=json".to_owned(),
            format!("telemetry.otlp_endpoint={}", self.collector.endpoint()),
            // A node that governance refuses has a deposit that nobody takes.
            "drain_deadline=100ms".to_owned(),
        ]
    }
}

fn log(directory: &Path) -> String {
    fs::read_to_string(directory.join("node.log")).unwrap_or_default()
}

fn status(directory: &Path) -> Option<Value> {
    Some(ask(directory, "GET", "/status", &Value::Null)?.1)
}

fn healthy(directory: &Path) {
    wait_for("a session", || {
        let _ = ask(directory, "POST", "/resume", &Value::Null);
        (status(directory)?["health"]["state"] == "healthy").then_some(())
    });
}

/// Has the node try again until the fault says `words`.
fn faulty(directory: &Path, words: &str) {
    wait_for(words, || {
        let _ = ask(directory, "POST", "/resume", &Value::Null);
        let fault = status(directory)?["connection"]["last_fault"].clone();
        fault.as_str()?.contains(words).then_some(())
    });
}

/// Tells the node of a deposit; what it answers.
fn deposit(directory: &Path, number: u32) -> String {
    let deposit = json!({
        "outpoint": outpoint(number),
        "amount_sat": 5000,
        "evm_address": format!("0x{}", "07".repeat(20)),
    });
    let (code, answer) = ask(directory, "POST", "/pegins", &deposit).expect("answers");
    assert_eq!(code, 200, "{answer}");
    answer.to_string()
}

fn outpoint(number: u32) -> String {
    format!("{}:{number}", "ab".repeat(32))
}

/// Waits until governance has answered so many deposits.
fn answered(directory: &Path, deposits: u64) {
    wait_for("an answer", || {
        let lanes = status(directory)?["lanes"].clone();
        let mut lanes = lanes.as_array()?.iter();
        let pegins = lanes.find(|lane| lane["lane"] == "pegin")?;
        (pegins["handled_through"] == deposits).then_some(())
    });
}

/// Everything that anyone may see of a running node.
fn seen(directory: &Path, http: u16) -> String {
    let paths = ["/metrics", "/status", "/readyz"];
    let pages = paths.map(|path| get(http, path).expect("answers").1);
    assert!(pages[0].contains("alys_stream"), "{}", pages[0]);
    assert!(pages[1].contains("last_fault"), "{}", pages[1]);
    let operators = status(directory).expect("answers").to_string();
    format!("{}\n{operators}", pages.concat())
}

fn assert_hides(what: &str, shown: &str, secrets: &[String]) {
    assert!(!shown.is_empty(), "{what} shows nothing at all");
    for secret in secrets {
        let line = shown.lines().position(|line| line.contains(secret));
        assert_eq!(line, None, "{what} shows {secret} in that line");
    }
}

/// The traces are those of so many deposits and of their answers, without a secret.
fn assert_traces_hide(collector: &Collector, deposits: u32, secrets: &[String]) {
    let traces = collector.exported();
    for number in 0..deposits {
        let deposit = outpoint(number);
        assert!(traces.contains(&deposit), "no trace of {deposit}");
    }
    assert!(traces.contains("deliver"), "no trace of an answer");
    assert_hides("a trace", &traces, secrets);
}

#[test]
fn a_node_with_a_token_file_and_mutual_tls_shows_no_secret_whatever_goes_wrong() {
    let (scene, client) = Scene::new();
    let directory = scene.files.directory();
    let (next, http) = (scene.nodes.client(), free_port());
    let mut secrets = vec![GOOD_TOKEN.to_owned(), WRONG_TOKEN.to_owned()];
    secrets.extend(lines_of(&client.key));
    secrets.extend(lines_of(&next.key));
    assert!(secrets.len() >= 6, "keys have several lines");
    scene.files.write("token", GOOD_TOKEN);

    let (mut simulator, endpoint) = scene.governance();
    assert!(endpoint.starts_with("https://"), "{endpoint}");
    let mut set = scene.set(http);
    let token = scene.files.path("token");
    set.push(format!("connection.token_file={}", token.display()));
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let running = node_with(directory, &endpoint, &set, &[]);
    healthy(directory);
    let mut shown = String::new();
    for number in 0..3 {
        shown.push_str(&deposit(directory, number));
    }
    answered(directory, 3);
    shown.push_str(&seen(directory, http));

    scene.files.write("token", WRONG_TOKEN);
    simulator.kill();
    faulty(directory, "cannot connect");
    (simulator, _) = scene.governance();
    faulty(directory, "Unauthenticated");
    shown.push_str(&seen(directory, http));

    // Another one's key, half of one, and the token where the key belongs.
    let half: String = client.key.chars().take(client.key.len() / 2).collect();
    for broken in [next.key.as_str(), half.as_str(), GOOD_TOKEN] {
        scene.files.write("node.key", broken);
        faulty(directory, "connection.tls.key_file");
        shown.push_str(&seen(directory, http));
        scene.files.write("node.key", &client.key);
        faulty(directory, "Unauthenticated");
    }
    let ca = fs::read_to_string(scene.files.path("ca.pem")).expect("there");
    scene.files.write("ca.pem", &Authority::new("other").pem());
    faulty(directory, "unknown issuer");
    shown.push_str(&seen(directory, http));

    scene.files.write("ca.pem", &ca);
    scene.files.write("token", GOOD_TOKEN);
    healthy(directory);
    drop(simulator);
    assert!(running.terminate(), "{}", log(directory));

    let log = log(directory);
    // It is the log of all that, at the level that was asked for.
    for line in [
        "\"level\":\"DEBUG\"",
        "Unauthenticated",
        "unknown issuer",
        "another one's key",
        "connection.tls.key_file",
        &endpoint,
    ] {
        assert!(log.contains(line), "{line} is missing from the log");
    }
    assert_hides("the log", &log, &secrets);
    assert_hides("the node", &shown, &secrets);
    assert_traces_hide(&scene.collector, 3, &secrets);
}

#[test]
fn a_token_in_the_environment_is_shown_neither_by_the_node_nor_by_check_config() {
    let (scene, client) = Scene::new();
    let (directory, http) = (scene.files.directory(), free_port());
    let mut secrets = vec![GOOD_TOKEN.to_owned(), WRONG_TOKEN.to_owned()];
    secrets.extend(lines_of(&client.key));
    let (simulator, endpoint) = scene.governance();
    let set = scene.set(http);
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    let mut shown = String::new();
    for (number, token) in (0..).zip([WRONG_TOKEN, GOOD_TOKEN]) {
        let running = node_with(directory, &endpoint, &set, &[(TOKEN_KEY, token)]);
        if token == WRONG_TOKEN {
            faulty(directory, "Unauthenticated");
            shown.push_str(&deposit(directory, number));
        } else {
            healthy(directory);
            shown.push_str(&deposit(directory, number));
            answered(directory, 2);
        }
        shown.push_str(&seen(directory, http));
        assert!(running.terminate(), "{}", log(directory));
    }
    assert_hides("the log", &log(directory), &secrets);
    assert_hides("the node", &shown, &secrets);
    assert_traces_hide(&scene.collector, 2, &secrets);
    drop(simulator);

    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    // As it should be, beside a token file, with a character too many, and under a wrong name.
    let bell = format!("{GOOD_TOKEN}\u{7}");
    let key = scene.files.path("node.key").display().to_string();
    let file = format!("connection.token_file={key}");
    for (variable, value, more) in [
        (TOKEN_KEY, GOOD_TOKEN, "call_deadline=10s"),
        (TOKEN_KEY, GOOD_TOKEN, file.as_str()),
        (TOKEN_KEY, bell.as_str(), "call_deadline=10s"),
        (
            "GOVERNANCE_STREAM__CONNECTION__TOKN",
            GOOD_TOKEN,
            "call_deadline=10s",
        ),
        // A key is no token.
        ("UNRELATED", GOOD_TOKEN, file.as_str()),
    ] {
        for json in [&[][..], &["--json"]] {
            let done = binary()
                .args(["check-config", "--set", more, "--config"])
                .arg(&example)
                .args(json)
                .env(variable, value)
                .output()
                .expect("runs");
            let text = [done.stdout, done.stderr].concat();
            let text = String::from_utf8(text).expect("UTF-8");
            assert!(text.contains("connection.token"), "{text}");
            assert_hides("check-config", &text, &secrets);
        }
    }
}
