//! What was accepted survives the process, and a disk that fails loses nothing of it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use governance_stream::{
    DiskJournal, GovernanceStream, Health, Journal, JournalError, RequestStanding, Retry,
    StreamArguments, StreamError,
    config::Config,
    journal::Row,
    message::{Lane, Outcome, SignatureRequest},
    simulator::Simulator,
};
use support::{
    PATIENCE, config, deposit, governance, kill, ledger, pegout, pegout_parts, recorder,
    request_id, rival_parts, until,
};

/// A node whose process may end at any time: only its directory remains.
struct Process {
    stream: GovernanceStream,
    bridge: recorder::Bridge,
    chain: recorder::Chain,
    config: Config,
}

impl Process {
    async fn start(simulator: &Simulator, directory: &Path) -> Self {
        let journal = DiskJournal::open(directory).expect("nobody else has it");
        Self::with(config(&simulator.endpoints()), Arc::new(journal)).await
    }

    async fn with(config: Config, journal: Arc<dyn Journal>) -> Self {
        let bridge = recorder::Bridge::start(&config.subscribers.bridge).await;
        let chain = recorder::Chain::start(&config.subscribers.chain).await;
        let arguments = StreamArguments::new(config.clone(), journal);
        let stream = GovernanceStream::start(arguments).await.expect("starts");
        Self {
            stream,
            bridge,
            chain,
            config,
        }
    }

    /// Ends without a goodbye, as far as a process can that goes on.
    async fn die(self) {
        kill(self.config.instance.as_str()).await;
        support::assert_nothing_left_within(
            self.config.instance.as_str(),
            &[
                &self.config.subscribers.bridge,
                &self.config.subscribers.chain,
            ],
        )
        .await;
        self.bridge.stop().await;
        self.chain.stop().await;
    }
}

/// The journal's thread lets go of the directory a moment after its actor's death.
async fn reopen(directory: &Path) -> Arc<dyn Journal> {
    let opening = async {
        loop {
            match DiskJournal::open(directory) {
                Ok(journal) => return journal,
                Err(JournalError::Held { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let journal = tokio::time::timeout(PATIENCE, opening).await;
    Arc::new(journal.expect("the directory is let go of"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_in_the_next_process_and_their_outcomes_in_every_one() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let directory = tempfile::tempdir().expect("a directory");
    simulator.hold_responses();
    let process = Process::start(&simulator, directory.path()).await;
    for number in 0..20 {
        support::accepted(&process.stream, pegout(&federation, number)).await;
        let deposit = deposit(u32::try_from(number).expect("small"));
        process
            .stream
            .notify_pegin(deposit)
            .await
            .expect("accepted");
    }
    ledger(&simulator, |view| view.requests.len() == 20).await;
    process.die().await;
    simulator.release_responses();

    for round in 0..2 {
        let process = Process::with(
            config(&simulator.endpoints()),
            reopen(directory.path()).await,
        )
        .await;
        for number in 0..20 {
            let handle = process.stream.request(request_id(number));
            assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
            // Asked again, it is the same request.
            support::accepted(&process.stream, pegout(&federation, number)).await;
        }
        let mut parts = pegout_parts(&federation, 99);
        parts.request_id = request_id(7);
        let other = SignatureRequest::new(parts).expect("valid");
        let refused = process.stream.request_signatures(other).await;
        assert!(
            matches!(refused, Err(StreamError::Conflict { .. })),
            "round {round}"
        );
        process.die().await;
    }
    let view = ledger(&simulator, |view| view.pegins == 20).await;
    assert_eq!((view.requests.len(), view.duplicates), (20, 0));
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burn_is_paid_once_whatever_becomes_of_the_request() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let directory = tempfile::tempdir().expect("a directory");
    let process = Process::start(&simulator, directory.path()).await;
    let first = support::accepted(&process.stream, pegout(&federation, 1)).await;
    assert_eq!(first.outcome(PATIENCE).await, Ok(Outcome::Complete));
    process.die().await;

    let process = Process::with(
        config(&simulator.endpoints()),
        reopen(directory.path()).await,
    )
    .await;
    // Another coin for the same burn: both transactions could be mined.
    let second = SignatureRequest::new(rival_parts(&federation, 2, 1)).expect("valid");
    let refused = process
        .stream
        .request_signatures(second)
        .await
        .expect_err("paid");
    assert!(
        matches!(&refused, StreamError::AlreadyPaid { earlier, .. } if *earlier == request_id(1))
    );
    assert_eq!(refused.retry(), Retry::Never);
    // The same coin: one of the two can be mined.
    let mut parts = pegout_parts(&federation, 1);
    parts.request_id = request_id(3);
    let replacement = SignatureRequest::new(parts).expect("valid");
    let handle = support::accepted(&process.stream, replacement).await;
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    process.die().await;
}

/// Fails while it is told to: before or after the rows became durable.
#[derive(Debug)]
struct Failing {
    inner: DiskJournal,
    fails: AtomicBool,
    keeps: AtomicBool,
    loads: AtomicUsize,
}

impl Journal for Failing {
    fn load(&self) -> Result<Vec<Row>, JournalError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.inner.load()
    }

    fn commit(&self, rows: &[Row]) -> Result<(), JournalError> {
        if !self.fails.load(Ordering::Relaxed) {
            return self.inner.commit(rows);
        }
        if self.keeps.load(Ordering::Relaxed) {
            self.inner.commit(rows)?;
        }
        Err(JournalError::Io {
            path: "journal.redb".into(),
            operation: "commit",
            reason: "no space left on device".to_owned(),
            advice: "make room",
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_refuses_callers_loses_nothing_and_heals() {
    for keeps in [false, true] {
        let simulator = governance().await;
        let federation = simulator.federation(1).expect("the first");
        let directory = tempfile::tempdir().expect("a directory");
        let journal = Arc::new(Failing {
            inner: DiskJournal::open(directory.path()).expect("new"),
            fails: AtomicBool::new(false),
            keeps: AtomicBool::new(keeps),
            loads: AtomicUsize::new(0),
        });
        let config = config(&simulator.endpoints());
        let process = Process::with(config, Arc::clone(&journal) as Arc<dyn Journal>).await;
        let early = support::accepted(&process.stream, pegout(&federation, 0)).await;
        assert_eq!(early.outcome(PATIENCE).await, Ok(Outcome::Complete));

        journal.fails.store(true, Ordering::Relaxed);
        let unknown = process
            .stream
            .request_signatures(pegout(&federation, 1))
            .await;
        let unknown = unknown.expect_err("the disk is full");
        assert_eq!(
            unknown,
            StreamError::Indeterminate {
                what: format!("request {}", request_id(1))
            }
        );
        assert_eq!(unknown.retry(), Retry::Now);
        until(&process.stream, "unhealthy", |status| {
            matches!(&status.health, Health::Unhealthy(why) if why[0].contains("make room"))
        })
        .await;
        // Asking again while it fails tells why, and is never an acceptance.
        for _ in 0..50 {
            let refused = process
                .stream
                .request_signatures(pegout(&federation, 1))
                .await;
            match refused.expect_err("the disk is full") {
                StreamError::Indeterminate { .. } => {}
                StreamError::Journal { fault, retry_after } => {
                    assert_eq!(fault.name(), "io");
                    assert!(retry_after > Duration::ZERO);
                }
                other => panic!("{other}"),
            }
        }

        journal.fails.store(false, Ordering::Relaxed);
        let handle = support::accepted(&process.stream, pegout(&federation, 1)).await;
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
        assert_eq!(
            early.standing().await,
            Ok(RequestStanding::Settled(Outcome::Complete))
        );
        until(&process.stream, "healthy", |status| {
            status.health == Health::Healthy
        })
        .await;
        assert!(
            journal.loads.load(Ordering::Relaxed) >= 2,
            "it was read again"
        );
        assert_eq!(
            process.stream.status().actor_restarts,
            0,
            "nobody died of it"
        );
        let view = simulator.ledger();
        assert_eq!((view.requests.len(), view.duplicates), (2, 0));
        process.die().await;
        simulator.assert_clean();
    }
}

/// Unmounts what a test mounted.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0)
            .status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_what_was_accepted_is_delivered_once_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
        .arg(directory.path())
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        // Past the test runner, which shows nothing of a test that passes.
        let skipped = b"SKIPPED: no small file system can be mounted here (needs root on Linux)\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), skipped);
        return;
    }
    let _mounted = Mounted(directory.path());
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let process = Process::start(&simulator, &directory.path().join("data")).await;
    until(&process.stream, "connected", |status| status.is_connected()).await;
    simulator.hold_responses();
    let mut accepted = Vec::new();
    for number in 0..20 {
        accepted.push(support::accepted(&process.stream, pegout(&federation, number)).await);
    }
    // Something else takes the rest of the disk.
    let filler = directory.path().join("filler");
    let _ = std::fs::write(&filler, vec![1; 4 << 20]);
    // The engine goes on in the pages it has; then it is full.
    let mut number = 20;
    let refused = loop {
        match process
            .stream
            .request_signatures(pegout(&federation, number))
            .await
        {
            Ok(handle) => accepted.push(handle),
            Err(error) => break error,
        }
        number += 1;
        assert!(number < 10_000, "it never fills up");
    };
    assert!(
        matches!(
            refused,
            StreamError::Indeterminate { .. } | StreamError::Journal { .. }
        ),
        "{refused}"
    );
    until(&process.stream, "unhealthy for it", |status| {
        matches!(&status.health, Health::Unhealthy(why)
            if why[0].contains("No space left") && why[0].contains("make room on that disk"))
    })
    .await;
    std::fs::remove_file(&filler).expect("there is room again");
    accepted.push(support::accepted(&process.stream, pegout(&federation, number)).await);
    simulator.release_responses();
    for handle in &accepted {
        assert_eq!(
            handle.outcome(PATIENCE).await,
            Ok(Outcome::Complete),
            "{}",
            handle.id()
        );
    }
    assert_eq!(process.stream.status().actor_restarts, 0);
    let view = simulator.ledger();
    assert_eq!((view.requests.len(), view.duplicates), (accepted.len(), 0));
    process.die().await;
    simulator.assert_clean();
}

#[test]
fn a_directory_belongs_to_one_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = DiskJournal::open(directory.path()).expect("new");
    first.load().expect("new");
    let id = std::process::id().to_string();
    for refused in [
        DiskJournal::open(directory.path()).map(|_| ()),
        DiskJournal::inspect(directory.path()).map(|_| ()),
    ] {
        let refused = refused.expect_err("held");
        assert_eq!(refused.name(), "held");
        let shown = refused.to_string();
        let path = directory.path().display().to_string();
        assert!(shown.contains(&id) && shown.contains(&path), "{shown}");
    }
    drop(first);
    DiskJournal::open(directory.path()).expect("let go of");
}

#[test]
fn a_journal_that_cannot_be_used_says_which_and_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("journal.redb");
    let load = || {
        let journal = DiskJournal::open(directory.path()).expect("the directory is fine");
        journal.load().expect_err("not a journal").to_string()
    };
    // What was there is gone: an empty file is no new journal.
    std::fs::write(&file, b"").expect("writable");
    assert!(load().contains("is empty"), "{}", load());
    std::fs::write(&file, b"not a journal at all").expect("writable");
    let shown = load();
    assert!(
        shown.contains("journal.redb") && shown.contains("damaged"),
        "{shown}"
    );
    assert_eq!(
        std::fs::read(&file).expect("there"),
        b"not a journal at all",
        "it is left as it was"
    );
    // A file where a directory should be.
    let shown = DiskJournal::open(&file).expect_err("a file").to_string();
    assert!(shown.contains("journal.redb"), "{shown}");
    let nothing = tempfile::tempdir().expect("a directory");
    let shown = DiskJournal::inspect(nothing.path())
        .expect_err("nothing")
        .to_string();
    assert!(
        shown.contains("name a directory that holds a journal"),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_can_be_looked_at_while_the_node_is_down() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let directory = tempfile::tempdir().expect("a directory");
    simulator.hold_responses();
    let process = Process::start(&simulator, directory.path()).await;
    support::accepted(&process.stream, pegout(&federation, 1)).await;
    process.die().await;
    drop(reopen(directory.path()).await);
    let rows = DiskJournal::inspect(directory.path()).expect("nobody has it");
    let requests = rows.iter().filter(|row| matches!(row, Row::Request { .. }));
    assert_eq!(requests.count(), 1);
    let entries = rows.iter().filter(|row| {
        matches!(
            row,
            Row::Entry {
                lane: Lane::Signing,
                sequence: 1,
                entry: Some(_)
            }
        )
    });
    assert_eq!(entries.count(), 1);
}

/// What passes through does not stay: the file follows what is retained.
#[test]
fn the_file_does_not_grow_with_what_passes_through() {
    use governance_stream::{
        message::MessageId,
        proto,
        record::{Entry, Expects},
        telemetry::TraceContext,
    };
    let directory = tempfile::tempdir().expect("a directory");
    let journal = DiskJournal::open(directory.path()).expect("new");
    journal.load().expect("new");
    let (group, kept) = (1000_u64, 3000_u64);
    let total = 1_000_000_u64;
    let entry = |sequence| Entry {
        lane: Lane::Pegin,
        sequence,
        message_id: MessageId::generate(),
        kind: proto::Kind::PeginNotification,
        payload: vec![7; 300].into(),
        trace: TraceContext::default(),
        accepted_at: std::time::SystemTime::UNIX_EPOCH,
        deadline: None,
        expects: Expects::Nothing,
    };
    for first in (1..=total).step_by(group as usize) {
        let come = (first..first + group).map(|sequence| (sequence, Some(entry(sequence))));
        let gone = (first.saturating_sub(kept)..first.saturating_sub(kept) + group)
            .filter(|sequence| *sequence > 0 && first > kept)
            .map(|sequence| (sequence, None));
        let rows: Vec<Row> = gone
            .chain(come)
            .map(|(sequence, entry)| Row::Entry {
                lane: Lane::Pegin,
                sequence,
                entry,
            })
            .collect();
        journal.commit(&rows).expect("a good disk");
    }
    let size = std::fs::metadata(directory.path().join("journal.redb"))
        .expect("there")
        .len();
    assert!(
        size < 16 << 20,
        "{size} bytes for {kept} messages of 300 bytes"
    );
}
