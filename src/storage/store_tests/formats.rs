//! From one format to the next, with a made-up step.

use std::{fs, sync::Arc};

use super::{
    super::{
        format::{Migration, Step, migrate},
        owner::{FORMAT, read_format},
        *,
    },
    support::*,
};

const NEXT: u32 = FORMAT + 1;

/// Format 2 of this test keeps each row in another table, under a longer key. Two rows a step.
const MOVE: Migration = Migration {
    from: FORMAT,
    step: |shown, after| {
        let page = Scan::first(2);
        let page = after.map_or(page, |after| page.after(after));
        let rows = shown.scan("a/rows", page)?;
        let mut step = Step::default();
        for (key, value) in &rows {
            step.batch.remove(Table::new("a/rows"), key.clone());
            let key = [b"2 ".as_slice(), key].concat();
            step.batch.put(Table::new("a/moved"), key, value.clone());
        }
        step.next = rows.last().map(|(key, _)| key.clone());
        Ok(step)
    },
};

fn filled(store: &Store) {
    let a = register(store, "a");
    let generation = a.opened();
    for key in ["one", "two", "three"] {
        let ticket = a.put(generation, key);
        a.committed(generation, ticket);
    }
}

fn rows(engine: &dyn Engine, table: &str) -> Vec<String> {
    let shown = engine.snapshot().expect("read");
    let rows = shown.scan(table, Scan::first(usize::MAX)).expect("read");
    let keys = rows.into_iter().map(|(key, _)| key);
    keys.map(|key| String::from_utf8(key).expect("text"))
        .collect()
}

fn check_moved(engine: &dyn Engine) {
    assert!(rows(engine, "a/rows").is_empty());
    let moved = ["one", "one'", "three", "three'", "two", "two'"];
    let moved = moved.map(|key| format!("2 {key}"));
    assert_eq!(rows(engine, "a/moved"), moved);
    let shown = engine.snapshot().expect("read");
    assert_eq!(read_format("(test)", &*shown), Ok(NEXT));
    // What is kept of the way there is gone.
    assert_eq!(shown.get("store/meta", b"migrating"), Ok(None));
}

/// The engine of a store that is closed.
fn closed() -> (Arc<MemoryEngine>, FaultyEngine) {
    let engine = Arc::new(MemoryEngine::new());
    let store = Store::create_on(Arc::clone(&engine) as Arc<dyn Engine>, &owner("one"));
    filled(&store.expect("made"));
    let faulty = FaultyEngine::new(Arc::clone(&engine) as Arc<dyn Engine>);
    (engine, faulty)
}

#[test]
fn a_migration_that_crashes_anywhere_goes_on_where_it_ended() {
    for kept in [Kept::Nothing, Kept::All] {
        for crash in 1..=4 {
            let (engine, faulty) = closed();
            let last = faulty.open().expect("opened");
            faulty.fail_commit(crash, kept);
            migrate(&faulty, last, NEXT, &[MOVE]).expect_err("a crash");
            let has_begun = crash > 1 || kept == Kept::All;
            // The version before does not take half of it for its own.
            let old = Store::open_on(Arc::clone(&engine) as Arc<dyn Engine>, &owner("one"));
            match old {
                Err(StoreError::Format { found, ours, .. }) => {
                    assert_eq!((found, ours), (NEXT, FORMAT));
                    assert!(has_begun);
                }
                Err(other) => panic!("{other}"),
                Ok(_) => assert!(!has_begun),
            }
            let last = faulty.open().expect("opened");
            let last = migrate(&faulty, last, NEXT, &[MOVE]).expect("goes on");
            check_moved(&*engine);
            // Once is enough.
            assert_eq!(migrate(&faulty, last, NEXT, &[MOVE]), Ok(last));
        }
    }
}

#[test]
fn a_copy_is_kept_before_the_first_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let home = directory.path().join("store");
    let (faulty, store) = disk_store(&home);
    filled(&store);
    drop((store, faulty));
    let engine = RedbEngine::at(&home).expect("free");
    let last = engine.open().expect("opened");
    migrate(&engine, last, NEXT, &[MOVE]).expect("migrated");
    check_moved(&engine);
    drop(engine);
    // The copy is a store of the format before, as it was.
    let copy = home.join("store.redb.format-1");
    let kept = ReadOnlyFile::open(&copy).expect("there");
    let shown = kept.snapshot().expect("read");
    assert_eq!(shown.commit(), last);
    assert_eq!(read_format("(test)", &*shown), Ok(FORMAT));
    drop((shown, kept));
    fs::rename(copy, home.join("store.redb")).expect("put back");
    assert_eq!(keys(&reopened(&home), "a").len(), 6);
}

#[test]
fn a_format_that_is_newer_or_too_old_is_refused_by_name() {
    let (_, faulty) = closed();
    let last = faulty.open().expect("opened");
    let advice = |result| match result {
        Err(StoreError::Format { advice, .. }) => advice,
        other => panic!("{other:?}"),
    };
    let none = advice(migrate(&faulty, last, NEXT, &[]));
    assert!(none.contains("the versions in between"), "{none}");
    let last = migrate(&faulty, last, NEXT, &[MOVE]).expect("migrated");
    let newer = advice(migrate(&faulty, last, FORMAT, &[]));
    assert!(newer.contains("newer version"), "{newer}");
    let several = [
        MOVE,
        Migration {
            from: NEXT,
            step: |_, _| Ok(Step::default()),
        },
    ];
    let (_, faulty) = closed();
    let last = faulty.open().expect("opened");
    migrate(&faulty, last, NEXT + 1, &several).expect("one after the other");
    let shown = faulty.snapshot().expect("read");
    assert_eq!(read_format("(test)", &*shown), Ok(NEXT + 1));
}
