//! Why a copy of a store was not made, not taken, or not restored.

use std::time::SystemTime;

use super::error::StoreError;

/// Why a backup, a check of one, a restore or a compaction came to nothing. What was there before is
/// there still.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store, or the copy of it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of this name is there.
    #[error("`{file}` is there already, and a backup takes nobody's place; choose another name")]
    Exists {
        /// The file.
        file: String,
    },
    /// Where it is to be put there is no directory.
    #[error(
        "`{file}` cannot be made: there is no directory `{directory}`; make it, where whoever writes the \
         copy may write (a running node does so itself), or choose another place"
    )]
    NoDirectory {
        /// The file.
        file: String,
        /// What is missing.
        directory: String,
    },
    /// The disk.
    #[error("cannot {operation} `{file}`: {reason}")]
    File {
        /// The file or directory.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Another backup or compaction of this store is being made.
    #[error("another copy of the store is being made; wait until it is there")]
    Busy,
    /// Reads that were under way did not end in time for a copy to take the store's place.
    #[error("reads of the store did not end; its free space is given back another time")]
    Reading,
    /// Whoever asked for it wants it no more.
    #[error("it was cancelled")]
    Cancelled,
    /// The description beside a backup is missing.
    #[error(
        "backup `{file}`: `{sidecar}` is not there, which says what it should be; the two belong together"
    )]
    NoSidecar {
        /// The backup.
        file: String,
        /// What is missing.
        sidecar: String,
    },
    /// The description beside a backup is not one.
    #[error("backup: `{sidecar}` is not what a backup writes: {reason}")]
    Sidecar {
        /// The description.
        sidecar: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is another node's.
    #[error(
        "backup `{file}`: its {what} is {found}, and {expected} is expected; name the configuration \
         of the node that it was made of, or another backup"
    )]
    Foreign {
        /// The backup.
        file: String,
        /// `node`, `chain`, `network` or `first federation`.
        what: &'static str,
        /// What is written in it.
        found: String,
        /// What the configuration says.
        expected: String,
    },
    /// The file is not the one that was made.
    #[error(
        "backup `{file}`: its SHA-256 is {found}, and {expected} was written beside it; it was cut \
         short, changed, or belongs to another description"
    )]
    Checksum {
        /// The backup.
        file: String,
        /// What is written beside it.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The store in the file is not the one that is described beside it.
    #[error("backup `{file}`: its {what} is {found}, and {expected} is written beside it")]
    Mismatch {
        /// The backup.
        file: String,
        /// What differs.
        what: &'static str,
        /// What is written beside it.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Part of it is not what was written.
    #[error("`{file}` is damaged: {reason}; use another backup")]
    Damaged {
        /// The file.
        file: String,
        /// What was found.
        reason: String,
    },
    /// The directory has a store, or something else.
    #[error(
        "`{directory}` is not empty: {found} is there. Restore into an empty directory, or say that \
         it is to be replaced; what is replaced is kept beside it"
    )]
    NotEmpty {
        /// The directory.
        directory: String,
        /// What is there.
        found: String,
    },
    /// The store that is there knows more than the backup.
    #[error(
        "store `{place}` is newer than the backup: its last commit is {commit}, of {}, and the \
         backup's {backup_commit}, of {}. What came between would be lost; say so if that is meant",
        shown(*.at), shown(*.backup_at)
    )]
    Newer {
        /// The store.
        place: String,
        /// Its last commit.
        commit: u64,
        /// When it was written last.
        at: SystemTime,
        /// The backup's last commit.
        backup_commit: u64,
        /// When the backup was made.
        backup_at: SystemTime,
    },
    /// The store that is there is another one, or cannot be read: which one is newer is unknown.
    #[error(
        "store `{place}` cannot be compared with the backup: {reason}. Whether it is newer is \
         unknown; say that it is to be replaced all the same, if that is meant"
    )]
    Incomparable {
        /// The store.
        place: String,
        /// Why not.
        reason: String,
    },
}

impl BackupError {
    /// The same of a copy: nothing is tried again by itself, and nothing is accepted there.
    pub(super) fn of_copy(self) -> Self {
        match self {
            Self::Store(fault) => Self::Store(fault.of_new_file()),
            other => other,
        }
    }

    pub(super) fn file(
        file: &std::path::Path,
        operation: &'static str,
        error: &std::io::Error,
    ) -> Self {
        Self::File {
            file: file.display().to_string(),
            operation,
            reason: error.to_string(),
        }
    }
}

fn shown(at: SystemTime) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(at)
}
