//! Node and governance are killed again and again, at any moment, and nothing is lost or doubled.
//!
//! `KILLS` and `KILL_SEED` in the environment make it longer or another one.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails; real processes take real time"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use governance_stream::{
    bridge::{PegoutStage, recorded_pegout},
    history::{History, Page, Standing},
    message::Outcome,
    proto,
    simulator::{
        FederationView,
        record::{self, Fact, What},
    },
    storage::{ReadOnlyFile, Snapshot, StoreIdentity},
};
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use support::process::{
    self, ask, data, free_port, governance, node, outbox, pegout_form, wait_for,
};

/// Most messages that a subscriber is handed at once.
const BATCH: u64 = 256;
const LANES: u64 = 4;
const EVERYTHING: Page = Page {
    before: None,
    limit: usize::MAX,
};
/// Callers that submit at the same time.
const CALLERS: u64 = 4;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// What callers were promised.
#[derive(Default)]
struct Accepted {
    requests: Mutex<BTreeSet<String>>,
    pegins: Mutex<BTreeSet<String>>,
    refusals: AtomicU64,
}

/// Submits one request and one deposit after the other, each until it is accepted.
fn submit(
    directory: &Path,
    federation: &FederationView,
    caller: u64,
    accepted: &Accepted,
    stop: &AtomicBool,
) {
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let number = round * CALLERS + caller;
        let (id, request) = pegout_form(federation, number);
        insist(directory, "/requests", &request, accepted);
        accepted.requests.lock().expect("whole").insert(id);

        let vout = u32::try_from(number).expect("small");
        let outpoint = support::deposit(vout).outpoint().to_string();
        let pegin = json!({
            "outpoint": outpoint,
            "amount_sat": 1000,
            "evm_address": "0x0707070707070707070707070707070707070707",
        });
        insist(directory, "/pegins", &pegin, accepted);
        accepted.pegins.lock().expect("whole").insert(outpoint);
    }
}

/// Asks until it is accepted: a node that is dead, starting or unsure is asked again.
fn insist(directory: &Path, path: &str, body: &Value, accepted: &Accepted) {
    let began = Instant::now();
    loop {
        match ask(directory, "POST", path, body) {
            Some((200, _)) => return,
            Some((status, answer)) if status < 500 && status != 422 && status != 429 => {
                panic!("{path}: {status} {answer}: {body}");
            }
            // The bridge does not know its federations yet, or the stream is not up.
            Some(_) => {
                accepted.refusals.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        assert!(
            began.elapsed() < support::PATIENCE,
            "{path} was never accepted: {body}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killed_at_any_moment_nothing_is_lost_or_doubled() {
    let kills = from_environment("KILLS", 200);
    let mut random = StdRng::seed_from_u64(from_environment("KILL_SEED", 7));
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let record = directory.join("governance");
    let record_dir = record.to_str().expect("UTF-8").to_owned();
    let port = free_port();
    let start_governance = || governance(port, &["--directory", &record_dir]);
    let start_node = |endpoint: &str| {
        node(
            directory,
            endpoint,
            &[
                "features.http=false",
                "connection.backoff.initial=5ms",
                "connection.backoff.max=50ms",
                "telemetry.log=warn",
            ],
        )
    };
    let federation = process::federation();
    let (accepted, stop) = (Accepted::default(), AtomicBool::new(false));
    let (mut simulator, endpoint) = start_governance();
    let mut running = start_node(&endpoint);
    let (mut node_kills, mut governance_kills, mut checked) = (0, 0, 0);
    let began = Instant::now();
    std::thread::scope(|threads| {
        for caller in 0..CALLERS {
            let (federation, accepted, stop) = (&federation, &accepted, &stop);
            threads.spawn(move || submit(directory, federation, caller, accepted, stop));
        }
        for _ in 0..kills {
            // Sometimes before it is up, sometimes in the middle of its work.
            std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
            let (kill_node, kill_governance) = match random.random_range(0..10) {
                0..5 => (true, false),
                5..8 => (false, true),
                _ => (true, true),
            };
            if kill_node {
                if !running.is_running() {
                    let log = std::fs::read_to_string(directory.join("node.log"));
                    let log = log.unwrap_or_default();
                    let last: Vec<&str> = log.lines().rev().take(10).collect();
                    panic!("it ended by itself; its log, last line first: {last:#?}");
                }
                running.kill();
                node_kills += 1;
                checked += check_users(directory);
            }
            if kill_governance {
                simulator.kill();
                governance_kills += 1;
                simulator = start_governance().0;
            }
            if kill_node {
                running = start_node(&endpoint);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let requests = accepted.requests.into_inner().expect("whole");
    let pegins = accepted.pegins.into_inner().expect("whole");
    println!(
        "{node_kills} kills of the node, {governance_kills} of governance in {:?}: {} requests, {} \
         deposits accepted, {} times asked to come again",
        began.elapsed(),
        requests.len(),
        pegins.len(),
        accepted.refusals.into_inner(),
    );
    println!("{checked} peg-outs were compared with their requests after crashes");
    settle(directory, &requests, &pegins);
    let deliveries = ask(directory, "GET", "/deliveries", &Value::Null)
        .expect("answers")
        .1;
    assert!(running.terminate(), "the node drains and ends well");
    assert!(simulator.terminate(), "governance saw no violation");

    check_store(directory, &requests);
    assert_eq!(check_users(directory), requests.len(), "one peg-out each");
    check_record(
        &record::read(&record).expect("readable"),
        &requests,
        &pegins,
    );
    check_deliveries(&deliveries, node_kills);
    let signed = std::fs::read_dir(outbox(directory)).expect("there").count();
    assert_eq!(
        signed,
        requests.len(),
        "each is signed and handed over once"
    );
}

/// Waits until everything that was accepted has come to its end.
fn settle(directory: &Path, requests: &BTreeSet<String>, pegins: &BTreeSet<String>) {
    wait_for("the end of everything", || {
        let (_, status) = ask(directory, "GET", "/status", &Value::Null)?;
        let lanes = status["lanes"].as_array()?;
        let sent = lanes.iter().all(|lane| lane["unacknowledged"] == 0);
        (status["open_requests"] == 0 && sent).then_some(())
    });
    wait_for("every deposit's answer", || {
        let (_, answered) = ask(directory, "GET", "/pegins", &Value::Null)?;
        let answered = answered["answered"].as_array()?.iter();
        let answered: BTreeSet<String> = answered
            .filter_map(|outpoint| outpoint.as_str().map(str::to_owned))
            .collect();
        (answered == *pegins).then_some(())
    });
    wait_for("every signed transaction", || {
        let signed = std::fs::read_dir(outbox(directory)).ok()?.count();
        (signed == requests.len()).then_some(())
    });
}

/// Stream, bridge and chain in the store of a node that is dead, as the crash left it, fit each
/// other: the bridge has every request of the stream, and the signatures of every one that is
/// complete; the chain was told of none that the bridge has not completed. How many were compared.
fn check_users(directory: &Path) -> usize {
    let Ok(file) = ReadOnlyFile::inspect(&data(directory)) else {
        // It died before its store was made.
        assert!(!data(directory).join("store.redb").exists());
        return 0;
    };
    let snapshot = file.snapshot().expect("readable");
    let place = data(directory).display().to_string();
    // Each user begins with what it finds in a store that was only just made.
    let Ok(identity) = StoreIdentity::read(&place, &*snapshot) else {
        assert_eq!(snapshot.tables().expect("readable"), []);
        return 0;
    };
    let history = History::of(&*snapshot, &place, identity.hash_key());
    let open = history.open_requests(EVERYTHING).expect("readable");
    let settled = history.settled_requests(EVERYTHING).expect("readable");
    for record in open.iter().chain(&settled) {
        let id = &record.request.request_id;
        let pegout = recorded_pegout(&*snapshot, identity.hash_key(), id).expect("readable");
        let pegout = pegout.unwrap_or_else(|| panic!("the bridge does not know {id}"));
        let Standing::Settled { outcome, .. } = &record.standing else {
            continue;
        };
        assert_eq!(*outcome, Outcome::Complete, "{id}");
        assert!(
            matches!(
                pegout.stage(),
                PegoutStage::Signed | PegoutStage::Broadcast { .. }
            ),
            "{id} is complete, and its signatures are not there: {:?}",
            pegout.stage()
        );
        assert!(pegout.transaction().is_some(), "{id}");
    }
    // Nobody sees a block behind an outbox: nothing is completed, and nothing is paid.
    assert_eq!(rows(&*snapshot, "chain/payments"), 0);
    assert_eq!(rows(&*snapshot, "bridge/unreported"), 0);
    let pegouts = rows(&*snapshot, "bridge/pegouts");
    assert_eq!(rows(&*snapshot, "bridge/pegout_ids"), pegouts);
    assert_eq!(rows(&*snapshot, "bridge/live"), pegouts, "none is over");
    open.len() + settled.len()
}

fn rows(snapshot: &dyn Snapshot, table: &str) -> u64 {
    let tables = snapshot.tables().expect("readable").into_iter();
    tables
        .filter(|(name, _)| name == table)
        .map(|(_, rows)| rows)
        .sum()
}

/// Every accepted request has one outcome, and it is the good one: nothing was injected.
fn check_store(directory: &Path, requests: &BTreeSet<String>) {
    let file = ReadOnlyFile::inspect(&data(directory)).expect("the node is down");
    let snapshot = file.snapshot().expect("readable");
    let place = data(directory).display().to_string();
    let identity = StoreIdentity::read(&place, &*snapshot).expect("a store");
    let history = History::of(&*snapshot, &place, identity.hash_key());
    for id in requests {
        let id = id.parse().expect("valid");
        let record = history.request(&id).expect("readable");
        let record = record.expect("it was accepted");
        let Standing::Settled { outcome, .. } = &record.standing else {
            panic!("{id} has no outcome: {:?}", record.standing);
        };
        assert_eq!(*outcome, Outcome::Complete, "{id}");
    }
    let settled = history.settled_requests(EVERYTHING).expect("readable");
    assert_eq!(settled.len(), requests.len());
    let letters = history.dead_letters(EVERYTHING).expect("readable");
    assert!(letters.is_empty(), "{letters:?}");
}

/// Governance's own record: every lane contiguous and in order, everything once.
fn check_record(facts: &[Fact], requests: &BTreeSet<String>, pegins: &BTreeSet<String>) {
    let mut arrived: BTreeMap<i32, u64> = BTreeMap::new();
    let mut queued = BTreeSet::new();
    let (mut ids, mut seen_requests, mut seen_pegins) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for fact in facts {
        match &fact.what {
            Some(What::Arrived(message)) => {
                let last = arrived.entry(message.lane).or_default();
                assert_eq!(message.sequence, *last + 1, "lane {}", message.lane);
                *last = message.sequence;
                assert!(
                    ids.insert(message.message_id.clone()),
                    "a message came twice"
                );
                match message.kind() {
                    proto::Kind::SignatureRequest => {
                        let request = proto::SignatureRequest::decode(message.payload.clone());
                        let id = request.expect("decodes").request_id;
                        assert!(seen_requests.insert(id.clone()), "{id} came twice");
                    }
                    proto::Kind::PeginNotification => {
                        let deposit = proto::PeginNotification::decode(message.payload.clone());
                        let deposit = deposit.expect("decodes");
                        let txid = bitcoin::hashes::Hash::from_slice(&deposit.txid);
                        let txid = bitcoin::Txid::from_raw_hash(txid.expect("32 bytes"));
                        let outpoint = bitcoin::OutPoint::new(txid, deposit.vout).to_string();
                        assert!(
                            seen_pegins.insert(outpoint.clone()),
                            "{outpoint} came twice"
                        );
                    }
                    other => panic!("{} was not asked for", other.as_str_name()),
                }
            }
            Some(What::Queued(message)) => {
                assert!(queued.insert(message.message_id.clone()), "answered twice");
            }
            _ => {}
        }
    }
    assert_eq!(seen_requests, *requests, "accepted is what governance has");
    assert_eq!(seen_pegins, *pegins);
}

/// The bridge was handed each message once, but for the batches in flight when a node died.
fn check_deliveries(deliveries: &Value, crashes: u64) {
    let deliveries = deliveries.as_array().expect("a list");
    assert!(!deliveries.is_empty());
    let times = |delivery: &Value| delivery["times"].as_u64().expect("a number");
    let again: u64 = deliveries.iter().map(|delivery| times(delivery) - 1).sum();
    let ids: BTreeSet<&str> = deliveries
        .iter()
        .map(|delivery| delivery["message_id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids.len(), deliveries.len(), "an identity is a message");
    println!("{again} redeliveries after {crashes} crashes");
    assert!(
        again <= crashes * LANES * BATCH,
        "{again} redeliveries after {crashes} crashes"
    );
}
