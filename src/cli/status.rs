//! `status` and `resume`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    out::{self, plain},
};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Fails while the node is unhealthy, so that a script can ask.
pub(super) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let status = args.node.get("/status").await?;
    let at = |path: &str| status.pointer(path).cloned().unwrap_or_default();
    let state = at("/health/state");
    out::show(args.node.json, &status, || words(&at));
    Ok(if state == "unhealthy" {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn words(at: &impl Fn(&str) -> Value) -> String {
    let mut lines = vec![format!("health      {}", plain(&at("/health/state")))];
    for reason in at("/health/reasons").as_array().into_iter().flatten() {
        lines.push(format!("            {}", plain(reason)));
    }
    let row = |name: &str, value: &Value| format!("{name:<12}{}", plain(value));
    lines.push(row("connection", &at("/connection/phase")));
    lines.push(row("endpoint", &at("/connection/endpoint")));
    lines.push(row("sessions", &at("/connection/sessions")));
    lines.push(row("last fault", &at("/connection/last_fault")));
    lines.push(row("open", &at("/open_requests")));
    lines.push(row("parked", &at("/parked_requests")));
    lines.push(row("letters", &at("/dead_letters")));
    lines.push(row("restarts", &at("/actor_restarts")));
    for lane in at("/lanes").as_array().into_iter().flatten() {
        let of = |key: &str| plain(lane.get(key).unwrap_or(&Value::Null));
        lines.push(format!(
            "lane        {:<11} {} unacknowledged, handled through {}, held up: {}",
            of("lane"),
            of("unacknowledged"),
            of("handled_through"),
            of("blocked")
        ));
    }
    lines.join("\n")
}

#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Go on with governance's other ledger: its operator has told you that it was restored or
    /// replaced. What is open is compared with it and made again where it is missing.
    #[arg(long)]
    adopt_ledger: bool,
    /// The cause is understood and seen to, as the runbook says.
    #[arg(long)]
    yes: bool,
}

pub(super) async fn resume(args: ResumeArgs) -> anyhow::Result<ExitCode> {
    if !args.yes {
        let status = args.node.get("/status").await?;
        let fault = status.pointer("/connection/last_fault");
        let fault = fault
            .and_then(Value::as_str)
            .unwrap_or("nothing is held up");
        bail!(
            "the connection says: {fault}. See to the cause as its runbook says, then repeat with --yes"
        );
    }
    let path = if args.adopt_ledger {
        "/adopt-ledger"
    } else {
        "/resume"
    };
    let answer = args.node.post(path, &json!({})).await?;
    out::show(args.node.json, &answer, || {
        "the connection tries again; `status` shows how it fares".to_owned()
    });
    Ok(ExitCode::SUCCESS)
}
