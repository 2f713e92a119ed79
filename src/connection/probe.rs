//! Finds out whether an endpoint is well without registering there: what it says of its health,
//! what it speaks, and whether it has everything that governance acknowledged elsewhere.

use std::sync::Arc;

use ractor::{ActorRef, rpc::CallResult};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{
    Code, Request,
    metadata::{Ascii, MetadataValue},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    ConnectionMessage, PROTOCOL_VERSION,
    credentials::Credentials,
    dial::{Dialled, dial},
    fault::SessionFault,
    state::Check,
};
use crate::{
    buffer::{BufferMessage, Watermarks},
    config::{ConnectionConfig, Endpoint},
    message::{Capabilities, NodeId},
    proto::{self, stream_client::StreamClient},
};

/// The service whose health is asked for.
const SERVICE: &str = "governance.v1.Stream";

/// What a probe needs.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub config: Arc<ConnectionConfig>,
    pub node_id: NodeId,
    /// Knows what was acknowledged.
    pub buffer: ActorRef<BufferMessage>,
}

impl Probe {
    /// Probes an endpoint on a connection of its own, and reports.
    pub(super) async fn run(self, endpoint: Endpoint, connection: ActorRef<ConnectionMessage>) {
        let within = self.config.dial_deadline();
        let probing = async {
            let credentials = Credentials::load(&self.config).await?;
            let dialled = dial(&endpoint, &self.config, &credentials).await?;
            let authorization = credentials.authorization.as_ref();
            self.check(&dialled, authorization, Check::InStep).await
        };
        let result = timeout(within + self.config.probe_deadline, probing).await;
        let too_slow = SessionFault::TooSlow {
            awaited: "answer to a probe",
            within,
        };
        let result = result.unwrap_or(Err(too_slow));
        let _ = connection.cast(ConnectionMessage::Probed { endpoint, result });
    }

    /// Asks a connection that carries a session for the endpoint's health, again and again, until
    /// it takes no more calls or says that it does not serve: the session is to be moved before it
    /// ends. Whether it lives at all is for its heartbeats to tell.
    pub(super) async fn until_closing(
        &self,
        dialled: &Dialled,
        authorization: Option<&MetadataValue<Ascii>>,
    ) {
        let mut looks = interval(self.config.probe_interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let served = timeout(self.config.probe_deadline, serves(dialled, authorization));
            let says_so = matches!(served.await, Ok(Err(SessionFault::NotServing)));
            if says_so || dialled.is_closing() {
                return;
            }
        }
    }

    /// Checks what is to be checked on an open connection.
    pub(super) async fn check(
        &self,
        dialled: &Dialled,
        authorization: Option<&MetadataValue<Ascii>>,
        check: Check,
    ) -> Result<(), SessionFault> {
        if check == Check::None {
            return Ok(());
        }
        let within = self.config.probe_deadline;
        let checking = async {
            // Before the endpoint is asked: what is acknowledged meanwhile it need not have.
            let acknowledged = match check {
                Check::InStep => Some(self.acknowledged().await?),
                Check::None | Check::Serving => None,
            };
            serves(dialled, authorization).await?;
            let capabilities = self.capabilities(dialled, authorization).await?;
            match acknowledged {
                Some(acknowledged) => acknowledged
                    .judge(&capabilities)
                    .map_err(SessionFault::Resume),
                None => Ok(()),
            }
        };
        let awaited = "answer to a probe";
        timeout(within, checking)
            .await
            .unwrap_or(Err(SessionFault::TooSlow { awaited, within }))
    }

    async fn acknowledged(&self) -> Result<Watermarks, SessionFault> {
        let within = self.config.probe_deadline;
        let read = |reply| BufferMessage::ReadWatermarks { reply };
        match self.buffer.call(read, Some(within)).await {
            Ok(CallResult::Success(acknowledged)) => Ok(acknowledged),
            _ => Err(SessionFault::Buffer {
                awaited: "watermarks",
                within,
            }),
        }
    }

    async fn capabilities(
        &self,
        dialled: &Dialled,
        authorization: Option<&MetadataValue<Ascii>>,
    ) -> Result<Capabilities, SessionFault> {
        let request = proto::CapabilitiesRequest {
            node_id: self.node_id.to_string(),
        };
        let answer = StreamClient::new(dialled.channel.clone())
            .max_decoding_message_size(self.config.max_frame_bytes)
            .get_capabilities(authorised(request, authorization))
            .await
            .map_err(|status| dialled.fault_of(&status))?;
        let capabilities = Capabilities::try_from(answer.into_inner())
            .map_err(|invalid| invalid.within("capabilities"))?;
        if !capabilities.protocol_versions.contains(&PROTOCOL_VERSION) {
            return Err(SessionFault::OtherVersion {
                spoken: capabilities.protocol_versions,
                ours: PROTOCOL_VERSION,
            });
        }
        Ok(capabilities)
    }
}

/// Whether the endpoint says that it serves. One that has no health service is taken at the word
/// of its capabilities.
async fn serves(
    dialled: &Dialled,
    authorization: Option<&MetadataValue<Ascii>>,
) -> Result<(), SessionFault> {
    let request = HealthCheckRequest {
        service: SERVICE.to_owned(),
    };
    let answer = HealthClient::new(dialled.channel.clone())
        .check(authorised(request, authorization))
        .await;
    match answer {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(_) => Err(SessionFault::NotServing),
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::NotFound) => Ok(()),
        Err(status) => Err(dialled.fault_of(&status)),
    }
}

fn authorised<T>(message: T, authorization: Option<&MetadataValue<Ascii>>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(authorization) = authorization {
        request
            .metadata_mut()
            .insert("authorization", authorization.clone());
    }
    request
}
