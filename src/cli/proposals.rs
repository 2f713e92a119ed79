//! `proposals`.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{
    ask::NodeArgs,
    out::{self, plain, time},
};

/// Characters of a proposal's data that are shown in words; `--json` has all of it.
const MAX_SHOWN: usize = 200;

#[derive(Debug, Args)]
pub(super) struct ProposalsArgs {
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(args: ProposalsArgs) -> anyhow::Result<ExitCode> {
    let answer = args.node.get("/proposals").await?;
    out::show(args.node.json, &answer, || {
        let proposals = answer.as_array().into_iter().flatten();
        let lines: Vec<String> = proposals.map(words).collect();
        if lines.is_empty() {
            "there are no proposals".to_owned()
        } else {
            lines.join("\n")
        }
    });
    Ok(ExitCode::SUCCESS)
}

fn words(proposal: &Value) -> String {
    let of = |key: &str| proposal.get(key).unwrap_or(&Value::Null);
    let state = if *of("expired") == Value::Bool(true) {
        "expired"
    } else {
        "open"
    };
    let data = plain(of("data"));
    let mut shown: String = data.chars().take(MAX_SHOWN).collect();
    if shown.len() < data.len() {
        shown.push('…');
    }
    format!(
        "{state:<8} until {}  {}  {}  {shown}",
        time(of("voting_deadline_unix_ms")),
        plain(of("proposal_id")),
        plain(of("proposal_type")),
    )
}
