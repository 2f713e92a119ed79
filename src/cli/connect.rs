//! `connect` and `resume`: what a running node's connection is told.

use std::process::ExitCode;

use clap::Args;
use governance_stream::config::Endpoint;
use serde_json::{Value, json};

use super::{ask::NodeArgs, failure::Unconfirmed, out, socket::ConnectForm};

#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Move the session there, and use no other endpoint until told otherwise. It need not be in
    /// the configuration; a restart of the connection or of the node forgets it.
    #[arg(required_unless_present = "by_preference")]
    endpoint: Option<Endpoint>,
    /// Take that back: the most preferred endpoint that is well is used again.
    #[arg(long, conflicts_with = "endpoint")]
    by_preference: bool,
}

pub(super) async fn run(args: ConnectArgs) -> anyhow::Result<ExitCode> {
    let form = match args.endpoint {
        Some(endpoint) => ConnectForm::Endpoint(endpoint.to_string()),
        None => ConnectForm::ByPreference,
    };
    let answer = args.node.post("/connect", &form).await?;
    out::show(args.node.json, &answer, || match &form {
        ConnectForm::Endpoint(endpoint) => format!(
            "the session moves to {endpoint} once that is well, and stays there; \
             `status --watch` shows how it fares"
        ),
        ConnectForm::ByPreference => {
            "endpoints are used by preference; `status --watch` shows how it fares".to_owned()
        }
    });
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Go on with governance's other ledger: its operator has told you that it was restored or
    /// replaced. What is open is compared with it and made again where it is missing.
    #[arg(long)]
    adopt_ledger: bool,
    /// The store was restored from a backup, or is new where governance knows this node: have
    /// governance recall what it lacks. Governance's operator must permit its outbox as well;
    /// docs/operations.md says what comes first.
    #[arg(long, conflicts_with = "adopt_ledger")]
    restored: bool,
    /// The cause is understood and seen to, as the runbook says.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    if !args.yes {
        let status = args.node.get("/status").await?;
        let at = |path: &str| status.pointer(path).unwrap_or(&Value::Null);
        let lanes = at("/lanes").as_array();
        let mut lanes = lanes.into_iter().flatten();
        let is_held_up = at("/connection/phase") != "connected"
            || at("/restoration") != "none"
            || lanes.any(|lane| lane.get("blocked").is_some_and(Value::is_string));
        if !is_held_up {
            // The last fault is over.
            let nothing = "the connection is up and nothing is held up: there is nothing to resume";
            if args.adopt_ledger || args.restored {
                return Err(anyhow::anyhow!(nothing));
            }
            out::show(args.node.json, &json!({ "resumed": false }), || {
                nothing.to_owned()
            });
            return Ok(ExitCode::SUCCESS);
        }
        let fault = status.pointer("/connection/last_fault");
        let fault = fault
            .and_then(Value::as_str)
            .unwrap_or("nothing is held up");
        let unconfirmed = format!(
            "the connection says: {fault}. See to the cause as its runbook says, then repeat with \
             --yes"
        );
        return Err(Unconfirmed(unconfirmed).into());
    }
    let path = match (args.adopt_ledger, args.restored) {
        (true, _) => "/adopt-ledger",
        (false, true) => "/resume-restored",
        (false, false) => "/resume",
    };
    let answer = args.node.post(path, &json!({})).await?;
    out::show(args.node.json, &answer, || {
        "the connection tries again; `status` shows how it fares".to_owned()
    });
    Ok(ExitCode::SUCCESS)
}
