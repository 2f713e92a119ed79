//! Copies a store's rows while others commit: what a backup and a compaction both are.
//!
//! Rows are copied in the order of their keys, a page under each of many short snapshots. What is
//! committed meanwhile is noted, and copied again; what is noted last is copied while nothing is
//! committed, so that the copy is the state of one commit.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{
    backup_error::BackupError,
    embedded::{CopyWriter, ReadOnlyFile, verify_file},
    engine::{Scan, Snapshot},
    error::StoreError,
    noted::{Noted, RowName},
    shared::Shared,
};

/// Rows and bytes that are read under one snapshot, about.
const PAGE_ROWS: usize = 4096;
const PAGE_BYTES: usize = 1 << 20;
/// Bytes of names of noted rows at which these are copied before the next page.
const NOTED_BYTES: usize = 4 << 20;
/// Bytes of names of noted rows that may be left for the time in which nothing is committed.
const LAST_BYTES: usize = 16 << 10;
/// How often what is noted is copied to get there, before what is left is copied all the same.
const ROUNDS: usize = 10;
/// How long a copy waits for a store that is being opened again.
const REOPEN_PATIENCE: Duration = Duration::from_secs(60);
/// How often whoever waits looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);
/// How often a read is tried again though the store is said to be open.
const RETRIES: u32 = 3;
/// Noted rows that are read before they are written.
const NAMES_AT_ONCE: usize = 64;

/// What a copy is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStage {
    /// Copies rows.
    Copying,
    /// Reads the copy, in blocks.
    Checking,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    /// What it is doing.
    pub stage: CopyStage,
    /// Rows or blocks that are done.
    pub done: u64,
    /// All of them, as of the beginning: more may come.
    pub of: u64,
}

/// Is told how far it has come, and says whether to go on: a `Break` cancels it.
pub type OnProgress<'a> = dyn FnMut(CopyProgress) -> ControlFlow<()> + 'a;

/// Where rows are copied from.
pub(super) trait Source {
    /// Everything that is committed, as of now.
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError>;

    /// Waits a little after this fault, which `times` came before, if it is one that passes; whether
    /// it is.
    fn outlasts(&self, fault: &StoreError, times: u32) -> bool {
        let _ = (fault, times);
        false
    }

    /// Bytes of the names of what was committed since it was taken last.
    fn noted_bytes(&self) -> usize;

    /// The rows that were committed since.
    fn take_noted(&self) -> BTreeSet<RowName>;
}

/// A store that others use meanwhile. What they commit is noted for as long as this lives.
pub(super) struct Live<'a> {
    shared: &'a Shared,
    /// Which of the store's copies it is.
    copy: u64,
}

impl<'a> Live<'a> {
    /// # Errors
    ///
    /// While the store is closed, or another copy is made.
    pub(super) fn begin(shared: &'a Shared) -> Result<Self, BackupError> {
        shared.readable(None)?;
        let mut state = shared.lock();
        if state.noted.is_some() {
            return Err(BackupError::Busy);
        }
        state.copies += 1;
        let copy = state.copies;
        state.noted = Some(Noted::of(copy));
        Ok(Self { shared, copy })
    }
}

impl Live<'_> {
    /// Has what was to be done last do nothing; `false` when it has begun.
    fn give_up(&self) -> bool {
        let mut state = self.shared.lock();
        if state.noted.as_ref().is_some_and(|noted| noted.is_last) {
            return false;
        }
        state.noted = None;
        true
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.shared
            .lock()
            .noted
            .take_if(|noted| noted.is_of(self.copy));
    }
}

impl Source for Live<'_> {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        self.shared.snapshot(None)
    }

    /// A failure of the store passes: what may have become of the commit that failed is noted.
    fn outlasts(&self, fault: &StoreError, times: u32) -> bool {
        let is_damage = matches!(fault, StoreError::Damaged { .. });
        let state = self.shared.lock();
        // A read may learn of the failure before the store does.
        if state.closing || (state.is_open && (is_damage || times >= RETRIES)) {
            return false;
        }
        drop(self.shared.wait_for_end(state, LOOK));
        true
    }

    fn noted_bytes(&self) -> usize {
        self.shared.lock().noted.as_ref().map_or(0, Noted::bytes)
    }

    fn take_noted(&self) -> BTreeSet<RowName> {
        let mut state = self.shared.lock();
        state.noted.as_mut().map(Noted::take).unwrap_or_default()
    }
}

/// A file that nobody writes to.
impl Source for ReadOnlyFile {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        Self::snapshot(self)
    }

    fn noted_bytes(&self) -> usize {
        0
    }

    fn take_noted(&self) -> BTreeSet<RowName> {
        BTreeSet::new()
    }
}

/// Reads what `source` shows now. A store that fails meanwhile is waited for, until it is open again
/// or `each_look` says that nobody wants it any more; then it is read anew.
fn read<T>(
    source: &dyn Source,
    each_look: &mut dyn FnMut() -> Result<(), BackupError>,
    mut read: impl FnMut(&dyn Snapshot) -> Result<T, StoreError>,
) -> Result<T, BackupError> {
    let since = Instant::now();
    for times in 0.. {
        match source.snapshot().and_then(|shown| read(&*shown)) {
            Err(fault) if since.elapsed() < REOPEN_PATIENCE && source.outlasts(&fault, times) => {
                each_look()?;
            }
            read => return Ok(read?),
        }
    }
    Err(BackupError::Cancelled)
}

/// Copies every row, and what is noted meanwhile until little is left.
pub(super) fn copy_rows(
    source: &dyn Source,
    writer: &mut CopyWriter,
    progress: &mut OnProgress<'_>,
) -> Result<(), BackupError> {
    let mut each_look = || go_on(progress, CopyStage::Copying, 0, 0);
    let tables = read(source, &mut each_look, |shown| shown.tables())?;
    let of = tables.iter().map(|(_, rows)| rows).sum();
    let mut done = 0;
    for (table, _) in &tables {
        let mut last: Option<Vec<u8>> = None;
        loop {
            let page = Scan::first(PAGE_ROWS).within(PAGE_BYTES);
            let page = last.as_deref().map_or(page, |last| page.after(last));
            let mut each_look = || go_on(progress, CopyStage::Copying, done, of);
            let rows = read(source, &mut each_look, |shown| shown.scan(table, page))?;
            let Some((key, _)) = rows.last() else {
                break;
            };
            last = Some(key.clone());
            done += rows.len() as u64;
            for (key, value) in rows {
                writer.put(table, key, value)?;
            }
            go_on(progress, CopyStage::Copying, done, of)?;
            if source.noted_bytes() > NOTED_BYTES {
                copy_noted(source, writer, &mut || {
                    go_on(progress, CopyStage::Copying, done, of)
                })?;
            }
        }
    }
    catch_up(source, writer, &mut || {
        go_on(progress, CopyStage::Copying, done, of)
    })
}

/// Copies what is noted, until little is left.
pub(super) fn catch_up(
    source: &dyn Source,
    writer: &mut CopyWriter,
    each_round: &mut dyn FnMut() -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    for _ in 0..ROUNDS {
        if source.noted_bytes() <= LAST_BYTES {
            break;
        }
        copy_noted(source, writer, each_round)?;
        each_round()?;
    }
    Ok(())
}

pub(super) fn go_on(
    progress: &mut OnProgress<'_>,
    stage: CopyStage,
    done: u64,
    of: u64,
) -> Result<(), BackupError> {
    let told = progress(CopyProgress { stage, done, of });
    match told {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(BackupError::Cancelled),
    }
}

/// Copies what is noted. It is taken before the snapshot: what is committed in between is in both.
fn copy_noted(
    source: &dyn Source,
    writer: &mut CopyWriter,
    each_look: &mut dyn FnMut() -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let mut rows = source.take_noted().into_iter();
    loop {
        let names: Vec<RowName> = rows.by_ref().take(NAMES_AT_ONCE).collect();
        if names.is_empty() {
            return Ok(());
        }
        let get = |shown: &dyn Snapshot| {
            let values = names.iter().map(|(table, key)| shown.get(table, key));
            values.collect::<Result<Vec<_>, _>>()
        };
        let values = read(source, each_look, get)?;
        for ((table, key), value) in names.into_iter().zip(values) {
            match value {
                Some(value) => writer.put(&table, key, value)?,
                None => writer.remove(&table, key)?,
            }
        }
    }
}

fn copy_named(
    snapshot: &dyn Snapshot,
    rows: BTreeSet<RowName>,
    writer: &mut CopyWriter,
) -> Result<(), StoreError> {
    for (table, key) in rows {
        match snapshot.get(&table, &key)? {
            Some(value) => writer.put(&table, key, value)?,
            None => writer.remove(&table, key)?,
        }
    }
    Ok(())
}

/// What a copy is to hold: the state of one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) commit: u64,
    pub(super) tables: Vec<(String, u64)>,
}

impl Copied {
    pub(super) fn of(snapshot: &dyn Snapshot) -> Result<Self, StoreError> {
        Ok(Self {
            commit: snapshot.commit(),
            tables: snapshot.tables()?,
        })
    }
}

/// Copies what is left while nothing is committed, and does what is to be done `then`, still while
/// nothing is. It can be cancelled until that has begun; what has begun is waited for.
pub(super) fn copy_last<T: Send + 'static>(
    source: &Live<'_>,
    writer: CopyWriter,
    progress: &mut OnProgress<'_>,
    then: impl FnOnce(&Shared, CopyWriter, Copied) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let (tell, told) = mpsc::channel();
    let copy = source.copy;
    source.shared.hold(Box::new(move |shared| {
        // Nobody waits for it any more, if it cannot be told.
        let _ = tell.send(copy_held(shared, copy, writer, then));
    }));
    loop {
        match told.recv_timeout(LOOK) {
            Ok(done) => return done,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(StoreError::Ended.into()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let (rows, of) = (0, 0);
                let wanted = go_on(progress, CopyStage::Copying, rows, of);
                if wanted.is_err() && source.give_up() {
                    wanted?;
                }
            }
        }
    }
}

/// What is left is copied, unless the copy was given up: another one may have begun since.
fn copy_held<T>(
    shared: &Shared,
    copy: u64,
    mut writer: CopyWriter,
    then: impl FnOnce(&Shared, CopyWriter, Copied) -> Result<T, BackupError>,
) -> Result<T, BackupError> {
    let noted = {
        let mut state = shared.lock();
        let noted = state.noted.as_mut().filter(|noted| noted.is_of(copy));
        noted.map(|noted| {
            noted.is_last = true;
            noted.take()
        })
    };
    let Some(rows) = noted else {
        return Err(BackupError::Cancelled);
    };
    let copied = {
        let snapshot = shared.engine.snapshot()?;
        copy_named(&*snapshot, rows, &mut writer)?;
        Copied::of(&*snapshot)?
    };
    then(shared, writer, copied)
}

/// That the file at `path` holds what it is to hold, as far as a look at it tells.
pub(super) fn check_same(path: &Path, expected: &Copied) -> Result<ReadOnlyFile, BackupError> {
    let file = ReadOnlyFile::open(path)?;
    let found = Copied::of(&*file.snapshot()?)?;
    if found == *expected {
        return Ok(file);
    }
    Err(BackupError::Damaged {
        file: path.display().to_string(),
        reason: format!("it was to hold {expected:?}, and holds {found:?}"),
    })
}

/// Reads the whole file: every block, everything that the engine can reach, and every row.
pub(super) fn check_whole(
    path: &Path,
    file: ReadOnlyFile,
    progress: &mut OnProgress<'_>,
) -> Result<(), BackupError> {
    let damaged = |reason: String| BackupError::Damaged {
        file: path.display().to_string(),
        reason,
    };
    {
        let snapshot = file.snapshot()?;
        for (table, rows) in snapshot.tables()? {
            let read = count_rows(&*snapshot, &table, &mut |_| Ok(()))?;
            if read != rows {
                return Err(damaged(format!(
                    "`{table}` says that it has {rows} rows, and has {read}"
                )));
            }
        }
    }
    let mut cancelled = false;
    drop(file);
    let verified = verify_file(path, &mut |done, of| {
        cancelled |= go_on(progress, CopyStage::Checking, done, of).is_err();
    })?;
    if cancelled {
        return Err(BackupError::Cancelled);
    }
    match verified.damage.first() {
        None => Ok(()),
        Some(reason) => Err(damaged(reason.clone())),
    }
}

/// Reads every row of a table, and counts them.
pub(super) fn count_rows(
    snapshot: &dyn Snapshot,
    table: &str,
    each_page: &mut dyn FnMut(u64) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let (mut read, mut last) = (0, None::<Vec<u8>>);
    loop {
        let page = Scan::first(PAGE_ROWS).within(PAGE_BYTES);
        let page = last.as_deref().map_or(page, |last| page.after(last));
        let rows = snapshot.scan(table, page)?;
        read += rows.len() as u64;
        match rows.into_iter().next_back() {
            Some((key, _)) => last = Some(key),
            None => return Ok(read),
        }
        each_page(read)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        batch::{Batch, Table},
        store::Store,
    };

    #[test]
    fn what_a_dropped_copy_was_to_do_last_leaves_the_next_ones_rows_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::in_memory();
        let shared = store.shared();
        let held = |copy, file: &str| {
            let writer = CopyWriter::create(&directory.path().join(file)).expect("made");
            copy_held(shared, copy, writer, |_, _, _| Ok(()))
        };
        let dropped = Live::begin(shared).expect("begun").copy;
        let next = Live::begin(shared).expect("begun");
        let mut batch = Batch::new();
        batch.put(Table::new("a/rows"), *b"key", *b"value");
        shared.lock().note(&[batch]);
        let noted = next.noted_bytes();
        assert!(noted > 0);
        assert_eq!(held(dropped, "dropped"), Err(BackupError::Cancelled));
        assert_eq!(next.noted_bytes(), noted);
        assert_eq!(held(next.copy, "next"), Ok(()));
        assert_eq!(next.noted_bytes(), 0);
        assert!(!next.give_up(), "it has begun");
    }
}
