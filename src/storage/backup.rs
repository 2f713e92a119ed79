//! Backups: a store's file, made while others use the store, and what is written beside it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    backup_error::BackupError,
    copying::{Copied, Live, OnProgress, check_same, check_whole, copy_last, copy_rows},
    embedded::{CopyWriter, ReadOnlyFile},
    engine::Snapshot,
    owner::{StoreIdentity, read_format, unix_ms},
    shared::Shared,
    sidecar::{Backup, Unfinished, parent, put_new, remove, sum, with_suffix},
    store::Store,
    upkeep,
};

impl Store {
    /// Copies the store, as of one commit, into a file of the same format at `to`, with what it is
    /// in a file beside it ([`Backup`]), both for their owner only. Users go on meanwhile; their
    /// commits wait only while the last few rows are copied. The copy is read whole before it gets
    /// its name. One that fails before that, or is cancelled, leaves nothing; a crash leaves a file
    /// with `.new` behind its name, which the next attempt replaces.
    ///
    /// Blocks for as long as that takes: it belongs on a thread of its own.
    ///
    /// # Errors
    ///
    /// When `to` or its description is there already, another copy is being made, the store
    /// is closed or stays so for a minute, or a disk fails.
    pub fn backup(&self, to: &Path, progress: &mut OnProgress<'_>) -> Result<Backup, BackupError> {
        let backup = backup(self.shared(), to, progress).map_err(BackupError::of_copy)?;
        let mut state = self.shared().lock();
        state.upkeep.backed_up_at = Some(backup.made_at);
        drop(state);
        self.shared().enqueue_own(upkeep::backed_up(backup.made_at));
        Ok(backup)
    }
}

fn backup(
    shared: &Shared,
    to: &Path,
    progress: &mut OnProgress<'_>,
) -> Result<Backup, BackupError> {
    let target = Target::at(to)?;
    let source = Live::begin(shared)?;
    let new = Unfinished::at(target.new.clone());
    let mut writer = CopyWriter::create(&target.new)?;
    copy_rows(&source, &mut writer, progress)?;
    let (writer, copied, made_at) = copy_last(&source, writer, progress, |_, writer, copied| {
        Ok((writer, copied, now()))
    })?;
    drop(source);
    writer.finish(copied.commit)?;
    target.complete(new, &copied, made_at, progress)
}

/// As [`Store::backup`], of the store in `directory`, which no process uses; none can use it until
/// the backup is made.
///
/// # Errors
///
/// As [`Store::backup`], and when a process uses the store.
pub fn backup_stopped(
    directory: &Path,
    to: &Path,
    progress: &mut OnProgress<'_>,
) -> Result<Backup, BackupError> {
    stopped(directory, to, progress).map_err(BackupError::of_copy)
}

fn stopped(
    directory: &Path,
    to: &Path,
    progress: &mut OnProgress<'_>,
) -> Result<Backup, BackupError> {
    let target = Target::at(to)?;
    // Nothing is written there: the disk may be read-only.
    let source = ReadOnlyFile::inspect(directory)?;
    let copied = Copied::of(&*source.snapshot()?)?;
    let new = Unfinished::at(target.new.clone());
    let mut writer = CopyWriter::create(&target.new)?;
    copy_rows(&source, &mut writer, progress)?;
    writer.finish(copied.commit)?;
    target.complete(new, &copied, now(), progress)
}

/// Reads a backup whole: that it is the file that was made, that each of its blocks and rows is what
/// was written, and that it holds the store that is described beside it.
///
/// # Errors
///
/// What is wrong with it.
pub fn verify_backup(file: &Path, progress: &mut OnProgress<'_>) -> Result<Backup, BackupError> {
    let backup = Backup::beside(file)?;
    let found = sum(file)?;
    if found.sha256 != backup.sha256 {
        return Err(BackupError::Checksum {
            file: file.display().to_string(),
            expected: backup.sha256,
            found: found.sha256,
        });
    }
    let opened = ReadOnlyFile::open(file)?;
    let described = describe(file, &*opened.snapshot()?, &backup)?;
    check_described(file, &described, &backup)?;
    check_whole(file, opened, progress)?;
    Ok(backup)
}

/// The description that the store in the file gives, with the file's own as the backup's says.
fn describe(file: &Path, snapshot: &dyn Snapshot, backup: &Backup) -> Result<Backup, BackupError> {
    let place = file.display().to_string();
    let identity = StoreIdentity::read_of_any_format(&place, snapshot)?;
    let copied = Copied::of(snapshot)?;
    let summed = super::sidecar::Summed {
        bytes: backup.bytes,
        sha256: backup.sha256.clone(),
    };
    Ok(Backup::of(
        &identity,
        read_format(&place, snapshot)?,
        copied.commit,
        backup.made_at,
        summed,
        copied.tables,
    ))
}

fn check_described(file: &Path, found: &Backup, expected: &Backup) -> Result<(), BackupError> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let pairs = |backup: &Backup| {
        [
            ("format", backup.format.to_string()),
            ("store id", backup.store_id.to_string()),
            ("node", backup.node_id.clone()),
            ("chain", backup.chain_id.clone()),
            ("network", backup.network.clone()),
            ("first federation", text(&backup.first_federation)),
            ("last commit", backup.commit.to_string()),
            ("rows by table", format!("{:?}", backup.tables)),
        ]
    };
    let both = pairs(found).into_iter().zip(pairs(expected));
    let mut differing = both.filter(|((_, found), (_, expected))| found != expected);
    match differing.next() {
        None => Ok(()),
        Some(((what, found), (_, expected))) => Err(BackupError::Mismatch {
            file: file.display().to_string(),
            what,
            expected,
            found,
        }),
    }
}

/// Where a backup comes into being, and where it is to be.
struct Target {
    file: PathBuf,
    new: PathBuf,
}

impl Target {
    fn at(file: &Path) -> Result<Self, BackupError> {
        let parent = parent(file);
        // One that may not be looked at says so when it is written to.
        if matches!(parent.try_exists(), Ok(false)) || parent.is_file() {
            return Err(BackupError::NoDirectory {
                file: file.display().to_string(),
                directory: parent.display().to_string(),
            });
        }
        for place in [file, &Backup::place(file)] {
            if place.symlink_metadata().is_ok() {
                return Err(BackupError::Exists {
                    file: place.display().to_string(),
                });
            }
        }
        Ok(Self {
            file: file.to_owned(),
            new: with_suffix(file, ".new"),
        })
    }

    /// Reads the finished copy, and gives it its name, and then the description its own. Neither
    /// takes the place of what another backup has put there meanwhile. A crash in between leaves a
    /// file without a description, which is refused by name.
    fn complete(
        &self,
        new: Unfinished,
        copied: &Copied,
        made_at: SystemTime,
        progress: &mut OnProgress<'_>,
    ) -> Result<Backup, BackupError> {
        let opened = check_same(&self.new, copied)?;
        let place = self.new.display().to_string();
        let (identity, format) = {
            let snapshot = opened.snapshot()?;
            let identity = StoreIdentity::read_of_any_format(&place, &*snapshot)?;
            (identity, read_format(&place, &*snapshot)?)
        };
        check_whole(&self.new, opened, progress)?;
        let summed = sum(&self.new)?;
        let tables = copied.tables.clone();
        let backup = Backup::of(&identity, format, copied.commit, made_at, summed, tables);
        let sidecar = Backup::place(&self.file);
        let new_sidecar = with_suffix(&sidecar, ".new");
        let described = Unfinished::at(new_sidecar.clone());
        backup.write(&new_sidecar)?;
        put_new(&self.new, &self.file)?;
        new.keep();
        if let Err(error) = put_new(&new_sidecar, &sidecar) {
            // It is this backup's own, which is none without it.
            remove(&self.file)?;
            return Err(error);
        }
        described.keep();
        Ok(backup)
    }
}

/// Now, in the milliseconds in which it is written down.
pub(super) fn now() -> SystemTime {
    whole_ms(SystemTime::now())
}

/// A time in the milliseconds in which it is written down.
pub(super) fn whole_ms(at: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(unix_ms(at))
}
