//! One open request: its deadline, its progress, and who waits for its outcome.
//!
//! A tracker owns nothing that matters: the request, its progress and its outcome are the
//! buffer's. One that dies is started again from them, and whoever waited asks its successor.

mod clock;
mod policy;

use std::time::{Duration, SystemTime};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::time::Instant;
use tracing::{info, info_span};

use crate::{
    buffer::{BufferMessage, OpenedRequest, RequestStanding},
    config::InstanceName,
    error::StreamError,
    message::{CancelReason, Progress, RequestId},
    names,
    pulse::Pulse,
    telemetry::TraceContext,
    timer::Timer,
};

use self::clock::Patience;
pub(crate) use policy::deadline;

/// Pause before a buffer that is being restarted is asked again.
const BUFFER_RETRY: Duration = Duration::from_millis(100);

/// Why a tracker stops when all is well.
pub(crate) const SETTLED: &str = "settled";

/// What a tracker is asked and told.
#[derive(Debug)]
pub(crate) enum RequestMessage {
    /// The buffer's word on how the request stands.
    Stands(Result<RequestStanding, StreamError>),
    /// The buffer was restarted: ask it again.
    Refresh,
    /// Has the deadline passed?
    Look,
    /// Show that you live.
    AreYouThere { pulse: Pulse },
    /// Answer once the request is settled or, where `beyond` names what the caller has seen, once
    /// it has come further.
    Await {
        beyond: Option<Progress>,
        reply: StandingReply,
    },
}

/// Where the answer to a wait goes.
pub(crate) type StandingReply = RpcReplyPort<Result<RequestStanding, StreamError>>;

/// What a tracker needs to start.
#[derive(Debug)]
pub(crate) struct RequestArguments {
    pub instance: InstanceName,
    pub opened: OpenedRequest,
}

/// A tracker's state.
#[derive(Debug)]
pub(crate) struct RequestState {
    args: RequestArguments,
    standing: Result<RequestStanding, StreamError>,
    waiting: Vec<(Option<Progress>, StandingReply)>,
    patience: Patience,
    deadline: Timer,
}

/// The actor.
#[derive(Debug)]
pub(crate) struct RequestTracker;

impl Actor for RequestTracker {
    type Msg = RequestMessage;
    type State = RequestState;
    type Arguments = RequestArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<RequestMessage>,
        args: RequestArguments,
    ) -> Result<RequestState, ActorProcessingErr> {
        let opened = &args.opened;
        let progress = opened.progress;
        let left = policy::left(opened.accepted_at, opened.deadline, SystemTime::now());
        let patience = Patience::new(left, Instant::now(), clock::since_boot());
        let mut deadline = Timer::default();
        if !progress.deadline_passed {
            deadline.arm(patience.next_look(left), &myself, || RequestMessage::Look);
        }
        let standing = Ok(RequestStanding::Open(progress));
        Ok(RequestState {
            args,
            standing,
            waiting: Vec::new(),
            patience,
            deadline,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<RequestMessage>,
        message: RequestMessage,
        state: &mut RequestState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RequestMessage::Stands(standing) => {
                state.standing = standing;
                state.answer_waiting();
                match &state.standing {
                    Ok(RequestStanding::Settled(outcome)) => {
                        info!(request = %state.request_id(), %outcome, "request settled");
                        myself.stop(Some(SETTLED.to_owned()));
                    }
                    // Settled long ago, and forgotten since.
                    Err(StreamError::UnknownRequest { .. }) => {
                        myself.stop(Some(SETTLED.to_owned()));
                    }
                    Ok(RequestStanding::Open(_)) | Err(_) => {}
                }
            }
            RequestMessage::Refresh => {
                let request_id = state.request_id().clone();
                if !state.tell_buffer(BufferMessage::Restate { request_id }) {
                    // Its successor refreshes every tracker; this one only keeps its deadline.
                    state
                        .deadline
                        .arm(BUFFER_RETRY, &myself, || RequestMessage::Refresh);
                }
            }
            RequestMessage::Look => {
                let left = state.patience.left(Instant::now(), clock::since_boot());
                if !left.is_zero() {
                    let pause = state.patience.next_look(left);
                    state.deadline.arm(pause, &myself, || RequestMessage::Look);
                    return Ok(());
                }
                let span = info_span!("deadline", request = %state.request_id());
                let _entered = span.enter();
                info!(
                    "deadline passed; the request is withdrawn, or governance asked to cancel it"
                );
                let cancel = BufferMessage::Cancel {
                    request_id: state.request_id().clone(),
                    reason: CancelReason::Deadline,
                    trace: TraceContext::of(&span),
                    reply: None,
                };
                if !state.tell_buffer(cancel) {
                    state
                        .deadline
                        .arm(BUFFER_RETRY, &myself, || RequestMessage::Look);
                }
            }
            RequestMessage::AreYouThere { pulse } => pulse.beat(),
            RequestMessage::Await { beyond, reply } => {
                state.waiting.push((beyond, reply));
                state.answer_waiting();
            }
        }
        Ok(())
    }
}

impl RequestState {
    fn request_id(&self) -> &RequestId {
        &self.args.opened.request_id
    }

    /// Whether there was a buffer to tell.
    fn tell_buffer(&self, message: BufferMessage) -> bool {
        ActorRef::<BufferMessage>::where_is(names::buffer(&self.args.instance))
            .is_some_and(|buffer| buffer.cast(message).is_ok())
    }

    /// Answers whoever waits for no more than what is known.
    fn answer_waiting(&mut self) {
        let standing = &self.standing;
        let known = |beyond: &Option<Progress>| match standing {
            Ok(RequestStanding::Open(progress)) => beyond.is_some_and(|seen| seen != *progress),
            Ok(RequestStanding::Settled(_)) | Err(_) => true,
        };
        for (_, reply) in self.waiting.extract_if(.., |(beyond, _)| known(beyond)) {
            // A caller that gave up waiting is nobody's loss.
            let _ = reply.send(standing.clone());
        }
        self.waiting.retain(|(_, reply)| !reply.is_closed());
    }
}
