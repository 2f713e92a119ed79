//! What was committed since the tables were last written, in memory, beside its entries in the log.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use crate::storage::{
    batch::Change,
    engine::{Row, Scan},
    memory::is_empty,
};

/// A row's value as of some commit; `None` once it is removed.
type Value = Option<Vec<u8>>;
type Tables = BTreeMap<Cow<'static, str>, BTreeMap<Vec<u8>, Versions>>;

/// A row's values, each with the commit that wrote it. Most rows have one.
#[derive(Debug)]
struct Versions {
    last: (u64, Value),
    /// Oldest first.
    before: Vec<(u64, Value)>,
}

impl Versions {
    fn as_of(&self, commit: u64) -> Option<&Value> {
        let mut newest_first = std::iter::once(&self.last).chain(self.before.iter().rev());
        let found = newest_first.find(|(number, _)| *number <= commit);
        found.map(|(_, value)| value)
    }
}

/// Rows that are looked at together with a lock held.
const CHUNK: usize = 256;

/// The changes of some commits in a row. Its size is bounded by the area of the log that has them.
#[derive(Debug, Default)]
pub(super) struct Memtable(RwLock<Tables>);

impl Memtable {
    fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what commit `number` changes. Whoever looks as of an earlier commit does not see it.
    pub(super) fn add<'a>(&self, number: u64, changes: impl IntoIterator<Item = &'a Change>) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            let rows = match tables.get_mut(&change.table) {
                Some(rows) => rows,
                None => tables.entry(change.table.clone()).or_default(),
            };
            let value = (number, change.value.clone());
            match rows.get_mut(&change.key) {
                Some(versions) => {
                    let before = std::mem::replace(&mut versions.last, value);
                    versions.before.push(before);
                }
                None => {
                    let versions = Versions {
                        last: value,
                        before: Vec::new(),
                    };
                    rows.insert(change.key.clone(), versions);
                }
            }
        }
    }

    /// Has `each` see the last value of every row, by table and in the order of the keys.
    pub(super) fn last_values<E>(
        &self,
        mut each: impl for<'a> FnMut(
            &str,
            &mut dyn Iterator<Item = (&'a Vec<u8>, &'a Value)>,
        ) -> Result<(), E>,
    ) -> Result<(), E> {
        for (table, rows) in self.tables().iter() {
            let mut values = rows.iter().map(|(key, versions)| (key, &versions.last.1));
            each(table, &mut values)?;
        }
        Ok(())
    }

    fn get(&self, table: &str, key: &[u8], commit: u64) -> Option<Value> {
        let tables = self.tables();
        let versions = tables.get(table)?.get(key)?;
        versions.as_of(commit).cloned()
    }

    fn table_names(&self) -> Vec<String> {
        self.tables().keys().map(ToString::to_string).collect()
    }
}

/// What lies over the tables of one opening: what goes into them just now, and what came since.
#[derive(Debug, Clone, Default)]
pub(super) struct Layers {
    /// The last commit.
    pub(super) commit: u64,
    pub(super) active: Arc<Memtable>,
    pub(super) frozen: Option<Arc<Memtable>>,
}

impl Layers {
    fn newest_first(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(self.active.as_ref()).chain(self.frozen.as_deref())
    }

    /// The row, if these say anything of it.
    pub(super) fn get(&self, table: &str, key: &[u8]) -> Option<Value> {
        self.newest_first()
            .find_map(|memtable| memtable.get(table, key, self.commit))
    }

    /// The rows of a scan, where `base` has those of the tables beneath, in the scan's order.
    pub(super) fn over<'a, E>(
        &'a self,
        table: &'a str,
        scan: &Scan<'a>,
        base: impl Iterator<Item = Result<Row, E>> + 'a,
    ) -> impl Iterator<Item = Result<Row, E>> + 'a {
        self.merged(table, scan, base).filter_map(|row| match row {
            Ok((key, Some(value))) => Some(Ok((key, value))),
            Ok((_, None)) => None,
            Err(error) => Some(Err(error)),
        })
    }

    /// What these change in each table that they have anything of: every key, and whether it is
    /// there now.
    pub(super) fn changed(&self) -> impl Iterator<Item = (String, Vec<(Vec<u8>, bool)>)> + '_ {
        let mut names: Vec<String> = self
            .newest_first()
            .flat_map(Memtable::table_names)
            .collect();
        names.sort();
        names.dedup();
        names.into_iter().map(|name| {
            let all = Scan::first(usize::MAX);
            let none = std::iter::empty::<Result<Row, std::convert::Infallible>>();
            let keys = self.merged(&name, &all, none);
            let keys = keys.flatten().map(|(key, value)| (key, value.is_some()));
            let keys = keys.collect();
            (name, keys)
        })
    }

    fn merged<'a, E>(
        &'a self,
        table: &'a str,
        scan: &Scan<'a>,
        base: impl Iterator<Item = Result<Row, E>> + 'a,
    ) -> impl Iterator<Item = Result<(Vec<u8>, Value), E>> + 'a {
        let mut base = base.peekable();
        let mut walks: Vec<_> = self
            .newest_first()
            .map(|memtable| Walk::new(memtable, table, self.commit, scan).peekable())
            .collect();
        let backwards = scan.backwards;
        std::iter::from_fn(move || {
            if base.peek().is_some_and(Result::is_err) {
                let error = base.next()?.err()?;
                return Some(Err(error));
            }
            let of_base = base.peek().and_then(|row| row.as_ref().ok());
            let of_base = of_base.map(|(key, _)| key);
            let of_walks = walks.iter_mut().filter_map(|walk| walk.peek());
            let keys = of_walks.map(|(key, _)| key).chain(of_base);
            let next = if backwards { keys.max() } else { keys.min() };
            let key = next?.clone();
            // The newest layer wins; the same key is skipped in the older ones.
            let mut value: Option<Value> = None;
            for walk in &mut walks {
                if let Some((_, found)) = walk.next_if(|(found, _)| *found == key) {
                    value.get_or_insert(found);
                }
            }
            let is_it = |row: &Result<Row, E>| row.as_ref().is_ok_and(|(found, _)| *found == key);
            if let Some(Ok((_, found))) = base.next_if(is_it) {
                value.get_or_insert(Some(found));
            }
            Some(Ok((key, value.flatten())))
        })
    }
}

/// Goes through the rows of one table, a few at a time: a commit never waits for a long scan.
struct Walk<'a> {
    memtable: &'a Memtable,
    table: &'a str,
    commit: u64,
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
    backwards: bool,
    ready: VecDeque<(Vec<u8>, Value)>,
    is_at_its_end: bool,
}

impl<'a> Walk<'a> {
    fn new(memtable: &'a Memtable, table: &'a str, commit: u64, scan: &Scan<'_>) -> Self {
        Self {
            memtable,
            table,
            commit,
            from: scan.from.map(<[u8]>::to_vec),
            to: scan.to.map(<[u8]>::to_vec),
            backwards: scan.backwards,
            ready: VecDeque::new(),
            is_at_its_end: false,
        }
    }

    fn fill(&mut self) {
        let bounds = Scan {
            from: self.from.as_ref().map(Vec::as_slice),
            to: self.to.as_ref().map(Vec::as_slice),
            ..Scan::first(CHUNK)
        };
        let tables = self.memtable.tables();
        let rows = tables.get(self.table).filter(|_| !is_empty(&bounds));
        let Some(rows) = rows else {
            self.is_at_its_end = true;
            return;
        };
        let mut rows = rows.range::<[u8], _>((bounds.from, bounds.to));
        let mut last = None;
        for _ in 0..CHUNK {
            let next = if self.backwards {
                rows.next_back()
            } else {
                rows.next()
            };
            let Some((key, versions)) = next else {
                self.is_at_its_end = true;
                return;
            };
            if let Some(value) = versions.as_of(self.commit) {
                self.ready.push_back((key.clone(), value.clone()));
            }
            last = Some(key.clone());
        }
        let beyond = last.map_or(Bound::Unbounded, Bound::Excluded);
        if self.backwards {
            self.to = beyond;
        } else {
            self.from = beyond;
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = (Vec<u8>, Value);

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.is_at_its_end {
            self.fill();
        }
        self.ready.pop_front()
    }
}
