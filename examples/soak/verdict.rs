//! Whether the promises held: what callers and subscribers were told, against governance's ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use governance_stream::{
    Health, StreamStatus,
    message::{Lane, Outcome},
    simulator::{LedgerView, Simulator},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    faults::ASKED_FOR,
    load::{Asked, Load},
    node::Node,
    subscribers::{Told, What},
    world::World,
};

/// How long a node that nothing befalls may take until nothing is left to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until everything is done, stops the node and judges. `loading` ends by itself.
pub(crate) async fn reach(
    mut loading: JoinSet<()>,
    load: &Arc<Load>,
    node: &Arc<Node>,
    world: &World,
) -> Vec<String> {
    let mut found = Vec::new();
    let began = Instant::now();
    let answered = async {
        while let Some(part) = loading.join_next().await {
            part.expect("the load goes on");
        }
        // Takes up what governance was told to do with requests that had not come yet.
        load.ask_afterwards(node, world).await;
    };
    let giving_up = async {
        loop {
            tokio::time::sleep(LOOK * 10).await;
            load.cancel_unanswered(node, world).await;
        }
    };
    let answered = async {
        tokio::select! {
            () = answered => {}
            () = giving_up => {}
        }
    };
    if timeout(PATIENCE, answered).await.is_err() {
        found.push(format!("not everything was answered within {PATIENCE:?}"));
    }
    loop {
        let (status, view) = (
            node.stream().status(),
            world.governance.read().await.ledger(),
        );
        if is_idle(&status) && view.unacknowledged == 0 {
            break;
        }
        if began.elapsed() > 2 * PATIENCE {
            found.push(format!("never idle: {status:#?}"));
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    println!("idle after {:?}", began.elapsed());

    let asked = load.asked();
    let governance = world.governance.read().await;
    let view = governance.ledger();
    for (id, asked) in &asked {
        let again = load.look_again(node, id).await;
        if asked.outcome != again {
            let first = &asked.outcome;
            found.push(format!("{id}: {first:?} at first, and now {again:?}"));
        }
    }
    found.extend(load.unexpected());
    requests(&asked, &view, &mut found);
    let (bridge, chain) = (node.bridge.told(), node.chain.told());
    let mut missing = 0;
    for lane in Lane::ALL {
        let of_the_lane = |told: &&Told| told.lane == lane;
        let told = bridge.iter().chain(&chain).filter(of_the_lane);
        missing += order(lane, told, &mut found);
    }
    // A last one may be missing without leaving a gap.
    if missing > view.rejects.len() as u64 {
        let rejects = view.rejects.len();
        found.push(format!(
            "{missing} messages never came, {rejects} were rejected"
        ));
    }
    settled_once(&asked, &bridge, &mut found);
    answers(load, &view, &bridge, &chain, &mut found);
    clean(&governance, &view, &mut found);
    drop(governance);
    if let Err(fault) = node.stop().await {
        found.push(fault);
    }
    let outcomes = asked.values().fold(BTreeMap::new(), |mut counts, asked| {
        let name = asked.outcome.as_ref().map_or("none", Outcome::name);
        *counts.entry(name).or_insert(0) += 1;
        counts
    });
    println!(
        "{} requests ({outcomes:?}), {} deposits, {} proposals, federation version {}; told: {} to \
         the bridge, {} to the chain; {} sessions, {:?}",
        asked.len(),
        load.deposits().len(),
        load.proposals(),
        load.version(),
        bridge.len(),
        chain.len(),
        view.registrations,
        node.so_far(),
    );
    found
}

fn is_idle(status: &StreamStatus) -> bool {
    status.health == Health::Healthy
        && status.open_requests == 0
        && status.lanes.iter().all(|lane| lane.unacknowledged == 0)
}

/// Each was accepted, came to governance once unless it was withdrawn, and ended for a reason.
fn requests(asked: &BTreeMap<String, Asked>, view: &LedgerView, found: &mut Vec<String>) {
    let known: BTreeMap<&str, _> = view
        .requests
        .iter()
        .map(|request| (request.request_id.as_str(), request.settled))
        .collect();
    for id in known.keys().filter(|id| !asked.contains_key(**id)) {
        found.push(format!("{id}: governance has it, nobody asked for it"));
    }
    for (id, asked) in asked {
        let settled = known.get(id.as_str()).copied().flatten();
        let fits = match &asked.outcome {
            None => false,
            Some(Outcome::Complete) => {
                settled == Some(governance_stream::proto::SignatureStatus::Complete)
            }
            Some(Outcome::Failed { reason, .. }) => {
                reason.contains(ASKED_FOR) || reason.contains("governance timed out")
            }
            Some(Outcome::Cancelled { .. }) => asked.cancelled,
            // Of what was never sent, governance has no record; of its cancel it may have one.
            Some(Outcome::ExpiredUnsent) => asked.cancelled && !known.contains_key(id.as_str()),
            Some(Outcome::Rejected { .. }) => false,
        };
        if !fits || !asked.accepted {
            found.push(format!("{id}: {asked:?}, at governance {settled:?}"));
        }
    }
}

/// A lane's messages come in their order; one that comes again says so, and is the same. How many
/// never came: what was no message is a dead letter instead.
fn order<'a>(lane: Lane, told: impl Iterator<Item = &'a Told>, found: &mut Vec<String>) -> u64 {
    let (mut last, mut seen) = (0, BTreeMap::new());
    for message in told {
        let sequence = message.sequence;
        let this = (message.message_id, &message.what);
        match seen.get(&sequence) {
            Some(before) if *before != this => {
                found.push(format!("{lane} {sequence} came again as another message"));
            }
            Some(_) if !message.redelivered => {
                found.push(format!("{lane} {sequence} came again unmarked"));
            }
            Some(_) => {}
            None if sequence < last => {
                found.push(format!("{lane} {sequence} came after {last}"));
            }
            None => {
                seen.insert(sequence, this);
                last = sequence;
            }
        }
    }
    last - seen.len() as u64
}

/// What the bridge was told of a request's end is what its caller was told.
fn settled_once(asked: &BTreeMap<String, Asked>, bridge: &[Told], found: &mut Vec<String>) {
    let mut settled: BTreeMap<&str, &Outcome> = BTreeMap::new();
    for told in bridge {
        if let What::Settled(id, outcome) = &told.what {
            let first = settled.entry(id).or_insert(outcome);
            if *first != outcome {
                found.push(format!("{id}: {first} to the bridge, and then {outcome}"));
            }
        }
    }
    for (id, asked) in asked {
        let Some(outcome) = &asked.outcome else {
            continue;
        };
        match settled.get(id.as_str()) {
            Some(told) if *told == outcome => {}
            None if *outcome == Outcome::ExpiredUnsent => {}
            told => found.push(format!(
                "{id}: {outcome} to its caller, {told:?} to the bridge"
            )),
        }
    }
}

/// Deposits, updates and proposals were each taken and answered.
fn answers(
    load: &Load,
    view: &LedgerView,
    bridge: &[Told],
    chain: &[Told],
    found: &mut Vec<String>,
) {
    let deposits: BTreeSet<_> = load.deposits().into_iter().collect();
    let acknowledged: BTreeSet<_> = bridge
        .iter()
        .filter_map(|told| match told.what {
            What::Deposit(outpoint) => Some(outpoint),
            _ => None,
        })
        .collect();
    if deposits != acknowledged || view.pegins != deposits.len() {
        found.push(format!(
            "{} deposits, {} at governance, {} acknowledged to the bridge",
            deposits.len(),
            view.pegins,
            acknowledged.len()
        ));
    }
    let updates = u64::from(load.version()) - 1;
    let told = |wanted: fn(&What) -> bool| {
        let distinct: BTreeSet<_> = chain
            .iter()
            .filter(|told| wanted(&told.what))
            .map(|told| told.sequence)
            .collect();
        distinct.len() as u64
    };
    for (what, sent, told, answered) in [
        (
            "proposals",
            load.proposals(),
            told(|what| matches!(what, What::Proposal(_))),
            view.proposal_acks.len(),
        ),
        (
            "updates",
            updates,
            told(|what| matches!(what, What::Update(_))),
            view.federation_acks.len(),
        ),
    ] {
        if sent != told || sent != answered as u64 {
            found.push(format!(
                "{sent} {what} were sent, {told} told to the chain, {answered} answered"
            ));
        }
    }
}

/// Governance saw nothing that the protocol does not allow.
fn clean(governance: &Simulator, view: &LedgerView, found: &mut Vec<String>) {
    if view.duplicates != 0 {
        found.push(format!("{} duplicates", view.duplicates));
    }
    let clean = std::panic::catch_unwind(AssertUnwindSafe(|| governance.assert_clean()));
    if clean.is_err() {
        found.push(format!(
            "governance complains, above: {:#?}",
            view.violations
        ));
    }
}
