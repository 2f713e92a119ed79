use super::*;
use crate::chain::{
    EVENTS_KEPT, FederationEvent, FederationStanding,
    test_support::{Disk, FAILURES, Failure, PLAN, governance, schedule, until_open, update},
};
use crate::simulator::RotationPlan;

#[tokio::test]
async fn an_update_and_a_height_that_fail_are_not_in_force_until_that_is_known() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let second = update(&simulator, &PLAN);
    for failure in FAILURES {
        let applied = failure == Failure::Applied;
        let disk = Disk::new();
        let store = disk.chain(schedule(&first, "alys-regtest")).await;
        let store = store.expect("opens");

        disk.fail_next(failure);
        let refused = store.follow(second.clone(), 0).await.expect_err("no room");
        assert!(refused.to_string().contains("no space left"), "{refused}");
        assert_eq!(store.federations().len(), 1);
        assert_eq!(store.events_after(0), []);
        let refused = store.report_height(HeightReport::Reached(50)).await;
        assert!(
            matches!(refused, Err(HeightError::Store(_))),
            "nothing is taken until it is open again: {refused:?}"
        );
        assert!(matches!(store.fault(), Some(StoreError::Io { .. })));
        disk.is_well();
        until_open(&store).await;
        assert_eq!(store.fault(), None);
        assert_eq!(store.federations().len(), 1 + usize::from(applied));
        let scheduled = store
            .follow(second.clone(), 0)
            .await
            .expect("there is room");
        let expected = if applied {
            Scheduling::Known
        } else {
            Scheduling::InTime
        };
        assert_eq!(scheduled, Ok(expected));

        disk.fail_next(failure);
        let failed = store.report_height(HeightReport::Reached(110)).await;
        assert!(matches!(failed, Err(HeightError::Store(_))), "{failed:?}");
        assert_eq!((store.height(), store.active().version()), (0, 1));
        disk.is_well();
        until_open(&store).await;
        let expected = if applied { (110, 2) } else { (0, 1) };
        assert_eq!((store.height(), store.active().version()), expected);
        let reached = store.report_height(HeightReport::Reached(110)).await;
        reached.expect("there is room again");
        assert_eq!(store.active().version(), 2);
        let events = store.events_after(0);
        assert_eq!(events.len(), 2, "each happened once");
        let latest = store.latest_version();
        drop(store);
        let again = disk.chain(schedule(&first, "alys-regtest")).await;
        let again = again.expect("opens");
        assert_eq!((again.active().version(), again.height()), (2, 110));
        assert_eq!(again.events_after(0), events);
        assert_eq!(again.latest_version(), latest);
    }
}

#[tokio::test]
async fn a_store_of_another_first_federation_is_refused_with_both_named() {
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
    let disk = Disk::new();
    let store = disk.chain(mine.clone()).await.expect("opens");
    let scheduled = store.follow(update(&simulator, &PLAN), 0).await;
    scheduled.expect("durable").expect("approved");
    drop(store);
    for other in [
        schedule(&fewer, "alys-regtest"),
        schedule(&higher, "alys-regtest"),
        schedule(&first, "alys-testnet"),
    ] {
        let opened = disk.chain(other.clone()).await;
        let refused = opened.expect_err("another federation").to_string();
        for part in [&digest(&mine), &digest(&other), "set [federation]"] {
            assert!(refused.contains(part), "{refused}");
        }
    }
    let opened = disk.chain(mine).await;
    assert_eq!(opened.expect("its own").federations().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_carried_through_though_whoever_began_it_is_gone() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::new();
    let store = disk.chain(schedule(&first, "alys-regtest")).await;
    let store = store.expect("opens");
    let mut changed = store.watch();
    let second = update(&simulator, &PLAN);
    disk.hold(true);
    let change = tokio::spawn({
        let store = store.clone();
        async move { store.follow(second, 0).await }
    });
    let held = disk.clone();
    tokio::task::spawn_blocking(move || held.until_held())
        .await
        .expect("it is being committed");
    change.abort();
    assert!(change.await.expect_err("aborted").is_cancelled());
    assert_eq!(store.federations().len(), 1);
    disk.hold(false);
    while store.federations().len() == 1 {
        changed.changed().await.expect("the chain is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_a_commit_runs_is_judged_on_it_and_told_after_it() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::new();
    let store = disk.chain(schedule(&first, "alys-regtest")).await;
    let store = store.expect("opens");
    let second = update(&simulator, &PLAN);
    for fails in [true, false] {
        disk.hold(true);
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let follow = |name: &'static str| {
            let told = Arc::clone(&told);
            let change = |draft: &mut Draft| draft.follow(&second, 0);
            store.change(change, move |changed| {
                told.lock().expect("no panic").push((name, changed));
            });
        };
        follow("new");
        follow("the same");
        let (tell, reached) = oneshot::channel();
        store.change(
            |draft| draft.report_height(HeightReport::Reached(110)),
            move |reached| {
                let _ = tell.send(reached);
            },
        );
        let held = disk.clone();
        tokio::task::spawn_blocking(move || held.until_held())
            .await
            .expect("it is being committed");
        assert_eq!(store.federations().len(), 1);
        assert_eq!(*told.lock().expect("no panic"), [], "nothing is durable");
        if fails {
            disk.fail_next(Failure::Lost);
        }
        disk.hold(false);
        let reached = reached.await.expect("told");
        let told = told.lock().expect("no panic").clone();
        if fails {
            assert!(reached.is_err(), "{reached:?}");
            assert!(told.iter().all(|(_, changed)| changed.is_err()), "{told:?}");
            disk.is_well();
            until_open(&store).await;
        } else {
            assert_eq!(reached, Ok(Ok(())));
            let expected = [
                ("new", Ok(Ok(Scheduling::InTime))),
                ("the same", Ok(Ok(Scheduling::Known))),
            ];
            assert_eq!(told, expected);
            assert_eq!(store.active().version(), 2);
        }
    }
}

#[tokio::test]
async fn another_chain_on_the_store_ends_this_one() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::new();
    let store = disk.store();
    let open = || ChainStore::open(&store, schedule(&first, "alys-regtest"));
    let old = open().await.expect("opens");
    old.report_height(HeightReport::Reached(7))
        .await
        .expect("taken");
    let new = open().await.expect("opens");
    assert!(old.is_replaced() && !new.is_replaced());
    let refused = old.report_height(HeightReport::Reached(8)).await;
    assert_eq!(refused, Err(HeightError::Store(StoreError::Ended)));
    assert_eq!(new.height(), 7);
    new.report_height(HeightReport::Reached(9))
        .await
        .expect("taken");
}

#[tokio::test]
async fn events_name_the_version_that_signed_and_survive_with_what_caused_them() {
    use FederationEvent as Event;
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::new();
    let opened = async || {
        let chain = disk.chain(schedule(&first, "alys-regtest")).await;
        chain.expect("opens")
    };
    let mut store = opened().await;
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
        store = opened().await;
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
    assert_eq!(opened().await.events_after(0), kept);
}
