//! What the operator's socket serves of this crate's chain.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{
    Json, Router,
    extract::{Path as UrlPath, RawQuery, State},
    http::StatusCode,
    routing::{get, post},
};
use bitcoin::hex::DisplayHex as _;
use governance_stream::{
    StreamError,
    chain::{
        ChainMessage, ChainStore, Federation, FederationEvent, FederationStanding, Federations,
        HeightError, HeightReport, NumberedEvent, NumberedPayment, PaymentPage, Proposal,
    },
    message::{BurnId, FederationUpdateKind},
};
use ractor::{ActorRef, rpc::CallResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::socket::{CHAIN_DEADLINE, Operated, Refusal, Reply};

/// The sidechain's best height.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeightForm {
    pub height: u64,
    /// Whether it may be lower than before.
    pub reorganised: bool,
}

pub(super) fn routes() -> Router<Operated> {
    Router::new()
        .route("/federation", get(show))
        .route("/federation/history", get(history))
        .route("/federation/pending", get(pending))
        .route("/payments", get(payments))
        .route("/payments/{burn}", get(payments_of))
        .route("/proposals", get(proposals))
        .route("/chain/height", post(height))
}

async fn show(State(operated): State<Operated>) -> Reply {
    let store = operated.chain()?;
    let federations = store.federations();
    let of = |standing| shown_of(&federations, standing);
    let refusal = store.last_refusal().map(|refusal| {
        json!({
            "version": refusal.version,
            "reason": refusal.reason,
            "at_unix_ms": unix_ms(refusal.at),
        })
    });
    Ok(Json(json!({
        "height": store.height(),
        "active": of(FederationStanding::Active).pop(),
        "retiring": of(FederationStanding::Retiring),
        "scheduled": of(FederationStanding::Scheduled),
        "last_refusal": refusal,
    })))
}

async fn history(State(operated): State<Operated>) -> Reply {
    let store = operated.chain()?;
    let federations = store.federations();
    let versions = (0..federations.len()).filter_map(|index| shown(&federations, index));
    let events = store.events_after(0);
    Ok(Json(json!({
        "height": store.height(),
        "versions": versions.collect::<Vec<_>>(),
        "events": events.iter().map(shown_event).collect::<Vec<_>>(),
    })))
}

async fn pending(State(operated): State<Operated>) -> Reply {
    let store = operated.chain()?;
    let scheduled = shown_of(&store.federations(), FederationStanding::Scheduled);
    Ok(Json(
        json!({ "height": store.height(), "scheduled": scheduled }),
    ))
}

/// A page of them: `after` the last number of the page before, `limit`, `order=newest`.
async fn payments(State(operated): State<Operated>, RawQuery(query): RawQuery) -> Reply {
    let page = page(query.as_deref().unwrap_or_default())?;
    let chain = operated.chain()?;
    operated.opened()?;
    let payments = chain.payments(page).await;
    let payments = payments.map_err(|fault| operated.refused_by_store(fault))?;
    Ok(Json(payments.iter().map(shown_payment).collect()))
}

/// Those of one burn: more than one must never be.
async fn payments_of(State(operated): State<Operated>, UrlPath(text): UrlPath<String>) -> Reply {
    let burn: BurnId = text.parse()?;
    let chain = operated.chain()?;
    operated.opened()?;
    let payments = chain.payments_of(&burn).await;
    let payments = payments.map_err(|fault| operated.refused_by_store(fault))?;
    Ok(Json(payments.iter().map(shown_payment).collect()))
}

fn page(query: &str) -> Result<PaymentPage, Refusal> {
    let mut page = PaymentPage::default();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let wrong = || {
            let reason = format!("`{part}`: expected after=NUMBER, limit=COUNT or order=newest");
            Refusal::new(StatusCode::BAD_REQUEST, reason)
        };
        match (key, value) {
            ("after", number) => page.after = Some(number.parse().map_err(|_| wrong())?),
            ("limit", count) => page.limit = count.parse().map_err(|_| wrong())?,
            ("order", "newest") => page.newest_first = true,
            ("order", "oldest") => page.newest_first = false,
            _ => return Err(wrong()),
        }
    }
    Ok(page)
}

async fn proposals(State(operated): State<Operated>) -> Reply {
    let proposals = operated.chain()?.proposals();
    Ok(Json(proposals.iter().map(shown_proposal).collect()))
}

async fn height(State(operated): State<Operated>, Json(form): Json<HeightForm>) -> Reply {
    let store = operated.chain()?;
    operated.opened()?;
    let actor = operated.chain.clone().unwrap_or_default();
    let absent = || {
        Refusal::from(StreamError::NotRunning {
            actor: actor.clone(),
        })
    };
    let chain = ActorRef::<ChainMessage>::where_is(&actor).ok_or_else(absent)?;
    let report = if form.reorganised {
        HeightReport::Reorganised(form.height)
    } else {
        HeightReport::Reached(form.height)
    };
    let message = |reply| ChainMessage::ReportHeight { report, reply };
    match chain.call(message, Some(CHAIN_DEADLINE)).await {
        Ok(CallResult::Success(Ok(()))) => Ok(Json(json!({
            "height": store.height(),
            "active_version": store.active().version(),
        }))),
        Ok(CallResult::Success(Err(error @ HeightError::Lower { .. }))) => {
            Err(Refusal::new(StatusCode::CONFLICT, error))
        }
        Ok(CallResult::Success(Err(HeightError::Store(fault)))) => {
            Err(operated.refused_by_store(fault))
        }
        Ok(CallResult::Timeout | CallResult::SenderError) | Err(_) => Err(absent()),
    }
}

impl Operated {
    /// What this crate's chain knows, where it runs.
    fn chain(&self) -> Result<&ChainStore, Refusal> {
        if self.chain.is_none() {
            let reason = "this node's chain is not this crate's: features.chain is false";
            return Err(Refusal::new(StatusCode::NOT_FOUND, reason));
        }
        Ok(&self.chain_store)
    }
}

fn shown_of(federations: &Federations, wanted: FederationStanding) -> Vec<Value> {
    let standings = federations.iter().enumerate();
    standings
        .filter(|(_, (_, standing))| *standing == wanted)
        .filter_map(|(index, _)| shown(federations, index))
        .collect()
}

fn shown(federations: &Federations, index: usize) -> Option<Value> {
    let (federation, standing) = federations.get(index)?;
    let members = federation.members().iter().map(|member| {
        json!({
            "id": member.id.to_string(),
            "public_key": member.public_key.to_string(),
            "active": member.active,
        })
    });
    let kind = match federation.kind() {
        FederationUpdateKind::Scheduled => "scheduled",
        FederationUpdateKind::Emergency => "emergency",
        FederationUpdateKind::Pause => "pause",
        FederationUpdateKind::Resume => "resume",
    };
    Some(json!({
        "version": federation.version(),
        "standing": standing,
        "kind": kind,
        "paused": federation.is_paused(),
        "threshold": federation.threshold(),
        "members": members.collect::<Vec<_>>(),
        "descriptor": federation.descriptor().to_string(),
        "address": federation.address().to_string(),
        "activation_height": federation.activation_height(),
        "grace_blocks": federation.grace_blocks(),
        "good_below_height": federations.get(index + 1).map(|(next, _)| grace_end(next)),
        "digest": federation.digest().to_lower_hex_string(),
        "previous_digest": federation.previous_digest().to_lower_hex_string(),
    }))
}

/// The height from which on the version before this one is no longer good.
fn grace_end(next: &Federation) -> u64 {
    let grace = u64::from(next.grace_blocks());
    next.activation_height().saturating_add(grace)
}

fn shown_event(numbered: &NumberedEvent) -> Value {
    let mut shown = match &numbered.event {
        FederationEvent::Scheduled {
            version,
            activation_height,
        } => json!({ "version": version, "activation_height": activation_height }),
        FederationEvent::Updated {
            old_version,
            new_version,
            new_address,
        } => json!({
            "old_version": old_version,
            "new_version": new_version,
            "new_address": new_address.to_string(),
        }),
        FederationEvent::Undone {
            undone_version,
            active_version,
            active_address,
        } => json!({
            "undone_version": undone_version,
            "active_version": active_version,
            "active_address": active_address.to_string(),
        }),
        FederationEvent::Retired { version } | FederationEvent::Reinstated { version } => {
            json!({ "version": version })
        }
    };
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("number".to_owned(), numbered.number.into());
        shown.insert("height".to_owned(), numbered.height.into());
        shown.insert("event".to_owned(), numbered.event.name().into());
    }
    shown
}

fn shown_payment(numbered: &NumberedPayment) -> Value {
    let NumberedPayment { number, payment } = numbered;
    let burns = payment.burns.iter().map(ToString::to_string);
    json!({
        "number": number,
        "request_id": payment.request_id,
        "burns": burns.collect::<Vec<_>>(),
        "txid": payment.txid,
        "block": payment.place.block,
        "height": payment.place.height,
    })
}

fn shown_proposal(proposal: &Proposal) -> Value {
    let notification = &proposal.notification;
    json!({
        "proposal_id": notification.proposal_id.to_string(),
        "proposal_type": notification.proposal_type.as_str(),
        "data": notification.data,
        "voting_deadline_unix_ms": unix_ms(notification.voting_deadline),
        "expired": proposal.expired,
    })
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
