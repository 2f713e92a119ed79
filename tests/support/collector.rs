//! A collector of traces that keeps every byte it is sent.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, HeaderValue, Response, header},
    routing::post,
};
use http_body_util::{BodyExt as _, Full};
use tokio::runtime::Runtime;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

/// A collector's one method (OTLP over gRPC).
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// An empty message in its gRPC frame, by which everything was taken.
const TAKEN: &[u8] = &[0; 5];

type Kept = Arc<Mutex<Vec<u8>>>;

/// Runs on threads of its own, for a test of processes; ends with the test.
pub struct Collector {
    _runtime: Runtime,
    endpoint: String,
    kept: Kept,
}

impl Collector {
    pub fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let kept = Kept::default();
        let router = Router::new()
            .route(EXPORT, post(export))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&kept));
        let entered = runtime.enter();
        let any = "127.0.0.1:0".parse().expect("an address");
        let incoming = TcpIncoming::bind(any).expect("a free port");
        drop(entered);
        let address = incoming.local_addr().expect("bound");
        let serving = Server::builder().add_routes(Routes::from(router));
        runtime.spawn(serving.serve_with_incoming(incoming));
        Self {
            _runtime: runtime,
            endpoint: format!("http://{address}"),
            kept,
        }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Metadata and bodies of all exports so far. Bodies are not compressed, so that each string
    /// in them stands here as it is.
    pub fn exported(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

async fn export(State(kept): State<Kept>, metadata: HeaderMap, body: Bytes) -> Response<Body> {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend(format!("{metadata:?}\n").bytes());
    kept.extend(body);
    let mut status = HeaderMap::new();
    status.insert("grpc-status", HeaderValue::from_static("0"));
    let answer = Full::from(TAKEN).with_trailers(std::future::ready(Some(Ok(status))));
    let mut response = Response::new(Body::new(answer));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
