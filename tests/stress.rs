//! Whatever strikes an actor, a task or the store's engine, wherever it is in its life: the tree
//! heals, or gives up so that the node starts it again, and nothing that was accepted is lost.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says with which seed"
)]

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use governance_stream::{
    Health, StreamError, StreamStatus,
    config::Config,
    stress::{Armed, Fault, Moment, Plan, Point},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::{
    PATIENCE,
    guardian::{Guarded, completed},
    kill,
};
use tokio::{sync::Semaphore, task::JoinSet};

/// Trees that are stressed side by side.
const SIDE_BY_SIDE: usize = 6;
/// Requests that run while it strikes, and those made after it.
const LOAD: u64 = 24;
const AFTERWARDS: u64 = 4;

/// Short enough for a hang to be found soon.
fn impatient(config: &mut Config) {
    config.supervision.watch_interval = Duration::from_millis(100);
    config.supervision.hang_deadline = Duration::from_millis(500);
    config.supervision.stop_deadline = Duration::from_millis(500);
    config.buffer.commit_deadline = Duration::from_millis(600);
    config.connection.connect_deadline = Duration::from_secs(1);
    config.connection.registration_deadline = Duration::from_secs(1);
    config.connection.heartbeat_interval = Duration::from_millis(200);
    config.call_deadline = Duration::from_secs(3);
}

/// Has the tree come to the point, where it would not by itself.
async fn provoke(guarded: &Guarded, point: Point) -> Option<Armed> {
    let name = |of: &str| format!("{}.{of}", guarded.config.instance);
    let supervisor = guarded.config.instance.to_string();
    match point {
        Point::Supervisor(Moment::PreStart | Moment::PostStart) => kill(&supervisor).await,
        Point::Supervisor(Moment::PostStop) => support::stop(&supervisor).await,
        Point::Buffer(Moment::PreStart | Moment::PostStart) => kill(&name("buffer")).await,
        // It is opened again after a commit that failed.
        Point::StoreOpen => {
            let plan = Plan::new(Point::StoreCommit, Fault::Error);
            return Some(plan.arm(&guarded.config.instance));
        }
        Point::Buffer(Moment::PostStop) => support::stop(&name("buffer")).await,
        Point::Connection(Moment::PreStart | Moment::PostStart)
        | Point::SessionDial
        | Point::Burial => kill(&name("connection")).await,
        Point::Connection(Moment::PostStop) => support::stop(&name("connection")).await,
        Point::Supervisor(Moment::Handle)
        | Point::Buffer(Moment::Handle)
        | Point::Connection(Moment::Handle)
        | Point::Request(_)
        | Point::SessionRead
        | Point::DeliveryWait
        | Point::StoreCommit => {}
    }
    None
}

/// Lifts what would not end by itself: a subscriber may take its time, and a thread that hangs in
/// an engine keeps every later tree from it.
async fn lift_in_time(guarded: &Guarded, plan: Option<&(Point, Fault, Armed)>) {
    if let Some((point, Fault::Hang, armed)) = plan {
        armed.hit(1).await;
        match point {
            Point::DeliveryWait => armed.lift(),
            // Nobody dies of it: callers are refused with the reason.
            Point::StoreOpen => {
                let shown = |status: &StreamStatus| status.store_fault.is_some();
                guarded.until("shown in health", shown).await;
                armed.lift();
            }
            Point::StoreCommit => {
                guarded.tree_after(guarded.trees()).await;
                armed.lift();
            }
            _ => {}
        }
    }
}

/// Strikes a tree under load, and asserts that it heals with everything done.
async fn survives(strikes: &[(Point, Fault, u64)]) {
    let guarded = Guarded::start(impatient).await;
    guarded
        .until("connected", |status| status.is_connected())
        .await;
    let plans = strikes.iter().map(|(point, fault, after)| {
        let plan = Plan::new(*point, *fault).after(*after);
        (*point, *fault, plan.arm(&guarded.config.instance))
    });
    let plans: Vec<_> = plans.collect();
    let strike = async {
        let mut provoked = Vec::new();
        for (point, ..) in &plans {
            provoked.push(provoke(&guarded, *point).await);
        }
        if let [(.., armed)] = &plans[..] {
            let hit = tokio::time::timeout(PATIENCE, armed.hit(1)).await;
            assert!(hit.is_ok(), "it was never passed");
        }
    };
    let work = async {
        let (handles, ()) = tokio::join!(guarded.load(0..LOAD), strike);
        let more = guarded.load(LOAD..LOAD + AFTERWARDS).await;
        for handle in handles.iter().chain(&more) {
            completed(handle).await;
        }
    };
    let lifts = async {
        tokio::join!(
            lift_in_time(&guarded, plans.first()),
            lift_in_time(&guarded, plans.get(1))
        );
        std::future::pending().await
    };
    tokio::select! {
        () = work => {}
        () = lifts => {}
    }
    drop(plans);
    guarded
        .until("healthy", |status| status.health == Health::Healthy)
        .await;
    guarded.assert_all_done(LOAD + AFTERWARDS).await;
    guarded.stop().await;
}

/// Runs the cases side by side; a failure names its case.
async fn all_survive(cases: Vec<Vec<(Point, Fault, u64)>>) {
    let places = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let mut running = JoinSet::new();
    for case in cases {
        let places = Arc::clone(&places);
        running.spawn(async move {
            let _place = places.acquire().await.expect("is open");
            let survival = tokio::spawn({
                let case = case.clone();
                async move { tokio::time::timeout(2 * PATIENCE, survives(&case)).await }
            });
            match survival.await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(format!("{case:?}: never over")),
                Err(panic) => Some(format!("{case:?}: {panic}")),
            }
        });
    }
    let failures: Vec<String> = running.join_all().await.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

fn every_strike() -> impl Iterator<Item = (Point, Fault)> {
    let of = |point| Fault::ALL.into_iter().map(move |fault| (point, fault));
    let strikes = Point::ALL.into_iter().flat_map(of);
    strikes.filter(|(point, fault)| point.can(*fault))
}

/// Passes that go by first, so that it strikes in the middle of the load.
fn in_the_middle(point: Point) -> u64 {
    match point {
        Point::Supervisor(Moment::Handle) | Point::Request(_) => 3,
        // Whatever is grouped, accepting and settling are two.
        Point::StoreCommit => 1,
        Point::Buffer(Moment::Handle) | Point::Connection(Moment::Handle) => 20,
        Point::SessionRead => 2,
        _ => 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_survives_every_fault_at_every_point_of_every_life() {
    let cases = every_strike().map(|(point, fault)| vec![(point, fault, in_the_middle(point))]);
    all_survive(cases.collect()).await;
}

/// At each commit of a load: among them those of what the bridge has handled, which governance must
/// send again, and those after which a tracker is started for a request that is settled meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_commit_forgot_comes_again() {
    let tracker = (Point::Request(Moment::PreStart), Fault::Kill, 4);
    let cases = (0..60).map(|number| {
        let commit = (Point::StoreCommit, Fault::Error, number % 6);
        if number % 2 == 0 {
            vec![commit, commit]
        } else {
            vec![tracker, commit]
        }
    });
    all_survive(cases.collect()).await;
}

fn variable(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_survives_faults_in_pairs() {
    let (pairs, seed) = (variable("STRESS_PAIRS", 40), variable("STRESS_SEED", 1));
    println!("STRESS_PAIRS={pairs} STRESS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let strikes: Vec<_> = every_strike().collect();
    let mut strike = || {
        let (point, fault) = strikes[random.random_range(0..strikes.len())];
        (
            point,
            fault,
            random.random_range(0..=2 * in_the_middle(point)),
        )
    };
    let cases = (0..pairs).map(|_| vec![strike(), strike()]);
    all_survive(cases.collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_kills_every_tracker_of_it_is_parked_and_no_one_else_notices() {
    for (moment, fault) in [
        (Moment::PreStart, Fault::Panic),
        (Moment::PreStart, Fault::Error),
        (Moment::PreStart, Fault::Hang),
        (Moment::PostStart, Fault::Panic),
        (Moment::PostStart, Fault::Kill),
        (Moment::Handle, Fault::Hang),
    ] {
        let guarded = Guarded::start(|config| {
            config.supervision.watch_interval = Duration::from_millis(100);
            config.supervision.hang_deadline = Duration::from_secs(1);
        })
        .await;
        guarded.simulator.hold_responses();
        let poisonous = format!("{}.request.pegout-1", guarded.config.instance);
        let armed = Plan::new(Point::Request(moment), fault)
            .times(u64::MAX)
            .only(poisonous)
            .arm(&guarded.config.instance);
        let handles = guarded.load(0..4).await;
        guarded
            .until("parked", |status| status.parked_requests == 1)
            .await;
        assert_eq!(armed.hits(), 4, "{moment:?} {fault:?}: three restarts");
        let standing = handles[1].standing().await;
        assert!(
            matches!(standing, Err(StreamError::NeedsOperator { .. })),
            "{moment:?} {fault:?}: {standing:?}"
        );
        guarded.simulator.release_responses();
        for handle in [&handles[0], &handles[2], &handles[3]] {
            completed(handle).await;
        }
        assert_eq!(guarded.trees(), 1, "{moment:?} {fault:?}");
        assert_eq!(guarded.status().actor_restarts, 3, "of the tracker alone");
        drop(armed);
        guarded.stop().await;
    }
}

/// From the hang to the end of who hangs.
async fn ended_after(guarded: &Guarded, point: Point, name: &str) -> Duration {
    let cell = support::registered(name).await;
    let armed = Plan::new(point, Fault::Hang)
        .only(name)
        .arm(&guarded.config.instance);
    tokio::time::timeout(PATIENCE, armed.hit(1))
        .await
        .unwrap_or_else(|_| panic!("{point:?} was never passed"));
    let began = Instant::now();
    cell.wait(Some(PATIENCE)).await.expect("is ended");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_of_each_actor_is_found_and_ended_by_its_deadline() {
    let guarded = Guarded::start(|config| {
        config.supervision.watch_interval = Duration::from_millis(100);
        config.supervision.hang_deadline = Duration::from_secs(1);
    })
    .await;
    guarded.simulator.hold_responses();
    let handles = guarded.load(0..2).await;
    let instance = guarded.config.instance.to_string();
    for (point, name) in [
        (Point::Buffer(Moment::Handle), format!("{instance}.buffer")),
        (
            Point::Connection(Moment::Handle),
            format!("{instance}.connection"),
        ),
        (
            Point::Request(Moment::Handle),
            format!("{instance}.request.pegout-1"),
        ),
        (Point::Supervisor(Moment::Handle), instance.clone()),
    ] {
        let supervision = &guarded.config.supervision;
        let after = ended_after(&guarded, point, &name).await;
        // The question that it does not answer may be the one that it hangs at.
        let least = supervision.hang_deadline - supervision.watch_interval;
        let most = supervision.hang_deadline + 3 * supervision.watch_interval;
        assert!(after >= least, "{point:?} had only {after:?}");
        // What the machine adds is not the tree's.
        assert!(after <= 3 * most, "{point:?} hung for {after:?}");
        guarded
            .until("connected again", |status| status.is_connected())
            .await;
    }
    guarded.tree_after(1).await;
    guarded.simulator.release_responses();
    for handle in &handles {
        completed(handle).await;
    }
    guarded.assert_all_done(2).await;
    guarded.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_not_return_fails_the_tree_and_the_next_one_goes_on() {
    let guarded = Guarded::start(|config| {
        config.supervision.watch_interval = Duration::from_millis(100);
        config.supervision.stop_deadline = Duration::from_millis(500);
        // For half of it health says so, and a test that is held up must still see it.
        config.buffer.commit_deadline = Duration::from_secs(3);
    })
    .await;
    guarded
        .until("connected", |status| status.is_connected())
        .await;
    let federation = guarded.simulator.federation(1).expect("the first");
    let armed = Plan::new(Point::StoreCommit, Fault::Hang).arm(&guarded.config.instance);
    let stream = guarded.stream();
    let caller = tokio::spawn({
        let (stream, request) = (stream.clone(), support::pegout(&federation, 0));
        async move { stream.request_signatures(request).await }
    });
    support::until(&stream, "shown in health", |status| {
        matches!(&status.health, Health::Unhealthy(why) if why[0].contains("has not answered"))
    })
    .await;
    assert_eq!(guarded.trees(), 1, "health says so first");
    let answer = caller.await.expect("no panic");
    assert!(
        matches!(answer, Err(StreamError::Indeterminate { .. })),
        "{answer:?}"
    );
    guarded.tree_after(1).await;
    // No later tree writes to the store before its engine returns.
    armed.lift();
    for handle in guarded.load(0..4).await {
        completed(&handle).await;
    }
    guarded
        .until("healthy", |status| status.health == Health::Healthy)
        .await;
    guarded.assert_all_done(4).await;
    guarded.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_commit_shows_in_health_and_passes() {
    let guarded = Guarded::start(|config| {
        config.supervision.watch_interval = Duration::from_millis(50);
        config.buffer.commit_deadline = Duration::from_secs(6);
    })
    .await;
    guarded
        .until("connected", |status| status.is_connected())
        .await;
    let armed = Plan::new(Point::StoreCommit, Fault::Hang).arm(&guarded.config.instance);
    let (handles, ()) = tokio::join!(guarded.load(0..4), async {
        guarded
            .until("shown in health", |status| status.store_fault.is_some())
            .await;
        armed.lift();
    });
    for handle in handles {
        completed(&handle).await;
    }
    guarded
        .until("healthy", |status| status.health == Health::Healthy)
        .await;
    assert_eq!(guarded.trees(), 1);
    assert_eq!(guarded.status().actor_restarts, 0);
    guarded.stop().await;
}
