//! A store of each format that was ever released is opened by this version, with everything in it.
//!
//! `WRITE_FIXTURE=1 cargo test --test formats` has a node with its bridge and chain go through
//! everything that a store keeps (`support/fixture.rs`), and puts a backup of it into
//! `tests/fixtures/format-N/`, N being this version's format. That is done until the format is released,
//! and never after: from then on a change of what is written is a format of its own, with a migration.
#![cfg(all(unix, feature = "cli"))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use governance_stream::{
    bridge::recorded_pegout,
    history::{History, Page, Standing},
    storage::{Batch, Engine as _, FORMAT, ReadOnlyFile, RedbEngine, StoreIdentity, Table},
};
use serde_json::Value;
use support::{
    deposit,
    fixture::{self, DEPOSITS, FEDERATIONS, HEIGHT, PEGOUTS, PROPOSAL, REQUESTS},
    process::{ask, binary, data, node, wait_for},
    request_id,
};
use tokio::sync::Mutex;

/// A process that one test starts holds, for a moment, the locks that this process has for the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn fixture(format: u32) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(format!("format-{format}/store.redb"))
}

async fn write(format: u32) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("store.redb");
    fixture::write(&file).await;
    let fixture = fixture(format);
    fs::create_dir_all(fixture.parent().expect("named")).expect("made");
    fs::copy(&file, &fixture).expect("copied");
    fs::set_permissions(&fixture, fs::Permissions::from_mode(0o644)).expect("set");
}

/// Puts a copy of the fixture where the store of a node of `directory` is, for its owner only, as a
/// checkout does not keep it.
fn put(format: u32, directory: &Path) {
    let home = data(directory);
    fs::create_dir_all(&home).expect("made");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("set");
    let file = home.join("store.redb");
    fs::copy(fixture(format), &file).expect("the fixture is there");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_each_released_format_is_opened_with_everything_in_it() {
    let _alone = ONE_AT_A_TIME.lock().await;
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        write(FORMAT).await;
    }
    for format in 1..=FORMAT {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        put(format, directory);
        if format == FORMAT {
            // Before a node changes anything.
            rows(directory);
            commands(directory);
        }
        let endpoint = "http://127.0.0.1:1";
        let mut running = node(directory, endpoint, &["features.http=false"]);
        operator(directory);
        running.kill();
        rows(directory);
        commands(directory);
    }
}

/// S9: a store says which format it is in, and one that is newer than this version is left alone.
#[test]
fn a_store_of_a_newer_format_is_refused_and_stays_as_it_is() {
    let _alone = ONE_AT_A_TIME.blocking_lock();
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    put(FORMAT, directory);
    {
        let engine = RedbEngine::at(data(directory)).expect("free");
        let last = engine.open().expect("a store");
        let mut newer = Batch::new();
        let format = (FORMAT + 1).to_be_bytes();
        newer.put(Table::new("store/meta"), "format", format);
        engine.commit(last + 1, &[newer]).expect("committed");
    }
    let kept = || {
        let file = ReadOnlyFile::inspect(&data(directory)).expect("nobody has it");
        let snapshot = file.snapshot().expect("readable");
        (snapshot.commit(), snapshot.tables().expect("readable"))
    };
    let before = kept();
    let mut running = node(directory, "http://127.0.0.1:1", &["features.http=false"]);
    wait_for("its end", || (!running.is_running()).then_some(()));
    let log = fs::read_to_string(directory.join("node.log")).expect("there");
    assert!(log.contains("written by a newer version"), "{log}");
    assert_eq!(kept(), before);
}

/// What the library reads in the file.
fn rows(directory: &Path) {
    let home = data(directory);
    let file = ReadOnlyFile::inspect(&home).expect("nobody has it");
    let snapshot = file.snapshot().expect("readable");
    let place = home.display().to_string();
    let identity = StoreIdentity::read(&place, &*snapshot).expect("a store");
    let history = History::of(&*snapshot, &place, identity.hash_key());
    for (number, state) in PEGOUTS {
        let pegout = recorded_pegout(&*snapshot, identity.hash_key(), &request_id(number));
        let pegout = pegout.expect("readable").expect("known");
        assert_eq!(pegout.stage().name(), state, "{number}");
        let signed = matches!(state, "signed" | "broadcast" | "confirmed");
        assert!(!signed || pegout.transaction().is_some(), "{number}");
    }
    for (number, outcome) in REQUESTS {
        let record = history.request(&request_id(number)).expect("readable");
        let found = match record.expect("known").standing {
            Standing::Settled { outcome, .. } => Some(outcome.name()),
            Standing::Open { .. } => None,
        };
        assert_eq!(found, outcome, "{number}");
    }
    let letters = history.dead_letters(Page::default()).expect("readable");
    let [(_, letter)] = letters.as_slice() else {
        panic!("{letters:?}");
    };
    assert!(!letter.payload.is_empty() && !letter.reason.is_empty());
    let facts = history.facts().expect("readable");
    assert!(facts.identity.is_some_and(|identity| identity.epoch > 0));
}

/// What the commands say of it, which ask the file: no node runs.
fn commands(directory: &Path) {
    let shown = |args: &[&str]| -> Value {
        let mut command = binary();
        command.args(args).arg("--json").arg("--data-dir");
        let done = command.arg(data(directory)).output().expect("runs");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&done.stdout).expect("JSON")
    };
    assert_eq!(shown(&["store", "verify"])["sound"], true);
    let listed = shown(&["requests", "list"]);
    let listed = listed["requests"].as_array().expect("a list");
    let listed: BTreeMap<&str, Option<&str>> = listed
        .iter()
        .map(|one| {
            (
                one["request_id"].as_str().expect("text"),
                one["outcome"].as_str(),
            )
        })
        .collect();
    let expected = REQUESTS.map(|(number, outcome)| (request_id(number).to_string(), outcome));
    let expected: BTreeMap<&str, Option<&str>> = expected
        .iter()
        .map(|(id, outcome)| (id.as_str(), *outcome))
        .collect();
    assert_eq!(listed, expected);
    let life = shown(&["requests", "show", "pegout-7"]);
    assert_eq!(life["burns"].as_array().map(Vec::len), Some(1), "{life}");
    let [answered, sent, unsent] = DEPOSITS;
    for (which, numbers) in [
        ("--answered", answered.to_vec()),
        ("--open", [sent, unsent].concat()),
    ] {
        let listed = shown(&["pegins", "list", which]);
        let listed = listed["pegins"].as_array().expect("a list");
        let mut listed: Vec<&str> = listed
            .iter()
            .map(|one| one["outpoint"].as_str().expect("text"))
            .collect();
        listed.sort_unstable();
        let numbers = numbers.iter().copied();
        let expected: Vec<String> = numbers
            .map(|number| deposit(number).outpoint().to_string())
            .collect();
        assert_eq!(listed, expected, "{which}");
    }
    let letters = shown(&["dead-letters", "list"]);
    assert_eq!(letters["dead_letters"].as_array().map(Vec::len), Some(1));
    let stats = shown(&["store", "stats"]);
    assert_eq!(stats["store"]["node_id"], "node-1", "{stats}");
}

/// What a node that runs on it says: the bridge and the chain have read their rows.
fn operator(directory: &Path) {
    let shown = |path: &str| {
        wait_for(path, || {
            let (status, shown) = ask(directory, "GET", path, &Value::Null)?;
            (status == 200).then_some(shown)
        })
    };
    let listed = shown("/pegouts");
    let paused_by = listed["paused_by"].as_str().expect("paused");
    assert_eq!(paused_by, "the operator");
    let listed = listed["pegouts"].as_array().expect("a list");
    let listed: BTreeMap<String, String> = listed
        .iter()
        .map(|one| {
            let text = |key: &str| one[key].as_str().expect("text").to_owned();
            let state = text("state");
            let name = state.split(':').next().expect("a name");
            (text("request_id"), name.to_owned())
        })
        .collect();
    let expected =
        PEGOUTS.map(|(number, state)| (request_id(number).to_string(), state.to_owned()));
    assert_eq!(listed, expected.into_iter().collect());
    let federation = shown("/federation/history");
    assert_eq!(federation["height"], HEIGHT);
    let versions = federation["versions"].as_array().expect("a list");
    let versions: Vec<(u64, &str)> = versions
        .iter()
        .map(|one| {
            let version = one["version"].as_u64().expect("a number");
            (version, one["standing"].as_str().expect("text"))
        })
        .collect();
    let expected = FEDERATIONS.map(|(version, standing)| (u64::from(version), standing));
    assert_eq!(versions, expected);
    assert!(!federation["events"].as_array().expect("a list").is_empty());
    let payments = shown("/payments");
    let payments = payments.as_array().expect("a list");
    assert_eq!(payments.len(), 1);
    assert_eq!(payments[0]["request_id"], "pegout-1");
    let proposals = shown("/proposals").to_string();
    assert!(proposals.contains(PROPOSAL), "{proposals}");
    wait_for("what is open", || {
        let (_, status) = ask(directory, "GET", "/status", &Value::Null)?;
        (status["open_requests"] == 2).then_some(())
    });
}
