//! Storage that keeps what is written to it in memory, over a file that stays as it is.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

use super::{blocks::BLOCK, checksummed::Checksummed};

/// Lets the engine open a file that a crash left, and check it, without a change to it. Clones are
/// the same overlay.
///
/// What an opening writes is small: the header, and nothing else while allocations are recorded in
/// each commit.
#[derive(Debug, Clone)]
pub(super) struct Overlay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: Checksummed,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    length: u64,
    header: Option<Vec<u8>>,
    blocks: BTreeMap<u64, Vec<u8>>,
    /// By block: whether the engine has read it from the file.
    read: Vec<bool>,
}

impl Overlay {
    /// Nothing is written yet.
    ///
    /// # Errors
    ///
    /// When the file is closed.
    pub(super) fn new(file: Checksummed) -> io::Result<Self> {
        let state = State {
            length: file.len()?,
            ..State::default()
        };
        Ok(Self(Arc::new(Shared {
            file,
            state: Mutex::new(state),
        })))
    }

    /// Whether the engine has read this block of the file.
    pub(super) fn has_read(&self, block: u64) -> bool {
        let block = usize::try_from(block).ok();
        block.is_some_and(|block| self.state().read.get(block) == Some(&true))
    }

    /// How many blocks of the file the engine has read.
    pub(super) fn blocks_read(&self) -> u64 {
        self.state().read.iter().filter(|read| **read).count() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes that a block was read, damaged or not.
    fn note(&mut self, block: u64) {
        let Ok(block) = usize::try_from(block) else {
            return;
        };
        if self.read.len() <= block {
            self.read.resize(block + 1, false);
        }
        if let Some(read) = self.read.get_mut(block) {
            *read = true;
        }
    }
}

fn blocks_of(offset: u64, length: usize) -> std::ops::Range<u64> {
    let first = offset / BLOCK as u64;
    first..first + (length / BLOCK) as u64
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset == 0 && out.len() <= BLOCK {
            let state = self.state();
            let Some(header) = &state.header else {
                return self.0.file.read(offset, out);
            };
            let bytes = header.iter().chain(std::iter::repeat(&0));
            out.iter_mut()
                .zip(bytes)
                .for_each(|(out, byte)| *out = *byte);
            return Ok(());
        }
        let written: Vec<Option<Vec<u8>>> = {
            let mut state = self.state();
            blocks_of(offset, out.len())
                .map(|block| {
                    let written = state.blocks.get(&block).cloned();
                    if written.is_none() {
                        state.note(block);
                    }
                    written
                })
                .collect()
        };
        if written.iter().all(Option::is_none) {
            return self.0.file.read(offset, out);
        }
        let blocks = blocks_of(offset, out.len()).zip(out.chunks_exact_mut(BLOCK));
        for ((block, out), written) in blocks.zip(written) {
            match written {
                Some(data) => out.copy_from_slice(&data),
                None => self.0.file.read(block * BLOCK as u64, out)?,
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state();
        state.length = length;
        state.blocks.split_off(&(length / BLOCK as u64));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if offset == 0 && data.len() <= BLOCK {
            state.header = Some(data.to_vec());
            return Ok(());
        }
        let blocks = blocks_of(offset, data.len()).zip(data.chunks_exact(BLOCK));
        state
            .blocks
            .extend(blocks.map(|(block, data)| (block, data.to_vec())));
        Ok(())
    }
}
