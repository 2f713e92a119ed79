//! Look-ups, commits and departures in every order that matters.

use std::sync::mpsc;

use bitcoin::{Amount, Network};
use ractor::concurrency::{OneshotReceiver, oneshot};
use tracing::Span;

use super::*;
use crate::{
    bridge::{
        life::{LifeEvent, PegoutStage},
        message::PegoutRefusal,
        tables,
        unit::Effect,
    },
    chain::{Federation, FederationStanding},
    config::FirstFederation,
    message::{FederationMember, SignatureRequest, SignatureRequestParts, TransactionType},
    simulator::{FederationView, wallet, wallet::Signers},
    storage::{Store, StoreEvent},
};

fn federations(view: &FederationView) -> Federations {
    let members = view
        .members
        .iter()
        .map(|(id, public_key)| FederationMember {
            id: id.parse().expect("valid"),
            public_key: *public_key,
            active: true,
        });
    let first = FirstFederation {
        threshold: 2,
        members: members.collect(),
    };
    let chain = "alys-regtest".parse().expect("valid");
    let first = Federation::first(&first, Network::Regtest, &chain).expect("a federation");
    vec![(first, FederationStanding::Active)]
}

/// Peg-outs of one coin, which is said to hold so much more than it does.
fn request(view: &FederationView, id: &str, more: u64) -> SignatureRequest {
    let amount = Amount::from_sat(50_000);
    let mut psbt = wallet::pegout_psbt(view, 1, 1, amount).expect("covered");
    let input = psbt.inputs[0].witness_utxo.as_mut().expect("set");
    input.value += Amount::from_sat(more);
    SignatureRequest::new(SignatureRequestParts {
        request_id: id.parse().expect("valid"),
        psbt,
        input_indices: vec![0],
        tx_type: TransactionType::Pegout,
        chain: "alys-regtest".parse().expect("valid"),
        network: Network::Regtest,
        federation_version: 1,
        burns: vec![wallet::burn(1, amount)],
        max_fee: wallet::FEE + Amount::from_sat(more),
        replaces: None,
    })
    .expect("valid")
}

/// A bridge without an actor: each step is the test's.
struct Desk {
    user: User,
    told: mpsc::Receiver<StoreEvent>,
    ready: Ready,
    view: FederationView,
    federations: Federations,
    metrics: Metrics,
}

type Verdict = OneshotReceiver<Result<(), PegoutRefusal>>;

impl Desk {
    fn open(store: &Store) -> Self {
        let (tell, told) = mpsc::channel();
        let user = store.register(tables::USER, move |event| {
            let _ = tell.send(event);
        });
        let Ok(StoreEvent::Opened(generation)) = told.recv() else {
            panic!("it is open");
        };
        let (tell, loaded) = mpsc::channel();
        user.scan(
            generation,
            |snapshot| tables::load(snapshot, true),
            move |loaded| drop(tell.send(loaded)),
        );
        let loaded = loaded.recv().expect("answered").expect("read");
        let view = Signers::new(7, 3, 2).expect("exists").view();
        Self {
            user,
            told,
            ready: Ready::new(generation, loaded, store.hash_key(), true),
            federations: federations(&view),
            view,
            metrics: Metrics::default(),
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Ready, &Around<'_>) -> T) -> T {
        let around = Around {
            federations: &self.federations,
            now: SystemTime::UNIX_EPOCH,
            metrics: &self.metrics,
        };
        act(&mut self.ready, &around)
    }

    fn begin(&mut self, id: &str, more: u64) -> Verdict {
        let (reply, verdict) = oneshot();
        let begin = Input::Begin {
            request: Box::new(request(&self.view, id, more)),
            span: Span::none(),
            reply: reply.into(),
        };
        self.with(|ready, around| ready.take(begin, around))
            .expect("possible");
        verdict
    }

    /// What the next look-up finds now; it is answered later.
    fn look_up(&mut self) -> (LookUp, Result<Found, StoreError>) {
        let (look_up, hash, wanted) = self.ready.ask().expect("something waits");
        let (tell, found) = mpsc::channel();
        self.user.look_up(
            self.ready.generation,
            move |snapshot| tables::look_up(snapshot, hash, &wanted),
            move |answer| drop(tell.send(answer)),
        );
        (look_up, found.recv().expect("answered"))
    }

    fn answer(&mut self, (look_up, found): (LookUp, Result<Found, StoreError>)) {
        self.with(|ready, around| ready.looked_up(look_up, found, around))
            .expect("possible");
    }

    fn step(&mut self, id: &str, event: LifeEvent) {
        let id = id.parse().expect("valid");
        let mut unit = Unit::default();
        let nothing = Found::default();
        self.with(|ready, around| ready.decider(&nothing, around).step(&mut unit, &id, event))
            .expect("possible");
        self.ready.gather(unit);
    }

    /// Commits what there is, and sends the replies.
    fn commit(&mut self) {
        loop {
            let confirmed = match self.ready.hand_in(&self.user).expect("taken") {
                Some(confirmed) => confirmed,
                None if self.ready.in_flight.is_none() => return,
                None => {
                    let Ok(StoreEvent::Committed(_, ticket)) = self.told.recv() else {
                        panic!("it does not fail");
                    };
                    self.ready.committed(ticket).expect("its own")
                }
            };
            for effect in confirmed.effects {
                if let Effect::Reply(reply) = effect {
                    reply.send();
                }
            }
        }
    }
}

fn failed() -> LifeEvent {
    LifeEvent::NotAccepted("full".to_owned())
}

#[test]
fn what_has_ended_stays_until_the_look_up_that_could_not_see_it_is_answered() {
    let store = Store::in_memory();
    let mut desk = Desk::open(&store);
    let mut first = desk.begin("first", 0);
    let found = desk.look_up();
    desk.answer(found);
    assert!(first.try_recv().is_err(), "it is not durable");
    // The second one's look-up sees nothing of the first.
    let mut second = desk.begin("second", 1);
    let blind = desk.look_up();
    let nothing = |found: &Found| found.told.is_empty() && found.pegouts.is_empty();
    assert!(nothing(blind.1.as_ref().expect("read")));
    desk.commit();
    assert_eq!(first.try_recv(), Ok(Ok(())));
    desk.step("first", failed());
    desk.commit();
    assert_eq!(desk.ready.let_go(), [], "someone still relies on it");
    desk.answer(blind);
    desk.commit();
    let verdict = second.try_recv().expect("answered");
    assert!(
        matches!(&verdict, Err(PegoutRefusal::CoinTold { by, .. }) if by.as_str() == "first"),
        "{verdict:?}"
    );
    assert_eq!(desk.ready.let_go(), ["first".parse().expect("valid")]);
    assert_eq!(desk.ready.memory.pegouts().count(), 0);
    // From now on the store says the same.
    let mut third = desk.begin("third", 1);
    let found = desk.look_up();
    desk.answer(found);
    desk.commit();
    assert_eq!(third.try_recv(), Ok(verdict));
}

#[test]
fn one_that_leaves_while_it_is_asked_for_is_looked_up_and_not_begun_anew() {
    let store = Store::in_memory();
    let mut desk = Desk::open(&store);
    let _begun = desk.begin("first", 0);
    let found = desk.look_up();
    desk.answer(found);
    desk.commit();
    // This one's look-up keeps the first in memory, and the same again waits behind it.
    let _other = desk.begin("other", 0);
    let found = desk.look_up();
    desk.step("first", failed());
    desk.commit();
    let mut same = desk.begin("first", 0);
    let mut changed = desk.begin("first", 1);
    desk.answer(found);
    let found = desk.look_up();
    assert!(!desk.ready.memory.has(&"first".parse().expect("valid")));
    desk.answer(found);
    desk.commit();
    assert_eq!(same.try_recv(), Ok(Ok(())));
    let conflict = PegoutRefusal::Conflict("first".parse().expect("valid"));
    assert_eq!(changed.try_recv(), Ok(Err(conflict)));
    let (tell, rows) = mpsc::channel();
    desk.user.scan(
        desk.ready.generation,
        |snapshot| tables::newest_pegouts(snapshot, None, 10),
        move |rows| drop(tell.send(rows)),
    );
    let rows = rows.recv().expect("answered").expect("read");
    let ids: Vec<&str> = rows
        .iter()
        .map(|row| row.pegout.request_id().as_str())
        .collect();
    assert_eq!(ids, ["other", "first"]);
}

#[test]
fn one_that_is_taken_up_again_before_it_could_leave_stays() {
    let store = Store::in_memory();
    let mut desk = Desk::open(&store);
    let _begun = desk.begin("first", 0);
    let found = desk.look_up();
    desk.answer(found);
    desk.commit();
    let _waits = desk.begin("other", 0);
    let found = desk.look_up();
    desk.step("first", failed());
    desk.commit();
    // Late signatures have come for it.
    desk.step("first", LifeEvent::Signed);
    desk.commit();
    desk.answer(found);
    desk.commit();
    assert_eq!(desk.ready.let_go(), []);
    let first = desk.ready.memory.get(&"first".parse().expect("valid"));
    assert_eq!(first.expect("stays").pegout.stage(), &PegoutStage::Signed);
    // And the next process finds it among what is open.
    drop(desk);
    let desk = Desk::open(&store);
    let mut ids = desk.ready.memory.pegouts().map(|p| p.request_id().as_str());
    assert!(ids.any(|id| id == "first"));
}

#[test]
fn requests_beyond_what_may_wait_are_refused() {
    let store = Store::in_memory();
    let mut desk = Desk::open(&store);
    let waiting: Vec<Verdict> = (0..MOST_WAITING)
        .map(|number| desk.begin(&format!("pegout-{number}"), 0))
        .collect();
    let mut refused = desk.begin("one-more", 0);
    let refusal = refused.try_recv().expect("at once");
    assert!(matches!(refusal, Err(PegoutRefusal::AskAgain(_))));
    let found = desk.look_up();
    desk.answer(found);
    desk.commit();
    for mut verdict in waiting {
        assert_eq!(verdict.try_recv(), Ok(Ok(())));
    }
}

#[test]
fn what_is_not_durable_when_the_store_fails_is_told_to_nobody() {
    let store = Store::in_memory();
    let mut desk = Desk::open(&store);
    let mut gathered = desk.begin("first", 0);
    let found = desk.look_up();
    desk.answer(found);
    assert!(desk.ready.hand_in(&desk.user).expect("taken").is_none());
    let mut again = desk.begin("first", 0);
    let mut waits = desk.begin("second", 0);
    desk.ready.give_up(&AskAgain::new("the disk is full"));
    for verdict in [&mut gathered, &mut again, &mut waits] {
        let refusal = verdict.try_recv().expect("told");
        assert!(matches!(refusal, Err(PegoutRefusal::AskAgain(_))));
    }
}
