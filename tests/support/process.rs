//! Real processes, and what is said to them.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bitcoin::{Address, Network, hex::DisplayHex as _};
use governance_stream::{
    message::PegoutBinding,
    simulator::{FederationView, Simulator, SimulatorConfig},
};
use serde_json::{Value, json};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_governance-stream"));
    command.env_clear();
    command
}

/// Ends with the test, whatever becomes of it.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Asks it to stop, and waits: whether it ended well.
    pub fn terminate(mut self) -> bool {
        let pid = self.0.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(asked.expect("kill runs").success());
        self.0.wait().expect("ends").success()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

/// Governance as a process; its endpoint.
pub fn governance(port: u16, args: &[&str]) -> (Process, String) {
    let mut simulator = Process(
        binary()
            .args(["simulator", "--json", "--listen"])
            .arg(format!("127.0.0.1:{port}"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("starts"),
    );
    let mut line = String::new();
    let stdout = simulator.0.stdout.take().expect("piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let shown: Value = serde_json::from_str(&line).expect("JSON");
    let endpoint = shown["endpoints"][0].as_str().expect("an endpoint");
    (simulator, endpoint.to_owned())
}

/// A node's process, of the example's configuration but for `set`, with everything it keeps in
/// `directory`.
pub fn node(directory: &Path, endpoint: &str, set: &[&str]) -> Process {
    node_with(directory, endpoint, set, &[])
}

/// The same with variables of the environment.
pub fn node_with(
    directory: &Path,
    endpoint: &str,
    set: &[&str],
    environment: &[(&str, &str)],
) -> Process {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    let mut command = binary();
    command.args(["run", "--init", "--config"]).arg(example);
    for value in [
        format!("connection.endpoints={endpoint}"),
        format!("data_dir={}", data(directory).display()),
        format!("bridge.outbox_dir={}", outbox(directory).display()),
    ] {
        command.args(["--set", &value]);
    }
    for value in set {
        command.args(["--set", value]);
    }
    command.envs(environment.iter().copied());
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("node.log"))
        .expect("writable");
    Process(command.stderr(log).spawn().expect("starts"))
}

/// Where a node of `directory` keeps its data.
pub fn data(directory: &Path) -> PathBuf {
    directory.join("data")
}

/// Where a node of `directory` leaves its transactions.
pub fn outbox(directory: &Path) -> PathBuf {
    directory.join("outbox")
}

fn exchange(
    mut connection: impl Read + Write,
    method: &str,
    path: &str,
    body: &str,
) -> Option<(u16, String)> {
    let length = body.len();
    write!(
        connection,
        "{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}

/// Asks over TCP; nothing when nobody answers.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    exchange(
        TcpStream::connect(("127.0.0.1", port)).ok()?,
        "GET",
        path,
        "",
    )
}

/// Asks the operator's socket of a node of `directory`; nothing when nobody answers.
pub fn ask(directory: &Path, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
    let socket = UnixStream::connect(data(directory).join("operator.sock")).ok()?;
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, answer) = exchange(socket, method, path, &body)?;
    Some((status, serde_json::from_str(&answer).ok()?))
}

/// Waits until the node in this directory is well.
pub fn until_healthy(directory: &Path) {
    wait_for("a session", || {
        let (_, status) = ask(directory, "GET", "/status", &Value::Null)?;
        (status["health"]["state"] == "healthy").then_some(())
    });
}

/// The federation of a governance that was started with nothing else said: the same seed, the same
/// keys.
pub fn federation() -> FederationView {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let twin = Simulator::start(SimulatorConfig::default()).await;
        twin.expect("starts").federation(1).expect("the first")
    })
}

/// Peg-out `number` of `federation`, as the operator's socket takes it, and its id.
pub fn pegout_form(federation: &FederationView, number: u64) -> (String, Value) {
    let parts = super::pegout_parts(federation, number);
    let form = json!({
        "request_id": parts.request_id,
        "psbt": parts.psbt.to_string(),
        "burns": [burn_form(&parts.burns[0])],
        "max_fee_sat": parts.max_fee.to_sat(),
        "federation_version": 1,
    });
    (parts.request_id.to_string(), form)
}

/// As a peg-out's form has it.
pub fn burn_form(burn: &PegoutBinding) -> Value {
    json!({
        "burn_tx_hash": burn.burn_tx_hash.to_lower_hex_string(),
        "log_index": burn.log_index,
        "block_hash": burn.block_hash.to_lower_hex_string(),
        "block_height": burn.block_height,
        "output_index": burn.output_index,
        "amount_sat": burn.amount.to_sat(),
        "address": Address::from_script(&burn.script_pubkey, Network::Regtest).expect("standard"),
    })
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::yield_now();
    }
}
