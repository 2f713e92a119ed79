//! Every metric, registered once in the registry that the node injects.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{buffer::Restoration, health::Reachability, message::Lane};

/// Label sets of bounded cardinality: endpoints and members come from the configuration, the rest
/// from enums of this crate.
mod label {
    use super::EncodeLabelSet;

    macro_rules! labels {
        ($($name:ident { $($field:ident),+ })+) => {$(
            #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
            pub(super) struct $name { $(pub(super) $field: String),+ }
        )+};
    }

    labels! {
        Endpoint { endpoint }
        EndpointCause { endpoint, cause }
        Lane { lane }
        LaneKind { lane, kind }
        LaneResult { lane, result }
        TxType { tx_type }
        Status { status }
        Outcome { outcome }
        Cause { cause }
        Code { code }
        Actor { actor }
        EndpointResult { endpoint, result }
        CauseResult { cause, result }
        Member { member }
        Result { result }
        State { state }
    }
}

type GaugeF64 = Gauge<f64, AtomicU64>;

/// From accepting a message to handing it to the transport.
const SEND_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// From accepting a request to its outcome: people and HSMs sign, so minutes count too.
const REQUEST_BUCKETS: [f64; 12] = [
    0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0, 300.0,
];

/// Makes histograms for a family; a plain function, since families need a nameable constructor.
type NewHistogram = fn() -> Histogram;

fn send_histogram() -> Histogram {
    Histogram::new(SEND_BUCKETS)
}
fn request_histogram() -> Histogram {
    Histogram::new(REQUEST_BUCKETS)
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $init:expr, $name:literal;)+) => {
        #[derive(Debug)]
        struct Families { $($field: $type),+ }

        /// Every metric's base name, as an alert rule or a dashboard may use it. Counters get
        /// `_total`, histograms `_bucket`, `_sum` and `_count` behind it.
        pub const METRIC_NAMES: &[&str] = &[$(concat!("alys_stream_", $name)),+];

        impl Families {
            fn register(registry: &mut Registry) -> Self {
                let families = Self { $($field: $init),+ };
                let registry = registry.sub_registry_with_prefix("alys_stream");
                $(registry.register($name, concat!($($doc),+).trim(), families.$field.clone());)+
                families
            }
        }
    };
}

metrics! {
    /// Sessions that governance accepted
    connections_established: Family<label::Endpoint, Counter> = Family::default(), "connections_established";
    /// Attempts, probes and sessions that ended in a fault
    connection_failures: Family<label::EndpointCause, Counter> = Family::default(), "connection_failures";
    /// Sessions accepted after the first one
    reconnections: Family<label::Endpoint, Counter> = Family::default(), "reconnections";
    /// Age of the live session
    connection_duration: Family<label::Endpoint, GaugeF64> = Family::default(), "connection_duration_seconds";
    /// Whether there is a live session
    connected: Gauge = Gauge::default(), "connected";
    /// Whether nothing is sent until an operator has looked at it
    quarantined: Gauge = Gauge::default(), "quarantined";
    /// Whether an endpoint is well: 1 when it has the session or its probes come through, 0 when its breaker is open, 0.5 when nobody knows
    endpoint_up: Family<label::Endpoint, GaugeF64> = Family::default(), "endpoint_up";
    /// Probes of endpoints without the session
    endpoint_probes: Family<label::EndpointResult, Counter> = Family::default(), "endpoint_probes";
    /// Planned moves to another session, by what they were for
    switches: Family<label::CauseResult, Counter> = Family::default(), "switches";
    /// How long no message was sent because another session took over
    switch_pause: Histogram = send_histogram(), "switch_pause_seconds";
    /// When the session's client certificate expires, in seconds since 1970
    certificate_expiry: GaugeF64 = Gauge::default(), "certificate_expiry_timestamp_seconds";
    /// When the session's token expires, in seconds since 1970, where it says so
    token_expiry: GaugeF64 = Gauge::default(), "token_expiry_timestamp_seconds";
    /// Sequenced messages handed to the transport
    messages_sent: Family<label::LaneKind, Counter> = Family::default(), "messages_sent";
    /// Sequenced messages taken from governance
    messages_received: Family<label::LaneKind, Counter> = Family::default(), "messages_received";
    /// Frames handed to the transport
    frames_sent: Counter = Counter::default(), "frames_sent";
    /// Frames taken from governance
    frames_received: Counter = Counter::default(), "frames_received";
    /// From accepting a message to handing it to the transport
    message_send_latency: Family<label::Lane, Histogram, NewHistogram> = Family::new_with_constructor(send_histogram as NewHistogram), "message_send_latency_seconds";
    /// Messages that governance has not acknowledged
    message_buffer_size: Family<label::Lane, Gauge> = Family::default(), "message_buffer_size";
    /// Payload bytes that governance has not acknowledged
    message_buffer_bytes: Family<label::Lane, Gauge> = Family::default(), "message_buffer_bytes";
    /// Signature requests accepted
    signature_requests: Family<label::TxType, Counter> = Family::default(), "signature_requests";
    /// Signature responses recorded
    signature_responses: Family<label::Status, Counter> = Family::default(), "signature_responses";
    /// Requests whose local deadline passed
    request_timeouts: Family<label::TxType, Counter> = Family::default(), "request_timeouts";
    /// From accepting a request to its recorded outcome
    request_latency: Family<label::Outcome, Histogram, NewHistogram> = Family::new_with_constructor(request_histogram as NewHistogram), "request_latency_seconds";
    /// Requests without an outcome
    requests_open: Gauge = Gauge::default(), "requests_open";
    /// Requests that need an operator
    requests_parked: Gauge = Gauge::default(), "requests_parked";
    /// What a store that may lack what this node did waits for: 1 for the state that it is in
    restoration: Family<label::State, Gauge> = Family::default(), "restoration";
    /// Attempts, probes and sessions that ended in a fault, at any endpoint
    stream_errors: Family<label::Cause, Counter> = Family::default(), "stream_errors";
    /// Errors that governance reported
    governance_errors: Family<label::Code, Counter> = Family::default(), "governance_errors";
    /// Messages of governance that did not convert
    serialization_errors: Family<label::Lane, Counter> = Family::default(), "serialization_errors";
    /// Messages of governance kept as dead letters
    dead_letters: Family<label::Lane, Counter> = Family::default(), "dead_letters";
    /// Deliveries to subscribers
    deliveries: Family<label::LaneResult, Counter> = Family::default(), "deliveries";
    /// How long the lane's subscriber has not taken a message it was offered
    delivery_blocked: Family<label::Lane, GaugeF64> = Family::default(), "delivery_blocked_seconds";
    /// Restarts by the supervisor
    actor_restarts: Family<label::Actor, Counter> = Family::default(), "actor_restarts";
    /// From a heartbeat to its answer
    heartbeat_round_trip: Histogram = send_histogram(), "heartbeat_round_trip_seconds";
    /// Peg-outs as deep in the Bitcoin chain as they have to be
    successful_pegouts: Counter = Counter::default(), "successful_pegouts";
    /// Peg-outs that the Bitcoin network has taken
    pegouts_broadcast: Counter = Counter::default(), "pegouts_broadcast";
    /// Peg-outs that failed
    pegouts_failed: Counter = Counter::default(), "pegouts_failed";
    /// Whether peg-outs are stopped, by the operator or by governance
    pegouts_paused: Gauge = Gauge::default(), "pegouts_paused";
    /// Transactions offered to the Bitcoin network, and what it said
    bitcoin_offers: Family<label::Result, Counter> = Family::default(), "bitcoin_offers";
    /// Verifying and applying one response's signatures
    signature_application_time: Histogram = send_histogram(), "signature_application_time_seconds";
    /// Signatures that did not verify, by member
    bad_signatures: Family<label::Member, Counter> = Family::default(), "bad_signatures";
    /// The federation version that signs, as far as this node knows
    federation_version: Gauge = Gauge::default(), "federation_version";
    /// Federation updates that were judged, by what came of them
    federation_updates: Family<label::Outcome, Counter> = Family::default(), "federation_updates";
}

/// The stream's metrics. Clones share the same values, so that a restarted actor counts on.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Families>);

impl Default for Metrics {
    /// Counts into a registry that nobody reads.
    fn default() -> Self {
        Self::register(&mut Registry::default())
    }
}

impl Metrics {
    /// Registers every metric. Call it once for a registry; instances that share a registry share
    /// the value, or register with a label of their own (`Registry::sub_registry_with_label`).
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        Self(Arc::new(Families::register(registry)))
    }

    /// A session was accepted; `again` when it was not the first.
    pub fn record_connection_established(&self, endpoint: &str, again: bool) {
        let label = label::Endpoint {
            endpoint: endpoint.to_owned(),
        };
        self.0.connections_established.get_or_create(&label).inc();
        if again {
            self.0.reconnections.get_or_create(&label).inc();
        }
        self.0.connected.set(1);
    }

    /// Whether the connection waits for an operator.
    pub fn set_quarantined(&self, quarantined: bool) {
        self.0.quarantined.set(quarantined.into());
    }

    /// The session's age; `None` when it has ended.
    pub fn set_connection_duration(&self, endpoint: &str, age: Option<Duration>) {
        let label = label::Endpoint {
            endpoint: endpoint.to_owned(),
        };
        self.0
            .connection_duration
            .get_or_create(&label)
            .set(age.unwrap_or_default().as_secs_f64());
        self.0.connected.set(i64::from(age.is_some()));
    }

    /// Whether an endpoint is worth trying.
    pub fn set_endpoint(&self, endpoint: &str, reachability: Reachability) {
        let label = label::Endpoint {
            endpoint: endpoint.to_owned(),
        };
        self.0
            .endpoint_up
            .get_or_create(&label)
            .set(match reachability {
                Reachability::Up => 1.0,
                Reachability::Unknown | Reachability::Probing => 0.5,
                Reachability::Down => 0.0,
            });
    }

    /// An endpoint is none any more: an operator named it for a while.
    pub fn forget_endpoint(&self, endpoint: &str) {
        let endpoint = endpoint.to_owned();
        self.0.endpoint_up.remove(&label::Endpoint { endpoint });
    }

    /// A probe came back.
    pub fn record_probe(&self, endpoint: &str, well: bool) {
        let label = label::EndpointResult {
            endpoint: endpoint.to_owned(),
            result: if well { "well" } else { "failed" }.to_owned(),
        };
        self.0.endpoint_probes.get_or_create(&label).inc();
    }

    /// A planned move to another session: the pause that it cost, or that it did not come about.
    pub fn record_switch(&self, cause: &'static str, pause: Option<Duration>) {
        let label = label::CauseResult {
            cause: cause.to_owned(),
            result: if pause.is_some() { "done" } else { "failed" }.to_owned(),
        };
        self.0.switches.get_or_create(&label).inc();
        if let Some(pause) = pause {
            self.0.switch_pause.observe(pause.as_secs_f64());
        }
    }

    /// When certificate and token of the session expire, as far as they say so.
    pub fn set_expiries(&self, certificate: Option<SystemTime>, token: Option<SystemTime>) {
        let seconds = |at: Option<SystemTime>| {
            let since = at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            since.map_or(0.0, |since| since.as_secs_f64())
        };
        self.0.certificate_expiry.set(seconds(certificate));
        self.0.token_expiry.set(seconds(token));
    }

    /// There is no session.
    pub fn set_disconnected(&self) {
        self.0.connected.set(0);
    }

    /// An attempt or a session ended in a fault.
    pub fn record_connection_failure(&self, endpoint: &str, cause: &'static str) {
        let label = label::EndpointCause {
            endpoint: endpoint.to_owned(),
            cause: cause.to_owned(),
        };
        self.0.connection_failures.get_or_create(&label).inc();
        self.0
            .stream_errors
            .get_or_create(&label::Cause {
                cause: cause.to_owned(),
            })
            .inc();
    }

    /// A message was handed to the transport; `latency` is known for its first transmission.
    pub fn record_message_sent(&self, lane: Lane, kind: &str, latency: Option<Duration>) {
        self.0
            .messages_sent
            .get_or_create(&lane_kind(lane, kind))
            .inc();
        if let Some(latency) = latency {
            self.0
                .message_send_latency
                .get_or_create(&lane_label(lane))
                .observe(latency.as_secs_f64());
        }
    }

    /// A message was taken from governance.
    pub fn record_message_received(&self, lane: Lane, kind: &str) {
        self.0
            .messages_received
            .get_or_create(&lane_kind(lane, kind))
            .inc();
    }

    /// A frame was handed to the transport.
    pub fn record_frame_sent(&self) {
        self.0.frames_sent.inc();
    }

    /// A frame was taken from governance.
    pub fn record_frame_received(&self) {
        self.0.frames_received.inc();
    }

    /// What a lane holds for governance.
    pub fn set_buffered(&self, lane: Lane, messages: u64, bytes: u64) {
        let label = lane_label(lane);
        self.0
            .message_buffer_size
            .get_or_create(&label)
            .set(saturating(messages));
        self.0
            .message_buffer_bytes
            .get_or_create(&label)
            .set(saturating(bytes));
    }

    /// A signature request was accepted.
    pub fn record_signature_request(&self, tx_type: &str) {
        self.0
            .signature_requests
            .get_or_create(&label::TxType {
                tx_type: tx_type.to_owned(),
            })
            .inc();
    }

    /// A signature response was recorded.
    pub fn record_signature_response(&self, status: &str) {
        self.0
            .signature_responses
            .get_or_create(&label::Status {
                status: status.to_owned(),
            })
            .inc();
    }

    /// A request's local deadline passed.
    pub fn record_request_timeout(&self, tx_type: &str) {
        self.0
            .request_timeouts
            .get_or_create(&label::TxType {
                tx_type: tx_type.to_owned(),
            })
            .inc();
    }

    /// A request's outcome was recorded.
    pub fn record_request_completed(&self, outcome: &str, latency: Duration) {
        self.0
            .request_latency
            .get_or_create(&label::Outcome {
                outcome: outcome.to_owned(),
            })
            .observe(latency.as_secs_f64());
    }

    /// Requests without an outcome, and those of them that need an operator.
    pub fn set_requests(&self, open: usize, parked: usize) {
        self.0
            .requests_open
            .set(i64::try_from(open).unwrap_or(i64::MAX));
        self.0
            .requests_parked
            .set(i64::try_from(parked).unwrap_or(i64::MAX));
    }

    /// What a store that may lack what this node did waits for.
    pub fn set_restoration(&self, restoration: Restoration) {
        for (state, name) in [
            (Restoration::Waiting, "waiting"),
            (Restoration::WentBack, "went_back"),
            (Restoration::Reconciling, "reconciling"),
        ] {
            let state_is = i64::from(restoration == state);
            let state = name.to_owned();
            let label = label::State { state };
            self.0.restoration.get_or_create(&label).set(state_is);
        }
    }

    /// Governance reported an error.
    pub fn record_governance_error(&self, code: &str) {
        self.0
            .governance_errors
            .get_or_create(&label::Code {
                code: code.to_owned(),
            })
            .inc();
    }

    /// A message of governance did not convert.
    pub fn record_serialization_error(&self, lane: Lane) {
        self.0
            .serialization_errors
            .get_or_create(&lane_label(lane))
            .inc();
    }

    /// A message of governance was kept as a dead letter.
    pub fn record_dead_letter(&self, lane: Lane) {
        self.0.dead_letters.get_or_create(&lane_label(lane)).inc();
    }

    /// A delivery ended.
    pub fn record_delivery(&self, lane: Lane, result: &'static str) {
        self.0
            .deliveries
            .get_or_create(&label::LaneResult {
                lane: lane.name().to_owned(),
                result: result.to_owned(),
            })
            .inc();
    }

    /// How long a lane's subscriber has not taken what it was offered; zero when it takes it.
    pub fn set_delivery_blocked(&self, lane: Lane, blocked: Duration) {
        self.0
            .delivery_blocked
            .get_or_create(&lane_label(lane))
            .set(blocked.as_secs_f64());
    }

    /// The supervisor restarted a child of this kind.
    pub fn record_restart(&self, actor: &'static str) {
        self.0
            .actor_restarts
            .get_or_create(&label::Actor {
                actor: actor.to_owned(),
            })
            .inc();
    }

    /// A heartbeat was answered.
    pub fn record_heartbeat(&self, round_trip: Duration) {
        self.0
            .heartbeat_round_trip
            .observe(round_trip.as_secs_f64());
    }

    /// The Bitcoin network has taken a peg-out.
    pub fn record_pegout_broadcast(&self) {
        self.0.pegouts_broadcast.inc();
    }

    /// A peg-out is as deep as it has to be.
    pub fn record_pegout_completed(&self) {
        self.0.successful_pegouts.inc();
    }

    /// A peg-out failed.
    pub fn record_pegout_failed(&self) {
        self.0.pegouts_failed.inc();
    }

    /// Whether peg-outs are stopped.
    pub fn set_pegouts_paused(&self, paused: bool) {
        self.0.pegouts_paused.set(paused.into());
    }

    /// The Bitcoin network was offered a transaction, or could not be asked.
    pub fn record_bitcoin_offer(&self, result: &'static str) {
        let result = result.to_owned();
        let label = label::Result { result };
        self.0.bitcoin_offers.get_or_create(&label).inc();
    }

    /// One response's signatures were verified and applied.
    pub fn record_signatures_applied(&self, took: Duration) {
        self.0
            .signature_application_time
            .observe(took.as_secs_f64());
    }

    /// The federation version that signs.
    pub fn set_federation_version(&self, version: u32) {
        self.0.federation_version.set(version.into());
    }

    /// An update was judged: scheduled, late, known, or why it is refused.
    pub fn record_federation_update(&self, outcome: &str) {
        self.0
            .federation_updates
            .get_or_create(&label::Outcome {
                outcome: outcome.to_owned(),
            })
            .inc();
    }

    /// A member's signature did not verify. Members come from verified federations only.
    pub fn record_bad_signature(&self, member: &str) {
        self.0
            .bad_signatures
            .get_or_create(&label::Member {
                member: member.to_owned(),
            })
            .inc();
    }
}

fn lane_label(lane: Lane) -> label::Lane {
    label::Lane {
        lane: lane.name().to_owned(),
    }
}

fn lane_kind(lane: Lane, kind: &str) -> label::LaneKind {
    label::LaneKind {
        lane: lane.name().to_owned(),
        kind: kind.to_owned(),
    }
}

fn saturating(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_is_exposed_once_it_has_a_value() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let (lane, moment) = (Lane::Signing, Duration::from_millis(1));
        metrics.record_connection_established("http://127.0.0.1:1", true);
        metrics.set_connection_duration("http://127.0.0.1:1", Some(moment));
        metrics.set_quarantined(false);
        metrics.set_endpoint("http://127.0.0.1:1", Reachability::Up);
        metrics.record_probe("http://127.0.0.1:1", true);
        metrics.record_switch("drain", Some(moment));
        metrics.set_expiries(None, None);
        metrics.record_connection_failure("http://127.0.0.1:1", "closed");
        metrics.record_message_sent(lane, "signature_request", Some(moment));
        metrics.record_message_received(lane, "signature_response");
        metrics.record_frame_sent();
        metrics.record_frame_received();
        metrics.set_buffered(lane, 1, 1);
        metrics.record_signature_request("pegout");
        metrics.record_signature_response("complete");
        metrics.record_request_timeout("pegout");
        metrics.record_request_completed("complete", moment);
        metrics.set_requests(1, 0);
        metrics.set_restoration(Restoration::WentBack);
        metrics.record_governance_error("rate_limited");
        metrics.record_serialization_error(lane);
        metrics.record_dead_letter(lane);
        metrics.record_delivery(lane, "handled");
        metrics.set_delivery_blocked(lane, moment);
        metrics.record_restart("connection");
        metrics.record_heartbeat(moment);
        metrics.record_pegout_broadcast();
        metrics.record_pegout_completed();
        metrics.record_pegout_failed();
        metrics.set_pegouts_paused(false);
        metrics.record_bitcoin_offer("accepted");
        metrics.record_signatures_applied(moment);
        metrics.record_bad_signature("member-0");
        metrics.set_federation_version(1);
        metrics.record_federation_update("scheduled");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        for name in METRIC_NAMES {
            assert!(
                text.contains(&format!("# HELP {name} ")),
                "{name} is missing from:\n{text}"
            );
        }
        for (state, value) in [("waiting", 0), ("went_back", 1), ("reconciling", 0)] {
            let sample = format!("alys_stream_restoration{{state=\"{state}\"}} {value}");
            assert!(text.contains(&sample), "{sample}");
        }
        assert!(
            text.contains(r#"alys_stream_reconnections_total{endpoint="http://127.0.0.1:1"} 1"#)
        );
    }
}
