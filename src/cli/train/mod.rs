//! `elman train`: a network of characters or bytes learns the user's own text.

mod dashboard;
mod figures;
mod live;
pub mod settings;
mod view;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use elman::generate::{Generator, Sampling};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnn, Init, LanguageModel as _, State};
use elman::schedule::{EarlyStopping, Mode};
use elman::text::Vocabulary;
use elman::{Error, Evaluator, Graph, Trainer, io, rng};
use figures::{Figures, Observer};
use serde::{Deserialize, Serialize};
use settings::{Recipe, Settings};
use view::{Evaluation, View};
use watch::Watch;

use super::model::{Config, Model, describe, with_separators};
use super::shared::run::{BEST, Epoch, Run};
use super::shared::{DeviceArgs, Failures, INTERRUPTED, RECOVERIES};
use super::streams::Streams;
use super::text::{By, Text};
use super::tokens::Tokens;
use dashboard::Dashboard;

/// Learn a text: characters or bytes, on contiguous streams with the state carried, and a loss on every step
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Texts to learn, one after the other: files, folders, patterns, or - for standard input
    #[arg(value_name = "TEXT", required_unless_present = "resume")]
    texts: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// The run's folder [default: runs/ and the first text's name, with a number where that is there already]
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Go on with the run in --out from its newest checkpoint, to the bit, with the settings and texts that it was started with
    #[arg(long, requires = "out")]
    resume: bool,
    /// Replace the run that --out holds
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// TOML file of settings, named as these options are; the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Box<Settings>,
    /// Save a checkpoint every so many seconds; one is saved at each evaluation too, and where the run ends
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    save_every: u64,
    /// Checkpoints that are kept: the newest, and those before it
    #[arg(long, value_name = "N", default_value_t = 2)]
    keep: usize,
    #[command(flatten)]
    view: view::Options,
    #[command(flatten)]
    watch: watch::Options,
}

const EXAMPLES: &str = "\
Examples:
  elman train book.txt                        learn a book, with what suits its length
  elman train letters/ diary.txt -o me        a folder and a file, into the folder `me`
  elman train 'src/**/*.rs' --bytes --hidden 512 --layers 2
  elman train --resume -o me                  go on where it was stopped
  elman train new.txt --init-from me          start from what a model has learned already

A run's folder holds best.safetensors (the model of the lowest held-out loss: give the folder or this file to `elman sample`),
last.safetensors (the newest checkpoint), config.json, metrics.jsonl, losses.csv and loss.svg.";

/// Where a run stands.
#[derive(Clone, Serialize, Deserialize)]
struct Progress {
    evaluations: usize,
    /// The lowest held-out loss, and its step.
    best: Option<(f64, usize)>,
    stopping: EarlyStopping,
    has_stopped: bool,
    /// The step of the last evaluation, and what the training has taken since.
    since: usize,
    seconds: f64,
}

/// What config.json has.
#[derive(Serialize, Deserialize)]
struct Started {
    texts: Vec<String>,
    settings: Settings,
    recipe: Recipe,
    fingerprint: String,
    /// None: bytes.
    vocabulary: Option<String>,
}

impl Started {
    fn tokens(&self) -> Result<Tokens> {
        let Some(vocabulary) = &self.vocabulary else { return Ok(Tokens::Bytes) };
        let vocabulary = Vocabulary::try_from(vocabulary.clone());
        vocabulary
            .map(Tokens::Characters)
            .map_err(|problem| anyhow::anyhow!("the run's vocabulary is damaged: {problem}"))
    }
}

pub fn run(options: Options) -> Result<ExitCode> {
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let mut settings = (*options.settings).clone();
    if let Some(file) = &options.config {
        settings = settings.or(&Settings::read(file)?)?;
    }
    let mut texts = options.texts.clone();
    let out = options.out.clone().unwrap_or_else(|| free_folder(&texts[0]));
    if !options.resume && !options.overwrite && has_run(&out) {
        let out = out.display();
        bail!(
            "{out} holds a run already: go on with it by --resume, choose another folder by -o, or replace it by --overwrite"
        );
    }
    if options.watch.dashboard {
        Dashboard::check()?;
    }
    let started = options.resume.then(|| started(&out)).transpose()?;
    if let Some(started) = &started {
        let theirs = started.settings.going_on(&settings);
        settings = settings.or(&theirs)?;
        if texts.is_empty() {
            texts.clone_from(&started.texts);
        }
    }

    // The vocabulary and the sizes that are given: of the run that goes on, or of the model that is started from.
    let (known, sizes) = match (&started, &settings.init_from) {
        (Some(started), _) => {
            let tokens = started.tokens()?;
            let sizes = started.recipe.sizes(tokens.len());
            (Some(tokens), Some(sizes))
        }
        (None, Some(path)) => {
            let (config, tokens) = Model::config_of(path)?;
            (Some(tokens), Some(config.sizes))
        }
        (None, None) => (settings.is_bytes().then_some(Tokens::Bytes), None),
    };
    if let (Some(tokens), Some(bytes)) = (&known, settings.bytes()) {
        let is_bytes = *tokens == Tokens::Bytes;
        ensure!(
            bytes == is_bytes,
            "the model is of {}, which --bytes={bytes} contradicts: leave that out",
            tokens.unit()
        );
    }
    let by = known.as_ref().map_or(By::ItsCharacters, |tokens| By::Given(tokens, settings.unknown()));
    let text = Text::open(&texts, &settings.reading(), by)?;
    let tokens = text.tokens().clone();
    let recipe = settings.recipe(text.len(), sizes.as_ref())?;
    let recipe = Recipe { bytes: tokens == Tokens::Bytes, ..recipe };
    if let Some(started) = &started {
        check_resumed(started, &recipe, &text)?;
    }

    // Everything of the device, in the order that it is drawn.
    let sizes = recipe.sizes(tokens.len());
    let mut init = Init::new(rng::manual_seed(recipe.seed.into()));
    let network = CharRnn::new(&mut init, sizes)?;
    let parameters = init.upload(&device)?;
    if let Some(path) = settings.init_from.as_ref().filter(|_| !options.resume) {
        io::load(super::model::find(path)?, &parameters)?;
    }
    let split = text.len() - recipe.held_out;
    let mut training = Streams::new(&device, &text, 0..split, recipe.batch, recipe.window)?;
    let held_out_batch = recipe.batch.min(recipe.held_out / (4 * recipe.window)).max(1);
    let mut held_out = Streams::new(&device, &text, split..text.len(), held_out_batch, recipe.window)
        .context("of the held-out end of the text (--held-out)")?;
    let pass = training.steps();
    let steps = (recipe.epochs.saturating_mul(pass)).min(recipe.max_steps.unwrap_or(usize::MAX));
    let states = [network.state(&device, recipe.batch)?, network.state(&device, held_out_batch)?];
    let loss = |g: &mut Graph, streams: &Streams, state: &State| {
        let batch = streams.batch(g)?;
        let logits = network.forward_every_step(g, &batch.tokens, InitialState::Carried(state))?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    };
    let mut trainer = Trainer::new(&parameters, recipe.optimizer(steps), |g| loss(g, &training, &states[0]))?;
    // What is evaluated, written with and saved.
    let kept = trainer.averaged().unwrap_or(&parameters).clone();
    let mut evaluator = Evaluator::new(&kept, |g| loss(g, &held_out, &states[1]))?;
    let mut generator = Generator::new(&network, &kept, 1)?;
    generator.set_sampling(Sampling {
        temperature: recipe.temperature,
        seed: recipe.seed,
        never: tokens.never(),
        ..Sampling::default()
    })?;
    let prompt = match &settings.prompt {
        Some(prompt) => tokens.encode(prompt, settings.unknown()).context("--prompt")?,
        None => text.read(split..text.len().min(split + 40))?,
    };
    ensure!(!prompt.is_empty(), "--prompt must have at least one character");

    let mut run = Run::start(&out, Duration::from_secs(options.save_every), options.keep.max(1))?;
    let vocabulary = match &tokens {
        Tokens::Characters(vocabulary) => Some(vocabulary.to_string()),
        Tokens::Bytes => None,
    };
    let fingerprint = text.fingerprint.clone();
    let started = Started { texts: absolute(texts), settings, recipe: recipe.clone(), fingerprint, vocabulary };
    run.set_config(serde_json::to_value(&started)?);
    let mut failures = Failures::default();
    let mut progress = Progress {
        evaluations: 0,
        best: None,
        stopping: EarlyStopping::new(Mode::Min, recipe.patience.saturating_sub(1), 0.0)?,
        has_stopped: false,
        since: 0,
        seconds: 0.0,
    };
    if options.resume {
        let checkpoint = run.last()?;
        progress = checkpoint.get("progress")?;
        run.resume(&checkpoint)?;
        ensure!(
            run.losses().len() as u64 == checkpoint.steps() && progress.since <= run.losses().len(),
            "the checkpoint in {} contradicts itself: go on from another",
            out.display()
        );
        trainer.restore(&checkpoint)?;
        checkpoint.restore_state("training", &states[0])?;
        // The patience may be another than before.
        progress.has_stopped = false;
        progress.stopping = EarlyStopping::new(Mode::Min, recipe.patience.saturating_sub(1), 0.0)?;
        for (_, loss) in run.held_out() {
            progress.has_stopped = progress.stopping.stop(loss) && recipe.patience > 0;
        }
        let done = run.losses().len();
        ensure!(
            done < steps,
            "the run has done {done} steps, and {steps} are asked for in all: give more --epochs or --max-steps"
        );
        ensure!(
            !progress.has_stopped,
            "the run has ended, for its held-out loss fell no longer: give more --patience, or 0"
        );
    }
    let mut step = run.losses().len();
    let is_of_pass = recipe.eval_every.is_none();
    let every = recipe.eval_every.unwrap_or(pass.div_ceil(pass.div_ceil(MOST_BETWEEN)));

    let mut view = View::new(&options.view, options.watch.dashboard, steps, training.tokens_of_a_step(), tokens.unit());
    training.load(&text, step % pass)?;
    let seconds = if step == 0 { time_of_a_step(&mut trainer, &states[0], &training)? } else { None };
    failures.note(
        "standard output",
        view.introduce(&view::Introduction {
            device: &device,
            text: &text,
            held_out: recipe.held_out,
            network: describe(&sizes, &parameters),
            recipe: &recipe,
            pass,
            steps,
            every,
            seconds,
            out: &out,
            done: step,
        }),
    );

    let save_model = |run: &Run| {
        let metadata = Config::new(sizes, recipe.window, &tokens).metadata(&tokens)?;
        anyhow::Ok(io::save(run.file(BEST), &kept, metadata)?)
    };
    let checkpoint = |trainer: &Trainer, progress: &Progress| {
        let mut checkpoint = trainer.checkpoint()?;
        checkpoint.set_state("training", &states[0])?;
        checkpoint.set("progress", progress)?;
        anyhow::Ok(checkpoint)
    };
    let mut watch = None;
    if options.watch.is_any() {
        let networks = (&network, &parameters, &kept);
        let observer = Observer::new(&device, &text, networks, &states[0], &recipe, &prompt, options.watch.every())?;
        let figures = Figures { steps, unit: tokens.unit(), held_out: run.held_out(), ..Figures::default() };
        watch = Some(Watch::new(&options.watch, observer, figures, &out)?);
    }
    let mut is_ended_by_hand = false;
    // Where the loss is not finite, what was best stays.
    let mut ended = None;
    while step < steps && !progress.has_stopped && !run.is_interrupted() && !is_ended_by_hand {
        let of_pass = step % pass;
        if training.is_first_of_shard(of_pass) {
            training.load(&text, of_pass)?;
            trainer.start_epoch()?;
        }
        if of_pass == 0 {
            states[0].zero()?;
        }
        let until_evaluation = every - step % every;
        let most = training.until_next_shard(of_pass).min(until_evaluation).min(pass - of_pass).min(steps - step);
        let start = Instant::now();
        let trained = train(&mut trainer, &mut run, most, |losses, trainer| {
            let rate = view.stepped(losses, trainer.lr());
            let Some(watch) = &mut watch else { return Ok(false) };
            let mut is_enough = false;
            let shown = watch.stepped(losses, trainer, &training, rate).map(|ends| is_enough = ends);
            failures.note("what shows the training", shown);
            Ok(is_enough)
        });
        progress.seconds += start.elapsed().as_secs_f64();
        match trained {
            Ok(is_enough) => is_ended_by_hand = is_enough,
            Err(error) if matches!(error.downcast_ref(), Some(Error::NotFinite { .. })) => {
                ended = Some(error.context("the training went astray; a smaller --lr, or --clip, may help"));
                break;
            }
            Err(error) => return Err(error),
        }
        step = run.losses().len();
        let is_due = step.is_multiple_of(every) || is_of_pass && step.is_multiple_of(pass) || step == steps;
        if is_due && step > progress.since {
            let recent = &run.losses()[progress.since..];
            let train_loss = recent.iter().map(|&loss| f64::from(loss)).sum::<f64>() / recent.len() as f64;
            let val_loss = evaluate(&mut evaluator, &mut held_out, &states[1], &text)?;
            progress.has_stopped = progress.stopping.stop(val_loss) && recipe.patience > 0;
            let is_best = progress.best.is_none_or(|(best, _)| val_loss < best);
            if is_best {
                progress.best = Some((val_loss, step));
                failures.note("the best model", save_model(&run));
            }
            let characters = (recent.len() * training.tokens_of_a_step()) as f64;
            let row = Epoch {
                epoch: progress.evaluations,
                train_loss,
                val_loss,
                seconds: progress.seconds,
                chars_per_second: characters / progress.seconds,
                device: device.describe(),
                steps_so_far: Some(step),
            };
            let sample = sample(&mut generator, &prompt, recipe.sample_length, &tokens)?;
            let lr = trainer.lr();
            failures
                .note("standard output", view.evaluated(&Evaluation { row: &row, pass, is_best, lr, sample: &sample }));
            if let Some(watch) = &mut watch {
                failures.note("the live page", watch.evaluated(step, row.val_loss));
            }
            run.add_epoch(row);
            run.write(&mut failures);
            (progress.evaluations, progress.since, progress.seconds) = (progress.evaluations + 1, step, 0.0);
        }
        if is_due || is_ended_by_hand || run.is_save_due() {
            failures.note("a checkpoint", checkpoint(&trainer, &progress).and_then(|checkpoint| run.save(checkpoint)));
        }
    }
    if let Some(watch) = &mut watch {
        failures.note("the live page", watch.end());
    }
    // Ended before its first evaluation, what there is is better than nothing.
    if progress.best.is_none() && ended.is_none() {
        save_model(&run)?;
        run.write(&mut failures);
    }
    if let Some(error) = ended {
        run.write(&mut failures);
        let kept = match progress.best {
            Some((_, step)) => format!("the best model, of step {step}, is in {}", out.join(BEST).display()),
            None => "no model was kept".into(),
        };
        return Err(error.context(kept));
    }
    let is_interrupted = run.is_interrupted() || is_ended_by_hand;
    failures.note("standard output", view.ended(progress.best, step, progress.has_stopped, is_interrupted, &out));
    if is_interrupted {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(failures.exit_code())
}

/// Steps between evaluations, at most, if nothing else is said.
const MOST_BETWEEN: usize = 2000;

/// Whether a folder has what a run leaves.
fn has_run(folder: &Path) -> bool {
    [BEST, "last.safetensors"].iter().any(|name| folder.join(name).exists())
}

/// Where a run on a text goes that was not told where.
fn free_folder(text: &str) -> PathBuf {
    let name = name_of(text);
    let folders = (1..).map(|n| Path::new("runs").join(if n == 1 { name.clone() } else { format!("{name}-{n}") }));
    folders.into_iter().find(|folder| !has_run(folder)).expect("there are numbers enough")
}

/// So that a run can go on from wherever it is called.
fn absolute(texts: Vec<String>) -> Vec<String> {
    let absolute = |text: String| match std::path::absolute(&text) {
        Ok(path) if text != "-" => path.to_str().map_or(text, str::to_owned),
        _ => text,
    };
    texts.into_iter().map(absolute).collect()
}

/// The name of a run on a text.
fn name_of(text: &str) -> String {
    let name = std::path::Path::new(text).file_stem().map(|name| name.to_string_lossy().into_owned());
    name.filter(|name| name.chars().any(char::is_alphanumeric) && !name.contains(['*', '?', '[']))
        .unwrap_or_else(|| "text".into())
}

fn started(out: &std::path::Path) -> Result<Started> {
    let file = out.join("config.json");
    let text = std::fs::read_to_string(&file).with_context(|| {
        format!("there is no run to go on with in {}: {} cannot be read", out.display(), file.display())
    })?;
    serde_json::from_str(&text).with_context(|| format!("{} is not that of a run of `elman train`", file.display()))
}

/// A run goes on with the text, the network and the order of its steps that it was started with.
fn check_resumed(started: &Started, recipe: &Recipe, text: &Text) -> Result<()> {
    ensure!(
        started.fingerprint == text.fingerprint,
        "the text is another than the run was started with: start a new run, from this one's model by --init-from"
    );
    let fixed = |recipe: &Recipe| Recipe {
        epochs: 0,
        max_steps: None,
        patience: 0,
        eval_every: None,
        sample_length: 0,
        temperature: 0.0,
        ..recipe.clone()
    };
    if fixed(&started.recipe) != fixed(recipe) {
        let (theirs, ours) = (serde_json::to_string(&started.recipe)?, serde_json::to_string(recipe)?);
        bail!("the run was started with {theirs}, and cannot go on with {ours}");
    }
    Ok(())
}

/// Runs steps, until a checkpoint is due. Losses are read, and shown, a few times a second; gives whether whoever sees them has had enough.
fn train(
    trainer: &mut Trainer,
    run: &mut Run,
    steps: usize,
    mut show: impl FnMut(&[f32], &Trainer) -> Result<bool>,
) -> Result<bool> {
    let mut left = steps;
    let mut last_read = Instant::now();
    while left > 0 {
        left -= trainer.step_up_to(left)?;
        if last_read.elapsed() > Duration::from_millis(300) {
            last_read = Instant::now();
            run.add_losses(&trainer.losses()?);
            if show(run.losses(), trainer)? {
                return Ok(true);
            }
        }
        if run.is_interrupted() || run.is_save_due() {
            break;
        }
    }
    run.add_losses(&trainer.losses()?);
    show(run.losses(), trainer)
}

/// What a step takes, by some that are taken back.
fn time_of_a_step(trainer: &mut Trainer, state: &State, training: &Streams) -> Result<Option<f64>> {
    const MOST: usize = 8;
    if training.steps() < 2 {
        return Ok(None);
    }
    let before = trainer.checkpoint()?;
    let mut times = Vec::new();
    let all = Instant::now();
    for _ in 0..MOST.min(training.steps()) {
        let start = Instant::now();
        trainer.step()?;
        if trainer.losses().is_err() {
            // The training itself will say what it is.
            break;
        }
        times.push(start.elapsed().as_secs_f64());
        if all.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    trainer.restore(&before)?;
    state.zero()?;
    // The first is for the driver to warm up.
    let rest = times.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(&times);
    Ok((!rest.is_empty()).then(|| rest.iter().sum::<f64>() / rest.len() as f64))
}

/// The mean loss of all that is held out, in nats for each token.
fn evaluate(evaluator: &mut Evaluator, held_out: &mut Streams, state: &State, text: &Text) -> Result<f64> {
    state.zero()?;
    let (mut sum, mut step) = (0.0, 0);
    while step < held_out.steps() {
        held_out.load(text, step)?;
        let losses = evaluator.losses(held_out.until_next_shard(step))?;
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        step += losses.len();
    }
    Ok(sum / step as f64)
}

/// What the network writes now.
fn sample(generator: &mut Generator, prompt: &[u32], length: usize, tokens: &Tokens) -> Result<(String, String)> {
    let mut drawn = Vec::new();
    if length > 0 {
        generator.prime(prompt)?;
        generator.generate(length, |tokens| {
            drawn.extend_from_slice(tokens);
            true
        })?;
    }
    Ok((tokens.text(prompt), tokens.text(&drawn)))
}
