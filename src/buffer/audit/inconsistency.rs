//! What can be wrong with rows that can be read.

use crate::message::Lane;

/// A rule that the rows break. None of them can come from a crash or a failed disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistency {
    /// A row is none.
    #[error("{table}: row {key} cannot be read: {reason}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// The row's key.
        key: String,
        /// Why.
        reason: String,
    },
    /// Rows without the row that names the stream.
    #[error("there are rows, and no identity")]
    NoIdentity,
    /// Counters that cannot be.
    #[error("{lane} lane: {reason}")]
    Counters {
        /// The lane.
        lane: Lane,
        /// What does not fit.
        reason: String,
    },
    /// Governance has not acknowledged the message, and it is gone: it can never be sent.
    #[error("{lane} lane: message {sequence} is not acknowledged, and is gone")]
    MessageLost {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
    },
    /// A message that the lane's counters know nothing of.
    #[error("{lane} lane: message {sequence} is beyond the lane's next, {next}")]
    MessageBeyond {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
        /// The lane's next.
        next: u64,
    },
    /// A message waits for an answer that nothing waits for.
    #[error("{lane} lane: message {sequence} waits for the answer to {what}, which {why}")]
    MessageWithoutCause {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
        /// The request or deposit.
        what: String,
        /// Why that does not wait for it.
        why: &'static str,
    },
    /// A message that was acknowledged and answered is still there, and nothing keeps it.
    #[error(
        "{lane} lane: message {sequence} is acknowledged and answered, and is kept for nothing"
    )]
    MessageKept {
        /// The lane.
        lane: Lane,
        /// Its sequence.
        sequence: u64,
    },
    /// An open request whose message is not in its lane.
    #[error("request {id} is open, and its message {sequence} is not in the signing lane")]
    RequestWithoutMessage {
        /// The request.
        id: String,
        /// The message's sequence.
        sequence: u64,
    },
    /// Accepted requests of which there is no row.
    #[error("requests {first} to {last} were accepted, and there is nothing of them")]
    RequestsLost {
        /// The first number.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// A request is among the open and the settled ones, or among the wrong ones.
    #[error("request {number} is {why}")]
    RequestTwice {
        /// Its number.
        number: u64,
        /// How.
        why: &'static str,
    },
    /// Answered peg-ins of which there is no row.
    #[error("peg-ins {first} to {last} were answered, and there is nothing of them")]
    PeginsLost {
        /// The first number.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// A row that is not found by what it is to be found by.
    #[error("{table}: {what} is found as {found:?}, and is number {number}")]
    NotIndexed {
        /// The index.
        table: &'static str,
        /// What is looked for.
        what: String,
        /// Its number.
        number: u64,
        /// The numbers that the index finds.
        found: Vec<u64>,
    },
    /// A row of an index that leads to nothing, or to something else.
    #[error("{table}: a row leads to number {number}, which {why}")]
    Astray {
        /// The index.
        table: &'static str,
        /// Where it leads.
        number: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// A dead letter with a number that was not given yet.
    #[error("dead letter {number} is beyond the next one's number, {next}")]
    DeadLetterBeyond {
        /// Its number.
        number: u64,
        /// The next one's.
        next: u64,
    },
}
