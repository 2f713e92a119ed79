//! The TLS handshake with an endpoint, and its failures in an operator's words.

use std::{error::Error, io, sync::Arc, time::Duration};

use rustls::{AlertDescription, CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Speaks TLS over an open connection. The certificate is always verified, against the configured
/// CA and `name`.
///
/// # Errors
///
/// What went wrong, in words; the caller names the endpoint.
pub(super) async fn shake_hands(
    tcp: TcpStream,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    within: Duration,
) -> Result<TlsStream<TcpStream>, String> {
    let stream = timeout(within, TlsConnector::from(tls).connect(name, tcp))
        .await
        .map_err(|_| format!("no end of the TLS handshake within {within:?}"))?
        .map_err(|error| explain(&error))?;
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Ok(stream),
        _ => Err("it does not speak HTTP/2 over TLS".to_owned()),
    }
}

/// An error of the transport with its causes. Where TLS is among them, that alone is told, in an
/// operator's words.
pub(super) fn explain(error: &(dyn Error + 'static)) -> String {
    match tls_fault(error) {
        Some(tls) => tls,
        None => {
            let causes = std::iter::successors(error.source(), |cause| (*cause).source());
            causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
        }
    }
}

/// The fault of TLS that is behind an error, in an operator's words.
pub(super) fn tls_fault(error: &(dyn Error + 'static)) -> Option<String> {
    rustls_of(error).map(in_words)
}

/// The TLS error among an error and its causes. `io::Error` does not count what it wraps as its
/// source.
fn rustls_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut causes = std::iter::successors(Some(error), |cause| {
        let wrapped = cause
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref());
        match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => (*cause).source(),
        }
    });
    causes.find_map(|cause| cause.downcast_ref::<rustls::Error>())
}

fn in_words(error: &rustls::Error) -> String {
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(fault) => certificate_in_words(fault),
        Tls::AlertReceived(AlertDescription::ProtocolVersion) | Tls::PeerIncompatible(_) => {
            format!(
                "it speaks no version of TLS that connection.tls.min_version allows, or no cipher \
                 of it ({error})"
            )
        }
        Tls::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of ours; set connection.tls.cert_file and key_file".to_owned()
        }
        Tls::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError),
        ) => format!("it refuses our certificate, connection.tls.cert_file ({alert:?})"),
        Tls::AlertReceived(AlertDescription::NoApplicationProtocol)
        | Tls::NoApplicationProtocol => "it does not speak HTTP/2 over TLS".to_owned(),
        Tls::InvalidMessage(_) => format!("what it says is no TLS ({error})"),
        other => format!("TLS: {other}"),
    }
}

fn certificate_in_words(fault: &CertificateError) -> String {
    match fault {
        // An authority of the same name with another key is another authority.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate has an unknown issuer: no authority of connection.tls.ca_file vouches \
             for it"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("its certificate has expired ({fault})")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "its certificate is for another name ({fault}); connection.tls.server_name says \
                 which is expected"
            )
        }
        other => format!("its certificate cannot be trusted ({other})"),
    }
}
