//! The directory that a store's file lives in, and who may be in it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::fault::io_error;
use crate::storage::error::StoreError;

/// The store's file.
const FILE: &str = "store.redb";
/// Locked while a process has the directory; holds its id.
const LOCK: &str = "LOCK";
/// What may be in a directory that counts as empty: the lock, the operator's socket, and what is
/// left of a making, a copy or a restore that was cut short.
pub(in crate::storage) const UNIMPORTANT: [&str; 4] = [
    LOCK,
    "operator.sock",
    "store.redb.new",
    "store.redb.restoring",
];

/// A directory that belongs to this process for as long as this value lives; the kernel lets go of
/// it with the process.
#[derive(Debug)]
pub(super) struct Home {
    directory: PathBuf,
    _lock: File,
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    number: u64,
}

impl FileId {
    #[cfg(unix)]
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            device: metadata.dev(),
            number: metadata.ino(),
        }
    }

    /// Without such a name every file is taken for the same.
    #[cfg(not(unix))]
    fn of(_: &fs::Metadata) -> Self {
        Self {
            device: 0,
            number: 0,
        }
    }
}

/// What a path leads to.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: FileId,
    pub(super) length: u64,
}

impl Home {
    /// Takes a directory that is there.
    ///
    /// # Errors
    ///
    /// [`StoreError::Absent`] if it is not, [`StoreError::Held`] while another process has it,
    /// [`StoreError::Permissions`] when others may enter it.
    pub(super) fn take(directory: &Path) -> Result<Self, StoreError> {
        demand_private(directory, 0o700)?;
        let failed = |operation| move |error| io_error(&shown(directory), operation, &error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        private(&mut options);
        let mut lock = options
            .open(directory.join(LOCK))
            .map_err(failed("write to the directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(directory, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(failed("lock the directory")(error)),
        }
        let id = std::process::id().to_string();
        lock.set_len(0)
            .and_then(|()| lock.write_all(id.as_bytes()))
            .map_err(failed("write to the directory"))?;
        Ok(Self {
            directory: directory.to_owned(),
            _lock: lock,
        })
    }

    /// Makes the directory, for its owner only, if it is not there, and takes it. One that is
    /// there, and empty, becomes its owner's only.
    ///
    /// # Errors
    ///
    /// [`StoreError::Occupied`] when it holds a store, or anything unless `anything` may be there;
    /// and as [`take`](Self::take).
    pub(super) fn make(directory: &Path, anything: bool) -> Result<Self, StoreError> {
        let failed = |operation| move |error| io_error(&shown(directory), operation, &error);
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(directory)
            .map_err(failed("make the directory"))?;
        let entries = entries(directory).map_err(failed("read the directory"))?;
        let occupied = |name: &str| StoreError::Occupied {
            place: shown(directory),
            found: format!("`{name}`"),
        };
        let store = entries.iter().find(|name| *name == FILE);
        let other = |name: &&String| !UNIMPORTANT.contains(&name.as_str());
        let other = entries.iter().find(other);
        if let Some(name) = store.or(other.filter(|_| !anything)) {
            return Err(occupied(name));
        }
        #[cfg(unix)]
        if other.is_none() && demand_private(directory, 0o700).is_err() {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(directory, mode)
                .map_err(failed("close the directory to others"))?;
        }
        let home = Self::take(directory)?;
        // Another process may have made one before the lock was ours.
        if home.file().exists() {
            return Err(occupied(FILE));
        }
        Ok(home)
    }

    /// Refuses a directory that others may enter by now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Permissions`]; [`StoreError::Absent`] when it has vanished.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        demand_private(&self.directory, 0o700)
    }

    /// What the path of the store's file leads to now.
    ///
    /// # Errors
    ///
    /// [`StoreError::Absent`] when that is nothing.
    pub(super) fn look(&self) -> Result<Found, StoreError> {
        let file = self.file();
        let metadata = fs::metadata(&file).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Absent {
                place: shown(&file),
            },
            _ => io_error(&shown(&file), "look at it", &error),
        })?;
        Ok(Found {
            id: FileId::of(&metadata),
            length: metadata.len(),
        })
    }

    /// The store's file.
    pub(super) fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Where a new file is made whole before it takes the store's place.
    pub(super) fn new_file(&self) -> PathBuf {
        self.directory.join("store.redb.new")
    }

    /// Puts a file that is whole and synced in the store's place.
    ///
    /// # Errors
    ///
    /// When it cannot be renamed, or the directory cannot be synced.
    pub(super) fn put(&self, file: &Path) -> Result<(), StoreError> {
        fs::rename(file, self.file())
            .map_err(|error| io_error(&shown(&self.file()), "put it in place", &error))?;
        self.sync()
    }

    /// Makes sure that the names in the directory are on the disk.
    ///
    /// # Errors
    ///
    /// When that is not known.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| io_error(&shown(&self.directory), "sync the directory", &error))
    }

    /// Bytes that are left on its disk.
    pub(super) fn available(&self) -> Option<u64> {
        available(&self.directory)
    }
}

/// Bytes that are left on the disk of `directory` to those without privileges.
pub(in crate::storage) fn available(directory: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(directory).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = directory;
        None
    }
}

/// The store's file in `directory`. No process takes the directory while this value lives.
#[derive(Debug)]
pub(super) struct Unheld {
    pub(super) file: PathBuf,
    /// `None` where no process can use a store.
    _lock: Option<File>,
}

impl Unheld {
    /// # Errors
    ///
    /// [`StoreError::Held`] while a process has it, and what the disk says.
    pub(super) fn take(directory: &Path) -> Result<Self, StoreError> {
        let failed = |error| io_error(&shown(directory), "lock the directory", &error);
        let mut lock = Self::lock(&directory.join(LOCK)).map_err(failed)?;
        if let Some(file) = &mut lock {
            match file.try_lock_shared() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(directory, file)),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Ok(Self {
            file: directory.join(FILE),
            _lock: lock,
        })
    }

    /// The lock's file, made where it is missing. `None` where there is nothing, and where nothing
    /// can be made: no process can use a store there either.
    fn lock(path: &Path) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        private(&mut options);
        match options.open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Ok(File::open(path).ok())
            }
            Err(error) => Err(error),
        }
    }
}

/// Opens a store's file.
///
/// # Errors
///
/// [`StoreError::Absent`], [`StoreError::Permissions`], or what the disk says.
pub(super) fn open_file(path: &Path, write: bool) -> Result<File, StoreError> {
    let opened = OpenOptions::new().read(true).write(write).open(path);
    match opened {
        Ok(file) => {
            demand_private(path, 0o600)?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StoreError::Absent { place: shown(path) })
        }
        Err(error) => Err(io_error(&shown(path), "open it", &error)),
    }
}

/// Makes a file that only its owner may read or write. One that is there already is a fault.
///
/// # Errors
///
/// What the disk says.
pub(super) fn create_file(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    private(&mut options);
    options
        .open(path)
        .map_err(|error| io_error(&shown(path), "create it", &error))
}

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn private(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    #[cfg(not(unix))]
    let _ = options;
}

/// Refuses what others may read, write or enter.
fn demand_private(path: &Path, wanted: u32) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::Absent { place: shown(path) },
        _ => io_error(&shown(path), "look at it", &error),
    })?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StoreError::Permissions {
                place: shown(path),
                mode,
                wanted,
            });
        }
    }
    #[cfg(not(unix))]
    let _ = (metadata, wanted);
    Ok(())
}

fn entries(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn held(directory: &Path, lock: &mut File) -> StoreError {
    let mut id = String::new();
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut id));
    let holder = match read {
        // Those who only read share it, and leave no id.
        Ok(_) if lock.try_lock_shared().is_ok() => "a command that reads it".to_owned(),
        Ok(_) if !id.trim().is_empty() => format!("process {}", id.trim()),
        Ok(_) | Err(_) => "another process".to_owned(),
    };
    StoreError::Held {
        place: shown(directory),
        holder,
    }
}
