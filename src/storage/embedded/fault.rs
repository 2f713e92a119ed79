//! What the engine's errors mean to whoever runs the node.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::storage::{
    checksummed::Checksummed,
    error::{FAILED, FULL, StoreError},
};

/// Tells the engine's errors for one opening of one file.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    place: String,
    /// Knows what came first, once the engine says no more than that something did.
    storage: Option<Checksummed>,
}

impl Faults {
    pub(super) fn of(place: &str, storage: Option<Checksummed>) -> Self {
        Self {
            place: place.to_owned(),
            storage,
        }
    }

    /// Does something with the engine. Its panics, which damaged pages may cause, become errors.
    pub(super) fn guard<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(result) => result.map_err(|error| self.tell(operation, error)),
            Err(panic) => {
                let first = self.storage.as_ref().and_then(Checksummed::first_failure);
                Err(match first {
                    Some(error) => io_error(&self.place, operation, &error),
                    None => damaged(&self.place, stumbled(panic.as_ref())),
                })
            }
        }
    }

    fn tell(&self, operation: &'static str, error: redb::Error) -> StoreError {
        match error {
            redb::Error::Io(error) => io_error(&self.place, operation, &error),
            redb::Error::DatabaseAlreadyOpen => StoreError::Held {
                place: self.place.clone(),
                holder: "another process".to_owned(),
            },
            error @ (redb::Error::PreviousIo | redb::Error::DatabaseClosed) => {
                match self.storage.as_ref().and_then(Checksummed::first_failure) {
                    Some(first) => io_error(&self.place, operation, &first),
                    None if matches!(error, redb::Error::DatabaseClosed) => StoreError::Closed {
                        place: self.place.clone(),
                    },
                    None => io_error(&self.place, operation, &io::Error::other(error.to_string())),
                }
            }
            error => damaged(&self.place, error),
        }
    }
}

fn stumbled(panic: &(dyn std::any::Any + Send)) -> String {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    match message {
        Some(message) => format!("the engine stumbled over it ({message})"),
        None => "the engine stumbled over it".to_owned(),
    }
}

pub(super) fn damaged(place: &str, reason: impl ToString) -> StoreError {
    StoreError::Damaged {
        place: place.to_owned(),
        reason: reason.to_string(),
    }
}

pub(super) fn io_error(place: &str, operation: &'static str, error: &io::Error) -> StoreError {
    let advice = match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => return damaged(place, error),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FULL,
        io::ErrorKind::PermissionDenied => "let this user write to that directory",
        io::ErrorKind::ReadOnlyFilesystem => {
            "its file system is read-only: the kernel's log says why; mount it writable again"
        }
        _ => FAILED,
    };
    StoreError::Io {
        place: place.to_owned(),
        operation,
        reason: error.to_string(),
        advice,
    }
}
