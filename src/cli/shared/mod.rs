//! What the command and the examples share: choosing a device, draws, progress, what goes wrong beside the work, a run's folder, charts.
#![allow(dead_code, reason = "each program uses a part")]

/// `println!` that reports a closed pipe as an error, where the original panics.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($line)*)?
    }};
}
pub(crate) use say;

/// A line on stderr; a closed one changes nothing.
pub fn warn(what: impl std::fmt::Display) {
    match &mut *HELD.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(held) => held.push(what.to_string()),
        None => drop(writeln!(std::io::stderr(), "warning: {what}")),
    }
}

/// Warnings that wait for the terminal.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// Keeps warnings while something else has the terminal, and prints them when it is dropped.
pub struct HeldWarnings(());

impl HeldWarnings {
    pub fn new() -> Self {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
        Self(())
    }

    pub fn newest(&self) -> Option<String> {
        HELD.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.last().cloned()
    }
}

impl Drop for HeldWarnings {
    fn drop(&mut self) {
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.into_iter().flatten().for_each(warn);
    }
}

/// What failed beside the training, such as a print to a closed pipe: each kind is one warning, and the exit code says
/// so.
#[derive(Default)]
pub struct Failures(Vec<&'static str>);

impl Failures {
    /// Goes on after an error, with a warning the first time that this cannot be written.
    pub fn note<E: Into<anyhow::Error>>(&mut self, what: &'static str, result: std::result::Result<(), E>) {
        if let Err(error) = result
            && !self.0.contains(&what)
        {
            self.0.push(what);
            warn(format_args!("{what} cannot be written: {}", sentence(&error.into())));
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        if self.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

pub mod plot;
pub mod progress;
pub mod run;
pub mod sampling;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use clap::Args;
use elman::Device;

/// How often a GPU that is lost is opened again, to go on where the run was.
pub const RECOVERIES: u32 = 3;

/// The exit code of a program that Ctrl-C ended: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

/// What a size may be on a command line.
pub fn at_least_one(value: &str) -> Result<usize, String> {
    value.parse().ok().filter(|&n| n > 0).ok_or_else(|| "must be a whole number of at least 1".into())
}

/// `--device`, for every program.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// auto (discrete GPU, then integrated, then CPU), cpu, gpu (any adapter), part of an adapter's name, or list
    #[arg(long, env = elman::device::ENVIRONMENT_VARIABLE, default_value = "auto", value_name = "NAME")]
    pub device: String,
}

impl DeviceArgs {
    /// Opens the device; `list` prints what there is instead and gives None.
    pub fn open(&self) -> Result<Option<Device>> {
        quiet_driver();
        match self.device.as_str() {
            LIST => list().map(|()| None),
            "" => Ok(Some(Device::open("auto")?)),
            name => Ok(Some(Device::open(name)?)),
        }
    }
}

/// The name of no device, by which the devices are listed.
pub const LIST: &str = "list";

fn list() -> Result<()> {
    for adapter in Device::list() {
        say!("{adapter}\n    {}", adapter.limits());
    }
    say!("{}", Device::cpu().describe());
    Ok(())
}

/// Mesa's device-selection layer prints errors where there is no desktop session; nothing here needs the layer there.
pub fn quiet_driver() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: called first thing, while the program has one thread.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Errors as one sentence, and exit code 1.
pub fn exit_code(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "error: {}", sentence(&error));
        ExitCode::FAILURE
    })
}

/// An error with its causes, but for those that what they have caused says already.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => said.into(),
        said => format!("{said}: {cause}"),
    })
}

/// 1234567 as 1,234,567.
pub fn with_separators(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// One line that says where the program runs, and why.
pub fn announce(device: &Device) -> Result<()> {
    say!("device: {} -- {}", device.describe(), device.reason());
    Ok(())
}
