//! A request has one identity and exactly one outcome.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::time::Duration;

use governance_stream::storage::Store;
use governance_stream::{
    BridgeEvent, GovernanceStream, RequestStanding, Retry, StreamArguments, StreamError,
    message::{FailureCode, Outcome, Progress, SignatureRequest, SignatureStatus},
    proto,
    simulator::Behaviour,
};
use support::{Node, PATIENCE, config, deposit, governance, pegout, pegout_parts, request_id};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_again_is_the_same_and_another_one_is_a_conflict() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    for _ in 0..3 {
        let handle = node.request(&federation, [1]).await.remove(0);
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    let mut parts = pegout_parts(&federation, 2);
    parts.request_id = request_id(1);
    let other = SignatureRequest::new(parts).expect("valid");
    let refused = node
        .stream
        .request_signatures(other)
        .await
        .expect_err("a conflict");
    assert_eq!(
        refused,
        StreamError::Conflict {
            request_id: request_id(1)
        }
    );
    assert_eq!(refused.retry(), Retry::Never);
    assert_eq!(simulator.ledger().requests.len(), 1);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_that_governance_gives_is_the_outcome() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let failed = |code| Outcome::Failed {
        code: Some(code),
        reason: "why".to_owned(),
    };
    let cases = [
        (
            Behaviour::Fail(proto::FailureCode::Policy, "why".to_owned()),
            failed(FailureCode::Policy),
        ),
        (
            Behaviour::Fail(proto::FailureCode::InvalidRequest, "why".to_owned()),
            Outcome::Rejected {
                reason: "why".to_owned(),
            },
        ),
        (
            Behaviour::Timeout,
            Outcome::Failed {
                code: None,
                reason: "governance timed out: ".to_owned(),
            },
        ),
        (Behaviour::Duplicate, Outcome::Complete),
        (Behaviour::OneBadSignature, Outcome::Complete),
    ];
    for (number, (behaviour, outcome)) in (0..).zip(cases) {
        simulator.answer_next(behaviour.clone());
        let handle = node.request(&federation, [number]).await.remove(0);
        assert_eq!(handle.outcome(PATIENCE).await, Ok(outcome), "{behaviour:?}");
    }
    // Each went to the bridge all the same.
    node.bridge.recorded(6).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_cannot_be_used_parks_its_request_for_an_operator() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.answer_next(Behaviour::Malformed);
    let handles = node.request(&federation, [1, 2]).await;
    let parked = handles[0].outcome(PATIENCE).await.expect_err("parked");
    assert!(
        matches!(parked, StreamError::NeedsOperator { .. }),
        "{parked}"
    );
    assert_eq!(parked.retry(), Retry::Operator);
    assert_eq!(handles[1].outcome(PATIENCE).await, Ok(Outcome::Complete));
    let view = support::ledger(&simulator, |view| view.rejects.len() == 1).await;
    assert!(view.rejects[0].contains("status"), "{:?}", view.rejects);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_can_be_awaited_and_a_cancel_ends_it() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.answer_next(Behaviour::Partial);
    let handle = node.request(&federation, [1]).await.remove(0);
    let progress = handle
        .progress_beyond(Progress::default(), PATIENCE)
        .await
        .expect("open");
    let RequestStanding::Open(progress) = progress else {
        panic!("{progress:?}")
    };
    assert_eq!(progress.signers, Some((1, 2)));
    let soon = handle.outcome(Duration::from_millis(20)).await;
    assert!(
        matches!(soon, Err(StreamError::DeadlineExceeded { .. })),
        "still open: {soon:?}"
    );
    node.stream.cancel(request_id(1)).await.expect("known");
    node.stream
        .cancel(request_id(1))
        .await
        .expect("again is the same");
    let released = Outcome::Cancelled {
        signatures_released: true,
    };
    assert_eq!(handle.outcome(PATIENCE).await, Ok(released));
    let unknown = node.stream.cancel(request_id(77)).await;
    assert_eq!(
        unknown,
        Err(StreamError::UnknownRequest {
            request_id: request_id(77)
        })
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn past_its_deadline_a_request_is_cancelled_and_stays_open_until_governance_answers() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.hold_responses();
    let handle = node
        .stream
        .request_signatures_within(pegout(&federation, 1), Duration::from_millis(50))
        .await
        .expect("accepted");
    let passed = handle
        .progress_beyond(Progress::default(), PATIENCE)
        .await
        .expect("open");
    let RequestStanding::Open(progress) = passed else {
        panic!("{passed:?}")
    };
    assert!(progress.deadline_passed);
    // It was signed before the cancel came: what governance answers counts, and it is late.
    simulator.release_responses();
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    let events = node.bridge.recorded(2).await;
    let late =
        |event: &BridgeEvent| matches!(event, BridgeEvent::SignatureResponse { late: true, .. });
    assert!(
        events.iter().all(|message| late(&message.event)),
        "{events:?}"
    );
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_sent_is_withdrawn_without_governance() {
    let mut simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    // It has met governance, and knows that its store is no older copy.
    node.until("connected", |status| status.is_connected())
        .await;
    simulator.stop_endpoint(0).await;
    node.until("alone", |status| !status.is_connected()).await;
    let handles = node.request(&federation, [1, 2]).await;
    node.stream.cancel(request_id(1)).await.expect("known");
    assert_eq!(
        handles[0].outcome(PATIENCE).await,
        Ok(Outcome::ExpiredUnsent)
    );
    let expiring = node
        .stream
        .request_signatures_within(pegout(&federation, 3), Duration::from_millis(20))
        .await
        .expect("accepted");
    assert_eq!(expiring.outcome(PATIENCE).await, Ok(Outcome::ExpiredUnsent));
    simulator
        .start_endpoint(0)
        .await
        .expect("its address is free");
    assert_eq!(handles[1].outcome(PATIENCE).await, Ok(Outcome::Complete));
    let view = support::ledger(&simulator, |view| view.withdrawn == 2).await;
    assert_eq!(view.requests.len(), 1, "governance never saw the others");
    node.stop().await;
    simulator.assert_clean();
}

/// A store that has not met governance may be an older copy, and cannot know what was sent after it.
#[tokio::test(flavor = "multi_thread")]
async fn before_governance_was_met_a_deadline_is_told_and_the_request_stays_open() {
    let mut simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let config = config(&simulator.endpoints());
    simulator.stop_endpoint(0).await;
    let node = Node::with(config).await;
    node.request(&federation, [1]).await;
    let late = node
        .stream
        .request_signatures_within(pegout(&federation, 2), Duration::from_millis(20))
        .await
        .expect("accepted");
    let passed = late.progress_beyond(Progress::default(), PATIENCE).await;
    let Ok(RequestStanding::Open(progress)) = passed else {
        panic!("{passed:?}");
    };
    assert!(progress.deadline_passed);
    node.stream.cancel(request_id(1)).await.expect("known");
    let given_up = node.stream.request(request_id(1)).standing().await;
    assert!(
        matches!(given_up, Ok(RequestStanding::Open(_))),
        "{given_up:?}"
    );
    simulator
        .start_endpoint(0)
        .await
        .expect("its address is free");
    for number in [1, 2] {
        let handle = node.stream.request(request_id(number));
        let ended = handle.outcome(PATIENCE).await;
        assert_eq!(ended, Ok(Outcome::ExpiredUnsent), "{number}");
    }
    let view = support::ledger(&simulator, |view| view.withdrawn == 2).await;
    assert!(view.requests.is_empty(), "governance never saw them");
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_lane_says_so_at_once_and_accepts_again_when_it_has_room() {
    let mut simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let mut config = config(&simulator.endpoints());
    config.buffer.lane_messages = 10;
    simulator.stop_endpoint(0).await;
    let node = Node::with(config).await;
    let mut accepted = 0;
    let full = loop {
        match node
            .stream
            .request_signatures(pegout(&federation, accepted))
            .await
        {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            full,
            StreamError::BufferFull {
                unit: "messages",
                ..
            }
        ),
        "{full}"
    );
    assert!(matches!(full.retry(), Retry::After(_)));
    assert!((1..=10).contains(&accepted), "{accepted}");
    // Another lane has its own room, and a cancel was reserved with its request.
    node.stream
        .notify_pegin(deposit(1))
        .await
        .expect("another lane");
    node.stream
        .cancel(request_id(0))
        .await
        .expect("never refused");
    simulator
        .start_endpoint(0)
        .await
        .expect("its address is free");
    for number in 1..accepted {
        let handle = node.stream.request(request_id(number));
        assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    }
    support::accepted(&node.stream, pegout(&federation, accepted)).await;
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_is_notified_once_and_its_answer_comes_to_the_bridge() {
    let simulator = governance().await;
    let node = Node::start(&simulator).await;
    for _ in 0..3 {
        node.stream
            .notify_pegin(deposit(1))
            .await
            .expect("accepted");
    }
    node.stream
        .notify_pegin(deposit(2))
        .await
        .expect("another output of the same transaction");
    let events = node.bridge.recorded(2).await;
    let answered: Vec<_> = events
        .iter()
        .map(|message| match &message.event {
            BridgeEvent::PeginAck(ack) => ack.outpoint.vout,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(answered, [1, 2]);
    assert_eq!(simulator.ledger().pegins, 2);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_shutdown_began_nothing_more_is_accepted() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    simulator.hold_responses();
    node.request(&federation, [1]).await;
    let stopping = tokio::spawn({
        let stream = node.stream.clone();
        async move { stream.shutdown().await }
    });
    let refused = loop {
        match node.stream.request_signatures(pegout(&federation, 2)).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    let expected = matches!(
        refused,
        StreamError::ShuttingDown | StreamError::NotRunning { .. }
    );
    assert!(expected, "{refused}");
    stopping.await.expect("no panic").expect("shuts down");
    node.bridge.stop().await;
    node.chain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_shows_its_signatures_to_the_bridge() {
    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = Node::start(&simulator).await;
    let handle = node.request(&federation, [1]).await.remove(0);
    assert_eq!(handle.outcome(PATIENCE).await, Ok(Outcome::Complete));
    let events = node.bridge.recorded(2).await;
    let mut signatures = 0;
    for message in events {
        let BridgeEvent::SignatureResponse {
            response,
            late: false,
        } = message.event
        else {
            panic!("{message:?}")
        };
        assert_eq!(response.txid, pegout(&federation, 1).txid());
        assert!(matches!(
            response.status,
            SignatureStatus::InProgress {
                collected: 1,
                required: 2
            } | SignatureStatus::Complete
        ));
        signatures += response.signatures.len();
    }
    assert_eq!(signatures, 2);
    node.stop().await;
    simulator.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_does_not_start() {
    let mut wrong = config(&["http://127.0.0.1:1".to_owned()]);
    wrong.connection.backoff.multiplier = f64::NAN;
    wrong.call_deadline = Duration::ZERO;
    let refused = GovernanceStream::start(StreamArguments::new(wrong, Store::in_memory()))
        .await
        .expect_err("wrong");
    let text = refused.to_string();
    assert!(
        text.contains("connection.backoff.multiplier") && text.contains("call_deadline"),
        "{text}"
    );
}
