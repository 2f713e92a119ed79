//! Makes a store of a backup, and says in it that this was done.

use std::{
    fs::{self, DirBuilder},
    path::{Path, PathBuf},
    time::SystemTime,
};

use uuid::Uuid;

use super::{
    backup::{now, verify_backup, whole_ms},
    backup_error::BackupError,
    batch::Batch,
    copying::{Copied, OnProgress, check_whole, copy_rows},
    embedded::{CopyWriter, ReadOnlyFile, RedbEngine, UNIMPORTANT},
    engine::Engine as _,
    error::StoreError,
    opening::Opening,
    owner::{META, Owner, Restored, StoreIdentity},
    sidecar::{Backup, Unfinished, put, with_suffix},
    user::Generation,
};

/// What a restore may take the place of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replace {
    /// Nothing: the directory must be empty.
    #[default]
    Nothing,
    /// The same store as of the backup's commit or an earlier one.
    Older,
    /// Whatever is there, though it may know what the backup does not.
    Anything,
}

/// What a restore has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// The backup.
    pub backup: Backup,
    /// What was written into the store.
    pub restored: Restored,
    /// Where the store that was there is kept. It is never deleted here.
    pub replaced: Option<PathBuf>,
}

/// Makes the store of `directory` from a backup, which is to be `owner`'s where that is known: another
/// one's is refused before anything else. The backup is checked first, whole; then its rows
/// are copied, with the mark that they were restored ([`Restored`]) and one commit more than the
/// backup has; that is checked in its turn, and only then does it get the store's name. A crash
/// leaves what was there before; on a file system without hard links it may leave that under the
/// name alone under which it is kept ([`RestoreReport::replaced`]), and no store in its place.
///
/// The store is to be opened by a node that then does what the mark demands: what came after the
/// backup is lost, and may have been promised.
///
/// # Errors
///
/// When the backup is another owner's or not what it should be, a process uses the directory, it holds what `replace`
/// does not name, or a disk fails.
pub fn restore(
    file: &Path,
    directory: &Path,
    replace: Replace,
    owner: Option<&Owner>,
    progress: &mut OnProgress<'_>,
) -> Result<RestoreReport, BackupError> {
    made(file, directory, replace, owner, progress).map_err(BackupError::of_copy)
}

fn made(
    file: &Path,
    directory: &Path,
    replace: Replace,
    owner: Option<&Owner>,
    progress: &mut OnProgress<'_>,
) -> Result<RestoreReport, BackupError> {
    // What is beside it says the same as what is in it, or it is no backup.
    let of_backup = Backup::beside(file)?.owner();
    if let Some((what, found, expected)) = owner.and_then(|owner| of_backup.difference(owner)) {
        return Err(BackupError::Foreign {
            file: file.display().to_string(),
            what,
            found,
            expected,
        });
    }
    let backup = verify_backup(file, progress)?;
    make_directory(directory)?;
    let held = RedbEngine::at(directory)?;
    let place = held.file();
    let source = ReadOnlyFile::open(file)?;
    check_place(directory, &place, replace, &source, &backup)?;
    let restored = Restored {
        restore_id: Uuid::new_v4(),
        backup_commit: backup.commit,
        backup_at: backup.made_at,
        restored_at: now(),
    };
    let new = with_suffix(&place, ".restoring");
    let unfinished = Unfinished::at(new.clone());
    let mut writer = CopyWriter::create(&new)?;
    copy_rows(&source, &mut writer, progress)?;
    for change in mark(&restored).changes() {
        if let Some(value) = &change.value {
            writer.put(&change.table, change.key.clone(), value.clone())?;
        }
    }
    writer.finish(backup.commit + 1)?;
    check_restored(&new, &backup, &restored, progress)?;
    let replaced = keep_replaced(&place)?;
    put(&new, &place)?;
    unfinished.keep();
    Ok(RestoreReport {
        backup,
        restored,
        replaced,
    })
}

/// Marks the store in `directory`, which is to be `owner`'s where that is known, as restored: for one that went back without anybody calling it a
/// restore, as by a snapshot of its volume. One commit; nothing is copied.
///
/// # Errors
///
/// When there is no store, a process uses it, it is another owner's, or it cannot be read or written.
pub fn restore_in_place(directory: &Path, owner: Option<&Owner>) -> Result<Restored, BackupError> {
    marked(directory, owner).map_err(BackupError::of_copy)
}

fn marked(directory: &Path, owner: Option<&Owner>) -> Result<Restored, BackupError> {
    let engine = RedbEngine::at(directory)?;
    let place = engine.file();
    if let Some(owner) = owner {
        // Before it is opened, which writes to it.
        let file = ReadOnlyFile::open(&place)?;
        let identity = StoreIdentity::read_of_any_format(file.place(), &*file.snapshot()?)?;
        identity.check_owner(file.place(), owner)?;
    }
    // Before it is opened: that is the last that is known of when it was written.
    let written_at = written_at(&place);
    let last = engine.open()?;
    StoreIdentity::read(&engine.place(), &*engine.snapshot()?)?;
    let restored = Restored {
        restore_id: Uuid::new_v4(),
        backup_commit: last,
        backup_at: written_at,
        restored_at: now(),
    };
    engine.commit(last + 1, &[mark(&restored)])?;
    Ok(restored)
}

/// The rows that a restore writes. The opener is none that lives: a process that has the store open,
/// and finds this one in its place, does not take it for its own.
fn mark(restored: &Restored) -> Batch {
    let mut batch = Batch::new();
    restored.write(&mut batch);
    let opening = Opening {
        opener: restored.restore_id,
        generation: Generation::default(),
    };
    opening.write(&mut batch);
    batch
}

fn make_directory(directory: &Path) -> Result<(), BackupError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .create(directory)
        .map_err(|error| BackupError::file(directory, "make", &error))
}

/// Refuses to take the place of what is not to be replaced.
fn check_place(
    directory: &Path,
    place: &Path,
    replace: Replace,
    source: &ReadOnlyFile,
    backup: &Backup,
) -> Result<(), BackupError> {
    let there = place.exists();
    match replace {
        Replace::Anything => Ok(()),
        Replace::Older if there => check_older(place, source, backup),
        Replace::Older => Ok(()),
        Replace::Nothing => {
            let failed = |error: &std::io::Error| BackupError::file(directory, "read", error);
            let mut found: Vec<String> = Vec::new();
            for entry in fs::read_dir(directory).map_err(|error| failed(&error))? {
                let name = entry.map_err(|error| failed(&error))?.file_name();
                found.push(name.to_string_lossy().into_owned());
            }
            found.retain(|name| !UNIMPORTANT.contains(&name.as_str()));
            found.sort();
            let found = match found.first() {
                None => return Ok(()),
                Some(_) if there => "a store".to_owned(),
                Some(name) => format!("`{name}`"),
            };
            Err(BackupError::NotEmpty {
                directory: directory.display().to_string(),
                found,
            })
        }
    }
}

/// Refuses to replace what is newer than the backup, or may be.
fn check_older(place: &Path, source: &ReadOnlyFile, backup: &Backup) -> Result<(), BackupError> {
    let shown = place.display().to_string();
    let incomparable = |reason: String| BackupError::Incomparable {
        place: shown.clone(),
        reason,
    };
    let read = || -> Result<_, StoreError> {
        let file = ReadOnlyFile::open(place)?;
        let snapshot = file.snapshot()?;
        let identity = StoreIdentity::read_of_any_format(&shown, &*snapshot)?;
        let restored = Restored::read(&shown, &*snapshot)?;
        Ok((snapshot.commit(), identity.store_id, restored))
    };
    let (commit, store_id, restored) = read().map_err(|error| incomparable(error.to_string()))?;
    if store_id != backup.store_id {
        return Err(incomparable(format!(
            "it is store {store_id}, and the backup is of store {}",
            backup.store_id
        )));
    }
    let of_backup = Restored::read(&shown, &*source.snapshot()?)?;
    if restored.map(|one| one.restore_id) != of_backup.map(|one| one.restore_id) {
        return Err(incomparable(
            "one of them was restored since, and what it has done then is its own".to_owned(),
        ));
    }
    if commit > backup.commit {
        return Err(BackupError::Newer {
            place: shown,
            commit,
            at: written_at(place),
            backup_commit: backup.commit,
            backup_at: backup.made_at,
        });
    }
    Ok(())
}

fn check_restored(
    new: &Path,
    backup: &Backup,
    restored: &Restored,
    progress: &mut OnProgress<'_>,
) -> Result<(), BackupError> {
    let place = new.display().to_string();
    let file = ReadOnlyFile::open(new)?;
    {
        let snapshot = file.snapshot()?;
        let found = Copied::of(&*snapshot)?;
        let of_users = |(name, _): &(String, u64)| name != META.name();
        let copied = found.tables.iter().filter(|table| of_users(table));
        let expected = backup
            .tables
            .iter()
            .map(|(name, rows)| (name.clone(), *rows));
        let is_same = found.commit == backup.commit + 1
            && copied.cloned().eq(expected.filter(of_users))
            && Restored::read(&place, &*snapshot)?.as_ref() == Some(restored);
        if !is_same {
            return Err(BackupError::Damaged {
                file: place,
                reason: format!("it was to hold {backup:?}, and holds {found:?}"),
            });
        }
    }
    check_whole(new, file, progress)
}

/// Keeps what is at the store's place under another name as well.
fn keep_replaced(place: &Path) -> Result<Option<PathBuf>, BackupError> {
    if !place.exists() {
        return Ok(None);
    }
    let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let kept = with_suffix(place, &format!(".replaced-{}", at.replace(':', "")));
    // A second name: there is no moment without a store. Some file systems have no such thing, and
    // a crash before the new one is put there leaves none.
    fs::hard_link(place, &kept)
        .or_else(|_| fs::rename(place, &kept))
        .map_err(|error| BackupError::file(place, "keep", &error))?;
    Ok(Some(kept))
}

/// When the file was written last; the beginning of time if nobody knows.
fn written_at(place: &Path) -> SystemTime {
    fs::metadata(place)
        .and_then(|metadata| metadata.modified())
        .map_or(SystemTime::UNIX_EPOCH, whole_ms)
}
