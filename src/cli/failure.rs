//! How a command ends that did not do what it was asked, and the one table of exit codes.
//!
//! With `--json` the reason is one JSON object on stderr, `{"error": …, "kind": …, "retry": …}`: what
//! stands on stdout is an answer, always. `kind` is the word of the exit code; `retry` is `now`,
//! `after`, `operator` or `never`. A running node says the same words over its socket, so that a
//! command ends alike whoever answers.

use std::process::ExitCode;

use governance_stream::{
    config::ConfigError,
    storage::{BackupError, StoreError},
};
use serde_json::json;

#[cfg(unix)]
use super::ask::Refused;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Done,
    Failed,
    CommandLine,
    NotThere,
    NoStore,
    Unconfirmed,
    Damaged,
    WentBack,
    Disk,
    InUse,
    Foreign,
    Closed,
}

impl Exit {
    const ALL: [Self; 12] = [
        Self::Done,
        Self::Failed,
        Self::CommandLine,
        Self::NotThere,
        Self::NoStore,
        Self::Unconfirmed,
        Self::Damaged,
        Self::WentBack,
        Self::Disk,
        Self::InUse,
        Self::Foreign,
        Self::Closed,
    ];

    /// Its code, its word, and what it means.
    const fn row(self) -> (u8, &'static str, &'static str) {
        match self {
            Self::Done => (0, "done", "done"),
            Self::Failed => (
                1,
                "failed",
                "it failed in a way without a code of its own, or the node is unhealthy",
            ),
            Self::CommandLine => (2, "command_line", "the command line is wrong"),
            Self::NotThere => (3, "not_there", "what was asked for is not there"),
            Self::NoStore => (4, "no_store", "there is no store, or no running node"),
            Self::Unconfirmed => (
                5,
                "unconfirmed",
                "nothing was done: it needs `--yes`, `--replace` or `--replace-newer`",
            ),
            Self::Damaged => (
                6,
                "damaged",
                "a store or backup is not what was written, or its rows do not fit each other",
            ),
            Self::WentBack => (7, "went_back", "the store is older than what was confirmed"),
            Self::Disk => (
                8,
                "disk",
                "the disk failed, is full, may not be written, or does not answer",
            ),
            Self::InUse => (
                9,
                "in_use",
                "another process has the store, or another copy of it is being made",
            ),
            Self::Foreign => (
                10,
                "foreign",
                "a store or backup is of another node, chain, network, federation or version",
            ),
            Self::Closed => (
                11,
                "closed",
                "the store was closed or opened again meanwhile; ask again",
            ),
        }
    }

    /// As the process says it.
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(self.row().0)
    }

    /// As JSON says it.
    pub(super) const fn word(self) -> &'static str {
        self.row().1
    }

    /// What a running node said.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.word() == word)
    }

    /// For a store's fault; of one that is being opened again, for what is wrong with it.
    pub(super) fn of_store(fault: &StoreError) -> Self {
        match fault.cause() {
            StoreError::Absent { .. } => Self::NoStore,
            StoreError::Held { .. } => Self::InUse,
            StoreError::Format { .. } | StoreError::Foreign { .. } => Self::Foreign,
            StoreError::WentBack { .. } => Self::WentBack,
            StoreError::Damaged { .. } => Self::Damaged,
            StoreError::Io { .. } | StoreError::Hung { .. } => Self::Disk,
            StoreError::Ended | StoreError::Closed { .. } => Self::Closed,
            _ => Self::Failed,
        }
    }

    /// For a copy that was not made, taken or restored.
    pub(super) fn of_copy(error: &BackupError) -> Self {
        match error {
            BackupError::Store(fault) => Self::of_store(fault),
            BackupError::File { .. } => Self::Disk,
            BackupError::Busy | BackupError::Reading => Self::InUse,
            BackupError::NoSidecar { .. } | BackupError::NoDirectory { .. } => Self::NotThere,
            BackupError::Sidecar { .. }
            | BackupError::Checksum { .. }
            | BackupError::Mismatch { .. }
            | BackupError::Damaged { .. } => Self::Damaged,
            BackupError::NotEmpty { .. }
            | BackupError::Newer { .. }
            | BackupError::Incomparable { .. } => Self::Unconfirmed,
            BackupError::Foreign { .. } => Self::Foreign,
            _ => Self::Failed,
        }
    }
}

/// The table of exit codes, for `--help`.
pub(super) fn exit_codes() -> String {
    let rows = Exit::ALL.map(|exit| {
        let (code, word, meaning) = exit.row();
        format!("  {code:>2}  {word:<13} {meaning}")
    });
    format!("Exit codes:\n{}", rows.join("\n"))
}

/// What was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotThere(pub String);

/// It was not done, since nobody said that it is meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unconfirmed(pub String);

/// No node runs, where only a running one can do it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoNode(pub String);

/// Options that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct CommandLine(pub String);

/// Tells of it, and gives the exit code.
pub(super) fn tell(error: &anyhow::Error, as_json: bool) -> ExitCode {
    let (exit, retry) = kind(error);
    if as_json {
        let shown = json!({ "error": format!("{error:#}"), "kind": exit.word(), "retry": retry });
        eprintln!("{shown}");
    } else {
        eprintln!("error: {error:#}");
    }
    exit.code()
}

/// How a command ends by this error, and whether it helps to ask again.
pub(super) fn kind(error: &anyhow::Error) -> (Exit, String) {
    let of = |exit, retry: &str| (exit, retry.to_owned());
    #[cfg(unix)]
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return (refused.kind, refused.retry.clone());
    }
    if let Some(copy) = error.downcast_ref::<BackupError>() {
        return of(Exit::of_copy(copy), retry_of_copy(copy));
    }
    if let Some(fault) = error.downcast_ref::<StoreError>() {
        return of(Exit::of_store(fault), retry_of(fault));
    }
    if error.is::<NotThere>() {
        of(Exit::NotThere, "never")
    } else if error.is::<NoNode>() {
        of(Exit::NoStore, "operator")
    } else if error.is::<Unconfirmed>() {
        of(Exit::Unconfirmed, "operator")
    } else if error.is::<CommandLine>() {
        of(Exit::CommandLine, "never")
    } else if error.is::<ConfigError>() {
        of(Exit::Failed, "operator")
    } else {
        of(Exit::Failed, "never")
    }
}

/// Whether asking again helps a store that fails.
pub(super) fn retry_of(fault: &StoreError) -> &'static str {
    match fault.cause() {
        StoreError::Closed { .. }
        | StoreError::Hung { .. }
        | StoreError::Busy { .. }
        | StoreError::Ended => "after",
        _ => "operator",
    }
}

/// Whether asking again helps a copy that was not made.
pub(super) fn retry_of_copy(error: &BackupError) -> &'static str {
    match error {
        BackupError::Store(fault) => retry_of(fault),
        BackupError::Busy | BackupError::Reading | BackupError::Cancelled => "after",
        _ => "operator",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_way_to_end_has_a_code_and_a_word_of_its_own() {
        let codes = Exit::ALL.map(|exit| exit.row().0);
        assert!(codes.is_sorted());
        assert_eq!(BTreeSet::from(codes).len(), Exit::ALL.len());
        for exit in Exit::ALL {
            assert_eq!(Exit::of_word(exit.word()), Some(exit));
        }
    }

    #[test]
    fn the_manual_has_the_same_table() {
        let manual = include_str!("../../docs/operations.md");
        let rows = manual.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
            let code = cells.next()?.parse::<u8>().ok()?;
            Some((code, cells.next()?.trim_matches('`'), cells.next()?))
        });
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows, Exit::ALL.map(Exit::row));
    }
}
