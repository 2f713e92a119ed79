//! What was accepted survives the process, and a disk that fails loses nothing of it.
//!
//! Faults of the first version's store, and the tests that show each of them gone. A path without
//! `tests/` is in `src/`.
//!
//! | | fault | tests |
//! |---|---|---|
//! | S1 | a failed sync that is taken for success | `storage/conformance/fault_tests.rs`: `a_failed_sync_loses_nothing_that_was_confirmed_later`; `one_phase_commits_on_a_bare_file_lose_it` shows the fault |
//! | S2 | a damaged page leads to an older state | there: `a_flipped_bit_never_leads_to_an_older_state`; `a_flipped_bit_in_a_bare_file_does` shows the fault; `tests/disk.rs`: `damaged_pages_…` |
//! | S3 | everything that ever was is read at a start | `tests/promises.rs`: `a_start_reads_what_is_open_and_nothing_of_what_is_settled`; `tests/bridge_rows.rs`: `what_has_ended_is_not_in_memory_…`; `chain/payment_tests.rs`: `ten_thousand_payments_…` |
//! | S4 | a store that vanished is made anew | here: `a_store_that_vanished_is_missed_and_not_made_anew`; `tests/disk.rs`: `a_file_that_is_removed_…`, `an_older_copy_…`, `a_file_that_is_cut_off_…` |
//! | S5 | nothing ties the parts together | `tests/kill.rs` (`check_users` after each kill); `tests/store_commands.rs`: `the_store_of_another_node_chain_network_or_federation_is_refused_by_name`; `tests/disk.rs`: `the_store_of_another_making_…` |
//! | S6 | a full disk: refused, and signed all the same | `tests/disk.rs`: `what_a_full_disk_refused_is_never_signed_and_the_node_goes_on_by_itself` |
//! | S7 | dead letters and their frames in memory | `routing/router.rs`: `a_payload_does_not_keep_its_frame_in_memory`; `buffer/retained_tests.rs`: `dead_letters_are_bounded_in_bytes` |
//! | S8 | work inside commits, unbounded intake, loads for the dead | `storage/store_tests/compactions.rs`: `users_go_on_while_free_space_is_given_back`; `tests/promises.rs`: `intake_is_bounded_while_the_store_loads`, `nobody_loads_for_the_dead_when_a_disk_comes_back`; `tests/disk.rs`: `a_disk_that_hangs_…` |
//! | S9 | "nothing left" when nobody knows; open directories; no backup, no format | `tests/promises.rs`: `a_shutdown_without_a_store_says_that_it_is_not_known_what_is_left`; `tests/store_commands.rs`: `a_directory_that_others_may_enter_is_refused`, `a_backup_is_made_…`; `tests/formats.rs`: `a_store_of_a_newer_format_…` |
//!
//! The tests of S1 and S2 run the old way of committing beside the new one. For each of the others the
//! old behaviour was put back by hand, one at a time, and the test failed:
//!
//! - S3, settled requests read by the buffer's load: `a_start_reads_…` (321 rows instead of 21). Every
//!   peg-out read by the bridge's: `what_has_ended_…`. Every payment read by the chain's:
//!   `ten_thousand_payments_…`.
//! - S4, `Store::open` makes what is absent, or the buffer calls a request unknown while there is no
//!   store: `a_store_that_vanished_…`. The engine makes the file when it opens again, and `--init` takes a
//!   directory with other files: both of `a_file_that_is_removed_…`. The open file is not compared with
//!   its path, nor the commit, store and opener that are found with the known ones: `an_older_copy_…`.
//!   Nor is its length: `a_file_that_is_cut_off_…`.
//! - S5, rows of the bridge are called durable one commit too early: `check_users` ("is complete, and its
//!   signatures are not there"). The owner is not compared: `the_store_of_another_node_…`. The store id is
//!   not compared when it is opened again: `the_store_of_another_making_…`.
//! - S6, a peg-out that was refused for the disk is begun once there is room: `what_a_full_disk_refused_…`
//!   ("pegout-15 was refused").
//! - S7, payloads are slices of their frame: `a_payload_does_not_keep_…`. Dead letters are bounded in
//!   number alone: `dead_letters_are_bounded_in_bytes`.
//! - S8, commits wait for a compaction's end: `users_go_on_…`. No bound while the store loads:
//!   `intake_is_bounded_…`. Reads for users that were replaced are carried out: `nobody_loads_…` (6
//!   instead of 2). Waiting for a disk is not shown in health: `a_disk_that_hangs_…`.
//! - S9, a buffer that does not answer leaves nothing: `a_shutdown_without_a_store_…`. Modes are not
//!   looked at: `a_directory_that_others_may_enter_…`. A running node makes no backup:
//!   `a_backup_is_made_…`. The format is not looked at: `a_store_of_a_newer_format_…`.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::{path::Path, sync::Arc, time::Duration};

use governance_stream::{
    GovernanceStream, Health, RequestStanding, Retry, StreamArguments, StreamError,
    config::Config,
    history::{self, Page},
    message::{Outcome, SignatureRequest},
    simulator::Simulator,
    storage::{FaultyEngine, Kept, MemoryEngine, Owner, Store, StoreError},
};
use support::{
    PATIENCE, config, deposit, governance, kill, ledger, pegout, pegout_parts, recorder,
    request_id, rival_parts, store_in, until,
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
        let config = config(&simulator.endpoints());
        let store = store_in(directory, &config).await;
        Self::with(config, store).await
    }

    async fn with(config: Config, store: Store) -> Self {
        let bridge = recorder::Bridge::start(&config.subscribers.bridge).await;
        let chain = recorder::Chain::start(&config.subscribers.chain).await;
        let arguments = StreamArguments::new(config.clone(), store);
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
        let process = Process::start(&simulator, directory.path()).await;
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

    let process = Process::start(&simulator, directory.path()).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_refuses_callers_loses_nothing_and_heals() {
    for kept in [Kept::Nothing, Kept::All] {
        let simulator = governance().await;
        let federation = simulator.federation(1).expect("the first");
        let config = config(&simulator.endpoints());
        let engine = FaultyEngine::new(Arc::new(MemoryEngine::new()));
        let disk = engine.handle();
        let store = Store::create_on(Arc::new(engine), &Owner::of(&config.node));
        let process = Process::with(config, store.expect("made")).await;
        let early = support::accepted(&process.stream, pegout(&federation, 0)).await;
        assert_eq!(early.outcome(PATIENCE).await, Ok(Outcome::Complete));
        until(&process.stream, "at rest", |status| {
            status.lanes.iter().all(|lane| lane.unacknowledged == 0)
        })
        .await;

        disk.fail_commit_with(1, kept, FaultyEngine::full());
        disk.fail_opens(Some(FaultyEngine::full()));
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
            matches!(&status.health, Health::Unhealthy(why) if why[0].contains("no space left"))
        })
        .await;
        // Asking again while it fails tells why, and is never an acceptance.
        for _ in 0..50 {
            let refused = process
                .stream
                .request_signatures(pegout(&federation, 1))
                .await;
            match refused.expect_err("the disk is full") {
                StreamError::Store { fault, retry_after } => {
                    assert_eq!(fault.name(), "io");
                    assert!(retry_after > Duration::ZERO);
                }
                other => panic!("{other}"),
            }
        }

        disk.fail_opens(None);
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
            StreamError::Indeterminate { .. } | StreamError::Store { .. }
        ),
        "{refused}"
    );
    until(&process.stream, "unhealthy for it", |status| {
        matches!(&status.health, Health::Unhealthy(why)
            if why[0].contains("make room"))
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

#[tokio::test]
async fn a_directory_belongs_to_one_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(&["http://127.0.0.1:1".to_owned()]);
    let owner = Owner::of(&config.node);
    let first = Store::create(directory.path(), &owner, false).expect("new");
    let refused = Store::open(directory.path(), &owner).expect_err("held");
    assert_eq!(refused.name(), "held");
    let shown = refused.to_string();
    let path = directory.path().display().to_string();
    let id = std::process::id().to_string();
    assert!(shown.contains(&id) && shown.contains(&path), "{shown}");
    drop(first);
    Store::open(directory.path(), &owner).expect("let go of");
}

/// A store that has vanished is no new store: neither at a start nor in the middle of a life.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_vanished_is_missed_and_not_made_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(&["http://127.0.0.1:1".to_owned()]);
    let owner = Owner::of(&config.node);
    let absent = Store::open(directory.path().join("data"), &owner).expect_err("there is none");
    assert!(matches!(absent, StoreError::Absent { .. }), "{absent}");
    let left = std::fs::read_dir(directory.path()).expect("readable");
    let left = left.filter(|entry| entry.as_ref().expect("readable").file_name() != "LOCK");
    assert_eq!(left.count(), 0, "nothing is made in passing");

    // In mid-life: its disk is full for a moment, and when it is opened again it is not there.
    let engine = FaultyEngine::new(Arc::new(MemoryEngine::new()));
    let disk = engine.handle();
    let store = Store::create_on(Arc::new(engine), &owner).expect("made");
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let process = Process::with(support::config(&simulator.endpoints()), store).await;
    support::accepted(&process.stream, pegout(&federation, 1)).await;
    let absent = StoreError::Absent {
        place: "/data/store.redb".to_owned(),
    };
    disk.fail_opens(Some(absent));
    disk.fail_commit(1, Kept::Nothing);
    let _ = process
        .stream
        .request_signatures(pegout(&federation, 2))
        .await;
    until(&process.stream, "unhealthy for it", |status| {
        matches!(&status.health, Health::Unhealthy(why) if why[0].contains("there is none"))
    })
    .await;
    let asked = process.stream.request(request_id(1)).standing().await;
    assert!(
        matches!(asked, Err(StreamError::Store { .. })),
        "never unknown, which would free its burn: {asked:?}"
    );
    disk.fail_opens(None);
    support::accepted(&process.stream, pegout(&federation, 1)).await;
    process.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_can_be_looked_at_while_the_node_runs() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let directory = tempfile::tempdir().expect("a directory");
    simulator.hold_responses();
    let process = Process::start(&simulator, directory.path()).await;
    let handle = support::accepted(&process.stream, pegout(&federation, 1)).await;
    let store = process.stream.store().expect("open");
    let open = history::view(&store, |history| history.open_requests(Page::default()));
    let open = open.await.expect("readable");
    let ids: Vec<_> = open
        .iter()
        .map(|record| &record.request.request_id)
        .collect();
    assert_eq!(ids, [&request_id(1)]);
    simulator.release_responses();
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    let settled = history::view(&store, |history| history.settled_requests(Page::default()));
    assert_eq!(settled.await.expect("readable").len(), 1);
    drop(store);
    process.die().await;
}
