//! How a command ends that did not do what it was asked.
//!
//! | exit code | |
//! |---|---|
//! | 0 | done |
//! | 1 | it failed, or what was looked at is not well |
//! | 2 | the command line is wrong |
//! | 3 | what was asked for is not there |
//! | 4 | there is neither a running node nor a store |
//! | 5 | nothing was done: it needs `--yes` |
//!
//! With `--json` the reason is one JSON object on stderr, `{"error": …, "retry": …}`: what stands on
//! stdout is an answer, always. `retry` is `now`, `after`, `operator` or `never`.

use std::process::ExitCode;

use governance_stream::{
    config::ConfigError,
    storage::{BackupError, StoreError},
};
use serde_json::json;

#[cfg(unix)]
use super::ask::Refused;

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

/// Tells of it, and gives the exit code.
pub(super) fn tell(error: &anyhow::Error, as_json: bool) -> ExitCode {
    let (code, retry) = kind(error);
    if as_json {
        let shown = json!({ "error": format!("{error:#}"), "retry": retry });
        eprintln!("{shown}");
    } else {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(code)
}

fn kind(error: &anyhow::Error) -> (u8, String) {
    let of = |code, retry: &str| (code, retry.to_owned());
    #[cfg(unix)]
    if let Some(refused) = error.downcast_ref::<Refused>() {
        let code = if refused.is_unknown { 3 } else { 1 };
        return (code, refused.retry.clone());
    }
    let of_copy = match error.downcast_ref::<BackupError>() {
        Some(BackupError::Store(fault)) => Some(fault),
        Some(BackupError::Busy | BackupError::Reading) => return of(1, "after"),
        Some(_) => return of(1, "operator"),
        None => None,
    };
    if let Some(fault) = error.downcast_ref::<StoreError>().or(of_copy) {
        let is_absent = matches!(fault, StoreError::Absent { .. });
        return of(if is_absent { 4 } else { 1 }, retry_of(fault));
    }
    if error.is::<NotThere>() {
        of(3, "never")
    } else if error.is::<NoNode>() {
        of(4, "operator")
    } else if error.is::<Unconfirmed>() {
        of(5, "operator")
    } else if error.is::<ConfigError>() {
        of(1, "operator")
    } else {
        of(1, "never")
    }
}

/// Whether asking again helps a store that fails.
pub(super) const fn retry_of(fault: &StoreError) -> &'static str {
    match fault {
        StoreError::Closed { .. } | StoreError::Hung { .. } | StoreError::Ended => "after",
        _ => "operator",
    }
}
