//! What a journal engine promises, and the rows it keeps.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bitcoin::OutPoint;

use super::{
    record::{DeadLetter, Entry},
    retained::{Counters, RequestRecord},
};
use crate::message::{Lane, LedgerId, OutboxId};

/// An engine that keeps rows.
///
/// One writer uses an engine at a time. The engine outlives the actor that writes to it.
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// Closes what is open, opens it again, and reads every row that is kept, in any order.
    ///
    /// # Errors
    ///
    /// When it cannot be read. Nothing is lost by asking again.
    fn load(&self) -> Result<Vec<Row>, JournalError>;

    /// Makes the rows durable, all or none of them, before it returns. A row replaces the one
    /// with the same key; one without a value removes it.
    ///
    /// # Errors
    ///
    /// When it is not known to have happened: the caller [loads](Self::load) again and learns
    /// what did.
    fn commit(&self, rows: &[Row]) -> Result<(), JournalError>;
}

/// One row: a key, and its value as of now.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// What there is once.
    Identity(Identity),
    /// How far a lane has come.
    Lane(Lane, Counters),
    /// A message for governance.
    Entry {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
        /// The message; removed when `None`.
        entry: Option<Entry>,
    },
    /// A request. It is never removed: its id stays taken, and its burns stay paid.
    Request {
        /// Its place in the order of acceptance.
        number: u64,
        /// How it stands.
        request: Box<RequestRecord>,
    },
    /// A peg-in notice that governance has answered.
    Pegin {
        /// Its place in the order of the answers.
        number: u64,
        /// The deposit and the time of its answer; removed when `None`.
        settled: Option<(OutPoint, SystemTime)>,
    },
    /// A message that could not be used.
    DeadLetter {
        /// Its number.
        number: u64,
        /// The message; removed when `None`.
        letter: Option<DeadLetter>,
    },
}

/// What a row is kept under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// Of [`Row::Identity`].
    Identity,
    /// Of [`Row::Lane`].
    Lane(Lane),
    /// Of [`Row::Entry`].
    Entry(Lane, u64),
    /// Of [`Row::Request`].
    Request(u64),
    /// Of [`Row::Pegin`].
    Pegin(u64),
    /// Of [`Row::DeadLetter`].
    DeadLetter(u64),
}

impl Row {
    /// What it is kept under.
    #[must_use]
    pub fn key(&self) -> RowKey {
        match self {
            Self::Identity(_) => RowKey::Identity,
            Self::Lane(lane, _) => RowKey::Lane(*lane),
            Self::Entry { lane, sequence, .. } => RowKey::Entry(*lane, *sequence),
            Self::Request { number, .. } => RowKey::Request(*number),
            Self::Pegin { number, .. } => RowKey::Pegin(*number),
            Self::DeadLetter { number, .. } => RowKey::DeadLetter(*number),
        }
    }

    /// Whether it removes what is kept under its key.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        match self {
            Self::Identity(_) | Self::Lane(..) | Self::Request { .. } => false,
            Self::Entry { entry, .. } => entry.is_none(),
            Self::Pegin { settled, .. } => settled.is_none(),
            Self::DeadLetter { letter, .. } => letter.is_none(),
        }
    }
}

/// What a journal knows of itself and of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Names this journal.
    pub outbox_id: OutboxId,
    /// The last session's epoch; 0 before the first.
    pub epoch: u64,
    /// Governance's ledger, once registered.
    pub ledger_id: Option<LedgerId>,
    /// Ledgers adopted so far: sequences of an earlier one are of no meaning.
    pub adoptions: u64,
    /// Whether governance has yet to say which open requests its new ledger holds.
    pub reconciling: bool,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            outbox_id: OutboxId::generate(),
            epoch: 0,
            ledger_id: None,
            adoptions: 0,
            reconciling: false,
        }
    }
}

/// Why an engine failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Another process uses it.
    #[error(
        "journal `{}`: it is in use by {holder}; stop that first, two writers would fork history",
        .path.display()
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// Who, as far as it is known.
        holder: String,
    },
    /// It was written by another version of this program.
    #[error(
        "journal `{}`: format {found} cannot be read, this version writes {ours}; {advice}",
        .path.display()
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format that was found.
        found: u32,
        /// The format of this version.
        ours: u32,
        /// What to do.
        advice: &'static str,
    },
    /// What is there is not what was written.
    #[error(
        "journal `{}` is damaged: {reason}; keep a copy, and see the runbook on a damaged journal \
         before anything is sent",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The disk failed, is full, or may not be written.
    #[error("journal `{}`: cannot {operation}: {reason}; {advice}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// The engine does not return from what it was asked.
    #[error(
        "the journal has not answered for {:.1} s; look at its disk",
        .waited.as_secs_f32()
    )]
    Hung {
        /// For how long.
        waited: Duration,
    },
    /// The thread that commits has ended.
    #[error("the journal's thread has ended; the buffer restarts and reads what was kept")]
    ThreadEnded,
}

impl JournalError {
    /// Bounded label for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Held { .. } => "held",
            Self::Format { .. } => "format",
            Self::Damaged { .. } => "damaged",
            Self::Io { .. } => "io",
            Self::Hung { .. } => "hung",
            Self::ThreadEnded => "thread_ended",
        }
    }
}
