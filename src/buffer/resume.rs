//! How two records of one lane fit together when a session begins. Pure.

use crate::message::{Lane, MessageId};

/// What the sending side of a lane knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sender {
    /// Lowest sequence that it can still send again.
    pub first_retained: u64,
    /// Sequence of its next new message.
    pub next_new: u64,
}

/// Why two records of a lane do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResumeFault {
    /// The receiver holds another message under the same sequence.
    #[error("lane {lane}: sequence {sequence} is another message there; two histories met")]
    Forked {
        /// The lane.
        lane: Lane,
        /// The sequence.
        sequence: u64,
    },
    /// The receiver expects more than the sender ever made.
    #[error(
        "lane {lane}: {next_expected} is expected, but {next_new} was never made; the sender's history went back"
    )]
    RolledBack {
        /// The lane.
        lane: Lane,
        /// What the receiver expects.
        next_expected: u64,
        /// What the sender would make next.
        next_new: u64,
    },
    /// The receiver expects what it has already acknowledged.
    #[error(
        "lane {lane}: {next_expected} is expected, but {first_retained} is the first one kept; the receiver is behind what it acknowledged"
    )]
    Behind {
        /// The lane.
        lane: Lane,
        /// What the receiver expects.
        next_expected: u64,
        /// What the sender can still send.
        first_retained: u64,
    },
    /// Governance keeps another ledger than the one this journal belongs to.
    #[error(
        "governance has another ledger than before; it was restored or replaced; ask its operator, then let this node adopt it"
    )]
    LedgerChanged,
    /// Its other ledger was adopted: the next session begins with it.
    #[error("governance's new ledger was adopted; the next session begins with it")]
    Adopted,
}

/// Judges one direction of `lane`: the receiver expects `next_expected` and says that it holds
/// `last_received` below it; `known` is what the sender has there, if it still knows.
pub(super) fn judge(
    lane: Lane,
    sender: Sender,
    next_expected: u64,
    last_received: Option<MessageId>,
    known: impl Fn(u64) -> Option<MessageId>,
) -> Result<(), ResumeFault> {
    let Sender {
        first_retained,
        next_new,
    } = sender;
    if next_expected > next_new {
        return Err(ResumeFault::RolledBack {
            lane,
            next_expected,
            next_new,
        });
    }
    if next_expected < first_retained {
        return Err(ResumeFault::Behind {
            lane,
            next_expected,
            first_retained,
        });
    }
    let sequence = next_expected.saturating_sub(1);
    match (last_received, known(sequence)) {
        (Some(theirs), Some(ours)) if theirs != ours => Err(ResumeFault::Forked { lane, sequence }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_its_verdict() {
        let (ours, theirs) = (MessageId::generate(), MessageId::generate());
        let lane = Lane::Pegin;
        let sender = Sender {
            first_retained: 5,
            next_new: 9,
        };
        let judge = |next_expected, last| judge(lane, sender, next_expected, last, |_| Some(ours));
        assert_eq!(judge(5, Some(ours)), Ok(()), "nothing to acknowledge");
        assert_eq!(
            judge(7, Some(ours)),
            Ok(()),
            "part to acknowledge, part to replay"
        );
        assert_eq!(judge(9, Some(ours)), Ok(()), "everything arrived");
        assert_eq!(
            judge(7, Some(theirs)),
            Err(ResumeFault::Forked { lane, sequence: 6 })
        );
        assert_eq!(
            judge(10, Some(ours)),
            Err(ResumeFault::RolledBack {
                lane,
                next_expected: 10,
                next_new: 9
            })
        );
        assert_eq!(
            judge(4, Some(ours)),
            Err(ResumeFault::Behind {
                lane,
                next_expected: 4,
                first_retained: 5
            })
        );
    }
}
