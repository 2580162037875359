//! One file for each command; what several need is beside them, and what the examples need too is in `shared`.

mod bench;
mod ceilings;
mod doctor;
mod eval;
mod export;
mod look;
mod model;
mod plan;
mod sample;
mod sampling;
mod shared;
mod streams;
mod terminal;
mod text;
mod tokens;
mod train;
mod workloads;
mod write;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use shared::{DeviceArgs, LIST};

/// Trains recurrent networks on your own text, on any GPU or on the CPU, and writes with them.
#[derive(Parser)]
#[command(name = "elman", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  elman train book.txt -o book         learn a book
  elman train --resume -o book         go on where that was stopped
  elman sample book -p 'It is'         write with it
  elman write book letter.txt          write yourself, with its suggestions
  elman eval book other.txt            see how well it predicts another text
  elman doctor --device gpu            see whether a driver computes right
  elman look book other.txt            see what its units do, on a page
  elman export book book.onnx          hand it to onnxruntime and others
  elman completions bash > ~/.local/share/bash-completion/completions/elman

Exit codes: 0 done; 1 an error, said in one sentence on stderr; 2 wrong usage; 130 ended by Ctrl-C, with everything saved.
Devices: --device, or the environment variable ELMAN_DEVICE. Colours: NO_COLOR switches them off.";

#[derive(Subcommand)]
enum Command {
    Train(Box<train::Options>),
    Sample(sample::Options),
    Write(write::Options),
    Eval(eval::Options),
    Plan(plan::Options),
    Doctor(doctor::Options),
    Bench(bench::Options),
    Look(look::Options),
    Export(export::Options),
    /// Print completions for a shell
    Completions {
        shell: clap_complete::Shell,
    },
    /// Write manual pages, of the command and of each of its commands
    Man {
        /// Folder for the pages
        folder: PathBuf,
    },
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli),
        // The list of devices needs nothing else.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => match asked_for_list() {
            Some(device) => device.open().map(|_| ExitCode::SUCCESS),
            None => error.exit(),
        },
        Err(error) => error.exit(),
    };
    match done {
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        done => shared::exit_code(done),
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Train(options) => train::run(&options),
        Command::Sample(options) => sample::run(&options),
        Command::Write(options) => write::run(&options),
        Command::Eval(options) => eval::run(&options),
        Command::Plan(options) => plan::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Look(options) => look::run(&options),
        Command::Export(options) => export::run(&options),
        Command::Completions { shell } => {
            // Into memory first: it takes a closed pipe for a defect.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "elman", &mut script);
            io::stdout().write_all(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { folder } => {
            let unusable = || format!("the manual pages cannot be written to {}", folder.display());
            std::fs::create_dir_all(&folder).with_context(unusable)?;
            clap_mangen::generate_to(Cli::command(), &folder).with_context(unusable)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What a command line that lacks something else says of the device, if that is `list`.
fn asked_for_list() -> Option<DeviceArgs> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let given = arguments.windows(2).find(|pair| pair[0] == "--device").map(|pair| pair[1].clone());
    let joined = || arguments.iter().find_map(|argument| argument.to_str()?.strip_prefix("--device=").map(Into::into));
    let device = given.or_else(joined).or_else(|| std::env::var_os(elman::device::ENVIRONMENT_VARIABLE))?;
    (device == LIST).then(|| DeviceArgs { device: LIST.into() })
}

/// Whoever read the output wants no more of it.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let is = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(is)
}
