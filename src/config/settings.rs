//! Everything the binary needs to know, read from the layers: every fault at once, every value
//! with its origin.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use bitcoin::Network;
use toml::Value;

use super::{
    BackoffConfig, BridgeSettings, BufferConfig, Config, ConfigError, ConfigFault,
    ConnectionConfig, Endpoint, FirstFederation, InstanceName, Layers, NodeConfig, Origin,
    RequestConfig, Secret, StoreSettings, SubscriberConfig, SupervisionConfig, TlsConfig,
    TlsIdentity, TokenSource, WindowConfig,
    check::Checked,
    reader::{EffectiveValue, MASKED, Reader, UNSET, list_of},
};
use crate::{chain::FederationPolicy, message::FederationMember};

/// What a program that runs the stream is configured with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The stream.
    pub stream: Config,
    /// What runs beside it.
    pub features: Features,
    /// The first federation.
    pub federation: FirstFederation,
    /// What no later one may go below.
    pub federation_policy: FederationPolicy,
    /// Health and metrics.
    pub http: HttpSettings,
    /// Logs and traces.
    pub telemetry: TelemetrySettings,
    /// Where everything lies that must survive this process.
    pub data_dir: PathBuf,
    /// How the store there is looked after.
    pub store: StoreSettings,
    /// The bridge's own.
    pub bridge: BridgeSettings,
    /// Every key with its value and origin, secrets masked.
    pub effective: Vec<EffectiveValue>,
}

/// What runs beside the stream; each can be rolled out alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// The bridge of this crate. Without it another actor takes its name, or its lanes wait.
    pub bridge: bool,
    /// The chain of this crate.
    pub chain: bool,
    /// The HTTP endpoints.
    pub http: bool,
}

/// Health and metrics over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpSettings {
    /// A loopback address.
    pub listen: SocketAddr,
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// What is logged, as `tracing-subscriber`'s filter directives.
    pub log: String,
    /// How it is written.
    pub log_format: LogFormat,
    /// Where traces go (OTLP over gRPC); nowhere when unset.
    pub otlp_endpoint: Option<Endpoint>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}

impl Settings {
    /// Reads and checks everything.
    ///
    /// # Errors
    ///
    /// Every fault: unknown keys, wrong values, values that are missing or disagree.
    pub fn load(layers: Layers) -> Result<Self, ConfigError> {
        let (values, faults) = layers.into_parts();
        let mut reader = Reader::new(values, faults);
        let instance = reader.parsed(
            "instance",
            InstanceName::default(),
            "1 to 32 characters of [a-z0-9_-]",
        );
        let node = reader.node();
        let connection = reader.connection();
        let buffer = reader.buffer();
        let requests = reader.requests();
        let supervision = reader.supervision();
        let names = SubscriberConfig::default();
        let subscribers = SubscriberConfig {
            bridge: reader
                .text("subscribers.bridge", Some(names.bridge))
                .unwrap_or_default(),
            chain: reader
                .text("subscribers.chain", Some(names.chain))
                .unwrap_or_default(),
        };
        let call_deadline = reader.duration("call_deadline", Duration::from_secs(10));
        let drain_deadline = reader.duration("drain_deadline", Duration::from_secs(10));
        let federation = reader.federation();
        let federation_policy = reader.federation_policy();
        let features = Features {
            bridge: reader.parsed("features.bridge", true, "true or false"),
            chain: reader.parsed("features.chain", true, "true or false"),
            http: reader.parsed("features.http", true, "true or false"),
        };
        let http = reader.http();
        let telemetry = reader.telemetry();
        let data_dir = reader.parsed("data_dir", PathBuf::from("data"), "a directory");
        let store = reader.store();
        let bridge = reader.bridge();
        let (effective, mut faults) = reader.finish();
        let checked = Checked {
            connection: &connection,
            buffer: &buffer,
            requests: &requests,
            supervision: &supervision,
            subscribers: &subscribers,
            call_deadline,
            drain_deadline,
        };
        for fault in checked.faults() {
            // Where a value was refused already, its default or nothing stands.
            if faults.iter().all(|known| known.key != fault.key) {
                faults.push(fault);
            }
        }
        let (Some(node), Some(federation), true) = (node, federation, faults.is_empty()) else {
            return Err(ConfigError(faults));
        };
        let stream = Config {
            instance,
            node,
            connection,
            buffer,
            requests,
            supervision,
            subscribers,
            call_deadline,
            drain_deadline,
        };
        Ok(Self {
            stream,
            features,
            federation,
            federation_policy,
            http,
            telemetry,
            data_dir,
            store,
            bridge,
            effective,
        })
    }
}

impl Reader {
    fn node(&mut self) -> Option<NodeConfig> {
        fn quoted(text: &impl ToString) -> String {
            format!("{:?}", text.to_string())
        }
        let node_id = self.required(
            "node.node_id",
            "1 to 64 characters of [A-Za-z0-9._-]",
            quoted,
        );
        let public_key = self.required(
            "node.public_key",
            "a compressed secp256k1 key, 66 hexadecimal digits",
            quoted,
        );
        let chain_id = self.required(
            "node.chain_id",
            "1 to 64 characters of [A-Za-z0-9._-]",
            quoted,
        );
        let network = self.required(
            "node.network",
            "bitcoin, testnet, testnet4, signet or regtest",
            |n: &Network| quoted(n),
        );
        Some(NodeConfig {
            node_id: node_id?,
            public_key: public_key?,
            chain_id: chain_id?,
            network: network?,
        })
    }

    fn connection(&mut self) -> ConnectionConfig {
        let defaults = ConnectionConfig::new(Vec::new());
        let window = defaults.inbound_window;
        ConnectionConfig {
            endpoints: self.endpoints(),
            token: self.token(),
            tls: self.tls(),
            credentials_interval: self.duration(
                "connection.credentials_interval",
                defaults.credentials_interval,
            ),
            connect_deadline: self
                .duration("connection.connect_deadline", defaults.connect_deadline),
            registration_deadline: self.duration(
                "connection.registration_deadline",
                defaults.registration_deadline,
            ),
            probe_deadline: self.duration("connection.probe_deadline", defaults.probe_deadline),
            heartbeat_interval: self
                .duration("connection.heartbeat_interval", defaults.heartbeat_interval),
            stall_deadline: self.duration("connection.stall_deadline", defaults.stall_deadline),
            keepalive_interval: self
                .duration("connection.keepalive_interval", defaults.keepalive_interval),
            keepalive_timeout: self
                .duration("connection.keepalive_timeout", defaults.keepalive_timeout),
            backoff: self.backoff(),
            breaker_failures: self.parsed(
                "connection.breaker_failures",
                defaults.breaker_failures,
                "a number of failures",
            ),
            probe_interval: self.duration("connection.probe_interval", defaults.probe_interval),
            failback_after: self.duration("connection.failback_after", defaults.failback_after),
            inbound_window: WindowConfig {
                messages: self.parsed(
                    "connection.inbound_window.messages",
                    window.messages,
                    "a number of messages",
                ),
                bytes: self.parsed(
                    "connection.inbound_window.bytes",
                    window.bytes,
                    "a number of bytes",
                ),
            },
            max_frame_bytes: self.parsed(
                "connection.max_frame_bytes",
                defaults.max_frame_bytes,
                "a number of bytes",
            ),
            idle_frames_per_second: self.parsed(
                "connection.idle_frames_per_second",
                defaults.idle_frames_per_second,
                "a number of frames",
            ),
        }
    }

    fn endpoints(&mut self) -> Vec<Endpoint> {
        const KEY: &str = "connection.endpoints";
        let Some((value, origin)) = self.take(KEY) else {
            self.fault(
                KEY,
                UNSET,
                &Origin::Default,
                "at least one endpoint: [\"https://HOST:PORT\"]",
            );
            return Vec::new();
        };
        let Some(texts) = list_of(&value) else {
            self.fault(KEY, "(no list)", &origin, "a list: [\"https://HOST:PORT\"]");
            return Vec::new();
        };
        if texts.is_empty() {
            self.fault(KEY, "[]", &origin, "at least one endpoint");
        }
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for text in texts {
            match text.parse::<Endpoint>() {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(fault) => self.fault(KEY, &fault.value, &origin, &fault.expected),
            }
        }
        let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        self.show(KEY, &format!("{shown:?}"), origin);
        endpoints
    }

    fn token(&mut self) -> Option<TokenSource> {
        const KEY: &str = "connection.token";
        let inline = self.take(KEY);
        let shown = inline.as_ref().map_or(UNSET, |_| MASKED);
        let origin = inline
            .as_ref()
            .map_or(Origin::Default, |(_, origin)| origin.clone());
        self.show(KEY, shown, origin);
        let file = self.path("connection.token_file");
        match (inline, file) {
            (Some((_, origin)), Some(_)) => {
                self.fault(KEY, MASKED, &origin, "either this or connection.token_file");
                None
            }
            (Some((Value::String(token), _)), None) => {
                Some(TokenSource::Inline(Secret::new(token)))
            }
            (Some((_, origin)), None) => {
                self.fault(KEY, MASKED, &origin, "text");
                None
            }
            (None, file) => file.map(TokenSource::File),
        }
    }

    fn tls(&mut self) -> Option<TlsConfig> {
        let ca_file = self.path("connection.tls.ca_file");
        let cert_file = self.path("connection.tls.cert_file");
        let key_file = self.path("connection.tls.key_file");
        let server_name = self.text("connection.tls.server_name", None);
        let defaults = TlsConfig::new(PathBuf::new());
        let min_version = self.parsed(
            "connection.tls.min_version",
            defaults.min_version,
            "\"1.2\" or \"1.3\"",
        );
        let handshake_deadline = self.duration(
            "connection.tls.handshake_deadline",
            defaults.handshake_deadline,
        );
        let wanted = cert_file.is_some() || key_file.is_some() || server_name.is_some();
        let identity = match (cert_file, key_file) {
            (Some(cert_file), Some(key_file)) => Some(TlsIdentity {
                cert_file,
                key_file,
            }),
            (None, None) => None,
            (cert_file, _) => {
                let (missing, present) = match cert_file {
                    Some(_) => ("connection.tls.key_file", "connection.tls.cert_file"),
                    None => ("connection.tls.cert_file", "connection.tls.key_file"),
                };
                self.fault(
                    missing,
                    UNSET,
                    &Origin::Default,
                    &format!("a path, beside {present}"),
                );
                None
            }
        };
        if ca_file.is_none() && wanted {
            let expected = "the CA that vouches for governance, beside connection.tls.*";
            self.fault("connection.tls.ca_file", UNSET, &Origin::Default, expected);
        }
        ca_file.map(|ca_file| TlsConfig {
            ca_file,
            identity,
            server_name,
            min_version,
            handshake_deadline,
        })
    }

    fn backoff(&mut self) -> BackoffConfig {
        let defaults = BackoffConfig::default();
        BackoffConfig {
            initial: self.duration("connection.backoff.initial", defaults.initial),
            max: self.duration("connection.backoff.max", defaults.max),
            multiplier: self.parsed(
                "connection.backoff.multiplier",
                defaults.multiplier,
                "a number of at least 1",
            ),
            stable_after: self.duration("connection.backoff.stable_after", defaults.stable_after),
        }
    }

    fn buffer(&mut self) -> BufferConfig {
        let defaults = BufferConfig::default();
        BufferConfig {
            lane_messages: self.parsed(
                "buffer.lane_messages",
                defaults.lane_messages,
                "a number of messages",
            ),
            lane_bytes: self.parsed(
                "buffer.lane_bytes",
                defaults.lane_bytes,
                "a number of bytes",
            ),
            total_messages: self.parsed(
                "buffer.total_messages",
                defaults.total_messages,
                "a number of messages",
            ),
            total_bytes: self.parsed(
                "buffer.total_bytes",
                defaults.total_bytes,
                "a number of bytes",
            ),
            acknowledged_retained: self.parsed(
                "buffer.acknowledged_retained",
                defaults.acknowledged_retained,
                "a number of messages",
            ),
            acknowledged_for: self.duration("buffer.acknowledged_for", defaults.acknowledged_for),
            adopt_ledger: self.parsed(
                "buffer.adopt_ledger",
                defaults.adopt_ledger,
                "true or false",
            ),
            commit_deadline: self.duration("buffer.commit_deadline", defaults.commit_deadline),
        }
    }

    fn requests(&mut self) -> RequestConfig {
        let defaults = RequestConfig::default();
        RequestConfig {
            pegout_deadline: self.duration("requests.pegout_deadline", defaults.pegout_deadline),
            federation_change_deadline: self.duration(
                "requests.federation_change_deadline",
                defaults.federation_change_deadline,
            ),
            emergency_deadline: self
                .duration("requests.emergency_deadline", defaults.emergency_deadline),
        }
    }

    fn supervision(&mut self) -> SupervisionConfig {
        let defaults = SupervisionConfig::default();
        SupervisionConfig {
            max_restarts: self.parsed(
                "supervision.max_restarts",
                defaults.max_restarts,
                "a number",
            ),
            restart_window: self.duration("supervision.restart_window", defaults.restart_window),
            max_tracker_restarts: self.parsed(
                "supervision.max_tracker_restarts",
                defaults.max_tracker_restarts,
                "a number",
            ),
            restart_pause: self.duration("supervision.restart_pause", defaults.restart_pause),
            max_restart_pause: self
                .duration("supervision.max_restart_pause", defaults.max_restart_pause),
            stop_deadline: self.duration("supervision.stop_deadline", defaults.stop_deadline),
            watch_interval: self.duration("supervision.watch_interval", defaults.watch_interval),
            hang_deadline: self.duration("supervision.hang_deadline", defaults.hang_deadline),
        }
    }

    fn federation(&mut self) -> Option<FirstFederation> {
        const KEY: &str = "federation.members";
        let named = self.origin("federation.threshold");
        let threshold = self.required(
            "federation.threshold",
            "a number of signatures",
            u32::to_string,
        );
        let expected =
            "a list: [{ id = \"alice\", public_key = \"02...\" }], or \"alice=02...,bob=03...\"";
        let Some((value, origin)) = self.take(KEY) else {
            self.fault(KEY, UNSET, &Origin::Default, expected);
            return None;
        };
        let Some(members) = members_of(&value) else {
            self.fault(KEY, &value.to_string(), &origin, expected);
            return None;
        };
        let shown: Vec<String> = members
            .iter()
            .map(|member| format!("{}={}", member.id, member.public_key))
            .collect();
        self.show(KEY, &format!("{:?}", shown.join(",")), origin.clone());
        let threshold = threshold?;
        if !(1..=members.len()).contains(&(threshold as usize)) || members.len() > 15 {
            let shown = format!("{threshold} of {}", members.len());
            let origin = named.unwrap_or(Origin::Default);
            self.fault(
                "federation.threshold",
                &shown,
                &origin,
                "1 to all of at most 15 members",
            );
        }
        Some(FirstFederation { threshold, members })
    }

    fn federation_policy(&mut self) -> FederationPolicy {
        const PERCENT: &str = "federation.min_threshold_percent";
        let default = FederationPolicy::default();
        let expected = "1 to 100, in percent of the active members";
        let min_threshold_percent = self.parsed(PERCENT, default.min_threshold_percent, expected);
        if !(1..=100).contains(&min_threshold_percent) {
            let shown = min_threshold_percent.to_string();
            self.refuse(ConfigFault::new(PERCENT, shown, expected));
        }
        FederationPolicy {
            min_threshold_percent,
            min_notice_blocks: self.parsed(
                "federation.min_notice_blocks",
                default.min_notice_blocks,
                "a number of sidechain blocks",
            ),
        }
    }

    fn http(&mut self) -> HttpSettings {
        let default = SocketAddr::from(([127, 0, 0, 1], 9464));
        let listen = self.parsed("http.listen", default, "an address: \"127.0.0.1:9464\"");
        if !listen.ip().is_loopback() {
            let expected = "a loopback address: what it shows is not authenticated";
            self.refuse(ConfigFault::new(
                "http.listen",
                listen.to_string(),
                expected,
            ));
        }
        HttpSettings { listen }
    }

    fn telemetry(&mut self) -> TelemetrySettings {
        let log = self.text("telemetry.log", Some("info,ractor=warn".to_owned()));
        let log_format = self.value(
            "telemetry.log_format",
            Some(LogFormat::Text),
            "\"text\" or \"json\"",
            |value| value.as_str()?.parse().ok(),
            |format| match format {
                LogFormat::Text => "\"text\"".to_owned(),
                LogFormat::Json => "\"json\"".to_owned(),
            },
        );
        let otlp_endpoint = self.value(
            "telemetry.otlp_endpoint",
            None,
            "http://127.0.0.1:4317: traces go to a collector on this machine",
            // Without a CA of its own, a collector is reached on loopback only.
            |value| {
                value
                    .as_str()?
                    .parse()
                    .ok()
                    .filter(|endpoint: &Endpoint| !endpoint.is_tls())
            },
            |endpoint| format!("{:?}", endpoint.to_string()),
        );
        TelemetrySettings {
            log: log.unwrap_or_default(),
            log_format: log_format.unwrap_or(LogFormat::Text),
            otlp_endpoint,
        }
    }
}

fn members_of(value: &Value) -> Option<Vec<FederationMember>> {
    let pair = |id: &str, key: &str| {
        Some(FederationMember {
            id: id.trim().parse().ok()?,
            public_key: key.trim().parse().ok()?,
            active: true,
        })
    };
    match value {
        Value::Array(items) => items
            .iter()
            .map(|item| {
                let table = item.as_table().filter(|table| table.len() == 2)?;
                pair(
                    table.get("id")?.as_str()?,
                    table.get("public_key")?.as_str()?,
                )
            })
            .collect(),
        Value::String(_) => list_of(value)?
            .iter()
            .map(|member| member.split_once('=').and_then(|(id, key)| pair(id, key)))
            .collect(),
        _ => None,
    }
}
