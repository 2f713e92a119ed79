//! Gives free space back: a copy of the store takes its place while others use it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    backup_error::BackupError,
    batch::Batch,
    copying::{
        CopyStage, Live, OnProgress, catch_up, check_same, check_whole, copy_last, copy_rows, go_on,
    },
    embedded::{CopyWriter, ReadOnlyFile},
    engine::Usage,
    shared::Shared,
    sidecar::Unfinished,
    store::Store,
};

/// How long look-ups and scans that are under way may hold up a copy that is to take the store's
/// place, and with it the commits that wait. After that it is given up for this time.
const READERS_DEADLINE: Duration = Duration::from_millis(500);
/// Bytes that a compaction leaves on the disk.
const SPARE_BYTES: u64 = 64 << 20;

/// When free space is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionPolicy {
    /// Share of the store, in percent, that holds nothing.
    pub free_percent: u8,
    /// Bytes of a store that is left as it is.
    pub least_bytes: u64,
}

impl CompactionPolicy {
    /// Whether there is enough to give back, and room to do it.
    #[must_use]
    pub fn is_due(&self, usage: &Usage) -> bool {
        let used = usage.bytes.saturating_sub(usage.free_bytes);
        let needed = used.saturating_add(used / 4).saturating_add(SPARE_BYTES);
        let share = u128::from(usage.bytes) * u128::from(self.free_percent);
        usage.bytes > self.least_bytes
            && u128::from(usage.free_bytes) * 100 >= share
            && usage.available_bytes.is_none_or(|left| left >= needed)
    }
}

/// What a compaction has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes that the store took up.
    pub before: u64,
    /// Bytes that it takes up.
    pub after: u64,
}

impl Store {
    /// Gives back the space that holds nothing; `None` for an engine that does so itself. Users go
    /// on: the generation stays, and no batch is lost. Commits wait while the last few rows are
    /// copied and the copy takes the store's place, look-ups while that is done. The copy is read
    /// whole before that, but for what is committed meanwhile.
    ///
    /// Blocks for as long as that takes: it belongs on a thread of its own.
    ///
    /// # Errors
    ///
    /// When another copy is being made, readers do not come to an end, or the disk fails. The store
    /// is what it was; if it is not known whether it is, its generation ends as after any failure.
    pub fn compact(&self, progress: &mut OnProgress<'_>) -> Result<Option<Compacted>, BackupError> {
        compact(self.shared(), progress)
    }
}

pub(super) fn compact(
    shared: &Shared,
    progress: &mut OnProgress<'_>,
) -> Result<Option<Compacted>, BackupError> {
    let Some(place) = shared.engine.copy_place() else {
        return Ok(None);
    };
    // What is not finished goes before another copy can begin.
    let source = Live::begin(shared)?;
    let before = shared.engine.usage()?.bytes;
    let new = Unfinished::at(place.clone());
    replace(&source, &place, progress)?;
    new.keep();
    drop(source);
    shared.look();
    let after = shared.engine.usage()?.bytes;
    Ok(Some(Compacted { before, after }))
}

/// Makes a copy at `place`, reads it whole, and has it take the store's place with what came
/// meanwhile.
fn replace(
    source: &Live<'_>,
    place: &Path,
    progress: &mut OnProgress<'_>,
) -> Result<(), BackupError> {
    let mut writer = CopyWriter::create(place)?;
    copy_rows(source, &mut writer, progress)?;
    // It is no commit's state yet, and is read now: commits do not wait for that.
    writer.finish(0)?;
    check_whole(place, ReadOnlyFile::open(place)?, progress)?;
    let mut writer = CopyWriter::resume(place)?;
    let (rows, of) = (0, 0);
    catch_up(source, &mut writer, &mut || {
        go_on(progress, CopyStage::Copying, rows, of)
    })?;
    let new = place.to_owned();
    copy_last(source, writer, progress, move |shared, writer, copied| {
        writer.finish(copied.commit)?;
        drop(check_same(&new, &copied)?);
        let _quiet = shared.quiet(READERS_DEADLINE).ok_or(BackupError::Reading)?;
        let replaced = shared.engine.replace_with(&new);
        replaced.map_err(|fault| {
            // A commit tells whether it is to be opened again.
            shared.enqueue_own(Batch::new());
            BackupError::from(fault)
        })
    })
}

/// Nothing is read for as long as this lives.
pub(super) struct Quiet<'a>(&'a Shared);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.0.lock().reading.is_paused = false;
        self.0.look_ups.notify_all();
        self.0.scans.notify_all();
    }
}

impl Shared {
    /// Has nobody begin to read, and waits until those who have begun are done; nothing when they
    /// are not within `patience`.
    fn quiet(&self, patience: Duration) -> Option<Quiet<'_>> {
        let since = Instant::now();
        let mut state = self.lock();
        state.reading.is_paused = true;
        let quiet = Quiet(self);
        while state.reading.is_under_way() {
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                drop(state);
                return None;
            }
            state = self.wait_for_end(state, left);
        }
        drop(state);
        Some(quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_when_there_is_enough_to_give_back_and_room_to_do_it() {
        const MIB: u64 = 1 << 20;
        let policy = CompactionPolicy {
            free_percent: 50,
            least_bytes: 100 * MIB,
        };
        let usage = |bytes, free_bytes, available_bytes| Usage {
            bytes: bytes * MIB,
            free_bytes: free_bytes * MIB,
            available_bytes,
        };
        assert!(policy.is_due(&usage(200, 100, None)));
        assert!(!policy.is_due(&usage(200, 99, None)), "too little");
        assert!(!policy.is_due(&usage(100, 90, None)), "too small");
        assert!(policy.is_due(&usage(200, 100, Some(189 * MIB))));
        assert!(!policy.is_due(&usage(200, 100, Some(188 * MIB))), "no room");
    }
}
