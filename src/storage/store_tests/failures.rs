//! Commits, openings and reads that fail or hang.

use std::time::Duration;

use super::{super::*, support::*};

#[test]
fn a_failed_commit_voids_what_every_user_has_handed_in_and_tells_each_once() {
    for kept in [Kept::Nothing, Kept::All] {
        let (faulty, store) = faulty_store();
        let users = ["a", "b", "c"].map(|name| register(&store, name));
        let first = users.each_ref().map(Told::opened)[0];
        faulty.hang(Hang::Commits);
        faulty.fail_commit(1, kept);
        users[0].put(first, "under way");
        assert!(faulty.await_hung(Hang::Commits, PATIENCE));
        for user in &users {
            user.put(first, "queued");
        }
        faulty.release(Hang::Commits);
        for user in &users {
            assert_eq!(user.failed().name(), "io");
            let second = user.opened();
            assert!(second > first);
            // What belongs to the generation that has ended is dropped, and nobody is told of it.
            user.put(first, "late");
            let ticket = user.put(second, "again");
            user.committed(second, ticket);
        }
        for user in &users {
            user.is_told_nothing();
        }
        let again = ["again", "again'"];
        let a = match kept {
            Kept::Nothing => again.to_vec(),
            Kept::All => [again, ["under way", "under way'"]].concat(),
        };
        assert_eq!(keys(&store, "a"), a, "{kept:?}");
        assert_eq!(keys(&store, "b"), again);
        assert_eq!(keys(&store, "c"), again);
    }
}

#[test]
fn a_store_that_cannot_be_opened_again_says_why_and_comes_back_by_itself() {
    for fault in [FaultyEngine::full(), FaultyEngine::read_only()] {
        let (faulty, store) = faulty_store();
        let (a, b) = (register(&store, "a"), register(&store, "b"));
        let generation = a.opened();
        b.opened();
        faulty.fail_writes(Some(fault.clone()));
        a.put(generation, "one");
        assert_eq!(a.failed(), fault);
        assert_eq!(b.failed(), fault);
        let opens = StoreError::Absent {
            place: "gone".to_owned(),
        };
        faulty.fail_opens(Some(opens.clone()));
        eventually("the latest reason is known", || {
            store.condition().fault.as_ref() == Some(&opens)
        });
        // One who comes meanwhile is told when it is open, and not before.
        let c = register(&store, "c");
        assert_eq!(
            c.look_up(generation, "x").recv(),
            Ok(Err(StoreError::Reopening {
                fault: Box::new(opens)
            }))
        );
        faulty.fail_opens(None);
        eventually("the latest reason is known", || {
            store.condition().fault.as_ref() == Some(&fault)
        });
        for user in [&a, &b, &c] {
            user.is_told_nothing();
        }
        faulty.fail_writes(None);
        for user in [&a, &b, &c] {
            let generation = user.opened();
            user.settles(generation);
            user.is_told_nothing();
        }
        assert_eq!(store.condition().fault, None);
        assert!(keys(&store, "a").is_empty());
    }
}

#[test]
fn an_engine_that_panics_has_failed() {
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    faulty.panic_at_commit(1);
    a.put(generation, "one");
    assert_eq!(a.failed().name(), "io");
    let generation = a.opened();
    a.settles(generation);
    assert_eq!(store.condition().damage, None, "a panic proves no damage");
}

#[test]
fn a_look_up_asked_in_a_generation_that_ended_is_answered_so() {
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let first = a.opened();
    faulty.fail_commit(1, Kept::Nothing);
    a.put(first, "one");
    a.failed();
    let second = a.opened();
    assert_eq!(a.look_up(first, "one").recv(), Ok(Err(StoreError::Ended)));
    assert_eq!(a.look_up(second, "one").recv(), Ok(Ok(false)));
}

#[test]
fn a_look_up_does_not_see_what_is_there_while_the_store_is_being_opened_again() {
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let first = a.opened();
    faulty.hang(Hang::Reads);
    let asked = a.look_up(first, "one");
    assert!(faulty.await_hung(Hang::Reads, PATIENCE));
    // The commit is there, and nobody knows whether it is durable until a later one is. Where the
    // look-up hangs, the opening does too; that one then hangs before it commits.
    faulty.fail_commit(1, Kept::All);
    a.put(first, "one");
    a.failed();
    assert!(faulty.await_all_hung(Hang::Reads, 2, PATIENCE));
    faulty.hang(Hang::Commits);
    faulty.release(Hang::Reads);
    let answer = asked.recv_timeout(PATIENCE).expect("answered");
    assert!(answer.is_err(), "{answer:?}");
    faulty.release(Hang::Commits);
    let second = a.opened();
    assert_eq!(a.look_up(second, "one").recv(), Ok(Ok(true)));
}

#[test]
fn a_commit_that_hangs_shows_by_user_and_holds_up_no_look_up() {
    let (faulty, store) = faulty_store();
    let (a, b) = (register(&store, "a"), register(&store, "b"));
    let generation = a.opened();
    b.opened();
    faulty.hang(Hang::Commits);
    a.put(generation, "one");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    assert_eq!(b.look_up(generation, "one").recv(), Ok(Ok(false)));
    assert!(a.user.waiting_for() > Duration::ZERO);
    eventually("the other one waits for nothing", || {
        b.user.waiting_for().is_zero()
    });
    let condition = store.condition();
    assert!(condition.batches["a"] > Duration::ZERO);
    assert!(condition.batches["b"].is_zero());
    assert_eq!(condition.fault, None);
    faulty.release(Hang::Commits);
    eventually("nothing waits", || a.user.waiting_for().is_zero());
}

#[test]
fn a_read_that_fails_is_counted_and_what_is_damaged_is_remembered() {
    let (faulty, store) = faulty_store();
    let a = register(&store, "a");
    let generation = a.opened();
    let damaged = StoreError::Damaged {
        place: "(faulty)".to_owned(),
        reason: "a test".to_owned(),
    };
    faulty.fail_reads(Some(damaged.clone()));
    let answer = a.look_up(generation, "one").recv_timeout(PATIENCE);
    assert_eq!(answer, Ok(Err(damaged.clone())));
    eventually("it is remembered", || {
        store.condition().damage == Some(damaged.clone())
    });
    assert_eq!(store.condition().fault, None, "it is open all the same");
}
