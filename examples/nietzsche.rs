//! A character RNN learns Nietzsche and writes text: `cargo run --release --example nietzsche`.

mod common;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use common::run::{Epoch, Run, smooth};
use common::{DeviceArgs, announce, corpus, say};
use elman::generate::{Generator, SlidingWindow};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel, Parameters};
use elman::optim::Adam;
use elman::text::{Corpus, Vocabulary, Windows, hold_out};
use elman::{Evaluator, Trainer, rng};
use indicatif::{ProgressBar, ProgressStyle};

/// The exit code of a program that Ctrl-C ended: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Trains a character RNN by WGSL kernels, on a GPU or on the CPU, and writes text.
#[derive(Parser)]
#[command(name = "nietzsche")]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// UTF-8 text to learn [default: Nietzsche, downloaded once; without a network, a text that ships with the example]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Epochs at the learning rate
    #[arg(long, default_value_t = 4)]
    epochs: usize,
    /// Epochs at a tenth of the learning rate, after the others
    #[arg(long, default_value_t = 2)]
    fine_tune_epochs: usize,
    /// Windows in a training step
    #[arg(long, default_value_t = 512, value_parser = at_least_one)]
    batch: usize,
    /// Hidden units
    #[arg(long, default_value_t = 256, value_parser = at_least_one)]
    hidden: usize,
    /// Values that stand for a character
    #[arg(long, default_value_t = 42, value_parser = at_least_one)]
    embedding: usize,
    /// Characters that the network sees before the one it predicts
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    window: usize,
    /// Learning rate of Adam
    #[arg(long, default_value_t = 1e-3, allow_negative_numbers = true)]
    lr: f64,
    /// Seed of everything random: initial weights, batches, text
    #[arg(long, default_value_t = 777)]
    seed: u32,
    /// Stop training after so many steps; validation then takes no more batches than that
    #[arg(long, value_name = "STEPS")]
    max_steps: Option<usize>,
    /// Folder for the model, the metrics and the loss curve
    #[arg(long, default_value = "target/nietzsche", value_name = "FOLDER")]
    out: PathBuf,
    /// What the texts start with [default: "for thos", or the start of a corpus that lacks these characters]
    #[arg(long)]
    prompt: Option<String>,
    /// Characters to sample
    #[arg(long, default_value_t = 400)]
    length: usize,
    /// How bold the sampling is: 0 always takes the most likely character
    #[arg(long, default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Print only the table and the texts
    #[arg(long)]
    quiet: bool,
}

fn at_least_one(value: &str) -> Result<usize, String> {
    value.parse().ok().filter(|&n| n > 0).ok_or_else(|| "must be a whole number of at least 1".into())
}

fn temperature(value: &str) -> Result<f32, String> {
    value.parse().ok().filter(|&t: &f32| t >= 0.0 && t.is_finite()).ok_or_else(|| "must be 0 or above".into())
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    let (text, origin) = corpus::find(options.corpus.as_deref(), options.quiet)?;
    let vocabulary = Vocabulary::of(&text);
    let tokens = vocabulary.encode(&text)?;
    let Some(count) = tokens.len().checked_sub(options.window).filter(|&n| n >= 5) else {
        bail!(
            "the corpus has {} characters; windows of {} need at least {}: use a longer text or a smaller --window",
            tokens.len(),
            options.window,
            options.window + 5
        );
    };
    let prompt = prompt(&options, &vocabulary, &text)?;
    if !options.quiet {
        announce(&device)?;
        say!("corpus: {origin}");
        say!("corpus length: {}", tokens.len());
        say!("total chars {}", vocabulary.len());
    }

    // The order of draws is that of the tutorial in PyTorch: split, parameters, then one order of batches an epoch.
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let (training, held_out) = hold_out(&init.rng.randperm(count), 0.2);
    let sizes = CharRnnOptions::new(vocabulary.len(), options.embedding, options.hidden);
    let model = CharRnn::new(&mut init, sizes)?;
    let parameters = init.upload(&device)?;
    let corpus = Corpus::new(&device, &tokens, vocabulary.len())?;
    let training = Windows::new(&corpus, training, options.window)?;
    let held_out = Windows::new(&corpus, held_out, options.window)?;
    let loss = |windows: &Windows, g: &mut elman::Graph| {
        let batch = windows.batch(g, options.batch)?;
        let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    };
    let mut trainer = Trainer::new(&parameters, Adam::new(options.lr), |g| loss(&training, g))?;
    let mut evaluator = Evaluator::new(&parameters, |g| loss(&held_out, g))?;

    let mut run = Run::new(&options.out);
    run.create()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    })?;

    say!("epoch  train_loss  val_loss  seconds   chars/s");
    let most = options.max_steps.unwrap_or(usize::MAX);
    for epoch in 0..options.epochs.saturating_add(options.fine_tune_epochs) {
        let left = most - trainer.steps() as usize;
        if left == 0 || stop.load(Ordering::Relaxed) {
            break;
        }
        trainer.set_lr(if epoch < options.epochs { options.lr } else { options.lr / 10.0 })?;
        training.set_order(&init.rng.randperm(training.len()))?;
        let steps = training.batches(options.batch).min(left);
        let start = Instant::now();
        let first = run.losses().len();
        train_epoch(&mut trainer, &mut run, steps, &stop, options.quiet)?;
        let seconds = start.elapsed().as_secs_f64();
        let done = &run.losses()[first..];
        if done.is_empty() {
            break;
        }
        let losses = evaluator.losses(held_out.batches(options.batch).min(most))?;
        let characters = (done.len() * options.batch).min(training.len()) * options.window;
        let row = Epoch {
            epoch,
            train_loss: training.mean(done, options.batch),
            val_loss: held_out.mean(&losses, options.batch),
            seconds,
            chars_per_second: characters as f64 / seconds,
            device: device.describe(),
            steps_so_far: run.losses().len(),
        };
        say!(
            "{epoch:5}  {:10.6}  {:8.6}  {:7.1}  {:8.0}",
            row.train_loss,
            row.val_loss,
            row.seconds,
            row.chars_per_second
        );
        run.add_epoch(row)?;
        save(&run, &parameters, &model, &vocabulary, &options)?;
    }
    run.write()?;
    save(&run, &parameters, &model, &vocabulary, &options)?;
    if !stop.load(Ordering::Relaxed) {
        write_text(&model, &parameters, &vocabulary, &prompt, &options, &stop)?;
    }
    if stop.load(Ordering::Relaxed) {
        say!("\nstopped; the model is in {}", run.file("model.safetensors").display());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if !options.quiet {
        say!("model, metrics and loss curve are in {}", options.out.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The tokens of the prompt: checked before training, not after.
fn prompt(options: &Options, vocabulary: &Vocabulary, text: &str) -> Result<Vec<u32>> {
    let prompt = match &options.prompt {
        Some(prompt) if prompt.is_empty() => bail!("--prompt must have at least one character"),
        Some(prompt) => prompt.clone(),
        None if vocabulary.encode("for thos").is_ok() => "for thos".into(),
        None => text.chars().take(options.window).collect(),
    };
    Ok(vocabulary.encode(&prompt)?)
}

/// Runs the steps of an epoch. Losses are read a few times a second, for the progress bar.
fn train_epoch(trainer: &mut Trainer, run: &mut Run, steps: usize, stop: &AtomicBool, quiet: bool) -> Result<()> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(steps as u64) };
    bar.set_style(ProgressStyle::with_template("{bar:40} step {pos}/{len}  loss {msg}  {eta} left")?);
    let mut last_read = Instant::now();
    trainer.start_epoch()?;
    for step in 1..=steps {
        trainer.step()?;
        if last_read.elapsed() > Duration::from_millis(300) {
            last_read = Instant::now();
            run.add_losses(&trainer.losses()?);
            bar.set_position(step as u64);
            let recent = run.losses().len().saturating_sub(500);
            bar.set_message(smooth(&run.losses()[recent..]).last().map_or_else(String::new, |l| format!("{l:.4}")));
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    run.add_losses(&trainer.losses()?);
    bar.finish_and_clear();
    Ok(())
}

fn save(run: &Run, parameters: &Parameters, model: &CharRnn, vocabulary: &Vocabulary, options: &Options) -> Result<()> {
    let config = serde_json::json!({ "model": "CharRnn", "sizes": model.options(), "window": options.window });
    let metadata = [("config".into(), config.to_string()), ("vocabulary".into(), vocabulary.to_string())];
    Ok(elman::io::save(run.file("model.safetensors"), parameters, metadata.into())?)
}

/// The tutorial's greedy `get_next_n`, then sampling with the state carried, streamed as it comes.
fn write_text(
    model: &CharRnn,
    parameters: &Parameters,
    vocabulary: &Vocabulary,
    prompt: &[u32],
    options: &Options,
    stop: &AtomicBool,
) -> Result<()> {
    let window = &prompt[prompt.len().saturating_sub(options.window)..];
    let greedy = SlidingWindow::new(model, parameters, window.len())?.extend(window, 40)?;
    say!("\nget_next_n({:?}, 40):\n{}", vocabulary.decode(window), vocabulary.decode(&greedy));

    let mut generator = Generator::new(model, parameters, 1)?;
    generator.set_temperature(options.temperature)?;
    generator.set_seed(options.seed)?;
    generator.prime(prompt)?;
    say!("\n{} characters at temperature {}:", options.length, options.temperature);
    let mut out = std::io::stdout().lock();
    write!(out, "{}", vocabulary.decode(prompt))?;
    let mut broken = None;
    generator.generate(options.length, |tokens| {
        broken = write!(out, "{}", vocabulary.decode(tokens)).and_then(|()| out.flush()).err();
        broken.is_none() && !stop.load(Ordering::Relaxed)
    })?;
    broken.map_or(Ok(()), Err)?;
    writeln!(out, "\n")?;
    Ok(())
}
