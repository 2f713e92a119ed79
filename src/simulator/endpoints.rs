//! Endpoints of the one service: each is begun, asked to leave, and taken away for itself.

use std::net::SocketAddr;

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{server::NamedService, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{Simulator, SimulatorError, service, tls::Socket};
use crate::proto;

/// Whose health is told: the endpoint as a whole, and the stream.
const SERVICES: [&str; 2] = [
    "",
    <proto::stream_server::StreamServer<service::Endpoint> as NamedService>::NAME,
];
/// Connections that may wait for the server after their handshake.
const ACCEPTED: usize = 16;

#[derive(Debug)]
pub(super) struct EndpointHandle {
    pub(super) address: SocketAddr,
    pub(super) running: Option<Running>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) stop: CancellationToken,
    /// Takes no new calls; those that are there go on.
    closing: CancellationToken,
    sessions: TaskTracker,
    server: JoinHandle<()>,
    health: HealthReporter,
}

impl Simulator {
    pub(super) async fn serve(
        &self,
        index: usize,
        address: SocketAddr,
    ) -> Result<(SocketAddr, Running), SimulatorError> {
        if !address.ip().is_loopback() {
            return Err(SimulatorError::NotLoopback(address));
        }
        let failed = |error| SimulatorError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let (stop, sessions) = (CancellationToken::new(), TaskTracker::new());
        let endpoint = service::Endpoint {
            shared: self.shared.clone(),
            index,
            stop: stop.clone(),
            sessions: sessions.clone(),
        };
        let service = proto::stream_server::StreamServer::new(endpoint);
        let (health, health_service) = tonic_health::server::health_reporter();
        say(&health, ServingStatus::Serving).await;
        let (accepted, connections) = mpsc::channel(ACCEPTED);
        let accepting = accept(listener, self.tls.subscribe(), accepted);
        let closing = stop.child_token();
        let stopped = closing.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            let serving = Server::builder()
                .add_service(service)
                .add_service(health_service)
                .serve_with_incoming_shutdown(
                    ReceiverStream::new(connections).map(Ok::<_, std::io::Error>),
                    stopped,
                );
            let accepting = tokio::spawn(accepting);
            if let Err(error) = serving.await {
                tracing::error!(%bound, %error, "the simulator's endpoint failed");
            }
            accepting.abort();
            // Its address must be free once the endpoint is gone.
            let _ = accepting.await;
        });
        Ok((
            bound,
            Running {
                stop,
                closing,
                sessions,
                server,
                health,
            },
        ))
    }

    /// Takes an endpoint away, with its sessions.
    pub async fn stop_endpoint(&mut self, index: usize) {
        let running = self
            .endpoints
            .get_mut(index)
            .and_then(|endpoint| endpoint.running.take());
        if let Some(running) = running {
            running.stop.cancel();
            // Whoever watches its health would keep the server from ending.
            let mut health = running.health.clone();
            for service in SERVICES {
                health.clear_service_status(service).await;
            }
            running.sessions.close();
            running.sessions.wait().await;
            let _ = running.server.await;
            self.shared.change(|ledger| ledger.cut(Some(index)));
        }
    }

    /// Has an endpoint tell its peers that it takes no more calls (`GOAWAY`, RFC 9113), as a server
    /// does that is about to be replaced; its sessions go on until it is stopped.
    pub fn go_away(&self, index: usize) {
        let endpoint = self.endpoints.get(index);
        if let Some(running) = endpoint.and_then(|endpoint| endpoint.running.as_ref()) {
            running.closing.cancel();
        }
    }

    /// Brings an endpoint back, on its old address.
    ///
    /// # Errors
    ///
    /// When someone else has taken the address.
    pub async fn start_endpoint(&mut self, index: usize) -> Result<(), SimulatorError> {
        let stopped = self
            .endpoints
            .get(index)
            .filter(|endpoint| endpoint.running.is_none());
        let Some(address) = stopped.map(|endpoint| endpoint.address) else {
            return Ok(());
        };
        let (_, running) = self.serve(index, address).await?;
        if let Some(endpoint) = self.endpoints.get_mut(index) {
            endpoint.running = Some(running);
        }
        Ok(())
    }

    /// What an endpoint answers to questions after its health, as a whole and of the stream. It
    /// serves sessions all the same. An endpoint that is started again serves.
    pub async fn set_serving(&self, endpoint: usize, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        let running = self.endpoints.get(endpoint);
        if let Some(running) = running.and_then(|endpoint| endpoint.running.as_ref()) {
            say(&running.health, status).await;
        }
    }
}

/// Has an endpoint's health told, as a whole and of the stream.
async fn say(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

/// Takes connections, each with its own handshake: one that is slow holds up no other. All of them
/// end with it.
async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Option<TlsAcceptor>>,
    accepted: mpsc::Sender<Socket>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = accepted.closed() => return,
            Some(_) = handshakes.join_next() => {}
            connection = listener.accept() => {
                // Whoever broke off before it was accepted is no fault of the endpoint.
                let Ok((tcp, _)) = connection else { continue };
                let (tls, accepted) = (tls.borrow().clone(), accepted.clone());
                handshakes.spawn(async move {
                    if let Some(socket) = Socket::accept(tcp, tls).await {
                        let _ = accepted.send(socket).await;
                    }
                });
            }
        }
    }
}
