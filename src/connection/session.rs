//! One session's I/O: opens the transport, registers, and reads frames until it is over. It runs
//! as a task of the connection actor and reports to it by message.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::{ConnectionMessage, credentials::Credentials, dial::dial, fault::SessionFault};
use crate::{
    config::{ConnectionConfig, Endpoint},
    proto::{self, stream_client::StreamClient},
};

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
    pub epoch: u64,
    pub target: Endpoint,
    pub config: ConnectionConfig,
    /// What is to be sent; the registration is in it already, because governance may wait for it
    /// before it answers at all. Its end closes our half of the stream.
    pub frames: mpsc::Receiver<proto::StreamRequest>,
    pub connection: ActorRef<ConnectionMessage>,
}

impl Session {
    /// Runs until it is over, and says why.
    pub(super) async fn run(self) {
        let (epoch, connection) = (self.epoch, self.connection.clone());
        let Err(fault) = self.drive().await;
        // An actor that is gone needs no report.
        let _ = connection.cast(ConnectionMessage::SessionEnded { epoch, fault });
    }

    async fn drive(self) -> Result<std::convert::Infallible, SessionFault> {
        let Self {
            epoch,
            target,
            config,
            frames,
            connection,
        } = self;
        let gone = |_| SessionFault::Closed;
        let credentials = Credentials::load(&config).await?;
        let dialled = dial(&target, &config, &credentials).await?;
        connection
            .cast(ConnectionMessage::SessionOpened { epoch })
            .map_err(gone)?;
        let mut client = StreamClient::new(dialled.channel.clone())
            .max_decoding_message_size(config.max_frame_bytes);
        let mut request = Request::new(ReceiverStream::new(frames));
        if let Some(authorization) = credentials.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization);
        }
        let status = |status: tonic::Status| dialled.fault_of(&status);
        let mut responses = client
            .bidirectional_stream(request)
            .await
            .map_err(status)?
            .into_inner();
        let permits = Arc::new(Semaphore::new(FRAMES_IN_MAILBOX));
        loop {
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
            connection
                .cast(ConnectionMessage::FrameReceived { epoch, frame })
                .map_err(gone)?;
        }
    }
}
