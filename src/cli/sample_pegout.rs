//! `sample-pegout`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use bitcoin::{Address, Amount, Network, hex::DisplayHex as _};
use clap::Args;
use governance_stream::simulator::{Simulator, SimulatorConfig, wallet};

use super::out;

#[derive(Debug, Args)]
pub(super) struct SamplePegoutArgs {
    /// Each number is another peg-out, of another burn and another coin.
    #[arg(long, default_value_t = 1)]
    number: u64,
    /// Where its PSBT goes, as base64.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Of the federation that `simulator` plays by default.
pub(super) async fn run(args: SamplePegoutArgs) -> anyhow::Result<ExitCode> {
    let governance = Simulator::start(SimulatorConfig::default()).await?;
    let federation = governance.federation(1).context("there is no federation")?;
    let amount = Amount::from_sat(50_000);
    let psbt = wallet::pegout_psbt(&federation, args.number, 1, amount);
    let psbt = psbt.context("the coin does not cover it")?;
    fs::write(&args.file, psbt.to_string())
        .with_context(|| format!("cannot write {}", args.file.display()))?;
    let burn = wallet::burn(args.number, amount);
    out::line(&format!(
        "governance-stream pegout --psbt {} --request-id sample-{} --burn {}:{}:{}:{}:{}:{}:{} \
         --max-fee-sat {} --wait",
        args.file.display(),
        args.number,
        burn.burn_tx_hash.to_lower_hex_string(),
        burn.log_index,
        burn.block_hash.to_lower_hex_string(),
        burn.block_height,
        amount.to_sat(),
        Address::from_script(&burn.script_pubkey, Network::Regtest)?,
        burn.output_index,
        wallet::FEE.to_sat(),
    ));
    governance.shutdown().await;
    Ok(ExitCode::SUCCESS)
}
