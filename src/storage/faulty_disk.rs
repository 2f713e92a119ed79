//! A disk that fails in every way a disk is known to fail.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

/// What is written or lost as a whole.
pub(super) const SECTOR: usize = 512;

/// A disk in memory that knows what is on its platter and what is in the cache above it. Clones are
/// the same disk.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultyDisk(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// What a power loss leaves.
    platter: Vec<u8>,
    /// What reads see.
    cache: Vec<u8>,
    /// Sectors that the next sync writes to the platter.
    dirty: BTreeSet<usize>,
    fault: Option<Planned>,
    failing_sync: Option<u64>,
    full: bool,
    read_only: bool,
    unreadable: bool,
    /// Bytes that cannot be read.
    bad: std::ops::Range<usize>,
    vanished: bool,
    hanging: bool,
}

/// A fault that happens at a later change.
#[derive(Debug, Clone, Copy)]
struct Planned {
    /// So many changes from now.
    after: u64,
    fault: Fault,
}

/// What goes wrong with a write, a sync or a change of the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails. A failing sync marks pages clean: reads go on seeing the new bytes, no later sync
    /// writes them.
    Fails,
    /// It fails, and half of what it was to write is written.
    FailsHalfway,
    /// It is said to have worked.
    IsLost,
    /// The machine stops there: it does not happen, and what waits for a sync goes on waiting.
    PowerFails,
}

impl FaultyDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A disk of its own that is now as this one is.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::default();
        *copy.state() = self.state().clone();
        copy
    }

    /// Becomes what `other` is: a file that was put in the place of this one.
    pub(super) fn become_copy_of(&self, other: &Self) {
        let other = other.state().clone();
        *self.state() = other;
    }

    /// Has the sync after the next `after` ones fail.
    pub(super) fn plan_failing_sync(&self, after: u64) {
        self.state().failing_sync = Some(after);
    }

    /// Has the change after the next `after` ones go wrong.
    pub(super) fn plan(&self, after: u64, fault: Fault) {
        self.state().fault = Some(Planned { after, fault });
    }

    /// Whether what was planned has not happened.
    pub(super) fn is_planned(&self) -> bool {
        let state = self.state();
        state.fault.is_some() || state.failing_sync.is_some()
    }

    pub(super) fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    pub(super) fn set_read_only(&self, read_only: bool) {
        self.state().read_only = read_only;
    }

    pub(super) fn set_unreadable(&self, unreadable: bool) {
        self.state().unreadable = unreadable;
    }

    /// Has reads of any of these bytes fail, and no others.
    pub(super) fn set_bad(&self, bytes: std::ops::Range<usize>) {
        self.state().bad = bytes;
    }

    pub(super) fn set_vanished(&self, vanished: bool) {
        self.state().vanished = vanished;
    }

    /// Has every change wait until it hangs no more.
    pub(super) fn set_hanging(&self, hanging: bool) {
        self.state().hanging = hanging;
        self.0.released.notify_all();
    }

    /// The power goes. Of what no sync covered the platter has the sectors that `keeps` picks, in
    /// whatever order they were written: others are lost, writes are torn.
    pub(super) fn lose_power(&self, mut keeps: impl FnMut(usize) -> bool) {
        let mut state = self.state();
        let length = state.cache.len();
        if state.platter.len() != length && keeps(0) {
            state.platter.resize(length, 0);
        }
        for sector in std::mem::take(&mut state.dirty) {
            if keeps(sector) {
                state.write_out(sector, false);
            }
        }
        state.cache = state.platter.clone();
        state.fault = None;
        state.full = false;
    }

    /// Flips one bit of what is there, on the platter and in the cache.
    pub(super) fn flip(&self, bit: usize) {
        let mut state = self.state();
        {
            let bytes = bit / 8;
            let mask = 1 << (bit % 8);
            if let Some(byte) = state.platter.get_mut(bytes) {
                *byte ^= mask;
            }
            if let Some(byte) = state.cache.get_mut(bytes) {
                *byte ^= mask;
            }
        }
    }

    /// Overwrites what is there.
    pub(super) fn scribble(&self, at: usize, bytes: &[u8]) {
        let mut state = self.state();
        state.cache[at..at + bytes.len()].copy_from_slice(bytes);
        state.platter = state.cache.clone();
    }

    /// What reads see.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.state().cache.clone()
    }

    /// Cuts it off, or makes it longer.
    pub(super) fn cut(&self, length: usize) {
        let mut state = self.state();
        state.cache.resize(length, 0);
        state.platter.resize(length, 0);
    }

    /// A handle of the file on it.
    ///
    /// # Errors
    ///
    /// When it has vanished.
    pub(super) fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        if self.state().vanished {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Box::new(self.clone()))
    }

    fn change(&self) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.state();
        while state.hanging {
            let woken = self.0.released.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        if state.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let due = match &mut state.fault {
            Some(planned) if planned.after > 0 => {
                planned.after -= 1;
                None
            }
            Some(_) => state.fault.take().map(|planned| planned.fault),
            None => None,
        };
        Ok((state, due))
    }
}

impl State {
    /// Writes a sector to the platter, which only a sync makes longer.
    fn write_out(&mut self, sector: usize, grows: bool) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.cache.len());
        if from >= to {
            return;
        }
        if grows && self.platter.len() < to {
            self.platter.resize(to, 0);
        }
        let to = to.min(self.platter.len());
        if from < to {
            let (platter, cache) = (&mut self.platter, &self.cache);
            platter[from..to].copy_from_slice(&cache[from..to]);
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len();
        if self.cache.len() < end {
            if self.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(data);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
        Ok(())
    }
}

fn eio() -> io::Error {
    io::Error::other("input/output error (os error 5)")
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().cache.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("fits");
        let state = self.state();
        let is_bad = offset < state.bad.end && state.bad.start < offset + out.len();
        if state.unreadable || is_bad {
            return Err(eio());
        }
        let data = state.cache.get(offset..offset + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).expect("fits");
        let (mut state, fault) = self.change()?;
        if state.full && length > state.cache.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match fault {
            Some(Fault::IsLost) => return Ok(()),
            Some(_) => return Err(eio()),
            None => {}
        }
        let (before, after) = (state.cache.len().div_ceil(SECTOR), length.div_ceil(SECTOR));
        state.cache.resize(length, 0);
        state.dirty.retain(|sector| *sector < after);
        state.dirty.extend(before..after);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut state, mut fault) = self.change()?;
        match &mut state.failing_sync {
            Some(0) => {
                state.failing_sync = None;
                fault = Some(Fault::Fails);
            }
            Some(after) => *after -= 1,
            None => {}
        }
        let dirty = std::mem::take(&mut state.dirty);
        match fault {
            Some(Fault::Fails) => return Err(eio()),
            Some(Fault::FailsHalfway) => {
                for sector in dirty.into_iter().step_by(2) {
                    state.write_out(sector, false);
                }
                return Err(eio());
            }
            Some(Fault::IsLost) => {
                state.dirty = dirty;
                return Ok(());
            }
            Some(Fault::PowerFails) => {
                state.dirty = dirty;
                return Err(eio());
            }
            None => {}
        }
        let length = state.cache.len();
        state.platter.resize(length, 0);
        for sector in dirty {
            state.write_out(sector, true);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("fits");
        let (mut state, fault) = self.change()?;
        match fault {
            Some(Fault::Fails | Fault::PowerFails) => return Err(eio()),
            Some(Fault::FailsHalfway) => {
                let half = &data[..data.len() / 2];
                state.write(offset, half)?;
                return Err(eio());
            }
            Some(Fault::IsLost) => return Ok(()),
            None => {}
        }
        state.write(offset, data)
    }
}
