//! A real Bitcoin node on a chain of its own.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use bitcoin::{
    Address, Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
    absolute::LockTime,
    base64::{Engine as _, prelude::BASE64_STANDARD},
    consensus::encode::serialize_hex,
    transaction::Version,
};
use serde_json::{Value, json};

use super::process::{Process, free_port, wait_for};

/// A user beside the cookie, with the password `secret`: HMAC-SHA256 of it under the salt `00`.
const RPC_AUTH: &str =
    "-rpcauth=node:00$9d99c71b29e66632d629706e7b26d047dbb417a67e7997ecbe75f3dc08763692";

/// Where the daemon is: as the environment says, or where `scripts/install-bitcoind` puts it.
fn executable() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("BITCOIND_EXE") {
        return Some(PathBuf::from(named));
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bitcoind");
    installed.exists().then_some(installed)
}

pub struct Bitcoind {
    process: Option<Process>,
    executable: PathBuf,
    directory: PathBuf,
    port: u16,
}

/// Blocks that nobody follows are mined to other keys, so that no two are the same.
static MINERS: AtomicU64 = AtomicU64::new(0);

impl Bitcoind {
    /// One with an empty chain, or nothing where there is no daemon; that is said loudly.
    pub fn start(directory: &Path) -> Option<Self> {
        let Some(executable) = executable() else {
            // Past the test runner's capture, which would swallow it.
            let skipped =
                b"SKIPPED: no bitcoind; nothing was shown with one (scripts/install-bitcoind)\n";
            let _ = std::io::stderr().write_all(skipped);
            return None;
        };
        let directory = directory.join("bitcoind");
        fs::create_dir(&directory).expect("a new directory");
        let mut bitcoind = Self {
            process: None,
            executable,
            directory,
            port: free_port(),
        };
        bitcoind.run();
        Some(bitcoind)
    }

    /// Starts it again, with an empty mempool.
    pub fn run(&mut self) {
        let child = Command::new(&self.executable)
            .arg("-regtest")
            .arg(format!("-datadir={}", self.directory.display()))
            .arg(format!("-rpcport={}", self.port))
            .args([
                "-listen=0",
                "-dnsseed=0",
                "-disablewallet=1",
                "-persistmempool=0",
                "-dbcache=16",
                RPC_AUTH,
                "-par=1",
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("bitcoind starts");
        self.process = Some(Process(child));
        wait_for("bitcoind", || self.ask("getblockcount", &json!([])).ok());
    }

    /// Stops it as its operator would.
    pub fn stop(&mut self) {
        self.call("stop", json!([]));
        if let Some(mut process) = self.process.take() {
            wait_for("bitcoind's end", || (!process.is_running()).then_some(()));
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn cookie_file(&self) -> PathBuf {
        self.directory.join("regtest/.cookie")
    }

    fn ask(&self, method: &str, params: &Value) -> Result<Value, String> {
        let text = |error: std::io::Error| error.to_string();
        let cookie = fs::read_to_string(self.cookie_file()).map_err(text)?;
        let body = json!({ "method": method, "params": params }).to_string();
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).map_err(text)?;
        write!(
            connection,
            "POST / HTTP/1.1\r\nHost: bitcoind\r\nAuthorization: Basic {}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            BASE64_STANDARD.encode(cookie.trim()),
            body.len(),
        )
        .map_err(text)?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).map_err(text)?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
        let answer: Value = serde_json::from_str(body).map_err(|_| answer.clone())?;
        match &answer["error"] {
            Value::Null => Ok(answer["result"].clone()),
            error => Err(error.to_string()),
        }
    }

    pub fn call(&self, method: &str, params: Value) -> Value {
        wait_for(method, || match self.ask(method, &params) {
            Ok(answer) => Some(answer),
            // A node may ask so much at a time that nobody else gets a word in.
            Err(busy) if busy.contains("Work queue depth exceeded") => None,
            Err(error) => panic!("{method} {params}: {error}"),
        })
    }

    /// Mines to nobody.
    pub fn mine(&self, blocks: u32) {
        let key = MINERS.fetch_add(1, Ordering::Relaxed);
        let nobody = format!("raw(6a08{key:016x})");
        let described = self.call("getdescriptorinfo", json!([nobody]));
        self.call(
            "generatetodescriptor",
            json!([blocks, described["descriptor"]]),
        );
    }

    /// Gives `address` as many coins, spendable at once.
    pub fn fund(&self, address: &str, coins: u32) -> Vec<(OutPoint, Amount)> {
        self.call("generatetoaddress", json!([coins, address]));
        self.mine(100);
        self.coins(address)
    }

    /// Gives `address` so many coins of one value from each of so many blocks, spendable at once.
    pub fn share_out(
        &self,
        address: &Address,
        value: Amount,
        coins: usize,
        blocks: u32,
    ) -> Vec<(OutPoint, Amount)> {
        let anyone = json!([blocks, "raw(51)#8lvh9jxk"]);
        let mined = self.call("generatetodescriptor", anyone);
        self.mine(100);
        let mut given = Vec::new();
        for block in mined.as_array().expect("a list") {
            let block = self.call("getblock", json!([block, 1]));
            let paid: Txid = block["tx"][0]
                .as_str()
                .expect("text")
                .parse()
                .expect("an id");
            let coin = TxOut {
                value,
                script_pubkey: address.script_pubkey(),
            };
            let transaction = Transaction {
                version: Version::TWO,
                lock_time: LockTime::ZERO,
                input: vec![TxIn {
                    previous_output: OutPoint::new(paid, 0),
                    script_sig: ScriptBuf::new(),
                    sequence: Sequence::MAX,
                    witness: Witness::new(),
                }],
                output: vec![coin; coins],
            };
            // No mempool takes what spends anyone's coin, but a block may hold it.
            let transactions = [serialize_hex(&transaction)];
            self.call("generateblock", json!(["raw(6a)", transactions]));
            let txid = transaction.compute_txid();
            let outputs = (0..).take(coins);
            given.extend(outputs.map(|vout| (OutPoint::new(txid, vout), value)));
        }
        given
    }

    /// What each of these addresses has, coin by coin, by what the chain itself says.
    pub fn holdings(&self, addresses: &[Address]) -> BTreeMap<ScriptBuf, Vec<Amount>> {
        let addresses = addresses.iter();
        let descriptors: Vec<String> = addresses
            .map(|address| format!("addr({address})"))
            .collect();
        let scanned = self.call("scantxoutset", json!(["start", descriptors]));
        let mut holdings: BTreeMap<ScriptBuf, Vec<Amount>> = BTreeMap::new();
        for coin in scanned["unspents"].as_array().expect("a list") {
            let script = coin["scriptPubKey"].as_str().expect("text");
            let script = ScriptBuf::from_hex(script).expect("a script");
            let value = coin["amount"].as_f64().expect("a number");
            let value = Amount::from_btc(value).expect("an amount");
            holdings.entry(script).or_default().push(value);
        }
        holdings
    }

    /// What an address has, by what the chain itself says.
    pub fn coins(&self, address: &str) -> Vec<(OutPoint, Amount)> {
        let scanned = self.call(
            "scantxoutset",
            json!(["start", [format!("addr({address})")]]),
        );
        let coins = scanned["unspents"].as_array().expect("a list").iter();
        coins
            .map(|coin| {
                let txid = coin["txid"].as_str().expect("text").parse().expect("an id");
                let vout = coin["vout"].as_u64().expect("a number");
                let value = coin["amount"].as_f64().expect("a number");
                let outpoint = OutPoint::new(txid, u32::try_from(vout).expect("small"));
                (outpoint, Amount::from_btc(value).expect("an amount"))
            })
            .collect()
    }

    pub fn balance(&self, address: &str) -> Amount {
        self.coins(address).iter().map(|(_, value)| *value).sum()
    }

    /// Takes the best block back.
    pub fn take_back(&self) {
        let best = self.call("getbestblockhash", json!([]));
        self.call("invalidateblock", json!([best]));
    }

    /// How many transactions wait for a block.
    pub fn mempool(&self) -> usize {
        let mempool = self.call("getrawmempool", json!([]));
        mempool.as_array().expect("a list").len()
    }

    pub fn in_mempool(&self, txid: &str) -> bool {
        let mempool = self.call("getrawmempool", json!([]));
        let mut txids = mempool.as_array().expect("a list").iter();
        txids.any(|known| known == txid)
    }
}
