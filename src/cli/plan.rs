//! `elman plan`: what a step will be, and need, before anything is allocated.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{CharRnn, CharRnnOptions, Init, LanguageModel, Parameters};
use elman::text::{Corpus, Windows};
use elman::{DType, Device, Error, Generator, PlanCount, Recorder, Tensor, Trainer};
use indicatif::DecimalBytes;
use serde::Serialize;

use super::model::Model;
use super::shared::{DeviceArgs, say, with_separators};
use super::tokens::Tokens;
use super::train::settings::{CellName, Recipe, Settings};

/// Show the plan of a training step or of a token: commands, bytes, FLOPs, memory, and whether the device can hold it
#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Subcommand)]
pub enum What {
    /// A training step of a character network
    Train(Train),
    /// A token of every text that a character network writes at once
    Sample(Sample),
}

#[derive(Args)]
pub struct Train {
    /// Texts to learn, as for `elman train`; without one, --tokens and --vocabulary say what it would be
    #[arg(value_name = "TEXT", conflicts_with_all = ["tokens", "vocabulary"])]
    pub texts: Vec<String>,
    /// Length of the text
    #[arg(long, default_value_t = 1_000_000, value_parser = size)]
    pub tokens: usize,
    /// Different tokens
    #[arg(long, default_value_t = 85, value_parser = size)]
    pub vocabulary: usize,
    #[command(flatten)]
    pub settings: Box<Settings>,
    /// Loss on the last token of a window alone, each window from a zero state
    #[arg(long)]
    pub last_step: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct Sample {
    #[command(flatten)]
    pub network: Network,
    /// Texts at once
    #[arg(long, default_value_t = 1, value_parser = size)]
    pub lanes: usize,
    #[command(flatten)]
    pub output: Output,
}

/// Its sizes.
#[derive(Args)]
pub struct Network {
    /// That of a model file or of a run's folder, in place of these sizes
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["cell", "layers", "hidden", "embedding", "vocabulary"])]
    pub model: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "gru")]
    pub cell: CellName,
    /// Recurrent layers
    #[arg(long, default_value_t = 1, value_parser = size)]
    pub layers: usize,
    /// Hidden size
    #[arg(long, default_value_t = 256, value_parser = size)]
    pub hidden: usize,
    /// Values for each token
    #[arg(long, default_value_t = 42, value_parser = size)]
    pub embedding: usize,
    /// Tokens
    #[arg(long, default_value_t = 85, value_parser = size)]
    pub vocabulary: usize,
}

#[derive(Args)]
pub struct Output {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// List every command, with its grid and its tensors
    #[arg(long)]
    pub commands: bool,
    /// One JSON object
    #[arg(long, conflicts_with = "commands")]
    pub json: bool,
}

/// A size: at least 1, and few enough to be multiplied.
fn size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size @ 1..=0x7fff_ffff) => Ok(size),
        _ => Err("it is not from 1 to 2147483647".into()),
    }
}

impl Network {
    fn sizes(&self) -> Result<CharRnnOptions> {
        if let Some(model) = &self.model {
            return Ok(Model::config_of(model)?.0.sizes);
        }
        let options = CharRnnOptions::new(self.vocabulary, self.embedding, self.hidden);
        Ok(options.cell(self.cell.into()).num_layers(self.layers))
    }
}

type Record<'a> = dyn Fn(&CharRnn, &Parameters, Option<bool>) -> elman::Result<Recorder> + 'a;

/// What is looked at.
struct Subject<'a> {
    network: CharRnnOptions,
    what: String,
    record: Box<Record<'a>>,
    output: &'a Output,
}

/// Shows the plan; fails if the device cannot hold it.
pub fn run(options: &Options) -> Result<ExitCode> {
    let subject = match &options.what {
        What::Train(train) => training(train)?,
        What::Sample(sample) => sampling(sample)?,
    };
    subject.show()
}

fn describe(network: CharRnnOptions) -> String {
    let CharRnnOptions { vocabulary, embedding, hidden, cell, num_layers, .. } = network;
    format!("{cell:?}, {num_layers} x {hidden}, embedding {embedding}, {vocabulary} tokens")
}

fn training(train: &Train) -> Result<Subject<'_>> {
    let (settings, last_step) = (&*train.settings, train.last_step);
    let from = settings.init_network()?;
    let (vocabulary, recipe) = if train.texts.is_empty() {
        let (tokens, sizes) = from.unzip();
        let known = tokens.or(settings.is_bytes().then_some(Tokens::Bytes));
        let vocabulary = known.map_or(train.vocabulary, |tokens| tokens.len());
        (vocabulary, settings.recipe(train.tokens, sizes.as_ref())?)
    } else {
        let (text, recipe) = settings.text(&train.texts, from.as_ref())?;
        (text.tokens().len(), recipe)
    };
    let network = recipe.sizes(vocabulary);
    let Recipe { window, batch, optimizer, .. } = recipe;
    let loss_on = if last_step { "the last token" } else { "every token" };
    let what = format!(
        "training step: {}; windows of {window}, batch {batch}, loss on {loss_on}, {optimizer:?}",
        describe(network)
    );
    let record = move |model: &CharRnn, parameters: &Parameters, wide: Option<bool>| {
        let device = parameters.device();
        // Of the least text there can be.
        let corpus = Corpus::new(device, &vec![0; window + 1], network.vocabulary)?;
        let windows = Windows::new(&corpus, vec![0], window)?;
        let state = (!last_step).then(|| model.state(device, batch)).transpose()?;
        Trainer::record(parameters, recipe.optimizer(1), |g| {
            if let Some(wide) = wide {
                g.set_wide(wide);
            }
            let Some(state) = &state else {
                let batch = windows.batch(g, batch)?;
                let logits = model.forward(g, &batch.tokens, InitialState::Zero)?;
                return cross_entropy(g, logits, &batch.targets, Reduction::Mean);
            };
            let batch = windows.batch_of_every_step(g, batch)?;
            let logits = model.forward_every_step(g, &batch.tokens, InitialState::Carried(state))?;
            cross_entropy(g, logits, &batch.targets, Reduction::Mean)
        })
    };
    Ok(Subject { network, what, record: Box::new(record), output: &train.output })
}

fn sampling(sample: &Sample) -> Result<Subject<'_>> {
    let (network, lanes) = (sample.network.sizes()?, sample.lanes);
    let what = format!("a token of {lanes} texts: {}", describe(network));
    let record =
        move |model: &CharRnn, parameters: &Parameters, _: Option<bool>| Generator::record(model, parameters, lanes);
    Ok(Subject { network, what, record: Box::new(record), output: &sample.output })
}

/// How many tensors are named.
const SAID: usize = 5;

/// What is shown of a plan.
#[derive(Serialize)]
struct Shown {
    what: String,
    device: String,
    parameters: usize,
    dispatches: usize,
    copies: usize,
    clears: usize,
    submits: usize,
    bytes: u64,
    rereads: u64,
    flops: u64,
    /// Bytes of all tensors.
    memory: u64,
    /// Bytes that are free, where that is known.
    free: Option<u64>,
    /// Bytes of the largest tensor that the device can have, if that has a bound.
    most_bytes_of_a_tensor: Option<u64>,
    notes: Vec<String>,
    kernels: Vec<OfKernel>,
    largest: Vec<Large>,
    /// A sentence on each thing that does not fit.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct OfKernel {
    kernel: &'static str,
    calls: usize,
    flops: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Large {
    tensor: String,
    bytes: u64,
}

impl Subject<'_> {
    fn show(&self) -> Result<ExitCode> {
        let Some(device) = self.output.device.open()? else { return Ok(ExitCode::SUCCESS) };
        let mut init = Init::without_values();
        let model = CharRnn::new(&mut init, self.network)?;
        let record = |device: &Device, wide| {
            let parameters = init.upload(device)?;
            let count = parameters.iter().map(|(_, tensor)| tensor.len()).sum();
            Ok::<_, Error>((count, (self.record)(&model, &parameters, wide)?))
        };
        let (parameters, recorded, refused) = match record(&device, None) {
            Ok((parameters, recorded)) => (parameters, recorded, None),
            // As it would be if the device had no limits.
            Err(error @ Error::Limit { .. }) => {
                let is_wide = device.adapter().is_some_and(|adapter| !adapter.is_software());
                let Ok((parameters, recorded)) = record(&Device::cpu(), Some(is_wide)) else { Err(error)? };
                (parameters, recorded, Some(error))
            }
            Err(error) => Err(error)?,
        };
        let shown = Shown::new(self.what.clone(), &device, parameters, &recorded, refused);
        if self.output.json {
            say!("{}", serde_json::to_string_pretty(&shown)?);
        } else {
            shown.say()?;
            if self.output.commands {
                say!("\n{}", recorded.to_string().trim_end());
            }
        }
        Ok(if shown.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Shown {
    fn new(what: String, device: &Device, parameters: usize, recorded: &Recorder, refused: Option<Error>) -> Self {
        let PlanCount { dispatches, copies, clears, submits, bytes, rereads, flops, memory, .. } = recorded.count();
        let mut kernels: BTreeMap<&str, OfKernel> = BTreeMap::new();
        let mut tensors: BTreeMap<String, u64> = BTreeMap::new();
        for dispatch in recorded.dispatches() {
            let kernel = dispatch.kernel().name;
            let of = kernels.entry(kernel).or_insert(OfKernel { kernel, calls: 0, flops: 0, bytes: 0 });
            (of.calls, of.flops, of.bytes) = (of.calls + 1, of.flops + dispatch.flops(), of.bytes + dispatch.bytes());
            tensors.extend(dispatch.tensors().iter().map(|tensor| (format!("{tensor:?}"), bytes_of(tensor))));
        }
        let mut kernels: Vec<_> = kernels.into_values().collect();
        kernels.sort_by_key(|of| std::cmp::Reverse((of.flops, of.bytes)));
        let mut largest: Vec<_> = tensors.into_iter().map(|(tensor, bytes)| Large { tensor, bytes }).collect();
        largest.sort_by_key(|large| std::cmp::Reverse(large.bytes));
        let most = device.adapter().map(elman::device::Adapter::largest_tensor);
        let free = free(device);
        let mut problems = Vec::new();
        if let Some(most) = most {
            let mut beyond = largest.iter().filter(|large| large.bytes > most);
            let sentence = |Large { tensor, bytes }: &Large| {
                format!(
                    "{tensor} takes {}, and a tensor of this device at most {}",
                    DecimalBytes(*bytes),
                    DecimalBytes(most)
                )
            };
            problems.extend(beyond.by_ref().take(SAID).map(sentence));
            let others = beyond.count();
            if others > 0 {
                problems.push(format!("{others} other tensors"));
            }
        }
        if let (true, Some(refused)) = (problems.is_empty(), refused) {
            problems.push(refused.to_string());
        }
        if let Some(free) = free.filter(|&free| memory > free) {
            problems.push(format!("it takes {}, and {} are free", DecimalBytes(memory), DecimalBytes(free)));
        }
        largest.truncate(SAID);
        Self {
            what,
            device: device.describe(),
            parameters,
            dispatches,
            copies,
            clears,
            submits,
            bytes,
            rereads,
            flops,
            memory,
            free,
            most_bytes_of_a_tensor: most,
            notes: recorded.notes().into(),
            kernels,
            largest,
            problems,
        }
    }

    fn say(&self) -> Result<()> {
        let Self { dispatches, copies, clears, submits, .. } = self;
        say!("{}\non {}\n", self.what, self.device);
        say!("  parameters   {}", with_separators(self.parameters as u64));
        say!(
            "  commands     {dispatches} dispatches, {copies} copies, {clears} clears; in about {submits} {}",
            if *submits == 1 { "submission" } else { "submissions" }
        );
        say!("  arithmetic   {}", operations(self.flops));
        say!("  traffic      {}, and {} of weights read again", DecimalBytes(self.bytes), DecimalBytes(self.rereads));
        say!(
            "  memory       {}{}",
            DecimalBytes(self.memory),
            match self.free {
                Some(free) => format!(" of {} that are free", DecimalBytes(free)),
                None => "; how much there is the driver does not say".into(),
            }
        );
        if let Some(most) = self.most_bytes_of_a_tensor {
            say!("  a tensor     {} at most", DecimalBytes(most));
        }
        for note in &self.notes {
            say!("  note         {note}");
        }
        say!("\n  {:24}calls      MFLOP         MB", "kernel");
        for OfKernel { kernel, calls, flops, bytes } in &self.kernels {
            say!("  {kernel:24}{calls:5} {:10.1} {:10.1}", *flops as f64 / 1e6, *bytes as f64 / 1e6);
        }
        say!("\n  largest tensors");
        for Large { tensor, bytes } in &self.largest {
            say!("  {:>12}  {tensor}", DecimalBytes(*bytes).to_string());
        }
        say!("");
        for problem in &self.problems {
            say!("does not fit: {problem}");
        }
        if self.problems.is_empty() {
            say!("it fits{}", if self.free.is_none() { ", as far as limits tell" } else { "" });
        }
        Ok(())
    }
}

fn bytes_of(tensor: &Tensor) -> u64 {
    match tensor.dtype() {
        DType::F32 | DType::U32 => 4 * tensor.len() as u64,
    }
}

fn operations(flops: u64) -> String {
    match flops {
        0..1_000_000_000 => format!("{:.1} MFLOP", flops as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.1} GFLOP", flops as f64 / 1e9),
        _ => format!("{:.1} TFLOP", flops as f64 / 1e12),
    }
}

/// Bytes of memory that are free for what runs on the CPU; of a GPU's, and of other systems', none is known.
fn free(device: &Device) -> Option<u64> {
    if device.adapter().is_some_and(|adapter| !adapter.is_software()) {
        return None;
    }
    let lines = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = lines.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}
