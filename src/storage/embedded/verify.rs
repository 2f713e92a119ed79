//! A file read without a change to it: its rows, and whether all of it is what was written.

use std::path::{Path, PathBuf};

use redb::{Database, StorageBackend as _};

use super::{
    builder,
    fault::{Faults, damaged, io_error},
    home::{self, Unheld},
    logged::Logged,
    memtable::Layers,
    snapshot::FileSnapshot,
};
use crate::storage::{
    checksummed::Checksummed,
    engine::{Snapshot, Usage},
    error::StoreError,
    medium::Medium,
    overlay::Overlay,
    owner::StoreIdentity,
    scrub::Verified,
};

/// Blocks between two reports of progress.
const STRETCH: u64 = 1024;

/// A file that is not the live store's, opened to be read. What a crash left undone in it is mended
/// in memory.
#[derive(Debug)]
pub struct ReadOnlyFile {
    place: String,
    directory: Option<PathBuf>,
    file: Checksummed,
    overlay: Overlay,
    faults: Faults,
    database: Database,
    layers: Layers,
    /// Damaged copies of the log's entries, each with a whole twin.
    damaged_copies: u64,
    /// Held for as long as it is read.
    _unheld: Option<Unheld>,
}

impl ReadOnlyFile {
    /// Opens the file at `path`, which no process may write to meanwhile.
    ///
    /// # Errors
    ///
    /// When it is absent, open to others, or not what was written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let place = home::shown(path);
        let file = home::open_file(path, false)?;
        Ok(Self {
            directory: path.parent().map(Path::to_owned),
            ..Self::on(&place, super::file_storage(file, path, false)?)?
        })
    }

    /// Opens the store in `directory`, which no process has.
    ///
    /// # Errors
    ///
    /// [`StoreError::Held`] while one has, and as [`open`](Self::open).
    pub fn inspect(directory: &Path) -> Result<Self, StoreError> {
        let unheld = Unheld::take(directory)?;
        let file = Self::open(&unheld.file)?;
        Ok(Self {
            _unheld: Some(unheld),
            ..file
        })
    }

    pub(super) fn on(place: &str, storage: Medium) -> Result<Self, StoreError> {
        Self::over(place, open_blocks(place, storage)?)
    }

    fn over(place: &str, file: Checksummed) -> Result<Self, StoreError> {
        let failed = |error| io_error(place, "open it", &error);
        let overlay = Overlay::new(file.clone()).map_err(failed)?;
        let faults = Faults::of(place, Some(file.clone()));
        let database = faults.guard("open it", || {
            Ok(builder().create_with_backend(overlay.clone())?)
        })?;
        let tables = FileSnapshot::of(&database, Layers::default(), faults.clone())?;
        let logged = Logged::read(place, &file, tables.commit())?;
        Ok(Self {
            layers: logged.layers,
            damaged_copies: logged.damaged_copies,
            _unheld: None,
            place: place.to_owned(),
            directory: None,
            file,
            overlay,
            faults,
            database,
        })
    }

    /// Its rows.
    ///
    /// # Errors
    ///
    /// When it is not a store of ours, or cannot be read.
    pub fn snapshot(&self) -> Result<Box<dyn Snapshot>, StoreError> {
        let snapshot = FileSnapshot::of(&self.database, self.layers.clone(), self.faults.clone())?;
        Ok(Box::new(snapshot))
    }

    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What names the store that is in it.
    ///
    /// # Errors
    ///
    /// When it is not a store of ours, or cannot be read.
    pub fn identity(&self) -> Result<StoreIdentity, StoreError> {
        StoreIdentity::read(&self.place, &*self.snapshot()?)
    }

    /// What it takes up.
    ///
    /// # Errors
    ///
    /// When it is not a store of ours, or cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let snapshot = FileSnapshot::of(&self.database, self.layers.clone(), self.faults.clone())?;
        let available = self.directory.as_deref().and_then(home::available);
        Ok(super::usage(&self.file, snapshot.bookkeeping(), available))
    }

    /// Has the engine check everything that it can reach. Says what it found wrong.
    fn check(&mut self) -> Option<String> {
        let database = &mut self.database;
        let checked = self
            .faults
            .guard("check it", || Ok(database.check_integrity()?));
        match checked {
            Ok(true) => None,
            Ok(false) => Some("the engine's record of what is free is wrong".to_owned()),
            Err(error) => Some(reason_of(error)),
        }
    }
}

/// Reads every block of the file at `path`, which no process may write to meanwhile, and has the
/// engine check everything that it can reach. `progress` is called with the blocks read and all
/// blocks.
///
/// # Errors
///
/// When it is absent, open to others, or its beginning is damaged. What else is damaged is in the
/// result.
pub fn verify_file(
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, StoreError> {
    let place = home::shown(path);
    let file = home::open_file(path, false)?;
    verify(&place, super::file_storage(file, path, false)?, progress)
}

/// As [`verify_file`], of the store in `directory`, which no process has.
///
/// # Errors
///
/// [`StoreError::Held`] while one has, and as [`verify_file`].
pub fn verify_stopped(
    directory: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, StoreError> {
    let unheld = Unheld::take(directory)?;
    verify_file(&unheld.file, progress)
}

/// As [`verify_file`], for storage of any sort.
pub(super) fn verify(
    place: &str,
    storage: Medium,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, StoreError> {
    let file = open_blocks(place, storage)?;
    let mut verified = Verified::default();
    let mut suspects = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let scrubbed = file.scrub(from, STRETCH);
        let scrubbed = scrubbed.map_err(|error| io_error(place, "read it", &error))?;
        verified.blocks += scrubbed.blocks;
        suspects.extend(scrubbed.suspects);
        next = scrubbed.next;
        progress(verified.blocks, file.blocks());
    }
    // Where the engine gave up, nobody knows what it would have read.
    let mut reached: Box<dyn Fn(u64) -> bool> = Box::new(|_| true);
    match ReadOnlyFile::over(place, file) {
        Ok(mut engine) => {
            match engine.snapshot() {
                Ok(snapshot) => verified.commit = snapshot.commit(),
                Err(error) => verified.damage.push(reason_of(error)),
            }
            match engine.check() {
                Some(reason) => verified.damage.push(reason),
                None => {
                    let overlay = engine.overlay.clone();
                    reached = Box::new(move |block| overlay.has_read(block));
                }
            }
            verified.used_blocks = engine.overlay.blocks_read();
            if engine.damaged_copies > 0 {
                verified.harmless.push(format!(
                    "{} copies in the file's log are damaged, each with a whole twin",
                    engine.damaged_copies
                ));
            }
        }
        Err(error) => verified.damage.push(reason_of(error)),
    }
    for (block, reason) in suspects {
        if block == 0 || !reached(block) {
            verified.harmless.push(reason);
        } else {
            verified.damage.push(reason);
        }
    }
    verified.damage.sort();
    verified.damage.dedup();
    Ok(verified)
}

/// Opens the blocks of a file that holds something, to be read.
fn open_blocks(place: &str, storage: Medium) -> Result<Checksummed, StoreError> {
    let failed = |error| io_error(place, "open it", &error);
    let is_empty = storage.len().map_err(failed)? == 0;
    if is_empty {
        return Err(damaged(place, super::EMPTY));
    }
    let file = Checksummed::open_read_only(storage).map_err(failed)?;
    if file.blocks() == 0 {
        return Err(damaged(place, super::EMPTY));
    }
    Ok(file)
}

/// An error without the file's name, which the report has.
fn reason_of(error: StoreError) -> String {
    match error {
        StoreError::Damaged { reason, .. } => reason,
        error => error.to_string(),
    }
}
