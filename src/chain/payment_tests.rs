//! Completed peg-outs in a chain's store: noted once, in their order, and on disk.

use bitcoin::{BlockHash, Txid, hashes::Hash as _};
use tokio::sync::oneshot;

use super::{
    NotNoted, Noted, NumberedPayment, PaymentFault, PaymentPage, Scheduling,
    staging::MAX_NOTES,
    test_support::{Disk, FAILURES, Failure, PLAN, governance, schedule, until_open, update},
};
use crate::{
    bridge::{PegoutCompleted, Place},
    message::BurnId,
    storage::StoreError,
};

fn burn(number: u32) -> BurnId {
    BurnId {
        tx_hash: [7; 32],
        log_index: number,
    }
}

/// The completed peg-out called this, which paid these burns.
fn completed(id: &str, burns: &[u32]) -> PegoutCompleted {
    PegoutCompleted {
        request_id: id.parse().expect("valid"),
        burns: burns.iter().copied().map(burn).collect(),
        txid: Txid::from_byte_array([8; 32]),
        place: Place {
            block: BlockHash::from_byte_array([9; 32]),
            height: 120,
        },
    }
}

#[tokio::test]
async fn a_paid_burn_is_known_to_the_next_process() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    for failure in FAILURES {
        let disk = Disk::new();
        let open = || disk.chain(schedule(&first, "alys-regtest"));
        let paid = completed("a-pegout", &[3]);
        let store = open().await.expect("opens");
        disk.fail_next(failure);
        let failed = store.note_completed(paid.clone()).await;
        assert!(matches!(failed, Err(NotNoted::Store(_))), "{failed:?}");
        disk.is_well();
        until_open(&store).await;
        let applied = failure == Failure::Applied;
        let found = store.payment_of(&burn(3)).await.expect("readable");
        assert_eq!(found.is_some(), applied);
        let noted = store.note_completed(paid.clone()).await;
        let expected = if applied { Noted::Known } else { Noted::New };
        assert_eq!(noted, Ok(expected));
        drop(store);
        let store = open().await.expect("opens");
        assert_eq!(store.payment_of(&burn(3)).await, Ok(Some(paid.clone())));
        assert_eq!(store.payment_of(&burn(4)).await, Ok(None));
        let again = store.note_completed(paid.clone()).await;
        assert_eq!(again, Ok(Noted::Known));
        let mut moved = paid.clone();
        moved.place.height += 1;
        let noted = store.note_completed(moved.clone()).await;
        assert_eq!(noted, Ok(Noted::New), "in another block");
        let mut other = paid.clone();
        other.txid = Txid::from_byte_array([6; 32]);
        let fault = PaymentFault::Other(paid.request_id);
        assert_eq!(
            store.note_completed(other).await,
            Err(NotNoted::Fault(fault))
        );
        let all = store.payments(PaymentPage::default()).await;
        let expected = NumberedPayment {
            number: 1,
            payment: moved,
        };
        assert_eq!(all, Ok(vec![expected]));
    }
}

#[tokio::test]
async fn ten_thousand_payments_are_on_disk_and_one_more_reads_a_handful_of_rows() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::new();
    let open = || disk.chain(schedule(&first, "alys-regtest"));
    let numbered = |number: u32| completed(&format!("pegout-{number}"), &[number]);
    let store = open().await.expect("opens");
    for number in 1..=10_000 {
        let noted = store.note_completed(numbered(number)).await;
        assert_eq!(noted, Ok(Noted::New));
    }
    assert_eq!(store.payments_in_memory(), 0);
    drop(store);
    disk.rows_read();
    let store = open().await.expect("opens");
    assert_eq!(store.payments_in_memory(), 0);
    let opening = disk.rows_read();
    assert!(opening < 10, "{opening} rows are read at the start");
    let again = PegoutCompleted {
        burns: vec![burn(5000)],
        ..numbered(10_002)
    };
    let table = [
        (numbered(10_001), Noted::New),
        (numbered(5000), Noted::Known),
        (
            again,
            Noted::PaidAgain {
                burn: burn(5000),
                before: numbered(5000).request_id,
            },
        ),
    ];
    for (payment, expected) in table {
        assert_eq!(store.note_completed(payment).await, Ok(expected.clone()));
        let read = disk.rows_read();
        assert!(read < 10, "{expected:?}: {read} rows");
        assert_eq!(store.payments_in_memory(), 0);
    }
    let of_burn = store.payments_of(&burn(5000)).await.expect("readable");
    let numbers: Vec<u64> = of_burn.iter().map(|found| found.number).collect();
    assert_eq!(numbers, [5000, 10_002]);
    for (page, expected) in [
        ((None, 2, false), vec![1, 2]),
        ((Some(10_001), 2, false), vec![10_002]),
        ((None, 2, true), vec![10_002, 10_001]),
        ((Some(3), 5, true), vec![2, 1]),
    ] {
        let (after, limit, newest_first) = page;
        let listed = PaymentPage {
            after,
            limit,
            newest_first,
        };
        disk.rows_read();
        let listed = store.payments(listed).await.expect("readable");
        let numbers: Vec<u64> = listed.iter().map(|found| found.number).collect();
        assert_eq!(numbers, expected, "{page:?}");
        assert_eq!(disk.rows_read(), expected.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_payments_of_one_burn_in_flight_at_once_are_judged_in_their_order() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    // The second one comes while the first is looked up, or while it is committed.
    for while_committed in [false, true] {
        let disk = Disk::new();
        let store = disk.chain(schedule(&first, "alys-regtest")).await;
        let store = store.expect("opens");
        disk.hold(true);
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let note = |id: &str| {
            let tell = tell.clone();
            store.note(completed(id, &[1]), move |noted| {
                let _ = tell.send(noted);
            });
        };
        note("one");
        if while_committed {
            let held = disk.clone();
            tokio::task::spawn_blocking(move || held.until_held())
                .await
                .expect("it is being committed");
        }
        for id in ["two", "one"] {
            note(id);
        }
        assert!(told.try_recv().is_err(), "nothing is durable");
        disk.hold(false);
        let again = Noted::PaidAgain {
            burn: burn(1),
            before: "one".parse().expect("valid"),
        };
        let mut next = async || told.recv().await.expect("told").expect("noted");
        assert_eq!(next().await, Noted::New);
        // What is known already needs no commit: it may be told before what does.
        let others = [next().await, next().await];
        assert!(others.contains(&again), "{others:?}");
        assert!(others.contains(&Noted::Known), "{others:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_fills_no_memory_and_leaves_room_for_governance() {
    let simulator = governance().await;
    let first = simulator.federation(1).expect("the first");
    let disk = Disk::new();
    let store = disk.chain(schedule(&first, "alys-regtest")).await;
    let store = store.expect("opens");
    disk.hold(true);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let most = u32::try_from(MAX_NOTES).expect("few");
    for number in 0..=most {
        let tell = tell.clone();
        store.note(completed(&format!("{number}"), &[number]), move |noted| {
            let _ = tell.send(noted);
        });
    }
    let refused = told.recv().await.expect("one is refused at once");
    assert!(
        matches!(refused, Err(NotNoted::Store(StoreError::Hung { .. }))),
        "{refused:?}"
    );
    let second = update(&simulator, &PLAN);
    let (tell, followed) = oneshot::channel();
    store.change(
        |draft| draft.follow(&second, 0),
        move |followed| {
            let _ = tell.send(followed);
        },
    );
    disk.hold(false);
    for _ in 0..most {
        assert_eq!(told.recv().await, Some(Ok(Noted::New)));
    }
    assert_eq!(
        followed.await.expect("told"),
        Ok(Ok(Scheduling::InTime)),
        "there was room for it"
    );
}
