//! `pegin`.

use std::process::ExitCode;

use bitcoin::OutPoint;
use clap::Args;

use super::{ask::NodeArgs, out, socket::PeginForm};

#[derive(Debug, Args)]
pub(super) struct PeginArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The deposit: TXID:VOUT.
    #[arg(long, value_name = "TXID:VOUT")]
    outpoint: OutPoint,
    /// What was deposited.
    #[arg(long, value_name = "SATOSHI")]
    amount_sat: u64,
    /// Who is credited on the sidechain: 0x and 40 hexadecimal digits.
    #[arg(long, value_name = "ADDRESS")]
    evm_address: String,
}

pub(super) async fn run(args: PeginArgs) -> anyhow::Result<ExitCode> {
    let form = PeginForm {
        outpoint: args.outpoint,
        amount_sat: args.amount_sat,
        evm_address: args.evm_address,
    };
    let accepted = args.node.post("/pegins", &form).await?;
    out::show(args.node.json, &accepted, || {
        format!("the notice of {} is accepted", form.outpoint)
    });
    Ok(ExitCode::SUCCESS)
}
