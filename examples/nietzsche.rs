//! A character RNN learns Nietzsche and writes text: `cargo run --release --example nietzsche`.

mod common;

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use common::corpus::Text;
use common::data::{self, Data};
use common::networks::{Model, Recipe};
use common::progress::Progress as Bar;
use common::run::{BEST, Epoch, MODEL, Run};
use common::sampling::SamplingArgs;
use common::{DeviceArgs, Failures, INTERRUPTED, RECOVERIES, announce, at_least_one, corpus, say, warn};
use elman::generate::{Generator, SlidingWindow};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnnOptions, Init, LanguageModel, Parameters, State};
use elman::optim::Adam;
use elman::rng::{self, Rng};
use elman::schedule::{EarlyStopping, Mode};
use elman::text::Vocabulary;
use elman::{Evaluator, Trainer};
use serde::{Deserialize, Serialize};

const STDOUT: &str = "standard output";

/// [`say!`] of what a run can do without.
macro_rules! tell {
    ($failures:ident, $($line:tt)*) => {
        $failures.note(STDOUT, writeln!(std::io::stdout(), $($line)*))
    };
}

/// Where a run stands.
#[derive(Clone, Serialize, Deserialize)]
struct Progress {
    /// 0 at the learning rate, 1 at a tenth of it.
    phase: usize,
    /// Epochs done in the phase, and in all.
    epochs: usize,
    epoch: usize,
    /// The lowest held-out loss, and its epoch.
    best: Option<(f64, usize)>,
    stopping: EarlyStopping,
    /// Whether an epoch is under way, and the losses before it.
    is_started: bool,
    first: usize,
    /// That the epoch has taken.
    seconds: f64,
}

/// Epochs without a lower held-out loss that are put up with.
const PATIENCE: usize = 2;

/// Trains a character RNN by WGSL kernels, on a GPU or on the CPU, and writes text.
#[derive(Parser)]
#[command(name = "nietzsche")]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// UTF-8 text to learn [default: Nietzsche, downloaded once; without a network, a text that ships with the example]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Make a line feed of every CR LF and every CR of the corpus
    #[arg(long)]
    normalize_newlines: bool,
    /// The network; each has the tutorial's own windows, learning rates and epochs as defaults [default: rnn; of another
    /// text than Nietzsche, gru with --stateful]
    #[arg(long, value_enum)]
    model: Option<Model>,
    /// Train on contiguous streams of text with the hidden state carried from window to window, and a loss on all steps:
    /// back-propagation through time, truncated after --window characters
    #[arg(long)]
    stateful: bool,
    /// Epochs at the learning rate [default: 4, or the tutorial's for the model; of another text than Nietzsche, unless
    /// this or the next is given, until the held-out loss no longer falls]
    #[arg(long)]
    epochs: Option<usize>,
    /// Epochs at a tenth of the learning rate, after the others [default: 2, or the tutorial's for the model; of
    /// another text likewise, from the best epoch on]
    #[arg(long)]
    fine_tune_epochs: Option<usize>,
    /// Windows in a training step [default: 512; 64 if stateful]
    #[arg(long, value_parser = at_least_one)]
    batch: Option<usize>,
    /// Hidden units
    #[arg(long, default_value_t = 256, value_parser = at_least_one)]
    hidden: usize,
    /// Values that stand for a character
    #[arg(long, default_value_t = 42, value_parser = at_least_one)]
    embedding: usize,
    /// Recurrent layers of the models rnn, gru and lstm
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    layers: usize,
    /// Rate of dropout between recurrent layers, of which it takes two
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    dropout: f64,
    /// Characters that the network sees before the one it predicts [default: 8, 3 for three-char; 32 if stateful]
    #[arg(long, value_parser = at_least_one)]
    window: Option<usize>,
    /// Learning rate of Adam [default: 1e-3, 1e-2 for three-char and loop; 2e-3 if stateful]
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Seed of everything random: initial weights, batches, text
    #[arg(long, default_value_t = 777)]
    seed: u32,
    /// Stop training after so many steps; validation then takes no more batches than that
    #[arg(long, value_name = "STEPS")]
    max_steps: Option<usize>,
    /// Go on with the run in --out, from its newest checkpoint, as if it had never ended: with the options that it was started with,
    /// but for --max-steps, which counts all steps, and what concerns the texts
    #[arg(long)]
    resume: bool,
    /// Save a checkpoint every so many seconds; one is saved after each epoch too, and where the run ends
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    save_every: u64,
    /// Checkpoints that are kept: the newest, and those before it
    #[arg(long, default_value_t = 2, value_parser = at_least_one)]
    keep: usize,
    /// Folder for the model, the metrics and the loss curve
    #[arg(long, default_value = "target/nietzsche", value_name = "FOLDER")]
    out: PathBuf,
    /// What the texts start with [default: "for thos", or the start of a corpus that lacks these characters]
    #[arg(long)]
    prompt: Option<String>,
    /// Characters to sample
    #[arg(long, default_value_t = 400)]
    length: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print only the table and the texts
    #[arg(long)]
    quiet: bool,
}

impl Options {
    /// Of another text than the published one: what learns it best in a minute, and batches that fit a short one. A
    /// large file is drawn from at random, which streams cannot be.
    fn suit(&mut self, corpus: &corpus::Corpus) {
        let Text::Loaded(text) = &corpus.text else { return };
        if self.model.is_some() || corpus.published {
            return;
        }
        (self.model, self.stateful) = (Some(Model::Gru), true);
        let held_out: usize = data::held_out_stretches(text.chars().count()).iter().map(Range::len).sum();
        let (recipe, most) = (self.recipe(), held_out.saturating_sub(1));
        let window = recipe.window.min(most / self.batch.unwrap_or(1)).max(1);
        let window = *self.window.get_or_insert(window);
        self.batch.get_or_insert(recipe.batch.min(most / window).max(1));
    }

    fn model(&self) -> Model {
        self.model.unwrap_or(Model::Rnn)
    }

    /// The model's recipe, with what was asked for in place of its own.
    fn recipe(&self) -> Recipe {
        let recipe = self.model().recipe(self.stateful);
        Recipe {
            window: self.window.unwrap_or(recipe.window),
            batch: self.batch.unwrap_or(recipe.batch),
            lr: self.lr.unwrap_or(recipe.lr),
            epochs: self.epochs.unwrap_or(recipe.epochs),
            fine_tune_epochs: self.fine_tune_epochs.unwrap_or(recipe.fine_tune_epochs),
            ..recipe
        }
    }

    fn sizes(&self, vocabulary: usize) -> Result<CharRnnOptions> {
        let sizes = CharRnnOptions::new(vocabulary, self.embedding, self.hidden);
        match self.model().cell() {
            Some(cell) => Ok(sizes.cell(cell).num_layers(self.layers).dropout(self.dropout)),
            None if self.layers > 1 || self.dropout != 0.0 => {
                bail!("--layers and --dropout are for the models rnn, gru and lstm")
            }
            None => Ok(sizes),
        }
    }
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let mut options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let corpus = corpus::find(options.corpus.as_deref(), options.normalize_newlines, options.quiet)?;
    options.suit(&corpus);
    let vocabulary = corpus.text.vocabulary();
    let recipe = options.recipe();
    let prompt = prompt(&options, &vocabulary, &corpus.text)?;
    let sizes = options.sizes(vocabulary.len())?;
    // The order of draws is that of the tutorial in PyTorch: split, parameters, then one order of batches an epoch.
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let (length, [mut training, mut held_out]) =
        data::cut(&device, &corpus, &vocabulary, &recipe, options.stateful, &mut init.rng)?;
    let until_best = !corpus.published && options.epochs.is_none() && options.fine_tune_epochs.is_none();
    if options.layers == 1 && options.dropout > 0.0 {
        warn("--dropout does nothing with one layer: it lies between layers, so add --layers 2");
    }
    let mut failures = Failures::default();
    if !options.quiet {
        let introduce = || {
            announce(&device)?;
            say!("corpus: {}", corpus.origin);
            say!("corpus length: {length}");
            say!("total chars {}", vocabulary.len());
            if !corpus.published {
                introduce_training(&corpus.text, &options, until_best)?;
            }
            anyhow::Ok(())
        };
        failures.note(STDOUT, introduce());
    }
    let model = options.model().build(&mut init, sizes)?;
    let parameters = init.upload(&device)?;
    let states = [model.state(&device, recipe.batch)?, model.state(&device, recipe.batch)?];
    let loss = |g: &mut elman::Graph, data: &Data, state: &State| {
        let batch = data.batch(g, recipe.batch)?;
        let logits = if options.stateful {
            model.forward_every_step(g, &batch.tokens, InitialState::Carried(state))?
        } else {
            model.forward(g, &batch.tokens, InitialState::Zero)?
        };
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    };
    let mut trainer = Trainer::new(&parameters, Adam::new(recipe.lr), |g| loss(g, &training, &states[0]))?;
    let mut evaluator = Evaluator::new(&parameters, |g| loss(g, &held_out, &states[1]))?;

    let mut run = Run::start(&options.out, Duration::from_secs(options.save_every), options.keep)?;
    let model_file = run.file(MODEL);
    let save_to = |file: &Path| save(file, &parameters, &sizes, &vocabulary, &options);
    let save = || save_to(&model_file);

    let stopping = || EarlyStopping::new(Mode::Min, PATIENCE, 0.0);
    let mut progress = Progress {
        phase: 0,
        epochs: 0,
        epoch: 0,
        best: None,
        stopping: stopping()?,
        is_started: false,
        first: 0,
        seconds: 0.0,
    };
    // As it was before the order of the epoch was drawn.
    let mut rng = init.rng.clone();
    let settings = settings(&options, &sizes, &corpus.text, until_best);
    run.set_config(settings.clone());
    // The best epoch's parameters: the model's file may be of an epoch that was cut short, and is not in a checkpoint.
    let mut best: Vec<u32> = Vec::new();
    if options.resume {
        let checkpoint = run.last()?;
        let theirs: serde_json::Value = checkpoint.get("settings")?;
        if theirs != settings {
            bail!("the run in {} was started with {theirs}, not with {settings}", options.out.display());
        }
        progress = checkpoint.get("progress")?;
        best = checkpoint.order("best")?;
        run.resume(&checkpoint)?;
        let (steps, count) = (run.losses().len(), parameters.iter().map(|(_, tensor)| tensor.len()).sum());
        let first = steps.checked_sub(progress.first).filter(|&done| done <= training.batches(recipe.batch));
        let wanted = if progress.best.is_some() { count } else { 0 };
        if steps as u64 != checkpoint.steps() || first.is_none() || progress.phase > 2 || best.len() != wanted {
            bail!("the checkpoint in {} contradicts itself: go on from another", options.out.display());
        }
        if options.max_steps.is_some_and(|most| most < steps) {
            bail!("--max-steps counts all steps, and the run has done {steps}: give more, or leave it out");
        }
        if progress.best.is_some() {
            let mut values = best.iter().copied().map(f32::from_bits);
            for (_, tensor) in parameters.iter() {
                tensor.write(&values.by_ref().take(tensor.len()).collect::<Vec<_>>())?;
            }
            save()?;
        }
        trainer.restore(&checkpoint)?;
        checkpoint.restore_state("training", &states[0])?;
        rng = checkpoint.get("rng")?;
        init.rng = rng.clone();
        if progress.is_started {
            training.start_epoch(&mut init.rng)?;
        }
        for (name, data) in [("training", &mut training), ("held out", &mut held_out)] {
            if let Some(draws) = data.rng() {
                *draws = checkpoint.get(name)?;
            }
        }
    }
    let checkpoint = |trainer: &Trainer, data: [&mut Data; 2], progress: &Progress, rng: &Rng, best: &[u32]| {
        let mut checkpoint = trainer.checkpoint()?;
        checkpoint.set_state("training", &states[0])?;
        checkpoint.set("progress", progress)?;
        checkpoint.set("rng", rng)?;
        checkpoint.set("settings", &settings)?;
        checkpoint.set("vocabulary", &vocabulary.to_string())?;
        checkpoint.set_order("best", best);
        for (name, data) in ["training", "held out"].into_iter().zip(data) {
            data.rng().map_or(Ok(()), |draws| checkpoint.set(name, &*draws))?;
        }
        anyhow::Ok(checkpoint)
    };

    tell!(failures, "epoch  train_loss  val_loss  seconds   chars/s");
    let held_out_batches = held_out.batches(recipe.batch).min(held_out.most_validated());
    let most = options.max_steps.unwrap_or(usize::MAX);
    let phases = [(recipe.lr, recipe.epochs), (recipe.lr / 10.0, recipe.fine_tune_epochs)];
    'training: while let Some(&(lr, epochs)) = phases.get(progress.phase) {
        if epochs == 0 && !until_best {
            progress.phase += 1;
            continue;
        }
        if progress.epochs == 0 && !progress.is_started {
            trainer.set_lr(lr)?;
            progress.stopping = stopping()?;
            if let Some((loss, _)) = progress.best {
                elman::io::load(&model_file, &parameters)?;
                progress.stopping.stop(loss);
            }
        }
        loop {
            let left = most.saturating_sub(trainer.steps() as usize);
            if run.is_interrupted() || (left == 0 && !progress.is_started) {
                break 'training;
            }
            if !progress.is_started {
                rng = init.rng.clone();
                training.start_epoch(&mut init.rng)?;
                trainer.start_epoch()?;
                states.iter().try_for_each(State::zero)?;
                (progress.is_started, progress.first, progress.seconds) = (true, run.losses().len(), 0.0);
            }
            let all = progress.first + training.batches(recipe.batch);
            let end = all.min(run.losses().len() + left);
            let guessing = (vocabulary.len() as f64).ln();
            let check = |train_loss: f64| match train_loss > 2.0 * guessing {
                true => bail!(
                    "the training diverged, and its model is not kept: the loss is {train_loss:.3e}, that of guessing \
                     is {guessing:.2}; use a smaller --lr than {lr}"
                ),
                false => Ok(train_loss),
            };
            let tokens = recipe.batch * recipe.window;
            let mut bar = Bar::new(options.quiet, progress.first..all, tokens, "characters");
            while run.losses().len() < end && !run.is_interrupted() {
                let (start, steps) = (Instant::now(), end - run.losses().len());
                let show = |losses: &[f32], trainer: &Trainer| {
                    bar.stepped(losses, trainer.lr());
                    Ok(false)
                };
                run.train(&mut trainer, steps, || training.before_steps(), show)?;
                progress.seconds += start.elapsed().as_secs_f64();
                if run.losses().len() < all {
                    check(training.mean(&run.losses()[progress.first..], recipe.batch))?;
                    let checkpoint = checkpoint(&trainer, [&mut training, &mut held_out], &progress, &rng, &best)?;
                    failures.note("a checkpoint", run.save(checkpoint));
                }
            }
            bar.end();
            let done = &run.losses()[progress.first..];
            if done.is_empty() {
                break 'training;
            }
            let train_loss = check(training.mean(done, recipe.batch))?;
            let losses = held_out.losses(&mut evaluator, held_out_batches.min(most))?;
            let characters = (done.len() * recipe.batch).min(training.len()) * recipe.window;
            let row = Epoch {
                epoch: progress.epoch,
                train_loss,
                val_loss: held_out.mean(&losses, recipe.batch),
                seconds: progress.seconds,
                chars_per_second: characters as f64 / progress.seconds,
                device: device.describe(),
                steps_so_far: Some(run.losses().len()),
            };
            let ended = if until_best { progress.stopping.stop(row.val_loss) } else { progress.epochs + 1 == epochs };
            if !until_best {
                save()?;
            } else if progress.best.is_none_or(|(loss, _)| row.val_loss < loss) {
                progress.best = Some((row.val_loss, progress.epoch));
                best.clear();
                for (_, tensor) in parameters.iter() {
                    best.extend(tensor.to_vec()?.into_iter().map(f32::to_bits));
                }
                save()?;
            }
            if run.is_best(row.val_loss) {
                failures.note("the best epoch's model", save_to(&run.file(BEST)));
            }
            let Epoch { epoch, val_loss, seconds, chars_per_second, .. } = row;
            tell!(failures, "{epoch:5}  {train_loss:10.6}  {val_loss:8.6}  {seconds:7.1}  {chars_per_second:8.0}");
            run.add_epoch(row);
            run.write(&mut failures);
            (progress.is_started, progress.epoch, progress.epochs) = (false, epoch + 1, progress.epochs + 1);
            if run.losses().len() < all {
                // The checkpoint is of the midst of the epoch.
                break 'training;
            }
            if ended {
                (progress.phase, progress.epochs) = (progress.phase + 1, 0);
            }
            let checkpoint = checkpoint(&trainer, [&mut training, &mut held_out], &progress, &init.rng, &best)?;
            failures.note("a checkpoint", run.save(checkpoint));
            if ended {
                break;
            }
        }
    }
    let best = progress.best;
    if let Some((loss, epoch)) = best {
        elman::io::load(&model_file, &parameters)?;
        if !options.quiet {
            tell!(failures, "best: epoch {epoch}, with a held-out loss of {loss:.6}; its model is kept");
        }
    }
    // An untrained model replaces none.
    if run.losses().is_empty() && !model_file.exists() {
        save()?;
        run.write(&mut failures);
    }
    if !run.is_interrupted() {
        let written = write_text(&*model, &parameters, &vocabulary, &prompt, &options, &run);
        failures.note("the text", written);
    }
    let whose = if run.losses().is_empty() { " (no step was run: it is as it was)" } else { "" };
    if run.is_interrupted() {
        tell!(failures, "\nstopped; the model is in {}{whose}", model_file.display());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if !options.quiet {
        tell!(failures, "model, metrics and loss curve are in {}{whose}", options.out.display());
    }
    Ok(failures.exit_code())
}

/// How another text than the tutorials' is trained on.
fn introduce_training(text: &Text, options: &Options, until_best: bool) -> Result<()> {
    let Recipe { window, batch, lr, .. } = options.recipe();
    let shape = if options.stateful { "streams, the state carried from window to window" } else { "windows" };
    let held_out = if let Text::Loaded(_) = text { "a tenth, in whole stretches" } else { "the last fifth" };
    say!("another text than the tutorial's: {:?}, {batch} {shape}, {window} characters each", options.model());
    say!("held out: {held_out}");
    if until_best {
        say!(
            "learning rate {lr}, then, from the best epoch on, {}: each until the held-out loss has not fallen for {} \
             epochs",
            lr / 10.0,
            PATIENCE + 1
        );
    }
    Ok(())
}

/// The tokens of the prompt: checked before training, not after.
fn prompt(options: &Options, vocabulary: &Vocabulary, text: &Text) -> Result<Vec<u32>> {
    let prompt = match &options.prompt {
        Some(prompt) if prompt.is_empty() => bail!("--prompt must have at least one character"),
        Some(prompt) => prompt.clone(),
        None => match options.model().prompts()[0] {
            known if vocabulary.encode(known).is_ok() => known.into(),
            _ => text.start(options.recipe().window),
        },
    };
    Ok(vocabulary.encode(&prompt)?)
}

/// What a run must have in common with the one that it goes on with.
fn settings(options: &Options, sizes: &CharRnnOptions, text: &Text, until_best: bool) -> serde_json::Value {
    let Recipe { window, batch, lr, epochs, fine_tune_epochs, .. } = options.recipe();
    serde_json::json!({
        "model": format!("{:?}", options.model()),
        "sizes": sizes,
        "stateful": options.stateful,
        "window": window,
        "batch": batch,
        "lr": lr,
        "epochs": [epochs, fine_tune_epochs],
        "seed": options.seed,
        "until_best": until_best,
        "text": text.fingerprint(),
    })
}

fn save(
    path: &Path,
    parameters: &Parameters,
    sizes: &CharRnnOptions,
    vocabulary: &Vocabulary,
    options: &Options,
) -> Result<()> {
    let (model, window) = (format!("{:?}", options.model()), options.recipe().window);
    let config = serde_json::json!({ "model": model, "sizes": sizes, "window": window });
    let metadata = [("config".into(), config.to_string()), ("vocabulary".into(), vocabulary.to_string())];
    Ok(elman::io::save(path, parameters, metadata.into())?)
}

/// The tutorial's greedy `get_next` and `get_next_n`, then sampling with the state carried, streamed as it comes.
fn write_text(
    model: &dyn LanguageModel,
    parameters: &Parameters,
    vocabulary: &Vocabulary,
    prompt: &[u32],
    options: &Options,
    run: &Run,
) -> Result<()> {
    let window = &prompt[prompt.len().saturating_sub(options.recipe().window)..];
    let mut sliding = SlidingWindow::new(model, parameters, window.len())?;
    sliding.set_never(Some(Vocabulary::PADDING))?;
    say!();
    for asked in options.model().prompts() {
        // Another corpus may lack the characters, and a prompt of another length needs another plan.
        if let Ok(tokens) = vocabulary.encode(asked)
            && tokens.len() == window.len()
        {
            say!("get_next({asked:?}) = {:?}", vocabulary.decode(&[sliding.next(&tokens)?]));
        }
    }
    let greedy = sliding.extend(window, 40)?;
    say!("get_next_n({:?}, 40):\n{}", vocabulary.decode(window), vocabulary.decode(&greedy));

    let mut generator = Generator::new(model, parameters, 1)?;
    generator.set_sampling(options.sampling.sampling(options.seed, Some(Vocabulary::PADDING)))?;
    generator.prime(prompt)?;
    say!("\n{} characters at temperature {}:", options.length, options.sampling.temperature);
    let mut out = std::io::stdout().lock();
    write!(out, "{}", vocabulary.decode(prompt))?;
    let mut broken = None;
    generator.generate(options.length, |tokens| {
        broken = write!(out, "{}", vocabulary.decode(tokens)).and_then(|()| out.flush()).err();
        broken.is_none() && !run.is_interrupted()
    })?;
    broken.map_or(Ok(()), Err)?;
    writeln!(out, "\n")?;
    Ok(())
}
