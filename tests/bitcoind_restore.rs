//! A restored store and real coins: a node under load is backed up, killed and restored elsewhere, and
//! the money adds up to the satoshi.
//!
//! `RESTORE_SECONDS` in the environment is how long the load lasts, in rounds of half a minute, each of
//! which backs up and restores the store of the round before. With `-- --nocapture` the test prints what
//! happened.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails"
)]
#![cfg(all(unix, feature = "cli"))]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use bitcoin::{
    Address, Amount, Network, OutPoint, PubkeyHash, ScriptBuf, WPubkeyHash, hashes::Hash,
};
use governance_stream::{
    proto,
    simulator::{
        FederationView,
        record::{self, What},
        wallet,
    },
};
use prost::Message as _;
use serde_json::{Value, json};
use support::{
    bitcoind::Bitcoind,
    process::{
        PATIENCE, Process, ask, binary, data, federation, free_port, governance, node,
        until_healthy, wait_for,
    },
};

/// Blocks that complete a peg-out here.
const DEPTH: u32 = 3;
const BLOCK_INTERVAL: Duration = Duration::from_millis(200);
const COIN: Amount = Amount::from_sat(2_000_000);
/// Coins of that value which one block's reward gives.
const COINS_OF_A_BLOCK: usize = 2_400;
const FEE: Amount = Amount::from_sat(2_000);
/// Callers that wait for their peg-outs' ends, and how many each has under way at a time.
const PATIENT: usize = 3;
const UNDER_WAY: usize = 10;
/// Callers that come later, and ask on and on.
const IMPATIENT: usize = 2;
/// Peg-outs that they are to bring to governance, and then to the node alone, before it dies.
const CAUGHT: usize = 15;
/// Burns of each round for which another transaction is asked for in vain.
const RIVALS: usize = 10;

fn owner(number: u64) -> Address {
    let hash = WPubkeyHash::from_raw_hash(PubkeyHash::hash(&number.to_le_bytes()).to_raw_hash());
    let script = ScriptBuf::new_p2wpkh(&hash);
    Address::from_script(&script, Network::Regtest).expect("an address")
}

fn amount(number: u64) -> Amount {
    Amount::from_sat(1_000_000 + number)
}

/// The federation's coins, as a wallet outside of the node has them: each is spent by one peg-out.
struct Wallet {
    federation: FederationView,
    coins: Vec<(OutPoint, Amount)>,
    next: AtomicUsize,
}

impl Wallet {
    /// The peg-out of burn `number` with the next coin, and its id.
    fn form(&self, number: u64) -> (String, Value) {
        let coin = self.coins.get(self.next.fetch_add(1, Ordering::Relaxed));
        let coin = coin.expect("there are enough coins");
        let script = owner(number).script_pubkey();
        let psbt = wallet::spend(&self.federation, &[*coin], script, amount(number), FEE);
        let id = format!("burn-{number}-{}", coin.0.vout);
        let form = json!({
            "request_id": id,
            "psbt": psbt.expect("covered").to_string(),
            "burns": [{
                "burn_tx_hash": format!("{number:064x}"),
                "log_index": 0,
                "block_hash": "01".repeat(32),
                "block_height": 1,
                "output_index": 0,
                "amount_sat": amount(number).to_sat(),
                "address": owner(number),
            }],
            "max_fee_sat": FEE.to_sat(),
            "federation_version": 1,
        });
        (id, form)
    }
}

/// A burn that somebody asked to have paid.
#[derive(Debug, Clone)]
struct Asked {
    /// Of its last request.
    id: String,
    form: Value,
}

struct Load {
    wallet: Wallet,
    next: AtomicU64,
    /// Also what the node never answered to, because it died.
    asked: Mutex<BTreeMap<u64, Asked>>,
    accepted: AtomicUsize,
}

impl Load {
    /// Asks for one peg-out after the other and notifies a deposit with each, until there is to be an
    /// end. With no more than `under_way` that have not come to theirs.
    fn call(&self, directory: &Path, under_way: usize, stop: &AtomicBool) {
        let mut open: VecDeque<String> = VecDeque::new();
        while !stop.load(Ordering::Relaxed) {
            while open.len() >= under_way && !stop.load(Ordering::Relaxed) {
                if Self::has_ended(directory, &open[0]) {
                    open.pop_front();
                }
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (id, form) = self.wallet.form(number);
            let asked = Asked {
                id: id.clone(),
                form: form.clone(),
            };
            self.asked.lock().expect("whole").insert(number, asked);
            if insist(directory, "/pegouts", &form, stop) {
                self.accepted.fetch_add(1, Ordering::Relaxed);
                open.push_back(id);
            }
            insist(directory, "/pegins", &deposit(number).1, stop);
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits a while for another state of a peg-out.
    fn has_ended(directory: &Path, id: &str) -> bool {
        let path = format!("/pegouts/{id}");
        let Some((200, now)) = ask(directory, "GET", &path, &Value::Null) else {
            return false;
        };
        if now["ended"] == true {
            return true;
        }
        let state = now["state"].as_str().expect("text");
        ask(
            directory,
            "GET",
            &format!("{path}/after/{state}"),
            &Value::Null,
        );
        false
    }

    fn asked(&self) -> BTreeMap<u64, Asked> {
        self.asked.lock().expect("whole").clone()
    }
}

/// The deposit that comes with a peg-out, and its notice.
fn deposit(number: u64) -> (String, Value) {
    let deposit = support::deposit(u32::try_from(number).expect("small"));
    let outpoint = deposit.outpoint().to_string();
    let notice = json!({
        "outpoint": outpoint,
        "amount_sat": 1000,
        "evm_address": format!("0x{}", "07".repeat(20)),
    });
    (outpoint, notice)
}

/// Asks until it is accepted; whether it was before the end.
fn insist(directory: &Path, path: &str, body: &Value, stop: &AtomicBool) -> bool {
    let began = Instant::now();
    loop {
        match ask(directory, "POST", path, body) {
            Some((200, _)) => return true,
            Some((status, answer)) if status < 500 && status != 422 && status != 429 => {
                panic!("{path}: {status} {answer}: {body}");
            }
            Some(_) | None => {}
        }
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        assert!(began.elapsed() < PATIENCE, "{path} was never accepted");
        std::thread::yield_now();
    }
}

/// Has a block mined in each interval, whatever else happens, until `stop` is dropped.
fn mine(bitcoind: &Bitcoind, stop: &mpsc::Receiver<()>) {
    while stop.recv_timeout(BLOCK_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
        bitcoind.mine(1);
    }
}

/// Where a node is or was, and what an operator does about it.
struct Site<'a> {
    directory: PathBuf,
    bitcoind: &'a Bitcoind,
    endpoint: String,
}

impl Site<'_> {
    fn start(&self) -> Process {
        let cookie = self.bitcoind.cookie_file();
        let set = [
            "features.http=false".to_owned(),
            "telemetry.log=warn".to_owned(),
            "connection.backoff.initial=5ms".to_owned(),
            "connection.backoff.max=50ms".to_owned(),
            format!("bridge.confirmations={DEPTH}"),
            "bridge.poll_interval=200ms".to_owned(),
            format!("bridge.bitcoind.url={}", self.bitcoind.url()),
            format!("bridge.bitcoind.cookie_file={}", cookie.display()),
        ];
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        node(&self.directory, &self.endpoint, &set)
    }

    /// What a command about this node prints, as JSON. It must come out well.
    fn command(&self, args: &[&str]) -> Value {
        let mut command = binary();
        command.args(args).arg("--json").arg("--data-dir");
        let done = command.arg(data(&self.directory)).output().expect("runs");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{args:?}: {said}");
        serde_json::from_slice(&done.stdout).expect("JSON")
    }

    fn status(&self) -> Option<Value> {
        let (status, shown) = ask(&self.directory, "GET", "/status", &Value::Null)?;
        (status == 200).then_some(shown)
    }

    /// The bridge's peg-outs and their states.
    fn pegouts(&self) -> BTreeMap<String, String> {
        let mut known = BTreeMap::new();
        let mut before = String::new();
        loop {
            let path = format!("/pegouts?limit=256{before}");
            let listed = wait_for("the bridge", || {
                let (status, listed) = ask(&self.directory, "GET", &path, &Value::Null)?;
                (status == 200).then_some(listed)
            });
            for pegout in listed["pegouts"].as_array().expect("a list") {
                let text = |key: &str| pegout[key].as_str().expect("text").to_owned();
                known.insert(text("request_id"), text("state"));
            }
            match listed["next"].as_u64() {
                Some(next) => before = format!("&before={next}"),
                None => return known,
            }
        }
    }

    fn insist(&self, path: &str, body: &Value) {
        let never = AtomicBool::new(false);
        assert!(insist(&self.directory, path, body, &never));
    }

    /// The node never asks for signatures for this.
    fn refuses(&self, (id, form): &(String, Value)) {
        wait_for("a refusal", || {
            match ask(&self.directory, "POST", "/pegouts", form)? {
                (409, refused) => {
                    let reason = refused["error"].as_str().expect("text");
                    assert!(reason.contains("paid by request"), "{id}: {reason}");
                    Some(())
                }
                // It is recorded, and the stream has no word on it yet.
                (200, shown) if shown["state"] == "requested" => None,
                (200, shown) => panic!("{id}: {shown}"),
                (_, _) => None,
            }
        });
    }

    fn listed(&self) -> Option<Value> {
        let path = "/pegouts?limit=1";
        let (status, listed) = ask(&self.directory, "GET", path, &Value::Null)?;
        (status == 200).then_some(listed)
    }

    fn paused_by(&self) -> Option<String> {
        self.listed()?["paused_by"].as_str().map(str::to_owned)
    }

    /// Waits until every peg-out and every request has come to its end.
    fn settle(&self) {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        while least > 0 {
            let left = || {
                let requests = self.status()?["open_requests"].as_u64()?;
                Some(self.listed()?["open"].as_u64()? + requests)
            };
            match left() {
                Some(left) if left < least => (least, since) = (left, Instant::now()),
                _ => std::thread::yield_now(),
            }
            assert!(
                since.elapsed() < PATIENCE,
                "{least} never come to their end"
            );
        }
    }

    /// Waits until governance has answered these deposits.
    fn until_answered(&self, deposits: &BTreeSet<String>) {
        wait_for("every deposit's answer", || {
            let (_, shown) = ask(&self.directory, "GET", "/pegins", &Value::Null)?;
            let answered = shown["answered"].as_array()?.iter();
            let answered: BTreeSet<String> = answered
                .filter_map(|outpoint| outpoint.as_str().map(str::to_owned))
                .collect();
            (answered == *deposits).then_some(())
        });
    }
}

/// Requests that governance has ever taken from the node.
fn taken(record: &Path) -> BTreeSet<String> {
    let facts = record::read(record).expect("readable").into_iter();
    let taken = facts.filter_map(|fact| match fact.what {
        Some(What::Arrived(message)) if message.kind() == proto::Kind::SignatureRequest => {
            let request = proto::SignatureRequest::decode(message.payload);
            Some(request.expect("decodes").request_id)
        }
        _ => None,
    });
    taken.collect()
}

/// How many of these burns the chain shows as paid.
fn paid(bitcoind: &Bitcoind, burns: impl IntoIterator<Item = u64>) -> usize {
    let owners: Vec<Address> = burns.into_iter().map(owner).collect();
    bitcoind.holdings(&owners).len()
}

/// Callers of one kind, all of whom go on until the end of a round.
struct Callers<'scope>(Vec<ScopedJoinHandle<'scope, ()>>);

impl<'scope> Callers<'scope> {
    fn come(
        threads: &'scope Scope<'scope, '_>,
        count: usize,
        call: impl Fn() + Copy + Send + 'scope,
    ) -> Self {
        Self((0..count).map(|_| threads.spawn(call)).collect())
    }

    /// Waits until this holds, unless a caller fails.
    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        wait_for(what, || {
            let alive = self.0.iter().all(|caller| !caller.is_finished());
            assert!(alive, "a caller has failed");
            holds().then_some(())
        });
    }
}

/// Governance as a process that comes and goes.
struct Governance {
    port: u16,
    record: PathBuf,
    process: Option<Process>,
}

impl Governance {
    fn start(&mut self, args: &[&str]) -> String {
        self.end();
        let directory = ["--directory", self.record.to_str().expect("UTF-8")];
        let (process, endpoint) = governance(self.port, &[&directory, args].concat());
        self.process = Some(process);
        endpoint
    }

    fn end(&mut self) {
        if let Some(process) = self.process.take() {
            assert!(process.terminate(), "no violation");
        }
    }
}

/// What became of the burns, in the rounds that they were asked for in.
#[derive(Debug, Default)]
struct Figures {
    completed_in_the_backup: usize,
    under_way_in_the_backup: usize,
    asked_for_after_it: usize,
    of_these_on_the_chain_before_the_restore: usize,
    of_these_recalled: usize,
    of_these_lost_and_asked_for_again: usize,
    rivals_refused: usize,
}

/// Load until a sudden death, with a backup in the middle of it.
fn live_and_die(
    site: &Site<'_>,
    mut running: Process,
    backup: &str,
    governance: &mut Governance,
    load: &Load,
    time: Duration,
) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let _stops = StopsAtLast(&stop);
        let call = || load.call(&site.directory, UNDER_WAY, &stop);
        let patient = Callers::come(threads, PATIENT, call);
        let began = Instant::now();
        patient.until("the backup's time", || began.elapsed() > time * 2 / 5);
        let before = load.accepted();
        site.command(&["backup", backup]);
        patient.until("more after the backup", || load.accepted() > before);
        patient.until("the end's time", || began.elapsed() > time);

        // When it dies, some are at governance without enough signatures, and some at the node alone.
        governance.start(&["--offline-members", "2"]);
        until_healthy(&site.directory);
        let before = load.accepted();
        let call = || load.call(&site.directory, usize::MAX, &stop);
        let impatient = Callers::come(threads, IMPATIENT, call);
        impatient.until("requests", || load.accepted() > before + CAUGHT);
        governance.end();
        let before = load.accepted();
        impatient.until("more requests", || load.accepted() > before + CAUGHT);
        running.kill();
    });
}

/// Ends the callers, also when the test fails.
struct StopsAtLast<'a>(&'a AtomicBool);

impl Drop for StopsAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What an operator does about a node that is dead, up to the word that lets the peg-outs go on, as
/// `docs/operations.md` has it. The new node, and what was in its store at first.
fn restore(
    site: &Site<'_>,
    backup: &str,
    governance: &mut Governance,
    load: &Load,
) -> (Process, BTreeMap<String, String>) {
    site.command(&["backup", "--verify", backup]);
    let restored = site.command(&["restore", backup]);
    let stats = site.command(&["store", "stats"]);
    let shown = &stats["store"]["restored"];
    assert_eq!(shown["restore_id"], restored["restore_id"]);
    governance.start(&[]);
    let running = site.start();
    let outbox = wait_for("a quarantined node", || {
        let status = site.status()?;
        let fault = status["connection"]["last_fault"].as_str()?;
        let (_, outbox) = fault.split_once("permit outbox ")?;
        outbox.split(',').next().map(str::to_owned)
    });
    let restored = site.pegouts();
    governance.start(&["--permit", &format!("node-1:{outbox}")]);
    site.command(&["resume", "--restored", "--yes"]);
    wait_for("the end of the restoration", || {
        (site.status()?["restoration"] == "none").then_some(())
    });
    for number in load.asked().into_keys() {
        site.insist("/pegins", &deposit(number).1);
    }
    (running, restored)
}

/// Asks again for what is lost, and in vain for others that were not.
fn ask_again(
    site: &Site<'_>,
    load: &Load,
    known: &BTreeMap<String, String>,
    asked: &BTreeMap<u64, Asked>,
    taken: &BTreeSet<String>,
    figures: &mut Figures,
) {
    let mut rivals = RIVALS;
    for (number, asked) in asked {
        if known.contains_key(&asked.id) {
            assert!(taken.contains(&asked.id), "from nowhere: {asked:?}");
            figures.of_these_recalled += 1;
            if rivals > 0 {
                rivals -= 1;
                site.refuses(&load.wallet.form(*number));
                figures.rivals_refused += 1;
            }
            continue;
        }
        assert!(!taken.contains(&asked.id), "not recalled: {asked:?}");
        figures.of_these_lost_and_asked_for_again += 1;
        // The same again; or for another transaction, as a wallet may that was restored as well.
        let (id, form) = if number % 2 == 0 {
            (asked.id.clone(), asked.form.clone())
        } else {
            load.wallet.form(*number)
        };
        site.insist("/pegouts", &form);
        let again = Asked { id, form };
        load.asked.lock().expect("whole").insert(*number, again);
    }
}

#[test]
fn backed_up_killed_and_restored_under_load_a_node_pays_each_burn_once() {
    let seconds = std::env::var("RESTORE_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(4));
    let rounds = u32::try_from(time.as_secs().div_ceil(30)).expect("small");
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let Some(bitcoind) = Bitcoind::start(directory) else {
        return;
    };
    let bitcoind = &bitcoind;
    let federation = federation();
    let address = federation.address.clone();
    let coins = bitcoind.share_out(&address, COIN, COINS_OF_A_BLOCK, rounds);
    let start = bitcoind.balance(&address.to_string());
    assert_eq!(start, COIN * coins.len() as u64);
    let load = &Load {
        wallet: Wallet {
            federation,
            coins,
            next: AtomicUsize::new(0),
        },
        next: AtomicU64::new(0),
        asked: Mutex::default(),
        accepted: AtomicUsize::new(0),
    };
    let mut governance = Governance {
        port: free_port(),
        record: directory.join("governance"),
        process: None,
    };
    let endpoint = governance.start(&[]);
    let site = |number: u32| {
        let site = Site {
            directory: directory.join(format!("node-{number}")),
            bitcoind,
            endpoint: endpoint.clone(),
        };
        std::fs::create_dir(&site.directory).expect("new");
        site
    };
    let mut figures = Figures::default();
    std::thread::scope(|threads| {
        let (miner, stop) = mpsc::channel();
        threads.spawn(move || mine(bitcoind, &stop));
        let mut here = site(0);
        let mut running = here.start();
        until_healthy(&here.directory);
        for round in 1..=rounds {
            let backup = directory.join(format!("backup-{round}"));
            let backup = backup.to_str().expect("UTF-8");
            let first = load.next.load(Ordering::Relaxed);
            let of_this_round = time / rounds;
            live_and_die(&here, running, backup, &mut governance, load, of_this_round);
            wait_for("an empty mempool", || {
                (bitcoind.mempool() == 0).then_some(())
            });
            let asked = load.asked();
            let paid_before = paid(bitcoind, asked.keys().copied());
            let taken = taken(&governance.record);

            here = site(round);
            let restored;
            (running, restored) = restore(&here, backup, &mut governance, load);
            let known = here.pegouts();
            // Nothing is offered until somebody says so.
            assert!(here.paused_by().is_some_and(|by| by.contains("restore")));
            assert_eq!(bitcoind.mempool(), 0);
            assert_eq!(paid(bitcoind, asked.keys().copied()), paid_before);
            here.command(&["pegouts", "resume", "--yes"]);

            let mut new = asked.clone();
            new.retain(|_, asked| !restored.contains_key(&asked.id));
            let backed_up = asked.range(first..);
            let backed_up = backed_up.filter_map(|(_, asked)| restored.get(&asked.id));
            let (completed, under_way): (Vec<&String>, Vec<&String>) =
                backed_up.partition(|state| *state == "completed");
            figures.completed_in_the_backup += completed.len();
            figures.under_way_in_the_backup += under_way.len();
            figures.asked_for_after_it += new.len();
            figures.of_these_on_the_chain_before_the_restore += paid(bitcoind, new.keys().copied());
            ask_again(&here, load, &known, &new, &taken, &mut figures);
            here.settle();
        }
        let deposits = load.asked().into_keys().map(|number| deposit(number).0);
        here.until_answered(&deposits.collect());
        assert!(running.terminate(), "drains and ends well");
        drop(miner);
    });
    governance.end();

    // Each burn is paid once, to its owner and in full, and nobody else has anything of it.
    assert_eq!(bitcoind.mempool(), 0);
    let burns: Vec<u64> = load.asked().into_keys().collect();
    let owners: Vec<Address> = burns.iter().copied().map(owner).collect();
    let holdings = bitcoind.holdings(&owners);
    for (number, owner) in burns.iter().zip(&owners) {
        let held = holdings.get(&owner.script_pubkey());
        assert_eq!(held, Some(&vec![amount(*number)]), "burn {number}");
    }
    let paid: Amount = burns.iter().copied().map(amount).sum();
    let fees = FEE * burns.len() as u64;
    let left = bitcoind.balance(&address.to_string());
    assert_eq!(start - paid - fees, left);
    assert!(
        figures.completed_in_the_backup > 0
            && figures.of_these_on_the_chain_before_the_restore > 0
            && figures.of_these_recalled > 0
            && figures.of_these_lost_and_asked_for_again > 0,
        "it shows nothing: {figures:?}"
    );
    let burns = burns.len();
    println!("{burns} burns in {rounds} rounds: {figures:#?}");
    println!("{start} - {paid} paid - {fees} in fees = {left} left");
}
