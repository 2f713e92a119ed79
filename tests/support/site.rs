//! A node and governance as processes, and what they were asked and promised.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use governance_stream::{
    proto,
    simulator::{
        FederationView,
        record::{self, What},
    },
};
use prost::Message as _;
use serde_json::Value;

use super::process::{
    self, Process, ask, binary, data, free_port, get, governance, node, outbox, pegout_form,
    wait_for,
};

/// A directory, governance, and what was asked of the node.
pub struct Site {
    directory: tempfile::TempDir,
    governance: Option<Process>,
    endpoint: String,
    http: u16,
    pub federation: FederationView,
    pub next: u64,
    pub accepted: BTreeSet<String>,
    pub refused: BTreeSet<String>,
}

impl Site {
    pub fn new(governance_args: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let record = directory.path().join("governance");
        let mut args = vec!["--directory", record.to_str().expect("UTF-8")];
        args.extend(governance_args);
        let (governance, endpoint) = governance(0, &args);
        Self {
            governance: Some(governance),
            endpoint,
            http: free_port(),
            federation: process::federation(),
            next: 0,
            accepted: BTreeSet::new(),
            refused: BTreeSet::new(),
            directory,
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn store(&self) -> PathBuf {
        data(self.path()).join("store.redb")
    }

    pub fn start(&self) -> Process {
        let listen = format!("http.listen=127.0.0.1:{}", self.http);
        node(
            self.path(),
            &self.endpoint,
            &[
                &listen,
                "connection.backoff.initial=20ms",
                "connection.backoff.max=100ms",
                "supervision.watch_interval=500ms",
                "buffer.commit_deadline=20s",
                "telemetry.log=warn",
            ],
        )
    }

    pub fn started(&self) -> Process {
        let mut node = self.start();
        wait_for("a session", || {
            assert!(node.is_running(), "it ended by itself: {}", self.log());
            let (_, status) = ask(self.path(), "GET", "/status", &Value::Null)?;
            (status["health"]["state"] == "healthy").then_some(())
        });
        node
    }

    /// Asks for one more peg-out, once: whether it was accepted.
    pub fn submit(&mut self) -> bool {
        let (id, form) = pegout_form(&self.federation, self.next);
        self.next += 1;
        match ask(self.path(), "POST", "/requests", &form) {
            Some((200, _)) => self.accepted.insert(id),
            Some((status, answer)) => {
                assert!(status >= 500 || status == 429, "{status} {answer}");
                self.refused.insert(id);
                false
            }
            None => panic!("the node does not answer"),
        }
    }

    pub fn accept(&mut self, requests: u64) {
        for _ in 0..requests {
            assert!(self.submit());
        }
    }

    /// What the node says of a request; the code, too.
    pub fn standing(&self, id: &str) -> Option<(u16, Value)> {
        ask(self.path(), "GET", &format!("/requests/{id}"), &Value::Null)
    }

    /// Waits until the node is unhealthy for this, whatever is asked of it meanwhile; no request that
    /// was accepted is ever said to be unknown.
    pub fn until_unhealthy_for(&self, words: &str) {
        wait_for(words, || {
            self.assert_nothing_is_unknown();
            let (_, status) = ask(self.path(), "GET", "/status", &Value::Null)?;
            let is_told = status["health"].to_string().contains(words);
            (status["health"]["state"] == "unhealthy" && is_told).then_some(())
        });
    }

    pub fn is_unhealthy(&self) -> bool {
        let status = ask(self.path(), "GET", "/status", &Value::Null);
        status.expect("answers").1["health"]["state"] == "unhealthy"
    }

    /// Both ways in which a machine asks say that the node is unwell.
    pub fn is_told_unwell(&self) -> bool {
        let ready = get(self.http, "/readyz").expect("answers").0;
        ready == 503 && self.command(&["status"]).status.code() == Some(1)
    }

    pub fn assert_nothing_is_unknown(&self) {
        for id in &self.accepted {
            if let Some((status, answer)) = self.standing(id) {
                assert_ne!(status, 404, "{id}: {answer}");
            }
        }
    }

    /// A command about the node, or about its directory.
    pub fn command(&self, args: &[&str]) -> Output {
        let mut command = binary();
        command.args(args).arg("--data-dir").arg(data(self.path()));
        command.output().expect("runs")
    }

    /// Failures of this operation and cause, as the metrics count them.
    pub fn failures(&self, operation: &str, cause: &str) -> u64 {
        let (_, metrics) = get(self.http, "/metrics").expect("answers");
        let labels = format!("operation=\"{operation}\",cause=\"{cause}\"");
        let line = metrics.lines().find(|line| {
            line.starts_with("alys_stream_store_failures_total") && line.contains(&labels)
        });
        // What never happened is not shown.
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    /// A node on this directory ends by itself, with this code and this on its log.
    pub fn refuses_to_start(&self, code: i32, words: &str) {
        let before = self.log().len();
        let ended = self.start().0.wait().expect("ends");
        assert_eq!(ended.code(), Some(code));
        let log = self.log();
        let said = log.get(before..).expect("it only grows");
        assert!(said.contains(words), "{words}: {said}");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("node.log")).expect("readable")
    }

    /// `store verify` ends with this code, and says this.
    pub fn verify_finds(&self, code: i32, words: &str) {
        let verified = self.command(&["store", "verify"]);
        assert_eq!(verified.status.code(), Some(code), "{verified:?}");
        let said = [verified.stdout, verified.stderr].concat();
        let said = String::from_utf8(said).expect("UTF-8");
        assert!(said.contains(words), "{words}: {said}");
    }

    /// Everything that was accepted comes to its end, once, and nothing else was ever asked for.
    pub fn end(mut self, node: Process) {
        let complete = |id: &String| {
            let (_, standing) = self.standing(id)?;
            (standing["standing"] == "complete" || standing.to_string().contains("complete"))
                .then_some(())
        };
        for id in &self.accepted {
            wait_for(id, || complete(id));
        }
        let outbox = outbox(self.path());
        let signed = || fs::read_dir(&outbox).map_or(0, Iterator::count);
        wait_for("every signed transaction", || {
            (signed() >= self.accepted.len()).then_some(())
        });
        for id in &self.refused {
            let known = ask(self.path(), "GET", &format!("/pegouts/{id}"), &Value::Null);
            assert_eq!(known.expect("answers").0, 404, "{id} was refused");
        }
        assert!(node.terminate(), "the node drains and ends well");
        let governance = self.governance.take().expect("runs");
        assert!(governance.terminate(), "governance saw no violation");
        assert_eq!(signed(), self.accepted.len(), "one transaction each");
        let facts = record::read(self.path().join("governance")).expect("readable");
        let mut asked = BTreeSet::new();
        for fact in facts {
            if let Some(What::Arrived(message)) = fact.what
                && message.kind() == proto::Kind::SignatureRequest
            {
                let request = proto::SignatureRequest::decode(message.payload.clone());
                let id = request.expect("decodes").request_id;
                assert!(asked.insert(id.clone()), "{id} came twice");
            }
        }
        assert_eq!(asked, self.accepted, "accepted is what governance has");
    }
}
