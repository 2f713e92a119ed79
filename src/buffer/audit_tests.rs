use std::time::SystemTime;

use prost::bytes::Bytes;

use super::Inconsistency as Fault;
use crate::{
    buffer::{
        record::{DeadLetter, Entry, Expects, OpenRequest, Record},
        retained::{Counters, RequestRecord, Retained},
        stored::Stored as _,
        tables::{
            BURNS, DEAD_LETTERS, ENTRIES, IDENTITY, IDENTITY_KEY, LANES, OPEN_REQUESTS, OUTPOINTS,
            PEGINS, REQUEST_IDS, REQUESTS, burn_key, entry_key, lane_key, outpoint_key,
        },
        test_disk::TestDisk,
    },
    message::{BurnId, Lane, MessageId, Outcome, RequestId, TransactionType},
    proto,
    telemetry::TraceContext,
};
use bitcoin::{OutPoint, Txid, hashes::Hash as _};

const AT: SystemTime = SystemTime::UNIX_EPOCH;

fn id(number: u64) -> RequestId {
    format!("r-{number}").parse().expect("valid")
}

fn burn(number: u8) -> BurnId {
    BurnId {
        tx_hash: [number; 32],
        log_index: 0,
    }
}

fn outpoint(number: u8) -> OutPoint {
    OutPoint::new(Txid::from_byte_array([number; 32]), 0)
}

fn entry(lane: Lane, sequence: u64, kind: proto::Kind, expects: Expects) -> Record {
    Record::Appended(Entry {
        lane,
        sequence,
        message_id: MessageId::generate(),
        kind,
        payload: Bytes::from_static(b"payload"),
        trace: TraceContext::default(),
        accepted_at: AT,
        deadline: None,
        expects,
    })
}

/// Requests 0 (settled), 1 and 2 (open), deposits 1 (answered) and 2 (open), dead letter 1.
fn stream() -> (TestDisk, Retained) {
    let (mut disk, mut retained) = (TestDisk::default(), Retained::new(None));
    for number in 0..3_u8 {
        let sequence = u64::from(number) + 1;
        let request_id = id(number.into());
        retained.apply(&Record::Opened(OpenRequest {
            request_id: request_id.clone(),
            payload_hash: [7; 32],
            tx_type: TransactionType::Pegout,
            sequence,
            burns: vec![burn(number)],
            spends: Vec::new(),
            accepted_at: AT,
            deadline: AT,
        }));
        let expects = Expects::Outcome(request_id);
        let kind = proto::Kind::SignatureRequest;
        retained.apply(&entry(Lane::Signing, sequence, kind, expects));
    }
    for number in 1..3 {
        let expects = Expects::PeginAck(outpoint(number));
        let kind = proto::Kind::PeginNotification;
        retained.apply(&entry(Lane::Pegin, number.into(), kind, expects));
    }
    for (lane, through) in [(Lane::Signing, 2), (Lane::Pegin, 1)] {
        retained.apply(&Record::SentThrough {
            lane,
            sequence: through,
        });
        retained.apply(&Record::Acknowledged { lane, through });
    }
    disk.commit(&mut retained);
    retained.apply(&Record::Settled {
        request_id: id(0),
        outcome: Outcome::Complete,
        at: AT,
    });
    retained.apply(&Record::PeginSettled {
        outpoint: outpoint(1),
        at: AT,
    });
    retained.apply(&Record::DeadLetter(letter()));
    disk.commit(&mut retained);
    (disk, retained)
}

fn letter() -> DeadLetter {
    DeadLetter {
        lane: Lane::Signing,
        sequence: 1,
        message_id: MessageId::generate(),
        occurrence_id: None,
        kind: 0,
        payload: Bytes::from_static(b"payload"),
        reason: "why".to_owned(),
        at: AT,
    }
}

fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// What is found once the rows were spoiled.
fn spoiled(
    change: impl FnOnce(&mut crate::storage::Batch, crate::storage::HashKey, &Retained),
) -> Vec<Fault> {
    let (mut disk, retained) = stream();
    disk.spoil(|batch, hash| change(batch, hash, &retained));
    disk.audit()
}

/// As [`spoiled`], of one rule.
fn one(
    change: impl FnOnce(&mut crate::storage::Batch, crate::storage::HashKey, &Retained),
) -> Fault {
    let mut faults = spoiled(change);
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

fn open(retained: &Retained, number: u64) -> RequestRecord {
    retained.request(&id(number)).expect("open").clone()
}

fn message(retained: &Retained, lane: Lane, sequence: u64) -> Entry {
    retained.lanes.get(lane).entries[&sequence].clone()
}

#[test]
fn rows_as_a_stream_leaves_them_are_sound() {
    assert_eq!(stream().0.audit(), []);
    assert_eq!(TestDisk::default().audit(), [], "a new store");
}

#[test]
fn a_row_that_cannot_be_read_is_named() {
    for (table, row) in [
        (LANES, lane_key(Lane::Signing).to_vec()),
        (REQUESTS, key(0).to_vec()),
        (PEGINS, key(0).to_vec()),
        (DEAD_LETTERS, key(1).to_vec()),
    ] {
        let faults = spoiled(|batch, _, _| batch.put(table, row, b"\xff"));
        let named = faults.iter().any(
            |fault| matches!(fault, Fault::Unreadable { table: of, .. } if *of == table.name()),
        );
        assert!(named, "{}: {faults:#?}", table.name());
    }
}

#[test]
fn a_message_that_was_never_acknowledged_must_be_there() {
    let gone = one(|batch, _, _| batch.remove(ENTRIES, entry_key(Lane::Pegin, 2)));
    let (lane, sequence) = (Lane::Pegin, 2);
    assert_eq!(gone, Fault::MessageLost { lane, sequence });
}

#[test]
fn a_message_must_have_been_counted() {
    let beyond = one(|batch, _, retained| {
        let mut entry = message(retained, Lane::Signing, 3);
        entry.sequence = 9;
        entry.expects = Expects::Nothing;
        batch.put(ENTRIES, entry_key(Lane::Signing, 9), entry.encode());
    });
    assert!(matches!(beyond, Fault::MessageBeyond { sequence: 9, .. }));
}

#[test]
fn counters_must_fit_each_other() {
    let wrong = one(|batch, _, retained| {
        let counters = Counters {
            sent_through: 0,
            ..retained.lanes.get(Lane::Signing).counters
        };
        batch.put(LANES, lane_key(Lane::Signing), counters.encode());
    });
    assert!(
        matches!(
            wrong,
            Fault::Counters {
                lane: Lane::Signing,
                ..
            }
        ),
        "{wrong}"
    );
}

#[test]
fn a_message_waits_for_what_is_open_only() {
    let wrong = one(|batch, _, retained| {
        let mut entry = message(retained, Lane::Pegin, 2);
        entry.expects = Expects::PeginAck(outpoint(1));
        batch.put(ENTRIES, entry_key(Lane::Pegin, 2), entry.encode());
    });
    assert!(
        matches!(
            wrong,
            Fault::MessageWithoutCause {
                why: "is answered",
                ..
            }
        ),
        "{wrong}"
    );
    let wrong = one(|batch, _, retained| {
        let mut entry = message(retained, Lane::Pegin, 2);
        entry.expects = Expects::Outcome(id(0));
        batch.put(ENTRIES, entry_key(Lane::Pegin, 2), entry.encode());
    });
    assert!(
        matches!(wrong, Fault::MessageWithoutCause { .. }),
        "{wrong}"
    );
}

#[test]
fn an_open_request_has_its_message() {
    let faults = spoiled(|batch, _, retained| {
        let mut entry = message(retained, Lane::Signing, 3);
        entry.expects = Expects::Outcome(id(1));
        batch.put(ENTRIES, entry_key(Lane::Signing, 3), entry.encode());
    });
    let kinds = [
        faults
            .iter()
            .any(|f| matches!(f, Fault::MessageWithoutCause { sequence: 3, .. })),
        faults
            .iter()
            .any(|f| matches!(f, Fault::RequestWithoutMessage { sequence: 3, .. })),
    ];
    assert_eq!((kinds, faults.len()), ([true, true], 2), "{faults:#?}");
    // One that governance has acknowledged as well.
    let gone = one(|batch, _, _| batch.remove(ENTRIES, entry_key(Lane::Signing, 2)));
    assert!(
        matches!(gone, Fault::RequestWithoutMessage { sequence: 2, .. }),
        "{gone}"
    );
}

#[test]
fn what_is_acknowledged_and_answered_goes() {
    let kept = one(|batch, _, retained| {
        let mut entry = message(retained, Lane::Signing, 2);
        entry.sequence = 1;
        entry.expects = Expects::Answered;
        batch.put(ENTRIES, entry_key(Lane::Signing, 1), entry.encode());
    });
    assert!(
        matches!(kept, Fault::MessageKept { sequence: 1, .. }),
        "{kept}"
    );
}

#[test]
fn a_request_is_there_once() {
    let faults = spoiled(|batch, _, _| batch.remove(REQUESTS, key(0)));
    assert!(
        faults.contains(&Fault::RequestsLost { first: 0, last: 0 }),
        "{faults:#?}"
    );
    let astray = faults
        .iter()
        .filter(|fault| matches!(fault, Fault::Astray { number: 0, .. }));
    assert_eq!(astray.count(), 2, "its id and its burn: {faults:#?}");

    let faults = spoiled(|batch, _, retained| {
        batch.put(REQUESTS, key(1), open(retained, 1).encode());
    });
    let twice = faults
        .iter()
        .all(|f| matches!(f, Fault::RequestTwice { number: 1, .. }));
    assert!(twice && !faults.is_empty(), "{faults:#?}");
    let faults = spoiled(|batch, _, retained| {
        batch.put(OPEN_REQUESTS, key(2), open(retained, 1).encode());
    });
    assert!(
        faults
            .iter()
            .any(|f| matches!(f, Fault::RequestTwice { number: 2, .. })),
        "{faults:#?}"
    );
}

#[test]
fn a_row_is_found_by_what_it_is_to_be_found_by() {
    let id_row = one(|batch, hash, _| REQUEST_IDS.remove(batch, hash, b"r-1", 1));
    assert!(
        matches!(id_row, Fault::NotIndexed { number: 1, .. }),
        "{id_row}"
    );
    let burn_row = one(|batch, hash, _| BURNS.remove(batch, hash, &burn_key(&burn(0)), 0));
    assert!(
        matches!(burn_row, Fault::NotIndexed { number: 0, .. }),
        "{burn_row}"
    );
    let row = one(|batch, hash, _| OUTPOINTS.remove(batch, hash, &outpoint_key(&outpoint(1)), 0));
    assert!(matches!(row, Fault::NotIndexed { number: 0, .. }), "{row}");
}

#[test]
fn a_row_of_an_index_leads_to_what_it_says() {
    for (index, number) in [(REQUEST_IDS, 1), (BURNS, 7), (OUTPOINTS, 0), (OUTPOINTS, 5)] {
        let astray = one(|batch, hash, _| index.add(batch, hash, b"stranger", number));
        let table = index.table().name();
        assert!(
            matches!(astray, Fault::Astray { table: of, number: at, .. } if (of, at) == (table, number)),
            "{astray}"
        );
    }
}

#[test]
fn an_answered_deposit_is_never_lost() {
    let faults = spoiled(|batch, _, _| {
        batch.put(PEGINS, key(1), (outpoint(3), AT).encode());
        batch.remove(PEGINS, key(0));
    });
    assert!(
        faults.contains(&Fault::PeginsLost { first: 0, last: 0 }),
        "{faults:#?}"
    );
}

#[test]
fn a_dead_letter_has_a_number_that_was_given() {
    let beyond = one(|batch, _, _| batch.put(DEAD_LETTERS, key(9), letter().encode()));
    assert_eq!(beyond, Fault::DeadLetterBeyond { number: 9, next: 2 });
}

#[test]
fn rows_without_an_identity_are_not_a_stream() {
    let faults = spoiled(|batch, _, _| batch.remove(IDENTITY, IDENTITY_KEY));
    assert!(faults.contains(&Fault::NoIdentity), "{faults:#?}");
}
