//! `payments`: which burns are paid for good.

use std::process::ExitCode;

use clap::Args;
use governance_stream::message::BurnId;
use serde_json::Value;

use super::{
    ask::NodeArgs,
    out::{self, plain},
};

#[derive(Debug, Args)]
pub(super) struct PaymentsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// This burn alone: TX_HASH:LOG_INDEX.
    #[arg(long, value_name = "BURN")]
    burn: Option<BurnId>,
}

pub(super) async fn run(args: PaymentsArgs) -> anyhow::Result<ExitCode> {
    let path = match args.burn {
        Some(burn) => format!("/payments/{burn}"),
        None => "/payments".to_owned(),
    };
    let answer = args.node.get(&path).await?;
    out::show(args.node.json, &answer, || words(&answer, args.burn));
    Ok(ExitCode::SUCCESS)
}

fn words(answer: &Value, burn: Option<BurnId>) -> String {
    let payments = answer.as_array().into_iter().flatten();
    let lines: Vec<String> = payments.flat_map(paid).collect();
    match (lines.is_empty(), burn) {
        (false, _) => lines.join("\n"),
        (true, None) => "no burn is paid for good".to_owned(),
        (true, Some(burn)) => format!(
            "burn {burn} is not paid for good; `pegouts` shows whether a peg-out is on its way"
        ),
    }
}

/// A line for each burn of a completed peg-out.
fn paid(payment: &Value) -> impl Iterator<Item = String> {
    let of = |key: &str| payment.get(key).map_or_else(|| plain(&Value::Null), plain);
    let by = format!(
        "paid by {}, with {} in block {} at height {}",
        of("request_id"),
        of("txid"),
        of("block"),
        of("height"),
    );
    let burns = payment.get("burns").and_then(Value::as_array);
    let burns = burns.into_iter().flatten();
    burns.map(move |burn| format!("{}  {by}", plain(burn)))
}
