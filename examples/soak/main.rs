//! Everything at random, under load: faults of the network, of governance, of credentials, of the
//! node's actors and its subscribers, one or two at a time. At the end the promises are checked
//! against governance's own ledger: `cargo run --release --example soak -- --minutes 5 --seed 1`.
//!
//! The seed decides which faults come, in which order and for how long. When they meet what is
//! going on, the machine decides.
//!
//! `--plant lost` puts a bug in, at the border between the stream and whoever uses it, so that it
//! is seen that such a one is found: the run ends with violations that name what the bug was done
//! to. A wrong name has it tell which there are.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "it paces a load, fails loudly when it cannot go on, and tells what it finds"
)]

mod accidents;
mod faults;
mod load;
mod node;
mod plant;
mod subscribers;
mod verdict;
mod world;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use self::{
    faults::Faults,
    load::Load,
    node::Node,
    plant::{Bug, Plant},
    world::World,
};

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Faults that may be under way at once.
const LANES_OF_FAULTS: u64 = 2;
/// The exit code of a run that did not find the bug that was planted.
const MISSED: u8 = 3;

struct Arguments {
    minutes: f64,
    seed: u64,
    bug: Option<Bug>,
}

impl Arguments {
    fn read() -> Result<Self, String> {
        let bugs = Bug::ALL.map(|bug| bug.to_string()).join("|");
        let usage = format!("usage: soak [--minutes N] [--seed S] [--plant {bugs}]");
        let mut arguments = Self {
            minutes: 1.0,
            seed: 1,
            bug: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| usage.clone())?;
            let wrong = || format!("{word} {value}: {usage}");
            match word.as_str() {
                "--minutes" => arguments.minutes = value.parse().map_err(|_| wrong())?,
                "--seed" => arguments.seed = value.parse().map_err(|_| wrong())?,
                "--plant" => arguments.bug = Some(value.parse().map_err(|()| wrong())?),
                _ => return Err(wrong()),
            }
        }
        if arguments.minutes.is_finite() && arguments.minutes > 0.0 {
            Ok(arguments)
        } else {
            Err(usage)
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::read() {
        Ok(arguments) => arguments,
        Err(fault) => {
            println!("{fault}");
            return ExitCode::from(2);
        }
    };
    accidents::watch();
    let Arguments { minutes, seed, bug } = arguments;
    println!("soak: {minutes} minutes, seed {seed}");
    let (length, plant) = (
        Duration::from_secs_f64(60.0 * minutes),
        Arc::new(Plant::new(bug)),
    );
    let violations = soak(length, seed, &plant).await;
    for violation in &violations {
        println!("VIOLATION: {violation}");
    }
    if plant.is_found(&violations) == Some(false) {
        println!("no violation names what was planted");
        ExitCode::from(MISSED)
    } else if violations.is_empty() {
        println!("every promise held");
        ExitCode::SUCCESS
    } else {
        println!(
            "{} violations; again with --minutes {minutes} --seed {seed}",
            violations.len()
        );
        ExitCode::FAILURE
    }
}

async fn soak(length: Duration, seed: u64, plant: &Arc<Plant>) -> Vec<String> {
    let world = Arc::new(World::start(seed).await);
    let node = Arc::new(Node::start(&world, plant).await);
    let load = Arc::new(Load::new(seed, Arc::clone(plant)));
    let faults = Arc::new(Faults::default());

    let began = Instant::now();
    let (no_more_load, no_more_faults) = (CancellationToken::new(), CancellationToken::new());
    let loading = load.run(&node, &world, &no_more_load);
    let faulting: Vec<_> = (0..LANES_OF_FAULTS)
        .map(|lane| {
            let random = seed.wrapping_mul(LANES_OF_FAULTS).wrapping_add(lane);
            let faults = Arc::clone(&faults);
            let (node, world, load) = (Arc::clone(&node), Arc::clone(&world), Arc::clone(&load));
            let until = no_more_faults.clone();
            tokio::spawn(async move { faults.run(random, &node, &world, &load, &until).await })
        })
        .collect();
    while let Some(left) = length.checked_sub(began.elapsed()) {
        tokio::time::sleep(PROGRESS.min(left)).await;
        let (so_far, node) = (load.so_far(), node.so_far());
        println!(
            "{:>4} s: {} faults; {} requests and {} deposits accepted, {} requests settled; \
             {} sessions, {} switches, {} restarts, {} trees",
            began.elapsed().as_secs(),
            faults.total(),
            so_far.requests,
            so_far.deposits,
            so_far.settled,
            world.registrations().await,
            node.switches,
            node.restarts,
            node.trees,
        );
    }
    // A fault that is under way is ended in its own time.
    no_more_faults.cancel();
    let mut violations = Vec::new();
    for lane in faulting {
        if let Err(panic) = lane.await {
            violations.push(format!("the faults themselves: {panic}"));
        }
    }
    world.heal().await;
    no_more_load.cancel();
    violations.extend(verdict::reach(loading, &load, &node, &world).await);
    violations.extend(accidents::noted());
    println!("faults: {}", faults.summary());
    violations
}
