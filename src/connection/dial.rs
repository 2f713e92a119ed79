//! Opens the transport to an endpoint: TCP, TLS where the endpoint wants it, HTTP/2.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint as Transport, Uri},
};

use super::{
    credentials::Credentials,
    fault::SessionFault,
    handshake::{explain, shake_hands},
    witness::{Break, Witness},
};
use crate::config::{ConfigFault, ConnectionConfig, Endpoint};

/// An open connection.
#[derive(Debug)]
pub(super) struct Dialled {
    /// For calls. It is one connection: when that is lost, calls fail, and nothing dials again
    /// behind our back.
    pub channel: Channel,
    target: Endpoint,
    broken: Arc<Break>,
    /// Set when another connection was wanted: this one takes no more calls.
    closing: Arc<AtomicBool>,
}

impl Dialled {
    /// Whether it takes no more calls, as the last one has shown: the calls that it carries may go
    /// on, but governance has said (`GOAWAY`) that the connection ends with them.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// The fault that a status of a call stands for. Under TLS 1.3 governance judges our
    /// certificate only after the handshake, so that its refusal comes as a status.
    pub(super) fn fault_of(&self, status: &Status) -> SessionFault {
        let Self { target, broken, .. } = self;
        if let Some(refusal) = broken.tls_fault() {
            return SessionFault::Unreachable(format!("{target}: {refusal}"));
        }
        // Our own reading half says so of a frame that is too large.
        if status.code() == Code::OutOfRange {
            return SessionFault::Excess(format!("{target}: {}", status.message()));
        }
        SessionFault::Status {
            code: status.code(),
            message: format!("{target}: {}", status.message()),
        }
    }
}

/// Opens a connection.
///
/// # Errors
///
/// [`SessionFault::Credentials`] when what we have cannot do for this endpoint,
/// [`SessionFault::Unreachable`] with the endpoint and the cause otherwise.
pub(super) async fn dial(
    target: &Endpoint,
    config: &ConnectionConfig,
    credentials: &Credentials,
) -> Result<Dialled, SessionFault> {
    let unreachable = |cause: String| SessionFault::Unreachable(format!("{target}: {cause}"));
    if !target.is_tls() {
        let tcp = connect(target, config).await?;
        let peer = tcp
            .peer_addr()
            .map_err(|error| unreachable(error.to_string()))?;
        if !peer.ip().is_loopback() {
            return Err(unreachable(format!("plaintext to {peer} is refused")));
        }
        return open(target, config, tcp).await.map_err(unreachable);
    }
    let (Some(tls), Some(settings)) = (&credentials.tls, &config.tls) else {
        return Err(SessionFault::Credentials(ConfigFault::new(
            "connection.tls",
            "absent",
            format!("a CA for {target}: https is never dialled without one"),
        )));
    };
    let name = settings.server_name.as_deref().unwrap_or(host(target));
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        let expected = format!("a DNS name or an IP address, for {target}");
        let fault = ConfigFault::new("connection.tls.server_name", format!("{name:?}"), expected);
        SessionFault::Credentials(fault)
    })?;
    let tcp = connect(target, config).await?;
    let stream = shake_hands(tcp, name, tls.clone(), settings.handshake_deadline);
    let stream = stream.await.map_err(unreachable)?;
    open(target, config, stream).await.map_err(unreachable)
}

fn host(target: &Endpoint) -> &str {
    target
        .uri()
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
}

/// A TCP connection to the first address of the endpoint's name that takes one.
async fn connect(target: &Endpoint, config: &ConnectionConfig) -> Result<TcpStream, SessionFault> {
    let port = if target.is_tls() { 443 } else { 80 };
    let port = target.uri().port_u16().unwrap_or(port);
    let within = config.connect_deadline;
    let connecting = async {
        let tcp = match host(target).parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, port)).await,
            Err(_) => TcpStream::connect((host(target), port)).await,
        }?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    };
    let awaited = "TCP connection";
    timeout(within, connecting)
        .await
        .map_err(|_| SessionFault::TooSlow { awaited, within })?
        .map_err(|error: io::Error| SessionFault::Unreachable(format!("{target}: {error}")))
}

/// HTTP/2 over an open connection.
async fn open(
    target: &Endpoint,
    config: &ConnectionConfig,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Dialled, String> {
    let authority = target.uri().authority().map_or("", |a| a.as_str());
    // TLS is done: tonic must not look for its own. What governance sees is the origin.
    let inner = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/")
        .build()
        .map_err(|error| error.to_string())?;
    let broken: Arc<Break> = Arc::default();
    let stream = Witness::new(stream, Arc::clone(&broken));
    let mut stream = Some(hyper_util::rt::TokioIo::new(stream));
    let closing: Arc<AtomicBool> = Arc::default();
    let wanted_again = Arc::clone(&closing);
    let once = tower::service_fn(move |_: Uri| {
        if stream.is_none() {
            wanted_again.store(true, Ordering::Relaxed);
        }
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the connection is lost");
        std::future::ready(stream.take().ok_or_else(lost))
    });
    let channel = Transport::from(inner)
        .origin(target.uri().clone())
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true)
        .connect_with_connector(once)
        .await
        .map_err(|error| broken.tls_fault().unwrap_or_else(|| explain(&error)))?;
    Ok(Dialled {
        channel,
        target: target.clone(),
        broken,
        closing,
    })
}
