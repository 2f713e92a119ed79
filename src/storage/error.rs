//! Why a store fails, and what to do.

use std::time::Duration;

/// What to do about a full disk under a store in use.
pub(super) const FULL: &str =
    "make room on that disk; what was accepted is kept, nothing more is accepted until then";
/// What to do about a disk that fails under a store in use.
pub(super) const FAILED: &str = "look at that disk and at the kernel's log; it is tried again";

/// Why a store was not opened, or did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is none.
    #[error(
        "store `{place}`: there is none. On a new node make one with `governance-stream init`. On a \
         node that has run before, do not: look whether its disk is mounted and `data_dir` is right, \
         or restore a backup; a new store does not know what this node has promised"
    )]
    Absent {
        /// Where it was looked for.
        place: String,
    },
    /// There is one already, or something else.
    #[error(
        "store `{place}`: it is not made, since {found} is there already. A node that has its store is started with `run`; for a new node choose an empty directory{}",
        if found == "`store.redb`" { "" } else { ", or say `--beside-others` where other files belong there" }
    )]
    Occupied {
        /// Where it was to be made.
        place: String,
        /// What is there.
        found: String,
    },
    /// Another process uses it.
    #[error(
        "store `{place}`: it is in use by {holder}; stop that first, two writers would fork history"
    )]
    Held {
        /// Where it is.
        place: String,
        /// Who, as far as it is known.
        holder: String,
    },
    /// It was written by another version of this program.
    #[error("store `{place}`: its format is {found}, this version reads {ours}; {advice}")]
    Format {
        /// Where it is.
        place: String,
        /// The format that was found.
        found: u32,
        /// The format of this version.
        ours: u32,
        /// What to do.
        advice: &'static str,
    },
    /// It belongs to another node, chain, network, federation, or is another store than before.
    #[error("store `{place}`: its {what} is {found}, and {expected} is expected; {advice}")]
    Foreign {
        /// Where it is.
        place: String,
        /// `node`, `chain`, `network`, `first federation` or `store id`.
        what: &'static str,
        /// What is written in it.
        found: String,
        /// What the configuration, or the store opened before, says.
        expected: String,
        /// What to do.
        advice: &'static str,
    },
    /// It is older than what was confirmed.
    #[error(
        "store `{place}`: its last commit is {found}, and {confirmed} was confirmed; it was replaced \
         by an older copy, or its disk lost what it had promised to keep. Nothing is done with it; \
         put the newer one back; if it is lost, stop the node and run `governance-stream restore --in-place`, which marks this one as restored"
    )]
    WentBack {
        /// Where it is.
        place: String,
        /// The commit that was confirmed last.
        confirmed: u64,
        /// The last one that is there.
        found: u64,
    },
    /// What is there is not what was written.
    #[error(
        "store `{place}` is damaged: {reason}; keep a copy, and see the runbook \
         GovernanceStoreFailing before anything else"
    )]
    Damaged {
        /// Where it is.
        place: String,
        /// What was found.
        reason: String,
    },
    /// Others than its owner may read or write it.
    #[error(
        "store `{place}`: mode {mode:03o} lets others in; `chmod {wanted:03o}` it, and see who has been there"
    )]
    Permissions {
        /// The file or directory.
        place: String,
        /// Its mode.
        mode: u32,
        /// What it is to be.
        wanted: u32,
    },
    /// The disk failed, is full, or may not be written.
    #[error("store `{place}`: cannot {operation}: {reason}; {advice}")]
    Io {
        /// Where it is.
        place: String,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A batch, a key or a value is larger than the engine ever takes.
    #[error("store: {what} of {bytes} bytes is more than the {limit} that it takes; it is refused")]
    TooLarge {
        /// `batch`, `value` or `key`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The most.
        limit: usize,
    },
    /// A row without a key.
    #[error("store: a row of table `{table}` has an empty key; it is refused")]
    EmptyKey {
        /// The table.
        table: String,
    },
    /// A user wrote to a table that is not its own.
    #[error("store: `{user}` may not write to table `{table}`")]
    ForeignTable {
        /// The user.
        user: &'static str,
        /// The table.
        table: String,
    },
    /// The engine does not return from what it was asked.
    #[error("store `{place}` has not answered for {:.1} s; look at its disk", .waited.as_secs_f32())]
    Hung {
        /// Where it is.
        place: String,
        /// For how long.
        waited: Duration,
    },
    /// What it was asked for was asked before a failure, or by a user that has a successor.
    #[error("store: this was asked before it failed or by one that was replaced; ask again")]
    Ended,
    /// It failed, and is being opened again.
    #[error(
        "the store is closed since it failed, and is opened again by itself as soon as that is \
         possible; what is wrong: {fault}"
    )]
    Reopening {
        /// Why the last commit, or the last attempt to open it, failed.
        fault: Box<Self>,
    },
    /// As many reads as may wait do so already.
    #[error(
        "store `{place}`: {waiting} reads wait for it already; ask again later, and look at its disk if this lasts"
    )]
    Busy {
        /// Where it is.
        place: String,
        /// How many wait.
        waiting: usize,
    },
    /// It is closed.
    #[error("store `{place}` is closed")]
    Closed {
        /// Where it is.
        place: String,
    },
}

impl StoreError {
    /// Every value of [`name`](Self::name).
    pub(super) const NAMES: [&'static str; 17] = [
        "absent",
        "occupied",
        "held",
        "format",
        "foreign",
        "went_back",
        "damaged",
        "permissions",
        "io",
        "too_large",
        "empty_key",
        "foreign_table",
        "hung",
        "ended",
        "reopening",
        "busy",
        "closed",
    ];

    /// What is wrong: of a store that is being opened again, why it is.
    #[must_use]
    pub fn cause(&self) -> &Self {
        match self {
            Self::Reopening { fault } => fault.cause(),
            fault => fault,
        }
    }

    /// The same of a store that is made or copied, and that nobody uses yet: nothing is tried again by
    /// itself, and nothing is accepted there.
    pub(super) fn of_new_file(self) -> Self {
        match self {
            Self::Io {
                place,
                operation,
                reason,
                advice,
            } => Self::Io {
                place,
                operation,
                reason,
                advice: match advice {
                    FULL => {
                        "make room on that disk, or choose a place on another one, and ask again"
                    }
                    FAILED => "look at that disk and at the kernel's log, and ask again",
                    other => other,
                },
            },
            other => other,
        }
    }

    /// Bounded label for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::Occupied { .. } => "occupied",
            Self::Held { .. } => "held",
            Self::Format { .. } => "format",
            Self::Foreign { .. } => "foreign",
            Self::WentBack { .. } => "went_back",
            Self::Damaged { .. } => "damaged",
            Self::Permissions { .. } => "permissions",
            Self::Io { .. } => "io",
            Self::TooLarge { .. } => "too_large",
            Self::EmptyKey { .. } => "empty_key",
            Self::ForeignTable { .. } => "foreign_table",
            Self::Hung { .. } => "hung",
            Self::Ended => "ended",
            Self::Reopening { .. } => "reopening",
            Self::Busy { .. } => "busy",
            Self::Closed { .. } => "closed",
        }
    }
}
