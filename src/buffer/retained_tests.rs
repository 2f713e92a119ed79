use std::time::SystemTime;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::telemetry::TraceContext;

fn entry(lane: Lane, sequence: u64, size: usize, expects: Expects) -> Entry {
    Entry {
        lane,
        sequence,
        message_id: MessageId::generate(),
        kind: proto::Kind::SignatureRequest,
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
    ]
}

fn records(retained: &Retained, step: &Step) -> Vec<Record> {
    let lane = Lane::Signing;
    let signing = retained.lanes.get(lane);
    let next = signing.next_new;
    let requests = |number: u64| request_id(1 + number % next);
    match step {
        Step::Request(size) => {
            let request_id = request_id(next);
            let expects = Expects::Outcome(request_id.clone());
            let open = OpenRequest {
                request_id,
                payload_hash: [7; 32],
                sequence: next,
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
            let through = number % (signing.sent_through + 1);
            vec![Record::Acknowledged { lane, through }]
        }
        Step::Withdraw(number) => {
            let unsent = signing.sent_through + 1 + number % next;
            vec![Record::Withdrawn {
                lane,
                sequence: unsent,
            }]
        }
        Step::Settle(number) => vec![Record::Settled {
            request_id: requests(*number),
            outcome: Outcome::Complete,
        }],
        Step::Park(number) => {
            vec![Record::Parked {
                request_id: requests(*number),
                reason: "why".to_owned(),
            }]
        }
        Step::Forget => retained
            .to_forget(2)
            .map(|id| Record::Forgotten(id.clone()))
            .into_iter()
            .collect(),
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_sums_agree_and_nothing_is_lost(steps in vec(step(), 0..120)) {
        let mut retained = Retained::default();
        let mut accepted = 0;
        for step in &steps {
            accepted += u64::from(matches!(step, Step::Request(_)));
            for record in records(&retained, step) {
                retained.apply(&record);
            }
            let lane = retained.lanes.get(Lane::Signing);
            let sum: u64 = lane.entries.values().map(|entry| entry.payload.len() as u64).sum();
            prop_assert_eq!(lane.bytes, sum);
            prop_assert!(lane.first_unacknowledged <= lane.next_new);
            prop_assert!(lane.sent_through < lane.next_new);
            // Whatever is not acknowledged can be sent (again).
            for sequence in lane.first_unacknowledged..lane.next_new {
                prop_assert!(lane.entries.contains_key(&sequence), "{} is gone", sequence);
            }
            let open = retained.open_requests();
            let parked = open.iter().filter(|record| {
                matches!(&record.standing, Standing::Open { parked: Some(_), .. })
            });
            prop_assert_eq!(retained.open_and_parked(), (open.len(), parked.count()));
            // Every request is open, settled or remembered.
            let known = (1..lane.next_new).filter(|number| {
                !matches!(retained.known(&request_id(*number)), Known::Unknown)
            });
            prop_assert_eq!(known.count() as u64, accepted);
        }
    }

    #[test]
    fn a_repeated_fact_changes_nothing(steps in vec(step(), 0..60)) {
        let mut retained = Retained::default();
        for step in &steps {
            for record in records(&retained, step) {
                retained.apply(&record);
                let repeatable = !matches!(record, Record::Appended(_) | Record::Opened(_));
                if repeatable {
                    let once = retained.clone();
                    retained.apply(&record);
                    prop_assert_eq!(&retained, &once, "{:?}", record);
                }
            }
        }
    }
}
