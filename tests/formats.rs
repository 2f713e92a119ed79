//! A store of each format that was ever released is opened by this version, with everything in it.
//!
//! `WRITE_FIXTURE=1 cargo test --test formats` writes the store of this version's format anew, into
//! `tests/fixtures/format-N/`. That is done until the format is released, and never after: from then
//! on a change of what is written is a format of its own, with a migration.
#![cfg(unix)]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use governance_stream::storage::{
    Batch, Engine, FORMAT, Owner, RedbEngine, Scan, Store, StoreEvent, Table,
};

/// How long this waits for what must come: only a fault reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

fn owner() -> Owner {
    Owner {
        node_id: "fixture".to_owned(),
        chain_id: "alys".to_owned(),
        network: "regtest".to_owned(),
        first_federation: Some("00".repeat(32)),
    }
}

fn fixture(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{format}"))
}

/// What the store of a format holds, by user.
const ROWS: [(&str, &str, &str, &str); 4] = [
    ("stream", "stream/example", "request-1", "open"),
    ("stream", "stream/example", "request-2", "settled"),
    ("bridge", "bridge/example", "pegout-1", "signed"),
    ("chain", "chain/example", "version-1", "active"),
];

/// Fills a new store. Rows of the users' own making come here as their formats are settled.
fn fill(store: &Store) {
    for (user, table, key, value) in ROWS {
        let (tell, told) = mpsc::channel();
        let user = store.register(user, move |event| {
            let _ = tell.send(event);
        });
        let Ok(StoreEvent::Opened(generation)) = told.recv_timeout(PATIENCE) else {
            panic!("it is open");
        };
        let mut batch = Batch::new();
        batch.put(Table::new(table), key, value);
        let ticket = user.commit(generation, batch).expect("taken");
        let committed = StoreEvent::Committed(generation, ticket);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(committed));
    }
}

fn write(format: u32) {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let engine = RedbEngine::create(&home, false).expect("made");
    let store = Store::create_on(Arc::new(engine), &owner()).expect("made");
    fill(&store);
    // A backup of it is the same, and smaller.
    let file = directory.path().join("store.redb");
    store
        .backup(&file, &mut |_| std::ops::ControlFlow::Continue(()))
        .expect("made");
    fs::create_dir_all(fixture(format)).expect("made");
    fs::copy(&file, fixture(format).join("store.redb")).expect("copied");
}

/// A copy of the fixture, for its owner only, as a checkout does not keep it.
fn copied(format: u32, directory: &Path) -> PathBuf {
    let home = directory.join(format!("format-{format}"));
    fs::create_dir(&home).expect("made");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("set");
    let file = home.join("store.redb");
    fs::copy(fixture(format).join("store.redb"), &file).expect("the fixture is there");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");
    home
}

#[tokio::test]
async fn a_store_of_each_released_format_is_opened_with_everything_in_it() {
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        write(FORMAT);
    }
    let directory = tempfile::tempdir().expect("a directory");
    for format in 1..=FORMAT {
        let home = copied(format, directory.path());
        let engine: Arc<dyn Engine> = Arc::new(RedbEngine::at(&home).expect("free"));
        let store = Store::open_on(engine, &owner()).expect("opened");
        for (_, table, key, value) in ROWS {
            let rows = store.view(move |shown| shown.scan(table, Scan::first(100)));
            let rows = rows.await.expect("read");
            let row = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
            assert!(rows.contains(&row), "format {format}: {key}");
        }
        assert_eq!(store.identity().owner, owner());
    }
}
