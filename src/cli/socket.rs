//! The operator's socket of a running node: HTTP over a Unix domain socket in its data directory.
//! Whoever may open it may do everything it offers: directory and socket are for their owner only.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, Request, State},
    http::{StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bitcoin::{Amount, OutPoint};
use governance_stream::{
    ConnectionPhase, GovernanceStream, RequestStanding, Retry, StreamError,
    bridge::{AskAgain, BridgeStore},
    chain::ChainStore,
    config::{ConfigFault, Endpoint, NodeConfig},
    history::History,
    message::{EvmAddress, InvalidMessage, PeginNotification, RequestId},
    storage::StoreError,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{
    failure::{self, Exit},
    out,
};

/// Name of the socket in the data directory.
pub(super) const SOCKET: &str = "operator.sock";
/// How long one question for an outcome waits for it.
pub(super) const POLL: Duration = Duration::from_secs(20);
/// How long the chain may take to make a height durable.
pub(super) const CHAIN_DEADLINE: Duration = Duration::from_secs(10);

/// What the socket acts on.
#[derive(Debug, Clone)]
pub(super) struct Operated {
    pub stream: GovernanceStream,
    pub node: NodeConfig,
    /// Registry name of this crate's bridge, where it runs: peg-outs are its own to begin.
    pub bridge: Option<String>,
    pub bridge_store: BridgeStore,
    /// Whether the bridge sees what becomes of what it broadcast.
    pub follows: bool,
    /// Registry name of this crate's chain, where it runs.
    pub chain: Option<String>,
    pub chain_store: ChainStore,
    /// Cancelled when the node is asked to stop: what takes long is given up.
    pub stopping: CancellationToken,
}

/// A deposit.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PeginForm {
    pub outpoint: OutPoint,
    pub amount_sat: u64,
    pub evm_address: String,
}

/// Which endpoint is to be used.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ConnectForm {
    /// This one, and no other.
    Endpoint(String),
    /// The most preferred one that is well.
    ByPreference,
}

/// The socket's file: gone when this value is, so that nobody takes a node that has ended for one
/// that does not answer.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // One that stays is replaced at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// Listens in `directory`, where only this process does. The socket is made in a directory that
/// nobody else may enter, and comes to its place with its final mode.
pub(super) fn bind(directory: &Path) -> io::Result<(SocketFile, UnixListener)> {
    let closed = directory.join(".socket");
    match fs::remove_dir_all(&closed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    DirBuilder::new().mode(0o700).create(&closed)?;
    let (made, path) = (closed.join("s"), directory.join(SOCKET));
    let listener = UnixListener::bind(&made)?;
    fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
    fs::rename(&made, &path)?;
    fs::remove_dir(&closed)?;
    Ok((SocketFile(path), listener))
}

/// Serves until `stop`.
pub(super) async fn serve(
    listener: UnixListener,
    operated: Operated,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/status", get(status))
        .route("/requests/{id}", get(standing))
        .route("/requests/{id}/outcome", get(outcome))
        .route("/requests/{id}/cancel", post(cancel))
        .route("/pegins", post(pegin))
        .route("/pegins", get(pegins))
        .route("/deliveries", get(deliveries))
        .route("/connect", post(connect))
        .route("/resume", post(resume))
        .route("/adopt-ledger", post(adopt_ledger))
        .route("/resume-restored", post(resume_restored))
        .route("/dead-letters/{number}/requeue", post(requeue))
        .route("/dead-letters/{number}/discard", post(discard))
        .merge(super::pegout_routes::router())
        .merge(super::chain_routes::routes())
        .merge(super::store_routes::routes())
        .layer(middleware::from_fn_with_state(operated.clone(), explain))
        .with_state(operated);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Why something was not done, as the socket says it.
pub(super) struct Refusal(StatusCode, Value);

impl Refusal {
    pub(super) fn new(code: StatusCode, error: impl ToString) -> Self {
        Self::with_retry(code, error, "never")
    }

    /// As [`new`](Self::new), for what may be asked again.
    pub(super) fn with_retry(code: StatusCode, error: impl ToString, retry: &str) -> Self {
        Self(code, json!({ "error": error.to_string(), "retry": retry }))
    }

    /// As this, with the word of the exit code that a command is to end with.
    pub(super) fn ending(mut self, exit: Exit) -> Self {
        if let Some(told) = self.1.as_object_mut() {
            told.insert("kind".to_owned(), exit.word().into());
        }
        self
    }
}

impl Refusal {
    /// It may be asked again at once.
    fn again(error: impl ToString) -> Self {
        let refusal = json!({ "error": error.to_string(), "retry": "now" });
        Self(StatusCode::SERVICE_UNAVAILABLE, refusal)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, told) = (self.0, self.1);
        let passes = matches!(
            code,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        let bare = (passes && told.get("kind").is_none()).then(|| Unexplained {
            error: told.get("error").map(out::plain).unwrap_or_default(),
        });
        let mut response = (code, Json(told)).into_response();
        if let Some(bare) = bare {
            response.extensions_mut().insert(bare);
        }
        response
    }
}

/// A refusal that does not say what stands behind it.
#[derive(Debug, Clone)]
struct Unexplained {
    error: String,
}

/// While the store is closed that is what stands behind every refusal that names no cause of its own.
async fn explain(State(operated): State<Operated>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let Some(Unexplained { error }) = response.extensions().get::<Unexplained>() else {
        return response;
    };
    let Some(fault) = operated.store_fault() else {
        return response;
    };
    let cause = fault.cause().to_string();
    let mut refusal = Refusal::from(fault);
    if !error.contains(&cause)
        && let Some(told) = refusal.1.as_object_mut()
        && let Some(Value::String(said)) = told.get_mut("error")
    {
        said.push_str("; ");
        said.push_str(error);
    }
    refusal.into_response()
}

impl Operated {
    /// Why the store is closed, if it is.
    pub(super) fn store_fault(&self) -> Option<StoreError> {
        let fault = self.stream.store().ok()?.condition().fault?;
        Some(match fault {
            StoreError::Reopening { .. } => fault,
            fault => StoreError::Reopening {
                fault: Box::new(fault),
            },
        })
    }

    /// A fault that a user of the store met, with the whole of it where the store is closed.
    pub(super) fn refused_by_store(&self, fault: StoreError) -> Refusal {
        self.store_fault().unwrap_or(fault).into()
    }

    /// Refuses while the store is closed.
    pub(super) fn opened(&self) -> Result<(), Refusal> {
        self.store_fault().map_or(Ok(()), |fault| Err(fault.into()))
    }
}

impl From<StreamError> for Refusal {
    fn from(error: StreamError) -> Self {
        let (retry, after) = match error.retry() {
            Retry::Now => ("now", None),
            Retry::After(pause) => ("after", Some(pause.as_millis())),
            Retry::Operator => ("operator", None),
            Retry::Never => ("never", None),
        };
        let code = match &error {
            StreamError::Conflict { .. }
            | StreamError::AlreadyPaid { .. }
            | StreamError::NotRestored => StatusCode::CONFLICT,
            StreamError::UnknownRequest { .. } => StatusCode::NOT_FOUND,
            StreamError::Invalid(_) | StreamError::Config(_) => StatusCode::BAD_REQUEST,
            StreamError::BufferFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            StreamError::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let told = json!({ "error": error.to_string(), "retry": retry, "retry_after_ms": after });
        match &error {
            StreamError::Store { fault, .. } => Self(code, told).ending(Exit::of_store(fault)),
            _ => Self(code, told),
        }
    }
}

impl From<InvalidMessage> for Refusal {
    fn from(invalid: InvalidMessage) -> Self {
        Self::new(StatusCode::BAD_REQUEST, invalid)
    }
}

impl From<AskAgain> for Refusal {
    fn from(busy: AskAgain) -> Self {
        Self::again(busy)
    }
}

impl From<StoreError> for Refusal {
    fn from(fault: StoreError) -> Self {
        let exit = Exit::of_store(&fault);
        let retry = failure::retry_of(&fault);
        Self::with_retry(StatusCode::SERVICE_UNAVAILABLE, fault, retry).ending(exit)
    }
}

pub(super) type Reply = Result<Json<Value>, Refusal>;

async fn status(State(operated): State<Operated>) -> impl IntoResponse {
    Json(operated.stream.status())
}

fn shown(standing: &RequestStanding) -> Value {
    match standing {
        RequestStanding::Open(progress) => json!({
            "standing": "open",
            "signers": progress.signers,
            "deadline_passed": progress.deadline_passed,
        }),
        RequestStanding::Settled(outcome) => json!({
            "standing": "settled",
            "outcome": outcome.name(),
            "text": outcome.to_string(),
        }),
    }
}

pub(super) fn id(text: &str) -> Result<RequestId, Refusal> {
    Ok(text.parse::<RequestId>()?)
}

async fn standing(State(operated): State<Operated>, UrlPath(text): UrlPath<String>) -> Reply {
    let standing = operated.stream.request(id(&text)?).standing().await?;
    Ok(Json(shown(&standing)))
}

async fn outcome(State(operated): State<Operated>, UrlPath(text): UrlPath<String>) -> Reply {
    let handle = operated.stream.request(id(&text)?);
    match handle.outcome(POLL).await {
        Ok(outcome) => Ok(Json(shown(&RequestStanding::Settled(outcome)))),
        Err(StreamError::DeadlineExceeded { .. }) => {
            let standing = handle.standing().await?;
            Ok(Json(shown(&standing)))
        }
        Err(error) => Err(error.into()),
    }
}

async fn cancel(State(operated): State<Operated>, UrlPath(text): UrlPath<String>) -> Reply {
    let request_id = id(&text)?;
    if operated.bridge.is_some()
        && let Some(shown) = operated.cancel_at_bridge(&request_id).await?
    {
        return Ok(Json(shown));
    }
    operated.stream.cancel(request_id).await?;
    Ok(Json(json!({ "asked": true })))
}

async fn pegin(State(operated): State<Operated>, Json(form): Json<PeginForm>) -> Reply {
    let address: EvmAddress = form.evm_address.parse()?;
    let amount = Amount::from_sat(form.amount_sat);
    let notification = PeginNotification::new(form.outpoint, amount, address)?;
    operated.stream.notify_pegin(notification).await?;
    Ok(Json(json!({
        "outpoint": form.outpoint.to_string(),
        "evm_address": address.to_string(),
        "accepted": true,
    })))
}

/// Answered deposits that are listed at once.
const PEGINS: usize = 10_000;

/// A parameter behind the path's question mark; nothing when it is not there.
pub(super) fn parameter<T: FromStr>(uri: &Uri, name: &str) -> Result<Option<T>, Refusal> {
    let mut parameters = uri.query().unwrap_or_default().split('&');
    let value = parameters.find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='));
    let parsed = value.map(|value| {
        let invalid = || format!("{name}: {value:?} is none");
        let parsed = value.parse::<T>();
        parsed.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, invalid()))
    });
    parsed.transpose()
}

/// `after` an outpoint, `limit` of them.
async fn pegins(State(operated): State<Operated>, uri: Uri) -> Reply {
    let (after, limit) = (parameter(&uri, "after")?, parameter(&uri, "limit")?);
    let limit = limit.unwrap_or(PEGINS).min(PEGINS);
    operated.opened()?;
    let answered = operated.bridge_store.pegins(after, limit).await?;
    let answered: Vec<String> = answered.iter().map(ToString::to_string).collect();
    Ok(Json(json!({ "answered": answered })))
}

async fn deliveries(State(operated): State<Operated>) -> Reply {
    let deliveries = operated.bridge_store.deliveries().await?.into_iter();
    let deliveries = deliveries.map(|(lane, sequence, message_id, times)| {
        json!({
            "lane": lane,
            "sequence": sequence,
            "message_id": message_id.to_string(),
            "times": times,
        })
    });
    Ok(Json(Value::Array(deliveries.collect())))
}

async fn connect(State(operated): State<Operated>, Json(form): Json<ConnectForm>) -> Reply {
    // It would be noted and change nothing: out of quarantine leads `resume` alone.
    let connection = operated.stream.status().connection;
    if connection.phase == ConnectionPhase::Quarantined {
        let fault = connection.last_fault.unwrap_or_default();
        let reason = format!("the connection is quarantined: {fault}; `resume` comes first");
        return Err(Refusal::new(StatusCode::CONFLICT, reason));
    }
    match form {
        ConnectForm::Endpoint(text) => {
            let endpoint: Endpoint = text
                .parse()
                .map_err(|fault: ConfigFault| Refusal::new(StatusCode::BAD_REQUEST, fault))?;
            operated.stream.connect(endpoint.clone())?;
            Ok(Json(json!({ "endpoint": endpoint.to_string() })))
        }
        ConnectForm::ByPreference => {
            operated.stream.connect_by_preference()?;
            Ok(Json(json!({ "endpoint": null })))
        }
    }
}

async fn resume(State(operated): State<Operated>) -> Reply {
    operated.stream.resume()?;
    Ok(Json(json!({ "resumed": true })))
}

async fn adopt_ledger(State(operated): State<Operated>) -> Reply {
    if operated.stream.status().connection.phase == ConnectionPhase::Connected {
        let reason = "nothing waits for this: the connection is up, with the ledger that this node \
                      knows; `status` says more";
        return Err(Refusal::new(StatusCode::CONFLICT, reason));
    }
    operated.stream.adopt_ledger().await?;
    Ok(Json(json!({ "adopts": true })))
}

async fn resume_restored(State(operated): State<Operated>) -> Reply {
    operated.stream.resume_restored().await?;
    Ok(Json(json!({ "recalls": true })))
}

async fn requeue(State(operated): State<Operated>, UrlPath(number): UrlPath<u64>) -> Reply {
    let store = operated.stream.store()?;
    let (place, hash_key) = (store.place().to_owned(), store.identity().hash_key());
    let is_there = store.view(move |snapshot| {
        let letter = History::of(snapshot, &place, hash_key).dead_letter(number);
        letter.map(|letter| letter.is_some())
    });
    if !is_there.await? {
        return Err(no_letter(number));
    }
    match operated.stream.requeue_dead_letter(number).await? {
        Ok(()) => Ok(Json(json!({ "handled": true }))),
        Err(reason) => Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason)),
    }
}

fn no_letter(number: u64) -> Refusal {
    let unknown = format!("there is no dead letter {number}");
    Refusal::new(StatusCode::NOT_FOUND, unknown)
}

async fn discard(State(operated): State<Operated>, UrlPath(number): UrlPath<u64>) -> Reply {
    operated.opened()?;
    if operated.stream.discard_dead_letter(number).await? {
        Ok(Json(json!({ "discarded": true })))
    } else {
        Err(no_letter(number))
    }
}
