//! Peg-outs on the operator's socket: begun, shown, stopped and taken up again.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::{StatusCode, Uri},
    routing::{get, post},
};
use bitcoin::{Address, Amount, Psbt, Txid, address::NetworkUnchecked, hex::DisplayHex as _};
use governance_stream::{
    Restoration, StreamError,
    bridge::{
        BridgeMessage, CancelAnswer, PausedBy, Pegout, PegoutFailure, PegoutPage, PegoutRefusal,
        PegoutStage,
    },
    message::{
        BurnId, PegoutBinding, RequestId, SignatureRequest, SignatureRequestParts, TransactionType,
    },
};
use ractor::{ActorRef, RpcReplyPort, rpc::CallResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::Span;

use super::failure::Exit;
use super::socket::{Operated, POLL, Refusal, Reply, id, parameter};

/// How long the bridge may take to record something.
const BRIDGE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a new peg-out's answer waits for the stream's word on it.
const WORD: Duration = Duration::from_secs(2);

/// How long a question about peg-outs waits for the bridge to have read what is open.
const LOAD_DEADLINE: Duration = Duration::from_secs(5);

/// A peg-out to be signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PegoutForm {
    /// Made from the first burn and the transaction when unset: the same again is the same.
    pub request_id: Option<RequestId>,
    /// Base64.
    pub psbt: String,
    pub burns: Vec<BurnForm>,
    pub max_fee_sat: u64,
    /// The active one when unset.
    pub federation_version: Option<u32>,
    pub replaces: Option<RequestId>,
}

/// A burn as the sidechain has it, and the output that pays it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BurnForm {
    /// Hexadecimal, as the sidechain shows it.
    pub burn_tx_hash: String,
    pub log_index: u32,
    pub block_hash: String,
    pub block_height: u64,
    pub output_index: u32,
    /// What it is owed, and where.
    pub amount_sat: u64,
    pub address: Address<NetworkUnchecked>,
}

pub(super) fn router() -> Router<Operated> {
    Router::new()
        .route("/pegouts", post(pegout).get(pegouts))
        // As it was called once.
        .route("/requests", post(pegout))
        .route("/pegouts/{id}", get(one))
        .route("/pegouts/{id}/after/{state}", get(after))
        .route("/pause-pegouts", post(pause))
        .route("/resume-pegouts", post(resume))
}

async fn pegout(State(operated): State<Operated>, Json(form): Json<PegoutForm>) -> Reply {
    // At once, and before anything of it may have been done.
    operated.opened()?;
    let request = operated.pegout(form)?;
    let request_id = request.request_id().clone();
    if operated.bridge.is_none() {
        operated.stream.request_signatures(request).await?;
        return Ok(Json(json!({ "request_id": request_id, "accepted": true })));
    }
    // The bridge asks the stream, when its record is durable and nobody has paused it.
    let initiate = |reply| BridgeMessage::InitiatePegout {
        request: Box::new(request.clone()),
        span: Span::current(),
        reply,
    };
    match operated.ask_bridge(initiate).await? {
        Ok(()) => {}
        Err(PegoutRefusal::AskAgain(busy)) => return Err(busy.into()),
        Err(refusal @ PegoutRefusal::Restoring) => {
            // What is being recalled comes by itself; for the rest somebody has to act.
            let retry = match operated.stream.status().restoration {
                Restoration::Waiting | Restoration::WentBack => "operator",
                Restoration::Reconciling | Restoration::None => "after",
            };
            let code = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal::with_retry(code, refusal, retry).ending(Exit::Failed));
        }
        Err(refusal) => return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, refusal)),
    }
    // It is durable by now: that it cannot be looked at just now is no refusal.
    let Ok(pegout) = operated.word_on(&request_id).await else {
        return Ok(Json(json!({
            "request_id": request_id,
            "accepted": true,
            "state": state(&PegoutStage::Requested),
        })));
    };
    if let PegoutStage::Failed(PegoutFailure::NotAccepted(reason)) = pegout.stage() {
        return Err(Refusal::new(StatusCode::CONFLICT, reason));
    }
    let mut shown = operated.shown(&pegout);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("accepted".to_owned(), true.into());
    }
    Ok(Json(shown))
}

/// The newest first: those `before` a number (`next` of the page before), `limit` of them.
async fn pegouts(State(operated): State<Operated>, uri: Uri) -> Reply {
    let (before, limit) = (parameter(&uri, "before")?, parameter(&uri, "limit")?);
    let limit = limit.unwrap_or(PegoutPage::MOST);
    operated.until_loaded().await?;
    let page = operated.bridge_store.pegouts(before, limit).await?;
    let pegouts = page.pegouts.iter().map(|pegout| operated.shown(pegout));
    let open = operated.bridge_store.open_pegouts();
    let open = open.iter().filter(|pegout| !operated.has_ended(pegout));
    Ok(Json(json!({
        "paused_by": operated.paused_by(),
        "open": open.count(),
        "pegouts": pegouts.collect::<Vec<Value>>(),
        "next": page.next,
    })))
}

async fn one(State(operated): State<Operated>, UrlPath(text): UrlPath<String>) -> Reply {
    operated.until_loaded().await?;
    let pegout = operated.find(&id(&text)?).await?;
    Ok(Json(operated.shown(&pegout)))
}

/// Waits a while for another state than the one that is known.
async fn after(
    State(operated): State<Operated>,
    UrlPath((text, known)): UrlPath<(String, String)>,
) -> Reply {
    let request_id = id(&text)?;
    let mut changed = operated.bridge_store.watch();
    let news = async {
        loop {
            let pegout = operated.find(&request_id).await?;
            if state(pegout.stage()) != known || changed.changed().await.is_err() {
                return Ok::<_, Refusal>(pegout);
            }
        }
    };
    let pegout = match timeout(POLL, news).await {
        Ok(pegout) => pegout?,
        Err(_) => operated.find(&request_id).await?,
    };
    Ok(Json(operated.shown(&pegout)))
}

async fn pause(State(operated): State<Operated>) -> Reply {
    operated.set_paused(true).await
}

async fn resume(State(operated): State<Operated>) -> Reply {
    operated.set_paused(false).await
}

/// The stage in one word, with what counts in it.
fn state(stage: &PegoutStage) -> String {
    let name = stage.name();
    match stage {
        PegoutStage::Partial {
            collected,
            required,
        } => format!("{name}:{collected}:{required}"),
        PegoutStage::Confirmed { confirmations, .. } => format!("{name}:{confirmations}"),
        _ => name.to_owned(),
    }
}

/// The stage for people.
fn words(stage: &PegoutStage) -> String {
    match stage {
        PegoutStage::Requested => "requested".to_owned(),
        PegoutStage::Cancelling => "being cancelled; nobody asks for it any more".to_owned(),
        PegoutStage::Cancelled => "cancelled before anyone was asked to sign it".to_owned(),
        PegoutStage::SignaturesRequested => "governance is asked for signatures".to_owned(),
        PegoutStage::Partial {
            collected,
            required,
        } => format!("{collected} of {required} signatures"),
        PegoutStage::Signed => "signed".to_owned(),
        PegoutStage::Broadcast { txid } => format!("broadcast as {txid}"),
        PegoutStage::Confirmed {
            confirmations,
            place,
        } => format!("{confirmations} deep, in block {}", place.height),
        PegoutStage::Completed { place } => format!("completed, in block {}", place.height),
        PegoutStage::Failed(failure) => format!("failed: {failure}"),
        PegoutStage::Superseded { by } => format!("superseded by {by}"),
    }
}

impl Operated {
    async fn ask_bridge<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<T>) -> BridgeMessage,
    ) -> Result<T, Refusal> {
        let name = self.bridge.clone().unwrap_or_default();
        let absent = || {
            Refusal::from(StreamError::NotRunning {
                actor: name.clone(),
            })
        };
        let actor = ActorRef::<BridgeMessage>::where_is(name.clone()).ok_or_else(absent)?;
        match actor.call(message, Some(BRIDGE_DEADLINE)).await {
            Ok(CallResult::Success(answer)) => Ok(answer),
            Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(absent()),
        }
    }

    async fn set_paused(&self, paused: bool) -> Reply {
        self.opened()?;
        let set = |reply| BridgeMessage::SetPaused { paused, reply };
        self.ask_bridge(set).await??;
        Ok(Json(json!({ "paused_by": self.paused_by() })))
    }

    /// Who has paused peg-outs, in words.
    fn paused_by(&self) -> Option<String> {
        let by = self.bridge_store.paused_by();
        let by: Vec<String> = by.iter().map(PausedBy::to_string).collect();
        (!by.is_empty()).then(|| by.join(" and "))
    }

    /// Waits a moment until the bridge has read what is open: before that nobody knows who has
    /// paused peg-outs.
    async fn until_loaded(&self) -> Result<(), Refusal> {
        self.opened()?;
        let mut changed = self.bridge_store.watch();
        let loaded = async {
            while self.bridge.is_some() && !self.bridge_store.is_loaded() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let waited = timeout(LOAD_DEADLINE, loaded).await;
        waited.map_err(|_| {
            let reading = "the bridge is still reading what it keeps; ask again shortly";
            Refusal::with_retry(StatusCode::SERVICE_UNAVAILABLE, reading, "after")
        })
    }

    async fn find(&self, request_id: &RequestId) -> Result<Arc<Pegout>, Refusal> {
        let found = self.bridge_store.pegout(request_id).await?;
        found.ok_or_else(|| {
            let unknown = format!("no peg-out of this node is {request_id}");
            Refusal::new(StatusCode::NOT_FOUND, unknown)
        })
    }

    /// Whether nothing more of a peg-out is to be seen from here.
    fn has_ended(&self, pegout: &Pegout) -> bool {
        let stage = pegout.stage();
        let failed = matches!(stage, PegoutStage::Failed(_));
        stage.is_over() || failed || self.has_succeeded(pegout)
    }

    fn has_succeeded(&self, pegout: &Pegout) -> bool {
        let stage = pegout.stage();
        matches!(stage, PegoutStage::Completed { .. }) || (!self.follows && stage.is_on_network())
    }

    /// Ends a peg-out that the bridge has and the stream may not. Nothing when that is the stream's
    /// to do.
    pub(super) async fn cancel_at_bridge(
        &self,
        request_id: &RequestId,
    ) -> Result<Option<Value>, Refusal> {
        let waits = |pegout: &Pegout| {
            matches!(
                pegout.stage(),
                PegoutStage::Requested | PegoutStage::Cancelling | PegoutStage::Cancelled
            )
        };
        let pegout = self.bridge_store.pegout(request_id).await?;
        if !pegout.is_some_and(|pegout| waits(&pegout)) {
            return Ok(None);
        }
        let cancel = |reply| BridgeMessage::CancelPegout {
            request_id: request_id.clone(),
            reply,
        };
        match self.ask_bridge(cancel).await? {
            Ok(CancelAnswer::Ends) => {
                let pegout = self.word_on(request_id).await?;
                let mut shown = self.shown(&pegout);
                if let Some(shown) = shown.as_object_mut() {
                    shown.insert("asked".to_owned(), (!waits(&pegout)).into());
                }
                Ok(Some(shown))
            }
            Ok(CancelAnswer::AtStream | CancelAnswer::Unknown) => Ok(None),
            Err(busy) => Err(busy.into()),
        }
    }

    /// The peg-out once the stream has said something to it, or something is in its way.
    async fn word_on(&self, request_id: &RequestId) -> Result<Arc<Pegout>, Refusal> {
        let mut changed = self.bridge_store.watch();
        let word = async {
            loop {
                let pegout = self.find(request_id).await?;
                let waits = match pegout.stage() {
                    PegoutStage::Requested => self.bridge_store.paused_by().is_empty(),
                    stage => *stage == PegoutStage::Cancelling,
                } && pegout.trouble().is_none();
                if !waits || changed.changed().await.is_err() {
                    return Ok(pegout);
                }
            }
        };
        match timeout(WORD, word).await {
            Ok(pegout) => pegout,
            Err(_) => self.find(request_id).await,
        }
    }

    fn shown(&self, pegout: &Pegout) -> Value {
        let stage = pegout.stage();
        let store = &self.bridge_store;
        let (collected, required) = match store.signature_standing(pegout) {
            Some(standing) => {
                let counts = standing.inputs.iter().map(|(_, keys)| keys.len());
                (counts.min(), Some(standing.required))
            }
            None => (None, None),
        };
        let place = match stage {
            PegoutStage::Confirmed { place, .. } | PegoutStage::Completed { place } => Some(place),
            _ => None,
        };
        let burns: Vec<String> = pegout.burns().map(|burn| burn.to_string()).collect();
        let paid = pegout.payments().iter();
        let paid: u64 = paid.map(|burn| burn.amount.to_sat()).sum();
        let waits = matches!(stage, PegoutStage::Requested | PegoutStage::Signed);
        let paused = self.paused_by().filter(|_| waits);
        json!({
            "request_id": pegout.request_id(),
            "state": state(stage),
            "text": words(stage),
            "ended": self.has_ended(pegout),
            "succeeded": self.has_succeeded(pegout),
            "txid": pegout.txid(),
            "burns": burns,
            "paid_sat": paid,
            "federation_version": pegout.federation_version(),
            "signatures": { "collected": collected, "required": required },
            "block": place.map(|place| place.block),
            "height": place.map(|place| place.height),
            "trouble": pegout.trouble(),
            "paused_by": paused,
        })
    }

    /// The request that a form asks for: every input is to be signed.
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
        let burn = |burn: BurnForm| {
            let address = burn.address.require_network(self.node.network);
            let address = address.map_err(|error| {
                Refusal::new(StatusCode::BAD_REQUEST, format!("burns: address: {error}"))
            })?;
            Ok(PegoutBinding {
                burn_tx_hash: bytes("burn_tx_hash", &burn.burn_tx_hash)?,
                log_index: burn.log_index,
                block_hash: bytes("block_hash", &burn.block_hash)?,
                block_height: burn.block_height,
                output_index: burn.output_index,
                amount: Amount::from_sat(burn.amount_sat),
                script_pubkey: address.script_pubkey(),
            })
        };
        let burns = form.burns.into_iter().map(burn);
        let burns = burns.collect::<Result<Vec<_>, Refusal>>()?;
        let active = || self.bridge_store.active_federation();
        let federation_version = form.federation_version.or_else(active).ok_or_else(|| {
            let reason = "federation_version: no federation is active here; name one";
            Refusal::new(StatusCode::BAD_REQUEST, reason)
        })?;
        let inputs = u32::try_from(psbt.inputs.len()).unwrap_or(u32::MAX);
        let request_id = match form.request_id {
            Some(request_id) => request_id,
            None => default_id(&burns, psbt.unsigned_tx.compute_txid())?,
        };
        Ok(SignatureRequest::new(SignatureRequestParts {
            request_id,
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

/// Named by the first burn and the transaction: another attempt at the burn is another id.
fn default_id(burns: &[PegoutBinding], txid: Txid) -> Result<RequestId, Refusal> {
    let Some(burn) = burns.first().map(PegoutBinding::burn) else {
        let reason = "burns: none; a peg-out pays at least one";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, reason));
    };
    let BurnId { tx_hash, log_index } = burn;
    let short = |hex: String| hex.chars().take(16).collect::<String>();
    let (burn, attempt) = (
        short(tx_hash.to_lower_hex_string()),
        short(txid.to_string()),
    );
    Ok(RequestId::new(format!("{burn}-{log_index}-{attempt}"))?)
}

/// Hexadecimal digits, with or without `0x`.
fn bytes<const N: usize>(field: &str, text: &str) -> Result<[u8; N], Refusal> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    bitcoin::hex::FromHex::from_hex(digits).map_err(|_| {
        let reason = format!("{field}: {text:?}, expected {} hexadecimal digits", 2 * N);
        Refusal::new(StatusCode::BAD_REQUEST, reason)
    })
}
