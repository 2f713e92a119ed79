//! Federation updates: only what a quorum of the previous version approved is followed, at its
//! height, and undone by a reorganisation.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::collections::BTreeSet;

use bitcoin::{
    Network,
    secp256k1::{PublicKey, ecdsa::Signature},
};
use governance_stream::{
    chain::{
        ChainMessage, Federation, FederationFault, FederationPolicy, FederationStanding, Schedule,
        Scheduling,
    },
    message::{FederationMember, FederationUpdate, FederationUpdateKind},
    proto,
    simulator::{RotationPlan, Simulator},
};
use miniscript::Descriptor;
use ractor::rpc::CallResult;
use support::{
    PATIENCE,
    full::{FullNode, first_federation, schedule},
    governance,
};

const PLAN: RotationPlan = RotationPlan {
    members: 3,
    threshold: 2,
    activation_height: 110,
    notice_blocks: 10,
    grace_blocks: 50,
    kind: proto::FederationUpdateKind::Scheduled,
};

fn domain(update: proto::FederationUpdate) -> FederationUpdate {
    update.try_into().expect("well formed")
}

/// A schedule and the update that would follow.
async fn at_first() -> (Simulator, Schedule, FederationUpdate) {
    let simulator = governance().await;
    let schedule = schedule(&simulator.federation(1).expect("the first"));
    let update = domain(simulator.build_update(&PLAN).expect("possible"));
    (simulator, schedule, update)
}

fn standings(schedule: &Schedule) -> Vec<FederationStanding> {
    schedule.versions().map(|(_, standing)| standing).collect()
}

#[tokio::test]
async fn an_update_is_scheduled_applied_retired_and_undone_by_height_alone() {
    use FederationStanding::{Active, Retired, Retiring, Scheduled};
    let (_simulator, mut schedule, update) = at_first().await;
    schedule.add(&update).expect("approved");
    schedule.add(&update).expect("the same again is fine");
    for (height, expected) in [
        (0, [Active, Scheduled]),
        (109, [Active, Scheduled]),
        (110, [Retiring, Active]),
        (159, [Retiring, Active]),
        (160, [Retired, Active]),
        // A reorganisation.
        (100, [Active, Scheduled]),
    ] {
        schedule.set_height(height);
        assert_eq!(standings(&schedule), expected, "at {height}");
    }
}

type Change = fn(&mut FederationUpdate);

/// The same point on the curve with the other S, which anyone can make.
fn high_s(signature: &Signature) -> Signature {
    let mut bytes = signature.serialize_compact();
    let order = bitcoin::secp256k1::constants::CURVE_ORDER;
    let mut borrow = 0_i16;
    for index in (0..32).rev() {
        let digit = i16::from(order[index]) - i16::from(bytes[32 + index]) - borrow;
        borrow = i16::from(digit < 0);
        bytes[32 + index] = u8::try_from(digit.rem_euclid(256)).expect("a byte");
    }
    Signature::from_compact(&bytes).expect("in range")
}

/// Another member, with a key of its own.
fn stranger(number: u8) -> FederationMember {
    let mut point = [0_u8; 33];
    point[0] = 2;
    // Half of all numbers are a point's x: the next one that is.
    let public_key = (number..).step_by(16).find_map(|x| {
        point[32] = x;
        PublicKey::from_slice(&point).ok()
    });
    FederationMember {
        id: format!("stranger-{number}").parse().expect("valid"),
        public_key: public_key.expect("one of them"),
        active: true,
    }
}

/// Every reason, with the smallest change that turns a good update into one that is refused for it.
const REFUSALS: &[(&str, &str, Change)] = &[
    ("network", "for another network", |u| {
        u.network = Network::Bitcoin;
    }),
    ("first", "the first version, over the wire", |u| {
        (u.version, u.previous_version) = (1, 0);
    }),
    ("first", "a version before the first", |u| u.version = 0),
    ("not_next", "a version is left out", |u| {
        (u.version, u.previous_version) = (3, 2);
    }),
    ("not_next", "its number is not the next", |u| u.version = 3),
    ("not_next", "it follows another number", |u| {
        u.previous_version = 2;
    }),
    ("not_next", "it follows the last number there is", |u| {
        (u.version, u.previous_version) = (u32::MAX, u32::MAX - 1);
    }),
    ("other_history", "one bit of what it follows", |u| {
        u.previous_config_hash[31] ^= 1;
    }),
    ("members", "nobody is active", |u| {
        u.members
            .iter_mut()
            .for_each(|member| member.active = false);
    }),
    ("members", "sixteen are active", |u| {
        u.members.extend((0..13).map(stranger));
    }),
    ("threshold", "nobody needs to sign", |u| u.threshold = 0),
    ("threshold", "more than all need to sign", |u| {
        u.threshold = 4
    }),
    ("weak_threshold", "one signer less", |u| u.threshold = 1),
    ("repeated_id", "a name twice", |u| {
        u.members[2].id = u.members[0].id.clone();
    }),
    ("repeated_key", "a key twice", |u| {
        u.members[2].public_key = u.members[0].public_key;
    }),
    ("repeated_key", "a key twice, once inactive", |u| {
        let mut ghost = stranger(1);
        (ghost.public_key, ghost.active) = (u.members[0].public_key, false);
        u.members.push(ghost);
    }),
    ("pause_changes_members", "a pause with other members", |u| {
        u.kind = FederationUpdateKind::Pause;
    }),
    ("pause_changes_members", "its end with other members", |u| {
        u.kind = FederationUpdateKind::Resume;
    }),
    ("descriptor", "one signer more than it says", |u| {
        u.threshold = 3
    }),
    ("descriptor", "a member fewer than it says", |u| {
        u.members[0].active = false;
    }),
    ("descriptor", "another key than it says", |u| {
        u.members[0].public_key = stranger(1).public_key;
    }),
    ("descriptor", "no checksum", |u| {
        u.descriptor.truncate(u.descriptor.len() - 9);
    }),
    ("descriptor", "a wrong checksum", |u| {
        let last = u.descriptor.pop();
        u.descriptor.push(if last == Some('q') { 'p' } else { 'q' });
    }),
    ("descriptor", "keys in their given order", |u| {
        let unsorted = u.descriptor.replace("sortedmulti", "multi");
        let (body, _) = unsorted.split_once('#').expect("a checksum");
        let unsorted: Descriptor<bitcoin::PublicKey> = body.parse().expect("a descriptor");
        u.descriptor = unsorted.to_string();
    }),
    ("address", "another address", |u| {
        let last = u.address.pop();
        u.address.push(if last == Some('q') { 'p' } else { 'q' });
    }),
    ("address", "the address of another network", |u| {
        u.address = u.address.replace("bcrt1", "tb1");
    }),
    ("quorum", "an approval less", |u| u.approvals.truncate(1)),
    ("quorum", "one member twice", |u| {
        u.approvals[1] = u.approvals[0].clone();
    }),
    ("quorum", "by a member of the new version", |u| {
        u.approvals[1].public_key = u.members[2].public_key;
    }),
    ("quorum", "a signature of another member", |u| {
        u.approvals[1].signature = u.approvals[0].signature;
    }),
    ("quorum", "a high S", |u| {
        u.approvals[1].signature = high_s(&u.approvals[1].signature);
    }),
    // Whatever was approved was approved whole.
    ("quorum", "another height than approved", |u| {
        u.activation_height += 1;
    }),
    ("quorum", "another grace period than approved", |u| {
        u.grace_blocks += 1;
    }),
    ("quorum", "another notice than approved", |u| {
        u.notice_blocks -= 1;
    }),
    ("quorum", "another kind than approved", |u| {
        u.kind = FederationUpdateKind::Emergency;
    }),
    ("quorum", "another name than approved", |u| {
        u.members[0].id = "mallory".parse().expect("valid");
    }),
    ("quorum", "another order than approved", |u| {
        u.members.swap(0, 1)
    }),
];

#[tokio::test]
async fn each_smallest_change_that_spoils_an_update_is_refused_for_its_own_reason() {
    let (_simulator, schedule, good) = at_first().await;
    schedule.clone().add(&good).expect("good as it is");
    let mut seen = BTreeSet::new();
    for (name, change, spoil) in REFUSALS {
        let (mut schedule, mut update) = (schedule.clone(), good.clone());
        spoil(&mut update);
        let fault = schedule.add(&update).expect_err(change);
        assert_eq!(fault.name(), *name, "{change}: {fault}");
        assert_eq!(standings(&schedule).len(), 1, "{change}: nothing changed");
        seen.insert(*name);
    }
    // What no change of the update alone makes of it.
    let policy = FederationPolicy {
        min_notice_blocks: 11,
        ..FederationPolicy::default()
    };
    let chain = "alys-regtest".parse().expect("valid");
    let fault = schedule.active().follow(&good, &chain, &policy);
    assert_eq!(
        fault,
        Err(FederationFault::ShortNotice {
            promised: 10,
            demanded: 11
        })
    );
    seen.extend(["short_notice", "notice", "replaced", "overtakes"]);
    let all = [
        "network",
        "first",
        "not_next",
        "other_history",
        "replaced",
        "members",
        "threshold",
        "weak_threshold",
        "repeated_id",
        "repeated_key",
        "pause_changes_members",
        "descriptor",
        "address",
        "quorum",
        "short_notice",
        "notice",
        "overtakes",
    ];
    assert_eq!(seen, BTreeSet::from(all), "a reason is never shown");
}

#[tokio::test]
async fn an_update_that_comes_late_is_refused_unless_the_node_was_away() {
    let (_simulator, schedule, good) = at_first().await;
    for (height, present_since, expected) in [
        (100, 0, Ok(Scheduling::InTime)),
        (101, 0, Err("notice")),
        (101, 100, Err("notice")),
        (101, 101, Ok(Scheduling::Late)),
        (500, 500, Ok(Scheduling::Late)),
        (500, 100, Err("notice")),
    ] {
        let mut schedule = schedule.clone();
        schedule.set_height(height);
        schedule.set_present_since(present_since);
        let scheduled = schedule.add(&good).map_err(|fault| fault.name());
        assert_eq!(
            scheduled, expected,
            "at {height}, there since {present_since}"
        );
    }
}

#[tokio::test]
async fn an_emergency_shortens_the_notice_and_never_the_quorum() {
    let (simulator, schedule, _) = at_first().await;
    let plan = RotationPlan {
        notice_blocks: 0,
        kind: proto::FederationUpdateKind::Emergency,
        ..PLAN
    };
    let update = domain(simulator.build_update(&plan).expect("possible"));
    let policy = FederationPolicy {
        min_notice_blocks: 1000,
        ..FederationPolicy::default()
    };
    let chain = "alys-regtest".parse().expect("valid");
    let first = schedule.active();
    first
        .follow(&update, &chain, &policy)
        .expect("an emergency");
    let mut unapproved = update;
    unapproved.approvals.truncate(1);
    let fault = first
        .follow(&unapproved, &chain, &policy)
        .expect_err("one approval");
    assert_eq!(fault.name(), "quorum");
}

#[tokio::test]
async fn a_version_that_is_known_is_neither_replaced_nor_overtaken() {
    let (simulator, mut schedule, good) = at_first().await;
    let other = RotationPlan {
        grace_blocks: 51,
        ..PLAN
    };
    let other = domain(simulator.build_update(&other).expect("possible"));
    schedule.add(&good).expect("approved");
    assert_eq!(schedule.add(&good), Ok(Scheduling::Known));
    assert_eq!(schedule.add(&other), Err(FederationFault::Replaced(2)));
    let mut forged = good.clone();
    forged.approvals.truncate(1);
    let fault = schedule
        .add(&forged)
        .expect_err("not the one that was approved");
    assert_eq!(fault.name(), "quorum");
    // The same again is fine at any height, and when other versions have followed.
    simulator.rotate_federation(&PLAN).expect("possible");
    let sooner = RotationPlan {
        activation_height: 109,
        ..PLAN
    };
    let sooner = domain(simulator.build_update(&sooner).expect("possible"));
    let expected = FederationFault::Overtakes {
        activation: 109,
        previous: 110,
    };
    assert_eq!(schedule.add(&sooner), Err(expected));
    let third = domain(simulator.build_update(&PLAN).expect("possible"));
    schedule.add(&third).expect("both at the same height");
    schedule.set_height(5000);
    for known in [&good, &third] {
        assert_eq!(schedule.add(known), Ok(Scheduling::Known));
    }
    assert_eq!(schedule.active().version(), 3);
}

#[tokio::test]
async fn a_pause_is_a_version_of_its_own_and_holds_until_its_end() {
    let (simulator, mut schedule, _) = at_first().await;
    let kinds = [
        proto::FederationUpdateKind::Pause,
        proto::FederationUpdateKind::Resume,
    ];
    for (height, kind) in (110..).zip(kinds) {
        let plan = RotationPlan {
            activation_height: height,
            notice_blocks: 0,
            grace_blocks: 0,
            kind,
            ..PLAN
        };
        let update = domain(simulator.build_update(&plan).expect("possible"));
        schedule.add(&update).expect("approved");
        simulator.rotate_federation(&plan).expect("possible");
    }
    for (height, version, paused) in [(109, 1, false), (110, 2, true), (111, 3, false)] {
        schedule.set_height(height);
        let active = schedule.active();
        assert_eq!((active.version(), active.is_paused()), (version, paused));
    }
}

type WireChange = fn(&mut proto::FederationUpdate);

#[tokio::test]
async fn an_update_that_cannot_be_is_none_and_the_field_is_named() {
    let simulator = governance().await;
    let good = simulator.build_update(&PLAN).expect("possible");
    let table: &[(&str, WireChange)] = &[
        ("version", |u| u.version = 3),
        ("previous_version", |u| {
            (u.version, u.previous_version) = (1, 0)
        }),
        ("previous_config_hash", |u| {
            u.previous_config_hash.truncate(31)
        }),
        ("members[1].public_key", |u| {
            // No point of the curve has this x.
            let mut key = vec![2];
            key.extend([0xff; 32]);
            u.members[1].public_key = key.into();
        }),
        ("members[1].public_key", |u| {
            u.members[1].public_key = u.members[1].public_key.slice(..32);
        }),
        ("members[2]", |u| u.members[2].id = u.members[0].id.clone()),
        ("members[2]", |u| {
            u.members[2].public_key = u.members[0].public_key.clone();
        }),
        ("members", |u| u.members = vec![u.members[0].clone(); 101]),
        ("threshold", |u| u.threshold = 0),
        ("threshold", |u| u.threshold = 4),
        ("network", |u| u.network = 0),
        ("kind", |u| u.kind = 0),
        ("kind", |u| u.kind = 99),
        ("descriptor", |u| u.descriptor = "w".repeat(4097)),
        ("address", |u| u.address = "b".repeat(129)),
        ("approvals", |u| {
            u.approvals = vec![u.approvals[0].clone(); 101]
        }),
        ("approvals[0].signature", |u| {
            u.approvals[0].signature = u.approvals[0].signature.slice(..63);
        }),
        ("approvals[1].public_key", |u| {
            u.approvals[1].public_key = vec![0; 33].into();
        }),
    ];
    for (field, spoil) in table {
        let mut update = good.clone();
        spoil(&mut update);
        let invalid = FederationUpdate::try_from(update).expect_err(field);
        assert_eq!(invalid.field, *field, "{invalid}");
    }
}

#[tokio::test]
async fn another_chain_has_another_digest() {
    let simulator = governance().await;
    let first = first_federation(&simulator.federation(1).expect("the first"));
    let on = |chain: &str| {
        let chain = chain.parse().expect("valid");
        Federation::first(&first, Network::Regtest, &chain)
            .expect("a federation")
            .digest()
    };
    assert_eq!(on("alys-regtest"), on("alys-regtest"));
    assert_ne!(on("alys-regtest"), on("alys-testnet"));
    let policy = FederationPolicy {
        min_threshold_percent: 100,
        ..FederationPolicy::default()
    };
    let chain = "alys-regtest".parse().expect("valid");
    let federation = Federation::first(&first, Network::Regtest, &chain).expect("one");
    let update = domain(simulator.build_update(&PLAN).expect("possible"));
    assert!(matches!(
        federation.follow(&update, &chain, &policy),
        Err(FederationFault::WeakThreshold { percent: 100, .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_answers_applies_tells_the_bridge_and_goes_on_after_its_death() {
    let simulator = governance().await;
    let mut node = FullNode::start(&simulator).await;
    let mut forged = simulator.build_update(&PLAN).expect("possible");
    forged.approvals.pop();
    simulator.announce(&forged);
    let view = support::ledger(&simulator, |view| view.federation_acks.len() == 1).await;
    let (version, accepted, reason) = &view.federation_acks[0];
    assert_eq!((*version, *accepted), (2, false));
    assert!(reason.contains("1 of the 2 approvals"), "{reason}");

    simulator.rotate_federation(&PLAN).expect("possible");
    let view = support::ledger(&simulator, |view| view.federation_acks.len() == 2).await;
    assert_eq!(view.federation_acks[1], (2, true, String::new()));
    node.chain
        .cast(ChainMessage::HeightReached(109))
        .expect("alive");
    node.restart_chain().await;
    let active = |reply| ChainMessage::GetFederation { reply };
    let CallResult::Success(federation) = node
        .chain
        .call(active, Some(PATIENCE))
        .await
        .expect("alive")
    else {
        panic!("no answer")
    };
    assert_eq!(federation.version(), 1);
    // The bridge is away when the height comes, and is told when it is back.
    node.bridge
        .stop_and_wait(None, Some(PATIENCE))
        .await
        .expect("stops");
    node.chain
        .cast(ChainMessage::HeightReached(110))
        .expect("alive");
    node.restart_bridge().await;
    node.until_active(2).await;
    // The next session's registration says so.
    simulator.cut();
    support::until(&node.stream, "reconnected", |s| {
        s.connection.sessions >= 2 && s.is_connected()
    })
    .await;
    node.chain
        .cast(ChainMessage::HeightReached(100))
        .expect("alive");
    node.until_active(1).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_are_kept_and_listed() {
    let simulator = governance().await;
    let node = FullNode::start(&simulator).await;
    simulator.propose(&proto::ProposalNotification {
        proposal_id: "p-1".to_owned(),
        proposal_type: "fee-policy".to_owned(),
        data: b"{}".to_vec().into(),
        voting_deadline_unix_ms: 1,
    });
    support::ledger(&simulator, |view| view.proposal_acks == ["p-1"]).await;
    let list = |reply| ChainMessage::ListProposals { reply };
    let CallResult::Success(proposals) =
        node.chain.call(list, Some(PATIENCE)).await.expect("alive")
    else {
        panic!("no answer")
    };
    assert_eq!(proposals.len(), 1);
    assert_eq!(proposals[0].notification.proposal_id.as_str(), "p-1");
    assert!(proposals[0].expired, "its deadline is long past");
    node.stop().await;
    simulator.assert_clean();
}
