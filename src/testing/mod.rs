//! Puts a node's own subscribers to the test (feature `testing`, for a node's tests).
//!
//! # The contract
//!
//! A subscriber is an actor under the configured name whose messages can be made from a
//! [`Delivery`](crate::Delivery): an ordered batch of one lane. It keeps to seven rules, each of
//! them a [`Rule`]:
//!
//! 1. It replies to every delivery, in its own time: slow is not failed, and nothing comes again
//!    while it is at it.
//! 2. It handles a prefix of the batch: one answer for each handled message, from the first on.
//!    Either that is all of them, or it names the failure of the next one, and that comes again.
//! 3. It answers in kind: an update or a proposal with its own acknowledgement, whatever is of no
//!    use with [`Answer::Reject`], and what governance expects no answer to with none.
//! 4. Handled means durable: it would be known after a crash at once after the reply.
//! 5. A message is handled once. It is the same one if and only if its `occurrence_id` is the same;
//!    then the answer is the same, and nothing else happens.
//! 6. It is known by that, and neither by its place nor by its message id: governance that lost its
//!    record counts from 1 again, so that another message in a known place is another message; and
//!    to a store that was restored it tells what it told before in other places, under other ids.
//! 7. It does not depend on whoever asked: a reply that nobody takes is no fault, and the message
//!    comes again.
//!
//! [`check`] exercises all of it, and reports; it does not panic:
//!
//! ```no_run
//! # use governance_stream::{ChainEvent, Delivery, Subscriber, message::Lane, testing};
//! # struct MyChain;
//! impl testing::Subject<ChainEvent> for MyChain {
//!     async fn start(&mut self) {
//!         // Spawns the actor, on what an earlier one has kept.
//!     }
//!     fn kept(&self) -> Vec<String> {
//!         Vec::new() // A line for each thing that it has done or kept.
//!     }
//!     fn message(&mut self, lane: Lane, number: u64) -> Option<ChainEvent> {
//!         testing::sample_chain_event(lane, number)
//!     }
//! }
//!
//! # async fn test() {
//! let subscriber = Subscriber::named::<Delivery<ChainEvent>>("chain");
//! let report = testing::check(&subscriber, &mut MyChain).await;
//! assert!(report.is_clean(), "{report}");
//! # }
//! ```

mod exchange;
mod report;
mod sample;

use std::{fmt, future::Future};

use crate::{
    message::{Lane, MessageId, OccurrenceId},
    routing::{Answer, BridgeEvent, ChainEvent, Delivered, Subscriber},
};
use exchange::{Exchange, Sent};

pub use report::{Report, Rule, Violation};
pub use sample::{sample_bridge_event, sample_chain_event};

/// A subscriber under test, and what the test has to do with it.
pub trait Subject<E>: Send {
    /// Starts it, on whatever an earlier one has kept, as a new process would; it is registered
    /// before this is over. Called first, and whenever it has died.
    fn start(&mut self) -> impl Future<Output = ()> + Send;

    /// Everything that it has done or durably kept because of messages, a line for each. No two
    /// messages give the same line.
    fn kept(&self) -> Vec<String>;

    /// A message for it, unlike every other `number`'s; `None` for a lane that it is to get nothing
    /// of. Numbers count from 1 in each lane.
    fn message(&mut self, lane: Lane, number: u64) -> Option<E>;

    /// Has it stumble at the message of this many from the next on; `false` when it cannot be made
    /// to.
    fn hinder(&mut self, hindrance: Hindrance) -> bool {
        let _ = hindrance;
        false
    }
}

/// How a subscriber stumbles, once. 0 is the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hindrance {
    /// It cannot handle this message now.
    FailsAt(usize),
    /// It dies of this message.
    DiesAt(usize),
    /// It takes its time over this message.
    SlowAt(usize),
}

/// What a bridge or a chain is sent.
pub trait Event: fmt::Debug + Clone + Send + Sync + 'static {
    /// Its lanes.
    const LANES: &'static [Lane];

    /// Whether this is an answer to it.
    fn is_answered_by(&self, answer: Option<&Answer>) -> bool;
}

impl Event for BridgeEvent {
    const LANES: &'static [Lane] = &[Lane::Signing, Lane::Pegin];

    fn is_answered_by(&self, answer: Option<&Answer>) -> bool {
        matches!(answer, None | Some(Answer::Reject { .. }))
    }
}

impl Event for ChainEvent {
    const LANES: &'static [Lane] = &[Lane::Federation, Lane::Proposal];

    fn is_answered_by(&self, answer: Option<&Answer>) -> bool {
        match (self, answer) {
            (_, Some(Answer::Reject { .. })) => true,
            (Self::FederationUpdate(update), Some(Answer::FederationUpdate(ack))) => {
                ack.version == update.version
            }
            (Self::Proposal(proposal), Some(Answer::Proposal(ack))) => {
                ack.proposal_id == proposal.proposal_id
            }
            _ => false,
        }
    }
}

/// Puts a subscriber through everything that the contract provides for: single messages, batches,
/// duplicates alone and among new ones, replies that nobody takes, failures, slowness, deaths in
/// the middle, and governance with another record. Kills the actor under the subscriber's name.
///
/// A subject that does not reply, or does not end when it is killed, within 30 s is given up.
pub async fn check<E: Event, S: Subject<E>>(subscriber: &Subscriber<E>, subject: &mut S) -> Report {
    let mut exchange = Exchange::new(subscriber, subject);
    exchange.begin().await;
    for lane in E::LANES {
        check_lane(&mut exchange, *lane).await;
    }
    exchange.end()
}

async fn check_lane<E: Event, S: Subject<E>>(exchange: &mut Exchange<'_, E, S>, lane: Lane) {
    let nothing = exchange.kept();
    let Some(mut known) = exchange.new_messages(lane, 1) else {
        return;
    };
    exchange.deliver_all(&known).await;
    let keeps = exchange.kept() != nothing;
    let Some(batch) = exchange.new_messages(lane, 4) else {
        return;
    };
    exchange.deliver_all(&batch).await;
    known.extend(batch);
    exchange.expect_nothing_new(&known).await;

    // The end of what is known, and something new behind it.
    let Some(more) = exchange.new_messages(lane, 2) else {
        return;
    };
    let mut mixed: Vec<Sent<E>> = known.iter().rev().take(2).rev().cloned().collect();
    mixed.extend(more.iter().cloned());
    exchange.deliver_all(&mixed).await;
    known.extend(more);
    exchange.expect_durable(&known).await;

    unread_reply(exchange, lane, &mut known).await;
    death_at_any_time(exchange, lane, &mut known).await;
    hindrances(exchange, lane, &mut known).await;
    exchange.expect_nothing_new(&known).await;

    exchange.expect_known_by_name(lane, &known).await;
    another_ledger(exchange, lane, keeps).await;
    exchange.expect_nothing_repeated();
}

/// The stream is gone when the reply comes, and another one delivers the message again.
async fn unread_reply<E: Event, S: Subject<E>>(
    exchange: &mut Exchange<'_, E, S>,
    lane: Lane,
    known: &mut Vec<Sent<E>>,
) {
    if let Some(batch) = exchange.new_messages(lane, 2) {
        exchange.deliver_to_nobody(&batch).await;
        exchange.deliver_all(&batch).await;
        known.extend(batch);
    }
}

/// It is killed before, while or after it handles a batch, whichever it is.
async fn death_at_any_time<E: Event, S: Subject<E>>(
    exchange: &mut Exchange<'_, E, S>,
    lane: Lane,
    known: &mut Vec<Sent<E>>,
) {
    for yields in [0, 1, 3, 10] {
        if let Some(batch) = exchange.new_messages(lane, 4) {
            exchange.deliver_and_kill(&batch, yields).await;
            exchange.deliver_all(&batch).await;
            exchange.expect_nothing_new(&batch).await;
            known.extend(batch);
        }
    }
}

async fn hindrances<E: Event, S: Subject<E>>(
    exchange: &mut Exchange<'_, E, S>,
    lane: Lane,
    known: &mut Vec<Sent<E>>,
) {
    for hindrance in [
        Hindrance::FailsAt(0),
        Hindrance::FailsAt(2),
        Hindrance::DiesAt(0),
        Hindrance::DiesAt(2),
        Hindrance::SlowAt(1),
    ] {
        if let Some(batch) = exchange.new_messages(lane, 4) {
            if exchange.deliver_hindered(&batch, hindrance).await {
                exchange.expect_durable(&batch).await;
            }
            known.extend(batch);
        }
    }
}

/// Governance counts from 1 again: known places, other messages.
async fn another_ledger<E: Event, S: Subject<E>>(
    exchange: &mut Exchange<'_, E, S>,
    lane: Lane,
    keeps: bool,
) {
    let before = exchange.kept();
    exchange.count_from_one(lane);
    let Some(batch) = exchange.new_messages(lane, 3) else {
        return;
    };
    exchange.deliver_all(&batch).await;
    if keeps && exchange.kept() == before {
        let reason =
            "messages in places that were known were taken for the ones that had been there";
        exchange.violation(Rule::Identity, lane, reason);
    }
    exchange.expect_durable(&batch).await;
}

/// A message as the stream would hand it over.
fn delivered<E: Event>(sent: &Sent<E>, redelivered: bool) -> Delivered<E> {
    Delivered {
        lane: sent.lane,
        sequence: sent.sequence,
        message_id: sent.message_id,
        occurrence_id: sent.occurrence_id,
        redelivered,
        trace: opentelemetry::Context::new(),
        event: sent.event.clone(),
    }
}

/// A new identity.
fn identify<E: Event>(lane: Lane, sequence: u64, event: E) -> Sent<E> {
    Sent {
        lane,
        sequence,
        message_id: MessageId::generate(),
        occurrence_id: OccurrenceId::generate(),
        event,
    }
}
