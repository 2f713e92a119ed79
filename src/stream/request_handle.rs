//! One request, as its caller holds it.

use std::time::Duration;

use ractor::{ActorRef, rpc::CallResult};
use tokio::time::Instant;

use super::GovernanceStream;
use crate::{
    buffer::RequestStanding,
    error::StreamError,
    message::{Outcome, Progress, RequestId},
    names,
    request::RequestMessage,
};

/// Pause before an actor that is being restarted is looked up again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// One request that was accepted. It names the request and holds nothing: it may be dropped, and
/// made again with [`GovernanceStream::request`].
#[derive(Debug, Clone)]
pub struct RequestHandle {
    pub(super) stream: GovernanceStream,
    pub(super) request_id: RequestId,
}

impl RequestHandle {
    /// The request's id.
    #[must_use]
    pub fn id(&self) -> &RequestId {
        &self.request_id
    }

    /// How the request stands now.
    ///
    /// # Errors
    ///
    /// [`StreamError::UnknownRequest`], [`StreamError::NeedsOperator`],
    /// [`StreamError::NotRunning`].
    pub async fn standing(&self) -> Result<RequestStanding, StreamError> {
        self.stream.look_up(&self.request_id).await
    }

    /// Waits for the outcome. Restarts of any actor meanwhile do not disturb it.
    ///
    /// # Errors
    ///
    /// [`StreamError::DeadlineExceeded`] when there is none `within` this time (the request is
    /// still open), otherwise as [`standing`](Self::standing).
    pub async fn outcome(&self, within: Duration) -> Result<Outcome, StreamError> {
        match self.wait("outcome", None, within).await? {
            RequestStanding::Settled(outcome) => Ok(outcome),
            RequestStanding::Open(_) => Err(StreamError::DeadlineExceeded {
                operation: "outcome",
                deadline: within,
            }),
        }
    }

    /// Waits until the request has come further than the caller has `seen`.
    ///
    /// # Errors
    ///
    /// As [`outcome`](Self::outcome).
    pub async fn progress_beyond(
        &self,
        seen: Progress,
        within: Duration,
    ) -> Result<RequestStanding, StreamError> {
        self.wait("progress_beyond", Some(seen), within).await
    }

    /// Asks the tracker; when that dies while it is asked, or is being restarted, the buffer.
    async fn wait(
        &self,
        operation: &'static str,
        beyond: Option<Progress>,
        within: Duration,
    ) -> Result<RequestStanding, StreamError> {
        let until = Instant::now() + within;
        let name = names::request(&self.stream.config.instance, &self.request_id);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut last = StreamError::DeadlineExceeded {
                operation,
                deadline: within,
            };
            if left.is_zero() {
                return Err(last);
            }
            if let Some(tracker) = ActorRef::<RequestMessage>::where_is(name.clone()) {
                let wait = |reply| RequestMessage::Await { beyond, reply };
                if let Ok(CallResult::Success(standing)) = tracker.call(wait, Some(left)).await {
                    return standing;
                }
            }
            match self.standing().await {
                Ok(RequestStanding::Open(progress))
                    if beyond.is_none_or(|seen| seen == progress) => {}
                Err(
                    error @ (StreamError::NotRunning { .. } | StreamError::DeadlineExceeded { .. }),
                ) => {
                    last = error;
                }
                standing => return standing,
            }
            if until <= Instant::now() + LOOK_AGAIN {
                return Err(last);
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "paces a caller's wait, not an actor"
            )]
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
