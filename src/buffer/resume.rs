//! How our record and governance's fit together when a session begins, and what is done about
//! it. Pure.

use std::time::SystemTime;

use tracing::warn;

use super::{
    Listed, Reconciled, intake,
    record::{Entry, Expects, Record},
    retained::{Retained, Standing},
};
use crate::{
    message::{
        CancelReason, CancelRequest, Capabilities, Lane, LedgerId, MessageId, Outbound, OutboxId,
        PerLane, RegistrationAck,
    },
    telemetry::TraceContext,
};

/// What the sending side of a lane knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sender {
    /// Lowest sequence that it can still send again.
    first_retained: u64,
    /// The first sequence that it has never sent.
    next_new: u64,
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
    /// Governance expects more than this store ever sent.
    #[error(
        "lane {lane}: governance expects {next_expected}, but this store never sent {next_new}: its history went back; stop the node, see that no other one runs, and `governance-stream restore --in-place`"
    )]
    RolledBack {
        /// The lane.
        lane: Lane,
        /// What governance expects.
        next_expected: u64,
        /// The first that was never sent.
        next_new: u64,
    },
    /// Governance was told that more is handled than this store knows of.
    #[error(
        "lane {lane}: governance was told that everything below {first_retained} is handled, but this store has come to {next_expected} only: its history went back; stop the node, see that no other one runs, and `governance-stream restore --in-place`"
    )]
    Unhandled {
        /// The lane.
        lane: Lane,
        /// The first one that governance keeps.
        first_retained: u64,
        /// What this store expects.
        next_expected: u64,
    },
    /// This store has handled more than governance ever made.
    #[error(
        "lane {lane}: this store expects {next_expected}, but governance never made {next_new}: governance's history went back"
    )]
    NeverMade {
        /// The lane.
        lane: Lane,
        /// What this store expects.
        next_expected: u64,
        /// What governance would make next.
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
    /// Governance keeps another ledger than the one this store knows.
    #[error(
        "governance has another ledger than before; it was restored or replaced; ask its operator, then let this node adopt it"
    )]
    LedgerChanged,
    /// The store was restored from a backup, and nobody has seen to that yet.
    #[error(
        "this store was restored from a backup and may lack what was signed since: nothing is sent; do as docs/operations.md says, have governance's operator permit outbox {outbox_id}, then `governance-stream resume --restored --yes`"
    )]
    Restored {
        /// Names our store since the restore; what governance's operator permits.
        outbox_id: OutboxId,
    },
    /// Governance has seen more of this store than is in it, and nobody has seen to that yet.
    #[error(
        "this store is an older copy, or another instance ran on one: governance has seen more of it than it knows; see that no other instance runs, go back to the newest directory or run `governance-stream restore --in-place`, and do as docs/operations.md says"
    )]
    WentBack,
    /// Its other ledger was adopted: the next session begins with it.
    #[error("governance's new ledger was adopted; the next session begins with it")]
    Adopted,
}

/// What governance has acknowledged, as of now: an endpoint that holds less is behind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watermarks {
    ledger_id: Option<LedgerId>,
    first_unacknowledged: PerLane<u64>,
}

impl Watermarks {
    pub(super) fn of(retained: &Retained) -> Self {
        Self {
            ledger_id: retained.identity.ledger_id,
            first_unacknowledged: PerLane::from_fn(|lane| {
                retained.lanes.get(lane).counters.first_unacknowledged
            }),
        }
    }

    /// Whether an endpoint that said this later has everything that was acknowledged before.
    pub(crate) fn judge(&self, theirs: &Capabilities) -> Result<(), ResumeFault> {
        if self
            .ledger_id
            .is_some_and(|known| known != theirs.ledger_id)
        {
            return Err(ResumeFault::LedgerChanged);
        }
        for (lane, first_retained) in self.first_unacknowledged.iter() {
            let (next_expected, first_retained) =
                (*theirs.next_expected.get(lane), *first_retained);
            if next_expected < first_retained {
                return Err(ResumeFault::Behind {
                    lane,
                    next_expected,
                    first_retained,
                });
            }
        }
        Ok(())
    }
}

/// Whether both directions of every lane fit governance's record.
pub(super) fn judge(retained: &Retained, ack: &RegistrationAck) -> Result<(), ResumeFault> {
    let known = retained.identity.ledger_id;
    if known.is_some_and(|known| known != ack.ledger_id) {
        return Err(ResumeFault::LedgerChanged);
    }
    for (lane, theirs) in ack.lanes.iter() {
        let kept = &retained.lanes.get(lane).entries;
        let ours = retained.lanes.get(lane).counters;
        let us = Sender {
            first_retained: ours.first_unacknowledged,
            // What may be sent is recorded before it is: more than that was sent by a later state.
            next_new: ours.sent_through + 1,
        };
        judge_sent(
            lane,
            us,
            theirs.next_expected,
            theirs.last_received,
            |sequence| {
                let acknowledged = ours.last_acknowledged.filter(|(last, _)| *last == sequence);
                let kept = kept.get(&sequence).map(|entry| entry.message_id);
                kept.or(acknowledged.map(|(_, message_id)| message_id))
            },
        )?;
        let (first_retained, next_new) = (theirs.first_retained, theirs.next_new);
        let next_expected = ours.handled_through + 1;
        if next_expected < first_retained {
            return Err(ResumeFault::Unhandled {
                lane,
                first_retained,
                next_expected,
            });
        }
        if next_expected > next_new {
            return Err(ResumeFault::NeverMade {
                lane,
                next_expected,
                next_new,
            });
        }
    }
    Ok(())
}

impl ResumeFault {
    /// Whether it is this store whose history went back.
    pub(super) fn went_back(&self) -> bool {
        matches!(self, Self::RolledBack { .. } | Self::Unhandled { .. })
    }
}

/// What a registration that fits tells us.
pub(super) fn resumed(retained: &Retained, ack: &RegistrationAck) -> Vec<Record> {
    let known = retained.identity.ledger_id;
    let ledger = (known != Some(ack.ledger_id)).then_some(Record::Ledger(ack.ledger_id));
    let acknowledged = ack.lanes.iter().filter_map(|(lane, theirs)| {
        let first = retained.lanes.get(lane).counters.first_unacknowledged;
        (theirs.next_expected > first).then(|| Record::Acknowledged {
            lane,
            through: theirs.next_expected - 1,
        })
    });
    ledger.into_iter().chain(acknowledged).collect()
}

/// Our open requests, as governance is told of them after its ledger was adopted or our store
/// restored; but for those that it recalled, which it is to recall again.
pub(super) fn listed(retained: &Retained) -> Vec<Listed> {
    let open = retained.open_requests().filter(|record| !record.recalled);
    open.map(|record| Listed {
        request_id: record.request.request_id.clone(),
        payload_hash: record.request.payload_hash,
        cancelled: matches!(
            record.standing,
            Standing::Open {
                cancel: Some(_),
                ..
            }
        ),
    })
    .collect()
}

/// Governance's ledger was compared with ours: what it does not know is sent again, and what
/// nobody here waits for is cancelled there.
pub(super) fn reconciled(
    retained: &Retained,
    reconciled: Reconciled,
    now: SystemTime,
) -> Vec<Record> {
    let Reconciled { held, unlisted, .. } = reconciled;
    let mut records = vec![Record::Reconciled { held }];
    let mut sequence = retained.lanes.get(Lane::Signing).counters.next_new;
    for request_id in unlisted {
        if retained.open_request(&request_id).is_some() {
            continue;
        }
        warn!(request = %request_id, "governance holds a request that nobody here waits for");
        let cancel = Outbound::CancelRequest(CancelRequest {
            request_id,
            reason: CancelReason::Caller,
        });
        let untraced = TraceContext::default();
        let entry = intake::entry(retained, &cancel, untraced, now, Expects::Nothing);
        records.push(Record::Appended(Entry { sequence, ..entry }));
        sequence += 1;
    }
    records
}

/// Judges what was sent in `lane`: governance expects `next_expected` and says that it holds
/// `last_received` below it; `known` is what this store has there, if it still knows.
fn judge_sent(
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
        let judge =
            |next_expected, last| judge_sent(lane, sender, next_expected, last, |_| Some(ours));
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
