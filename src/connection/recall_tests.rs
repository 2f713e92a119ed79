use bitcoin::{Amount, Network, Psbt, absolute::LockTime, transaction::Version};
use prost::Message as _;

use super::*;
use crate::{
    message::{OccurrenceId, SignatureRequest, SignatureRequestParts, TransactionType},
    proto::{Kind, SignatureStatus, Standing},
};

/// A request that can exist: it sweeps one coin.
fn request(id: &str) -> SignatureRequest {
    let spent = bitcoin::TxOut {
        value: Amount::from_sat(10_000),
        script_pubkey: bitcoin::ScriptBuf::from_bytes(vec![0x51]),
    };
    let transaction = bitcoin::Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![bitcoin::TxIn::default()],
        output: vec![bitcoin::TxOut {
            value: Amount::from_sat(9_000),
            ..spent.clone()
        }],
    };
    let mut psbt = Psbt::from_unsigned_tx(transaction).expect("unsigned");
    psbt.inputs[0].witness_utxo = Some(spent);
    psbt.inputs[0].witness_script = Some(bitcoin::ScriptBuf::from_bytes(vec![0x51]));
    SignatureRequest::new(SignatureRequestParts {
        request_id: id.parse().expect("valid"),
        psbt,
        input_indices: vec![0],
        tx_type: TransactionType::FederationChange,
        chain: "alys".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: 1,
        burns: Vec::new(),
        max_fee: Amount::from_sat(5_000),
        replaces: None,
    })
    .expect("valid")
}

fn recalled(id: &str, standing: Standing, signatures_released: bool) -> proto::Recalled {
    let sent = proto::SignatureRequest::from(&request(id));
    proto::Recalled {
        kind: Kind::SignatureRequest.into(),
        payload: sent.encode_to_vec().into(),
        standing: standing.into(),
        signatures_released,
        outbox_id: vec![7; 16].into(),
        ..Default::default()
    }
}

fn result(kind: Kind, payload: &impl prost::Message) -> proto::Recalled {
    proto::Recalled {
        kind: kind.into(),
        payload: payload.encode_to_vec().into(),
        occurrence_id: OccurrenceId::generate().to_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn answer(id: &str, status: SignatureStatus, signatures: usize) -> proto::Recalled {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let key: bitcoin::secp256k1::PublicKey = key.parse().expect("on the curve");
    let signature = proto::PartialSignature {
        input_index: 0,
        public_key: key.serialize().to_vec().into(),
        signature: vec![1; 71].into(),
    };
    let response = proto::SignatureResponse {
        request_id: id.to_owned(),
        txid: vec![3; 32].into(),
        federation_version: 1,
        status: status.into(),
        partial_signatures: vec![signature; signatures],
        ..Default::default()
    };
    result(Kind::SignatureResponse, &response)
}

fn deposit(vout: u32) -> proto::Recalled {
    let notification = proto::PeginNotification {
        txid: vec![9; 32].into(),
        vout,
        amount_sat: 1,
        evm_address: vec![1; 20].into(),
    };
    proto::Recalled {
        kind: Kind::PeginNotification.into(),
        payload: notification.encode_to_vec().into(),
        ..Default::default()
    }
}

fn deposited(vout: u32) -> proto::Recalled {
    let ack = proto::PeginAck {
        txid: vec![9; 32].into(),
        vout,
        status: proto::PeginStatus::Recorded.into(),
        reason: String::new(),
    };
    result(Kind::PeginAck, &ack)
}

fn proposal(id: &str) -> proto::Recalled {
    let proposal = proto::ProposalNotification {
        proposal_id: id.to_owned(),
        proposal_type: "limits".to_owned(),
        ..Default::default()
    };
    result(Kind::ProposalNotification, &proposal)
}

fn page(number: u32, last_page: bool, entries: Vec<proto::Recalled>) -> proto::RecallPage {
    proto::RecallPage {
        page: number,
        last_page,
        entries,
        ..Default::default()
    }
}

/// What one page with all of this leads to.
fn alone(entries: Vec<proto::Recalled>) -> Result<(Vec<Recalled>, bool), String> {
    Recall::default().take(page(0, true, entries))
}

use SignatureStatus::{Cancelled, Complete, InProgress};
use Standing::{Pending, Settled};

#[test]
fn each_kind_of_entry_is_taken_in_the_order_of_the_sections() {
    let tombstone = proto::Recalled {
        kind: Kind::CancelRequest.into(),
        payload: proto::CancelRequest {
            request_id: "c".to_owned(),
            reason: proto::CancelReason::Caller.into(),
        }
        .encode_to_vec()
        .into(),
        ..recalled("c", Settled, false)
    };
    let (entries, last) = alone(vec![
        recalled("a", Pending, true),
        answer("a", InProgress, 1),
        recalled("b", Settled, true),
        answer("b", InProgress, 1),
        answer("b", Complete, 1),
        tombstone,
        answer("c", Cancelled, 0),
        proposal("p"),
        proposal("q"),
        deposit(0),
        deposited(0),
        deposit(1),
    ])
    .expect("good");
    assert!(last);
    assert_eq!(entries.len(), 12);
    let requests = entries.iter().filter_map(|entry| match entry {
        Recalled::Request(request) => Some((request.settled, request.request.clone())),
        _ => None,
    });
    let requests: Vec<_> = requests.collect();
    let expected = [
        (false, Some(request("a"))),
        (true, Some(request("b"))),
        (true, None),
    ];
    assert_eq!(requests, expected, "built again as they were sent");
}

#[test]
fn answers_may_come_on_the_page_after_their_request() {
    let mut recall = Recall::default();
    let first = page(0, false, vec![recalled("a", Settled, true)]);
    recall.take(first).expect("good");
    let second = page(1, true, vec![answer("a", Complete, 1)]);
    recall.take(second).expect("good");
    assert_eq!(recall.page(), 2);
}

#[test]
fn what_is_out_of_order_comes_twice_or_belongs_to_nothing_is_refused() {
    for (why, entries) in [
        (
            "comes after",
            vec![recalled("b", Pending, false), recalled("a", Pending, false)],
        ),
        (
            "comes after",
            vec![recalled("a", Pending, false), recalled("a", Pending, false)],
        ),
        (
            "comes after",
            vec![proposal("p"), recalled("a", Pending, false)],
        ),
        ("comes after", vec![deposit(1), deposit(0)]),
        ("which is not before it", vec![answer("a", InProgress, 0)]),
        (
            "which is not before it",
            vec![recalled("a", Pending, true), answer("b", InProgress, 1)],
        ),
        ("which is not before it", vec![deposited(0)]),
        (
            "which is not before it",
            vec![deposit(0), deposited(0), deposited(0)],
        ),
        ("which is not before it", vec![deposit(0), deposited(1)]),
    ] {
        let refused = alone(entries).expect_err(why);
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_request_that_contradicts_its_answers_is_refused() {
    for entries in [
        vec![recalled("a", Settled, true), answer("a", InProgress, 1)],
        vec![recalled("a", Settled, false), recalled("b", Pending, false)],
        vec![recalled("a", Pending, true), answer("a", Complete, 1)],
        vec![recalled("a", Pending, false), answer("a", InProgress, 1)],
    ] {
        assert!(alone(entries.clone()).is_err(), "{entries:?}");
    }
}

#[test]
fn what_the_node_sent_must_convert_and_what_governance_sent_is_a_dead_letter_otherwise() {
    let spoilt = |spoil: fn(&mut proto::Recalled)| {
        let mut entry = recalled("a", Settled, true);
        spoil(&mut entry);
        vec![entry, answer("a", Complete, 1)]
    };
    for entries in [
        spoilt(|entry| entry.payload = vec![0xff; 9].into()),
        spoilt(|entry| entry.outbox_id = vec![7; 15].into()),
        spoilt(|entry| entry.standing = Standing::Unknown.into()),
        spoilt(|entry| entry.standing = 0),
        spoilt(|entry| entry.kind = Kind::Withdrawn.into()),
        spoilt(|entry| entry.kind = 99),
        vec![proto::Recalled {
            payload: vec![0xff; 9].into(),
            ..deposit(0)
        }],
    ] {
        assert!(alone(entries.clone()).is_err(), "{entries:?}");
    }
    let garbage = proto::Recalled {
        payload: vec![0xff; 9].into(),
        ..answer("a", Complete, 1)
    };
    let nameless = proto::Recalled {
        occurrence_id: vec![1; 15].into(),
        ..answer("b", Complete, 1)
    };
    let (entries, _) = alone(vec![
        recalled("a", Settled, true),
        garbage,
        recalled("b", Settled, true),
        nameless,
    ])
    .expect("of no use, and no reason to stand still");
    let unusable = entries.iter().filter(|entry| match entry {
        Recalled::Unusable { payload, .. } => !payload.is_empty(),
        _ => false,
    });
    assert_eq!(unusable.count(), 2);
}

#[test]
fn pages_are_bounded_and_come_to_an_end() {
    let many = |count: usize| (0..count).map(|n| proposal(&format!("p-{n:05}")));
    assert!(alone(many(MAX_ENTRIES).collect()).is_ok());
    assert!(alone(many(MAX_ENTRIES + 1).collect()).is_err());
    let large = |id: &str| {
        let proposal = proto::ProposalNotification {
            proposal_id: id.to_owned(),
            data: vec![b' '; MAX_BYTES].into(),
            ..Default::default()
        };
        result(Kind::ProposalNotification, &proposal)
    };
    assert!(alone(vec![large("p")]).is_ok(), "alone, whatever its size");
    assert!(alone(vec![large("p"), large("q")]).is_err());
    let empty = Recall::default().take(page(0, false, Vec::new()));
    assert!(empty.is_err(), "it would never end");
    assert!(alone(Vec::new()).is_ok(), "but for the last one");
    let mut endless = Recall {
        page: MAX_PAGES,
        ..Recall::default()
    };
    let beyond = endless.take(page(MAX_PAGES, false, many(1).collect()));
    assert!(beyond.is_err());
    assert!(Recall::default().take(page(1, true, Vec::new())).is_err());
}
