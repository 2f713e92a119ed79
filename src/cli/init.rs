//! `init`: the store of a new node.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use governance_stream::storage::Store;
use serde_json::json;

use super::{
    ConfigArgs,
    node::owner,
    out::{self, of, plain},
};

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Other files may be in the data directory, but no store: a volume with a `lost+found`.
    #[arg(long)]
    beside_others: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    let settings = args.config.load()?;
    let node = &settings.stream.node;
    let owner = owner(node, &settings.federation)?;
    let (directory, beside_others) = (settings.data_dir, args.beside_others);
    let making =
        tokio::task::spawn_blocking(move || Store::create(&directory, &owner, beside_others));
    let store = making.await.context("making the store")??;
    let made = json!({
        "place": store.place(),
        "store_id": store.identity().store_id.to_string(),
        "node_id": node.node_id.to_string(),
    });
    out::show(args.json, &made, || {
        let of = |key: &str| plain(of(&made, key));
        format!(
            "made the store of node {} at {}; its id is {}",
            of("node_id"),
            of("place"),
            of("store_id")
        )
    });
    Ok(ExitCode::SUCCESS)
}
