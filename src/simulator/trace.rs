//! The simulator's own half of trace propagation (W3C Trace Context).

use std::collections::HashMap;

use opentelemetry::{Context, propagation::TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::proto;

/// Makes the message's trace the span's parent.
pub(super) fn adopt(span: &Span, message: &proto::SequencedMessage) {
    if message.traceparent.is_empty() || span.is_disabled() {
        return;
    }
    let carrier = HashMap::from([
        ("traceparent".to_owned(), message.traceparent.clone()),
        ("tracestate".to_owned(), message.tracestate.clone()),
    ]);
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    // Fails only where nothing is traced.
    let _ = span.set_parent(parent);
}

/// `traceparent` and `tracestate` of what follows from the span.
pub(super) fn of(span: &Span) -> (String, String) {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    let mut take = |key| carrier.remove(key).unwrap_or_default();
    (take("traceparent"), take("tracestate"))
}
