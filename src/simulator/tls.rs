//! TLS of the simulated service, and the sockets that it serves.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::SimulatorError;
use crate::config::{Secret, TlsVersion};

/// How long a client may take to shake hands, or to leave once it is refused.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What an endpoint shows, and what it demands. All of it is PEM.
#[derive(Debug, Clone)]
pub struct SimulatorTls {
    /// Certificate chain of the service.
    pub certificate: String,
    /// Its private key.
    pub key: Secret,
    /// Who vouches for nodes: with it, no session without a certificate of theirs.
    pub client_ca: Option<String>,
    /// Speaks this version alone; 1.2 and 1.3 when unset.
    pub only: Option<TlsVersion>,
}

impl SimulatorTls {
    /// A service with this certificate, which demands none of its nodes.
    pub fn new(certificate: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            certificate: certificate.into(),
            key: Secret::new(key),
            client_ca: None,
            only: None,
        }
    }

    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, SimulatorError> {
        let failed = |what: &str| SimulatorError::Tls(format!("{what} cannot be used"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: &[&SupportedProtocolVersion] = match self.only {
            None => &[&TLS12, &TLS13],
            Some(TlsVersion::V1_2) => &[&TLS12],
            Some(TlsVersion::V1_3) => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| SimulatorError::Tls(error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(ca).ok_or_else(|| failed("the client CA"))? {
                    roots
                        .add(certificate)
                        .map_err(|_| failed("the client CA"))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build().map_err(|_| failed("the client CA"))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(&self.certificate).ok_or_else(|| failed("the certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.reveal().as_bytes())
            .map_err(|_| failed("the key"))?;
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| SimulatorError::Tls(error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    certificates.ok().filter(|chain| !chain.is_empty())
}

/// A node's connection, as the server takes it.
pub(super) struct Socket(Either<TcpStream, Box<TlsStream<TcpStream>>>);

impl Socket {
    /// Shakes hands where there is TLS; `None` when the node is refused.
    pub(super) async fn accept(tcp: TcpStream, tls: Option<TlsAcceptor>) -> Option<Self> {
        tcp.set_nodelay(true).ok()?;
        let Some(tls) = tls else {
            return Some(Self(Either::Left(tcp)));
        };
        let shaking = tls.accept(tcp).into_fallible();
        match timeout(HANDSHAKE_DEADLINE, shaking).await.ok()? {
            Ok(stream) => Some(Self(Either::Right(Box::new(stream)))),
            Err((error, tcp)) => {
                tracing::debug!(%error, "a node is refused");
                let _ = timeout(HANDSHAKE_DEADLINE, linger(tcp)).await;
                None
            }
        }
    }
}

/// Lets the node read why it is refused: a socket closed with unread bytes in it is reset, and the
/// alert with it.
async fn linger(mut tcp: TcpStream) {
    let mut unread = [0; 1024];
    let _ = tcp.shutdown().await;
    while let Ok(1..) = tcp.read(&mut unread).await {}
}

impl Connected for Socket {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
