//! `check-config`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{ConfigArgs, out};

#[derive(Debug, Args)]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckConfigArgs) -> anyhow::Result<ExitCode> {
    match args.config.load() {
        Ok(settings) if args.json => {
            let value = |value: &governance_stream::config::EffectiveValue| json!({ "key": value.key, "value": value.value, "origin": value.origin.to_string() });
            let values: Vec<_> = settings.effective.iter().map(value).collect();
            out::line(&json!({ "valid": true, "values": values }).to_string());
        }
        Ok(settings) => {
            let widest = |text: fn(&governance_stream::config::EffectiveValue) -> &str| {
                let widths = settings
                    .effective
                    .iter()
                    .map(|value| text(value).chars().count());
                widths.max().unwrap_or_default().min(60)
            };
            let (keys, values) = (widest(|value| value.key), widest(|value| &value.value));
            for value in &settings.effective {
                out::line(&format!(
                    "{:keys$}  {:values$}  {}",
                    value.key, value.value, value.origin
                ));
            }
        }
        Err(error) if args.json => {
            let fault = |fault: &governance_stream::config::ConfigFault| json!({ "key": fault.key, "value": fault.value, "expected": fault.expected });
            let faults: Vec<_> = error.0.iter().map(fault).collect();
            out::line(&json!({ "valid": false, "faults": faults }).to_string());
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}
