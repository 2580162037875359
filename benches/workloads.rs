//! Times of the workloads W1 to W7: `cargo bench --bench workloads -- w1 w2 --device cpu --json`; `--help` lists them.
//!
//! Before anything is timed, a small form of the workload must give on this device what the f64 reference gives. `elman bench` runs the
//! same workloads beside the device's ceilings.
#![allow(missing_docs, reason = "a program")]

use anyhow::Result;
use clap::Parser;
use elman::Device;

use workloads::{Measured, Settings, Workload, measure};

#[path = "../src/cli/workloads.rs"]
mod workloads;

#[derive(Parser)]
struct Options {
    /// What to time
    #[arg(value_enum, default_values = ["w1"])]
    workloads: Vec<Workload>,
    /// As the examples' --device
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    settings: Settings,
    /// Print where the time goes, by kernel; with a path, write a trace for Chrome or Perfetto there
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "")]
    profile: Option<String>,
    /// One line of JSON for each workload
    #[arg(long)]
    json: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let device = Device::open(&options.device)?;
    if !options.json {
        println!("{}", device.describe());
        println!("workload   median      min      p90  runs  dispatches       MB   GFLOP/s");
    }
    for &workload in &options.workloads {
        let measured = measure(&device, workload, &options.settings)?;
        if options.json {
            println!("{}", measured.json(&device, &options.settings));
        } else {
            print(&measured, &options)?;
        }
    }
    Ok(())
}

fn print(measured: &Measured, options: &Options) -> Result<()> {
    let (median, least, p90) = (measured.at(0.5), measured.times[0], measured.at(0.9));
    println!(
        "{:8} {median:8.3} {least:8.3} {p90:8.3} {:5} {:11} {:8.1} {:9.1}",
        measured.workload.name(),
        measured.times.len(),
        measured.dispatches,
        measured.bytes as f64 / 1e6,
        measured.flops as f64 / median / 1e6
    );
    let precision = measured.precision(&options.settings).name();
    if precision != "f32" {
        println!("         {precision}, {:.1e} off the f64 reference in a small form", measured.error);
    }
    if let Some(host) = measured.host {
        println!("         {host:.0} us on the host to encode and submit");
    }
    if let Some((steps, plans, bytes)) = measured.epoch() {
        let (megabytes, recording) = (bytes as f64 / 1e6, measured.recording);
        println!("         {steps} batches, {plans} plans of {megabytes:.1} MB, {recording:.2} ms to record one");
    }
    if let Some(path) = &options.profile {
        let profile = measured.plan().profile(measured.times.len().min(20))?;
        println!("{profile}");
        if !path.is_empty() {
            elman::io::write_atomically(path, profile.trace().as_bytes())?;
        }
    }
    if let Some(characters) = measured.characters_per_second(&options.settings) {
        println!("         {characters:.0} characters/s, {} lanes", options.settings.lanes);
    }
    Ok(())
}
