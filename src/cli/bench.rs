//! `elman bench`: the workloads W1 to W7 on this machine, beside what it can do at most.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::ceilings;
use super::shared::{DeviceArgs, say, sentence, warn};
use super::workloads::{Measured, Settings, Workload, measure};

/// Time the workloads W1 to W7 beside what the device can do at most, each checked against the f64 reference first
#[derive(Args)]
pub struct Options {
    /// What to time [default: all]
    #[arg(value_enum)]
    pub workloads: Vec<Workload>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub settings: Settings,
    /// One line of JSON for the ceilings, and one for each workload
    #[arg(long)]
    pub json: bool,
}

/// Times the workloads; fails if one is wrong on the device, after the others.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    let ceilings = ceilings::measure(&device)?;
    let (gflops, gbs) = (ceilings.gflop_per_second, ceilings.gb_per_second);
    if options.json {
        let mut line = serde_json::to_value(&ceilings)?;
        line["device"] = device.describe().into();
        say!("{line}");
    } else {
        say!("{}\nat most {gflops:.1} GFLOP/s and {gbs:.1} GB/s\n", device.describe());
        say!("workload     median  quartiles, ms       runs  dispatches     GFLOP/s      GB/s  of the most  error");
    }
    let workloads = if options.workloads.is_empty() { &Workload::ALL[..] } else { &options.workloads };
    let mut code = ExitCode::SUCCESS;
    for &workload in workloads {
        let measured = match measure(&device, workload, &options.settings) {
            Ok(measured) => measured,
            Err(error) => {
                warn(format_args!("{}: {}", workload.name(), sentence(&error)));
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let share = ceilings.least_ms(measured.flops, measured.bytes) / measured.at(0.5);
        if options.json {
            let mut line = measured.json(&device, &options.settings);
            line["share_of_most"] = share.into();
            say!("{line}");
        } else {
            say_line(&measured, share)?;
            if let Some(characters) = measured.characters_per_second(&options.settings) {
                say!("           {characters:.0} characters/s, {} lanes", options.settings.lanes);
            }
        }
    }
    Ok(code)
}

fn say_line(measured: &Measured, share: f64) -> Result<()> {
    let median = measured.at(0.5);
    say!(
        "{:8}{median:9.3} ms  {:17}{:6}{:12}{:12.1}{:10.1}{:12.0}%  {:.0e}",
        measured.workload.name(),
        format!("{:.3} to {:.3}", measured.at(0.25), measured.at(0.75)),
        measured.times.len(),
        measured.dispatches,
        measured.flops as f64 / median / 1e6,
        measured.bytes as f64 / median / 1e6,
        100.0 * share,
        measured.error
    );
    Ok(())
}
