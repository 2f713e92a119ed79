//! Opens the transport to an endpoint. Certificates and token are read at each dial, so that
//! rotated ones are taken up.

use std::{fs, path::Path};

use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint as Transport, Identity},
};

use super::fault::SessionFault;
use crate::config::{ConfigFault, ConnectionConfig, Endpoint, TlsConfig};

/// What one dial needs from disk.
struct Credentials {
    authorization: Option<MetadataValue<Ascii>>,
    tls: Option<ClientTlsConfig>,
}

/// An open connection, and the header that authenticates each call on it.
pub(super) async fn dial(
    target: &Endpoint,
    config: &ConnectionConfig,
) -> Result<(Channel, Option<MetadataValue<Ascii>>), SessionFault> {
    let credentials = {
        let (target, config) = (target.clone(), config.clone());
        tokio::task::spawn_blocking(move || read_credentials(&target, &config))
            .await
            .map_err(|error| SessionFault::Unreachable(error.to_string()))?
            .map_err(SessionFault::Credentials)?
    };
    let unreachable = |error: tonic::transport::Error| {
        SessionFault::Unreachable(format!("{target}: {}", with_causes(&error)))
    };
    let mut transport = Transport::from(target.uri().clone())
        .connect_timeout(config.connect_deadline)
        .http2_keep_alive_interval(config.keepalive_interval)
        .keep_alive_timeout(config.keepalive_timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    if let Some(tls) = credentials.tls {
        transport = transport.tls_config(tls).map_err(unreachable)?;
    }
    let channel = transport.connect().await.map_err(unreachable)?;
    Ok((channel, credentials.authorization))
}

fn read_credentials(
    target: &Endpoint,
    config: &ConnectionConfig,
) -> Result<Credentials, ConfigFault> {
    let authorization = config
        .token
        .as_ref()
        .map(|source| {
            let mut value = MetadataValue::try_from(format!("Bearer {}", source.read()?.reveal()))
                .map_err(|_| {
                    ConfigFault::new("connection.token", "(hidden)", "visible ASCII characters")
                })?;
            value.set_sensitive(true);
            Ok(value)
        })
        .transpose()?;
    let tls = match (&config.tls, target.is_tls()) {
        (_, false) => None,
        (Some(tls), true) => Some(client_tls(tls)?),
        (None, true) => {
            return Err(ConfigFault::new(
                "connection.tls",
                "absent",
                format!("a CA for {target}: https is never dialled without one"),
            ));
        }
    };
    Ok(Credentials { authorization, tls })
}

fn client_tls(config: &TlsConfig) -> Result<ClientTlsConfig, ConfigFault> {
    let ca = read_pem("connection.tls.ca_file", &config.ca_file)?;
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    if let Some(identity) = &config.identity {
        let cert = read_pem("connection.tls.cert_file", &identity.cert_file)?;
        let key = read_pem("connection.tls.key_file", &identity.key_file)?;
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    if let Some(name) = &config.server_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

fn read_pem(key: &str, path: &Path) -> Result<Vec<u8>, ConfigFault> {
    fs::read(path).map_err(|error| {
        ConfigFault::new(
            key,
            format!("{} ({error})", path.display()),
            "a readable PEM file",
        )
    })
}

/// tonic's own text is "transport error": what matters is behind it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
