//! The workloads W1 to W7: `elman bench`, and `cargo bench --bench workloads`, which includes this file.
//!
//! | | |
//! |---|---|
//! | W1 | training step of the tutorial's network: windows of 8, embedding 42, Elman 42 -> 256 (or `--cell gru|lstm`), linear 256 -> 85 on the last step, Adam, batch 512 |
//! | W2 | W1 with an LSTM |
//! | W3 | stateful training step: embedding 64, LSTM of two layers of 512, loss on all steps, batch 64, sequence 64, Adam |
//! | W4 | greedy generation with W1's network, state carried, `--lanes` texts at once |
//! | W5 | forward only: 42 -> 256, batch 64, T 128, `--cell rnn|gru|lstm` |
//! | W6 | LSTM 768 -> 768, batch 16, T 1,024: forward and backward |
//! | W7 | batches of any shape: training step of a tagger, embedding 64, bidirectional LSTM 64 -> 64, linear 128 -> 9 on all steps, Adam; 3,200 sentences of 2 to 40 words and one of 256, 32 of about one length a batch, and the mean over an epoch |
//!
//! Before anything is timed, a small form of the workload must give on this device what the f64 reference gives.
#![allow(dead_code, reason = "each of the two programs uses a part")]

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Loss, Reduction, cross_entropy};
use elman::nn::{
    Cell, CharRnn, CharRnnOptions, Embedding, Init, LanguageModel, Linear, Lstm, Recurrent, RnnOptions, State,
};
use elman::optim::Adam;
use elman::text::{Corpus, Windows};
use elman::{Device, Generator, Graph, Plan, Plans, Precision, Trainer, rng};

/// How a workload is run.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Recurrent cell of W1 and W5
    #[arg(long, value_enum, default_value = "rnn")]
    pub cell: Kind,
    /// Texts at once in W4
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub lanes: u16,
    /// Recurrences as a dispatch for each step, or as one for all, whatever their sizes make of them (not W4)
    #[arg(long)]
    pub stepwise: Option<bool>,
    /// Recurrences without subgroups and with no weights kept in workgroup memory (not W4)
    #[arg(long)]
    pub baseline: bool,
    /// How recurrences store their weights (not W4)
    #[arg(long, value_enum, default_value = "f32")]
    pub precision: Stored,
    /// Timed runs, of W7 epochs [default: as many as fit into `--seconds`, at least 5]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: Option<u16>,
    /// Time to spend on a workload
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
}

/// What there is to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Training step of the tutorial's Elman network
    W1,
    /// W1 with an LSTM
    W2,
    /// Stateful training step of a stacked LSTM
    W3,
    /// Generation
    W4,
    /// Forward only
    W5,
    /// Long LSTM, forward and backward
    W6,
    /// Batches of any shape
    W7,
}

/// The cell of W1 and W5.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Rnn,
    Gru,
    Lstm,
}

impl Kind {
    fn cell(self) -> Cell {
        match self {
            Self::Rnn => Cell::Tanh,
            Self::Gru => Cell::Gru,
            Self::Lstm => Cell::Lstm,
        }
    }
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stored {
    F32,
    F16,
}

impl Stored {
    /// As it is asked for.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// What a result may differ by from the f64 reference of weights as they are, relative to the largest.
    fn tolerance(self) -> f64 {
        match self {
            Self::F32 => 1e-4,
            Self::F16 => 1e-2,
        }
    }
}

/// Something to time.
#[allow(clippy::large_enum_variant, reason = "only one value exists")]
pub enum Work {
    Training(Trainer),
    Epochs(Tagger),
    Forward(Plan),
    Generation(Generator, usize),
}

/// Characters of one timed run of W4.
const CHARACTERS: usize = 2048;

/// W7: a run is an epoch.
pub struct Tagger {
    trainer: Trainer<Plans<'static, 3, Loss>>,
    batches: Vec<[Array; 3]>,
    /// Mean of the first epoch.
    loss: f32,
    /// What its plans move and compute in an epoch.
    bytes: u64,
    flops: u64,
}

impl Tagger {
    fn epoch(&mut self) -> Result<()> {
        Ok(self.batches.iter().try_for_each(|batch| self.trainer.step_on(batch))?)
    }

    /// Two epochs, and the milliseconds that a new shape took longer in the first: the median over the shapes.
    fn recording(&mut self, device: &Device) -> Result<f64> {
        let mut times = [Vec::new(), Vec::new()];
        let mut new = Vec::new();
        for times in &mut times {
            (self.bytes, self.flops) = (0, 0);
            for batch in &self.batches {
                let (start, known) = (Instant::now(), self.trainer.plans().recorded());
                self.trainer.step_on(batch)?;
                device.synchronize()?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
                new.push(self.trainer.plans().recorded() > known);
                let count = self.plan().count();
                self.bytes += count.bytes;
                self.flops += count.flops;
            }
        }
        let losses = self.trainer.losses()?;
        self.loss = losses[..self.batches.len()].iter().sum::<f32>() / self.batches.len() as f32;
        let longer = times[0].iter().zip(&times[1]).zip(&new).filter(|(_, new)| **new);
        let mut longer: Vec<f64> = longer.map(|((first, later), _)| first - later).collect();
        longer.sort_by(f64::total_cmp);
        Ok(longer[longer.len() / 2])
    }

    /// That of the last batch.
    fn plan(&self) -> &Plan {
        self.trainer.plans().iter().next().expect("a step was run")
    }
}

impl Work {
    /// Runs it so many times without waiting in between, and waits.
    fn run(&mut self, device: &Device, times: usize) -> Result<()> {
        self.start(times)?;
        Ok(device.synchronize()?)
    }

    fn start(&mut self, times: usize) -> Result<()> {
        match self {
            Self::Training(trainer) => {
                let mut left = times;
                while left > 0 {
                    left -= trainer.step_up_to(left)?;
                }
            }
            Self::Epochs(tagger) => (0..times).try_for_each(|_| tagger.epoch())?,
            Self::Forward(plan) => plan.run_times(times)?,
            Self::Generation(generator, length) => {
                (0..times).try_for_each(|_| generator.generate(*length, |_| true))?;
            }
        }
        Ok(())
    }

    /// Lets a trainer know how long its steps take.
    fn read(&mut self) -> Result<()> {
        if let Self::Training(trainer) = self {
            trainer.losses()?;
        }
        Ok(())
    }

    /// The plan of a step, or of a token.
    pub fn plan(&self) -> &Plan {
        match self {
            Self::Training(trainer) => trainer.plan(),
            Self::Epochs(tagger) => tagger.plan(),
            Self::Forward(plan) => plan,
            Self::Generation(generator, _) => generator.plan(),
        }
    }

    /// Steps of a run, of which the times are the mean.
    fn steps(&self) -> usize {
        if let Self::Epochs(tagger) = self { tagger.batches.len() } else { 1 }
    }
}

/// The sizes of a workload: as published, or small, for the check against the reference.
struct Sizes {
    batch: usize,
    steps: usize,
    hidden: usize,
    embedding: usize,
}

fn sizes(workload: Workload, small: bool) -> Sizes {
    let (batch, steps, hidden, embedding) = match workload {
        Workload::W1 | Workload::W2 | Workload::W4 => (512, 8, 256, 42),
        Workload::W3 => (64, 64, 512, 64),
        Workload::W5 => (64, 128, 256, 42),
        Workload::W6 => (16, 1024, 768, 768),
        Workload::W7 => (32, 256, 64, 64),
    };
    if small {
        Sizes { batch: 10, steps: 5, hidden: 36, embedding: 9 }
    } else {
        Sizes { batch, steps, hidden, embedding }
    }
}

/// Builds a workload, and the numbers that the check compares after one run.
///
/// # Errors
/// The device cannot hold it.
pub fn build(device: &Device, workload: Workload, settings: &Settings, small: bool) -> Result<(Work, Check)> {
    let Sizes { batch, steps, hidden, embedding } = sizes(workload, small);
    let mut init = Init::new(rng::manual_seed(777));
    if matches!(workload, Workload::W5 | Workload::W6) {
        let cell = if workload == Workload::W6 { Cell::Lstm } else { settings.cell.cell() };
        let rnn = Recurrent::new(&mut init, "rnn", cell, RnnOptions::new(embedding, hidden))?;
        let parameters = init.upload(device)?;
        let shape = [steps, batch, embedding];
        let x = device.upload("x", &shape, &init.rng.randn(shape.iter().product()))?;
        let backward = workload == Workload::W6;
        let mut g = if backward { Graph::new(&parameters) } else { Graph::inference(&parameters) };
        plan_as(&mut g, settings)?;
        let x = g.input(&x)?;
        let (output, end) = rnn.forward(&mut g, x, InitialState::Zero)?;
        let tensor = if backward {
            let n = g.shape(output).iter().product();
            let seed = device.upload("d output", &[steps, batch, hidden], &init.rng.randn(n))?;
            g.backward(&[], &[(output, &seed)])?;
            parameters.get_gradient("rnn.weight_hh_l0").expect("a parameter of this name")
        } else {
            g.tensor(end.h)?
        };
        return Ok((Work::Forward(g.finish()?), Check::Tensor(tensor)));
    }
    if workload == Workload::W7 {
        return Ok((Work::Epochs(tagger(device, init, settings, small)?), Check::Losses));
    }
    let cell = match workload {
        Workload::W1 => settings.cell.cell(),
        Workload::W2 | Workload::W3 => Cell::Lstm,
        _ => Cell::Tanh,
    };
    let layers = if workload == Workload::W3 { 2 } else { 1 };
    let model = CharRnn::new(&mut init, CharRnnOptions::new(85, embedding, hidden).cell(cell).num_layers(layers))?;
    let parameters = init.upload(device)?;
    if workload == Workload::W4 {
        let mut generator = Generator::new(&model, &parameters, settings.lanes.into())?;
        generator.prime(&[10])?;
        let length = if small { 20 } else { CHARACTERS };
        return Ok((Work::Generation(generator, length), Check::Tokens));
    }
    let tokens: Vec<u32> = (0..60_000u64).map(|i| (i * i / 7 % 85) as u32).collect();
    let corpus = Corpus::new(device, &tokens, 85)?;
    let trainer = if workload == Workload::W3 {
        let windows = Windows::streams(&corpus, 0..tokens.len(), batch, steps)?;
        let state = model.state(device, batch)?;
        Trainer::new(&parameters, Adam::new(1e-3), |g| {
            plan_as(g, settings)?;
            stateful(g, &model, &windows, &state, batch)
        })?
    } else {
        let windows = Windows::new(&corpus, init.rng.randperm(tokens.len() - steps), steps)?;
        Trainer::new(&parameters, Adam::new(1e-3), |g| {
            plan_as(g, settings)?;
            let batch = windows.batch(g, batch)?;
            let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })?
    };
    Ok((Work::Training(trainer), Check::Losses))
}

/// W7. `tagger.py` has the same sentences, batches and initial weights.
fn tagger(device: &Device, mut init: Init, settings: &Settings, small: bool) -> Result<Tagger> {
    const VOCABULARY: usize = 5000;
    const TAGS: usize = 9;
    let Sizes { batch, hidden, embedding, .. } = sizes(Workload::W7, small);
    let sentences = batch * if small { 5 } else { 100 };
    let mut lengths: Vec<usize> =
        init.rng.randn(sentences).iter().map(|x| (14.0 + 5.0 * x).round().clamp(2.0, 40.0) as usize).collect();
    lengths.push(256);
    let words = |n| init.rng.randint(VOCABULARY as u32 - 1, n).iter().map(|word| word + 1).collect();
    let words: Vec<Vec<u32>> = lengths.iter().copied().map(words).collect();
    let tags: Vec<Vec<u32>> = words.iter().map(|words| words.iter().map(|word| word % TAGS as u32).collect()).collect();
    let batches = data::batches_by_length(&mut init.rng, &lengths, batch).into_iter().map(|rows| {
        let words = data::pick(&words, &rows);
        Ok([
            Array::pad_tokens("words", &words, 0, VOCABULARY)?,
            Array::pad_targets("tags", data::pick(&tags, &rows), TAGS)?,
            Array::lengths_of("lengths", &words)?,
        ])
    });
    let batches = batches.collect::<elman::Result<_>>()?;
    let table = Embedding::new(&mut init, "embedding", VOCABULARY, embedding)?;
    let lstm = Lstm::new(&mut init, "lstm", RnnOptions::new(embedding, hidden).bidirectional(true))?;
    let output = Linear::new(&mut init, "output", 2 * hidden, TAGS)?;
    let parameters = init.upload(device)?;
    let settings = settings.clone();
    let trainer = Trainer::on_batches(&parameters, Adam::new(1e-3), move |g, [words, tags, lengths]| {
        plan_as(g, &settings)?;
        let x = table.forward(g, words)?;
        let out = lstm.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
        let logits = output.forward(g, out.output)?;
        cross_entropy(g, logits, tags, Reduction::Mean)
    })?;
    Ok(Tagger { trainer, batches, loss: f32::NAN, bytes: 0, flops: 0 })
}

fn plan_as(g: &mut Graph, settings: &Settings) -> elman::Result<()> {
    g.set_stepwise(settings.stepwise);
    g.set_baseline(settings.baseline);
    g.set_precision(if settings.precision == Stored::F16 { Precision::F16 } else { Precision::F32 })
}

fn stateful(g: &mut Graph, model: &CharRnn, windows: &Windows, state: &State, batch: usize) -> elman::Result<Loss> {
    let batch = windows.batch_of_every_step(g, batch)?;
    let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(state))?;
    cross_entropy(g, logits, &batch.targets, Reduction::Mean)
}

/// What shows that a workload is right.
pub enum Check {
    /// The losses of three steps, or of an epoch.
    Losses,
    /// The tokens of a text.
    Tokens,
    /// A tensor after one run.
    Tensor(elman::Tensor),
}

/// Of a small form of it.
fn outcome(device: &Device, workload: Workload, settings: &Settings) -> Result<Vec<f64>> {
    let (mut work, check) = build(device, workload, settings, true)?;
    Ok(match (&mut work, check) {
        (Work::Training(trainer), _) => {
            (0..3).try_for_each(|_| trainer.step())?;
            trainer.losses()?.into_iter().map(f64::from).collect()
        }
        (Work::Epochs(tagger), _) => {
            tagger.epoch()?;
            tagger.trainer.losses()?.into_iter().map(f64::from).collect()
        }
        (Work::Generation(generator, length), _) => {
            let mut tokens = Vec::new();
            generator.generate(*length, |chunk| {
                tokens.extend(chunk.iter().map(|&token| f64::from(token)));
                true
            })?;
            tokens
        }
        (work, Check::Tensor(tensor)) => {
            work.run(device, 1)?;
            tensor.to_vec_f64()?
        }
        _ => unreachable!("a forward pass is checked by a tensor"),
    })
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::W1, Self::W2, Self::W3, Self::W4, Self::W5, Self::W6, Self::W7];

    /// As it is asked for.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// How far a small form of it is off the f64 reference on this device, relative to the largest value.
///
/// # Errors
/// Further than rounding: it is wrong on this device.
pub fn check(device: &Device, workload: Workload, settings: &Settings) -> Result<f64> {
    let exact = Settings { precision: Stored::F32, ..settings.clone() };
    let (got, want) = (outcome(device, workload, settings)?, outcome(&Device::reference(), workload, &exact)?);
    let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    // The largest difference; NaN if there is one.
    let error = got
        .iter()
        .zip(&want)
        .map(|(got, want)| (got - want).abs() / scale)
        .fold(0.0, |most: f64, error| if error > most || error.is_nan() { error } else { most });
    ensure!(error <= settings.precision.tolerance(), "{workload:?} is wrong on this device by {error:.1e}");
    Ok(error)
}

/// The times of a workload, and what one of its steps is.
pub struct Measured {
    pub workload: Workload,
    /// Of [`check`].
    pub error: f64,
    /// Milliseconds of a step, in order of size.
    pub times: Vec<f64>,
    /// Steps without waiting in between.
    pub in_a_row: usize,
    pub dispatches: u64,
    pub submits: u64,
    pub bytes: u64,
    pub flops: u64,
    pub peak_bytes: u64,
    /// Microseconds on the host to encode and submit; none of a generator, which waits for its tokens, or on the CPU.
    pub host: Option<f64>,
    /// Milliseconds to record a plan of W7.
    pub recording: f64,
    work: Work,
}

impl Measured {
    /// The time that so large a share of the times is at most, in milliseconds.
    pub fn at(&self, share: f64) -> f64 {
        self.times[((self.times.len() - 1) as f64 * share).round() as usize]
    }

    /// The plan of a step, or of a token.
    pub fn plan(&self) -> &Plan {
        self.work.plan()
    }

    /// How weights are stored: a generator has its own plan.
    pub fn precision(&self, settings: &Settings) -> Stored {
        if self.workload == Workload::W4 { Stored::F32 } else { settings.precision }
    }

    /// Of W4.
    pub fn characters_per_second(&self, settings: &Settings) -> Option<f64> {
        let characters = (CHARACTERS * usize::from(settings.lanes)) as f64;
        (self.workload == Workload::W4).then(|| characters / self.at(0.5) * 1e3)
    }

    /// Of W7: batches of an epoch, plans, and their bytes.
    pub fn epoch(&self) -> Option<(usize, usize, u64)> {
        let Work::Epochs(tagger) = &self.work else { return None };
        Some((tagger.batches.len(), tagger.trainer.plans().len(), tagger.trainer.plans().bytes()))
    }

    /// All of it.
    pub fn json(&self, device: &Device, settings: &Settings) -> serde_json::Value {
        let mut line = serde_json::json!({
            "workload": self.workload.name(), "device": device.describe(), "precision": self.precision(settings).name(),
            "error": self.error, "median_ms": self.at(0.5), "min_ms": self.times[0], "p25_ms": self.at(0.25), "p75_ms": self.at(0.75),
            "p90_ms": self.at(0.9), "runs": self.times.len(), "in_a_row": self.in_a_row, "dispatches": self.dispatches,
            "submits": self.submits, "bytes": self.bytes, "flops": self.flops, "peak_bytes": self.peak_bytes,
            "stepwise": settings.stepwise, "baseline": settings.baseline,
        });
        if let Some(host) = self.host {
            line["host_us"] = host.into();
        }
        if let Some(characters) = self.characters_per_second(settings) {
            line["lanes"] = settings.lanes.into();
            line["chars_per_second"] = characters.into();
        }
        if matches!(self.workload, Workload::W1 | Workload::W5) {
            line["cell"] = format!("{:?}", settings.cell).to_lowercase().into();
        }
        if let (Some((steps, plans, bytes)), Work::Epochs(tagger)) = (self.epoch(), &self.work) {
            line["steps"] = steps.into();
            line["first_loss"] = tagger.loss.into();
            line["plans"] = plans.into();
            line["plan_bytes"] = bytes.into();
            line["recording_ms"] = self.recording.into();
        }
        line
    }
}

/// Checks a workload, then times it.
///
/// # Errors
/// It is wrong on this device, or the device cannot hold it.
pub fn measure(device: &Device, workload: Workload, settings: &Settings) -> Result<Measured> {
    let error = check(device, workload, settings)?;
    let (mut work, _) = build(device, workload, settings, false)?;
    let recording = if let Work::Epochs(tagger) = &mut work { tagger.recording(device)? } else { 0.0 };
    let steps = work.steps();
    let mut first = f64::INFINITY;
    for _ in 0..2 {
        let start = Instant::now();
        work.run(device, 1)?;
        work.read()?;
        first = first.min(start.elapsed().as_secs_f64());
    }
    // On a GPU as others are timed: runs of 5 ms without waiting in between.
    let in_a_row = if device.is_gpu() { (0.005 / first).ceil().min(500.0) as usize } else { 1 };
    let fit = (settings.seconds / (first * in_a_row as f64).max(1e-6)) as usize;
    let runs = settings.runs.map_or(fit.clamp(5, 500), usize::from);
    (0..runs / 10).try_for_each(|_| work.run(device, in_a_row))?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        work.run(device, in_a_row)?;
        times.push(start.elapsed().as_secs_f64() * 1e3 / (in_a_row * steps) as f64);
    }
    times.sort_by(f64::total_cmp);
    // What the host does for a single run: encoding and submitting, while the device has nothing else to do.
    let before = device.count();
    let singles = if device.is_gpu() { runs.min(20) } else { 1 };
    let mut host = Vec::new();
    for _ in 0..singles {
        let start = Instant::now();
        work.start(1)?;
        host.push(start.elapsed().as_secs_f64() * 1e6 / steps as f64);
        device.synchronize()?;
    }
    let after = device.count();
    host.sort_by(f64::total_cmp);
    // A generator waits for its tokens.
    let host = (device.is_gpu() && workload != Workload::W4).then(|| host[host.len() / 2]);
    let count = work.plan().count();
    let per_run = |n: u64| n / (singles * steps) as u64;
    let (submits, dispatches) =
        (per_run(after.submits - before.submits), per_run(after.dispatches - before.dispatches));
    // A generator's plan is of one token, whose dispatches may be those of many.
    let repeats =
        if workload == Workload::W4 { CHARACTERS as u64 } else { dispatches / count.dispatches.max(1) as u64 };
    let (bytes, flops) = match &work {
        Work::Epochs(tagger) => (tagger.bytes / steps as u64, tagger.flops / steps as u64),
        _ => (count.bytes * repeats, count.flops * repeats),
    };
    let peak_bytes = after.peak_bytes;
    Ok(Measured {
        workload,
        error,
        times,
        in_a_row,
        dispatches,
        submits,
        bytes,
        flops,
        peak_bytes,
        host,
        recording,
        work,
    })
}
