//! `chain-height`.

use std::process::ExitCode;

use clap::Args;

use super::{
    ask::NodeArgs,
    chain_routes::HeightForm,
    out::{self, plain},
};

#[derive(Debug, Args)]
pub(super) struct ChainHeightArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Height of the sidechain's best block.
    #[arg(value_name = "HEIGHT")]
    height: u64,
    /// The sidechain was reorganised: the height may be lower than before, and what became active
    /// above it is undone.
    #[arg(long)]
    reorg: bool,
}

pub(super) async fn run(args: ChainHeightArgs) -> anyhow::Result<ExitCode> {
    let form = HeightForm {
        height: args.height,
        reorganised: args.reorg,
    };
    let answer = args.node.post("/chain/height", &form).await?;
    out::show(args.node.json, &answer, || {
        let of = |key: &str| answer.get(key).map(plain).unwrap_or_default();
        format!(
            "height {}: federation version {} signs",
            of("height"),
            of("active_version")
        )
    });
    Ok(ExitCode::SUCCESS)
}
