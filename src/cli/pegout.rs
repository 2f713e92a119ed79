//! `pegout`: has a transaction signed, broadcast and followed; and `cancel`.

use std::{fs, path::PathBuf, process::ExitCode, str::FromStr};

use anyhow::Context as _;
use bitcoin::Psbt;
use clap::Args;
use governance_stream::message::RequestId;
use serde_json::{Value, json};

use super::{
    ask::NodeArgs,
    out,
    pegout_routes::{BurnForm, PegoutForm},
};

#[derive(Debug, Args)]
pub(super) struct PegoutArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The peg-out's transaction (BIP-174), as bytes or base64.
    #[arg(long, value_name = "FILE")]
    psbt: PathBuf,
    /// The same id with the same transaction is the same peg-out, however often it is asked for.
    /// Made from the burn and the transaction when it is not given.
    #[arg(long, value_name = "ID")]
    request_id: Option<RequestId>,
    /// A burn as the sidechain has it, and the output that pays it:
    /// TX_HASH:LOG_INDEX:BLOCK_HASH:BLOCK_HEIGHT:AMOUNT_SAT:ADDRESS:OUTPUT_INDEX. Amount and address
    /// are those that were burnt for, never read off the transaction: it must pay just that.
    #[arg(long, value_name = "BURN", required = true)]
    burn: Vec<Burn>,
    /// Governance refuses a fee above this.
    #[arg(long, value_name = "SATOSHI")]
    max_fee_sat: u64,
    /// The federation whose keys are asked for; the active one by default.
    #[arg(long, value_name = "VERSION")]
    federation_version: Option<u32>,
    /// The peg-out that this one replaces: it must spend a coin of it.
    #[arg(long, value_name = "ID")]
    replaces: Option<RequestId>,
    /// Shows each step, and waits for the end: deep enough in the chain, or broadcast where the node
    /// leaves its transactions as files. Fails unless it comes to that.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Clone)]
struct Burn(BurnForm);

impl FromStr for Burn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [
            tx_hash,
            log_index,
            block_hash,
            block_height,
            amount,
            address,
            output_index,
        ] = parts.as_slice()
        else {
            return Err(
                "expected TX_HASH:LOG_INDEX:BLOCK_HASH:BLOCK_HEIGHT:AMOUNT_SAT:ADDRESS:OUTPUT_INDEX"
                    .into(),
            );
        };
        let number = |what: &str, text: &str| {
            text.parse::<u64>()
                .map_err(|error| format!("{what} {text:?}: {error}"))
        };
        let small = |what: &str, text: &str| {
            u32::try_from(number(what, text)?).map_err(|error| format!("{what} {text:?}: {error}"))
        };
        Ok(Self(BurnForm {
            burn_tx_hash: (*tx_hash).to_owned(),
            log_index: small("log index", log_index)?,
            block_hash: (*block_hash).to_owned(),
            block_height: number("block height", block_height)?,
            output_index: small("output index", output_index)?,
            amount_sat: number("amount", amount)?,
            address: address
                .parse()
                .map_err(|error| format!("address {address:?}: {error}"))?,
        }))
    }
}

pub(super) async fn run(args: PegoutArgs) -> anyhow::Result<ExitCode> {
    let path = args.psbt.display();
    let bytes = fs::read(&args.psbt).with_context(|| format!("cannot read {path}"))?;
    let psbt = match Psbt::deserialize(&bytes) {
        Ok(psbt) => psbt,
        Err(_) => {
            let text = String::from_utf8(bytes).ok();
            let psbt = text.and_then(|text| text.trim().parse().ok());
            psbt.with_context(|| format!("{path} holds no PSBT, neither bytes nor base64"))?
        }
    };
    let form = PegoutForm {
        request_id: args.request_id,
        psbt: psbt.to_string(),
        burns: args.burn.into_iter().map(|burn| burn.0).collect(),
        max_fee_sat: args.max_fee_sat,
        federation_version: args.federation_version,
        replaces: args.replaces,
    };
    let mut pegout = args.node.post("/pegouts", &form).await?;
    let request_id = word(&pegout, "request_id").to_owned();
    if !args.wait || pegout.get("state").is_none() {
        out::show(args.node.json, &pegout, || shown(&pegout));
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let ended = flag(&pegout, "ended");
        if ended || !args.node.json {
            out::show(args.node.json, &pegout, || shown(&pegout));
        }
        if ended {
            let succeeded = flag(&pegout, "succeeded");
            return Ok(if succeeded {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        let known = word(&pegout, "state").to_owned();
        let path = format!("/pegouts/{request_id}/after/{known}");
        while word(&pegout, "state") == known {
            pegout = args.node.get(&path).await?;
        }
    }
}

fn word<'a>(pegout: &'a Value, key: &str) -> &'a str {
    pegout.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(pegout: &Value, key: &str) -> bool {
    pegout.get(key).and_then(Value::as_bool).unwrap_or_default()
}

/// One peg-out in a line.
pub(super) fn shown(pegout: &Value) -> String {
    let mut line = format!("{}: ", word(pegout, "request_id"));
    line.push_str(match word(pegout, "text") {
        "" => "accepted",
        text => text,
    });
    for (key, before) in [("trouble", "; "), ("paused_by", "; paused by ")] {
        let value = word(pegout, key);
        if !value.is_empty() {
            line.push_str(before);
            line.push_str(value);
        }
    }
    line
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The request.
    #[arg(value_name = "ID")]
    request_id: RequestId,
}

pub(super) async fn cancel(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let path = format!("/requests/{}/cancel", args.request_id);
    let asked = args.node.post(&path, &json!({})).await?;
    out::show(args.node.json, &asked, || {
        // Whether the stream has the request, or is to be asked for it no more.
        if !flag(&asked, "asked") {
            return shown(&asked);
        }
        format!(
            "request {} is withdrawn, or governance is asked to cancel it: its outcome says what \
             came of it",
            args.request_id
        )
    });
    Ok(ExitCode::SUCCESS)
}
