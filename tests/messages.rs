//! Every valid value survives the wire, and nothing invalid comes from it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::time::{Duration, SystemTime};

use bitcoin::{
    Amount, Network, OutPoint, Psbt, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
    absolute::LockTime, hashes::Hash, hex::DisplayHex, secp256k1::PublicKey, transaction::Version,
};
use governance_stream::{
    message::{
        Approval, CancelReason, CancelRequest, EvmAddress, FailureCode, FederationMember,
        FederationUpdate, FederationUpdateAck, FederationUpdateKind, Inbound, Lane, MessageId,
        Outbound, PartialSignature, PeginAck, PeginNotification, PeginStatus, PegoutBinding,
        ProposalAck, ProposalNotification, ProposalType, Reject, SignatureRequest,
        SignatureRequestParts, SignatureResponse, SignatureStatus, TransactionType,
        wire::{decode, encode},
    },
    proto::{self, Kind},
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use prost::Message;

fn id() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._:-]{1,64}"
}

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._-]{1,64}"
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,60}"
}

fn network() -> impl Strategy<Value = Network> {
    prop::sample::select(vec![
        Network::Bitcoin,
        Network::Testnet,
        Network::Testnet4,
        Network::Signet,
        Network::Regtest,
    ])
}

/// About every second number is the x of a point.
fn public_key() -> impl Strategy<Value = PublicKey> {
    (any::<bool>(), any::<[u8; 32]>()).prop_filter_map("a point", |(odd, x)| {
        let bytes: Vec<u8> = std::iter::once(2 + u8::from(odd)).chain(x).collect();
        PublicKey::from_slice(&bytes).ok()
    })
}

fn txid() -> impl Strategy<Value = Txid> {
    any::<[u8; 32]>().prop_map(Txid::from_byte_array)
}

prop_compose! {
    fn output()(sat in 1..1_000_000_u64, script in vec(any::<u8>(), 0..40)) -> TxOut {
        TxOut { value: Amount::from_sat(sat), script_pubkey: ScriptBuf::from(script) }
    }
}

prop_compose! {
    fn request()(
        request_id in id(),
        outpoints in prop::collection::btree_set((any::<[u8; 32]>(), any::<u32>()), 1..5),
        spent in vec(output(), 5),
        outputs in vec(output(), 1..4),
        asked in vec(any::<bool>(), 5),
        tx_type in prop::sample::select(vec![
            TransactionType::Pegout,
            TransactionType::FederationChange,
            TransactionType::Emergency,
        ]),
        chain in name(),
        network in network(),
        federation_version in 1..=u32::MAX,
        burn in (any::<[u8; 32]>(), any::<u32>(), any::<[u8; 32]>(), any::<u64>()),
        replaces in option::of(id()),
        lock_time in any::<u32>(),
    ) -> SignatureRequest {
        let inputs: Vec<TxIn> = outpoints
            .into_iter()
            .map(|(txid, vout)| TxIn {
                previous_output: OutPoint { txid: Txid::from_byte_array(txid), vout },
                script_sig: ScriptBuf::new(),
                sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
                witness: Witness::new(),
            })
            .collect();
        let paid: Amount = outputs.iter().map(|output| output.value).sum();
        let count = inputs.len();
        let mut psbt = Psbt::from_unsigned_tx(Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(lock_time),
            input: inputs,
            output: outputs.clone(),
        })
        .expect("unsigned");
        for (input, mut spent) in psbt.inputs.iter_mut().zip(spent) {
            spent.value += paid;
            input.witness_utxo = Some(spent);
            input.witness_script = Some(ScriptBuf::from(vec![0x51]));
        }
        let asked = (0..).zip(asked).take(count).filter(|(_, asked)| *asked);
        let mut input_indices: Vec<u32> = asked.map(|(index, _)| index).collect();
        if input_indices.is_empty() {
            input_indices.push(0);
        }
        let (burn_tx_hash, log_index, block_hash, block_height) = burn;
        let burn = PegoutBinding {
            burn_tx_hash,
            log_index,
            block_hash,
            block_height,
            output_index: 0,
            amount: outputs[0].value,
            script_pubkey: outputs[0].script_pubkey.clone(),
        };
        let replaces = replaces.filter(|replaced| *replaced != request_id);
        SignatureRequest::new(SignatureRequestParts {
            request_id: request_id.parse().expect("valid"),
            psbt,
            input_indices,
            tx_type,
            chain: chain.parse().expect("valid"),
            network,
            federation_version,
            burns: if tx_type == TransactionType::Pegout { vec![burn] } else { Vec::new() },
            max_fee: Amount::from_sat(50_000_000),
            replaces: replaces.map(|replaced| replaced.parse().expect("valid")),
        })
        .expect("valid")
    }
}

fn deposit() -> impl Strategy<Value = PeginNotification> {
    (
        txid(),
        any::<u32>(),
        1..=21_000_000 * 100_000_000_u64,
        any::<[u8; 20]>(),
    )
        .prop_filter_map("the null outpoint", |(txid, vout, sat, address)| {
            let outpoint = OutPoint { txid, vout };
            let address = EvmAddress::from_bytes(address);
            PeginNotification::new(outpoint, Amount::from_sat(sat), address).ok()
        })
}

fn lane() -> impl Strategy<Value = Lane> {
    prop::sample::select(Lane::ALL.to_vec())
}

fn outbound() -> impl Strategy<Value = Outbound> {
    let reason = prop::sample::select(vec![CancelReason::Caller, CancelReason::Deadline]);
    prop_oneof![
        request().prop_map(|request| Outbound::SignatureRequest(Box::new(request))),
        (id(), reason).prop_map(
            |(request_id, reason)| Outbound::CancelRequest(CancelRequest {
                request_id: request_id.parse().expect("valid"),
                reason,
            })
        ),
        (1..=u32::MAX, option::of(text())).prop_map(|(version, refused)| {
            let verdict = refused.map_or(Ok(()), Err);
            Outbound::FederationUpdateAck(FederationUpdateAck { version, verdict })
        }),
        deposit().prop_map(Outbound::PeginNotification),
        id().prop_map(|proposal_id| Outbound::ProposalAck(ProposalAck {
            proposal_id: proposal_id.parse().expect("valid"),
        })),
        (lane(), 1..=u64::MAX, option::of(id()), text()).prop_map(
            |(lane, sequence, request_id, reason)| {
                let request_id = request_id.map(|id| id.parse().expect("valid"));
                Outbound::Reject(
                    lane,
                    Reject {
                        sequence,
                        request_id,
                        reason,
                    },
                )
            }
        ),
        lane().prop_map(|lane| Outbound::Withdrawn(lane, MessageId::generate())),
    ]
}

/// What governance would read.
fn read_back(lane: Lane, kind: Kind, payload: &[u8]) -> Outbound {
    fn parse<M: Message + Default>(payload: &[u8]) -> M {
        M::decode(payload).expect("decodes")
    }
    match kind {
        Kind::SignatureRequest => Outbound::SignatureRequest(Box::new(
            parse::<proto::SignatureRequest>(payload)
                .try_into()
                .expect("valid"),
        )),
        Kind::CancelRequest => Outbound::CancelRequest(
            parse::<proto::CancelRequest>(payload)
                .try_into()
                .expect("valid"),
        ),
        Kind::FederationUpdateAck => Outbound::FederationUpdateAck(
            parse::<proto::FederationUpdateAck>(payload)
                .try_into()
                .expect("valid"),
        ),
        Kind::PeginNotification => Outbound::PeginNotification(
            parse::<proto::PeginNotification>(payload)
                .try_into()
                .expect("valid"),
        ),
        Kind::ProposalAck => Outbound::ProposalAck(
            parse::<proto::ProposalAck>(payload)
                .try_into()
                .expect("valid"),
        ),
        Kind::Reject => Outbound::Reject(
            lane,
            parse::<proto::Reject>(payload).try_into().expect("valid"),
        ),
        Kind::Withdrawn => Outbound::Withdrawn(
            lane,
            parse::<proto::Withdrawn>(payload)
                .try_into()
                .expect("valid"),
        ),
        other => panic!("{other:?} is no kind of the node's"),
    }
}

fn status() -> impl Strategy<Value = SignatureStatus> {
    let code = prop::sample::select(vec![
        FailureCode::InvalidRequest,
        FailureCode::Conflict,
        FailureCode::Policy,
        FailureCode::Federation,
        FailureCode::Declined,
        FailureCode::AlreadyPaid,
    ]);
    prop_oneof![
        Just(SignatureStatus::Pending),
        (1..100_u32).prop_flat_map(|required| (0..=required).prop_map(move |collected| {
            SignatureStatus::InProgress {
                collected,
                required,
            }
        })),
        Just(SignatureStatus::Complete),
        (code, text()).prop_map(|(code, reason)| SignatureStatus::Failed { code, reason }),
        any::<bool>().prop_map(|signatures_released| SignatureStatus::Cancelled {
            signatures_released
        }),
        text().prop_map(|reason| SignatureStatus::Timeout { reason }),
    ]
}

prop_compose! {
    fn response()(
        request_id in id(),
        txid in txid(),
        federation_version in 1..=u32::MAX,
        status in status(),
        keys in prop::collection::btree_set(public_key(), 0..4),
        bytes in vec(vec(any::<u8>(), 9..=73), 4),
        input_index in 0..1000_u32,
    ) -> SignatureResponse {
        let signs = matches!(status, SignatureStatus::InProgress { .. } | SignatureStatus::Complete);
        let signatures = keys.into_iter().zip(bytes).filter(|_| signs);
        SignatureResponse {
            request_id: request_id.parse().expect("valid"),
            txid,
            federation_version,
            status,
            signatures: signatures
                .map(|(public_key, signature)| PartialSignature { input_index, public_key, signature })
                .collect(),
        }
    }
}

prop_compose! {
    fn update()(
        previous_version in 1..u32::MAX,
        previous_config_hash in any::<[u8; 32]>(),
        keys in prop::collection::btree_set(public_key(), 1..6),
        threshold in any::<Index>(),
        network in network(),
        heights in (any::<u64>(), any::<u32>(), any::<u32>()),
        kind in prop::sample::select(vec![
            FederationUpdateKind::Scheduled,
            FederationUpdateKind::Emergency,
            FederationUpdateKind::Pause,
            FederationUpdateKind::Resume,
        ]),
        mut signature in any::<[[u8; 32]; 2]>().prop_map(|halves| halves.concat()),
        texts in (text(), "[a-z0-9]{0,90}"),
    ) -> FederationUpdate {
        let members: Vec<FederationMember> = (0..)
            .zip(&keys)
            .map(|(index, public_key)| FederationMember {
                id: format!("member-{index}").parse().expect("valid"),
                public_key: *public_key,
                active: true,
            })
            .collect();
        // In the curve's order whatever the rest is.
        (signature[0], signature[32]) = (0, 0);
        let signature = bitcoin::secp256k1::ecdsa::Signature::from_compact(&signature);
        let signature = signature.expect("small");
        FederationUpdate {
            version: previous_version + 1,
            previous_version,
            previous_config_hash,
            threshold: u32::try_from(threshold.index(members.len()) + 1).expect("small"),
            descriptor: texts.0,
            address: texts.1,
            network,
            activation_height: heights.0,
            notice_blocks: heights.1,
            grace_blocks: heights.2,
            kind,
            approvals: keys.iter().map(|key| Approval { public_key: *key, signature }).collect(),
            members,
        }
    }
}

fn inbound() -> impl Strategy<Value = Inbound> {
    prop_oneof![
        response().prop_map(Inbound::SignatureResponse),
        update().prop_map(|update| Inbound::FederationUpdate(Box::new(update))),
        (txid(), any::<u32>(), option::of(text())).prop_map(|(txid, vout, refused)| {
            let status = match refused {
                Some(reason) => PeginStatus::Refused { reason },
                None => PeginStatus::Recorded,
            };
            Inbound::PeginAck(PeginAck {
                outpoint: OutPoint { txid, vout },
                status,
            })
        }),
        (id(), "[a-z0-9_-]{1,64}", text(), 0..4_000_000_000_000_u64).prop_map(
            |(proposal_id, kind, note, deadline)| {
                Inbound::ProposalNotification(ProposalNotification {
                    proposal_id: proposal_id.parse().expect("valid"),
                    proposal_type: ProposalType::new(kind).expect("valid"),
                    data: format!("{{\"note\":{note:?}}}"),
                    voting_deadline: SystemTime::UNIX_EPOCH + Duration::from_millis(deadline),
                })
            }
        ),
    ]
}

/// What governance would send.
fn sent(message: &Inbound) -> (Lane, Kind, Vec<u8>) {
    match message {
        Inbound::SignatureResponse(response) => (
            Lane::Signing,
            Kind::SignatureResponse,
            proto::SignatureResponse::from(response).encode_to_vec(),
        ),
        Inbound::FederationUpdate(update) => (
            Lane::Federation,
            Kind::FederationUpdate,
            proto::FederationUpdate::from(update.as_ref()).encode_to_vec(),
        ),
        Inbound::PeginAck(ack) => (
            Lane::Pegin,
            Kind::PeginAck,
            proto::PeginAck::from(ack).encode_to_vec(),
        ),
        Inbound::ProposalNotification(proposal) => (
            Lane::Proposal,
            Kind::ProposalNotification,
            proto::ProposalNotification::from(proposal).encode_to_vec(),
        ),
    }
}

/// The kinds of governance, each in its lane.
const KINDS: [(Lane, Kind); 4] = [
    (Lane::Signing, Kind::SignatureResponse),
    (Lane::Federation, Kind::FederationUpdate),
    (Lane::Pegin, Kind::PeginAck),
    (Lane::Proposal, Kind::ProposalNotification),
];

/// Whatever converts is valid: it survives the way back and forth.
fn assert_valid_or_refused(lane: Lane, kind: Kind, payload: &[u8]) {
    if let Ok(message) = decode(lane, kind.into(), payload) {
        let (lane, kind, payload) = sent(&message);
        assert_eq!(decode(lane, kind.into(), &payload).as_ref(), Ok(&message));
    }
}

proptest! {
    #[test]
    fn what_the_node_says_is_understood(message in outbound()) {
        let (kind, payload) = encode(&message);
        prop_assert_eq!(read_back(message.lane(), kind, &payload), message);
    }

    #[test]
    fn what_governance_says_is_understood(message in inbound()) {
        let (lane, kind, payload) = sent(&message);
        prop_assert_eq!(decode(lane, kind.into(), &payload), Ok(message));
    }

    #[test]
    fn any_bytes_are_refused_or_valid(bytes in vec(any::<u8>(), 0..300)) {
        for (lane, kind) in KINDS {
            assert_valid_or_refused(lane, kind, &bytes);
        }
    }

    #[test]
    fn a_damaged_message_is_refused_or_valid(
        message in inbound(),
        at in any::<Index>(),
        flip in 1..=255_u8,
        cut in any::<Index>(),
    ) {
        let (lane, kind, mut payload) = sent(&message);
        if !payload.is_empty() {
            let at = at.index(payload.len());
            payload[at] ^= flip;
            assert_valid_or_refused(lane, kind, &payload);
            assert_valid_or_refused(lane, kind, &payload[..cut.index(payload.len())]);
        }
    }

    #[test]
    fn a_message_in_another_lane_or_of_another_kind_is_refused(message in inbound(), kind in any::<i32>()) {
        let (lane, right, payload) = sent(&message);
        for other in Lane::ALL {
            if other != lane {
                prop_assert!(decode(other, right.into(), &payload).is_err());
            }
        }
        if kind != i32::from(right) {
            prop_assert!(decode(lane, kind, &payload).is_err());
        }
    }
}

/// No point of secp256k1 has x = 5.
fn not_on_the_curve() -> prost::bytes::Bytes {
    let mut key = vec![0; 33];
    (key[0], key[32]) = (2, 5);
    key.into()
}

/// A response that is right in every field; each case spoils one.
fn good_response() -> proto::SignatureResponse {
    let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let key: PublicKey = key.parse().expect("the generator");
    proto::SignatureResponse {
        request_id: "r-1".to_owned(),
        txid: vec![7; 32].into(),
        federation_version: 1,
        status: proto::SignatureStatus::Complete.into(),
        partial_signatures: vec![proto::PartialSignature {
            input_index: 0,
            public_key: key.serialize().to_vec().into(),
            signature: vec![1; 71].into(),
        }],
        ..Default::default()
    }
}

#[test]
fn what_is_out_of_bounds_is_named_with_its_field_value_and_bound() {
    SignatureResponse::try_from(good_response()).expect("good");
    type Spoil = fn(&mut proto::SignatureResponse);
    let cases: [(&str, Spoil); 9] = [
        ("request_id", |r| r.request_id = String::new()),
        ("request_id", |r| r.request_id = "x".repeat(65)),
        ("request_id", |r| r.request_id = "a b".to_owned()),
        ("txid", |r| r.txid = vec![7; 31].into()),
        ("federation_version", |r| r.federation_version = 0),
        ("status", |r| r.status = 99),
        ("partial_signatures[0].public_key", |r| {
            r.partial_signatures[0].public_key = not_on_the_curve()
        }),
        ("partial_signatures[0].public_key", |r| {
            r.partial_signatures[0].public_key = vec![4; 65].into()
        }),
        ("partial_signatures[0].signature", |r| {
            r.partial_signatures[0].signature = vec![1; 8].into()
        }),
    ];
    for (field, spoil) in cases {
        let mut response = good_response();
        spoil(&mut response);
        let invalid = SignatureResponse::try_from(response).expect_err(field);
        assert_eq!(invalid.field, field, "{invalid}");
        assert!(
            !invalid.value.is_empty() || field == "request_id",
            "{invalid}"
        );
        assert!(!invalid.bound.is_empty(), "{invalid}");
    }
}

#[test]
fn a_burn_is_paid_what_it_is_owed_to_whom_it_is_owed() {
    let good = proto::SignatureRequest::from(&SignatureRequest::new(pinned()).expect("valid"));
    SignatureRequest::try_from(good.clone()).expect("good");
    type Spoil = fn(&mut proto::PegoutBinding);
    let cases: [(&str, Spoil); 6] = [
        ("burns[0].amount_sat", |b| b.amount_sat += 1),
        ("burns[0].script_pubkey", |b| {
            b.script_pubkey = vec![0x52].into()
        }),
        // As from someone who does not know the field.
        ("burns[0].script_pubkey", |b| {
            b.script_pubkey = Default::default()
        }),
        ("burns[0].script_pubkey", |b| {
            b.script_pubkey = vec![0x51; 10_001].into()
        }),
        ("burns[0].script_pubkey", |b| b.output_index = 1),
        ("burns[0].burn_tx_hash", |b| {
            b.burn_tx_hash = vec![4; 31].into()
        }),
    ];
    for (field, spoil) in cases {
        let mut request = good.clone();
        spoil(&mut request.burns[0]);
        let invalid = SignatureRequest::try_from(request).expect_err(field);
        assert_eq!(invalid.field, field, "{invalid}");
    }
}

#[test]
fn amounts_end_at_twenty_one_million() {
    let deposit = |sat| {
        PeginNotification::try_from(proto::PeginNotification {
            txid: vec![7; 32].into(),
            vout: 0,
            amount_sat: sat,
            evm_address: vec![1; 20].into(),
        })
    };
    let max = 21_000_000 * 100_000_000;
    deposit(max).expect("all there is");
    for sat in [0, max + 1, u64::MAX] {
        assert_eq!(deposit(sat).expect_err("none").field, "amount_sat");
    }
}

/// One whose payload hash is known.
fn pinned() -> SignatureRequestParts {
    let mut psbt = Psbt::from_unsigned_tx(Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint {
                txid: Txid::from_byte_array([1; 32]),
                vout: 2,
            },
            script_sig: ScriptBuf::new(),
            sequence: Sequence::MAX,
            witness: Witness::new(),
        }],
        output: vec![TxOut {
            value: Amount::from_sat(900),
            script_pubkey: ScriptBuf::from(vec![0x51]),
        }],
    })
    .expect("unsigned");
    psbt.inputs[0].witness_utxo = Some(TxOut {
        value: Amount::from_sat(1000),
        script_pubkey: ScriptBuf::from(vec![0x52]),
    });
    psbt.inputs[0].witness_script = Some(ScriptBuf::from(vec![0x51]));
    SignatureRequestParts {
        request_id: "r-1".parse().expect("valid"),
        psbt,
        input_indices: vec![0],
        tx_type: TransactionType::Pegout,
        chain: "alys".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: 3,
        burns: vec![PegoutBinding {
            burn_tx_hash: [4; 32],
            log_index: 5,
            block_hash: [6; 32],
            block_height: 7,
            output_index: 0,
            amount: Amount::from_sat(900),
            script_pubkey: ScriptBuf::from(vec![0x51]),
        }],
        max_fee: Amount::from_sat(100),
        replaces: Some("r-0".parse().expect("valid")),
    }
}

/// Pinned, so that no change of this code goes unnoticed by the other side.
#[test]
fn the_payload_hash_is_what_the_proto_says() {
    let parts = pinned();
    let hash =
        |parts: SignatureRequestParts| SignatureRequest::new(parts).expect("valid").payload_hash();
    let pinned = hash(parts.clone());
    assert_eq!(
        pinned.to_lower_hex_string(),
        "24e71bbfbafee2d9324adda9248e2dc770e5a5ed1fd5fc5dab82e18f07c48a9d"
    );
    // Neither the id nor the chain's name make another request; everything else does.
    let mut same = parts.clone();
    same.request_id = "r-9".parse().expect("valid");
    assert_eq!(hash(same), pinned);
    type Change = fn(&mut SignatureRequestParts);
    let changes: [Change; 6] = [
        |p| p.federation_version = 4,
        |p| p.burns[0].log_index = 6,
        |p| p.max_fee = Amount::from_sat(101),
        |p| p.replaces = None,
        |p| p.psbt.inputs[0].witness_utxo.as_mut().expect("set").value = Amount::from_sat(999),
        |p| p.psbt.unsigned_tx.lock_time = LockTime::from_consensus(1),
    ];
    for change in changes {
        let mut other = parts.clone();
        change(&mut other);
        assert_ne!(hash(other), pinned);
    }
}
