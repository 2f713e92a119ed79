//! What a store shows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;

use super::{super::*, support::*};

/// Every sample, by its name and labels.
fn scrape(registry: &Registry) -> BTreeMap<String, f64> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("encoded");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

fn name(short: &str) -> String {
    format!("alys_stream_store_{short}")
}

#[test]
fn a_store_whose_disk_was_full_ails_until_there_is_room() {
    let faulty = FaultyEngine::new(Arc::new(MemoryEngine::new()));
    let claim = |bytes| {
        faulty.claim_usage(Some(Usage {
            available_bytes: Some(bytes),
            ..Usage::default()
        }));
    };
    claim(0);
    let store = Store::create_on(Arc::new(faulty.handle()), &owner("one")).expect("made");
    let a = register(&store, "a");
    let generation = a.opened();
    let left = |bytes| {
        claim(bytes);
        store.shared().look();
    };
    left(0);
    assert_eq!(store.ailment(), None, "nothing has failed");
    faulty.fail_commit_with(1, Kept::Nothing, FaultyEngine::full());
    a.put(generation, "one");
    a.failed();
    let generation = a.opened();
    // Its opening's commit came through, and so does one that finds a page.
    let ticket = a.put(generation, "two");
    a.committed(generation, ticket);
    for bytes in [0, 1 << 20] {
        left(bytes);
        assert_eq!(store.ailment(), Some(FaultyEngine::full()));
        assert_eq!(store.condition().cramped, Some(FaultyEngine::full()));
        assert_eq!(store.fault(), None, "it is open");
    }
    left(4 << 20);
    assert_eq!(store.ailment(), None);
}

#[test]
fn what_is_left_on_the_disk_is_measured_while_the_store_is_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (faulty, store) = disk_store(&directory.path().join("store"));
    let a = register(&store, "a");
    let generation = a.opened();
    let claimed = |usage: Option<u64>| {
        faulty.claim_usage(usage.map(|bytes| Usage {
            available_bytes: Some(bytes),
            ..Usage::default()
        }));
        store.shared().look();
        store.condition().usage.available_bytes
    };
    assert_eq!(claimed(Some(7)), Some(7));
    faulty.fail_opens(Some(FaultyEngine::full()));
    faulty.fail_commit(1, Kept::Nothing);
    a.put(generation, "one");
    a.failed();
    eventually("it is closed", || {
        store.fault() == Some(FaultyEngine::full())
    });
    assert!(claimed(None) > Some(7));
}

#[test]
fn every_metric_moves() {
    let (faulty, store) = faulty_store();
    let mut registry = Registry::default();
    store.register_metrics(&mut registry);
    let get = |short: &str| scrape(&registry).get(&name(short)).copied();
    let a = register(&store, "a");
    let generation = a.opened();

    // Each failure that there may be is there before it happens.
    let failures = scrape(&registry);
    let failures: Vec<_> = failures
        .iter()
        .filter(|(sample, _)| sample.starts_with(&name("failures_total")))
        .collect();
    assert_eq!(failures.len(), 4 * 17);
    assert!(failures.iter().all(|(_, value)| **value == 0.0));
    assert_eq!(get("oldest_batch_seconds{user=\"a\"}"), Some(0.0));
    assert_eq!(get("oldest_look_up_seconds{user=\"a\"}"), Some(0.0));
    assert_eq!(get("open"), Some(1.0));

    faulty.claim_usage(Some(Usage {
        bytes: 1000,
        free_bytes: 300,
        available_bytes: Some(7000),
    }));
    let before = get("confirmed_commit").expect("shown");
    let ticket = a.put(generation, "one");
    a.committed(generation, ticket);
    assert_eq!(get("confirmed_commit"), Some(before + 1.0));
    assert_eq!(get("commit_seconds_count"), Some(1.0));
    store.shared().look();
    assert_eq!(get("size_bytes"), Some(1000.0));
    assert_eq!(get("free_bytes"), Some(300.0));
    assert_eq!(get("available_bytes"), Some(7000.0));
    assert_eq!(get("rows{table=\"a/rows\"}"), Some(2.0));

    // No scrape waits for the disk.
    faulty.hang(Hang::Commits);
    faulty.hang(Hang::Reads);
    a.put(generation, "two");
    let _ = a.look_up(generation, "one");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    assert!(faulty.await_hung(Hang::Reads, PATIENCE));
    let waits = |short: &str| get(short).is_some_and(|age| age > 0.0);
    assert!(waits("oldest_batch_seconds{user=\"a\"}"));
    assert!(waits("oldest_look_up_seconds{user=\"a\"}"));
    faulty.release(Hang::Reads);

    faulty.fail_commit(1, Kept::Nothing);
    faulty.fail_opens(Some(FaultyEngine::full()));
    faulty.release(Hang::Commits);
    a.failed();
    let failed = |of: &str| {
        get(&format!(
            "failures_total{{operation=\"{of}\",cause=\"io\"}}"
        ))
    };
    assert_eq!((failed("commit"), get("open")), (Some(1.0), Some(0.0)));
    eventually("an opening has failed", || failed("open") > Some(0.0));
    faulty.fail_opens(None);
    let generation = a.opened();
    assert_eq!(get("open"), Some(1.0));
    let damaged = StoreError::Damaged {
        place: "(faulty)".to_owned(),
        reason: "a test".to_owned(),
    };
    assert_eq!(get("damaged"), Some(0.0));
    faulty.fail_reads(Some(damaged));
    a.look_up(generation, "one")
        .recv_timeout(PATIENCE)
        .expect("answered")
        .expect_err("damaged");
    eventually("it shows", || get("damaged") == Some(1.0));
    faulty.fail_reads(None);

    let now = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    assert_eq!(get("backup_timestamp_seconds"), Some(0.0));
    assert_eq!(get("scrub_timestamp_seconds"), Some(0.0));
    {
        let mut state = store.shared().lock();
        state.upkeep.backed_up_at = Some(now);
        state.upkeep.scrubbed_at = Some(now);
    }
    assert_eq!(get("backup_timestamp_seconds"), Some(1_000_000.0));
    assert_eq!(get("scrub_timestamp_seconds"), Some(1_000_000.0));

    // Nothing of it is missing from the list, and nothing stays when the store is closed.
    let shown = scrape(&registry);
    for base in STORE_METRIC_NAMES {
        assert!(
            shown.keys().any(|sample| sample.starts_with(base)),
            "{base}"
        );
    }
    drop((store, a));
    assert_eq!(get("open"), None);
}
