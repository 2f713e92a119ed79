//! Federation updates: only what a quorum of the previous version approved is followed, at its
//! height, and undone by a reorganisation.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use bitcoin::secp256k1::ecdsa::Signature;
use governance_stream::{
    chain::{
        ChainMessage, Federation, FederationFault, FederationPolicy, FederationStanding, Schedule,
    },
    message::{FederationUpdate, FederationUpdateKind},
    proto,
    simulator::{RotationPlan, Simulator},
};
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

#[tokio::test]
async fn whatever_is_wrong_with_an_update_it_is_not_followed() {
    let (simulator, schedule, good) = at_first().await;
    let other = simulator
        .build_update(&RotationPlan {
            grace_blocks: 51,
            ..PLAN
        })
        .expect("possible");
    let refused = |change: &dyn Fn(&mut FederationUpdate)| {
        let mut update = good.clone();
        change(&mut update);
        let mut schedule = schedule.clone();
        let fault = schedule.add(&update).expect_err("refused");
        assert_eq!(standings(&schedule).len(), 1, "nothing changed");
        fault
    };
    use FederationFault as Fault;
    let quorum = Fault::Quorum {
        valid: 1,
        needed: 2,
    };
    assert_eq!(refused(&|u| u.approvals.truncate(1)), quorum);
    assert_eq!(
        refused(&|u| u.approvals[1] = u.approvals[0].clone()),
        quorum,
        "one member twice"
    );
    assert_eq!(
        refused(&|u| u.approvals[1].public_key = u.members[2].public_key),
        quorum,
        "a new member"
    );
    assert_eq!(
        refused(&|u| u.approvals[1].signature = u.approvals[0].signature),
        quorum
    );
    // High S: the same point, refused all the same.
    let high = |signature: &Signature| {
        let compact = signature.serialize_compact();
        let order = bitcoin::secp256k1::constants::CURVE_ORDER;
        let (mut s, mut borrow) = ([0_u8; 32], 0_i16);
        for index in (0..32).rev() {
            let digit = i16::from(order[index]) - i16::from(compact[32 + index]) - borrow;
            borrow = i16::from(digit < 0);
            s[index] = u8::try_from(digit.rem_euclid(256)).expect("a byte");
        }
        let mut bytes = compact;
        bytes[32..].copy_from_slice(&s);
        Signature::from_compact(&bytes).expect("in range")
    };
    assert_eq!(
        refused(&|u| u.approvals[1].signature = high(&u.approvals[1].signature)),
        quorum
    );
    // Whatever was approved was approved whole.
    let none = Fault::Quorum {
        valid: 0,
        needed: 2,
    };
    assert_eq!(refused(&|u| u.activation_height += 1), none);
    assert_eq!(refused(&|u| u.grace_blocks += 1), none);
    assert_eq!(refused(&|u| u.notice_blocks -= 1), none);
    assert_eq!(refused(&|u| u.kind = FederationUpdateKind::Emergency), none);
    assert_eq!(
        refused(&|u| u.members[0].id = "mallory".parse().expect("valid")),
        none
    );
    assert!(matches!(
        refused(&|u| u.network = bitcoin::Network::Bitcoin),
        Fault::Network { .. }
    ));
    assert!(matches!(
        refused(&|u| u.version = 3),
        Fault::NotNext {
            version: 3,
            latest: 1
        }
    ));
    assert_eq!(
        refused(&|u| u.previous_config_hash = [7; 32]),
        Fault::OtherHistory(1)
    );
    assert!(matches!(
        refused(&|u| u.threshold = 1),
        Fault::WeakThreshold { .. }
    ));
    assert!(matches!(
        refused(&|u| u.threshold = 4),
        Fault::Impossible { .. }
    ));
    assert!(matches!(
        refused(&|u| u.members[1] = u.members[0].clone()),
        Fault::RepeatedMember
    ));
    assert!(
        matches!(refused(&|u| u.threshold = 3), Fault::Descriptor(_)),
        "not what it describes"
    );
    assert!(matches!(
        refused(&|u| u.members[0].active = false),
        Fault::Descriptor(_)
    ));
    let unchecked = |u: &mut FederationUpdate| u.descriptor.truncate(u.descriptor.len() - 9);
    assert!(
        matches!(refused(&unchecked), Fault::Descriptor(_)),
        "no checksum"
    );
    assert!(matches!(
        refused(&|u| u.descriptor = "wsh(pk(02))#xxxxxxxx".into()),
        Fault::Descriptor(_)
    ));
    assert!(matches!(
        refused(&|u| u.address = "bcrt1qq".into()),
        Fault::Address { .. }
    ));
    assert!(matches!(
        refused(&|u| u.kind = FederationUpdateKind::Pause),
        Fault::PauseChangesMembers
    ));
    // Approved, but too soon, or not the one that was approved before.
    let mut late = schedule.clone();
    late.set_height(101);
    assert!(matches!(
        late.add(&good),
        Err(Fault::Notice {
            activation: 110,
            notice: 10,
            height: 101
        })
    ));
    let mut known = schedule.clone();
    known.add(&good).expect("approved");
    assert_eq!(known.add(&domain(other)), Err(Fault::Replaced(2)));
}

#[tokio::test]
async fn another_chain_has_another_digest() {
    let simulator = governance().await;
    let first = first_federation(&simulator.federation(1).expect("the first"));
    let on = |chain: &str| {
        let chain = chain.parse().expect("valid");
        Federation::first(&first, bitcoin::Network::Regtest, &chain)
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
    let federation = Federation::first(&first, bitcoin::Network::Regtest, &chain).expect("one");
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
        s.connection.sessions == 2 && s.is_connected()
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
    assert_eq!(proposals[0].proposal_id.as_str(), "p-1");
    node.stop().await;
    simulator.assert_clean();
}
