//! The store on the operator's socket: looked into, and copied.

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use governance_stream::storage::BackupError;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    backup::{BackupForm, described, progress},
    failure,
    question::{NoAnswer, Question, Shelf},
    socket::{Operated, Refusal, Reply},
};

pub(super) fn routes() -> Router<Operated> {
    Router::new()
        .route("/look", post(look))
        .route("/backup", post(backup))
        .route("/store/scrub", post(scrub))
        .route("/store/compact", post(compact))
}

impl From<NoAnswer> for Refusal {
    fn from(none: NoAnswer) -> Self {
        let (code, retry) = match &none {
            NoAnswer::NotThere(_) => (StatusCode::NOT_FOUND, "never"),
            NoAnswer::Invalid(_) => (StatusCode::BAD_REQUEST, "never"),
            NoAnswer::Store(fault) => (StatusCode::SERVICE_UNAVAILABLE, failure::retry_of(fault)),
        };
        Self::with_retry(code, none, retry)
    }
}

impl From<BackupError> for Refusal {
    fn from(error: BackupError) -> Self {
        let (code, retry) = match &error {
            BackupError::Store(fault) => {
                (StatusCode::SERVICE_UNAVAILABLE, failure::retry_of(fault))
            }
            BackupError::Busy => (StatusCode::CONFLICT, "after"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "operator"),
        };
        Self::with_retry(code, error, retry)
    }
}

/// Answers a question from one view of the store.
async fn look(State(operated): State<Operated>, Json(question): Json<Question>) -> Reply {
    let store = operated.stream.store()?;
    let identity = store.identity().clone();
    let place = store.place().to_owned();
    let usage = store.condition().usage;
    let answered = store.view(move |snapshot| {
        let shelf = Shelf {
            snapshot,
            place: &place,
            identity: &identity,
            usage,
        };
        Ok(question.answer(&shelf))
    });
    Ok(Json(answered.await.map_err(NoAnswer::Store)??))
}

/// Makes a backup beside the node's work.
async fn backup(State(operated): State<Operated>, Json(form): Json<BackupForm>) -> Reply {
    let file = form.file;
    if file.is_relative() {
        let relative = format!("{}: a backup's name is absolute here", file.display());
        return Err(Refusal::new(StatusCode::BAD_REQUEST, relative));
    }
    let store = operated.stream.store()?;
    let copying = spawn_blocking(move || {
        let backup = store.backup(&file, &mut progress)?;
        Ok::<_, BackupError>(described(&file, &backup))
    });
    Ok(Json(awaited(copying).await??))
}

/// Reads every block, at once.
async fn scrub(State(operated): State<Operated>) -> Reply {
    let store = operated.stream.store()?;
    let commit = store.condition().confirmed;
    let scrubbed = awaited(spawn_blocking(move || store.scrub(&mut |_| {}))).await?;
    let report = scrubbed.map_err(NoAnswer::Store)?;
    Ok(Json(json!({
        "commit": commit,
        "blocks": report.blocks,
        "suspects": report.suspects,
        "unreadable": report.unreadable.map(|fault| fault.to_string()),
    })))
}

/// Gives free space back.
async fn compact(State(operated): State<Operated>) -> Reply {
    let store = operated.stream.store()?;
    let compacting = awaited(spawn_blocking(move || store.compact(&mut progress)));
    let done = compacting.await??;
    Ok(Json(json!({
        "bytes_before": done.map(|done| done.before),
        "bytes_after": done.map(|done| done.after),
    })))
}

async fn awaited<T>(work: tokio::task::JoinHandle<T>) -> Result<T, Refusal> {
    work.await.map_err(|error| {
        let ended = format!("it ended before its time: {error}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ended)
    })
}
