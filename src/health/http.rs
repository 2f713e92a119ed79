//! Health, metrics and status over HTTP, for a loopback listener: nothing here is authenticated,
//! and nothing here changes anything.

use std::{future::Future, io, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::TcpListener;

use super::{Health, StreamStatus};
use crate::stream::GovernanceStream;

/// What the endpoints show.
#[derive(Debug, Clone)]
struct Shown {
    stream: GovernanceStream,
    registry: Arc<Registry>,
}

/// Serves until `stop` is ready.
///
/// - `/livez`: the tree runs; restart the process when it does not.
/// - `/readyz`: a session with governance is live and nothing waits for an operator.
/// - `/startupz`: a session was accepted since the start.
/// - `/metrics`: `OpenMetrics` text.
/// - `/status`: everything, as JSON.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    stream: GovernanceStream,
    registry: Arc<Registry>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/startupz", get(started))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(Shown { stream, registry });
    axum::serve(listener, router)
        .with_graceful_shutdown(stop)
        .await
}

async fn live(State(shown): State<Shown>) -> impl IntoResponse {
    verdict(shown.stream.status().running, &shown.stream.status())
}

async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    let status = shown.stream.status();
    let ready = status.is_connected() && !matches!(status.health, Health::Unhealthy(_));
    verdict(ready, &status)
}

async fn started(State(shown): State<Shown>) -> impl IntoResponse {
    let status = shown.stream.status();
    verdict(status.connection.sessions > 0, &status)
}

/// The reasons stand in the body, for whoever asks by hand.
fn verdict(well: bool, status: &StreamStatus) -> impl IntoResponse + use<> {
    let code = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let text = match &status.health {
        Health::Healthy => "healthy\n".to_owned(),
        Health::Degraded(reasons) => format!("degraded: {}\n", reasons.join("; ")),
        Health::Unhealthy(reasons) => format!("unhealthy: {}\n", reasons.join("; ")),
    };
    (code, text)
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let mut body = String::new();
    match text::encode(&mut body, &shown.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(shown): State<Shown>) -> impl IntoResponse {
    Json(shown.stream.status())
}
