//! Logs and traces of a program: only a binary may install them, a library only emits.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::ParseError,
    fmt,
    layer::SubscriberExt as _,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::config::{LogFormat, TelemetrySettings};

/// What carries the export must not be traced itself, or every export makes another.
const UNTRACED: &str = "info,governance_stream=trace,h2=off,hyper=off,hyper_util=off,tonic=off,\
                        tower=off,opentelemetry=off,ractor=off";

/// Why telemetry could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter is none.
    #[error("telemetry.log: {0}; expected directives like \"info,governance_stream=debug\"")]
    Filter(#[from] ParseError),
    /// The exporter cannot be built.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// Another subscriber is installed.
    #[error("logs are installed already: {0}")]
    Installed(#[from] TryInitError),
}

/// Sends what traces are left when it is dropped.
#[derive(Debug)]
pub struct TelemetryGuard(Option<SdkTracerProvider>);

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // A collector that is gone must not keep the process.
            let _ = provider.shutdown();
        }
    }
}

/// Installs logs on standard error, and export of traces where an endpoint is configured. Call it
/// once, inside the runtime.
///
/// # Errors
///
/// [`TelemetryError`].
pub fn install(settings: &TelemetrySettings) -> Result<TelemetryGuard, TelemetryError> {
    let filter = EnvFilter::try_new(&settings.log)?;
    // Colours are for terminals, not for files.
    let ansi = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let lines = match settings.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let provider = match &settings.otlp_endpoint {
        Some(endpoint) => {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint.to_string())
                .build()?;
            let resource = Resource::builder()
                .with_service_name("governance-stream")
                .with_attribute(opentelemetry::KeyValue::new(
                    "service.version",
                    env!("CARGO_PKG_VERSION"),
                ))
                .build();
            let builder = SdkTracerProvider::builder().with_batch_exporter(exporter);
            Some(builder.with_resource(resource).build())
        }
        None => None,
    };
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("governance-stream"))
            .with_filter(EnvFilter::new(UNTRACED))
    });
    tracing_subscriber::registry()
        .with(traces)
        .with(lines.with_filter(filter))
        .try_init()?;
    Ok(TelemetryGuard(provider))
}
