//! `elman doctor`: what devices there are, whether one of them computes right, and what it costs.

mod cases;
mod traps;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use elman::device::Adapter;
use elman::{Comparison, Device, Error, kernels};
use serde::Serialize;

use super::ceilings::{self, Ceilings};
use super::shared::{DeviceArgs, LIST, quiet_driver, say};
use cases::cases;
use traps::{Finding, TRAPS};

/// Examine a device: every kernel against its twin on the CPU, known traps of drivers, costs
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// One JSON object, for a report of a bug
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  elman doctor                         the device that `auto` takes
  elman doctor --device gpu --json     any adapter, a software one included: for a report of a bug

Exit code 1: something is wrong, and the last lines say what. An adapter that was refused for what it computes is examined too.";

/// All that was found.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    os: &'static str,
    architecture: &'static str,
    adapters: Vec<About>,
    /// What was examined, and why that.
    device: Option<String>,
    reason: Option<String>,
    kernels: Vec<OfKernel>,
    checks: Vec<Check>,
    costs: Option<Ceilings>,
    /// A sentence on each thing that is wrong.
    problems: Vec<String>,
    verdict: &'static str,
}

/// An adapter.
#[derive(Serialize)]
struct About {
    name: String,
    backend: String,
    kind: &'static str,
    driver: String,
    limits: String,
    largest_tensor: u64,
    subgroup_sizes: (u32, u32),
    features: Vec<Feature>,
    is_examined: bool,
}

#[derive(Serialize)]
struct Feature {
    name: &'static str,
    is_there: bool,
}

/// All that was compared of a kernel.
#[derive(Serialize)]
struct OfKernel {
    kernel: &'static str,
    comparisons: usize,
    /// The largest; null if a value is not finite, or a number of u32 differs.
    error: f64,
    is_right: bool,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    result: &'static str,
    says: String,
}

/// Examines the device, and says what is wrong with it; fails if anything is.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        architecture: std::env::consts::ARCH,
        adapters: Vec::new(),
        device: None,
        reason: None,
        kernels: Vec::new(),
        checks: Vec::new(),
        costs: None,
        problems: Vec::new(),
        verdict: "right",
    };
    if options.device.device == LIST {
        options.device.open()?;
        return Ok(ExitCode::SUCCESS);
    }
    quiet_driver();
    let is_text = !options.json;
    let device = open(&options.device.device, &mut report);
    report.adapters = Device::list().iter().map(|adapter| about(adapter, device.as_ref())).collect();
    if is_text {
        report.say_adapters()?;
    }
    if let Some(device) = &device {
        examine(device, &mut report, is_text)?;
    }
    if !report.problems.is_empty() {
        report.verdict = "wrong";
    }
    match is_text {
        true => report.say_verdict()?,
        false => say!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The device, opened even if it is refused for what it computes.
fn open(name: &str, report: &mut Report) -> Option<Device> {
    let name = if name.is_empty() { "auto" } else { name };
    let device = Device::open(name).or_else(|error| {
        let is_refused = matches!(error, Error::Gpu(_));
        report.problems.push(error.to_string());
        if is_refused { Device::open_unchecked(name) } else { Err(error) }
    });
    let device = device.ok()?;
    report.device = Some(device.describe());
    report.reason = Some(device.reason().into());
    Some(device)
}

fn about(adapter: &Adapter, examined: Option<&Device>) -> About {
    About {
        name: adapter.name().into(),
        backend: adapter.backend(),
        kind: adapter.kind(),
        driver: adapter.driver(),
        limits: adapter.limits(),
        largest_tensor: adapter.largest_tensor(),
        subgroup_sizes: adapter.subgroup_sizes(),
        features: adapter.features().map(|(name, is_there)| Feature { name, is_there }).into(),
        is_examined: examined.is_some_and(|device| device.describe() == adapter.to_string()),
    }
}

/// Kernels, checks and costs, until the device is lost.
fn examine(device: &Device, report: &mut Report, is_text: bool) -> Result<()> {
    report.compare(device);
    if is_text {
        report.say_kernels()?;
        say!("\nknown traps");
    }
    for (name, check) in TRAPS {
        let (result, says) = match check(device) {
            Ok(Finding::Right(says)) => ("right", says),
            Ok(Finding::Absent(why)) => ("absent", why),
            Ok(Finding::Wrong(problem)) => ("WRONG", problem),
            Err(error) => ("WRONG", error.to_string()),
        };
        if result == "WRONG" {
            report.problems.push(format!("{name}: {says}"));
        }
        let check = Check { name, result, says };
        if is_text {
            check.say()?;
        }
        report.checks.push(check);
    }
    match ceilings::measure(device) {
        Ok(costs) => report.costs = Some(costs),
        Err(error) => report.problems.push(format!("costs: {error}")),
    }
    if is_text {
        report.say_costs()?;
    }
    Ok(())
}

/// What the kernels of programs are listed as.
const PROGRAMS: &str = "map";

impl Report {
    /// Compares every kernel with its twin; one that no case has is a problem too.
    fn compare(&mut self, device: &Device) {
        let f16 = device.adapter().is_none_or(|adapter| adapter.features().contains(&("f16", true)));
        let mut found: Vec<Comparison> = Vec::new();
        for case in cases(f16) {
            match case.compare(device) {
                Ok(comparisons) => {
                    let wrong = comparisons.iter().filter(|comparison| !comparison.is_right());
                    self.problems.extend(wrong.take(3).map(|wrong| format!("{}: {wrong}", case.name)));
                    found.extend(comparisons);
                }
                Err(error) => {
                    self.problems.push(format!("{}: {error}", case.name));
                    if matches!(error, Error::DeviceLost(_)) {
                        break;
                    }
                }
            }
        }
        // Those of programs are made where they are needed, and count as one.
        let is_program = |name: &str| name.starts_with("map_");
        for kernel in kernels::ALL.iter().map(|kernel| kernel.name).chain([PROGRAMS]) {
            let is_of = |name: &str| if kernel == PROGRAMS { is_program(name) } else { name == kernel };
            let of = || found.iter().filter(|comparison| is_of(comparison.kernel));
            let comparisons = of().count();
            if comparisons == 0 {
                self.problems.push(format!("{kernel} was not compared"));
            }
            self.kernels.push(OfKernel {
                kernel,
                comparisons,
                error: of().map(|comparison| comparison.error).fold(0.0, f64::max),
                is_right: comparisons > 0 && of().all(Comparison::is_right),
            });
        }
    }

    fn say_adapters(&self) -> Result<()> {
        say!("elman {}, {} {}\n\nadapters", self.version, self.os, self.architecture);
        if self.adapters.is_empty() {
            let why = if cfg!(feature = "gpu") { "no GPU driver answers" } else { "built without the feature `gpu`" };
            say!("  none: {why}");
        }
        for adapter in &self.adapters {
            let About { name, backend, kind, driver, limits, subgroup_sizes: (least, most), .. } = adapter;
            let features = adapter.features.iter().map(|Feature { name, is_there }| match (name, is_there) {
                (name, false) => format!("{name}: not there"),
                (&"subgroups", true) if least == most => format!("subgroups of {least}"),
                (&"subgroups", true) => format!("subgroups of {least} to {most}"),
                (name, true) => (*name).to_owned(),
            });
            say!("  {name}");
            say!("    {kind}, {backend}, {driver}");
            say!("    {limits}");
            say!("    {}", features.collect::<Vec<_>>().join(", "));
        }
        if let (Some(device), Some(reason)) = (&self.device, &self.reason) {
            say!("\nexamined: {device}\n  because: {reason}");
        }
        Ok(())
    }

    fn say_kernels(&self) -> Result<()> {
        say!("\n{:24}compared  largest error", "kernels and their twins");
        for OfKernel { kernel, comparisons, error, is_right } in &self.kernels {
            let error = if error.is_finite() { format!("{error:.1e}") } else { "not equal".into() };
            let error = if error == "0.0e0" { "0" } else { &error };
            say!("  {kernel:22}{comparisons:8}  {error:>13}{}", if *is_right { "" } else { "  WRONG" });
        }
        Ok(())
    }

    fn say_costs(&self) -> Result<()> {
        let Some(costs) = &self.costs else { return Ok(()) };
        say!("\ncosts");
        let edge = costs.product;
        for (what, value, unit, of) in [
            ("a dispatch", costs.dispatch_us, "us", "among 200".to_owned()),
            ("a submission", costs.round_trip_us, "us", "of one dispatch, with the wait for it".into()),
            ("a read", costs.read_us, "us", "of one number".into()),
            ("a product", costs.gflop_per_second, "GFLOP/s", format!("of matrices of {edge} x {edge}")),
            ("a sum", costs.gb_per_second, "GB/s", format!("of two tensors of {:.0} MB together", costs.stream_mb)),
        ] {
            say!("  {what:22}{value:10.1} {unit:7}  {of}");
        }
        Ok(())
    }

    fn say_verdict(&self) -> Result<()> {
        let absent = self.checks.iter().filter(|check| check.result == "absent").map(|check| check.name);
        let absent: Vec<_> = absent.collect();
        say!("");
        for problem in &self.problems {
            say!("WRONG: {problem}");
        }
        let (kernels, checks) = (self.kernels.len(), self.checks.len() - absent.len());
        match self.problems.len() {
            0 => say!(
                "verdict: right: {kernels} kernels and {checks} checks{}",
                if absent.is_empty() { String::new() } else { format!("; not checked: {}", absent.join(", ")) }
            ),
            n => say!("verdict: WRONG in {n} {}", if n == 1 { "thing" } else { "things" }),
        }
        Ok(())
    }
}

impl Check {
    fn say(&self) -> Result<()> {
        say!("  {:22}{:8}  {}", self.name, self.result, self.says);
        Ok(())
    }
}
