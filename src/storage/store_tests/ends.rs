//! A store that is dropped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{super::*, support::*};

/// Longer than dropping a store may take, whatever its disk does.
const LONGEST_END: Duration = Duration::from_secs(30);

#[test]
fn what_was_handed_in_is_committed_before_a_dropped_store_has_ended() {
    let engine = Arc::new(MemoryEngine::new());
    let faulty = FaultyEngine::new(Arc::clone(&engine) as Arc<dyn Engine>);
    let store = Store::create_on(Arc::new(faulty.handle()), &owner("one")).expect("made");
    let a = register(&store, "a");
    let generation = a.opened();
    faulty.hang(Hang::Commits);
    a.put(generation, "one");
    assert!(faulty.await_hung(Hang::Commits, PATIENCE));
    a.put(generation, "two");
    let released = faulty.handle();
    let release = std::thread::spawn(move || released.release(Hang::Commits));
    drop((store, a));
    release.join().expect("released");
    let store = Store::open_on(engine, &owner("one")).expect("opened");
    assert_eq!(keys(&store, "a"), ["one", "one'", "two", "two'"]);
}

#[test]
fn dropping_a_store_whose_disk_hangs_takes_no_longer_than_its_deadline() {
    for hangs in [Hang::Commits, Hang::Opens, Hang::Reads] {
        let (faulty, store) = faulty_store();
        let engine: Arc<dyn Engine> = Arc::new(faulty.handle());
        drop(store);
        let store = Store::open_on(Arc::clone(&engine), &owner("one")).expect("opened");
        let a = register(&store, "a");
        let generation = a.opened();
        faulty.hang(hangs);
        match hangs {
            Hang::Commits => {}
            Hang::Opens => faulty.fail_commit(1, Kept::Nothing),
            Hang::Reads => {
                a.look_up(generation, "one");
            }
        }
        a.put(generation, "one");
        assert!(faulty.await_hung(hangs, PATIENCE), "{hangs:?}");
        a.put(generation, "two");
        let since = Instant::now();
        drop((store, a));
        assert!(since.elapsed() < LONGEST_END, "{hangs:?}");
        // What hung ends when the disk comes back, and lets go of the engine.
        faulty.release(hangs);
        eventually("the threads have ended", || Arc::strong_count(&engine) == 1);
    }
}
