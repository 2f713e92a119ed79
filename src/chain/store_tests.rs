use bitcoin::{BlockHash, Txid, hashes::Hash as _};

use super::*;
use crate::bridge::Place;
use crate::chain::{
    EVENTS_KEPT, FederationEvent, FederationStanding,
    test_support::{Disk, PLAN, governance, schedule, update},
};
use crate::simulator::RotationPlan;

#[tokio::test]
async fn what_cannot_be_made_durable_is_not_in_force_and_is_once_there_is_room() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::default();
    let map = disk.map().expect("opens");
    let store = ChainStore::on(map, schedule(&first, "alys-regtest")).expect("opens");
    let second = update(&simulator, &PLAN);

    disk.fail_after(Some(0));
    let refused = store.follow(second.clone(), 0).await.expect_err("no room");
    assert!(
        refused.to_string().contains("cannot write to it"),
        "{refused}"
    );
    assert_eq!(store.federations().len(), 1);
    assert_eq!(store.events_after(0), []);
    let failed = store.report_height(HeightReport::Reached(110)).await;
    assert!(matches!(failed, Err(HeightError::Store(_))), "{failed:?}");
    assert_eq!(store.height(), 0);

    disk.fail_after(None);
    let scheduled = store.follow(second, 0).await.expect("there is room again");
    assert_eq!(scheduled, Ok(Scheduling::InTime));
    let reached = store.report_height(HeightReport::Reached(110)).await;
    reached.expect("there is room again");
    assert_eq!(store.active().version(), 2);
    let events = store.events_after(0);
    drop(store);
    let again = ChainStore::on(disk.map().expect("opens"), schedule(&first, "alys-regtest"));
    let again = again.expect("opens");
    assert_eq!((again.active().version(), again.height()), (2, 110));
    assert_eq!(again.events_after(0), events);
}

#[tokio::test]
async fn a_file_of_another_first_federation_is_refused_with_both_named() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let mine = schedule(&first, "alys-regtest");
    let digest = |schedule: &Schedule| {
        use bitcoin::hex::DisplayHex as _;
        schedule.first().digest().to_lower_hex_string()
    };
    let mut fewer = first.clone();
    fewer.members.pop();
    let mut higher = first.clone();
    higher.threshold = 3;
    // Begun with nothing but the first, and with versions after it.
    for followed in [false, true] {
        let disk = Disk::default();
        let store = ChainStore::on(disk.map().expect("opens"), mine.clone()).expect("opens");
        if followed {
            let scheduled = store.follow(update(&simulator, &PLAN), 0).await;
            scheduled.expect("durable").expect("approved");
        }
        drop(store);
        for other in [
            schedule(&fewer, "alys-regtest"),
            schedule(&higher, "alys-regtest"),
            schedule(&first, "alys-testnet"),
        ] {
            let opened = ChainStore::on(disk.map().expect("opens"), other.clone());
            let refused = opened.expect_err("another federation").to_string();
            for part in [&digest(&mine), &digest(&other), "set [federation]"] {
                assert!(refused.contains(part), "{refused}");
            }
        }
        let opened = ChainStore::on(disk.map().expect("opens"), mine.clone());
        let versions = opened.expect("its own").federations().len();
        assert_eq!(versions, 1 + usize::from(followed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_carried_through_though_whoever_began_it_is_gone() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::default();
    let map = disk.map().expect("opens");
    let store = ChainStore::on(map, schedule(&first, "alys-regtest")).expect("opens");
    let second = update(&simulator, &PLAN);
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let change = tokio::spawn({
        let store = store.clone();
        async move {
            let change = move |draft: &mut Draft| {
                begun.send(()).expect("the test waits");
                goes_on.recv().expect("the test says so");
                draft.follow(&second, 0)
            };
            store.change(change).await
        }
    });
    tokio::task::spawn_blocking(move || has_begun.recv())
        .await
        .expect("runs")
        .expect("begins");
    change.abort();
    assert!(change.await.expect_err("aborted").is_cancelled());
    assert_eq!(store.federations().len(), 1);
    go_on.send(()).expect("it goes on");
    store.settled().await;
    assert_eq!(store.federations().len(), 2);
}

#[tokio::test]
async fn events_name_the_version_that_signed_and_survive_with_what_caused_them() {
    use FederationEvent as Event;
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::default();
    let opened = || {
        let map = disk.map().expect("opens");
        ChainStore::on(map, schedule(&first, "alys-regtest")).expect("opens")
    };
    let mut store = opened();
    let mut addresses = Vec::new();
    for (activation_height, grace_blocks) in [(110, 50), (120, 10), (200, 0)] {
        let plan = RotationPlan {
            activation_height,
            grace_blocks,
            ..PLAN
        };
        let scheduled = store.follow(update(&simulator, &plan), 0).await;
        scheduled.expect("durable").expect("approved");
        addresses.push(
            simulator
                .rotate_federation(&plan)
                .expect("possible")
                .address,
        );
    }
    let mut last = 0;
    let mut since = |store: &ChainStore| -> Vec<Event> {
        let events = store.events_after(last);
        for event in &events {
            last += 1;
            assert_eq!(event.number, last, "no gap");
        }
        events.into_iter().map(|event| event.event).collect()
    };
    let updated = |old_version, new_version: u32| Event::Updated {
        old_version,
        new_version,
        new_address: addresses[new_version as usize - 2].clone(),
    };
    assert_eq!(since(&store).len(), 3, "each is scheduled");
    let table = [
        (HeightReport::Reached(119), vec![updated(1, 2)]),
        // Back, and over both heights at once: the one before is not the number before.
        (
            HeightReport::Reorganised(100),
            vec![Event::Undone {
                undone_version: 2,
                active_version: 1,
                active_address: first.address.clone(),
            }],
        ),
        (
            HeightReport::Reached(130),
            vec![updated(1, 3), Event::Retired { version: 2 }],
        ),
        (HeightReport::Reached(159), vec![]),
        (
            HeightReport::Reached(160),
            vec![Event::Retired { version: 1 }],
        ),
        (
            HeightReport::Reorganised(155),
            vec![Event::Reinstated { version: 1 }],
        ),
        (
            HeightReport::Reached(300),
            vec![
                updated(3, 4),
                Event::Retired { version: 1 },
                Event::Retired { version: 3 },
            ],
        ),
    ];
    for (report, expected) in table {
        store.report_height(report).await.expect("taken");
        assert_eq!(since(&store), expected, "{report:?}");
        drop(store);
        store = opened();
        assert_eq!(since(&store), [], "{report:?}: and no more after a restart");
    }
    let standings: Vec<_> = store.federations().iter().map(|(_, s)| *s).collect();
    use FederationStanding::{Active, Retired};
    assert_eq!(standings, [Retired, Retired, Retired, Active]);
    let lower = store.report_height(HeightReport::Reached(299)).await;
    let expected = HeightError::Lower {
        height: 299,
        known: 300,
    };
    assert_eq!(lower, Err(expected));
    for height in 1..=(2 * EVENTS_KEPT as u64) {
        let down = store
            .report_height(HeightReport::Reorganised(100 + height % 2 * 10))
            .await;
        down.expect("taken");
    }
    let kept = store.events_after(0);
    assert_eq!(kept.len(), EVENTS_KEPT);
    drop(store);
    assert_eq!(opened().events_after(0), kept);
}

#[tokio::test]
async fn a_paid_burn_is_known_to_the_next_process() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::default();
    let open = || ChainStore::on(disk.map()?, schedule(&first, "alys-regtest"));
    let burn = BurnId {
        tx_hash: [7; 32],
        log_index: 3,
    };
    let completed = PegoutCompleted {
        request_id: "a-pegout".parse().expect("valid"),
        burns: vec![burn],
        txid: Txid::from_byte_array([8; 32]),
        place: Place {
            block: BlockHash::from_byte_array([9; 32]),
            height: 120,
        },
    };
    let store = open().expect("opens");
    disk.fail_after(Some(0));
    let failed = store.note_completed(completed.clone()).await;
    assert!(matches!(failed, Err(NotNoted::Store(_))), "{failed:?}");
    assert_eq!(store.payment_of(&burn), None, "it is not durable");
    disk.fail_after(None);
    let noted = store.note_completed(completed.clone()).await;
    assert_eq!(noted, Ok(Noted::New));
    drop(store);
    let store = open().expect("opens");
    assert_eq!(store.payment_of(&burn), Some(completed.clone()));
    let again = store.note_completed(completed).await;
    assert_eq!(again, Ok(Noted::Known));
}
