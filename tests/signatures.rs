//! Requests come out signed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use governance_stream::message::Outcome;
use support::{Node, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn requests_complete_and_nothing_is_left() {
    let simulator = support::governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let handles = node.request(&federation, 0..20).await;
    for handle in handles {
        assert_eq!(
            handle.outcome(PATIENCE).await,
            Ok(Outcome::Complete),
            "{}",
            handle.id()
        );
    }
    assert_eq!(
        node.bridge.recorded(40).await.len(),
        40,
        "progress and completion of each"
    );
    let view = support::ledger(&simulator, |view| view.unacknowledged == 0).await;
    assert_eq!(view.requests.len(), 20);
    node.stop().await;
    simulator.assert_clean();
    simulator.shutdown().await;
}
