//! What must hold between the values of a configuration.

use std::time::Duration;

use rustls::pki_types::ServerName;

use super::{
    BufferConfig, Config, ConfigError, ConfigFault, ConnectionConfig, RequestConfig,
    SubscriberConfig, SupervisionConfig,
};

impl Config {
    /// Checks what the types alone cannot: bounds, and values that must agree.
    ///
    /// # Errors
    ///
    /// Every fault at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let faults = Checked {
            connection: &self.connection,
            buffer: &self.buffer,
            requests: &self.requests,
            supervision: &self.supervision,
            subscribers: &self.subscribers,
            call_deadline: self.call_deadline,
            drain_deadline: self.drain_deadline,
        }
        .faults();
        if faults.is_empty() {
            Ok(())
        } else {
            Err(ConfigError(faults))
        }
    }
}

/// What has something to check; it can be checked while the rest is not yet known.
#[derive(Debug)]
pub(super) struct Checked<'a> {
    pub connection: &'a ConnectionConfig,
    pub buffer: &'a BufferConfig,
    pub requests: &'a RequestConfig,
    pub supervision: &'a SupervisionConfig,
    pub subscribers: &'a SubscriberConfig,
    pub call_deadline: Duration,
    pub drain_deadline: Duration,
}

impl Checked<'_> {
    /// Everything that is wrong.
    pub(super) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults = Faults::default();
        faults.connection(self.connection);
        faults.limits(self);
        faults.supervision(self.supervision);
        for (key, name) in [
            ("subscribers.bridge", &self.subscribers.bridge),
            ("subscribers.chain", &self.subscribers.chain),
        ] {
            faults.require(
                !name.is_empty(),
                key,
                "\"\"",
                "the registry name of an actor",
            );
        }
        faults.0
    }
}

#[derive(Default)]
struct Faults(Vec<ConfigFault>);

impl Faults {
    fn require(&mut self, holds: bool, key: &str, value: impl ToString, expected: &str) {
        if !holds {
            self.0
                .push(ConfigFault::new(key, value.to_string(), expected));
        }
    }

    fn at_least(&mut self, key: &str, value: Duration, least: Duration) {
        let expected = format!("at least {least:?}");
        self.require(value >= least, key, format!("{value:?}"), &expected);
    }

    fn connection(&mut self, connection: &ConnectionConfig) {
        let endpoints = &connection.endpoints;
        self.require(
            !endpoints.is_empty(),
            "connection.endpoints",
            "[]",
            "at least one endpoint",
        );
        if connection.tls.is_none()
            && let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.is_tls())
        {
            let expected = "connection.tls.ca_file: https is never dialled without a CA";
            self.require(false, "connection.endpoints", endpoint, expected);
        }
        if let Some(tls) = &connection.tls {
            let identity = tls.identity.iter().flat_map(|identity| {
                [
                    ("connection.tls.cert_file", &identity.cert_file),
                    ("connection.tls.key_file", &identity.key_file),
                ]
            });
            for (key, path) in identity.chain([("connection.tls.ca_file", &tls.ca_file)]) {
                let readable = std::fs::File::open(path);
                let value = match &readable {
                    Ok(_) => String::new(),
                    Err(error) => format!("{} ({error})", path.display()),
                };
                self.require(readable.is_ok(), key, value, "a readable PEM file");
            }
            if let Some(name) = &tls.server_name {
                let valid = ServerName::try_from(name.as_str()).is_ok();
                let key = "connection.tls.server_name";
                self.require(
                    valid,
                    key,
                    format!("{name:?}"),
                    "a DNS name or an IP address",
                );
            }
            self.at_least(
                "connection.tls.handshake_deadline",
                tls.handshake_deadline,
                Duration::from_millis(1),
            );
        }
        if let Some(token) = &connection.token
            && let Err(fault) = token.read()
        {
            self.0.push(fault);
        }
        let (short, tick) = (Duration::from_millis(1), Duration::from_millis(10));
        self.at_least(
            "connection.credentials_interval",
            connection.credentials_interval,
            tick,
        );
        self.at_least(
            "connection.connect_deadline",
            connection.connect_deadline,
            short,
        );
        self.at_least(
            "connection.registration_deadline",
            connection.registration_deadline,
            short,
        );
        for (key, value) in [
            ("connection.probe_deadline", connection.probe_deadline),
            ("connection.probe_interval", connection.probe_interval),
            ("connection.stall_deadline", connection.stall_deadline),
        ] {
            self.at_least(key, value, tick);
        }
        self.at_least(
            "connection.heartbeat_interval",
            connection.heartbeat_interval,
            tick,
        );
        self.at_least(
            "connection.keepalive_interval",
            connection.keepalive_interval,
            tick,
        );
        self.at_least(
            "connection.keepalive_timeout",
            connection.keepalive_timeout,
            tick,
        );
        self.require(
            connection.breaker_failures >= 1,
            "connection.breaker_failures",
            connection.breaker_failures,
            "at least 1",
        );
        self.require(
            connection.idle_frames_per_second >= 100,
            "connection.idle_frames_per_second",
            connection.idle_frames_per_second,
            "at least 100: acknowledgements and heartbeats are among them",
        );
        let backoff = &connection.backoff;
        self.at_least("connection.backoff.initial", backoff.initial, short);
        self.require(
            backoff.initial <= backoff.max,
            "connection.backoff.max",
            format!("{:?}", backoff.max),
            "at least connection.backoff.initial",
        );
        self.require(
            backoff.multiplier.is_finite() && backoff.multiplier >= 1.0,
            "connection.backoff.multiplier",
            backoff.multiplier,
            "a number of at least 1",
        );
    }

    fn limits(&mut self, config: &Checked<'_>) {
        let window = &config.connection.inbound_window;
        self.require(
            (1..=65_536).contains(&window.messages),
            "connection.inbound_window.messages",
            window.messages,
            "1 to 65536",
        );
        self.require(
            window.bytes >= 1024,
            "connection.inbound_window.bytes",
            window.bytes,
            "at least 1024",
        );
        let frame = config.connection.max_frame_bytes;
        self.require(
            (4096..=256 << 20).contains(&frame),
            "connection.max_frame_bytes",
            frame,
            "4096 to 268435456",
        );
        let buffer = config.buffer;
        self.require(
            buffer.lane_messages >= 1,
            "buffer.lane_messages",
            buffer.lane_messages,
            "at least 1",
        );
        self.require(
            buffer.lane_bytes >= 1 << 20,
            "buffer.lane_bytes",
            buffer.lane_bytes,
            "at least 1048576: one request may be that large",
        );
        self.at_least(
            "buffer.commit_deadline",
            buffer.commit_deadline,
            Duration::from_millis(10),
        );
        let (second, requests) = (Duration::from_secs(1), config.requests);
        self.at_least("requests.pegout_deadline", requests.pegout_deadline, second);
        self.at_least(
            "requests.federation_change_deadline",
            requests.federation_change_deadline,
            second,
        );
        self.at_least(
            "requests.emergency_deadline",
            requests.emergency_deadline,
            second,
        );
        let tick = Duration::from_millis(10);
        self.at_least("call_deadline", config.call_deadline, tick);
        self.at_least("drain_deadline", config.drain_deadline, tick);
    }

    fn supervision(&mut self, supervision: &SupervisionConfig) {
        let tick = Duration::from_millis(1);
        self.at_least(
            "supervision.restart_window",
            supervision.restart_window,
            tick,
        );
        self.at_least("supervision.stop_deadline", supervision.stop_deadline, tick);
        self.at_least(
            "supervision.watch_interval",
            supervision.watch_interval,
            Duration::from_millis(10),
        );
        self.require(
            supervision.watch_interval <= supervision.hang_deadline,
            "supervision.hang_deadline",
            format!("{:?}", supervision.hang_deadline),
            "at least supervision.watch_interval",
        );
        self.require(
            supervision.restart_pause <= supervision.max_restart_pause,
            "supervision.max_restart_pause",
            format!("{:?}", supervision.max_restart_pause),
            "at least supervision.restart_pause",
        );
    }
}
