//! The operator's socket of a running node: HTTP over a Unix domain socket in its data directory.
//! Whoever may open it may do everything it offers: directory and socket are for their owner only.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bitcoin::{Amount, OutPoint, Psbt};
use governance_stream::{
    ConnectionPhase, GovernanceStream, RequestStanding, Retry, StreamError,
    bridge::{BridgeMessage, BridgeStore},
    chain::ChainStore,
    config::{ConfigFault, Endpoint, NodeConfig},
    message::{
        EvmAddress, InvalidMessage, PeginNotification, PegoutBinding, RequestId, SignatureRequest,
        SignatureRequestParts, TransactionType,
    },
};
use ractor::{ActorRef, rpc::CallResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// Name of the socket in the data directory.
pub(super) const SOCKET: &str = "operator.sock";
/// How long one question for an outcome waits for it.
const POLL: Duration = Duration::from_secs(20);
/// How long the bridge may take to record a peg-out.
const BRIDGE_DEADLINE: Duration = Duration::from_secs(10);
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
    /// Registry name of this crate's chain, where it runs.
    pub chain: Option<String>,
    pub chain_store: ChainStore,
}

/// A peg-out to be signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PegoutForm {
    pub request_id: RequestId,
    /// Base64.
    pub psbt: String,
    pub burns: Vec<BurnForm>,
    pub max_fee_sat: u64,
    /// The active one when unset.
    pub federation_version: Option<u32>,
    pub replaces: Option<RequestId>,
}

/// A burn, and the output that pays it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BurnForm {
    /// Hexadecimal, as the sidechain shows it.
    pub burn_tx_hash: String,
    pub log_index: u32,
    pub block_hash: String,
    pub block_height: u64,
    pub output_index: u32,
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

/// Listens in `directory`, where only this process does.
pub(super) fn bind(directory: &Path) -> io::Result<(PathBuf, UnixListener)> {
    let path = directory.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok((path, listener))
}

/// Serves until `stop`.
pub(super) async fn serve(
    listener: UnixListener,
    operated: Operated,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/status", get(status))
        .route("/requests", post(request))
        .route("/requests/{id}", get(standing))
        .route("/requests/{id}/outcome", get(outcome))
        .route("/requests/{id}/cancel", post(cancel))
        .route("/pegins", post(pegin))
        .route("/pegins", get(pegins))
        .route("/deliveries", get(deliveries))
        .route("/connect", post(connect))
        .route("/resume", post(resume))
        .route("/adopt-ledger", post(adopt_ledger))
        .route("/dead-letters", get(dead_letters))
        .route("/dead-letters/{number}/requeue", post(requeue))
        .route("/dead-letters/{number}/discard", post(discard))
        .merge(super::chain_routes::routes())
        .with_state(operated);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Why something was not done, as the socket says it.
pub(super) struct Refusal(StatusCode, Value);

impl Refusal {
    pub(super) fn new(code: StatusCode, error: impl ToString) -> Self {
        Self(
            code,
            json!({ "error": error.to_string(), "retry": "never" }),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
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
            StreamError::Conflict { .. } | StreamError::AlreadyPaid { .. } => StatusCode::CONFLICT,
            StreamError::UnknownRequest { .. } => StatusCode::NOT_FOUND,
            StreamError::Invalid(_) | StreamError::Config(_) => StatusCode::BAD_REQUEST,
            StreamError::BufferFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            StreamError::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let error = error.to_string();
        Self(
            code,
            json!({ "error": error, "retry": retry, "retry_after_ms": after }),
        )
    }
}

impl From<InvalidMessage> for Refusal {
    fn from(invalid: InvalidMessage) -> Self {
        Self::new(StatusCode::BAD_REQUEST, invalid)
    }
}

pub(super) type Reply = Result<Json<Value>, Refusal>;

async fn status(State(operated): State<Operated>) -> impl IntoResponse {
    Json(operated.stream.status())
}

async fn request(State(operated): State<Operated>, Json(form): Json<PegoutForm>) -> Reply {
    let request = operated.pegout(form)?;
    let request_id = request.request_id().clone();
    if let Some(name) = &operated.bridge {
        // Its record comes first: an answer may come before this call is over.
        initiate(name, &request).await?;
    }
    operated.stream.request_signatures(request).await?;
    Ok(Json(json!({ "request_id": request_id, "accepted": true })))
}

async fn initiate(bridge: &str, request: &SignatureRequest) -> Result<(), Refusal> {
    let absent = || {
        Refusal::from(StreamError::NotRunning {
            actor: bridge.to_owned(),
        })
    };
    let actor = ActorRef::<BridgeMessage>::where_is(bridge).ok_or_else(absent)?;
    let message = |reply| BridgeMessage::InitiatePegout {
        request: Box::new(request.clone()),
        span: Span::current(),
        reply,
    };
    match actor.call(message, Some(BRIDGE_DEADLINE)).await {
        Ok(CallResult::Success(Ok(()))) => Ok(()),
        Ok(CallResult::Success(Err(refusal))) => {
            Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, refusal))
        }
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(absent()),
    }
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

fn id(text: &str) -> Result<RequestId, Refusal> {
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
    operated.stream.cancel(id(&text)?).await?;
    Ok(Json(json!({ "asked": true })))
}

async fn pegin(State(operated): State<Operated>, Json(form): Json<PeginForm>) -> Reply {
    let address: EvmAddress = form.evm_address.parse()?;
    let amount = Amount::from_sat(form.amount_sat);
    let notification = PeginNotification::new(form.outpoint, amount, address)?;
    operated.stream.notify_pegin(notification).await?;
    Ok(Json(
        json!({ "outpoint": form.outpoint.to_string(), "accepted": true }),
    ))
}

async fn pegins(State(operated): State<Operated>) -> Json<Value> {
    let answered = operated.bridge_store.pegins();
    let answered: Vec<String> = answered.iter().map(ToString::to_string).collect();
    Json(json!({ "answered": answered }))
}

async fn deliveries(State(operated): State<Operated>) -> Json<Value> {
    let deliveries = operated.bridge_store.deliveries().into_iter();
    let deliveries = deliveries.map(|(lane, sequence, message_id, times)| {
        json!({
            "lane": lane,
            "sequence": sequence,
            "message_id": message_id.to_string(),
            "times": times,
        })
    });
    Json(Value::Array(deliveries.collect()))
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
    operated.stream.adopt_ledger().await?;
    Ok(Json(json!({ "adopts": true })))
}

async fn dead_letters(State(operated): State<Operated>) -> Reply {
    let letters = operated.stream.dead_letters().await?;
    let letters = letters
        .iter()
        .map(|(number, letter)| super::journal::shown_letter(*number, letter));
    Ok(Json(Value::Array(letters.collect())))
}

async fn requeue(State(operated): State<Operated>, UrlPath(number): UrlPath<u64>) -> Reply {
    match operated.stream.requeue_dead_letter(number).await? {
        Ok(()) => Ok(Json(json!({ "handled": true }))),
        Err(reason) => Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, reason)),
    }
}

async fn discard(State(operated): State<Operated>, UrlPath(number): UrlPath<u64>) -> Reply {
    if operated.stream.discard_dead_letter(number).await? {
        Ok(Json(json!({ "discarded": true })))
    } else {
        let unknown = format!("there is no dead letter {number}");
        Err(Refusal::new(StatusCode::NOT_FOUND, unknown))
    }
}

impl Operated {
    /// The request that a form asks for: every input is to be signed, and each burn is paid what
    /// its output holds.
    fn pegout(&self, form: PegoutForm) -> Result<SignatureRequest, Refusal> {
        let invalid = |error: &dyn ToString| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("psbt: {}", error.to_string()),
            )
        };
        let psbt: Psbt = form
            .psbt
            .parse()
            .map_err(|error: bitcoin::psbt::PsbtParseError| invalid(&error))?;
        let outputs = &psbt.unsigned_tx.output;
        let burn = |burn: BurnForm| {
            let output = outputs.get(burn.output_index as usize);
            let output = output.ok_or_else(|| {
                let reason = format!("burns: there is no output {}", burn.output_index);
                Refusal::new(StatusCode::BAD_REQUEST, reason)
            })?;
            Ok(PegoutBinding {
                burn_tx_hash: bytes("burn_tx_hash", &burn.burn_tx_hash)?,
                log_index: burn.log_index,
                block_hash: bytes("block_hash", &burn.block_hash)?,
                block_height: burn.block_height,
                output_index: burn.output_index,
                amount: output.value,
            })
        };
        let burns = form.burns.into_iter().map(burn);
        let burns = burns.collect::<Result<_, Refusal>>()?;
        let active = || self.bridge_store.active_federation();
        let federation_version = form.federation_version.or_else(active).ok_or_else(|| {
            let reason = "federation_version: no federation is active here; name one";
            Refusal::new(StatusCode::BAD_REQUEST, reason)
        })?;
        let inputs = u32::try_from(psbt.inputs.len()).unwrap_or(u32::MAX);
        Ok(SignatureRequest::new(SignatureRequestParts {
            request_id: form.request_id,
            psbt,
            input_indices: (0..inputs).collect(),
            tx_type: TransactionType::Pegout,
            chain: self.node.chain_id.clone(),
            network: self.node.network,
            federation_version,
            burns,
            max_fee: Amount::from_sat(form.max_fee_sat),
            replaces: form.replaces,
        })?)
    }
}

/// Hexadecimal digits, with or without `0x`.
fn bytes<const N: usize>(field: &str, text: &str) -> Result<[u8; N], Refusal> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    bitcoin::hex::FromHex::from_hex(digits).map_err(|_| {
        let reason = format!("{field}: {text:?}, expected {} hexadecimal digits", 2 * N);
        Refusal::new(StatusCode::BAD_REQUEST, reason)
    })
}
