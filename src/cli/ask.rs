//! The client of a running node's socket.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::socket::SOCKET;

/// Which running node is asked.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// The data directory of the running node.
    #[arg(
        long,
        env = "GOVERNANCE_STREAM__DATA_DIR",
        value_name = "DIR",
        default_value = "data"
    )]
    data_dir: PathBuf,
    /// One JSON object instead of text.
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
}

impl NodeArgs {
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        ask(&self.data_dir, Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(body)?;
        ask(&self.data_dir, Method::POST, path, Some(body)).await
    }
}

async fn ask(
    directory: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> anyhow::Result<Value> {
    let socket = directory.join(SOCKET);
    let shown = socket.display();
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!("no node listens on {shown}: name its data directory with --data-dir, or start it")
    })?;
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
    let word = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    Err(Refused {
        error: word("error").unwrap_or_else(text),
        retry: word("retry").unwrap_or_default(),
    }
    .into())
}
