//! What an operator sees of a store, of a node that runs and of one that does not; and how a store
//! comes into being.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::Value;
use support::process::{
    Process, ask, binary, data, free_port, get, governance, node, until_healthy, wait_for,
};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A node's directory, and the commands about it.
struct Operated {
    directory: tempfile::TempDir,
}

impl Operated {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn data(&self) -> PathBuf {
        data(self.path())
    }

    /// A command about the node.
    fn command(&self, args: &[&str]) -> Output {
        let done = binary()
            .args(args)
            .arg("--data-dir")
            .arg(self.data())
            .output();
        done.expect("runs")
    }

    fn words(&self, args: &[&str]) -> String {
        let done = self.command(args);
        assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.words(&[args, &["--json"]].concat())).expect("JSON")
    }

    /// Writes a configuration: the example's, with this in the place of that.
    fn config(&self, name: &str, that: &str, this: &str) -> String {
        let file = self.path().join(name);
        let here = format!("data_dir = {:?}", self.data());
        let example = fs::read_to_string(EXAMPLE).expect("there");
        let example = example.replace("data_dir = \"data\"", &here);
        assert!(example.contains(that), "{that}");
        fs::write(&file, example.replace(that, this)).expect("written");
        file.to_str().expect("UTF-8").to_owned()
    }

    /// A command about the configuration.
    fn configured(&self, args: &[&str], set: &[&str]) -> Output {
        let mut command = binary();
        command.args(args).args(["--config", EXAMPLE]);
        let data_dir = format!("data_dir={}", self.data().display());
        let outbox = format!("bridge.outbox_dir={}", self.path().join("outbox").display());
        for value in [&data_dir, &outbox, "features.http=false"] {
            command.args(["--set", value]);
        }
        for value in set {
            command.args(["--set", value]);
        }
        // Ended with the test, should it go on where it is to refuse.
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(piped.spawn().expect("runs"));
        wait_for("its end", || (!process.is_running()).then_some(()));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let child = &mut process.0;
        let pipe = child.stdout.as_mut().expect("piped");
        pipe.read_to_end(&mut stdout).expect("read");
        let pipe = child.stderr.as_mut().expect("piped");
        pipe.read_to_end(&mut stderr).expect("read");
        Output {
            status: child.wait().expect("ended"),
            stdout,
            stderr,
        }
    }

    /// Has a peg-out signed and a deposit answered.
    fn work(&self) {
        let psbt = self.path().join("sample.psbt");
        let sample = binary().arg("sample-pegout").arg(psbt).output();
        let line = text(&sample.expect("runs").stdout);
        let args: Vec<&str> = line.split_whitespace().skip(1).collect();
        self.words(&args);
        let outpoint = format!("{}:0", "ab".repeat(32));
        let address = format!("0x{}", "07".repeat(20));
        let amount = ["--amount-sat", "5000", "--evm-address", &address];
        self.words(&[&["pegin", "--outpoint", &outpoint][..], &amount].concat());
        wait_for("governance's answer", || {
            let open = self.json(&["pegins", "list", "--open"]);
            let answered = self.json(&["pegins", "list", "--answered"]);
            let count = |list: &Value| list["pegins"].as_array().map(Vec::len);
            (count(&open) == Some(0) && count(&answered) == Some(1)).then_some(())
        });
    }
}

fn refused(done: &Output, code: i32) -> String {
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{said}");
    assert!(done.stdout.is_empty(), "{}", text(&done.stdout));
    said
}

fn start(operated: &Operated) -> (Process, Process) {
    let (simulator, endpoint) = governance(0, &[]);
    let running = node(operated.path(), &endpoint, &["features.http=false"]);
    until_healthy(operated.path());
    (simulator, running)
}

#[test]
fn a_store_is_made_once_and_nothing_is_made_in_passing() {
    let operated = Operated::new();
    let absent = refused(&operated.configured(&["run"], &[]), 4);
    assert!(
        absent.contains("governance-stream init") && absent.contains("restore a backup"),
        "{absent}"
    );
    assert!(!operated.data().exists(), "nothing was made");
    for looking in [&["store", "stats"][..], &["requests", "list"], &["export"]] {
        refused(&operated.command(looking), 4);
    }

    let made = operated.configured(&["init", "--json"], &[]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let stats = operated.json(&["store", "stats"]);
    assert_eq!(stats["store"]["store_id"], made["store_id"]);
    assert_eq!(stats["store"]["place"], made["place"]);
    let occupied = refused(&operated.configured(&["init"], &[]), 1);
    assert!(
        occupied.contains("`store.redb` is there already") && !occupied.contains("--beside-others"),
        "{occupied}"
    );
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&operated.data()), 0o700);
    assert_eq!(mode(&operated.data().join("store.redb")), 0o600);
}

#[test]
fn a_directory_with_something_else_in_it_gets_no_store_in_passing() {
    let operated = Operated::new();
    fs::create_dir(operated.data()).expect("made");
    fs::set_permissions(operated.data(), fs::Permissions::from_mode(0o700)).expect("set");
    fs::write(operated.data().join("chain.old"), "something").expect("written");
    for command in [&["init"][..], &["run", "--init"]] {
        let occupied = refused(&operated.configured(command, &[]), 1);
        assert!(
            occupied.contains("`chain.old` is there already"),
            "{occupied}"
        );
    }
    let beside = operated.configured(&["init", "--beside-others"], &[]);
    assert!(beside.status.success(), "{}", text(&beside.stderr));
}

/// S5: what would have been noticed by nobody.
#[test]
fn the_store_of_another_node_chain_network_or_federation_is_refused_by_name() {
    let operated = Operated::new();
    assert!(operated.configured(&["init"], &[]).status.success());
    for (set, what) in [
        (
            "node.node_id=node-2",
            "its node is node-1, and node-2 is expected",
        ),
        (
            "node.chain_id=alys-other",
            "its chain is alys-regtest, and alys-other",
        ),
        (
            "node.network=signet",
            "its network is regtest, and signet is expected",
        ),
        ("federation.threshold=3", "its first federation is "),
    ] {
        let foreign = refused(&operated.configured(&["run"], &[set]), 10);
        assert!(foreign.contains(what), "{set}: {foreign}");
        assert!(
            foreign.contains("set the configuration as it was"),
            "{foreign}"
        );
    }
}

/// S9: whoever may enter may read what is in it, and begin what costs money.
#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let operated = Operated::new();
    assert!(operated.configured(&["init"], &[]).status.success());
    let open = |mode| fs::set_permissions(operated.data(), fs::Permissions::from_mode(mode));
    open(0o777).expect("set");
    let refusal = refused(&operated.configured(&["run"], &[]), 1);
    assert!(
        refusal.contains("mode 777 lets others in") && refusal.contains("chmod 700"),
        "{refusal}"
    );
    open(0o700).expect("set");
    let file = operated.data().join("store.redb");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
    let refusal = refused(&operated.configured(&["run"], &[]), 1);
    assert!(refusal.contains("chmod 600"), "{refusal}");
}

const LISTS: [&[&str]; 8] = [
    &["requests", "list"],
    &["requests", "list", "--settled"],
    &["requests", "list", "--open"],
    &["requests", "show", "sample-1"],
    &["pegins", "list"],
    &["dead-letters", "list"],
    &["store", "stats"],
    &["store", "verify"],
];

#[test]
fn a_running_node_and_the_file_of_one_that_was_stopped_give_the_same_answers() {
    let operated = Operated::new();
    let (simulator, running) = start(&operated);
    operated.work();
    let answers = || -> Vec<(String, Value)> {
        let answer = |args: &&[&str]| (operated.words(args), operated.json(args));
        LISTS.iter().map(answer).collect()
    };
    let asked = answers();
    let stderr = text(&operated.command(LISTS[0]).stderr);
    assert!(
        stderr.starts_with("asking the node that runs on "),
        "{stderr}"
    );
    let export = operated.words(&["export"]);
    assert!(running.terminate(), "drains and ends well");
    assert!(
        !operated.data().join("operator.sock").exists(),
        "it goes with its node"
    );

    let before = fs::read(operated.data().join("store.redb")).expect("there");
    let read = answers();
    let stderr = text(&operated.command(LISTS[0]).stderr);
    assert!(stderr.contains("no node runs on "), "{stderr}");
    for ((args, (asked_words, mut asked)), (read_words, mut read)) in
        LISTS.iter().zip(asked).zip(read)
    {
        assert_eq!(
            (&asked["source"], &read["source"]),
            (&"node".into(), &"file".into())
        );
        for answer in [&mut asked, &mut read] {
            forget_what_moves(answer);
        }
        assert_eq!(asked, read, "{args:?}");
        if args[0] != "store" {
            assert_eq!(asked_words, read_words, "{args:?}");
        }
    }
    let rows = |export: &str| -> Vec<Value> {
        let lines = export
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let rows: Vec<Value> = lines.collect();
        let ends = rows.last().expect("a line")["end"]["rows"].as_u64();
        assert_eq!(ends, Some(rows.len() as u64 - 2));
        assert!(rows[0]["export"]["store"]["store_id"].is_string());
        let requests = rows.into_iter().filter(|row| row.get("request").is_some());
        requests.collect()
    };
    assert_eq!(rows(&export), rows(&operated.words(&["export"])));
    let after = fs::read(operated.data().join("store.redb")).expect("there");
    assert!(before == after, "looking changes nothing");
    assert!(simulator.terminate(), "no violation");
}

/// A node commits while it ends, and its own reading of blocks is not the file's.
fn forget_what_moves(answer: &mut Value) {
    let answer = answer.as_object_mut().expect("an object");
    for key in [
        "source",
        "commit",
        "blocks",
        "used_blocks",
        "harmless",
        "rows",
    ] {
        answer.remove(key);
    }
    if let Some(store) = answer.get_mut("store").and_then(Value::as_object_mut) {
        // `store verify` notes that everything was read.
        store.remove("scrubbed_unix_ms");
        store["rows"]
            .as_object_mut()
            .expect("rows")
            .remove("store/meta");
        for key in ["commit", "file_bytes", "free_bytes", "disk_free_bytes"] {
            assert!(
                store.remove(key).is_some_and(|value| value.is_u64()),
                "{key}"
            );
        }
    }
}

#[test]
fn a_request_and_a_deposit_are_shown_with_their_times_and_what_came_of_them() {
    let operated = Operated::new();
    let (simulator, running) = start(&operated);
    operated.work();
    let listed = operated.json(&["requests", "list"]);
    let request = &listed["requests"][0];
    assert_eq!(request["request_id"], "sample-1");
    assert_eq!(request["standing"], "settled");
    assert_eq!(request["outcome"], "complete");
    assert!(request["accepted_unix_ms"].as_u64() <= request["settled_unix_ms"].as_u64());
    let life = operated.json(&["requests", "show", "sample-1"]);
    assert_eq!(life["burns"].as_array().map(Vec::len), Some(1));
    assert_eq!(life["spends"].as_array().map(Vec::len), Some(1));
    assert_eq!(life["message"], Value::Null, "it has gone");
    let words = operated.words(&["requests", "list"]);
    let year = words.split_whitespace().nth(1).expect("a time");
    assert!(year.ends_with('Z') && year.contains('T'), "{words}");
    assert!(
        words.contains("sample-1") && words.contains("complete"),
        "{words}"
    );
    let pegins = operated.json(&["pegins", "list"]);
    assert_eq!(pegins["pegins"][0]["standing"], "answered");
    assert_eq!(
        pegins["pegins"][0]["status"], "recorded",
        "as the bridge has it"
    );

    let unknown = operated.command(&["requests", "show", "nobody", "--json"]);
    let error: Value = serde_json::from_str(&refused(&unknown, 3)).expect("JSON");
    assert_eq!(error["error"], "request nobody was never accepted here");
    assert_eq!(error["retry"], "never");
    for what in ["discard", "requeue"] {
        let sure = operated.command(&["dead-letters", what, "7", "--yes", "--json"]);
        let error: Value = serde_json::from_str(&refused(&sure, 3)).expect("JSON");
        assert_eq!(error["error"], "there is no dead letter 7");
    }
    let resumed = operated.words(&["resume"]);
    assert!(resumed.contains("nothing is held up"), "{resumed}");
    let adopted = operated.command(&["resume", "--adopt-ledger", "--yes"]);
    assert!(refused(&adopted, 1).contains("nothing waits for this"));
    assert!(running.terminate(), "drains and ends well");
    let nobody = operated.command(&["dead-letters", "discard", "7", "--yes"]);
    assert!(refused(&nobody, 4).contains("no node listens"));
    let unknown = operated.command(&["requests", "show", "nobody"]);
    refused(&unknown, 3);
    assert!(simulator.terminate(), "no violation");
}

#[test]
fn a_list_goes_on_where_it_ended_and_says_that_there_is_more() {
    let operated = Operated::new();
    // Nobody answers: everything stays open.
    let set = ["features.http=false"];
    let running = node(operated.path(), "http://127.0.0.1:1", &set);
    wait_for("the socket", || {
        ask(operated.path(), "GET", "/status", &Value::Null)
    });
    let address = format!("0x{}", "07".repeat(20));
    for number in 0..5 {
        let outpoint = format!("{}:{number}", "ab".repeat(32));
        let rest = ["--amount-sat", "5000", "--evm-address", &address];
        operated.words(&[&["pegin", "--outpoint", &outpoint][..], &rest].concat());
    }
    let check = |source: &str| {
        let (mut seen, mut before) = (Vec::new(), None::<u64>);
        loop {
            let number = before.map(|before| before.to_string());
            let mut args = vec!["pegins", "list", "--open", "--limit", "2"];
            if let Some(number) = &number {
                args.extend(["--before", number]);
            }
            let page = operated.json(&args);
            assert_eq!(page["source"], source);
            let pegins = page["pegins"].as_array().expect("a list");
            assert!(pegins.len() <= 2);
            assert!(
                pegins
                    .iter()
                    .all(|pegin| pegin["accepted_unix_ms"].is_u64())
            );
            seen.extend(pegins.iter().map(|pegin| pegin["outpoint"].clone()));
            before = page["next_before"]["open"].as_u64();
            assert_eq!(page["more"], before.is_some());
            if before.is_none() {
                break;
            }
        }
        let expected = (0..5)
            .rev()
            .map(|number| format!("{}:{number}", "ab".repeat(32)));
        assert_eq!(
            seen,
            expected.collect::<Vec<_>>(),
            "each once, newest first"
        );
        let words = operated.words(&["pegins", "list", "--limit", "2"]);
        let more = words.lines().last().expect("a line");
        assert!(
            more.starts_with("there are more: go on with --open --before "),
            "{words}"
        );
        let from = "2026-01-01T00:00:00Z";
        for (part, count) in [
            (["--since", "1h"], 5),
            (["--until", "1h"], 0),
            (["--since", from], 5),
            (["--until", from], 0),
        ] {
            let list = operated.json(&[&["pegins", "list"][..], &part].concat());
            let listed = list["pegins"].as_array().map(Vec::len);
            assert_eq!(listed, Some(count), "{part:?}");
        }
        let nothing = operated.command(&["pegins", "list", "--since", "yesterday"]);
        assert!(refused(&nothing, 2).contains("neither a time"));
        let which = operated.command(&["pegins", "list", "--before", "3"]);
        assert!(refused(&which, 2).contains("--open or --answered"));
    };
    check("node");
    drop(running);
    assert!(
        operated.data().join("operator.sock").exists(),
        "it was killed"
    );
    check("file");
}

#[test]
fn damage_is_found_and_the_way_out_is_named() {
    let operated = Operated::new();
    let (simulator, running) = start(&operated);
    operated.work();
    let sound = operated.json(&["store", "verify"]);
    assert_eq!(sound["sound"], true);
    assert!(sound["rows"].as_u64() >= Some(4), "{sound}");
    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
    let sound = operated.json(&["store", "verify"]);
    assert!(
        sound["sound"] == true && sound["used_blocks"].as_u64() > Some(4),
        "{sound}"
    );

    let file = operated.data().join("store.redb");
    let mut damaged = fs::read(&file).expect("there");
    // Behind the header and its copies.
    for block in damaged.chunks_mut(4096).skip(16) {
        block[100] ^= 1;
    }
    fs::write(&file, &damaged).expect("written");
    let found = operated.command(&["store", "verify", "--json"]);
    assert_eq!(found.status.code(), Some(6));
    let found: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!(found["sound"], false);
    // It goes on behind the first damaged block.
    assert!(found["blocks"].as_u64() > Some(16), "{found}");
    let damage = found["damage"].as_array().expect("a list");
    let blocks = damage
        .iter()
        .filter(|found| found.to_string().contains("block"));
    assert!(blocks.count() > 1, "{found}");
    let advice = found["advice"].as_str().expect("advice");
    assert!(advice.contains("governance-stream restore"), "{advice}");
    let words = operated.command(&["store", "verify"]);
    assert!(
        text(&words.stdout).contains("the store is NOT sound"),
        "{words:?}"
    );
}

#[test]
fn a_command_finds_the_directory_by_the_configuration_too() {
    let operated = Operated::new();
    assert!(operated.configured(&["init"], &[]).status.success());
    let config = operated.config("config.toml", "node-1", "node-1");
    let done = binary()
        .args(["store", "stats", "--json", "--config", &config])
        .output()
        .expect("runs");
    assert!(done.status.success(), "{}", text(&done.stderr));
}

#[test]
fn a_backup_is_made_of_a_running_node_and_of_one_that_was_stopped() {
    let operated = Operated::new();
    let (simulator, running) = start(&operated);
    operated.work();
    let check = |name: &str| {
        // Its name is taken from where its operator stands, and not the node.
        let made = binary()
            .args(["backup", name, "--json", "--data-dir"])
            .arg(operated.data())
            .current_dir(operated.path())
            .output()
            .expect("runs");
        assert!(made.status.success(), "{}", text(&made.stderr));
        let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
        let file = operated.path().join(name);
        let mode = fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let name = file.to_str().expect("UTF-8");
        let again = operated.command(&["backup", name]);
        assert!(refused(&again, 1).contains("is there already"));
        assert_eq!(
            operated.json(&["backup", "--verify", name])["backup"],
            made["backup"]
        );
        let words = operated.words(&["backup", "--verify", name]);
        assert!(words.contains("is whole"), "{words}");
        made["backup"]["commit"].as_u64().expect("a number")
    };
    let nowhere = operated.path().join("nowhere/backup");
    let nowhere = ["backup", nowhere.to_str().expect("UTF-8")];
    let misplaced = || {
        let said = refused(&operated.command(&nowhere), 3);
        assert!(
            said.contains("there is no directory") && !said.contains("again"),
            "{said}"
        );
    };
    misplaced();
    let first = check("running.backup");
    assert!(running.terminate(), "drains and ends well");
    misplaced();
    let second = check("stopped.backup");
    assert!(first < second, "{first} {second}");
    assert!(simulator.terminate(), "no violation");

    let file = operated.path().join("stopped.backup");
    let mut damaged = fs::read(&file).expect("there");
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&file, damaged).expect("written");
    let found = operated.command(&["backup", "--verify", file.to_str().expect("UTF-8")]);
    assert!(refused(&found, 6).contains("SHA-256"));
}

#[test]
fn a_backup_is_restored_and_takes_no_newer_store_s_place_unless_told() {
    let operated = Operated::new();
    let (simulator, running) = start(&operated);
    operated.work();
    let file = operated.path().join("backup");
    let file = file.to_str().expect("UTF-8");
    operated.words(&["backup", file]);
    let held = refused(&operated.command(&["restore", file, "--replace-newer"]), 9);
    assert!(held.contains("in use by process"), "{held}");
    let compacted = operated.json(&["store", "compact"]);
    assert!(compacted["bytes_after"].is_u64(), "{compacted}");
    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
    let requests = operated.json(&["requests", "list"]);

    let occupied = refused(&operated.command(&["restore", file]), 5);
    assert!(
        occupied.contains("is not empty") && occupied.contains("`--replace`"),
        "{occupied}"
    );
    let newer = refused(&operated.command(&["restore", file, "--replace"]), 5);
    assert!(newer.contains("is newer than the backup"), "{newer}");
    let done = operated.json(&["restore", file, "--replace-newer"]);
    let replaced = done["replaced"].as_str().expect("kept");
    assert!(Path::new(replaced).exists());
    assert_eq!(operated.json(&["requests", "list"]), requests);
    let stats = operated.json(&["store", "stats"]);
    assert_eq!(stats["store"]["store_id"], done["store_id"]);
    let restored = &stats["store"]["restored"];
    assert_eq!(restored["restore_id"], done["restore_id"]);
    assert_eq!(restored["backup_commit"], done["backup_commit"]);
    assert_eq!(operated.json(&["store", "verify"])["sound"], true);

    let again = operated.json(&["restore", "--in-place"]);
    assert_ne!(again["restore_id"], done["restore_id"]);
    let elsewhere = Operated::new();
    let words = elsewhere.words(&["restore", file]);
    assert!(words.contains("docs/operations.md"), "{words}");
    assert_eq!(elsewhere.json(&["requests", "list"]), requests);
}

/// Of everything that needs the store, at once and in one sentence.
#[test]
fn a_closed_store_says_that_it_is_why_and_what_to_do() {
    let operated = Operated::new();
    let (_simulator, running) = start(&operated);
    operated.work();
    let file = operated.data().join("store.redb");
    let aside = operated.path().join("aside");
    fs::rename(&file, &aside).expect("renamed");
    wait_for("the store's fault", || {
        let (_, status) = ask(operated.path(), "GET", "/status", &Value::Null)?;
        let health = status["health"].to_string();
        health.contains("there is none").then_some(())
    });
    let backup = operated.path().join("backup");
    let backup = ["backup", backup.to_str().expect("UTF-8")];
    let compact = ["store", "compact"];
    let lists = LISTS.into_iter().chain([
        &backup[..],
        &compact,
        &["export"],
        &["payments"],
        &["chain-height", "1000"],
        &["dead-letters", "discard", "7", "--yes"],
        &["dead-letters", "requeue", "7", "--yes"],
        &["pegouts"],
        &["pegouts", "pause", "--yes"],
    ]);
    let began = std::time::Instant::now();
    for args in lists {
        let said = refused(&operated.command(args), 4);
        let last = said.lines().last().expect("a line");
        assert!(
            last.starts_with("error: the store is closed since it failed, and is opened again")
                && last.contains("there is none")
                && last.contains("look whether its disk is mounted"),
            "{args:?}: {said}"
        );
        let error = operated.command(&[args, &["--json"]].concat());
        let error: Value = serde_json::from_str(&refused(&error, 4)).expect("JSON");
        assert_eq!(
            (&error["kind"], &error["retry"]),
            (&"no_store".into(), &"operator".into())
        );
    }
    // A copy that is under way waits for a minute.
    assert!(began.elapsed() < support::process::PATIENCE);
    fs::rename(&aside, &file).expect("renamed");
    until_healthy(operated.path());
    operated.words(&backup);
    assert!(running.terminate(), "drains and ends well");
}

#[test]
fn a_second_node_is_told_that_the_store_is_in_use_and_not_that_its_address_is() {
    let operated = Operated::new();
    let listen = format!("http.listen=127.0.0.1:{}", free_port());
    let _running = node(operated.path(), "http://127.0.0.1:1", &[&listen]);
    wait_for("the socket", || {
        ask(operated.path(), "GET", "/status", &Value::Null)
    });
    let second = operated.configured(&["run"], &[&listen, "features.http=true"]);
    let said = text(&second.stderr);
    assert_eq!(second.status.code(), Some(9), "{said}");
    assert!(said.contains("in use by process"), "{said}");
}

#[test]
fn a_backup_of_another_node_is_refused_by_name_before_anything_is_touched() {
    let operated = Operated::new();
    assert!(operated.configured(&["init"], &[]).status.success());
    let file = operated.path().join("backup");
    let file = file.to_str().expect("UTF-8");
    operated.words(&["backup", file]);
    let before = fs::read(operated.data().join("store.redb")).expect("there");
    for (that, this, what) in [
        (
            "node_id = \"node-1\"",
            "node_id = \"node-2\"",
            "its node is node-1, and node-2",
        ),
        (
            "\"alys-regtest\"",
            "\"alys-other\"",
            "its chain is alys-regtest, and alys-other",
        ),
        (
            "network = \"regtest\"",
            "network = \"signet\"",
            "its network is regtest, and signet",
        ),
    ] {
        let config = operated.config("other.toml", that, this);
        for args in [
            &["restore", file, "--replace-newer"][..],
            &["restore", "--in-place"],
        ] {
            let done = binary().args(args).args(["--config", &config]).output();
            let said = refused(&done.expect("runs"), 10);
            assert!(said.contains(what), "{args:?}: {said}");
        }
    }
    let after = fs::read(operated.data().join("store.redb")).expect("there");
    assert!(before == after, "nothing is touched");
    let config = operated.config("own.toml", "node-1", "node-1");
    let done = binary()
        .args(["restore", file, "--replace", "--json", "--config", &config])
        .output()
        .expect("runs");
    assert!(done.status.success(), "{}", text(&done.stderr));
    let done: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(done["compared_with_configuration"], true);
}

#[test]
fn a_restored_store_shows_in_status_and_metrics_with_the_next_step() {
    let operated = Operated::new();
    assert!(operated.configured(&["init"], &[]).status.success());
    operated.words(&["restore", "--in-place"]);
    let port = free_port();
    let listen = format!("http.listen=127.0.0.1:{port}");
    let _running = node(operated.path(), "http://127.0.0.1:1", &[&listen]);
    wait_for("what it waits for", || {
        let (_, status) = ask(operated.path(), "GET", "/status", &Value::Null)?;
        (status["restoration"] == "waiting").then_some(())
    });
    let status = operated.command(&["status"]);
    assert_eq!(status.status.code(), Some(1), "it is unhealthy");
    let shown = text(&status.stdout);
    let row = shown.lines().find(|line| line.starts_with("restoration "));
    assert!(
        row.is_some_and(|row| row.contains("`governance-stream resume --restored --yes`")),
        "{shown}"
    );
    let (_, metrics) = get(port, "/metrics").expect("answers");
    for sample in ["waiting\"} 1", "went_back\"} 0", "reconciling\"} 0"] {
        let sample = format!("alys_stream_restoration{{state=\"{sample}");
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
    }
}

#[test]
fn the_exit_codes_stand_in_each_help() {
    for args in [
        &["--help"][..],
        &["store", "--help"],
        &["restore", "--help"],
    ] {
        let help = text(&binary().args(args).output().expect("runs").stdout);
        assert!(help.contains("Exit codes:\n   0  done "), "{help}");
        assert!(help.contains("\n   7  went_back "), "{help}");
    }
}
