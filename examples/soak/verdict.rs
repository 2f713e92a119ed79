//! Whether the promises held: what callers and subscribers were told, against governance's ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use governance_stream::{
    Health, LaneStatus, StreamStatus,
    message::{Lane, Outcome},
    simulator::{LedgerView, Simulator},
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    faults::ASKED_FOR,
    load::{Asked, Load, proposal_id},
    node::Node,
    subscribers::{Mood, Told, What},
    world::World,
};

/// How long a node that nothing befalls may take until nothing is left to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// How long the bridge is at each batch while sessions are lost,
const SLOW: Duration = Duration::from_millis(400);
/// and how many of them are.
const CUTS: u32 = 4;

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
        load.ask_afterwards(node, world, 1).await;
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
    until_idle(node, world, &mut found).await;
    println!("idle after {:?}", began.elapsed());
    without_a_death(load, node, world, &mut found).await;

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
    let dead = dead_letters(node, &view, &mut found).await;
    for lane in node.stream().status().lanes {
        let told = bridge.iter().chain(&chain);
        order(&lane, told, &dead, &mut found);
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

/// Sessions are lost while the bridge is slow. Nobody dies, so that nothing is told again: what
/// comes again waits for its turn, or had it.
async fn without_a_death(
    load: &Arc<Load>,
    node: &Arc<Node>,
    world: &World,
    found: &mut Vec<String>,
) {
    let (lives, before) = (node.so_far().lives(), node.bridge.told().len());
    load.plant.nobody_dies();
    node.bridge.mood(Mood::Slow(SLOW));
    let cutting = async {
        for _ in 0..CUTS {
            tokio::time::sleep(SLOW / 3).await;
            world.governance.read().await.cut();
        }
    };
    let both = async { tokio::join!(load.ask_afterwards(node, world, 2), cutting) };
    if timeout(PATIENCE, both).await.is_err() {
        found.push(format!(
            "sessions were lost: no answers within {PATIENCE:?}"
        ));
    }
    node.bridge.mood(Mood::Well);
    until_idle(node, world, found).await;
    // On a machine that is held up for long, some may have been taken for dead.
    if node.so_far().lives() != lives {
        println!("something died by itself: what came twice is not judged");
        return;
    }
    let mut seen = BTreeSet::new();
    for told in node.bridge.told().iter().skip(before) {
        if !seen.insert((told.lane, told.sequence)) {
            found.push(format!("{told} was told again, and nobody had died"));
        }
    }
}

async fn until_idle(node: &Node, world: &World, found: &mut Vec<String>) {
    let began = Instant::now();
    loop {
        let (status, view) = (
            node.stream().status(),
            world.governance.read().await.ledger(),
        );
        if is_idle(&status) && view.unacknowledged == 0 {
            return;
        }
        if began.elapsed() > PATIENCE {
            return found.push(format!("never idle: {status:#?}"));
        }
        tokio::time::sleep(LOOK).await;
    }
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

/// Lane and sequence of what was no message; governance knows of each.
async fn dead_letters(
    node: &Node,
    view: &LedgerView,
    found: &mut Vec<String>,
) -> BTreeSet<(Lane, u64)> {
    let dead: BTreeSet<_> = match node.stream().dead_letters().await {
        Ok(letters) => letters
            .into_iter()
            .map(|(_, l)| (l.lane, l.sequence))
            .collect(),
        Err(error) => {
            found.push(format!("the dead letters: {error}"));
            return BTreeSet::new();
        }
    };
    let (letters, rejects) = (dead.len(), view.rejects.len());
    if letters != rejects {
        found.push(format!("{letters} dead letters, {rejects} at governance"));
    }
    dead
}

/// A lane's messages come in their order; one that comes again says so, and is the same. Whatever
/// is handled was told, or is a dead letter.
fn order<'a>(
    status: &LaneStatus,
    told: impl Iterator<Item = &'a Told>,
    dead: &BTreeSet<(Lane, u64)>,
    found: &mut Vec<String>,
) {
    let lane = status.lane;
    let (mut last, mut seen) = (0, BTreeMap::new());
    for message in told.filter(|told| told.lane == lane) {
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
            None => {
                if sequence < last {
                    found.push(format!("{lane} {sequence} came after {last}"));
                }
                seen.insert(sequence, this);
                last = last.max(sequence);
            }
        }
    }
    for sequence in 1..=status.handled_through.max(last) {
        match (
            seen.contains_key(&sequence),
            dead.contains(&(lane, sequence)),
        ) {
            (false, false) => found.push(format!("{lane} {sequence} never came")),
            (true, true) => found.push(format!("{lane} {sequence} came, and is a dead letter")),
            _ => {}
        }
    }
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
    let told = |told: &[Told], wanted: fn(&What) -> bool| -> BTreeSet<String> {
        let wanted = told.iter().filter(|told| wanted(&told.what));
        wanted.map(|told| told.what.to_string()).collect()
    };
    let deposits = load.deposits();
    let sent = deposits.iter().map(|outpoint| What::Deposit(*outpoint));
    let acknowledged = told(bridge, |what| matches!(what, What::Deposit(_)));
    same("notified", named(sent), "acknowledged", acknowledged, found);
    if view.pegins != deposits.len() {
        let (at_governance, deposits) = (view.pegins, deposits.len());
        found.push(format!(
            "{deposits} deposits, {at_governance} at governance"
        ));
    }
    let proposals = (0..load.proposals()).map(|number| What::Proposal(proposal_id(number)));
    let answered = view.proposal_acks.iter().cloned().map(What::Proposal);
    let (sent, answered) = (named(proposals), once(answered, found));
    let taken = told(chain, |what| matches!(what, What::Proposal(_)));
    same("sent", sent.clone(), "told", taken, found);
    same("sent", sent, "answered", answered, found);

    let updates = (2..=load.version()).map(What::Update);
    let accepted = view
        .federation_acks
        .iter()
        .filter(|(_, accepted, _)| *accepted);
    let accepted = accepted.map(|(version, ..)| What::Update(*version));
    let (sent, accepted) = (named(updates), once(accepted, found));
    let taken = told(chain, |what| matches!(what, What::Update(_)));
    same("sent", sent.clone(), "told", taken, found);
    same("sent", sent, "accepted", accepted, found);
}

fn named(all: impl Iterator<Item = What>) -> BTreeSet<String> {
    all.map(|what| what.to_string()).collect()
}

/// The same; none comes twice.
fn once(all: impl Iterator<Item = What>, found: &mut Vec<String>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for what in all {
        let name = what.to_string();
        if names.contains(&name) {
            found.push(format!("{name} was answered twice"));
        }
        names.insert(name);
    }
    names
}

/// What is in the one set is in the other.
fn same(
    here: &str,
    these: BTreeSet<String>,
    there: &str,
    those: BTreeSet<String>,
    found: &mut Vec<String>,
) {
    let missing = these.difference(&those);
    found.extend(missing.map(|name| format!("{name}: {here}, and not {there}")));
    let more = those.difference(&these);
    found.extend(more.map(|name| format!("{name}: {there}, and not {here}")));
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
