//! The rules that every engine keeps. An engine is put to the test by [`check`]; one over a disk that
//! can be made to fail by [`faults`] as well.

mod fault_tests;
pub(super) mod faults;

use std::{collections::BTreeMap, ops::Bound};

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

use super::{
    batch::{Batch, Change, Table},
    embedded::RedbEngine,
    engine::{Engine, Scan},
    faulty_disk::FaultyDisk,
    memory::MemoryEngine,
};

const ONE: Table = Table::new("test/one");
const TWO: Table = Table::new("test/two");

type Model = BTreeMap<(String, Vec<u8>), Vec<u8>>;
type Rule = fn(&dyn Engine);
type Make<'a> = &'a dyn Fn() -> Box<dyn Engine>;

/// Has an engine show that it keeps every rule. `make` makes an empty store that nobody has opened.
pub(super) fn check(make: Make<'_>) {
    let rules: [Rule; 9] = [
        commits_are_numbered,
        another_number_is_refused,
        a_later_change_wins,
        a_commit_without_changes_counts,
        a_snapshot_stays_as_it_is,
        a_scan_has_its_bounds,
        tables_are_listed,
        sizes,
        readers_see_whole_commits,
    ];
    for rule in rules {
        let engine = make();
        assert_eq!(engine.open(), Ok(0), "an empty store");
        rule(engine.as_ref());
    }
    it_is_a_map(make);
}

fn put(table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Batch {
    let mut batch = Batch::new();
    batch.put(table, key, value);
    batch
}

fn get(engine: &dyn Engine, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    let snapshot = engine.snapshot().expect("open");
    snapshot.get(table.name(), key).expect("readable")
}

fn commits_are_numbered(engine: &dyn Engine) {
    for number in 1..=3_u8 {
        let batch = put(ONE, [number], [number]);
        assert_eq!(engine.commit(u64::from(number), &[batch]), Ok(()));
        let snapshot = engine.snapshot().expect("open");
        assert_eq!(snapshot.commit(), u64::from(number));
    }
    assert_eq!(engine.open(), Ok(3));
    assert_eq!(engine.snapshot().expect("open").commit(), 3);
    for number in 1..=3 {
        assert_eq!(get(engine, ONE, &[number]), Some(vec![number]));
    }
    assert_eq!(engine.commit(4, &[]), Ok(()));
    assert_eq!(engine.open(), Ok(4));
    assert_eq!(engine.open(), Ok(4), "as often as one likes");
}

fn another_number_is_refused(engine: &dyn Engine) {
    assert_eq!(engine.commit(1, &[put(ONE, "a", "1")]), Ok(()));
    for number in [0, 1, 3, u64::MAX] {
        let refused = engine.commit(number, &[put(ONE, "a", "other")]);
        assert!(refused.is_err(), "{number} after 1");
        assert_eq!(engine.open(), Ok(1));
        assert_eq!(get(engine, ONE, b"a"), Some(b"1".to_vec()));
    }
    assert_eq!(engine.commit(2, &[]), Ok(()));
}

fn a_later_change_wins(engine: &dyn Engine) {
    let mut one = Batch::new();
    one.put(ONE, "twice", "first");
    one.put(ONE, "twice", "second");
    one.put(ONE, "gone", "there");
    one.remove(ONE, "gone");
    one.remove(ONE, "back");
    one.put(ONE, "back", "again");
    one.put(ONE, "across", "one");
    one.put(TWO, "twice", "another table's");
    let mut two = Batch::new();
    two.put(ONE, "across", "two");
    two.remove(ONE, "never there");
    assert_eq!(engine.commit(1, &[one, two]), Ok(()));
    let value = |key: &str| get(engine, ONE, key.as_bytes());
    assert_eq!(value("twice"), Some(b"second".to_vec()));
    assert_eq!(value("gone"), None);
    assert_eq!(value("back"), Some(b"again".to_vec()));
    assert_eq!(value("across"), Some(b"two".to_vec()));
    assert_eq!(
        get(engine, TWO, b"twice"),
        Some(b"another table's".to_vec())
    );
}

fn a_commit_without_changes_counts(engine: &dyn Engine) {
    assert_eq!(engine.commit(1, &[]), Ok(()));
    assert_eq!(engine.commit(2, &[Batch::new(), Batch::new()]), Ok(()));
    assert_eq!(engine.open(), Ok(2));
    assert_eq!(engine.snapshot().expect("open").tables(), Ok(Vec::new()));
    // More than fit wherever an engine may note them.
    for number in 3..60 {
        assert_eq!(engine.commit(number, &[]), Ok(()));
        if number == 17 {
            engine.checkpoint();
        }
    }
    assert_eq!(engine.open(), Ok(59));
    // As after a failure: whatever was noted goes where it stays.
    assert!(engine.commit(99, &[]).is_err());
    for number in 59..90 {
        assert_eq!(engine.open(), Ok(number));
        assert_eq!(engine.commit(number + 1, &[]), Ok(()));
    }
    assert_eq!(engine.commit(91, &[put(ONE, "a", "1")]), Ok(()));
    assert_eq!(engine.open(), Ok(91));
    assert_eq!(get(engine, ONE, b"a"), Some(b"1".to_vec()));
}

fn a_snapshot_stays_as_it_is(engine: &dyn Engine) {
    assert_eq!(
        engine.commit(1, &[put(ONE, "a", "1"), put(ONE, "b", "1")]),
        Ok(())
    );
    let snapshot = engine.snapshot().expect("open");
    for number in 2..=20 {
        let mut batch = put(ONE, "a", number.to_string());
        batch.remove(ONE, "b");
        batch.put(TWO, number.to_string(), "new");
        assert_eq!(engine.commit(number, &[batch]), Ok(()));
    }
    assert_eq!(snapshot.commit(), 1);
    assert_eq!(snapshot.get(ONE.name(), b"a"), Ok(Some(b"1".to_vec())));
    assert_eq!(snapshot.get(ONE.name(), b"b"), Ok(Some(b"1".to_vec())));
    assert_eq!(snapshot.scan(TWO.name(), Scan::first(9)), Ok(Vec::new()));
    assert_eq!(snapshot.tables(), Ok(vec![(ONE.name().to_owned(), 2)]));
    assert_eq!(get(engine, ONE, b"a"), Some(b"20".to_vec()));
}

fn a_scan_has_its_bounds(engine: &dyn Engine) {
    let mut batch = Batch::new();
    for key in ["b", "d", "f"] {
        batch.put(ONE, key, key);
    }
    assert_eq!(engine.commit(1, &[batch]), Ok(()));
    let snapshot = engine.snapshot().expect("open");
    let keys = |scan: Scan<'_>| -> String {
        let rows = snapshot.scan(ONE.name(), scan).expect("readable");
        rows.iter().map(|(key, _)| char::from(key[0])).collect()
    };
    assert_eq!(keys(Scan::first(9)), "bdf");
    assert_eq!(keys(Scan::first(2)), "bd");
    assert_eq!(keys(Scan::first(0)), "");
    assert_eq!(keys(Scan::last(2)), "fd");
    assert_eq!(keys(Scan::first(9).after(b"b")), "df");
    assert_eq!(keys(Scan::first(9).from(b"b")), "bdf");
    assert_eq!(keys(Scan::first(9).from(b"c")), "df");
    assert_eq!(keys(Scan::first(9).before(b"d")), "b");
    assert_eq!(keys(Scan::last(1).before(b"d")), "b");
    assert_eq!(keys(Scan::last(9).after(b"b").before(b"f")), "d");
    assert_eq!(keys(Scan::first(9).after(b"f")), "");
    assert_eq!(keys(Scan::first(9).after(b"d").before(b"d")), "");
    assert_eq!(
        keys(Scan::first(9).from(b"f").before(b"b")),
        "",
        "the wrong way round"
    );
    assert_eq!(snapshot.scan("test/none", Scan::first(9)), Ok(Vec::new()));
    assert_eq!(snapshot.get("test/none", b"a"), Ok(None));
}

fn tables_are_listed(engine: &dyn Engine) {
    let mut batch = put(TWO, "a", "");
    batch.put(TWO, "b", "");
    batch.put(ONE, "a", "");
    batch.put(Table::new("other/gone"), "a", "");
    assert_eq!(engine.commit(1, &[batch]), Ok(()));
    let mut batch = Batch::new();
    batch.remove(Table::new("other/gone"), "a");
    batch.remove(Table::new("other/never"), "a");
    assert_eq!(engine.commit(2, &[batch]), Ok(()));
    let tables = engine.snapshot().expect("open").tables().expect("readable");
    let expected = [(ONE.name().to_owned(), 1), (TWO.name().to_owned(), 2)];
    assert_eq!(tables, expected);
}

fn sizes(engine: &dyn Engine) {
    let limits = engine.limits();
    let key = vec![7; limits.key_bytes];
    let big = vec![9; limits.value_bytes.min(4 << 20)];
    let batch = [put(ONE, key.clone(), big.clone()), put(ONE, "empty", "")];
    assert_eq!(engine.commit(1, &batch), Ok(()));
    assert_eq!(engine.open(), Ok(1));
    assert_eq!(get(engine, ONE, &key), Some(big));
    assert_eq!(get(engine, ONE, b"empty"), Some(Vec::new()));
    assert!(engine.usage().expect("known").bytes > 0);
}

/// One thread commits the same number to two tables, others read both.
fn readers_see_whole_commits(engine: &dyn Engine) {
    const COMMITS: u64 = 100;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while last < COMMITS {
                    let snapshot = engine.snapshot().expect("open");
                    let one = snapshot.get(ONE.name(), b"n").expect("readable");
                    let two = snapshot.get(TWO.name(), b"n").expect("readable");
                    assert_eq!(one, two);
                    assert!(snapshot.commit() >= last, "it goes forward");
                    last = snapshot.commit();
                    let number = (last > 0).then(|| last.to_be_bytes().to_vec());
                    assert_eq!(one, number, "the commit that it says");
                }
            });
        }
        for number in 1..=COMMITS {
            let value = number.to_be_bytes();
            let batches = [put(ONE, "n", value), put(TWO, "n", value)];
            assert_eq!(engine.commit(number, &batches), Ok(()));
        }
    });
}

fn change() -> impl Strategy<Value = Change> {
    let table = prop::sample::select(vec![ONE.name(), TWO.name(), "other/three"]);
    let value = prop::option::weighted(0.7, vec(any::<u8>(), 0..600));
    (table, vec(0..4_u8, 1..4), value).prop_map(|(table, key, value)| Change {
        table: table.into(),
        key,
        value,
    })
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        vec(0..4_u8, 0..4).prop_map(Bound::Included),
        vec(0..4_u8, 0..4).prop_map(Bound::Excluded),
    ]
}

fn borrowed(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

/// Whatever is committed: it reads as a map would, at once and when it is opened again.
fn it_is_a_map(make: Make<'_>) {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(16));
    let commits = vec((vec(vec(change(), 0..12), 0..4), any::<bool>()), 0..12);
    let scans = vec((bound(), bound(), 0..20_usize, any::<bool>()), 1..8);
    let tested = runner.run(&(commits, scans), |(commits, scans)| {
        let engine = make();
        prop_assert_eq!(engine.open(), Ok(0));
        let mut model = Model::new();
        for (number, (batches, reopens)) in (1..).zip(commits) {
            let batches: Vec<Batch> = batches
                .into_iter()
                .map(|changes| {
                    let mut batch = Batch::new();
                    changes.into_iter().for_each(|change| batch.push(change));
                    batch
                })
                .collect();
            for change in batches.iter().flat_map(Batch::changes) {
                let key = (change.table.clone().into_owned(), change.key.clone());
                match &change.value {
                    Some(value) => model.insert(key, value.clone()),
                    None => model.remove(&key),
                };
            }
            prop_assert_eq!(engine.commit(number, &batches), Ok(()));
            if reopens {
                prop_assert_eq!(engine.open(), Ok(number));
            } else if number.is_multiple_of(3) {
                engine.checkpoint();
            }
            let snapshot = engine.snapshot().expect("open");
            let mut counts = BTreeMap::new();
            for (table, _) in model.keys() {
                *counts.entry(table.clone()).or_insert(0_u64) += 1;
            }
            prop_assert_eq!(snapshot.tables(), Ok(counts.into_iter().collect()));
            for (from, to, limit, backwards) in &scans {
                let scan = Scan {
                    from: borrowed(from),
                    to: borrowed(to),
                    backwards: *backwards,
                    ..Scan::first(*limit)
                };
                let rows = model.iter().filter(|((table, key), _)| {
                    table == ONE.name()
                        && std::ops::RangeBounds::<[u8]>::contains(
                            &(borrowed(from), borrowed(to)),
                            key.as_slice(),
                        )
                });
                let rows = rows.map(|((_, key), value)| (key.clone(), value.clone()));
                let mut expected: Vec<_> = rows.collect();
                if *backwards {
                    expected.reverse();
                }
                expected.truncate(*limit);
                prop_assert_eq!(snapshot.scan(ONE.name(), scan), Ok(expected));
            }
        }
        Ok(())
    });
    tested.expect("a map");
}

#[test]
fn the_memory_engine_keeps_the_rules() {
    check(&|| Box::new(MemoryEngine::new()));
}

#[test]
fn the_redb_engine_keeps_the_rules() {
    check(&|| {
        let disk = FaultyDisk::default();
        RedbEngine::format("a disk", disk.open().expect("there")).expect("made");
        Box::new(RedbEngine::with_storage("a disk", move || disk.open()))
    });
}

#[test]
fn the_redb_engine_keeps_the_rules_in_a_directory() {
    let directories = tempfile::tempdir().expect("a directory");
    let number = std::cell::Cell::new(0);
    check(&|| {
        number.set(number.get() + 1);
        let directory = directories.path().join(number.get().to_string());
        Box::new(RedbEngine::create(directory, false).expect("made"))
    });
}
