//! `backup`: a copy of a store, of a node that runs or of one that does not.

use std::{
    io::{IsTerminal as _, stderr},
    ops::ControlFlow,
    path::{Path, PathBuf, absolute},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use governance_stream::storage::{Backup, CopyProgress, backup_stopped, verify_backup};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ask::{self, NodeArgs},
    out::{self, of, plain},
};

/// A running node goes on meanwhile. What the copy is, its SHA-256 too, is written beside it, as
/// FILE.json; the two belong together.
#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Make none: read this one whole, and say whether it is what was made.
    #[arg(long)]
    verify: bool,
    /// Where it is put, or is. Nothing may be there yet. The node writes it, as its own user.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Where a running node puts a backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupForm {
    /// Absolute: the node's working directory is not its operator's.
    pub file: PathBuf,
}

pub(super) async fn run(args: BackupArgs) -> anyhow::Result<ExitCode> {
    let file = absolute(&args.file).context("the file's name")?;
    let done = if args.verify {
        described(&file, &verify_backup(&file, &mut progress)?)
    } else {
        let directory = args.node.directory()?;
        if ask::listens(&directory).await? {
            args.node.post("/backup", &BackupForm { file }).await?
        } else {
            described(&file, &backup_stopped(&directory, &file, &mut progress)?)
        }
    };
    out::show(args.node.json, &done, || words(&done, args.verify));
    Ok(ExitCode::SUCCESS)
}

/// A backup as JSON: what is written beside it, and where it is.
pub(super) fn described(file: &Path, backup: &Backup) -> Value {
    json!({ "file": file, "backup": backup })
}

/// Shows how far a copy has come, where somebody watches.
pub(super) fn progress(copied: CopyProgress) -> ControlFlow<()> {
    if stderr().is_terminal() {
        let CopyProgress { stage, done, of } = copied;
        eprint!("\r{stage:?}: {done} of {of}  ");
    }
    ControlFlow::Continue(())
}

fn words(done: &Value, verified: bool) -> String {
    let backup = of(done, "backup");
    let text = |key: &str| plain(of(backup, key));
    let what = if verified { "is whole" } else { "is made" };
    [
        format!("backup      {} {what}", plain(of(done, "file"))),
        format!(
            "of          node {}, store {}",
            text("node_id"),
            text("store_id")
        ),
        format!("commit      {}, at {}", text("commit"), text("made_at")),
        format!("sha256      {}, {} bytes", text("sha256"), text("bytes")),
    ]
    .join("\n")
}
