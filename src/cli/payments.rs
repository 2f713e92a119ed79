//! `payments`: which burns are paid for good.

use std::process::ExitCode;

use clap::Args;
use governance_stream::{chain::MAX_PAYMENTS, message::BurnId};
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
    /// So many at most; 1000 in any case.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 100,
        conflicts_with = "burn"
    )]
    limit: usize,
    /// Those that come after this number, as the last page ended.
    #[arg(long, value_name = "NUMBER", conflicts_with = "burn")]
    after: Option<u64>,
    /// The newest first.
    #[arg(long, conflicts_with = "burn")]
    newest: bool,
}

pub(super) async fn run(args: PaymentsArgs) -> anyhow::Result<ExitCode> {
    let path = match args.burn {
        Some(burn) => format!("/payments/{burn}"),
        None => {
            let order = if args.newest { "newest" } else { "oldest" };
            let after = args.after.map(|after| format!("&after={after}"));
            let after = after.unwrap_or_default();
            format!("/payments?order={order}&limit={}{after}", args.limit)
        }
    };
    let answer = args.node.get(&path).await?;
    out::show(args.node.json, &answer, || words(&answer, &args));
    Ok(ExitCode::SUCCESS)
}

fn words(answer: &Value, args: &PaymentsArgs) -> String {
    let payments = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut lines: Vec<String> = payments.iter().flat_map(paid).collect();
    match (lines.is_empty(), args.burn) {
        (false, burn) => {
            let last = payments.last().and_then(|last| last.get("number"));
            if let Some(last) = last
                && burn.is_none()
                && payments.len() >= args.limit.min(MAX_PAYMENTS)
            {
                lines.push(format!("there may be more: --after {last}"));
            }
            lines.join("\n")
        }
        (true, None) if args.after.is_some() => "no more burns are paid for good".to_owned(),
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
