//! The client of a running node's socket.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use governance_stream::storage::Owner;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::{
    failure::{Exit, NoNode},
    node::owner,
    socket::SOCKET,
};

/// Which node is asked.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The data directory of the node; `data` if it is named nowhere.
    #[arg(long, env = "GOVERNANCE_STREAM__DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The configuration that names it.
    #[arg(long, short, env = "GOVERNANCE_STREAM_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON object instead of text, errors too.
    #[arg(long)]
    pub json: bool,
}

/// What a node refused, and what may be done about it.
#[derive(Debug, thiserror::Error)]
#[error("{error}{}", match retry.as_str() {
    "now" => " (asking again at once is safe)",
    "after" => " (ask again shortly)",
    "operator" => " (a person has to act first)",
    _ => "",
})]
pub(super) struct Refused {
    pub error: String,
    pub retry: String,
    pub kind: Exit,
}

impl NodeArgs {
    /// Its data directory.
    pub(super) fn directory(&self) -> anyhow::Result<PathBuf> {
        match (&self.data_dir, &self.config) {
            (Some(directory), _) => Ok(directory.clone()),
            (None, Some(_)) => Ok(super::load(self.config.as_ref(), &[])?.data_dir),
            (None, None) => Ok(PathBuf::from("data")),
        }
    }

    /// The owner that the configuration describes, if one is named.
    pub(super) fn owner(&self) -> anyhow::Result<Option<Owner>> {
        if self.config.is_none() {
            return Ok(None);
        }
        let settings = super::load(self.config.as_ref(), &[])?;
        owner(&settings.stream.node, &settings.federation).map(Some)
    }

    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        ask(&self.directory()?, Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(body)?;
        ask(&self.directory()?, Method::POST, path, Some(body)).await
    }
}

/// Whether a node answers on the socket in `directory`.
pub(super) async fn listens(directory: &Path) -> anyhow::Result<bool> {
    let socket = directory.join(SOCKET);
    match UnixStream::connect(&socket).await {
        Ok(_) => Ok(true),
        // A node that was killed leaves its socket.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(false)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot ask the node on {}", socket.display()))
        }
    }
}

/// Asks the node that runs on `directory`.
pub(super) async fn ask(
    directory: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> anyhow::Result<Value> {
    let socket = directory.join(SOCKET);
    let shown = socket.display();
    if !listens(directory).await? {
        let nobody = format!(
            "no node listens on {shown}: name its data directory with --data-dir, or start it"
        );
        return Err(NoNode(nobody).into());
    }
    let stream = UnixStream::connect(&socket).await;
    let stream = stream.with_context(|| format!("the node on {shown} went away"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "node")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))?;
    let response = sender.send_request(request).await;
    let response = response.with_context(|| format!("the node on {shown} went away"))?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    drop(sender);
    let _ = connection.await;
    let text = || String::from_utf8_lossy(&body).into_owned();
    let Ok(value) = serde_json::from_slice::<Value>(&body) else {
        bail!("the node answered {code}: {}", text());
    };
    if code.is_success() {
        return Ok(value);
    }
    let other = if code == StatusCode::NOT_FOUND {
        Exit::NotThere
    } else {
        Exit::Failed
    };
    let word = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    Err(Refused {
        error: word("error").unwrap_or_else(text),
        retry: word("retry").unwrap_or_default(),
        kind: word("kind")
            .and_then(|word| Exit::of_word(&word))
            .unwrap_or(other),
    }
    .into())
}
