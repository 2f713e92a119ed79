//! Reads what lies on the disk before somebody needs it.

use std::time::{Duration, Instant};

use super::{
    backup::now, copying::count_rows, error::StoreError, metrics::Operation, shared::Shared,
    store::Store, upkeep, user::Generation,
};

/// Blocks that are read at once, and bytes of each.
const STRETCH: u64 = 64;
const BLOCK_BYTES: u64 = 4096;

/// What a scrub has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Blocks that were read.
    pub blocks: u64,
    /// Blocks on the disk that are not what was written. One may be free, left of a write that a
    /// power loss cut short; or what it held may be in memory still.
    pub suspects: Vec<String>,
    /// Why a row cannot be read, if there are suspects and one cannot.
    pub unreadable: Option<StoreError>,
}

impl ScrubReport {
    /// Whether every block is what was written.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Whether a compaction leaves behind what is damaged: every row can be read all the same.
    #[must_use]
    pub fn is_mendable(&self) -> bool {
        !self.is_sound() && self.unreadable.is_none()
    }
}

/// How fast it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As fast as the disk has it.
    AtOnce,
    /// So many bytes a second.
    BytesPerSecond(u64),
}

impl Store {
    /// Reads every block of the store beside commits, as fast as the disk has it, and every row if a
    /// block is not what was written. `progress` is told the blocks that were read. An engine that
    /// looks after its disks itself reads nothing.
    ///
    /// Blocks for as long as that takes: it belongs on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the store closes, is closed, or fails meanwhile. What is damaged is in the report, and
    /// shows in [`condition`](Self::condition) until a scrub finds nothing. What reads found wrong
    /// with rows shows until the store is opened by a new process. [`compact`](Self::compact) leaves
    /// behind what nobody needs.
    pub fn scrub(&self, progress: &mut dyn FnMut(u64)) -> Result<ScrubReport, StoreError> {
        scrub(self.shared(), Pace::AtOnce, progress)
    }
}

pub(super) fn scrub(
    shared: &Shared,
    pace: Pace,
    progress: &mut dyn FnMut(u64),
) -> Result<ScrubReport, StoreError> {
    let mut report = ScrubReport::default();
    let mut next = Some(0);
    // Why it is closed is the store's to say: its engine knows no more than that. A file that it
    // opens meanwhile may be another one, whatever becomes of it.
    let generation = shared.readable(None)?;
    while let Some(from) = next {
        shared.readable(Some(generation))?;
        let scrubbed = shared.engine.scrub(from, STRETCH);
        shared.readable(Some(generation))?;
        let Some(scrubbed) = scrubbed? else {
            return Ok(report);
        };
        report.blocks += scrubbed.blocks;
        let suspects = scrubbed.suspects.into_iter().map(|(_, reason)| reason);
        report.suspects.extend(suspects);
        next = scrubbed.next;
        progress(report.blocks);
        pause(shared, pace, scrubbed.blocks * BLOCK_BYTES)?;
    }
    let Some(first) = report.suspects.first() else {
        let at = now();
        let mut state = shared.lock();
        if !state.is_open || state.generation != generation {
            return Err(StoreError::Ended);
        }
        // What is wrong with rows may be in blocks that are what was written.
        state.upkeep.damaged_blocks = None;
        state.upkeep.scrubbed_at = Some(at);
        drop(state);
        shared.enqueue_own(upkeep::scrubbed(at));
        return Ok(report);
    };
    report.unreadable = read_rows(shared, generation, pace)?;
    shared.readable(Some(generation))?;
    let count = report.suspects.len();
    let damage = report.unreadable.clone().unwrap_or_else(|| StoreError::Damaged {
        place: shared.place.clone(),
        reason: format!(
            "of its blocks on the disk {count} are not what was written, beginning with {first}; \
             every row can be read all the same, and a compaction leaves them behind"
        ),
    });
    shared.note_fault(Operation::Scrub, &damage);
    Ok(report)
}

/// Reads every row, which is everything that counts; what of it is damaged.
fn read_rows(
    shared: &Shared,
    generation: Generation,
    pace: Pace,
) -> Result<Option<StoreError>, StoreError> {
    let read = || {
        let tables = shared.snapshot(Some(generation))?.tables()?;
        for (table, _) in tables {
            let mut before = 0;
            // One snapshot a table: what is removed meanwhile takes up space until then.
            let snapshot = shared.snapshot(Some(generation))?;
            count_rows(&*snapshot, &table, &mut |read| {
                let bytes = (read - before) * BLOCK_BYTES / 16;
                before = read;
                pause(shared, pace, bytes)
            })?;
        }
        Ok(())
    };
    match read() {
        Ok(()) => Ok(None),
        Err(damage @ StoreError::Damaged { .. }) => Ok(Some(damage)),
        Err(fault) => Err(fault),
    }
}

/// Waits for as long as so many bytes are to take.
fn pause(shared: &Shared, pace: Pace, bytes: u64) -> Result<(), StoreError> {
    let pause = match pace {
        Pace::AtOnce => Duration::ZERO,
        Pace::BytesPerSecond(most) => Duration::from_secs_f64(bytes as f64 / most.max(1) as f64),
    };
    if shared.rest(pause) {
        Ok(())
    } else {
        Err(StoreError::Closed {
            place: shared.place.clone(),
        })
    }
}

impl Shared {
    /// Waits; `false` when the store closes.
    pub(super) fn rest(&self, pause: Duration) -> bool {
        let since = Instant::now();
        let mut state = self.lock();
        loop {
            let left = pause.saturating_sub(since.elapsed());
            if state.closing || left.is_zero() {
                return !state.closing;
            }
            state = self.wait_for_end(state, left);
        }
    }
}
