//! What is written beside a backup: what it is, for people and for whoever checks it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use serde::{Deserialize, Serialize};
use tracing::warn;
use uuid::Uuid;

use super::{
    backup_error::BackupError,
    owner::{Owner, StoreIdentity},
};

/// What a backup is. It is written as JSON beside the file, under its name with `.json` behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The store's format.
    pub format: u32,
    /// Names the store that it was made of.
    pub store_id: Uuid,
    /// The node that the store belongs to.
    pub node_id: String,
    /// Its sidechain.
    pub chain_id: String,
    /// Its Bitcoin network.
    pub network: String,
    /// Digest of the first federation, in hex, where the node has one.
    pub first_federation: Option<String>,
    /// The last commit that is in it.
    pub commit: u64,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub made_at: SystemTime,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, in hex.
    pub sha256: String,
    /// Rows by table.
    pub tables: BTreeMap<String, u64>,
}

impl Backup {
    /// Where it is written, for the backup `file`.
    #[must_use]
    pub fn place(file: &Path) -> PathBuf {
        with_suffix(file, ".json")
    }

    /// Reads what is written beside `file`.
    ///
    /// # Errors
    ///
    /// When it is not there, or not what a backup writes.
    pub fn beside(file: &Path) -> Result<Self, BackupError> {
        let sidecar = Self::place(file);
        let text = match fs::read(&sidecar) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::NoSidecar {
                    file: file.display().to_string(),
                    sidecar: sidecar.display().to_string(),
                });
            }
            Err(error) => return Err(BackupError::file(&sidecar, "read", &error)),
        };
        serde_json::from_slice(&text).map_err(|error| BackupError::Sidecar {
            sidecar: sidecar.display().to_string(),
            reason: error.to_string(),
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            node_id: self.node_id.clone(),
            chain_id: self.chain_id.clone(),
            network: self.network.clone(),
            first_federation: self.first_federation.clone(),
        }
    }

    pub(super) fn of(
        identity: &StoreIdentity,
        format: u32,
        commit: u64,
        made_at: SystemTime,
        summed: Summed,
        tables: Vec<(String, u64)>,
    ) -> Self {
        let Owner {
            node_id,
            chain_id,
            network,
            first_federation,
        } = identity.owner.clone();
        Self {
            format,
            store_id: identity.store_id,
            node_id,
            chain_id,
            network,
            first_federation,
            commit,
            made_at,
            bytes: summed.bytes,
            sha256: summed.sha256,
            tables: tables.into_iter().collect(),
        }
    }

    /// Writes it at `place`, synced.
    pub(super) fn write(&self, place: &Path) -> Result<(), BackupError> {
        let failed = |error: &io::Error| BackupError::file(place, "write", error);
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(&error.into()))?;
        text.push(b'\n');
        remove(place)?;
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(place).map_err(|error| failed(&error))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed(&error))
    }
}

/// A file's length and digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summed {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Reads the whole file.
pub(super) fn sum(path: &Path) -> Result<Summed, BackupError> {
    let failed = |error: &io::Error| BackupError::file(path, "read", error);
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let mut digest = sha256::Hash::engine();
    let mut chunk = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut chunk).map_err(|error| failed(&error))?;
        match chunk.get(..read) {
            Some([]) | None => break,
            Some(read) => {
                digest.input(read);
                bytes += read.len() as u64;
            }
        }
    }
    let sha256 = sha256::Hash::from_engine(digest).to_string();
    Ok(Summed { bytes, sha256 })
}

/// The path with this behind its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes what an attempt that was cut short has left, if it has.
pub(super) fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BackupError::file(path, "remove", &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A file that is being made: it goes with this value, unless it was put in its place.
#[derive(Debug)]
pub(super) struct Unfinished(Option<PathBuf>);

impl Unfinished {
    pub(super) const fn at(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// It is where it belongs; what comes under its name from now on is another's.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = remove(path)
        {
            warn!(%error, "what is left of a copy takes up room");
        }
    }
}

/// Gives a file, which is whole and synced, its name, in the place of what has it.
pub(super) fn put(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::rename(from, to).map_err(|error| BackupError::file(to, "put in place", &error))?;
    sync_parent(to)
}

/// As [`put`], but takes nobody's place.
pub(super) fn put_new(from: &Path, to: &Path) -> Result<(), BackupError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists {
            file: to.display().to_string(),
        },
        _ => BackupError::file(to, "put in place", &error),
    };
    match fs::hard_link(from, to) {
        Ok(()) => remove(from)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(failed(error)),
        // Some file systems have no second names: an empty file keeps the place.
        Err(_) => {
            let mut options = File::options();
            options.write(true).create_new(true);
            drop(options.open(to).map_err(failed)?);
            if let Err(error) = fs::rename(from, to) {
                remove(to)?;
                return Err(failed(error));
            }
        }
    }
    sync_parent(to)
}

/// The directory that it is in.
pub(super) fn parent(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| *parent != Path::new(""));
    parent.unwrap_or(Path::new("."))
}

fn sync_parent(to: &Path) -> Result<(), BackupError> {
    let parent = parent(to);
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| BackupError::file(parent, "sync", &error))
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        at: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(*at))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_takes_nobodys_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::write(&from, "one").expect("written");
        put_new(&from, &to).expect("put");
        assert!(!from.exists());
        fs::write(&from, "two").expect("written");
        let refused = put_new(&from, &to);
        assert!(matches!(refused, Err(BackupError::Exists { .. })));
        assert_eq!(fs::read(&to).expect("read"), b"one");
        assert_eq!(fs::read(&from).expect("read"), b"two");
    }
}
