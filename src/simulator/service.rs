//! The gRPC service: each endpoint's sessions over the one ledger.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use super::ledger::{Ledger, Refusal, SessionKey, Standing, refusal};
use crate::proto::{self, stream_request, stream_response, stream_server};

/// Frames that may wait for a slow reader.
const FRAMES: usize = 16;

/// The ledger, and a bell that rings whenever it may have something to say.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    ledger: Arc<Mutex<Ledger>>,
    bell: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(ledger)),
            bell: watch::Sender::new(()),
        }
    }

    /// The ledger to look at.
    pub(super) fn read(&self) -> MutexGuard<'_, Ledger> {
        // A panic in a test's closure leaves the ledger as it is; the others may look on.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ledger to change; whoever waits for it looks again.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.read();
        let result = change(&mut ledger);
        // Before anyone is told of it.
        ledger.commit();
        drop(ledger);
        self.bell.send_replace(());
        result
    }

    pub(super) fn bell(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }
}

/// One endpoint.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub shared: Shared,
    pub index: usize,
    /// Ends the endpoint and its sessions.
    pub stop: CancellationToken,
    pub sessions: TaskTracker,
}

type Responses = mpsc::Sender<Result<proto::StreamResponse, Status>>;

#[tonic::async_trait]
impl stream_server::Stream for Endpoint {
    type BidirectionalStreamStream = ReceiverStream<Result<proto::StreamResponse, Status>>;

    async fn bidirectional_stream(
        &self,
        request: Request<Streaming<proto::StreamRequest>>,
    ) -> Result<Response<Self::BidirectionalStreamStream>, Status> {
        self.authenticate(&request)?;
        let mut requests = request.into_inner();
        let hold_headers = self.shared.read().config().hold_headers;
        // Some servers answer a call only when its first message has come.
        let first = if hold_headers {
            requests.message().await?
        } else {
            None
        };
        let (responses, frames) = mpsc::channel(FRAMES);
        let endpoint = self.clone();
        self.sessions.spawn(async move {
            let stop = endpoint.stop.clone();
            let stopped = stop.run_until_cancelled(endpoint.session(first, requests, &responses));
            if stopped.await.is_none() {
                let _ = responses.try_send(Err(Status::unavailable("this endpoint has stopped")));
            }
        });
        Ok(Response::new(ReceiverStream::new(frames)))
    }

    async fn get_capabilities(
        &self,
        request: Request<proto::CapabilitiesRequest>,
    ) -> Result<Response<proto::Capabilities>, Status> {
        self.authenticate(&request)?;
        let mut bell = self.shared.bell();
        while self.shared.read().script.is_silent(self.index) {
            let stopped = || Status::unavailable("this endpoint has stopped");
            let rung = self.stop.run_until_cancelled(bell.changed()).await;
            rung.ok_or_else(stopped)?.map_err(|_| stopped())?;
        }
        let capabilities = self
            .shared
            .read()
            .capabilities(&request.get_ref().node_id, self.index);
        Ok(Response::new(capabilities))
    }
}

impl Endpoint {
    fn authenticate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let expected = self
            .shared
            .read()
            .config()
            .token
            .as_ref()
            .map(|token| format!("Bearer {token}"));
        let given = request.metadata().get("authorization");
        match expected {
            Some(expected) if given.map(|value| value.as_bytes()) != Some(expected.as_bytes()) => {
                Err(Status::unauthenticated("unknown or missing token"))
            }
            _ => Ok(()),
        }
    }

    /// Runs one session to its end, and says why it ended.
    async fn session(
        &self,
        first: Option<proto::StreamRequest>,
        mut requests: Streaming<proto::StreamRequest>,
        responses: &Responses,
    ) {
        let first = match first {
            Some(frame) => Some(frame),
            None => requests.message().await.ok().flatten(),
        };
        let Some(stream_request::Control::Registration(registration)) =
            first.and_then(|frame| frame.control)
        else {
            let fault = "the first message must be a registration".to_owned();
            refuse(
                responses,
                refusal(proto::ErrorCode::ProtocolViolation, fault),
            )
            .await;
            return;
        };
        let accepted = self
            .shared
            .change(|ledger| ledger.register(&registration, self.index));
        let (key, ack) = match accepted {
            Ok(accepted) => accepted,
            Err(refusal) => return refuse(responses, refusal).await,
        };
        let scripted = self
            .shared
            .change(|ledger| ledger.script.registration_answers.pop_front());
        let ack = scripted.unwrap_or_else(|| proto::StreamResponse {
            control: Some(stream_response::Control::RegistrationAck(ack)),
            ..Default::default()
        });
        let end = if responses.send(Ok(ack)).await.is_ok() {
            self.exchange(&key, &mut requests, responses).await
        } else {
            End::Gone
        };
        self.shared.change(|ledger| ledger.end(&key));
        match end {
            End::Gone => {}
            End::Refused(refusal) => refuse(responses, refusal).await,
            End::Broken(status) => {
                let _ = responses.send(Err(status)).await;
            }
        }
    }

    async fn exchange(
        &self,
        key: &SessionKey,
        requests: &mut Streaming<proto::StreamRequest>,
        responses: &Responses,
    ) -> End {
        let mut bell = self.shared.bell();
        loop {
            bell.mark_unchanged();
            let (standing, silent, frame) = {
                let mut ledger = self.shared.read();
                let silent = ledger.script.is_silent(self.index);
                let standing = ledger.standing(key);
                let speaks = standing == Standing::Live && !silent;
                (
                    standing,
                    silent,
                    if speaks { ledger.next_frame(key) } else { None },
                )
            };
            match standing {
                Standing::Live => {}
                Standing::Cut => return End::Broken(Status::unavailable("cut by the script")),
                Standing::Revoked => {
                    let status = Status::unauthenticated("the token is no longer taken");
                    return End::Broken(status);
                }
                Standing::Fenced => {
                    let newer = "a newer session of this node took over";
                    return End::Refused(self.shared.read().fenced(&key.0, newer));
                }
                Standing::Retired => {
                    let later = "a later store of this node was permitted";
                    return End::Refused(refusal(proto::ErrorCode::OutboxRetired, later));
                }
            }
            if let Some(frame) = frame {
                if responses.send(Ok(frame)).await.is_err() {
                    return End::Gone;
                }
                continue;
            }
            tokio::select! {
                _ = bell.changed() => {}
                () = responses.closed() => return End::Gone,
                request = requests.message(), if !silent => match request {
                    Ok(Some(frame)) => match self.shared.change(|ledger| ledger.take(key, frame, Instant::now())) {
                        Ok(false) => {}
                        Ok(true) => return End::Gone,
                        Err(refusal) => return End::Refused(refusal),
                    },
                    Ok(None) | Err(_) => return End::Gone,
                },
            }
        }
    }
}

/// Why a session is over.
enum End {
    /// The node left, or is lost.
    Gone,
    /// With a status instead of a word.
    Broken(Status),
    Refused(Refusal),
}

/// Says why the session ends; its end follows when the sender is dropped.
async fn refuse(responses: &Responses, error: Refusal) {
    let frame = proto::StreamResponse {
        control: Some(stream_response::Control::Error(error)),
        ..Default::default()
    };
    let _ = responses.send(Ok(frame)).await;
}
