//! The node's process, as its parent sees it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use serde_json::Value;

use crate::mib;

/// Has this program be the node.
pub(crate) const HIDDEN: &str = "--be-the-node";

pub(crate) struct Node {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// From the process's start to its first accepted call.
    pub(crate) start_ms: f64,
    /// Requests that were open then.
    pub(crate) open: u64,
}

impl Node {
    /// Starts a node, and waits until it is ready for calls.
    pub(crate) fn start(directory: &Path, members: &str) -> Self {
        let this = std::env::current_exe().expect("this program");
        let began = Instant::now();
        let mut child = Command::new(this)
            .arg(HIDDEN)
            .arg(directory)
            .arg(members)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut node = Self {
            child,
            stdin,
            stdout,
            start_ms: 0.0,
            open: 0,
        };
        let ready = node.answer();
        node.start_ms = (began.elapsed().as_secs_f64() * 10_000.0).round() / 10.0;
        node.open = ready["open"].as_u64().expect("a number");
        node
    }

    pub(crate) fn tell(&mut self, words: &str) {
        let stdin = self.stdin.as_mut().expect("open");
        writeln!(stdin, "{words}").expect("it lives");
    }

    /// Has it do something, and waits for its answer.
    pub(crate) fn ask(&mut self, words: &str) -> Value {
        self.tell(words);
        self.answer()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it lives");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the node said {line:?}"))
    }

    /// The most that it has held in memory so far (`VmHWM`, `proc_pid_status(5)`).
    pub(crate) fn peak_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it lives");
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.expect("Linux").trim().trim_end_matches(" kB");
        mib(1024 * kib.parse::<u64>().expect("a number"))
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it lives");
        self.child.wait().expect("ends");
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) {
        drop(self.stdin.take());
        let ended = self.child.wait().expect("ends");
        assert!(ended.success(), "the node ended with {ended}");
    }
}
