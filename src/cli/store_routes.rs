//! The store on the operator's socket: looked into, and copied.

use std::{ops::ControlFlow, thread};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use governance_stream::storage::{BackupError, OnProgress};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{
    backup::{BackupForm, described},
    failure::{self, Exit},
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
        match none {
            NoAnswer::NotThere(_) => Self::new(StatusCode::NOT_FOUND, none),
            NoAnswer::Invalid(_) => Self::new(StatusCode::BAD_REQUEST, none),
            NoAnswer::Store(fault) => fault.into(),
        }
    }
}

impl From<BackupError> for Refusal {
    fn from(error: BackupError) -> Self {
        let code = match &error {
            BackupError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            BackupError::Busy => StatusCode::CONFLICT,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        let (exit, retry) = (Exit::of_copy(&error), failure::retry_of_copy(&error));
        Self::with_retry(code, error, retry).ending(exit)
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
    let done = at_length(operated.stopping, move |go_on| {
        let backup = store.backup(&file, go_on)?;
        Ok(described(&file, &backup))
    });
    Ok(Json(done.await?))
}

/// Reads every block, at once.
async fn scrub(State(operated): State<Operated>) -> Reply {
    let store = operated.stream.store()?;
    let commit = store.condition().confirmed;
    let scrubbing = at_length(operated.stopping, move |_| Ok(store.scrub(&mut |_| {})?));
    let report = scrubbing.await?;
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
    let done = at_length(operated.stopping, move |go_on| store.compact(go_on)).await?;
    Ok(Json(json!({
        "bytes_before": done.map(|done| done.before),
        "bytes_after": done.map(|done| done.after),
    })))
}

/// Does what takes long on a thread of its own. A node that is asked to stop does not wait for it,
/// nor does its process: a disk may keep that thread for ever.
async fn at_length<T: Send + 'static>(
    stopping: CancellationToken,
    work: impl FnOnce(&mut OnProgress<'_>) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, Refusal> {
    let (tell, told) = oneshot::channel();
    let asked = stopping.clone();
    let working = move || {
        let done = work(&mut |_| {
            if asked.is_cancelled() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        // The one who asked may have gone.
        let _ = tell.send(done);
    };
    let failed = |error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error);
    thread::Builder::new()
        .name("operator".to_owned())
        .spawn(working)
        .map_err(|error| failed(format!("no thread can be started: {error}")))?;
    tokio::select! {
        () = stopping.cancelled() => {
            let given_up = "the node is asked to stop, and gives this up";
            Err(Refusal::with_retry(StatusCode::SERVICE_UNAVAILABLE, given_up, "after")
                .ending(Exit::Closed))
        }
        done = told => match done {
            Ok(done) => Ok(done?),
            Err(_) => Err(failed("it ended before its time: see the node's log".to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::response::IntoResponse as _;
    use governance_stream::storage::{CopyProgress, CopyStage};

    use super::*;

    #[tokio::test]
    async fn a_node_that_stops_waits_for_nothing_that_takes_long() {
        let stopping = CancellationToken::new();
        let (go_on, gone_on) = mpsc::channel::<()>();
        let (begin, begun) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let hangs = at_length(stopping.clone(), move |progress| {
            let _ = begin.send(());
            // As a disk that does not answer.
            let _ = gone_on.recv();
            let stage = CopyStage::Copying;
            let wanted = progress(CopyProgress {
                stage,
                done: 0,
                of: 0,
            });
            let _ = tell.send(wanted.is_break());
            Ok(())
        });
        let stop = async {
            begun.await.expect("it begins");
            stopping.cancel();
        };
        let (done, ()) = tokio::join!(hangs, stop);
        let refusal = done.expect_err("it is given up").into_response();
        assert_eq!(refusal.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(go_on);
        assert!(told.await.expect("it goes on"), "it is told to give up");
    }
}
