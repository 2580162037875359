//! `elman eval`: how well a model predicts texts.

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use elman::Evaluator;
use elman::data::Array;
use elman::nn::LanguageModel as _;
use elman::nn::functional::{InitialState, Reduction, accuracy, cross_entropy};
use serde_json::json;

use super::model::Model;
use super::shared::{DeviceArgs, RECOVERIES, say, with_separators};
use super::text::{By, Reading, Text};
use super::tokens::Unknown;

/// Say how well a model predicts texts: loss, bits, perplexity, accuracy, of each file
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Model file, or a run's folder: the best model there
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Texts: files, folders, patterns, or - for standard input
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    reading: Reading,
    /// What becomes of characters that the model does not know
    #[arg(long, value_enum, default_value_t)]
    unknown: Unknown,
    /// One JSON object for each file, and one for all
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  elman eval book letter.txt diary.txt
  elman eval book 'chapters/*.txt' --unknown skip --json

Each file is one text: the network starts from nothing at its beginning and reads it to its end. The first token is not predicted.
Loss is in nats for each token; bits are the loss divided by ln 2; perplexity is e to the loss.";

/// Tokens of a dispatch.
const WINDOW: usize = 512;

pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let model = Model::load(&options.model, &device)?;
    let text = Text::open(&options.texts, &options.reading, By::Given(&model.tokens, options.unknown))?;
    for (name, file) in text.files() {
        let (length, unit) = (file.len(), model.tokens.unit());
        ensure!(
            length > 1,
            "{name} has {length} {unit} that the model knows: at least 2 are needed, for one to be predicted"
        );
    }
    let state = model.network.state(&device, 1)?;
    let mut evaluator = Evaluator::on_batches(&model.parameters, |g, [tokens, targets]| {
        let logits = model.network.forward_every_step(g, tokens, InitialState::Carried(&state))?;
        Ok([cross_entropy(g, logits, targets, Reduction::Mean)?, accuracy(g, logits, targets, Reduction::Mean)?])
    })?;
    let vocabulary = model.tokens.len();
    let mut evaluate = |file: &Range<usize>| -> Result<[f64; 2]> {
        state.zero()?;
        let mut failed = Ok(());
        let windows = (file.start..file.end - 1).step_by(WINDOW).map_while(|start| {
            let steps = WINDOW.min(file.end - 1 - start);
            let batch = text.read(start..start + steps + 1).and_then(|read| {
                let tokens = Array::tokens("tokens", &[steps, 1], read[..steps].to_vec(), vocabulary)?;
                Ok([tokens, Array::targets("targets", &[steps, 1], read[1..].to_vec(), vocabulary)?])
            });
            batch.map_err(|error| failed = Err(error)).ok()
        });
        let means = evaluator.means(windows);
        failed?;
        Ok(means?)
    };
    let start = Instant::now();
    let (mut all, mut count) = ([0.0; 2], 0);
    let width = text.files().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max("text".len());
    if !options.json {
        say!("{:width$}  {:>12}    loss   bits  perplexity  accuracy", "text", model.tokens.unit());
    }
    let mut files = 0;
    for (name, file) in text.files() {
        let means = evaluate(&file)?;
        print(options, name, width, file.len() - 1, means)?;
        let predicted = file.len() - 1;
        all.iter_mut().zip(means).for_each(|(all, mean)| *all += mean * predicted as f64);
        count += predicted;
        files += 1;
    }
    if files > 1 {
        print(options, "all", width, count, all.map(|sum| sum / count as f64))?;
    }
    if !options.json {
        let seconds = start.elapsed().as_secs_f64();
        let speed = with_separators((count as f64 / seconds) as u64);
        say!("\n{}; {speed} {} a second on {}", model.describe(), model.tokens.unit(), device.describe());
    }
    Ok(ExitCode::SUCCESS)
}

fn print(options: &Options, name: &str, width: usize, count: usize, [loss, accuracy]: [f64; 2]) -> Result<()> {
    let (bits, perplexity) = (loss / std::f64::consts::LN_2, loss.exp());
    if options.json {
        say!(
            "{}",
            json!({ "text": name, "tokens": count, "loss": loss, "bits": bits, "perplexity": perplexity, "accuracy": accuracy })
        );
        return Ok(());
    }
    let count = with_separators(count as u64);
    say!("{name:width$}  {count:>12}  {loss:6.4}  {bits:5.3}  {perplexity:10.3}  {:7.1}%", 100.0 * accuracy);
    Ok(())
}
