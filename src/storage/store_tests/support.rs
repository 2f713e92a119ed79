//! A store on an engine that fails when it is told to, and users that say what they were told.

use std::{
    fs,
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::super::*;

/// How long a test waits for what must come: only a fault reaches it.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn owner(node: &str) -> Owner {
    Owner {
        node_id: node.to_owned(),
        chain_id: "alys".to_owned(),
        network: "regtest".to_owned(),
        first_federation: None,
    }
}

/// A new store, and hold of its engine's faults.
pub(super) fn faulty_store() -> (FaultyEngine, Store) {
    faulty_store_on(MemoryEngine::new())
}

pub(super) fn faulty_store_on(engine: MemoryEngine) -> (FaultyEngine, Store) {
    let faulty = FaultyEngine::new(Arc::new(engine));
    let store = Store::create_on(Arc::new(faulty.handle()), &owner("one")).expect("made");
    (faulty, store)
}

/// A new store on a disk, and hold of its engine's faults.
pub(super) fn disk_store(directory: &Path) -> (FaultyEngine, Store) {
    let engine = RedbEngine::create(directory, false).expect("made");
    let faulty = FaultyEngine::new(Arc::new(engine));
    let store = Store::create_on(Arc::new(faulty.handle()), &owner("one")).expect("made");
    (faulty, store)
}

/// The store of a directory, opened again.
pub(super) fn reopened(directory: &Path) -> Store {
    let engine = RedbEngine::at(directory).expect("free");
    Store::open_on(Arc::new(engine), &owner("one")).expect("opened")
}

/// Goes on, whatever is told.
pub(super) fn go_on(_: CopyProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A user, and what it was told.
pub(super) struct Told {
    pub(super) user: User,
    events: Receiver<StoreEvent>,
    name: &'static str,
}

pub(super) fn register(store: &Store, name: &'static str) -> Told {
    let (tell, events) = mpsc::channel();
    let user = store.register(name, move |event| {
        let _ = tell.send(event);
    });
    Told { user, events, name }
}

impl Told {
    pub(super) fn next(&self) -> StoreEvent {
        self.events.recv_timeout(PATIENCE).expect("it is told")
    }

    pub(super) fn opened(&self) -> Generation {
        match self.next() {
            StoreEvent::Opened(generation) => generation,
            other => panic!("{} was told {other:?}", self.name),
        }
    }

    pub(super) fn failed(&self) -> StoreError {
        match self.next() {
            StoreEvent::Failed(_, fault) => fault,
            other => panic!("{} was told {other:?}", self.name),
        }
    }

    pub(super) fn committed(&self, generation: Generation, ticket: Ticket) {
        assert_eq!(self.next(), StoreEvent::Committed(generation, ticket));
    }

    /// Nothing was told that was not taken note of.
    pub(super) fn is_told_nothing(&self) {
        match self.events.recv_timeout(Duration::ZERO) {
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            Ok(event) => panic!("{} was told {event:?}", self.name),
        }
    }

    /// Hands in a batch of two rows, `key` and `key'`.
    pub(super) fn put(&self, generation: Generation, key: &str) -> Ticket {
        self.put_bytes(generation, key, 1)
    }

    pub(super) fn put_bytes(&self, generation: Generation, key: &str, bytes: usize) -> Ticket {
        let batch = self.batch(key, bytes);
        self.user.commit(generation, batch).expect("taken")
    }

    pub(super) fn batch(&self, key: &str, bytes: usize) -> Batch {
        let mut batch = Batch::new();
        batch.put(table(self.name), key, vec![7; bytes]);
        batch.put(table(self.name), format!("{key}'"), vec![7]);
        batch
    }

    /// Has the commit of an empty batch come through.
    pub(super) fn settles(&self, generation: Generation) {
        let ticket = self.user.commit(generation, Batch::new()).expect("taken");
        self.committed(generation, ticket);
    }

    pub(super) fn look_up(
        &self,
        generation: Generation,
        key: &'static str,
    ) -> Receiver<Result<bool, StoreError>> {
        let (tell, told) = mpsc::channel();
        let name = self.name;
        self.user.look_up(
            generation,
            move |shown| Ok(shown.get(table(name).name(), key.as_bytes())?.is_some()),
            move |answer| {
                let _ = tell.send(answer);
            },
        );
        told
    }
}

pub(super) fn table(user: &str) -> Table {
    Table::new(match user {
        "a" => "a/rows",
        "b" => "b/rows",
        "c" => "c/rows",
        "d" => "d/rows",
        other => panic!("no table for {other}"),
    })
}

/// The keys that are in a user's table.
pub(super) fn keys(store: &Store, user: &str) -> Vec<String> {
    let name = table(user).name();
    let (tell, told) = mpsc::channel();
    let reader = store.register("reader", move |event| {
        if let StoreEvent::Opened(generation) = event {
            let _ = tell.send(generation);
        }
    });
    let generation = told.recv_timeout(PATIENCE).expect("it is open");
    let (tell, told) = mpsc::channel();
    reader.scan(
        generation,
        move |shown| shown.scan(name, Scan::first(usize::MAX)),
        move |answer| {
            let _ = tell.send(answer);
        },
    );
    let rows = told.recv_timeout(PATIENCE).expect("answered");
    let rows = rows.expect("read").into_iter();
    rows.map(|(key, _)| String::from_utf8(key).expect("text"))
        .collect()
}

/// Waits for something that nobody tells of.
pub(super) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let (_never, nothing) = mpsc::channel::<()>();
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "it never came that {what}");
        let _ = nothing.recv_timeout(Duration::from_millis(1));
    }
}

/// Flips a bit in the middle of the value of many sevens that is in a file's tables. Says whether there
/// is one.
pub(super) fn flip(file: &Path) -> bool {
    let bytes = fs::read(file).expect("read");
    let at = bytes.windows(2000).rposition(|part| part == [7; 2000]);
    let at = at.expect("the value is there") + 1000;
    let is_behind_the_log = at > 16 << 20;
    if is_behind_the_log {
        let file = fs::File::options().write(true).open(file);
        let file = file.expect("opened");
        file.write_all_at(&[bytes[at] ^ 1], at as u64)
            .expect("written");
    }
    is_behind_the_log
}
