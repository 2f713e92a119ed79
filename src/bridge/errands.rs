//! What the bridge does outside of its mailbox: each errand goes on until there is an answer, and
//! tells it. An errand that dies with its bridge is run again by the next one.

use std::{sync::Arc, time::Duration};

use ractor::{ActorRef, concurrency::oneshot};
use tracing::warn;

use super::{
    backend::{Acceptance, BitcoinBackend, SignedTransaction, Unavailable, pause},
    completion::{CompletionNotice, CompletionSubscriber, PegoutCompleted},
    life::{LifeEvent, PegoutFailure},
    message::{BridgeMessage, Done},
    pegout::Pegout,
    store::BridgeStore,
};
use crate::{
    buffer::RequestStanding,
    error::{Retry, StreamError},
    message::{Outcome, RequestId, SignatureRequest},
    stream::GovernanceStream,
    telemetry::Metrics,
};

/// Pause before the stream is asked again at once.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// Pause before it is asked again when a person may have to act first.
const ASK_LATER: Duration = Duration::from_secs(5);
/// How long the chain may take to note a completed peg-out.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// Asks the stream until it has accepted the request, or never will; or until it is cancelled.
pub(super) async fn ask(
    store: BridgeStore,
    stream: GovernanceStream,
    request: SignatureRequest,
    bridge: ActorRef<BridgeMessage>,
) {
    let request_id = request.request_id().clone();
    let result = loop {
        let Some(leave) = store.leave_to_ask(&request_id).await else {
            return;
        };
        let answer = stream.request_signatures(request.clone()).await;
        drop(leave);
        match answer {
            Ok(_) => break Ok(()),
            Err(error) => match pause_after(&error) {
                Some(pause) => {
                    warn!(%error, ?pause, "the stream did not accept a peg-out; asking again");
                    tell_trouble(&bridge, &request_id, error.to_string());
                    wait(pause).await;
                }
                None => break Err(error.to_string()),
            },
        }
    };
    // A bridge that is gone asks again when it is back.
    let _ = bridge.cast(Done::Asked { request_id, result }.into());
}

/// Has the stream cancel a request of which it is not known whether it has it, until that is known.
/// The peg-out's stage keeps everyone from asking for it by now. Who had begun to comes to an end
/// of it first, so that the stream's *unknown* is its last word.
pub(super) async fn cancel(
    store: BridgeStore,
    stream: GovernanceStream,
    request_id: RequestId,
    bridge: ActorRef<BridgeMessage>,
) {
    store.until_nobody_asks().await;
    let event = loop {
        match stream.cancel(request_id.clone()).await {
            Ok(()) => break LifeEvent::CancelPassedOn,
            Err(StreamError::UnknownRequest { .. }) => break LifeEvent::NeverAsked,
            Err(error) => {
                let pause = pause_after(&error).unwrap_or(ASK_LATER);
                warn!(%request_id, %error, ?pause, "a peg-out's cancel has no answer; asking again");
                tell_trouble(&bridge, &request_id, error.to_string());
                wait(pause).await;
            }
        }
    };
    let _ = bridge.cast(Done::Cancelled { request_id, event }.into());
}

/// How long to wait before asking again; `None` when the answer will not change.
fn pause_after(error: &StreamError) -> Option<Duration> {
    match error.retry() {
        Retry::Now => Some(ASK_AGAIN),
        Retry::After(pause) => Some(pause),
        Retry::Operator => Some(ASK_LATER),
        Retry::Never => match error {
            // The node is being stopped: the next one goes on with it.
            StreamError::ShuttingDown => Some(ASK_LATER),
            _ => None,
        },
    }
}

/// Offers a signed transaction until it is taken, or never will be.
pub(super) async fn offer(
    backend: Arc<dyn BitcoinBackend>,
    signed: SignedTransaction,
    request_id: RequestId,
    metrics: Metrics,
    bridge: ActorRef<BridgeMessage>,
) {
    let mut tries = 0;
    let result = loop {
        let answer = offer_once(&*backend, &signed).await;
        let name = answer.as_ref().map_or("unavailable", Acceptance::name);
        metrics.record_bitcoin_offer(name);
        let trouble = match answer {
            Ok(Acceptance::Accepted | Acceptance::Known) => break Ok(()),
            Ok(Acceptance::Never { reason }) => break Err(reason),
            Ok(Acceptance::NotNow { reason }) => {
                format!("the Bitcoin network does not take it now: {reason}; it is offered again")
            }
            Ok(Acceptance::Conflict { reason }) => format!(
                "{reason}; it is offered again, should the other one not be mined. If that one is \
                 mined for good, this one never can be: look at what else spends the federation's \
                 coins"
            ),
            Err(unavailable) => format!("{unavailable}; it is offered again"),
        };
        warn!(%request_id, trouble, "a signed peg-out is not on the Bitcoin network");
        tell_trouble(&bridge, &request_id, trouble);
        wait(pause(tries)).await;
        tries += 1;
    };
    let _ = bridge.cast(Done::Offered { request_id, result }.into());
}

async fn offer_once(
    backend: &dyn BitcoinBackend,
    signed: &SignedTransaction,
) -> Result<Acceptance, Unavailable> {
    match backend.test(signed).await? {
        Acceptance::Accepted => backend.broadcast(signed).await,
        answer => Ok(answer),
    }
}

fn tell_trouble(bridge: &ActorRef<BridgeMessage>, request_id: &RequestId, trouble: String) {
    let request_id = request_id.clone();
    let _ = bridge.cast(
        Done::Troubled {
            request_id,
            trouble,
        }
        .into(),
    );
}

/// Sees once what has become of open peg-outs: those that wait for signatures, at the stream; those
/// on the Bitcoin network, there.
pub(super) async fn look(
    backend: Arc<dyn BitcoinBackend>,
    stream: GovernanceStream,
    open: Vec<Arc<Pegout>>,
    confirmations: u32,
    metrics: Metrics,
    bridge: ActorRef<BridgeMessage>,
) {
    let mut events = Vec::new();
    let mut reachable = backend.follows();
    for pegout in open {
        let request_id = pegout.request_id().clone();
        if !pegout.stage().is_on_network() {
            // What ends without a word of governance's is told to nobody but who asks.
            if let Ok(RequestStanding::Settled(outcome)) =
                stream.request(request_id.clone()).standing().await
                && outcome != Outcome::Complete
            {
                let failure = PegoutFailure::NotSigned(outcome);
                events.push((request_id, LifeEvent::Ended(failure)));
            }
        } else if let Some(signed) = pegout.signed().filter(|_| reachable) {
            match backend.sighting(&signed, pegout.seen_in()).await {
                Ok(sighting) => events.push((request_id, pegout.sighted(sighting, confirmations))),
                Err(unavailable) => {
                    warn!(%unavailable, "where peg-outs are cannot be seen; looking again later");
                    metrics.record_bitcoin_offer("unavailable");
                    tell_trouble(&bridge, &request_id, unavailable.to_string());
                    reachable = false;
                }
            }
        }
    }
    let _ = bridge.cast(Done::Looked(events).into());
}

/// Tells the chain of a completed peg-out until it has noted it.
pub(super) async fn report(
    chain: CompletionSubscriber,
    completed: PegoutCompleted,
    bridge: ActorRef<BridgeMessage>,
) {
    let request_id = completed.request_id.clone();
    let mut tries = 0;
    loop {
        let (sender, answer) = oneshot();
        let notice = CompletionNotice {
            completed: completed.clone(),
            reply: sender.into(),
        };
        let failure = match chain.hand_over(notice) {
            Ok(()) => match tokio::time::timeout(REPORT_DEADLINE, answer).await {
                Ok(Ok(Ok(()))) => break,
                Ok(Ok(Err(reason))) => reason,
                Ok(Err(_)) => "it dropped the notice".to_owned(),
                Err(_) => format!("no answer within {REPORT_DEADLINE:?}"),
            },
            Err(error) => error.to_string(),
        };
        warn!(%request_id, failure, "the chain has not noted a completed peg-out; telling it again");
        wait(pause(tries)).await;
        tries += 1;
    }
    let _ = bridge.cast(Done::Reported { request_id }.into());
}

#[allow(
    clippy::disallowed_methods,
    reason = "paces an errand's task, not an actor"
)]
async fn wait(pause: Duration) {
    tokio::time::sleep(pause).await;
}
