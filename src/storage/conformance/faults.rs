//! What an engine is put through on a disk that fails, and how it is judged.

use std::collections::BTreeMap;

use crate::storage::{
    batch::{Batch, Table},
    engine::{Engine, Scan},
    error::StoreError,
    faulty_disk::FaultyDisk,
};

const ROWS: Table = Table::new("test/rows");
const LAST: Table = Table::new("test/last");
/// A row is removed after so many commits.
const KEPT: u64 = 40;
/// Rows that the first commit puts and none removes: most pages of the tree outlive many commits.
const LASTING: u64 = 1000;
const PLACE: &str = "store on a faulty disk";

/// What the engine under test makes of a disk.
pub(super) type Start = fn(&'static str, FaultyDisk) -> Box<dyn Engine>;

/// A store on a disk, and what was confirmed of it.
pub(super) struct Rig {
    pub(super) disk: FaultyDisk,
    pub(super) engine: Box<dyn Engine>,
    start: Start,
    /// The last commit that was confirmed.
    pub(super) confirmed: u64,
    /// The last one that the engine says is there: the next one is one more.
    last: u64,
}

/// How an engine broke its word.
pub(super) type Broken = String;

/// A store that kept its word.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Everything that was confirmed is there.
    Whole,
    /// It was refused, by an error that names the file.
    Refused(StoreError),
}

impl Rig {
    /// A store of this sort on a disk where one was made.
    pub(super) fn new(disk: FaultyDisk, start: Start) -> Self {
        let engine = start(PLACE, disk.clone());
        let mut rig = Self {
            disk,
            engine,
            start,
            confirmed: 0,
            last: 0,
        };
        assert_eq!(rig.open(), Ok(Kept::Whole));
        rig
    }

    /// The same store once more, on a disk of its own, started anew.
    pub(super) fn copy(&self) -> Self {
        let disk = self.disk.copy();
        Self {
            engine: (self.start)(PLACE, disk.clone()),
            disk,
            start: self.start,
            confirmed: self.confirmed,
            last: self.last,
        }
    }

    /// The process dies, and another one starts; the disk goes on.
    pub(super) fn restart(&mut self) {
        // What the dying one would still do happens on a disk that nobody looks at.
        let disk = self.disk.copy();
        self.engine = (self.start)(PLACE, disk.clone());
        self.disk = disk;
    }

    /// The power goes, and with it whatever the process was doing. Of what no sync covered the disk
    /// has what `keeps` picks.
    pub(super) fn lose_power(&self, keeps: impl FnMut(usize) -> bool) {
        self.engine.close();
        self.disk.lose_power(keeps);
    }

    /// Opens it, and judges what is there.
    pub(super) fn open(&mut self) -> Result<Kept, Broken> {
        match self.engine.open() {
            Ok(found) if found < self.confirmed => Err(format!(
                "commit {} was confirmed, and the last one is {found}",
                self.confirmed
            )),
            Ok(found) => {
                self.last = found;
                self.look()
            }
            Err(error) => refused(error),
        }
    }

    /// Judges what can be read.
    pub(super) fn look(&self) -> Result<Kept, Broken> {
        let read = || {
            let snapshot = self.engine.snapshot()?;
            let rows = snapshot.scan(ROWS.name(), Scan::first(usize::MAX))?;
            let last = snapshot.get(LAST.name(), b"last")?;
            let tables = snapshot.tables()?;
            Ok((snapshot.commit(), rows, last, tables))
        };
        let (commit, rows, last, tables) = match read() {
            Ok(read) => read,
            Err(error) => return refused(error),
        };
        if commit < self.confirmed {
            return Err(format!(
                "{} was confirmed, {commit} is read",
                self.confirmed
            ));
        }
        let expected = expected(commit);
        let expected_last = (commit > 0).then(|| commit.to_be_bytes().to_vec());
        let is_whole = rows.iter().map(|(key, value)| (key, value)).eq(&expected);
        if !is_whole || last != expected_last {
            return Err(format!("commit {commit} is not what was written in it"));
        }
        let counted = tables.iter().find(|(name, _)| name == ROWS.name());
        if counted.map_or(0, |(_, rows)| *rows) != expected.len() as u64 {
            return Err(format!("commit {commit} has {counted:?}"));
        }
        Ok(Kept::Whole)
    }

    /// Makes the next commit.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        let number = self.last + 1;
        self.engine.commit(number, &batches(number))?;
        self.last = number;
        self.confirmed = number;
        Ok(())
    }

    /// As the store does after a failure: opens it until that works, and makes a commit of its own
    /// before it says anything to anyone.
    pub(super) fn recover(&mut self) -> Result<Kept, Broken> {
        let mut kept = Kept::Whole;
        for _ in 0..3 {
            kept = self.open()?;
            if kept == Kept::Whole && self.commit().is_ok() {
                return Ok(kept);
            }
        }
        Ok(kept)
    }

    /// Makes so many commits, which work.
    pub(super) fn commits(&mut self, count: u64) {
        for _ in 0..count {
            assert_eq!(self.commit(), Ok(()));
        }
    }
}

fn refused(error: StoreError) -> Result<Kept, Broken> {
    let is_named = match &error {
        StoreError::Damaged { place, .. }
        | StoreError::Absent { place }
        | StoreError::Io { place, .. }
        | StoreError::Closed { place } => place == PLACE,
        _ => false,
    };
    if is_named {
        Ok(Kept::Refused(error))
    } else {
        Err(format!("it is refused as {error:?}"))
    }
}

/// What commit `number` changes: a row comes, one goes, and one is written over.
fn batches(number: u64) -> [Batch; 2] {
    let mut rows = Batch::new();
    if number == 1 {
        lasting().for_each(|(key, value)| rows.put(ROWS, key, value));
    }
    rows.put(ROWS, key(number), value(number));
    if let Some(old) = number.checked_sub(KEPT) {
        rows.remove(ROWS, key(old));
    }
    let mut last = Batch::new();
    last.put(LAST, "last", number.to_be_bytes());
    [rows, last]
}

/// The rows after commit `number`.
fn expected(number: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let first = (number + 1).saturating_sub(KEPT).max(1);
    let rows = (first..=number).map(|number| (key(number), value(number)));
    rows.chain(lasting().filter(|_| number > 0)).collect()
}

fn lasting() -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    (1..=LASTING).map(|number| (key(number << 32), value(number)))
}

/// Scattered, so that pages in the middle change.
fn key(number: u64) -> Vec<u8> {
    number
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes()
        .to_vec()
}

fn value(number: u64) -> Vec<u8> {
    (0..300).map(|index| (number * 7 + index) as u8).collect()
}
