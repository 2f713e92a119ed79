//! One session's I/O: opens the transport, registers when it is told to, and reads frames until
//! it is over. It runs as a task of the connection actor and reports to it by message.

use std::{convert::Infallible, sync::Arc};

use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};

use super::{
    ConnectionMessage, codec::FrameCodec, credentials::Credentials, dial::dial,
    fault::SessionFault, probe::Probe, state::Check,
};
use crate::{config::Endpoint, message::Lane, proto};

/// The stream's method. It is called without the generated client, for the sake of the codec.
const METHOD: &str = "/governance.v1.Stream/BidirectionalStream";

/// Frames that the actor may have in its mailbox. While none is free the reader does not read, so
/// that HTTP/2's flow control reaches governance.
const FRAMES_IN_MAILBOX: usize = 32;

/// A frame on its way through the actor's mailbox.
#[derive(Debug)]
pub(crate) struct InboundFrame {
    pub frame: proto::StreamResponse,
    /// Lets the reader read on once the frame is handled, or lost with its actor.
    _permit: OwnedSemaphorePermit,
}

/// A session to be run.
#[derive(Debug)]
pub(super) struct Session {
    pub dial: u64,
    pub target: Endpoint,
    pub check: Check,
    /// Whom the check asks, and what it needs.
    pub probe: Probe,
    /// Comes once the registration is in `frames`: governance may wait for it before it answers
    /// at all.
    pub registered: oneshot::Receiver<()>,
    /// What is to be sent. Its end closes our half of the stream.
    pub frames: mpsc::Receiver<proto::StreamRequest>,
    pub connection: ActorRef<ConnectionMessage>,
}

impl Session {
    /// Runs until it is over, and says why.
    pub(super) async fn run(self) {
        let (dial, connection) = (self.dial, self.connection.clone());
        let Err(fault) = self.drive().await;
        // An actor that is gone needs no report.
        let _ = connection.cast(ConnectionMessage::SessionEnded { dial, fault });
    }

    async fn drive(self) -> Result<Infallible, SessionFault> {
        let Self {
            dial: number,
            target,
            check,
            probe,
            registered,
            frames,
            connection,
        } = self;
        let gone = |_| SessionFault::Closed;
        fault_point!(connection, SessionDial, SessionFault::Closed);
        let credentials = Credentials::load(&probe.config).await?;
        let dialled = dial(&target, &probe.config, &credentials).await?;
        let authorization = credentials.authorization.as_ref();
        probe.check(&dialled, authorization, check).await?;
        connection
            .cast(ConnectionMessage::SessionOpened {
                dial: number,
                validity: credentials.validity(),
            })
            .map_err(gone)?;
        registered.await.map_err(|_| SessionFault::Closed)?;
        let mut client = Grpc::new(dialled.channel.clone())
            .max_decoding_message_size(probe.config.max_frame_bytes);
        client
            .ready()
            .await
            .map_err(|error| SessionFault::Unreachable(format!("{target}: {error}")))?;
        let mut request = Request::new(ReceiverStream::new(frames));
        if let Some(authorization) = authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        let codec = FrameCodec {
            max_messages: Lane::ALL.len() * probe.config.inbound_window.messages as usize,
        };
        let status = |status: tonic::Status| dialled.fault_of(&status);
        let mut responses = client
            .streaming(request, PathAndQuery::from_static(METHOD), codec)
            .await
            .map_err(status)?
            .into_inner();
        let reading = async {
            let permits = Arc::new(Semaphore::new(FRAMES_IN_MAILBOX));
            loop {
                fault_point!(connection, SessionRead, SessionFault::Closed);
                let permit = Arc::clone(&permits).acquire_owned().await;
                let permit = permit.map_err(|_| SessionFault::Closed)?;
                let frame = responses
                    .message()
                    .await
                    .map_err(status)?
                    .ok_or(SessionFault::Closed)?;
                let frame = Box::new(InboundFrame {
                    frame,
                    _permit: permit,
                });
                let dial = number;
                connection
                    .cast(ConnectionMessage::FrameReceived { dial, frame })
                    .map_err(gone)?;
            }
        };
        let closing = async {
            probe.until_closing(&dialled, authorization).await;
            let _ = connection.cast(ConnectionMessage::SessionCloses { dial: number });
            std::future::pending().await
        };
        tokio::select! {
            biased;
            ended = reading => ended,
            ended = closing => ended,
        }
    }
}
