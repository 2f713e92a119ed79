//! A file in which every block is vouched for by a checksum, as storage for the engine.

use std::{
    cell::RefCell,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use redb::StorageBackend;

use super::{
    blocks::{
        self, Area, BLOCK, Flaw, Header, Layout, PAYLOAD, PREAMBLE, PREAMBLES, STORED, Salt,
        WATERMARK, WATERMARKS,
    },
    copies::{damage, read_headers, read_layout, write_header},
    medium::Medium,
    scrub::Scrubbed,
};

/// Bytes that a thread's buffer may keep.
const SCRATCH_BYTES: usize = 64 * STORED;

/// Storage that gives back what was written to it, or an error that names the block.
///
/// Clones are the same storage. What is assumed of the disk below: after a power loss a sector
/// holds its old or its new bytes, and what a successful sync covered is there. A failed sync is
/// taken to have lost any of what it covered, whatever reads say afterwards.
#[derive(Clone)]
pub(super) struct Checksummed(Arc<Shared>);

struct Shared {
    storage: Medium,
    layout: Layout,
    header: Mutex<Header>,
    /// Bytes of data: what the engine takes for the file's length.
    length: AtomicU64,
    /// Held shared by each write, exclusively where none may be in progress.
    writing: RwLock<()>,
    /// Why it does nothing any more.
    first_failure: Mutex<Option<(io::ErrorKind, String)>>,
    /// After a write or a sync that failed: what the file holds is then unknown.
    dead: AtomicBool,
    revoked: AtomicBool,
    read_only: bool,
    /// Copies of headers and preambles that were found damaged, with a twin that was whole.
    damaged_copies: u64,
}

impl fmt::Debug for Checksummed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checksummed")
            .field("storage", &self.0.storage)
            .finish_non_exhaustive()
    }
}

impl Checksummed {
    /// Makes an empty file of `storage`, which holds nothing, with so many bytes for each area of
    /// its log.
    ///
    /// # Errors
    ///
    /// When it cannot be written or synced.
    pub(super) fn create(storage: Medium, area: u64) -> io::Result<Self> {
        let layout = Layout {
            salt: Salt::random(),
            area,
        };
        storage.set_len(layout.data_start())?;
        for place in PREAMBLES {
            storage.write(place, &blocks::preamble(layout))?;
        }
        let header = |number| Header {
            number,
            length: 0,
            payload: Vec::new(),
        };
        for header in [header(0), header(1)] {
            write_header(&storage, layout.salt, &header)?;
        }
        storage.sync_data()?;
        Ok(Self::over(storage, layout, header(1), 0, false, 0))
    }

    /// Opens a file, and makes sure that what was read of its header is on the disk: after a
    /// failed sync a read shows what a power loss would undo, and the next write of the header
    /// goes over the one before it.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] when it is not what was written.
    pub(super) fn open(storage: Medium) -> io::Result<Self> {
        let opened = Self::open_with(storage, false)?;
        let shared = &opened.0;
        write_header(&shared.storage, shared.layout.salt, &shared.header())?;
        if shared.damaged_copies > 0 {
            for place in PREAMBLES {
                shared
                    .storage
                    .write(place, &blocks::preamble(shared.layout))?;
            }
        }
        shared.storage.sync_data()?;
        Ok(opened)
    }

    /// As [`open`](Self::open), but changes nothing, now or later.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub(super) fn open_read_only(storage: Medium) -> io::Result<Self> {
        Self::open_with(storage, true)
    }

    fn open_with(storage: Medium, read_only: bool) -> io::Result<Self> {
        let physical = storage.len()?;
        let cut_off = || {
            damage(format!(
                "the file is cut off at {physical} bytes, before its first block"
            ))
        };
        if physical
            < PREAMBLES
                .iter()
                .map(|at| at + PREAMBLE as u64)
                .max()
                .unwrap_or(0)
        {
            return Err(cut_off());
        }
        let (layout, damaged_preambles) = read_layout(&storage)?;
        if physical < layout.data_start() {
            return Err(cut_off());
        }
        let (header, damaged_headers) = read_headers(&storage, layout.salt)?;
        let length = layout
            .logical_length(physical)
            .filter(|length| *length >= header.length)
            .ok_or_else(|| {
                let expected = layout.physical_length(header.length);
                damage(format!(
                    "the file has {physical} bytes, and had {expected} or some whole blocks more"
                ))
            })?;
        let damaged = damaged_preambles + damaged_headers;
        Ok(Self::over(
            storage, layout, header, length, read_only, damaged,
        ))
    }

    fn over(
        storage: Medium,
        layout: Layout,
        header: Header,
        length: u64,
        read_only: bool,
        damaged_copies: u64,
    ) -> Self {
        Self(Arc::new(Shared {
            storage,
            layout,
            header: Mutex::new(header),
            length: AtomicU64::new(length),
            writing: RwLock::default(),
            first_failure: Mutex::default(),
            dead: AtomicBool::default(),
            revoked: AtomicBool::default(),
            read_only,
            damaged_copies,
        }))
    }

    /// Has every later call fail, whoever holds it. Waits for a write in progress.
    pub(super) fn revoke(&self) {
        self.0.revoked.store(true, Ordering::SeqCst);
        drop(
            self.0
                .writing
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// The first error that it returned, which the engine may have told in other words since.
    pub(super) fn first_failure(&self) -> Option<io::Error> {
        let failure = self.0.first_failure.lock();
        let failure = failure.unwrap_or_else(PoisonError::into_inner).clone();
        failure.map(|(kind, reason)| io::Error::new(kind, reason))
    }

    /// Copies of the header and of the preamble that were found damaged at the opening, each with
    /// a twin that was whole.
    pub(super) fn damaged_copies(&self) -> u64 {
        self.0.damaged_copies
    }

    /// Bytes that the file has.
    pub(super) fn file_length(&self) -> u64 {
        self.0.layout.physical_length(self.0.length())
    }

    /// What its preamble says.
    pub(super) fn layout(&self) -> Layout {
        self.0.layout
    }

    /// Bytes of both areas of the log, and the copies of what vouches for the file.
    pub(super) fn overhead(&self) -> u64 {
        self.0.layout.data_start()
    }

    /// Reads an area of the log, and says where in the file it cannot be read: there are zeros.
    pub(super) fn read_log(&self, area: Area) -> (Vec<u8>, Vec<(u64, io::Error)>) {
        let layout = self.0.layout;
        let start = layout.area_start(area);
        let mut bytes = vec![0; usize::try_from(layout.area).unwrap_or_default()];
        let mut unreadable = Vec::new();
        if self.0.storage.read(start, &mut bytes).is_err() {
            for (at, block) in (start..).step_by(BLOCK).zip(bytes.chunks_exact_mut(BLOCK)) {
                if let Err(error) = self.0.storage.read(at, block) {
                    block.fill(0);
                    unreadable.push((at, error));
                }
            }
        }
        (bytes, unreadable)
    }

    /// Notes that a commit is durable, without a sync: it is on the disk some time later, and at once
    /// for whoever opens the file after this process was killed.
    ///
    /// # Errors
    ///
    /// When it cannot be written. Nothing more can be done with the file then.
    pub(super) fn note_durable(&self, commit: u64) -> io::Result<()> {
        let shared = &self.0;
        shared.change(|| {
            WATERMARKS.iter().try_for_each(|place| {
                let bytes = shared.layout.salt.watermark(*place, commit);
                shared.storage.write(*place, &bytes)
            })
        })
    }

    /// A commit that is durable for certain; later ones may be.
    pub(super) fn noted_durable(&self) -> u64 {
        let read = |place: u64| {
            let mut bytes = [0; WATERMARK];
            self.0.storage.read(place, &mut bytes).ok()?;
            self.0.layout.salt.read_watermark(place, &bytes)
        };
        WATERMARKS.into_iter().filter_map(read).max().unwrap_or(0)
    }

    /// Does something while nothing is written.
    pub(super) fn undisturbed<T>(&self, work: impl FnOnce() -> T) -> T {
        let writing = self.0.writing.write();
        let _none = writing.unwrap_or_else(PoisonError::into_inner);
        work()
    }

    /// Writes to the log at byte `at` of the file, and returns once that is on the disk, whatever
    /// else is on its way there.
    ///
    /// # Errors
    ///
    /// When it is not known to be there. Nothing more can be done with the file then.
    pub(super) fn write_log(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.change(|| {
            if at.saturating_add(bytes.len() as u64) > self.0.layout.data_start() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("an entry at byte {at} goes beyond the end of the log"),
                ));
            }
            self.0.storage.write_through(at, bytes)
        })
    }

    /// Blocks that the file has, with block 0.
    pub(super) fn blocks(&self) -> u64 {
        self.0.length() / BLOCK as u64
    }

    /// Reads `count` blocks from block `from` on, straight from the file, beside whatever goes on.
    /// Block 0 is every copy of preamble and header. A block that was never written is no fault.
    ///
    /// # Errors
    ///
    /// When it was revoked.
    pub(super) fn scrub(&self, from: u64, count: u64) -> io::Result<Scrubbed> {
        self.0.check_revoked()?;
        let end = from.saturating_add(count).min(self.blocks());
        let mut scrubbed = Scrubbed::default();
        for block in from..end {
            if let Err(fault) = self.0.check_block(block) {
                scrubbed.suspects.push((block, fault.to_string()));
            }
            scrubbed.blocks += 1;
        }
        scrubbed.next = (end < self.blocks()).then_some(end);
        Ok(scrubbed)
    }
}

impl Shared {
    fn header(&self) -> MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn length(&self) -> u64 {
        self.length.load(Ordering::SeqCst)
    }

    fn check_revoked(&self) -> io::Result<()> {
        if self.revoked.load(Ordering::SeqCst) {
            return Err(io::Error::other("it was opened again since"));
        }
        Ok(())
    }

    fn check_alive(&self) -> io::Result<()> {
        self.check_revoked()?;
        if self.dead.load(Ordering::SeqCst) {
            return Err(io::Error::other("it is closed after an earlier failure"));
        }
        Ok(())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check_alive()
    }

    /// Notes a failure, for those who ask for the first one.
    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let first = self.first_failure.lock();
            first
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| (error.kind(), error.to_string()));
        }
        result
    }

    /// Does what changes the file. If that fails, it was the last thing.
    fn change(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        self.check_writable()?;
        let result = act();
        if result.is_err() {
            self.dead.store(true, Ordering::SeqCst);
        }
        self.noted(result)
    }

    fn write_header(&self, payload: Option<&[u8]>, length: u64) -> io::Result<()> {
        let mut header = self.header();
        let next = Header {
            number: header.number + 1,
            length,
            payload: payload.map_or_else(|| header.payload.clone(), <[u8]>::to_vec),
        };
        write_header(&self.storage, self.layout.salt, &next)?;
        *header = next;
        Ok(())
    }

    fn read_header(&self, out: &mut [u8]) {
        let header = self.header();
        let payload = header.payload.iter().chain(std::iter::repeat(&0));
        for (out, byte) in out.iter_mut().zip(payload) {
            *out = *byte;
        }
    }

    fn read_blocks(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let at = self.layout.physical(first);
        with_scratch(|stored| {
            stored.resize(out.len() / BLOCK * STORED, 0);
            self.storage.read(at, stored).map_err(|error| {
                let reason = format!("block {first} at byte {at} cannot be read: {error}");
                io::Error::new(error.kind(), reason)
            })?;
            let blocks = out.chunks_exact_mut(BLOCK).zip(stored.chunks_exact(STORED));
            for (block, (out, stored)) in (first..).zip(blocks) {
                let data = self.layout.salt.unseal(block, stored);
                out.copy_from_slice(
                    data.map_err(|flaw| damaged_block(block, self.layout.physical(block), flaw))?,
                );
            }
            Ok(())
        })
    }

    /// Checks a block by a read of its own, with all writes held up if the first look fails: one
    /// that is being written reads torn.
    fn check_block(&self, block: u64) -> io::Result<()> {
        let check = || {
            if block == 0 {
                self.check_copies()
            } else {
                let mut stored = vec![0; STORED];
                let at = self.layout.physical(block);
                self.storage.read(at, &mut stored).map_err(|error| {
                    damage(format!(
                        "block {block} at byte {at} cannot be read: {error}"
                    ))
                })?;
                match self.layout.salt.unseal(block, &stored) {
                    Ok(_) | Err(Flaw::NeverWritten) => Ok(()),
                    Err(flaw) => Err(damaged_block(block, at, flaw)),
                }
            }
        };
        check().or_else(|_| {
            let _none = self.writing.write().unwrap_or_else(PoisonError::into_inner);
            // The file may have become shorter meanwhile.
            if block >= self.length() / BLOCK as u64 {
                return Ok(());
            }
            check()
        })
    }

    fn check_copies(&self) -> io::Result<()> {
        let (_, preambles) = read_layout(&self.storage)?;
        let (_, headers) = read_headers(&self.storage, self.layout.salt)?;
        match preambles + headers {
            0 => Ok(()),
            damaged => Err(damage(format!(
                "{damaged} of 6 copies of the file's preamble and header are damaged, each with a \
                 whole twin"
            ))),
        }
    }
}

impl StorageBackend for Checksummed {
    fn len(&self) -> io::Result<u64> {
        self.0.check_alive()?;
        Ok(self.0.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let shared = &self.0;
        shared.check_alive()?;
        if offset == 0 && out.len() <= BLOCK {
            shared.read_header(out);
            return Ok(());
        }
        let end = offset.saturating_add(out.len() as u64);
        let read = if end > shared.length() {
            // A page number of a page that is not what was written.
            Err(damage(format!(
                "byte {offset} to {end} of its data were asked for, and it has {}",
                shared.length()
            )))
        } else {
            whole_blocks(offset, out.len()).and_then(|first| shared.read_blocks(first, out))
        };
        shared.noted(read)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let shared = &self.0;
        shared.change(|| {
            whole_blocks(length, 0)?;
            if length < shared.length() {
                // The header says how long the file is at least, so it goes first.
                shared.write_header(None, length)?;
                shared.storage.sync_data()?;
            }
            shared
                .storage
                .set_len(shared.layout.physical_length(length))?;
            shared.length.store(length, Ordering::SeqCst);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.change(|| self.0.storage.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let shared = &self.0;
        shared.change(|| {
            if offset == 0 && data.len() <= PAYLOAD {
                return shared.write_header(Some(data), shared.length());
            }
            let first = whole_blocks(offset, data.len())?;
            if offset.saturating_add(data.len() as u64) > shared.length() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("a write at {offset} goes beyond the end of the file"),
                ));
            }
            with_scratch(|stored| {
                stored.clear();
                for (block, data) in (first..).zip(data.chunks_exact(BLOCK)) {
                    shared.layout.salt.seal(block, data, stored);
                }
                shared.storage.write(shared.layout.physical(first), stored)
            })
        })
    }
}

/// Lends this thread's buffer for blocks as they are stored: one is needed for each page, and making
/// one costs as much as the checksum. A large one is not kept.
fn with_scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut scratch = SCRATCH.take();
    let done = work(&mut scratch);
    if scratch.capacity() <= SCRATCH_BYTES {
        SCRATCH.set(scratch);
    }
    done
}

/// The first of the blocks that `length` bytes from `offset` on are. The engine reads and writes
/// whole pages, but for its header.
fn whole_blocks(offset: u64, length: usize) -> io::Result<u64> {
    let block = BLOCK as u64;
    let is_header = offset == 0 && length > 0;
    if is_header || !offset.is_multiple_of(block) || !length.is_multiple_of(BLOCK) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{length} bytes at {offset} are not whole blocks"),
        ));
    }
    Ok(offset / block)
}

fn damaged_block(block: u64, at: u64, flaw: Flaw) -> io::Error {
    damage(match flaw {
        Flaw::NeverWritten => {
            format!("block {block} at byte {at} is all zeros, and was written once")
        }
        Flaw::Changed => format!("block {block} at byte {at} does not fit its checksum"),
    })
}

#[cfg(test)]
#[path = "checksummed_tests.rs"]
mod tests;
