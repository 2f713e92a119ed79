//! `restore`: a store from a backup, of a node that does not run.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use governance_stream::storage::{BackupError, Replace, Restored, restore, restore_in_place};
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    backup::progress,
    failure::CommandLine,
    out::{self, of, plain, time, unix_ms},
};

/// What came after the backup is lost, and may have been promised: docs/operations.md says what that
/// means and what follows. The store that was there is kept beside the new one.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The backup; what is written beside it, FILE.json, is needed too.
    #[arg(value_name = "FILE", required_unless_present = "in_place")]
    file: Option<PathBuf>,
    /// Take the place of an older state of the same store.
    #[arg(long)]
    replace: bool,
    /// Take the place of whatever is there, though it may know what the backup does not.
    #[arg(long, conflicts_with = "replace")]
    replace_newer: bool,
    /// Take the store that is there for a restored one: its volume went back to a snapshot, or its
    /// disk lost what it had promised to keep.
    #[arg(long, conflicts_with_all = ["file", "replace", "replace_newer"])]
    in_place: bool,
}

pub(super) async fn run(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let directory = args.node.directory()?;
    let replace = match (args.replace, args.replace_newer) {
        (_, true) => Replace::Anything,
        (true, _) => Replace::Older,
        _ => Replace::Nothing,
    };
    let owner = args.node.owner()?;
    if owner.is_none() && !args.node.json {
        eprintln!("no configuration is named: whether this is its node's is not compared");
    }
    let (restored, replaced, store) = match &args.file {
        _ if args.in_place => {
            let marked = restore_in_place(&directory, owner.as_ref());
            (marked.map_err(hint)?, None, None)
        }
        Some(file) => {
            let done = restore(file, &directory, replace, owner.as_ref(), &mut progress);
            let done = done.map_err(hint)?;
            (done.restored, done.replaced, Some(done.backup.store_id))
        }
        None => return Err(CommandLine("name a backup, or --in-place".to_owned()).into()),
    };
    let shown = shown(
        &directory,
        &restored,
        replaced,
        store.map(|id| id.to_string()),
        owner.is_some(),
    );
    out::show(args.node.json, &shown, || words(&shown));
    Ok(ExitCode::SUCCESS)
}

/// Names the way on, where there is one.
fn hint(error: BackupError) -> anyhow::Error {
    let way_on = match &error {
        BackupError::NotEmpty { .. } => {
            "nothing is restored; `--replace` if it is an older state of the same store"
        }
        BackupError::Newer { .. } | BackupError::Incomparable { .. } => {
            "nothing is restored; `--replace-newer` if that is meant"
        }
        _ => "nothing is restored",
    };
    anyhow::Error::from(error).context(way_on)
}

fn shown(
    directory: &std::path::Path,
    restored: &Restored,
    replaced: Option<PathBuf>,
    store_id: Option<String>,
    compared: bool,
) -> Value {
    json!({
        "directory": directory,
        "store_id": store_id,
        "restore_id": restored.restore_id.to_string(),
        "backup_commit": restored.backup_commit,
        "backup_unix_ms": unix_ms(restored.backup_at),
        "restored_unix_ms": unix_ms(restored.restored_at),
        "replaced": replaced,
        "compared_with_configuration": compared,
    })
}

fn words(shown: &Value) -> String {
    let text = |key: &str| plain(of(shown, key));
    let mut lines = vec![
        format!(
            "restored    {}, as of commit {}",
            text("directory"),
            text("backup_commit")
        ),
        format!("of          {}", time(of(shown, "backup_unix_ms"))),
    ];
    if !of(shown, "replaced").is_null() {
        lines.push(format!("replaced    is kept as {}", text("replaced")));
    }
    lines.push(
        "what came after it is lost here, and may be known to governance: docs/operations.md, \
         \"Restore\", goes on from here"
            .to_owned(),
    );
    lines.join("\n")
}
