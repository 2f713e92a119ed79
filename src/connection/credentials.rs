//! What proves us to governance, and governance to us: token, CA, certificate and key. They are
//! read whole at each dial, and watched between dials.

use std::{
    fmt, fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bitcoin::{
    base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD},
    hashes::{Hash as _, HashEngine as _, sha256},
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use x509_cert::{Certificate, der::Decode as _};

use super::fault::SessionFault;
use crate::config::{ConfigFault, ConnectionConfig, TlsConfig, TlsIdentity, TlsVersion};

const CA: &str = "connection.tls.ca_file";
const CERTIFICATE: &str = "connection.tls.cert_file";
const KEY: &str = "connection.tls.key_file";

/// Everything that a dial needs from disk, consistent in itself. Nothing of it is ever shown.
#[derive(Clone)]
pub(super) struct Credentials {
    /// The header that authenticates each call, marked as sensitive.
    pub authorization: Option<MetadataValue<Ascii>>,
    /// Trust and identity for `https`; `None` without a CA.
    pub tls: Option<Arc<ClientConfig>>,
    /// Tells these from other ones.
    pub fingerprint: Fingerprint,
    /// `exp` of a token that is a JWT (RFC 7519), unverified: the node only plans by it.
    pub token_expires: Option<SystemTime>,
    /// `notAfter` of our own certificate.
    pub certificate_expires: Option<SystemTime>,
}

/// Equal when token, CA, certificate and key are. It is not shown: a short token could be guessed
/// from it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint(sha256::Hash);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(***)")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("token_expires", &self.token_expires)
            .field("certificate_expires", &self.certificate_expires)
            .finish_non_exhaustive()
    }
}

/// What may be told of credentials: whether they are these, and until when they are good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    pub fingerprint: Fingerprint,
    pub certificate_expires: Option<SystemTime>,
    pub token_expires: Option<SystemTime>,
}

/// What another look at the files has shown.
#[derive(Debug)]
pub(crate) enum CredentialChange {
    /// They are not the ones known so far, and of use.
    Renewed(Validity),
    /// They cannot be used; what is known stays in use. Another fault is told again.
    Faulty(ConfigFault),
    /// The fault is gone, and they are the known ones.
    Restored,
}

/// What is known of the files. Pure.
#[derive(Debug, Default)]
pub(super) struct Observed {
    known: Option<Fingerprint>,
    fault: Option<ConfigFault>,
}

impl Observed {
    /// What is new in what was read. The first ones that can be used are.
    pub(super) fn look(
        &mut self,
        read: Result<Credentials, ConfigFault>,
    ) -> Option<CredentialChange> {
        match read {
            Ok(credentials) => {
                let healed = self.fault.take().is_some();
                if self.known == Some(credentials.fingerprint) {
                    return healed.then_some(CredentialChange::Restored);
                }
                self.known = Some(credentials.fingerprint);
                Some(CredentialChange::Renewed(credentials.validity()))
            }
            Err(fault) if self.fault.as_ref() == Some(&fault) => None,
            Err(fault) => {
                self.fault = Some(fault.clone());
                Some(CredentialChange::Faulty(fault))
            }
        }
    }
}

/// Reads the files again and again, and reports each change, until it is dropped. A rotation that
/// is half written is a fault that passes: a key is never used with another one's certificate.
pub(super) async fn watch(config: ConnectionConfig, mut report: impl FnMut(CredentialChange)) {
    let mut observed = Observed::default();
    let mut looks = interval(config.credentials_interval);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let read = match Credentials::load(&config).await {
            Ok(credentials) => Ok(credentials),
            Err(SessionFault::Credentials(fault)) => Err(fault),
            // Nothing was learnt: the next look may tell.
            Err(_) => continue,
        };
        if let Some(change) = observed.look(read) {
            report(change);
        }
    }
}

impl Credentials {
    /// What may be told of them.
    pub(super) fn validity(&self) -> Validity {
        Validity {
            fingerprint: self.fingerprint,
            certificate_expires: self.certificate_expires,
            token_expires: self.token_expires,
        }
    }

    /// Reads them where blocking does no harm.
    ///
    /// # Errors
    ///
    /// [`SessionFault::Credentials`] when they cannot be used, [`SessionFault::TooSlow`] when they
    /// cannot be read in time.
    pub(super) async fn load(config: &ConnectionConfig) -> Result<Self, SessionFault> {
        let config = config.clone();
        let reading = tokio::task::spawn_blocking(move || Self::read(&config));
        let read = timeout(ConnectionConfig::READ_DEADLINE, reading).await;
        let slow = SessionFault::TooSlow {
            awaited: "reading of token and certificates",
            within: ConnectionConfig::READ_DEADLINE,
        };
        read.map_err(|_| slow)?
            .map_err(|error| SessionFault::Unreachable(error.to_string()))?
            .map_err(SessionFault::Credentials)
    }

    /// Reads and checks all of them. It blocks.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or parsed, the key does not fit the certificate, or the
    /// certificate has expired. No error shows a file's contents.
    pub(super) fn read(config: &ConnectionConfig) -> Result<Self, ConfigFault> {
        let mut contents = sha256::Hash::engine();
        let token = config.token.as_ref().map(|source| source.read());
        let token = token.transpose()?;
        let mut authorization = None;
        if let Some(token) = &token {
            let value = MetadataValue::try_from(format!("Bearer {}", token.reveal()));
            let mut value = value.map_err(|_| {
                ConfigFault::new("connection.token", "(hidden)", "visible ASCII characters")
            })?;
            value.set_sensitive(true);
            authorization = Some(value);
            add(&mut contents, token.reveal().as_bytes());
        }
        let (tls, certificate_expires) = match &config.tls {
            Some(tls) => {
                let (tls, expires) = client_config(tls, &mut contents)?;
                (Some(Arc::new(tls)), expires)
            }
            None => (None, None),
        };
        Ok(Self {
            authorization,
            tls,
            fingerprint: Fingerprint(sha256::Hash::from_engine(contents)),
            token_expires: token.and_then(|token| expiry_of_jwt(token.reveal())),
            certificate_expires,
        })
    }
}

/// Adds one file; its length keeps it apart from the next one.
fn add(contents: &mut sha256::HashEngine, file: &[u8]) {
    contents.input(&(file.len() as u64).to_le_bytes());
    contents.input(file);
}

fn client_config(
    config: &TlsConfig,
    contents: &mut sha256::HashEngine,
) -> Result<(ClientConfig, Option<SystemTime>), ConfigFault> {
    let ca = read_file(CA, &config.ca_file, contents)?;
    let mut roots = RootCertStore::empty();
    for certificate in chain(CA, &config.ca_file, &ca)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(CA, &config.ca_file, error, "certificates, PEM"))?;
    }
    let versions: &[&SupportedProtocolVersion] = match config.min_version {
        TlsVersion::V1_2 => &[&TLS12, &TLS13],
        TlsVersion::V1_3 => &[&TLS13],
    };
    // The provider is given rather than installed: a process-wide one is the node's to choose.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| {
            let version = config.min_version.to_string();
            let shown = format!("{version} ({error})");
            ConfigFault::new("connection.tls.min_version", shown, "\"1.2\" or \"1.3\"")
        })?
        .with_root_certificates(roots);
    let (mut tls, expires) = match &config.identity {
        Some(identity) => {
            let (chain, key, expires) = read_identity(identity, contents)?;
            let tls = builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| misfit(identity, &error))?;
            (tls, Some(expires))
        }
        None => (builder.with_no_client_auth(), None),
    };
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would speak for the certificate of the one before.
    tls.resumption = Resumption::disabled();
    Ok((tls, expires))
}

type Identity = (
    Vec<CertificateDer<'static>>,
    PrivateKeyDer<'static>,
    SystemTime,
);

fn read_identity(
    identity: &TlsIdentity,
    contents: &mut sha256::HashEngine,
) -> Result<Identity, ConfigFault> {
    let path = &identity.cert_file;
    let certificates = chain(CERTIFICATE, path, &read_file(CERTIFICATE, path, contents)?)?;
    let expires = certificates
        .first()
        .and_then(|leaf| Certificate::from_der(leaf).ok())
        .map(|leaf| leaf.tbs_certificate().validity().not_after)
        .and_then(|end| UNIX_EPOCH.checked_add(end.to_unix_duration()));
    let Some(expires) = expires else {
        return Err(unusable(
            CERTIFICATE,
            path,
            "no X.509 certificate",
            "our certificate and its chain, PEM",
        ));
    };
    if expires <= SystemTime::now() {
        let when = humantime::format_rfc3339_seconds(expires);
        let reason = format!("expired at {when}");
        return Err(unusable(
            CERTIFICATE,
            path,
            reason,
            "a certificate that is valid now",
        ));
    }
    let key = read_file(KEY, &identity.key_file, contents)?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| unusable(KEY, &identity.key_file, "no private key", "one, PEM"))?;
    Ok((certificates, key, expires))
}

/// A file is named with the reason, and never shown.
fn unusable(key: &str, path: &Path, reason: impl fmt::Display, expected: &str) -> ConfigFault {
    ConfigFault::new(key, format!("{} ({reason})", path.display()), expected)
}

fn misfit(identity: &TlsIdentity, error: &rustls::Error) -> ConfigFault {
    let reason = match error {
        rustls::Error::InconsistentKeys(_) => "another one's key".to_owned(),
        other => other.to_string(),
    };
    let expected = format!("the key of {}", identity.cert_file.display());
    unusable(KEY, &identity.key_file, reason, &expected)
}

fn read_file(
    key: &str,
    path: &Path,
    contents: &mut sha256::HashEngine,
) -> Result<Vec<u8>, ConfigFault> {
    let file = fs::read(path).map_err(|error| unusable(key, path, error, "a readable PEM file"))?;
    add(contents, &file);
    Ok(file)
}

/// The certificates of a file, at least one.
fn chain(key: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigFault> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unusable(
            key,
            path,
            "no certificate in it",
            "certificates, PEM",
        )),
        // Its error may quote a line of the file.
        Err(_) => Err(unusable(key, path, "no PEM", "certificates, PEM")),
    }
}

/// When a token says that it ends, if it is a JWT and says so.
fn expiry_of_jwt(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let since = Duration::try_from_secs_f64(claims.exp).ok()?;
    UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
