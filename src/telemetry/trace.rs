//! W3C trace context, carried in each message: gRPC metadata exists once per stream only.

use std::collections::HashMap;

use opentelemetry::{Context, propagation::TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// `00-<32 hex>-<16 hex>-<2 hex>`.
const MAX_TRACEPARENT: usize = 55;
/// What W3C Trace Context asks implementations to propagate at least.
const MAX_TRACESTATE: usize = 512;

/// A trace to which a message belongs, in the form it has on the wire and in the journal
/// (W3C Trace Context). Empty when the caller is not traced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent` header value.
    pub traceparent: String,
    /// `tracestate` header value.
    pub tracestate: String,
}

impl TraceContext {
    /// The context of the span that is current here.
    #[must_use]
    pub fn current() -> Self {
        Self::of(&Span::current())
    }

    /// The context of `span`.
    #[must_use]
    pub fn of(span: &Span) -> Self {
        let mut carrier = HashMap::new();
        TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
        Self {
            traceparent: carrier.remove(TRACEPARENT).unwrap_or_default(),
            tracestate: carrier.remove(TRACESTATE).unwrap_or_default(),
        }
    }

    /// This context, or the other one where this side is not traced.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self.traceparent.is_empty() {
            other
        } else {
            self
        }
    }

    /// What a peer sent; too long a value is dropped whole, since a part of it means nothing.
    #[must_use]
    pub fn from_wire(traceparent: String, tracestate: String) -> Self {
        if traceparent.len() > MAX_TRACEPARENT {
            return Self::default();
        }
        let tracestate = if tracestate.len() > MAX_TRACESTATE {
            String::new()
        } else {
            tracestate
        };
        Self {
            traceparent,
            tracestate,
        }
    }

    /// As a parent for spans on this side.
    #[must_use]
    pub fn to_context(&self) -> Context {
        if self.traceparent.is_empty() {
            return Context::new();
        }
        let carrier = HashMap::from([
            (TRACEPARENT.to_owned(), self.traceparent.clone()),
            (TRACESTATE.to_owned(), self.tracestate.clone()),
        ]);
        TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
    }

    /// Makes this the parent of `span`, when both are traced.
    pub fn adopt(&self, span: &Span) {
        if !self.traceparent.is_empty() && !span.is_disabled() {
            // Fails only where no OpenTelemetry layer is installed: then nothing is traced.
            let _ = span.set_parent(self.to_context());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_wire_context_becomes_a_parent_with_the_same_trace_id() {
        use opentelemetry::trace::TraceContextExt;
        let context = TraceContext::from_wire(PARENT.to_owned(), String::new()).to_context();
        let span = context.span().span_context().clone();
        assert_eq!(
            span.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(span.span_id().to_string(), "b7ad6b7169203331");
        assert!(span.is_remote());
    }

    #[test]
    fn an_oversized_traceparent_is_dropped_whole() {
        let trace = TraceContext::from_wire("0".repeat(56), "a=b".to_owned());
        assert_eq!(trace, TraceContext::default());
    }

    #[test]
    fn an_untraced_caller_leaves_no_trace() {
        assert_eq!(TraceContext::current(), TraceContext::default());
    }
}
