//! `payments`: which burns are paid for good.

use std::{fmt, process::ExitCode, str::FromStr};

use bitcoin::hex::FromHex as _;
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
    burn: Option<Burn>,
}

/// A burn, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Burn(pub BurnId);

impl fmt::Display for Burn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Burn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let burn = || {
            let (tx_hash, log_index) = text.split_once(':')?;
            let tx_hash = tx_hash.strip_prefix("0x").unwrap_or(tx_hash);
            Some(BurnId {
                tx_hash: <[u8; 32]>::from_hex(tx_hash).ok()?,
                log_index: log_index.parse().ok()?,
            })
        };
        burn().map(Self).ok_or_else(|| {
            format!("burn {text:?}: expected TX_HASH:LOG_INDEX, 64 hexadecimal digits and a number")
        })
    }
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

fn words(answer: &Value, burn: Option<Burn>) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burn_is_read_as_it_is_shown_and_nothing_else_is_one() {
        let burn = Burn(BurnId {
            tx_hash: [0xab; 32],
            log_index: 7,
        });
        assert_eq!(burn.to_string().parse(), Ok(burn));
        let bare = burn.to_string().replacen("0x", "", 1);
        assert_eq!(bare.parse(), Ok(burn));
        for wrong in [
            "",
            "0x",
            "0xabab:7",
            &"ab".repeat(32),
            "pegout-1",
            &format!("{bare}x"),
        ] {
            let fault = wrong.parse::<Burn>().expect_err(wrong);
            assert!(fault.contains("TX_HASH:LOG_INDEX"), "{fault}");
        }
    }
}
