//! Real coins of a real Bitcoin node, through running processes: paid to the satoshi, whatever dies.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::path::Path;

use bitcoin::{Address, Amount, Network, OutPoint, PubkeyHash, WPubkeyHash, hashes::Hash};
use governance_stream::{
    bridge::{BitcoinBackend as _, BitcoinCore, Sighting, SignedTransaction},
    config::{BitcoindAuth, BitcoindConfig, Secret},
    proto,
    simulator::{FederationView, RotationPlan, Simulator, SimulatorConfig, wallet},
};
use serde_json::{Value, json};
use support::{
    bitcoind::Bitcoind,
    process::{PATIENCE, Process, ask, free_port, governance, node, wait_for},
};

/// Blocks that complete a peg-out here.
const DEPTH: u32 = 3;

/// The federation that the simulator's process plays.
fn federation() -> FederationView {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let twin = Simulator::start(SimulatorConfig::default()).await;
        twin.expect("starts").federation(1).expect("the first")
    })
}

fn owner(number: u8) -> Address {
    let hash = WPubkeyHash::from_raw_hash(PubkeyHash::hash(&[number]).to_raw_hash());
    let script = bitcoin::ScriptBuf::new_p2wpkh(&hash);
    Address::from_script(&script, Network::Regtest).expect("an address")
}

fn start(directory: &Path, endpoint: &str, bitcoind: &Bitcoind) -> Process {
    let set = [
        "features.http=false".to_owned(),
        "connection.backoff.initial=5ms".to_owned(),
        "connection.backoff.max=50ms".to_owned(),
        format!("bridge.confirmations={DEPTH}"),
        "bridge.poll_interval=50ms".to_owned(),
        format!("bridge.bitcoind.url={}", bitcoind.url()),
        format!(
            "bridge.bitcoind.cookie_file={}",
            bitcoind.cookie_file().display()
        ),
    ];
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    node(directory, endpoint, &set)
}

/// Peg-out `number` of these coins.
fn form(federation: &FederationView, number: u8, coins: &[(OutPoint, Amount)], fee: u64) -> Value {
    let (amount, fee) = (amount(number), Amount::from_sat(fee));
    let script = owner(number).script_pubkey();
    let psbt = wallet::spend(federation, coins, script, amount, fee).expect("covered");
    json!({
        "request_id": format!("pegout-{number}-{}", fee.to_sat()),
        "psbt": psbt.to_string(),
        "burns": [{
            "burn_tx_hash": format!("{number:064x}"),
            "log_index": 0,
            "block_hash": "01".repeat(32),
            "block_height": 1,
            "output_index": 0,
            "amount_sat": amount.to_sat(),
            "address": owner(number),
        }],
        "max_fee_sat": fee.to_sat(),
        // A node that is starting does not know yet which one is active.
        "federation_version": federation.version,
    })
}

fn amount(number: u8) -> Amount {
    Amount::from_sat(1_234_567 + u64::from(number))
}

/// Asks until the node takes it: it may be starting.
fn initiate(directory: &Path, form: &Value) -> Value {
    wait_for("a node that takes it", || {
        let (status, answer) = ask(directory, "POST", "/pegouts", form)?;
        assert!(status == 200 || status >= 422, "{status} {answer}");
        (status == 200).then_some(answer)
    })
}

/// Waits until a peg-out's state is this, and gives the whole of it.
fn until(directory: &Path, id: &str, state: &str) -> Value {
    let mut last = Value::Null;
    let path = format!("/pegouts/{id}");
    wait_for(&format!("{id}: {state}"), || {
        let (_, pegout) = ask(directory, "GET", &path, &Value::Null)?;
        if pegout != last {
            last = pegout.clone();
            // Shown when the test fails.
            eprintln!("{id}: {} {}", pegout["state"], pegout["trouble"]);
        }
        assert_ne!(pegout["state"], "failed", "{pegout}");
        (pegout["state"] == state).then_some(pegout)
    })
}

#[tokio::test]
async fn whoever_asks_is_known_by_cookie_or_password_and_asks_a_node_of_its_own_network() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(bitcoind) = Bitcoind::start(directory.path()) else {
        return;
    };
    let user = |password: &str| BitcoindAuth::User {
        user: "node".to_owned(),
        password: Secret::new(password),
    };
    let cookie = |path: &Path| BitcoindAuth::CookieFile(path.to_owned());
    let nobody = free_port();
    for (url, auth, network, words) in [
        (
            bitcoind.url(),
            cookie(&bitcoind.cookie_file()),
            Network::Regtest,
            "",
        ),
        (bitcoind.url(), user("secret"), Network::Regtest, ""),
        (
            bitcoind.url(),
            user("guess"),
            Network::Regtest,
            "does not know the user or the password",
        ),
        (
            bitcoind.url(),
            cookie(Path::new("/none")),
            Network::Regtest,
            "cookie /none cannot be read",
        ),
        (
            bitcoind.url(),
            user("secret"),
            Network::Signet,
            "follows `regtest`, and this node's network is `signet`",
        ),
        (
            format!("http://127.0.0.1:{nobody}"),
            user("secret"),
            Network::Regtest,
            "getblockchaininfo at",
        ),
    ] {
        let config = BitcoindConfig {
            url: url.parse().expect("loopback"),
            auth,
            call_deadline: PATIENCE,
        };
        let signed = SignedTransaction {
            transaction: bitcoin::Transaction {
                version: bitcoin::transaction::Version::TWO,
                lock_time: bitcoin::absolute::LockTime::ZERO,
                input: vec![],
                output: vec![],
            },
            spent: vec![],
        };
        let asked = BitcoinCore::new(config, network)
            .sighting(&signed, None)
            .await;
        match (asked, words) {
            (asked, "") => assert_eq!(asked, Ok(Sighting::Missing)),
            (asked, words) => {
                let reason = asked.expect_err(words).reason;
                assert!(reason.contains(words), "{reason}");
                assert!(
                    !reason.contains("secret") && !reason.contains("guess"),
                    "{reason}"
                );
            }
        }
    }
}

#[test]
fn killed_at_every_step_of_its_life_a_pegout_is_paid_once_and_to_the_satoshi() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let Some(mut bitcoind) = Bitcoind::start(directory) else {
        return;
    };
    let federation = federation();
    let address = federation.address.to_string();
    let coins = bitcoind.fund(&address, 2);
    let before = bitcoind.balance(&address);
    let record = directory.join("governance");
    let args = ["--directory", record.to_str().expect("UTF-8")];
    let port = free_port();
    let (mut simulator, endpoint) = governance(port, &args);

    // Requested: while peg-outs are paused it waits, and so does the pause.
    let mut running = start(directory, &endpoint, &bitcoind);
    wait_for("the pause", || {
        let (status, _) = ask(directory, "POST", "/pause-pegouts", &Value::Null)?;
        (status == 200).then_some(())
    });
    let form = form(&federation, 1, &coins, 2_000);
    let id = initiate(directory, &form)["request_id"].clone();
    let id = id.as_str().expect("text");
    running.kill();
    running = start(directory, &endpoint, &bitcoind);
    let waiting = until(directory, id, "requested");
    assert_eq!(waiting["paused_by"], "the operator");

    // SignaturesRequested: governance is away.
    simulator.kill();
    wait_for("the end of the pause", || {
        let (status, _) = ask(directory, "POST", "/resume-pegouts", &Value::Null)?;
        (status == 200).then_some(())
    });
    until(directory, id, "signatures_requested");
    running.kill();
    running = start(directory, &endpoint, &bitcoind);
    until(directory, id, "signatures_requested");

    // Partial: one member signs, two are away; and then governance is away again, so that what is
    // shown is what was kept.
    let short = [&args[..], &["--offline-members", "2"]].concat();
    (simulator, _) = governance(port, &short);
    until(directory, id, "partial:1:2");
    running.kill();
    simulator.kill();
    running = start(directory, &endpoint, &bitcoind);
    let collected = wait_for("its federation", || {
        // Until the chain has told of it, nobody knows how many it takes.
        until(directory, id, "partial:1:2")["signatures"]["collected"].as_u64()
    });
    assert_eq!(collected, 1);

    // Signed, with that one and the one that was missing: the Bitcoin node is away.
    bitcoind.stop();
    (simulator, _) = governance(port, &args);
    until(directory, id, "signed");
    running.kill();
    running = start(directory, &endpoint, &bitcoind);
    let signed = wait_for("trouble", || {
        let signed = until(directory, id, "signed");
        signed["trouble"].is_string().then_some(signed)
    });
    let trouble = signed["trouble"].as_str().expect("text");
    assert!(trouble.contains("unavailable"), "{trouble}");

    // Broadcast: nobody mines.
    bitcoind.run();
    let txid = until(directory, id, "broadcast")["txid"].clone();
    let txid = txid.as_str().expect("text");
    assert!(bitcoind.in_mempool(txid));
    running.kill();
    running = start(directory, &endpoint, &bitcoind);
    until(directory, id, "broadcast");

    // Confirmed, and deeper while nobody looks.
    bitcoind.mine(1);
    until(directory, id, "confirmed:1");
    running.kill();
    bitcoind.mine(1);
    running = start(directory, &endpoint, &bitcoind);
    until(directory, id, "confirmed:2");

    // Completed, for good.
    bitcoind.mine(1);
    until(directory, id, "completed");
    running.kill();
    running = start(directory, &endpoint, &bitcoind);
    let completed = until(directory, id, "completed");
    assert_eq!(completed["succeeded"], true);
    let again = initiate(directory, &form);
    assert_eq!(again["state"], "completed", "the same again is the same");
    let burn = completed["burns"][0].as_str().expect("text");
    let payment = wait_for("the chain's note", || {
        let path = format!("/payments/{burn}");
        let (_, payments) = ask(directory, "GET", &path, &Value::Null)?;
        Some(payments[0].clone()).filter(Value::is_object)
    });
    assert_eq!(payment["request_id"], id);
    for key in ["txid", "block", "height"] {
        assert_eq!(payment[key], completed[key], "{key}");
    }

    let paid = amount(1);
    assert_eq!(bitcoind.balance(&owner(1).to_string()), paid);
    let fee = Amount::from_sat(2_000);
    assert_eq!(bitcoind.balance(&address), before - paid - fee);
    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
}

#[test]
fn a_reorganisation_takes_a_pegout_back_and_it_is_broadcast_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let Some(mut bitcoind) = Bitcoind::start(directory) else {
        return;
    };
    let federation = federation();
    let address = federation.address.to_string();
    let coins = bitcoind.fund(&address, 1);
    let before = bitcoind.balance(&address);
    let (simulator, endpoint) = governance(0, &[]);
    let running = start(directory, &endpoint, &bitcoind);
    let id = initiate(directory, &form(&federation, 1, &coins, 2_000))["request_id"].clone();
    let id = id.as_str().expect("text");
    until(directory, id, "broadcast");
    bitcoind.mine(1);
    let first = until(directory, id, "confirmed:1");

    // The block is taken back, and the transaction waits for another one.
    bitcoind.take_back();
    let back = until(directory, id, "broadcast");
    let txid = back["txid"].as_str().expect("text");
    bitcoind.mine(2);
    let second = until(directory, id, "confirmed:2");
    assert_ne!(first["block"], second["block"]);

    // It is taken back again, and this time the node forgets the transaction.
    bitcoind.take_back();
    bitcoind.take_back();
    bitcoind.stop();
    bitcoind.run();
    wait_for("the transaction, again", || {
        bitcoind.in_mempool(txid).then_some(())
    });
    until(directory, id, "broadcast");
    bitcoind.mine(DEPTH);
    until(directory, id, "completed");

    let (paid, fee) = (amount(1), Amount::from_sat(2_000));
    assert_eq!(bitcoind.balance(&owner(1).to_string()), paid);
    assert_eq!(bitcoind.balance(&address), before - paid - fee);
    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
}

#[test]
fn of_two_transactions_for_a_burn_one_is_mined_and_the_other_superseded() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let Some(bitcoind) = Bitcoind::start(directory) else {
        return;
    };
    let federation = federation();
    let address = federation.address.to_string();
    let coins = bitcoind.fund(&address, 2);
    let before = bitcoind.balance(&address);
    let (simulator, endpoint) = governance(0, &[]);
    let running = start(directory, &endpoint, &bitcoind);
    initiate(directory, &form(&federation, 1, &coins[..1], 1_000));
    until(directory, "pegout-1-1000", "broadcast");

    // With another coin it could be mined too: nobody is asked to sign it.
    let rival = form(&federation, 1, &coins[1..], 5_000);
    let (status, refused) = ask(directory, "POST", "/pegouts", &rival).expect("answers");
    let refused = refused["error"].as_str().expect("an error");
    assert_eq!(status, 409, "{refused}");
    assert!(
        refused.contains("paid by request pegout-1-1000 already"),
        "{refused}"
    );

    // With the same coin and a higher fee it takes the first one's place.
    let mut better = form(&federation, 1, &coins[..1], 20_000);
    better["replaces"] = "pegout-1-1000".into();
    initiate(directory, &better);
    until(directory, "pegout-1-20000", "broadcast");
    wait_for("the first one's trouble", || {
        let path = "/pegouts/pegout-1-1000";
        let (_, pegout) = ask(directory, "GET", path, &Value::Null)?;
        let trouble = pegout["trouble"].as_str()?;
        trouble.contains("offered again").then_some(())
    });
    bitcoind.mine(DEPTH);
    until(directory, "pegout-1-20000", "completed");
    let superseded = until(directory, "pegout-1-1000", "superseded");
    assert_eq!(superseded["text"], "superseded by pegout-1-20000");

    let (paid, fee) = (amount(1), Amount::from_sat(20_000));
    assert_eq!(bitcoind.balance(&owner(1).to_string()), paid);
    assert_eq!(bitcoind.balance(&address), before - paid - fee);
    assert!(running.terminate(), "drains and ends well");
    assert!(simulator.terminate(), "no violation");
}

#[test]
fn a_rotation_leaves_pending_pegouts_to_the_version_they_were_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let Some(bitcoind) = Bitcoind::start(directory) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("starts");
    let simulator = runtime.block_on(Simulator::start(SimulatorConfig::default()));
    let simulator = simulator.expect("starts");
    let first = simulator.federation(1).expect("the first");
    let old = first.address.to_string();
    let coins = bitcoind.fund(&old, 2);
    let before = bitcoind.balance(&old);
    let mut running = start(directory, &simulator.endpoints()[0], &bitcoind);

    // One is on the network, one is not even asked for, when the federation changes.
    let sent = initiate(directory, &form(&first, 1, &coins[..1], 2_000));
    let sent = sent["request_id"].as_str().expect("text").to_owned();
    until(directory, &sent, "broadcast");
    let act = |path: &str, body: Value| {
        let (status, answer) = ask(directory, "POST", path, &body).expect("an answer");
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    act("/pause-pegouts", Value::Null);
    let waiting = initiate(directory, &form(&first, 2, &coins[1..], 2_000));
    let waiting = waiting["request_id"].as_str().expect("text").to_owned();
    until(directory, &waiting, "requested");
    let plan = RotationPlan {
        members: 3,
        threshold: 2,
        activation_height: 110,
        notice_blocks: 10,
        grace_blocks: 50,
        kind: proto::FederationUpdateKind::Scheduled,
    };
    let second = simulator.rotate_federation(&plan).expect("possible");
    wait_for("the next version", || {
        let (_, shown) = ask(directory, "GET", "/federation", &Value::Null)?;
        shown["scheduled"][0].is_object().then_some(())
    });
    running.kill();
    running = start(directory, &simulator.endpoints()[0], &bitcoind);
    let active = wait_for("a node", || {
        let body = json!({ "height": 115, "reorganised": false });
        let (status, answer) = ask(directory, "POST", "/chain/height", &body)?;
        (status == 200).then_some(answer)
    });
    assert_eq!(active["active_version"], 2);
    act("/resume-pegouts", Value::Null);
    until(directory, &waiting, "broadcast");

    // From now on the next one's coins are spent, by the next one.
    let new = second.address.to_string();
    let theirs = bitcoind.fund(&new, 1);
    let theirs_before = bitcoind.balance(&new);
    until(directory, &sent, "completed");
    until(directory, &waiting, "completed");
    let third = initiate(directory, &form(&second, 3, &theirs, 2_000));
    let third = third["request_id"].as_str().expect("text").to_owned();
    until(directory, &third, "broadcast");
    bitcoind.mine(DEPTH);
    until(directory, &third, "completed");

    let fee = Amount::from_sat(2_000);
    for number in 1..=3 {
        let owner = owner(number).to_string();
        assert_eq!(bitcoind.balance(&owner), amount(number));
    }
    let paid = amount(1) + amount(2) + fee + fee;
    assert_eq!(bitcoind.balance(&old), before - paid);
    assert_eq!(bitcoind.balance(&new), theirs_before - amount(3) - fee);
    assert!(running.terminate(), "drains and ends well");
    simulator.assert_clean();
}
