//! Configuration: every fault at once, every value with its origin, no secret shown.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use governance_stream::config::{ConfigError, EffectiveValue, Layers, Origin, Settings};

const EXAMPLE: &str = include_str!("../config.example.toml");

fn example() -> Layers {
    Layers::new()
        .text(EXAMPLE, PathBuf::from("example.toml"))
        .expect("the example is TOML")
}

fn value<'a>(settings: &'a Settings, key: &str) -> &'a EffectiveValue {
    settings
        .effective
        .iter()
        .find(|value| value.key == key)
        .expect("a known key")
}

fn keys(error: &ConfigError) -> BTreeSet<&str> {
    error.0.iter().map(|fault| fault.key.as_str()).collect()
}

#[test]
fn the_example_names_every_key_and_states_the_defaults() {
    let settings = Settings::load(example()).expect("the example loads");
    // A key stands alone on its line, commented out when it is optional, below its section.
    let mut section = String::new();
    let mut named = BTreeSet::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ") {
            named.insert(format!("{section}{key}"));
        }
    }
    for EffectiveValue { key, .. } in &settings.effective {
        assert!(
            named.contains(*key),
            "{key} is missing from config.example.toml"
        );
    }
    let required = EXAMPLE
        .lines()
        .skip_while(|line| *line != "[node]")
        .take_while(|line| *line != "[connection]")
        .chain(["[connection]", r#"endpoints = ["http://127.0.0.1:50051"]"#]);
    let required: Vec<&str> = required.collect();
    let minimal = Layers::new().text(&required.join("\n"), PathBuf::from("minimal.toml"));
    let minimal = Settings::load(minimal.expect("TOML")).expect("the rest has defaults");
    for EffectiveValue {
        key,
        value: default,
        ..
    } in &minimal.effective
    {
        assert_eq!(
            &value(&settings, key).value,
            default,
            "{key}: the example states another default"
        );
    }
}

#[test]
fn the_last_layer_that_names_a_key_decides_and_is_named() {
    let environment = [
        (
            "GOVERNANCE_STREAM__CALL_DEADLINE".to_owned(),
            "2s".to_owned(),
        ),
        (
            "GOVERNANCE_STREAM__DRAIN_DEADLINE".to_owned(),
            "3s".to_owned(),
        ),
        ("PATH".to_owned(), "/bin".to_owned()),
    ];
    let layers = example()
        .environment(environment)
        .flags(["drain_deadline=4s"]);
    let settings = Settings::load(layers).expect("loads");
    assert_eq!(settings.stream.call_deadline, Duration::from_secs(2));
    assert_eq!(settings.stream.drain_deadline, Duration::from_secs(4));
    let name = "GOVERNANCE_STREAM__CALL_DEADLINE".to_owned();
    assert_eq!(
        value(&settings, "call_deadline").origin,
        Origin::Environment(name)
    );
    assert_eq!(value(&settings, "drain_deadline").origin, Origin::Flag);
    let file = Origin::File(PathBuf::from("example.toml"));
    assert_eq!(value(&settings, "node.node_id").origin, file);
    assert_eq!(value(&settings, "connection.token").origin, Origin::Default);
}

#[test]
fn every_fault_is_reported_at_once() {
    let layers = example().flags([
        "connection.heartbeat_intervall=5s",
        "node.network=moonnet",
        "buffer.lane_messages=many",
        "call_deadline=5",
        "federation.threshold=4",
        "federation.min_threshold_percent=101",
        "connection.endpoints=http://governance.example:1,https://governance.example:2",
        "connection.tls.cert_file=/nowhere/cert.pem",
        "http.listen=0.0.0.0:80",
        "store.compact_above_free_percent=5",
        "store.scrub_interval=1s",
        "store.scrub_bytes_per_second=1",
        "nonsense",
    ]);
    let error = Settings::load(layers).expect_err("many faults");
    let expected = BTreeSet::from([
        "--set",
        "buffer.lane_messages",
        "call_deadline",
        "connection.endpoints",
        "connection.heartbeat_intervall",
        "connection.tls.ca_file",
        "connection.tls.key_file",
        "federation.min_threshold_percent",
        "federation.threshold",
        "http.listen",
        "node.network",
        "store.compact_above_free_percent",
        "store.scrub_bytes_per_second",
        "store.scrub_interval",
    ]);
    assert_eq!(keys(&error), expected, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("did you mean `connection.heartbeat_interval`?"),
        "{text}"
    );
    assert!(text.contains("(from --set)"), "{text}");
}

#[test]
fn https_without_a_ca_is_no_configuration() {
    let layers = example().flags(["connection.endpoints=https://governance.example:443"]);
    let error = Settings::load(layers).expect_err("no CA");
    assert_eq!(
        keys(&error),
        BTreeSet::from(["connection.endpoints"]),
        "{error}"
    );
}

#[test]
fn nothing_shows_a_secret() {
    let secret = "hunter2-hunter2";
    let flag = format!("connection.token={secret}");
    let settings = Settings::load(example().flags([flag.as_str()])).expect("loads");
    assert_eq!(value(&settings, "connection.token").value, "***");
    assert!(!format!("{settings:?}").contains(secret));
    for wrong in [
        format!("connection.tokn={secret}"),
        format!("connection.token={secret}\u{7}"),
        format!("connection.endpoints=http://user:{secret}@127.0.0.1:1"),
        secret.to_owned(),
    ] {
        let error = Settings::load(example().flags([wrong.as_str()])).expect_err("wrong");
        assert!(!format!("{error} {error:?}").contains(secret), "{error}");
    }
    let text = format!("[connection]\ntoken = {secret}");
    let error = Layers::new()
        .text(&text, PathBuf::new())
        .expect_err("no TOML");
    drop(error);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("broken.toml");
    std::fs::write(&path, text).expect("written");
    let error = Settings::load(Layers::new().file(path)).expect_err("no TOML");
    assert!(!format!("{error} {error:?}").contains(secret), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Settings::load(Layers::new().file(PathBuf::from("/nowhere/x.toml"))).expect_err("");
    assert!(error.to_string().contains("/nowhere/x.toml"), "{error}");
}

#[test]
fn a_bitcoin_node_is_on_loopback_and_its_password_is_shown_to_nobody() {
    let with = |lines: &str| {
        let text = format!("{EXAMPLE}\n").replace(
            "[bridge.bitcoind]\n",
            &format!("[bridge.bitcoind]\n{lines}\n"),
        );
        let layers = Layers::new().text(&text, PathBuf::from("example.toml"));
        Settings::load(layers.expect("TOML"))
    };
    let url = "url = \"http://127.0.0.1:8332\"";
    let user = "user = \"node\"\npassword = \"hunter2\"";
    let settings = with(&format!("{url}\n{user}")).expect("right");
    assert!(settings.bridge.bitcoind.is_some());
    assert_eq!(value(&settings, "bridge.bitcoind.password").value, "***");
    assert!(!format!("{settings:?}").contains("hunter2"));
    for (lines, key) in [
        (
            format!("url = \"http://10.0.0.1:8332\"\n{user}"),
            "bridge.bitcoind.url",
        ),
        (
            format!("url = \"http://node:hunter2@127.0.0.1:8332\"\n{user}"),
            "bridge.bitcoind.url",
        ),
        (user.to_owned(), "bridge.bitcoind.url"),
        (url.to_owned(), "bridge.bitcoind.cookie_file"),
        (
            format!("{url}\nuser = \"node\""),
            "bridge.bitcoind.password",
        ),
        (
            format!("{url}\npassword = \"hunter2\""),
            "bridge.bitcoind.user",
        ),
        (
            format!("{url}\n{user}\ncookie_file = \"c\""),
            "bridge.bitcoind.cookie_file",
        ),
        (
            format!("{url}\nuser = \"node\"\npassword = 5"),
            "bridge.bitcoind.password",
        ),
    ] {
        let error = with(&lines).expect_err("wrong");
        assert!(keys(&error).contains(key), "{lines}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let shallow = example().flags(["bridge.confirmations=0", "bridge.poll_interval=1ms"]);
    let error = Settings::load(shallow).expect_err("wrong");
    assert!(keys(&error).is_superset(&BTreeSet::from([
        "bridge.confirmations",
        "bridge.poll_interval"
    ])));
}
