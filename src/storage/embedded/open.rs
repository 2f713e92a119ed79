//! One opening of the file: its tables, what lies over them, and what goes from there into them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use redb::{Database, TableDefinition, WriteTransaction};

use super::{
    Discipline,
    bookkeeping::{self, Bookkeeping},
    fault::{Faults, damaged, io_error},
    home::FileId,
    log,
    logged::{Logged, Position},
    memtable::Layers,
    snapshot::FileSnapshot,
};
use crate::storage::{
    batch::{Batch, Change},
    checksummed::Checksummed,
    error::StoreError,
};

/// One opening of the file.
pub(super) struct Open {
    place: String,
    /// How commits are made: as they should be, but for tests that show what it is for.
    discipline: Discipline,
    /// `None` once it is closed.
    database: Option<Database>,
    pub(super) storage: Option<Checksummed>,
    pub(super) faults: Faults,
    /// The file that it is, whatever its path leads to by now.
    pub(super) file: Option<FileId>,
    layers: RwLock<Layers>,
    /// The last commit that is durable in the tables.
    in_tables: AtomicU64,
    /// The last commit that is durable.
    last: AtomicU64,
    checkpoint: Checkpoint,
}

/// How far it is with bringing what is frozen into the tables.
#[derive(Debug, Default)]
struct Checkpoint {
    state: Mutex<CheckpointState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
enum CheckpointState {
    #[default]
    Idle,
    Busy,
    Failed(StoreError),
}

impl Checkpoint {
    fn state(&self) -> MutexGuard<'_, CheckpointState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), StoreError> {
        match &*self.state() {
            CheckpointState::Failed(error) => Err(error.clone()),
            CheckpointState::Idle | CheckpointState::Busy => Ok(()),
        }
    }

    fn is_busy(&self) -> bool {
        matches!(*self.state(), CheckpointState::Busy)
    }

    fn wait(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        while matches!(*state, CheckpointState::Busy) {
            let woken = self.ended.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.check()
    }

    fn end(&self, result: Result<(), StoreError>) {
        *self.state() = match result {
            Ok(()) => CheckpointState::Idle,
            Err(error) => CheckpointState::Failed(error),
        };
        self.ended.notify_all();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // First, so that the engine's last words never reach a file that is opened again.
        if let Some(storage) = &self.storage {
            storage.revoke();
        }
        let database = self.database.take();
        let closed = catch_unwind(AssertUnwindSafe(|| drop(database)));
        if closed.is_err() {
            tracing::debug!("the engine stumbled while it was closed");
        }
    }
}

impl Open {
    /// Takes a database whose tables may lack what the log has, and makes sure that what was read
    /// of the log is on the disk: after a failed write a read shows what a power loss would undo.
    ///
    /// # Errors
    ///
    /// When the log is not what was written, or cannot be written.
    pub(super) fn over(
        place: &str,
        discipline: Discipline,
        database: Database,
        storage: Option<Checksummed>,
        file: Option<FileId>,
    ) -> Result<(Arc<Self>, Position), StoreError> {
        let mut position = Position::default();
        let mut frozen = None;
        // Made first: should the rest fail, it ends as an opening does.
        let mut open = Self {
            place: place.to_owned(),
            discipline,
            database: Some(database),
            faults: Faults::of(place, storage.clone()),
            storage,
            file,
            layers: RwLock::default(),
            in_tables: AtomicU64::default(),
            last: AtomicU64::default(),
            checkpoint: Checkpoint::default(),
        };
        let tables = open.snapshot()?.bookkeeping().commit;
        let mut layers = Layers {
            commit: tables,
            ..Layers::default()
        };
        if let Some(storage) = &open.storage {
            let logged = Logged::read(place, storage, tables)?;
            let damaged = storage.damaged_copies() + logged.damaged_copies;
            if damaged > 0 {
                tracing::warn!(
                    file = place,
                    damaged,
                    "copies of what the file's beginning and its log hold were damaged; they were written again from their twins"
                );
            }
            for (at, entries) in &logged.entries {
                storage
                    .write_log(*at, entries)
                    .map_err(|error| io_error(place, "open it", &error))?;
            }
            storage
                .note_durable(logged.layers.commit)
                .map_err(|error| io_error(place, "open it", &error))?;
            layers = logged.layers;
            frozen = logged.frozen;
            position = logged.position;
        }
        open.in_tables = AtomicU64::new(tables);
        open.last = AtomicU64::new(layers.commit);
        open.layers = RwLock::new(layers);
        let open = Arc::new(open);
        if let Some(number) = frozen {
            open.start_checkpoint(number)?;
        }
        Ok((open, position))
    }

    fn database(&self) -> Result<&Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::DatabaseClosed)
    }

    fn layers(&self) -> RwLockReadGuard<'_, Layers> {
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn layers_mut(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last commit.
    pub(super) fn commit_number(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    pub(super) fn snapshot(&self) -> Result<FileSnapshot, StoreError> {
        let database = self.faults.guard("read it", || self.database())?;
        // Held meanwhile: the tables are never further than these say.
        let layers = self.layers();
        FileSnapshot::of(database, layers.clone(), self.faults.clone())
    }

    /// Stops all writes. Returns once the write in progress and the checkpoint have ended.
    pub(super) fn revoke(&self) {
        if let Some(storage) = &self.storage {
            storage.revoke();
        }
        let _is_over = self.checkpoint.wait();
    }

    /// Returns once nothing is on its way into the tables.
    ///
    /// # Errors
    ///
    /// When it did not get there.
    pub(super) fn wait_for_checkpoint(&self) -> Result<(), StoreError> {
        self.checkpoint.wait()
    }

    /// Makes commit `number`. Says where the next one's entry goes.
    ///
    /// # Errors
    ///
    /// When it is not known to have happened, or an earlier one did not get into the tables. This
    /// opening is of no more use then.
    pub(super) fn commit(
        self: &Arc<Self>,
        position: Position,
        number: u64,
        batches: &[Batch],
    ) -> Result<Position, StoreError> {
        self.checkpoint.check()?;
        let changes = in_order(batches);
        let bytes = log::entry_bytes(&changes) as u64;
        let Some(storage) = self.storage.as_ref() else {
            return self.commit_to_tables(number, &changes);
        };
        let layout = storage.layout();
        if bytes > layout.area {
            return self.commit_to_tables(number, &changes);
        }
        let mut position = position;
        if position.at.saturating_add(bytes) > layout.area {
            self.checkpoint.wait()?;
            position = self.switch_area(position)?;
        }
        let place = layout.area_start(position.area) + position.at;
        let entry = log::encode(layout.salt, number, place, &changes);
        storage
            .write_log(place, &entry)
            .map_err(|error| io_error(&self.place, "commit", &error))?;
        self.publish(number, &changes)?;
        position.at += bytes;
        Ok(position)
    }

    /// Makes a commit that the log has no room for.
    fn commit_to_tables(
        self: &Arc<Self>,
        number: u64,
        changes: &[&Change],
    ) -> Result<Position, StoreError> {
        let position = self.checkpoint_all()?;
        self.write_tables(number, |transaction, bookkeeping| {
            for changes in changes.chunk_by(|one, next| one.table == next.table) {
                let name = changes.first().map_or("", |change| change.table.as_ref());
                let mut rows = changes.iter().map(|change| (&change.key, &change.value));
                write_rows(transaction, bookkeeping, name, &mut rows)?;
            }
            Ok(())
        })?;
        self.publish(number, &[])?;
        Ok(position)
    }

    /// Shows what is durable.
    fn publish(&self, number: u64, changes: &[&Change]) -> Result<(), StoreError> {
        if let Some(storage) = &self.storage {
            storage
                .note_durable(number)
                .map_err(|error| io_error(&self.place, "commit", &error))?;
        }
        let mut layers = self.layers_mut();
        layers.active.add(number, changes.iter().copied());
        layers.commit = number;
        self.last.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Brings everything into the tables. The log begins anew then.
    ///
    /// # Errors
    ///
    /// When it did not get there.
    pub(super) fn checkpoint_all(&self) -> Result<Position, StoreError> {
        self.checkpoint.wait()?;
        if self.in_tables.load(Ordering::SeqCst) < self.commit_number() {
            let number = self.freeze();
            self.checkpoint_frozen(number)?;
        }
        Ok(Position::default())
    }

    /// Puts aside what was committed, to be brought into the tables. Returns the last commit's
    /// number.
    fn freeze(&self) -> u64 {
        let mut layers = self.layers_mut();
        layers.frozen = Some(std::mem::take(&mut layers.active));
        layers.commit
    }

    /// Starts to bring what is in the log into the tables. `None` if nothing is, or something is on
    /// its way there already.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or an earlier one failed.
    pub(super) fn begin_checkpoint(
        self: &Arc<Self>,
        position: Position,
    ) -> Result<Option<Position>, StoreError> {
        self.checkpoint.check()?;
        if position.at == 0 || self.checkpoint.is_busy() {
            return Ok(None);
        }
        self.switch_area(position).map(Some)
    }

    /// Goes on in the other area of the log, and starts to bring what this one has into the tables.
    /// What the other one has is there already.
    fn switch_area(self: &Arc<Self>, position: Position) -> Result<Position, StoreError> {
        let number = self.freeze();
        self.start_checkpoint(number)?;
        Ok(Position {
            area: position.area.other(),
            at: 0,
        })
    }

    fn start_checkpoint(self: &Arc<Self>, number: u64) -> Result<(), StoreError> {
        *self.checkpoint.state() = CheckpointState::Busy;
        let open = Arc::clone(self);
        let work = move || {
            let done = catch_unwind(AssertUnwindSafe(|| open.checkpoint_frozen(number)));
            let panicked = |_| Err(damaged(&open.place, "its checkpoint panicked"));
            open.checkpoint.end(done.unwrap_or_else(panicked));
        };
        let started = thread::Builder::new()
            .name("store-checkpoint".to_owned())
            .spawn(work);
        started.map(drop).map_err(|error| {
            let error = io_error(&self.place, "start a thread", &error);
            self.checkpoint.end(Err(error.clone()));
            error
        })
    }

    fn checkpoint_frozen(&self, number: u64) -> Result<(), StoreError> {
        let frozen = self.layers().frozen.clone();
        if let Some(frozen) = frozen {
            self.write_tables(number, |transaction, bookkeeping| {
                frozen.last_values(|name, rows| write_rows(transaction, bookkeeping, name, rows))
            })?;
        }
        self.layers_mut().frozen = None;
        Ok(())
    }

    /// Writes to the tables, which are those of commit `number` once it returns.
    fn write_tables(
        &self,
        number: u64,
        fill: impl FnOnce(&WriteTransaction, &mut Bookkeeping) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.faults.guard("commit", || {
            let mut transaction = self.database()?.begin_write()?;
            let is_full = self.discipline == Discipline::Full;
            transaction.set_two_phase_commit(is_full);
            transaction.set_quick_repair(is_full);
            let mut bookkeeping = bookkeeping::before(&transaction)?;
            fill(&transaction, &mut bookkeeping)?;
            bookkeeping.commit = number;
            bookkeeping::write(&transaction, bookkeeping)?;
            Ok(transaction.commit()?)
        })?;
        self.in_tables.store(number, Ordering::SeqCst);
        Ok(())
    }

    /// Reads the log once more: what of it counts, and is not what was written.
    pub(super) fn scrub_log(&self) -> Option<String> {
        let storage = self.storage.as_ref()?;
        let look = || {
            let last = self.last.load(Ordering::SeqCst);
            let in_tables = self.in_tables.load(Ordering::SeqCst);
            let logged = Logged::read(&self.place, storage, in_tables)?;
            if logged.layers.commit < last {
                let reason = format!("the log's entry of commit {last} is damaged");
                return Err(damaged(&self.place, reason));
            }
            Ok(logged.damaged_copies)
        };
        // An entry that is being written reads torn.
        let found = match look() {
            Ok(0) => Ok(0),
            _ => storage.undisturbed(look),
        };
        match found {
            Ok(0) => None,
            Ok(damaged) => Some(format!(
                "{damaged} copies in the file's log are damaged, each with a whole twin"
            )),
            Err(StoreError::Damaged { reason, .. }) => Some(reason),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// Puts and removes rows of one table, and counts them.
pub(super) fn write_rows<'a>(
    transaction: &WriteTransaction,
    bookkeeping: &mut Bookkeeping,
    table: &str,
    rows: &mut dyn Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
) -> Result<(), redb::Error> {
    let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(table);
    let mut table = transaction.open_table(definition)?;
    for (key, value) in rows {
        let key = key.as_slice();
        let old = match value {
            Some(value) => table.insert(key, value.as_slice())?,
            None => table.remove(key)?,
        };
        let old = old.map(|old| old.value().len());
        bookkeeping.count(key, old, value.as_ref().map(Vec::len));
    }
    Ok(())
}

/// The last change of each row, in the order of tables and keys, in which the engine is fastest.
fn in_order(batches: &[Batch]) -> Vec<&Change> {
    let mut changes: Vec<&Change> = batches.iter().flat_map(Batch::changes).rev().collect();
    // Stable: of one row's changes the last one comes first, and the others go.
    changes.sort_by(|one, other| (&one.table, &one.key).cmp(&(&other.table, &other.key)));
    changes.dedup_by(|one, other| one.table == other.table && one.key == other.key);
    changes
}
