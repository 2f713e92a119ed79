//! One trace runs from the caller through governance to the subscriber.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod support;

use std::collections::{BTreeSet, HashMap};

use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use support::{full::FullNode, governance, pegout, request_id};
use tracing::{Instrument, info_span};
use tracing_subscriber::layer::SubscriberExt;

// The only test of its binary: a tracing subscriber is global to the process.
#[tokio::test(flavor = "multi_thread")]
async fn one_trace_runs_from_the_caller_through_governance_to_the_bridge() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let only = tracing_subscriber::EnvFilter::new("governance_stream=trace,trace=trace");
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(only).with(layer))
        .expect("the first");

    let simulator = governance().await;
    let federation = simulator.federation(1).expect("the first");
    let node = FullNode::start(&simulator).await;
    let caller = info_span!("caller");
    node.initiate(pegout(&federation, 1))
        .instrument(caller)
        .await
        .expect("begun");
    node.until(&request_id(1), |stage| stage.is_on_network())
        .await;
    // A second trace must not get mixed up with it.
    node.initiate(pegout(&federation, 2))
        .instrument(info_span!("other"))
        .await
        .expect("begun");
    node.stop().await;
    simulator.assert_clean();
    simulator.shutdown().await;
    provider.force_flush().expect("flushed");

    let spans = exporter.get_finished_spans().expect("spans");
    let root = spans
        .iter()
        .find(|span| span.name == "caller")
        .expect("the caller's span");
    let trace_id = root.span_context.trace_id();
    let of_trace: HashMap<SpanId, &SpanData> = spans
        .iter()
        .filter(|span| span.span_context.trace_id() == trace_id)
        .map(|span| (span.span_context.span_id(), span))
        .collect();
    let names: BTreeSet<&str> = of_trace.values().map(|span| span.name.as_ref()).collect();
    for expected in ["governance.receive", "deliver", "bridge.receive"] {
        assert!(
            names.contains(expected),
            "{expected} is missing from {names:?}"
        );
    }
    assert!(!names.contains("other"));
    // Every span of the trace leads back to the caller.
    let delivered = of_trace
        .values()
        .find(|span| span.name == "bridge.receive")
        .expect("one");
    let mut path = vec![delivered.name.as_ref()];
    let mut at = *delivered;
    while let Some(parent) = of_trace.get(&at.parent_span_id) {
        path.push(parent.name.as_ref());
        at = parent;
    }
    assert_eq!(path.last(), Some(&"caller"), "{path:?}");
    assert!(path.contains(&"governance.receive"), "{path:?}");
}
