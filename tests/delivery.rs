//! What waits never holds up what is urgent, and what could not be used is not lost.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use bitcoin::{Amount, OutPoint, Txid, hashes::Hash as _};
use governance_stream::{
    message::{EvmAddress, Outcome, PeginNotification},
    proto,
    simulator::{
        Simulator, SimulatorConfig,
        record::{self, What},
    },
};
use support::{Node, PATIENCE, config, governance, recorder::Mood};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_delivered_again_at_an_operators_word() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let first = node.request(&federation, [1]).await.remove(0);
    assert_eq!(first.outcome(PATIENCE).await, Ok(Outcome::Complete));
    let taken = node.bridge.so_far().len();

    // The bridge finds the deposit's answer of no use, as one does that does not know it yet.
    node.bridge.mood(Mood::Rejects);
    simulator.send_garbage(proto::Lane::Signing);
    node.stream
        .notify_pegin(support::deposit(1))
        .await
        .expect("accepted");
    node.until("two letters", |status| status.dead_letters == 2)
        .await;
    let letters = node.stream.dead_letters().await.expect("running");
    let number = |lane: &str| {
        let mut letters = letters
            .iter()
            .filter(|(_, letter)| letter.lane.name() == lane);
        letters.next().expect("there").0
    };
    let (garbage, answer) = (number("signing"), number("pegin"));

    let again = node
        .stream
        .requeue_dead_letter(answer)
        .await
        .expect("running");
    assert_eq!(
        again,
        Err("as the test wants it".to_owned()),
        "the bridge still has no use for it"
    );
    let again = node
        .stream
        .requeue_dead_letter(garbage)
        .await
        .expect("running");
    assert!(again.expect_err("garbage").contains("payload"));
    assert_eq!(node.stream.status().dead_letters, 2, "they remain");

    node.bridge.mood(Mood::Well);
    assert_eq!(node.stream.requeue_dead_letter(answer).await, Ok(Ok(())));
    let delivered = node.bridge.recorded(taken + 1).await;
    assert!(delivered[taken].redelivered, "under its old identity");
    assert_eq!(node.stream.discard_dead_letter(garbage).await, Ok(true));
    assert_eq!(node.stream.discard_dead_letter(garbage).await, Ok(false));
    node.until("no letter is left", |status| status.dead_letters == 0)
        .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_deposits_do_not_hold_up_a_signature_request() {
    const DEPOSITS: u64 = 100_000;
    /// What a lane may have in flight, and what one frame holds.
    const IN_FLIGHT: usize = 1024;
    let directory = tempfile::tempdir().expect("a directory");
    let mut simulator = Simulator::start(SimulatorConfig {
        directory: Some(directory.path().to_owned()),
        ..SimulatorConfig::default()
    })
    .await
    .expect("starts");
    let federation = simulator.federation(1).expect("the first");
    simulator.stop_endpoint(0).await;
    let mut config = config(&simulator.endpoints());
    config.buffer.lane_messages = DEPOSITS;
    let node = Node::with(config).await;
    let submit = |from: u64| {
        let stream = node.stream.clone();
        async move {
            for number in (from..DEPOSITS).step_by(64) {
                let txid = Txid::hash(&number.to_le_bytes());
                let address = EvmAddress::from_bytes([7; 20]);
                let amount = Amount::from_sat(1000);
                let deposit = PeginNotification::new(OutPoint::new(txid, 0), amount, address);
                stream
                    .notify_pegin(deposit.expect("valid"))
                    .await
                    .expect("accepted");
            }
        }
    };
    let callers: Vec<_> = (0..64).map(|from| tokio::spawn(submit(from))).collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    simulator.start_endpoint(0).await.expect("its port is free");
    support::ledger(&simulator, |view| view.pegins > 2000).await;
    let asked_at = simulator.ledger().pegins;
    let handle = node.request(&federation, [1]).await.remove(0);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    let done_at = simulator.ledger().pegins;
    assert!(
        (done_at as u64) < DEPOSITS,
        "the replay is still going on: {done_at}"
    );

    let facts = record::read(directory.path()).expect("readable");
    let arrived = facts.iter().filter_map(|fact| match &fact.what {
        Some(What::Arrived(message)) => Some(message.lane()),
        _ => None,
    });
    let before = arrived
        .take_while(|lane| *lane != proto::Lane::Signing)
        .count();
    assert!(
        before <= asked_at + 2 * IN_FLIGHT,
        "asked after {asked_at} deposits, it came after {before}: more than was in flight"
    );
    node.stop().await;
    simulator.assert_clean();
}
