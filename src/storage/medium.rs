//! Where a file's bytes go: what the engine takes for storage, and a way past its cache.

use std::{fs::File, io, path::Path};

use redb::{StorageBackend, backends::FileBackend};

/// A file, or storage of another sort in its place.
#[derive(Debug)]
pub(super) struct Medium {
    storage: Box<dyn StorageBackend>,
    /// The same file, opened so that a write returns once it is on the disk. A sync of the whole
    /// file would wait for everything else that is on its way there.
    through: Option<File>,
}

impl Medium {
    /// A file that is open already, which `path` leads to.
    ///
    /// # Errors
    ///
    /// When it cannot be opened once more.
    pub(super) fn file(file: File, path: &Path, write: bool) -> Result<Self, redb::Error> {
        let through = if write { open_through(path)? } else { None };
        if let Some(through) = &through {
            check_same(&file, through)?;
        }
        Ok(Self {
            storage: Box::new(FileBackend::new(file)?),
            through,
        })
    }

    /// Any storage.
    pub(super) fn other(storage: Box<dyn StorageBackend>) -> Self {
        Self {
            storage,
            through: None,
        }
    }

    /// Writes, and returns once that is on the disk.
    ///
    /// # Errors
    ///
    /// When it is not known to be there.
    pub(super) fn write_through(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(unix)]
        if let Some(file) = &self.through {
            return std::os::unix::fs::FileExt::write_all_at(file, bytes, at);
        }
        self.storage.write(at, bytes)?;
        self.storage.sync_data()
    }
}

#[cfg(unix)]
fn open_through(path: &Path) -> io::Result<Option<File>> {
    let flags = rustix::fs::OFlags::DSYNC.bits().cast_signed();
    let mut options = File::options();
    options.write(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
    options.open(path).map(Some)
}

#[cfg(not(unix))]
fn open_through(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// The path may lead to another file by now.
fn check_same(one: &File, other: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let (one, other) = (one.metadata()?, other.metadata()?);
        if (one.dev(), one.ino()) != (other.dev(), other.ino()) {
            return Err(io::Error::other("another file took its place meanwhile"));
        }
    }
    #[cfg(not(unix))]
    let _ = (one, other);
    Ok(())
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        self.storage.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.storage.read(offset, out)
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.storage.set_len(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.storage.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.storage.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.storage.close()
    }
}
