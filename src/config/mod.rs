//! Configuration that cannot be wrong: every value here has been checked.
//!
//! [`Config::new`] gives the defaults to a node developer. [`Settings::load`] merges a file, the
//! environment and flags for a program, and reports every fault at once.

mod bridge;
mod check;
mod layers;
mod reader;
mod secret;
mod settings;
mod store;

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use bitcoin::{Network, secp256k1};
use tonic::transport::Uri;

use crate::message::{ChainId, FederationMember, NodeId};

pub use bridge::{BitcoindAuth, BitcoindConfig, BridgeConfig, BridgeSettings, LoopbackUrl};
pub use layers::{Layers, Origin};
pub use reader::EffectiveValue;
pub use secret::{Secret, TokenSource};
pub use settings::{Features, HttpSettings, LogFormat, Settings, TelemetrySettings};
pub use store::StoreSettings;

/// Everything a stream needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Prefix of every actor name of this instance: ractor's registry is global to the process.
    pub instance: InstanceName,
    /// Who we are.
    pub node: NodeConfig,
    /// How governance is reached.
    pub connection: ConnectionConfig,
    /// How much may wait.
    pub buffer: BufferConfig,
    /// How long requests may take.
    pub requests: RequestConfig,
    /// When children are restarted, and when no longer.
    pub supervision: SupervisionConfig,
    /// Who takes governance's messages.
    pub subscribers: SubscriberConfig,
    /// How long a call on the handle may take.
    pub call_deadline: Duration,
    /// How long a shutdown may spend on delivering what is left.
    pub drain_deadline: Duration,
}

/// Who we are.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Unique in the federation.
    pub node_id: NodeId,
    /// The node's public identity.
    pub public_key: secp256k1::PublicKey,
    /// The sidechain.
    pub chain_id: ChainId,
    /// The Bitcoin network.
    pub network: Network,
}

/// How governance is reached.
#[derive(Debug, Clone)]
pub struct ConnectionConfig {
    /// In order of preference, at least one. Another one than the first is used while the first is
    /// not well, and left for it again.
    pub endpoints: Vec<Endpoint>,
    /// Sent as `authorization: Bearer`, read at each dial.
    pub token: Option<TokenSource>,
    /// Needed for `https` endpoints.
    pub tls: Option<TlsConfig>,
    /// Pause between two looks at the files of token and certificates.
    pub credentials_interval: Duration,
    /// From the dial to an open connection, TLS included.
    pub connect_deadline: Duration,
    /// How long governance's answer to a registration may take; the journal has as long before it,
    /// and the comparison of the two records as long after it.
    pub registration_deadline: Duration,
    /// From the open connection to a probe's answers.
    pub probe_deadline: Duration,
    /// At most; governance may ask for shorter. Silence of 2.5 intervals ends a session.
    pub heartbeat_interval: Duration,
    /// A session in which heartbeats are answered, but nothing of a lane is acknowledged for this
    /// long, is left for another endpoint.
    pub stall_deadline: Duration,
    /// HTTP/2 ping after this much silence.
    pub keepalive_interval: Duration,
    /// A ping not answered within this ends the session.
    pub keepalive_timeout: Duration,
    /// Pause before the next attempt.
    pub backoff: BackoffConfig,
    /// Failures in a row after which an endpoint is left alone for a pause; then one probe or
    /// attempt finds out.
    pub breaker_failures: u32,
    /// How often the endpoints without the session are probed.
    pub probe_interval: Duration,
    /// A preferred endpoint whose probes came through for this long takes the session back.
    pub failback_after: Duration,
    /// The window we grant to governance in each lane.
    pub inbound_window: WindowConfig,
    /// Largest frame we take.
    pub max_frame_bytes: usize,
    /// Frames a second that may come without anything new in them, over all of a session; a peer
    /// that sends more is left.
    pub idle_frames_per_second: u32,
}

/// Exponential backoff with full jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffConfig {
    /// The first pause's upper bound.
    pub initial: Duration,
    /// No pause is longer, after jitter.
    pub max: Duration,
    /// Growth of the bound from attempt to attempt; at least 1.
    pub multiplier: f64,
    /// A session must last this long before the pauses start small again.
    pub stable_after: Duration,
}

/// What may be in flight in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowConfig {
    /// Messages.
    pub messages: u32,
    /// Sum of their payloads.
    pub bytes: u64,
}

/// Certificates, PEM, read at each dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// Who may vouch for governance. There is no implicit trust in public authorities.
    pub ca_file: PathBuf,
    /// Our certificate chain and key, for mutual TLS.
    pub identity: Option<TlsIdentity>,
    /// Name in governance's certificate; the endpoint's host by default.
    pub server_name: Option<String>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// From the open TCP connection to the end of the TLS handshake.
    pub handshake_deadline: Duration,
}

/// A version of TLS. Older ones are not spoken at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    V1_2,
    /// RFC 8446.
    V1_3,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        })
    }
}

impl FromStr for TlsVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "1.2" => Ok(Self::V1_2),
            "1.3" => Ok(Self::V1_3),
            _ => Err(()),
        }
    }
}

/// Our side of mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    /// Certificate chain.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
}

/// How much may wait in each lane for governance's acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferConfig {
    /// Messages in each lane.
    pub lane_messages: u64,
    /// Payload bytes in each lane.
    pub lane_bytes: u64,
    /// Messages in all lanes.
    pub total_messages: u64,
    /// Payload bytes in all lanes.
    pub total_bytes: u64,
    /// Acknowledged messages kept in each lane, for a ledger that governance might restore from a
    /// copy.
    pub acknowledged_retained: usize,
    /// How long they are kept, at most, from their acceptance on.
    pub acknowledged_for: Duration,
    /// Whether another ledger than the known one is adopted without an operator's word.
    pub adopt_ledger: bool,
    /// How long the store may take to commit, or a load to stand still, before the buffer fails. Half of it
    /// shows in health.
    pub commit_deadline: Duration,
}

/// How long each type of request may take before governance is asked to cancel it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestConfig {
    /// For peg-outs.
    pub pegout_deadline: Duration,
    /// For federation changes.
    pub federation_change_deadline: Duration,
    /// For emergencies.
    pub emergency_deadline: Duration,
}

/// When children are restarted, and when no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SupervisionConfig {
    /// Restarts of buffer and connection within `restart_window` before the supervisor fails.
    pub max_restarts: usize,
    /// See `max_restarts`.
    pub restart_window: Duration,
    /// Restarts of one request's tracker before the request is parked for an operator.
    pub max_tracker_restarts: usize,
    /// Pause before the first restart; doubles with each restart in the window.
    pub restart_pause: Duration,
    /// No pause is longer.
    pub max_restart_pause: Duration,
    /// How long a dead child's tasks may take to end before the supervisor fails.
    pub stop_deadline: Duration,
    /// How often every actor is asked for a sign of life.
    pub watch_interval: Duration,
    /// How long it may take to give one before it is killed and started again. It waits in the
    /// mailbox behind what came before; handlers await nothing, so that this is time to work.
    pub hang_deadline: Duration,
}

/// Registry names of the node's actors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriberConfig {
    /// Takes signatures and peg-in acknowledgements.
    pub bridge: String,
    /// Takes federation updates and proposals.
    pub chain: String,
}

/// The first federation, version 1. It comes from the configuration, never from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstFederation {
    /// Signatures needed to spend.
    pub threshold: u32,
    /// Its members.
    pub members: Vec<FederationMember>,
}

impl Config {
    /// The defaults for a node and its endpoints.
    #[must_use]
    pub fn new(node: NodeConfig, endpoints: Vec<Endpoint>) -> Self {
        Self {
            instance: InstanceName::default(),
            node,
            connection: ConnectionConfig::new(endpoints),
            buffer: BufferConfig::default(),
            requests: RequestConfig::default(),
            supervision: SupervisionConfig::default(),
            subscribers: SubscriberConfig::default(),
            call_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(10),
        }
    }
}

impl TlsConfig {
    /// The defaults for this CA, without a certificate of our own.
    #[must_use]
    pub fn new(ca_file: PathBuf) -> Self {
        Self {
            ca_file,
            identity: None,
            server_name: None,
            min_version: TlsVersion::V1_3,
            handshake_deadline: Duration::from_secs(5),
        }
    }
}

impl ConnectionConfig {
    /// The defaults for these endpoints, without credentials.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        let seconds = Duration::from_secs;
        Self {
            endpoints,
            token: None,
            tls: None,
            credentials_interval: seconds(5),
            connect_deadline: seconds(10),
            registration_deadline: seconds(10),
            probe_deadline: seconds(5),
            heartbeat_interval: seconds(5),
            stall_deadline: seconds(30),
            keepalive_interval: seconds(10),
            keepalive_timeout: seconds(5),
            backoff: BackoffConfig::default(),
            breaker_failures: 2,
            probe_interval: seconds(10),
            failback_after: seconds(60),
            inbound_window: WindowConfig {
                messages: 1024,
                bytes: 8 << 20,
            },
            max_frame_bytes: 4 << 20,
            idle_frames_per_second: 20_000,
        }
    }
}

impl ConnectionConfig {
    /// How long token and certificates may take to be read: a file system that hangs must not hold
    /// a dial for ever.
    pub(crate) const READ_DEADLINE: Duration = Duration::from_secs(5);

    /// The longest that a dial may take: reading, connecting, shaking hands.
    pub(crate) fn dial_deadline(&self) -> Duration {
        let handshake = self.tls.as_ref().map(|tls| tls.handshake_deadline);
        Self::READ_DEADLINE + self.connect_deadline + handshake.unwrap_or_default()
    }
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(200),
            max: Duration::from_secs(30),
            multiplier: 2.0,
            stable_after: Duration::from_secs(30),
        }
    }
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self {
            lane_messages: 100_000,
            lane_bytes: 256 << 20,
            total_messages: 250_000,
            total_bytes: 512 << 20,
            acknowledged_retained: 1000,
            acknowledged_for: Duration::from_secs(24 * 3600),
            adopt_ledger: false,
            commit_deadline: Duration::from_secs(30),
        }
    }
}

impl Default for RequestConfig {
    fn default() -> Self {
        Self {
            pegout_deadline: Duration::from_secs(600),
            federation_change_deadline: Duration::from_secs(3600),
            emergency_deadline: Duration::from_secs(600),
        }
    }
}

impl Default for SupervisionConfig {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            restart_window: Duration::from_secs(60),
            max_tracker_restarts: 3,
            restart_pause: Duration::from_millis(50),
            max_restart_pause: Duration::from_secs(5),
            stop_deadline: Duration::from_secs(5),
            watch_interval: Duration::from_secs(5),
            hang_deadline: Duration::from_secs(15),
        }
    }
}

impl Default for SubscriberConfig {
    fn default() -> Self {
        Self {
            bridge: "bridge".to_owned(),
            chain: "chain".to_owned(),
        }
    }
}

/// Prefix of an instance's actor names: 1 to 32 characters of `[a-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceName(String);

impl InstanceName {
    /// The prefix as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceName {
    fn default() -> Self {
        Self("governance".to_owned())
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstanceName {
    type Err = ConfigFault;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
        if (1..=32).contains(&name.len()) && name.chars().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            Err(ConfigFault::new(
                "instance",
                format!("{name:?}"),
                "1 to 32 characters of [a-z0-9_-]",
            ))
        }
    }
}

/// Where governance listens: `https://host:port`, or `http://` to a loopback address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Uri);

impl Endpoint {
    /// The URI to dial.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Whether it must be dialled with TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let authority = self
            .0
            .authority()
            .map_or("", |authority| authority.as_str());
        write!(f, "{scheme}://{authority}")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Endpoint {
    type Err = ConfigFault;

    /// Refuses plaintext to anything but a literal loopback address: a name may resolve to
    /// anything.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = |shown: &str, expected: &str| {
            ConfigFault::new("connection.endpoints", format!("{shown:?}"), expected)
        };
        let uri: Uri = text
            .parse()
            .map_err(|_| fault(text, "https://HOST:PORT, or http://127.0.0.1:PORT"))?;
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(fault(
                "(hidden)",
                "an endpoint without user or password; use connection.token",
            ));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if host.is_empty() || !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
            return Err(fault(text, "https://HOST:PORT without a path"));
        }
        match uri.scheme_str() {
            Some("https") => Ok(Self(uri)),
            Some("http") if loopback => Ok(Self(uri)),
            Some("http") => Err(fault(
                text,
                "https: plaintext is allowed to 127.0.0.0/8 and [::1] only",
            )),
            _ => Err(fault(text, "https://HOST:PORT")),
        }
    }
}

/// One fault of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: expected {expected}")]
pub struct ConfigFault {
    /// Dotted key, as in the file.
    pub key: String,
    /// What it held (masked for secrets), and where that came from.
    pub value: String,
    /// What would be right.
    pub expected: String,
}

impl ConfigFault {
    /// Names the key, what it held and what would be right.
    pub fn new(
        key: impl Into<String>,
        value: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            expected: expected.into(),
        }
    }
}

/// Every fault of a configuration, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<ConfigFault>);

impl std::error::Error for ConfigError {}

impl From<ConfigFault> for ConfigError {
    fn from(fault: ConfigFault) -> Self {
        Self(vec![fault])
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.0.len();
        write!(
            f,
            "the configuration has {faults} fault{}:",
            if faults == 1 { "" } else { "s" }
        )?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}
