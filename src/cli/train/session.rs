//! A training as it goes: all of it that lies on the device, where it stands, and what is shown of it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use elman::generate::{Generator, Sampling};
use elman::nn::functional::{InitialState, Loss, Reduction, cross_entropy};
use elman::nn::{CharRnn, Init, LanguageModel as _, Parameters, State};
use elman::schedule::{EarlyStopping, Mode};
use elman::{Device, Error, Evaluator, Graph, Trainer, io, rng};
use serde::{Deserialize, Serialize};

use super::figures::{Figures, Observer};
use super::settings::Recipe;
use super::view::{Evaluation, Introduction, View};
use super::watch::{self, Watch};
use super::{Job, Options};
use crate::cli::is_closed_pipe;
use crate::cli::model::{Config, describe, find};
use crate::cli::shared::run::{BEST, Epoch, Run};
use crate::cli::shared::{Failures, INTERRUPTED};
use crate::cli::streams::Streams;
use crate::cli::tokens::Tokens;

/// Steps between evaluations, at most, if nothing else is said.
const MOST_BETWEEN: usize = 2000;

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

/// A part of the text, and the state in which it is read.
struct Part {
    streams: Streams,
    state: State,
}

impl Part {
    fn loss(&self, g: &mut Graph, network: &CharRnn) -> elman::Result<Loss> {
        let batch = self.streams.batch(g)?;
        let logits = network.forward_every_step(g, &batch.tokens, InitialState::Carried(&self.state))?;
        cross_entropy(g, logits, &batch.targets, Reduction::Mean)
    }
}

pub struct Session<'a> {
    job: &'a Job,
    recipe: &'a Recipe,
    device: &'a Device,
    network: CharRnn,
    parameters: Parameters,
    /// What is evaluated, written with and saved.
    kept: Parameters,
    training: Part,
    held_out: Part,
    trainer: Trainer,
    evaluator: Evaluator,
    generator: Generator,
    prompt: Vec<u32>,
    run: Run,
    failures: Failures,
    progress: Progress,
    /// Steps of a pass, in all, and from one evaluation to the next.
    pass: usize,
    steps: usize,
    every: usize,
    view: View,
    watch: Option<Watch<'a>>,
    is_ended_by_hand: bool,
    /// Whoever read standard output has left.
    is_unread: bool,
}

impl<'a> Session<'a> {
    /// Everything of the device, in the order that it is drawn; and the folder.
    pub fn build(options: &Options, job: &'a Job, device: &'a Device) -> Result<Self> {
        let (text, settings, recipe) = (&job.text, &job.started.settings, &job.started.recipe);
        let tokens = text.tokens();
        let mut init = Init::new(rng::manual_seed(recipe.seed.into()));
        let network = CharRnn::new(&mut init, recipe.sizes(tokens.len()))?;
        let parameters = init.upload(device)?;
        if let Some(path) = settings.init_from.as_ref().filter(|_| !options.resume) {
            io::load(find(path)?, &parameters)?;
        }
        let split = text.len() - recipe.held_out;
        let part = |range, batch| {
            let streams = Streams::new(device, text, range, batch, recipe.window)?;
            anyhow::Ok(Part { streams, state: network.state(device, batch)? })
        };
        let training = part(0..split, recipe.batch)?;
        let held_out_batch = recipe.batch.min(recipe.held_out / (4 * recipe.window)).max(1);
        let held_out =
            part(split..text.len(), held_out_batch).context("of the held-out end of the text (--held-out)")?;
        let pass = training.streams.steps();
        let steps = recipe.epochs.saturating_mul(pass).min(recipe.max_steps.unwrap_or(usize::MAX));
        let trainer = Trainer::new(&parameters, recipe.optimizer(steps), |g| training.loss(g, &network))?;
        let kept = trainer.averaged().unwrap_or(&parameters).clone();
        let evaluator = Evaluator::new(&kept, |g| held_out.loss(g, &network))?;
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
        let mut run = Run::start(&job.out, Duration::from_secs(options.save_every), options.keep.max(1))?;
        run.set_config(serde_json::to_value(&job.started)?);
        let view = View::new(
            &options.view,
            options.watch.dashboard,
            steps,
            training.streams.tokens_of_a_step(),
            tokens.unit(),
        );
        Ok(Self {
            job,
            recipe,
            device,
            network,
            parameters,
            kept,
            training,
            held_out,
            trainer,
            evaluator,
            generator,
            prompt,
            run,
            failures: Failures::default(),
            progress: Progress {
                evaluations: 0,
                best: None,
                stopping: stopping(recipe)?,
                has_stopped: false,
                since: 0,
                seconds: 0.0,
            },
            pass,
            steps,
            every: recipe.eval_every.unwrap_or(pass.div_ceil(pass.div_ceil(MOST_BETWEEN))),
            view,
            watch: None,
            is_ended_by_hand: false,
            is_unread: false,
        })
    }

    /// Goes back to the newest checkpoint in the folder.
    pub fn resume(&mut self) -> Result<()> {
        let checkpoint = self.run.last()?;
        self.progress = checkpoint.get("progress")?;
        self.run.resume(&checkpoint)?;
        let (done, steps) = (self.done(), self.steps);
        ensure!(
            done as u64 == checkpoint.steps() && self.progress.since <= done,
            "the checkpoint in {} contradicts itself: go on from another",
            self.job.out.display()
        );
        self.trainer.restore(&checkpoint)?;
        checkpoint.restore_state("training", &self.training.state)?;
        // The patience may be another than before.
        self.progress.has_stopped = false;
        self.progress.stopping = stopping(self.recipe)?;
        for (_, loss) in self.run.held_out() {
            self.progress.has_stopped = self.progress.stopping.stop(loss) && self.recipe.patience > 0;
        }
        ensure!(
            done < steps,
            "the run has done {done} steps, and {steps} are asked for in all: give more --epochs or --max-steps"
        );
        ensure!(
            !self.progress.has_stopped,
            "the run has ended, for its held-out loss fell no longer: give more --patience, or 0"
        );
        Ok(())
    }

    /// Says what it will be, and how long it may take.
    pub fn introduce(&mut self) -> Result<()> {
        let done = self.done();
        self.training.streams.load(&self.job.text, done % self.pass)?;
        let seconds = if done == 0 { self.time_of_a_step()? } else { None };
        let introduced = self.view.introduce(&Introduction {
            device: self.device,
            text: &self.job.text,
            held_out: self.recipe.held_out,
            network: describe(&self.recipe.sizes(self.tokens().len()), &self.parameters),
            recipe: self.recipe,
            pass: self.pass,
            steps: self.steps,
            every: self.every,
            seconds,
            out: &self.job.out,
            done,
        });
        self.note_said(introduced);
        Ok(())
    }

    /// Begins to show how it goes on a page or on the whole terminal, if that is wanted.
    pub fn watch(&mut self, options: &watch::Options) -> Result<()> {
        if options.is_any() {
            let networks = (&self.network, &self.parameters, &self.kept);
            let every = options.every();
            let observer = Observer::new(
                self.device,
                &self.job.text,
                networks,
                self.recipe,
                (&self.prompt, &self.training.state),
                every,
            )?;
            let (unit, held_out) = (self.tokens().unit(), self.run.held_out());
            let figures = Figures { steps: self.steps, unit, held_out, ..Figures::default() };
            self.watch = Some(Watch::new(options, observer, figures, &self.job.out)?);
        }
        Ok(())
    }

    /// Runs, evaluates and saves until there is an end to it.
    pub fn train(&mut self) -> Result<()> {
        while self.done() < self.steps && !self.progress.has_stopped && !self.is_interrupted() {
            self.train_some()?;
            let done = self.done();
            let is_end_of_pass = self.recipe.eval_every.is_none() && done.is_multiple_of(self.pass);
            let is_due = is_end_of_pass || done.is_multiple_of(self.every) || done == self.steps;
            if is_due && done > self.progress.since {
                self.evaluate()?;
            }
            if is_due || self.is_ended_by_hand || self.run.is_save_due() {
                let saved = self.save();
                self.failures.note("a checkpoint", saved);
            }
        }
        Ok(())
    }

    /// Says how it ended, which may be in an error, and keeps what there is.
    pub fn end(mut self, trained: Result<()>) -> Result<ExitCode> {
        if let Some(watch) = &mut self.watch {
            self.failures.note("the live page", watch.end());
        }
        let out = &self.job.out;
        if let Err(error) = trained {
            if !is_astray(&error) {
                return Err(error);
            }
            self.run.write(&mut self.failures);
            let kept = match self.progress.best {
                Some((_, step)) => format!("the best model, of step {step}, is in {}", out.join(BEST).display()),
                None => "no model was kept".into(),
            };
            return Err(error.context("the training went astray; a smaller --lr, or --clip, may help").context(kept));
        }
        // Ended before its first evaluation, what there is is better than nothing.
        if self.progress.best.is_none() {
            self.save_model()?;
            self.run.write(&mut self.failures);
        }
        if self.done() == 0 {
            self.save()?;
        }
        let (Progress { best, has_stopped, .. }, is_interrupted) = (&self.progress, self.is_interrupted());
        let said = self.view.ended(*best, self.done(), *has_stopped, is_interrupted, out);
        self.note_said(said);
        if self.is_unread {
            return Ok(ExitCode::SUCCESS);
        }
        Ok(if is_interrupted { ExitCode::from(INTERRUPTED) } else { self.failures.exit_code() })
    }

    fn tokens(&self) -> &'a Tokens {
        self.job.text.tokens()
    }

    /// Steps so far.
    fn done(&self) -> usize {
        self.run.losses().len()
    }

    /// Whether somebody wants it to end here.
    fn is_interrupted(&self) -> bool {
        self.run.is_interrupted() || self.is_ended_by_hand || self.is_unread
    }

    fn note_said(&mut self, said: Result<()>) {
        match said {
            Err(error) if is_closed_pipe(&error) => self.is_unread = true,
            said => self.failures.note("standard output", said),
        }
    }

    /// Runs steps until something else is due.
    fn train_some(&mut self) -> Result<()> {
        let Part { streams, state } = &mut self.training;
        let done = self.run.losses().len();
        let of_pass = done % self.pass;
        if streams.is_first_of_shard(of_pass) {
            streams.load(&self.job.text, of_pass)?;
            self.trainer.start_epoch()?;
        }
        if of_pass == 0 {
            state.zero()?;
        }
        let until_evaluation = self.every - done % self.every;
        let until_end = (self.pass - of_pass).min(self.steps - done);
        let most = streams.until_next_shard(of_pass).min(until_evaluation).min(until_end);
        let start = Instant::now();
        self.is_ended_by_hand = self.run.train(
            &mut self.trainer,
            most,
            || Ok(usize::MAX),
            |losses, trainer| {
                let rate = self.view.progress.stepped(losses, trainer.lr());
                let Some(watch) = &mut self.watch else { return Ok(false) };
                let mut is_enough = false;
                let shown = watch.stepped(losses, trainer, streams, rate).map(|ends| is_enough = ends);
                self.failures.note("what shows the training", shown);
                Ok(is_enough)
            },
        )?;
        self.progress.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }

    /// The held-out loss, a line of the table, a sample; the best model is kept.
    fn evaluate(&mut self) -> Result<()> {
        let step = self.done();
        let val_loss = self.held_out_loss()?;
        self.progress.has_stopped = self.progress.stopping.stop(val_loss) && self.recipe.patience > 0;
        let is_best = self.progress.best.is_none_or(|(best, _)| val_loss < best);
        if is_best {
            self.progress.best = Some((val_loss, step));
            let saved = self.save_model();
            self.failures.note("the best model", saved);
        }
        let recent = &self.run.losses()[self.progress.since..];
        let train_loss = recent.iter().map(|&loss| f64::from(loss)).sum::<f64>() / recent.len() as f64;
        let characters = (recent.len() * self.training.streams.tokens_of_a_step()) as f64;
        let row = Epoch {
            epoch: self.progress.evaluations,
            train_loss,
            val_loss,
            seconds: self.progress.seconds,
            chars_per_second: characters / self.progress.seconds,
            device: self.device.describe(),
            steps_so_far: Some(step),
        };
        let (sample, lr) = (self.sample()?, self.trainer.lr());
        let shown = self.view.evaluated(&Evaluation { row: &row, pass: self.pass, is_best, lr, sample: &sample });
        self.note_said(shown);
        if let Some(watch) = &mut self.watch {
            self.failures.note("the live page", watch.evaluated(step, val_loss));
        }
        self.run.add_epoch(row);
        self.run.write(&mut self.failures);
        self.progress.evaluations += 1;
        (self.progress.since, self.progress.seconds) = (step, 0.0);
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let mut checkpoint = self.trainer.checkpoint()?;
        checkpoint.set_state("training", &self.training.state)?;
        checkpoint.set("progress", &self.progress)?;
        self.run.save(checkpoint)
    }

    fn save_model(&self) -> Result<()> {
        let tokens = self.tokens();
        let config = Config::new(self.recipe.sizes(tokens.len()), self.recipe.window, tokens);
        Ok(io::save(self.run.file(BEST), &self.kept, config.metadata(tokens)?)?)
    }

    /// What a step takes, by some that are taken back.
    fn time_of_a_step(&mut self) -> Result<Option<f64>> {
        const MOST: usize = 8;
        if self.pass < 2 {
            return Ok(None);
        }
        let before = self.trainer.checkpoint()?;
        let mut times = Vec::new();
        let all = Instant::now();
        for _ in 0..MOST.min(self.pass) {
            let start = Instant::now();
            self.trainer.step()?;
            if self.trainer.losses().is_err() {
                // The training itself will say what it is.
                break;
            }
            times.push(start.elapsed().as_secs_f64());
            if all.elapsed() > Duration::from_secs(2) {
                break;
            }
        }
        self.trainer.restore(&before)?;
        self.training.state.zero()?;
        // The first is for the driver to warm up.
        let rest = times.get(1..).filter(|rest| !rest.is_empty()).unwrap_or(&times);
        Ok((!rest.is_empty()).then(|| rest.iter().sum::<f64>() / rest.len() as f64))
    }

    /// The mean loss of all that is held out, in nats for each token.
    fn held_out_loss(&mut self) -> Result<f64> {
        let Part { streams, state } = &mut self.held_out;
        state.zero()?;
        let (mut sum, mut step) = (0.0, 0);
        while step < streams.steps() {
            streams.load(&self.job.text, step)?;
            let losses = self.evaluator.losses(streams.until_next_shard(step))?;
            sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            step += losses.len();
        }
        Ok(sum / step as f64)
    }

    /// The prompt, and what the network writes now.
    fn sample(&mut self) -> Result<(String, String)> {
        let mut drawn = Vec::new();
        if self.recipe.sample_length > 0 {
            self.generator.prime(&self.prompt)?;
            self.generator.generate(self.recipe.sample_length, |tokens| {
                drawn.extend_from_slice(tokens);
                true
            })?;
        }
        Ok((self.tokens().text(&self.prompt), self.tokens().text(&drawn)))
    }
}

fn stopping(recipe: &Recipe) -> elman::Result<EarlyStopping> {
    EarlyStopping::new(Mode::Min, recipe.patience.saturating_sub(1), 0.0)
}

/// Whether a loss is not finite: what was best stays.
fn is_astray(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::NotFinite { .. }))
}
