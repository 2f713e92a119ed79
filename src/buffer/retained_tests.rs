use std::{collections::BTreeSet, time::SystemTime};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    buffer::test_disk::TestDisk,
    message::{LedgerId, MessageId, OutboxId},
    telemetry::TraceContext,
};

fn entry(lane: Lane, sequence: u64, size: usize, expects: Expects) -> Entry {
    Entry {
        lane,
        sequence,
        message_id: MessageId::generate(),
        kind: if expects == Expects::Nothing {
            proto::Kind::Reject
        } else {
            proto::Kind::SignatureRequest
        },
        payload: Bytes::from(vec![1; size]),
        trace: TraceContext::default(),
        accepted_at: SystemTime::UNIX_EPOCH,
        deadline: None,
        expects,
    }
}

fn request_id(number: u64) -> RequestId {
    format!("r-{number}").parse().expect("valid")
}

/// What a buffer may do next; numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Request(usize),
    Other(usize),
    Send(u64),
    Acknowledge(u64),
    Withdraw(u64),
    Settle(u64),
    Park(u64),
    Forget,
    Cancel(u64),
    Adopt,
    Reconcile(u64),
    RestoreStore,
    Recall(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..500_usize).prop_map(Step::Request),
        (0..500_usize).prop_map(Step::Other),
        any::<u64>().prop_map(Step::Send),
        any::<u64>().prop_map(Step::Acknowledge),
        any::<u64>().prop_map(Step::Withdraw),
        any::<u64>().prop_map(Step::Settle),
        any::<u64>().prop_map(Step::Park),
        Just(Step::Forget),
        any::<u64>().prop_map(Step::Cancel),
        Just(Step::Adopt),
        any::<u64>().prop_map(Step::Reconcile),
        Just(Step::RestoreStore),
        any::<u64>().prop_map(Step::Recall),
    ]
}

fn records(retained: &Retained, step: &Step) -> Vec<Record> {
    let lane = Lane::Signing;
    let signing = retained.lanes.get(lane);
    let next = signing.counters.next_new;
    let requests = |number: u64| request_id(1 + number % next);
    match step {
        Step::Request(size) => {
            let request_id = request_id(next);
            let expects = Expects::Outcome(request_id.clone());
            let open = OpenRequest {
                request_id,
                payload_hash: [7; 32],
                sequence: next,
                burns: Vec::new(),
                spends: Vec::new(),
                tx_type: crate::message::TransactionType::Pegout,
                accepted_at: SystemTime::UNIX_EPOCH,
                deadline: SystemTime::UNIX_EPOCH,
            };
            vec![
                Record::Opened(open),
                Record::Appended(entry(lane, next, *size, expects)),
            ]
        }
        Step::Other(size) => vec![Record::Appended(entry(lane, next, *size, Expects::Nothing))],
        Step::Send(number) => {
            vec![Record::SentThrough {
                lane,
                sequence: number % next,
            }]
        }
        Step::Acknowledge(number) => {
            let through = number % (signing.counters.sent_through + 1);
            vec![Record::Acknowledged { lane, through }]
        }
        Step::Withdraw(number) => {
            let unsent = signing.counters.sent_through + 1 + number % next;
            vec![Record::Withdrawn {
                lane,
                sequence: unsent,
            }]
        }
        Step::RestoreStore => vec![Record::Restored {
            restore_id: uuid::Uuid::new_v4(),
            outbox_id: OutboxId::generate(),
        }],
        Step::Recall(number) => {
            let request_id: RequestId = format!("recalled-{number}").parse().expect("valid");
            let expects = Expects::Outcome(request_id.clone());
            let request = OpenRequest {
                request_id,
                payload_hash: [8; 32],
                sequence: 0,
                burns: Vec::new(),
                spends: Vec::new(),
                tx_type: crate::message::TransactionType::Pegout,
                accepted_at: SystemTime::UNIX_EPOCH,
                deadline: SystemTime::UNIX_EPOCH,
            };
            vec![Record::Recalled {
                aside: Some(entry(lane, 0, 9, expects)),
                outcome: number.is_multiple_of(3).then_some(Outcome::Complete),
                request,
            }]
        }
        Step::Settle(number) => vec![Record::Settled {
            request_id: requests(*number),
            outcome: Outcome::Complete,
            at: SystemTime::UNIX_EPOCH,
        }],
        Step::Park(number) => {
            vec![Record::Parked {
                request_id: requests(*number),
                reason: "why".to_owned(),
            }]
        }
        Step::Forget => {
            let since = SystemTime::UNIX_EPOCH;
            retained.to_prune(2, since).into_iter().collect()
        }
        Step::Cancel(number) => {
            let request_id = requests(*number);
            let Some(Standing::Open { cancel: None, .. }) =
                retained.request(&request_id).map(|record| &record.standing)
            else {
                return Vec::new();
            };
            let expects = Expects::Outcome(request_id.clone());
            let mut cancel = entry(lane, next, 20, expects);
            cancel.kind = proto::Kind::CancelRequest;
            vec![
                Record::Appended(cancel),
                Record::CancelAsked {
                    request_id,
                    reason: CancelReason::Caller,
                    sequence: next,
                },
            ]
        }
        Step::Adopt => vec![Record::Adopted(LedgerId::generate())],
        // Nothing is sent before it.
        Step::Reconcile(_) if !retained.identity.reconciling => Vec::new(),
        Step::Reconcile(number) => vec![Record::Reconciled {
            held: vec![requests(*number)],
        }],
    }
}

/// Request ids are made of the sequence that was next: after an adoption one may come again.
fn possible(retained: &Retained, disk: &TestDisk, step: &Step) -> Vec<Record> {
    let records = records(retained, step);
    let known = records.iter().any(|record| {
        matches!(record, Record::Opened(open) if retained.request(&open.request_id).is_some()
            || disk.request(&open.request_id).is_some())
    });
    if known { Vec::new() } else { records }
}

proptest! {
    #[test]
    fn whatever_happens_the_sums_agree_and_nothing_is_lost(steps in vec(step(), 0..120)) {
        let mut retained = Retained::new(None);
        let mut accepted = BTreeSet::new();
        let mut disk = TestDisk::default();
        for step in &steps {
            for record in possible(&retained, &disk, step) {
                if let Record::Opened(open) = &record {
                    accepted.insert(open.request_id.clone());
                }
                retained.apply(&record);
            }
            let lane = retained.lanes.get(Lane::Signing);
            let counters = lane.counters;
            let callers = || {
                let entries = lane.entries.values().filter(|entry| entry.is_callers());
                entries.filter(|entry| !lane.retired.contains(&entry.sequence))
            };
            let sum: u64 = callers().map(|entry| entry.payload.len() as u64).sum();
            prop_assert_eq!((lane.used, lane.bytes), (callers().count() as u64, sum));
            prop_assert!(counters.first_unacknowledged <= counters.next_new);
            prop_assert!(counters.sent_through < counters.next_new);
            // Whatever is not acknowledged can be sent (again).
            for sequence in counters.first_unacknowledged..counters.next_new {
                prop_assert!(lane.entries.contains_key(&sequence), "{} is gone", sequence);
            }
            let open: Vec<_> = retained.open_requests().collect();
            let parked = open.iter().filter(|record| {
                matches!(&record.standing, Standing::Open { parked: Some(_), .. })
            });
            prop_assert_eq!(retained.open_and_parked(), (open.len(), parked.count()));

            // Every request is in memory or on disk.
            for id in &accepted {
                let known = retained.request(id).cloned().or_else(|| disk.request(id));
                prop_assert!(known.is_some(), "{} is lost", id);
            }
            // What the changed rows amount to is what is known, but for what has come to its end.
            let ended = disk.commit(&mut retained);
            let read = disk.load();
            prop_assert_eq!(&read.lanes, &retained.lanes);
            prop_assert_eq!((&read.open, read.parked), (&retained.open, retained.parked));
            prop_assert_eq!(&read.identity, &retained.identity);
            for record in retained.requests() {
                let on_disk = disk.request(&record.request.request_id);
                prop_assert_eq!(on_disk.as_ref(), Some(record));
            }
            for settled in ended {
                retained.leave(settled);
            }
            prop_assert_eq!(&read.requests, &retained.requests);
            prop_assert_eq!(&read.payers, &retained.payers);
        }
    }

    #[test]
    fn a_repeated_fact_changes_nothing(steps in vec(step(), 0..60)) {
        let mut retained = Retained::default();
        let disk = TestDisk::default();
        for step in &steps {
            for record in possible(&retained, &disk, step) {
                retained.apply(&record);
                let repeatable = !matches!(
                    record,
                    Record::Appended(_)
                        | Record::Opened(_)
                        | Record::Adopted(_)
                        | Record::Restored { .. }
                        | Record::Recalled { .. }
                        | Record::PeginRecalled { .. }
                );
                if repeatable {
                    let once = retained.clone();
                    retained.apply(&record);
                    prop_assert_eq!(&retained, &once, "{:?}", record);
                }
            }
        }
    }
}

/// S7: letters of the largest size do not add up to gigabytes; the oldest go, on disk as well.
#[test]
fn dead_letters_are_bounded_in_bytes() {
    let mut retained = Retained::new(None);
    let size = 4 << 20;
    for sequence in 1..=20 {
        retained.apply(&Record::DeadLetter(DeadLetter {
            lane: Lane::Pegin,
            sequence,
            message_id: MessageId::generate(),
            occurrence_id: None,
            kind: 0,
            payload: Bytes::from(vec![0; size]),
            reason: "of no use".to_owned(),
            at: SystemTime::UNIX_EPOCH,
        }));
    }
    let kept: Vec<u64> = retained.dead_letters.keys().copied().collect();
    assert_eq!(kept, (13..=20).collect::<Vec<_>>());
    assert_eq!(retained.dead_letter_bytes, MAX_DEAD_LETTER_BYTES);
}
