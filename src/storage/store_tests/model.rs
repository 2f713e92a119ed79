//! Any history of users, batches and faults: what is durable of one user and generation is a
//! prefix of what it handed in, each batch whole, and what was confirmed is among it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::{super::*, support::*};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    /// A user registers, in the place of one of the same name.
    Register(usize),
    /// It hands in a batch in the generation that it knows.
    Commit(usize),
    /// It goes.
    Drop(usize),
    /// It waits until everything that it handed in is confirmed or void.
    Settle(usize),
    FailCommit(Kept),
    Hang,
    Release,
    RefuseOpens,
    AllowOpens,
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0..NAMES.len();
    prop_oneof![
        3 => user.clone().prop_map(Step::Register),
        12 => user.clone().prop_map(Step::Commit),
        1 => user.clone().prop_map(Step::Drop),
        4 => user.prop_map(Step::Settle),
        2 => prop_oneof![Just(Kept::Nothing), Just(Kept::All)].prop_map(Step::FailCommit),
        2 => Just(Step::Hang),
        3 => Just(Step::Release),
        1 => Just(Step::RefuseOpens),
        2 => Just(Step::AllowOpens),
    ]
}

/// What one registration was told, and what it handed in, by generation.
#[derive(Debug, Default)]
struct Seen {
    opened: Vec<Generation>,
    is_open: bool,
    replaced: bool,
    /// The last ticket that was confirmed of each generation.
    confirmed: BTreeMap<Generation, Ticket>,
    wrong: Option<String>,
}

impl Seen {
    fn told(&mut self, event: &StoreEvent) {
        let last = self.opened.last().copied();
        let right = match event {
            StoreEvent::Opened(generation) => {
                let later = last.is_none_or(|last| *generation > last);
                let right = !self.is_open && later;
                self.opened.push(*generation);
                self.is_open = true;
                right
            }
            StoreEvent::Committed(generation, ticket) => {
                let before = self.confirmed.insert(*generation, *ticket);
                let grows = before.is_none_or(|before| before < *ticket);
                self.is_open && last == Some(*generation) && grows
            }
            StoreEvent::Failed(generation, _) => {
                let right = self.is_open && last == Some(*generation);
                self.is_open = false;
                right
            }
            // It may come in between: it is told by whoever registers.
            StoreEvent::Replaced => !std::mem::replace(&mut self.replaced, true),
        };
        if !right {
            self.wrong = Some(format!("{event:?}"));
        }
    }
}

struct Registration {
    name: &'static str,
    user: Option<User>,
    seen: Arc<Mutex<Seen>>,
    /// Tickets and keys, in order.
    handed_in: Vec<(Generation, Ticket, String)>,
}

fn play(steps: &[Step]) {
    let (faulty, store) = faulty_store();
    let mut all: Vec<Registration> = Vec::new();
    let mut live: BTreeMap<usize, usize> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Register(user) => {
                let seen = Arc::new(Mutex::new(Seen::default()));
                let told = Arc::clone(&seen);
                let tell = move |event| told.lock().expect("whole").told(&event);
                live.insert(*user, all.len());
                all.push(Registration {
                    name: NAMES[*user],
                    user: Some(store.register(NAMES[*user], tell)),
                    seen,
                    handed_in: Vec::new(),
                });
            }
            Step::Commit(user) => {
                let Some(number) = live.get(user).copied() else {
                    continue;
                };
                let one = &mut all[number];
                let Some(generation) = one.seen.lock().expect("whole").opened.last().copied()
                else {
                    continue;
                };
                let key = format!("{number:04}-{:04}", one.handed_in.len());
                let mut batch = Batch::new();
                for part in ["", "'"] {
                    batch.put(table(one.name), format!("{key}{part}"), *b"value");
                }
                let user = one.user.as_ref().expect("it lives");
                let ticket = user.commit(generation, batch).expect("taken");
                one.handed_in.push((generation, ticket, key));
            }
            Step::Drop(user) => {
                if let Some(number) = live.remove(user) {
                    all[number].user = None;
                }
            }
            Step::Settle(user) => {
                faulty.release(Hang::Commits);
                faulty.fail_opens(None);
                if let Some(number) = live.get(user) {
                    let user = all[*number].user.as_ref().expect("it lives");
                    eventually("it is settled", || user.waiting_for().is_zero());
                }
            }
            Step::FailCommit(kept) => faulty.fail_commit(1, *kept),
            Step::Hang => faulty.hang(Hang::Commits),
            Step::Release => faulty.release(Hang::Commits),
            Step::RefuseOpens => faulty.fail_opens(Some(FaultyEngine::full())),
            Step::AllowOpens => faulty.fail_opens(None),
        }
    }
    faulty.release(Hang::Commits);
    faulty.fail_opens(None);
    settle(&store);
    judge(&store, &all);
}

/// Has a user that comes last settle.
fn settle(store: &Store) {
    let d = register(store, "d");
    loop {
        let StoreEvent::Opened(generation) = d.next() else {
            continue;
        };
        let ticket = d.put(generation, "done");
        if d.next() == StoreEvent::Committed(generation, ticket) {
            return;
        }
    }
}

fn judge(store: &Store, all: &[Registration]) {
    let durable: BTreeMap<_, _> = NAMES.map(|name| (name, keys(store, name))).into();
    for one in all {
        let seen = one.seen.lock().expect("whole");
        assert_eq!(seen.wrong, None, "{seen:?}");
        for generation in &seen.opened {
            let handed_in = one.handed_in.iter();
            let handed_in = handed_in.filter(|(of, ..)| of == generation);
            let there: Vec<(bool, Ticket)> = handed_in
                .map(|(_, ticket, key)| {
                    let rows = &durable[one.name];
                    let halves = [key.clone(), format!("{key}'")].map(|key| rows.contains(&key));
                    assert_eq!(halves[0], halves[1], "{key} is there by half");
                    (halves[0], *ticket)
                })
                .collect();
            assert!(
                there.is_sorted_by(|one, next| one.0 >= next.0),
                "of {} no prefix is there: {there:?}",
                one.name
            );
            if let Some(confirmed) = seen.confirmed.get(generation) {
                let lost = there.iter().find(|(is, ticket)| !is && ticket <= confirmed);
                assert_eq!(lost, None, "{} was confirmed", one.name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_durable_is_a_prefix_of_what_was_handed_in(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        play(&steps);
    }
}
