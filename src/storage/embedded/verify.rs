//! A file read without a change to it: its rows, and whether all of it is what was written.

use std::path::{Path, PathBuf};

use redb::{Database, StorageBackend};

use super::{
    builder,
    fault::{Faults, damaged, io_error},
    home,
    snapshot::FileSnapshot,
};
use crate::storage::{
    checksummed::Checksummed,
    engine::{Snapshot, Usage},
    error::StoreError,
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
            ..Self::on(&place, super::file_storage(file, &place)?)?
        })
    }

    /// Opens the store in `directory`, which no process has.
    ///
    /// # Errors
    ///
    /// [`StoreError::Held`] while one has, and as [`open`](Self::open).
    pub fn inspect(directory: &Path) -> Result<Self, StoreError> {
        Self::open(&home::unheld(directory)?)
    }

    pub(super) fn on(place: &str, storage: Box<dyn StorageBackend>) -> Result<Self, StoreError> {
        let failed = |error| io_error(place, "open it", &error);
        if storage.len().map_err(failed)? == 0 {
            return Err(damaged(place, super::EMPTY));
        }
        let file = Checksummed::open_read_only(storage).map_err(failed)?;
        let overlay = Overlay::new(file.clone()).map_err(failed)?;
        let faults = Faults::of(place, Some(file.clone()));
        if overlay.len().map_err(failed)? == 0 {
            return Err(damaged(place, super::EMPTY));
        }
        let database = faults.guard("open it", || {
            Ok(builder().create_with_backend(overlay.clone())?)
        })?;
        Ok(Self {
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
        let snapshot = FileSnapshot::of(&self.database, self.faults.clone())?;
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
        let snapshot = FileSnapshot::of(&self.database, self.faults.clone())?;
        let available = self.directory.as_deref().and_then(home::available);
        let bytes = self.file.file_length();
        Ok(super::usage(bytes, snapshot.bookkeeping(), available))
    }

    /// Reads every block, and has the engine check everything that it can reach. `progress` is
    /// called with the blocks read and all blocks.
    ///
    /// # Errors
    ///
    /// When it cannot be told. What is damaged is in the result.
    pub fn verify(mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        match self.snapshot() {
            Ok(snapshot) => verified.commit = snapshot.commit(),
            Err(error) => verified.damage.push(reason_of(error)),
        }
        let mut suspects = Vec::new();
        let mut next = Some(0);
        while let Some(from) = next {
            let scrubbed = self.file.scrub(from, STRETCH);
            let scrubbed = scrubbed.map_err(|error| io_error(&self.place, "read it", &error))?;
            verified.blocks += scrubbed.blocks;
            suspects.extend(scrubbed.suspects);
            next = scrubbed.next;
            progress(verified.blocks, self.file.blocks());
        }
        let database = &mut self.database;
        let checked = self
            .faults
            .guard("check it", || Ok(database.check_integrity()?));
        match &checked {
            Ok(true) => {}
            Ok(false) => verified
                .damage
                .push("the engine's record of what is free is wrong".to_owned()),
            Err(error) => verified.damage.push(reason_of(error.clone())),
        }
        verified.used_blocks = self.overlay.blocks_read();
        for (block, reason) in suspects {
            // Where the check stopped early, nobody knows what it would have read.
            let counts = block > 0 && (checked.is_err() || self.overlay.has_read(block));
            if !counts {
                verified.harmless.push(reason);
            } else if !verified.damage.iter().any(|known| known.contains(&reason)) {
                verified.damage.push(reason);
            }
        }
        Ok(verified)
    }
}

/// An error without the file's name, which the report has.
fn reason_of(error: StoreError) -> String {
    match error {
        StoreError::Damaged { reason, .. } => reason,
        error => error.to_string(),
    }
}
