//! textgenrnn 2.0.0 (MIT), `textgenrnn_weights.hdf5` of PyPI's `textgenrnn`: 40 characters through an embedding and two LSTMs of 128, the
//! average of all three over time, weighted by attention, and from it the next character. It learned lines of many kinds; `--train` makes
//! it write in the manner of yours.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use elman::data::{self, Array};
use elman::io::{self, Metadata, ModelFile};
use elman::nn::functional::{InitialState, Reduction, concat, cross_entropy, mul, softmax, sum_axis, transpose};
use elman::nn::{Embedding, Init, Linear, Lstm, Parameters};
use elman::optim::Adam;
use elman::rng::{self, Rng};
use elman::{Device, Graph, Predictor, Tensor, Trainer, Var};

use crate::fetched::fetched;

/// Characters that it sees.
const WINDOW: usize = 40;
/// Stands before a text's first character, until the window is full.
const PADDING: u32 = 0;
/// As in its own program, as is the rate, which falls to 0 in equal steps, one an epoch.
const BATCH: usize = 128;
const LR: f64 = 4e-3;

#[derive(Args)]
pub struct Options {
    /// What each line begins with
    #[arg(long, default_value = "")]
    prefix: String,
    /// How bold the draws are: 0 always takes the most likely character, 1 draws as the network predicts
    #[arg(long, default_value_t = 0.5, value_parser = temperature, allow_negative_numbers = true)]
    temperature: f64,
    /// Characters of a line at most
    #[arg(long, default_value_t = 300)]
    length: usize,
    /// Lines to write
    #[arg(long, default_value_t = 5, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(..=10_000))]
    lines: usize,
    /// Seed of the draws and of the order of the training
    #[arg(long, default_value_t = 777)]
    seed: u64,
    /// Learn the lines of this file first
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// How often they are read
    #[arg(long, default_value_t = 10, requires = "train")]
    epochs: usize,
    /// Where what has learned is kept, for --model; if not said, beside the lines, as .safetensors
    #[arg(long, value_name = "FILE", requires = "train")]
    save: Option<PathBuf>,
    /// A network that was fine-tuned, in place of the published one
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

fn temperature(value: &str) -> Result<f64, String> {
    value.parse().ok().filter(|&t: &f64| t >= 0.0 && t.is_finite()).ok_or_else(|| "must be 0 or above".into())
}

pub fn run(device: &Device, folder: &Path, options: &Options) -> Result<()> {
    let mut out = std::io::stdout();
    let network = match &options.model {
        Some(path) => TextGenRnn::open(device, path)?,
        None => TextGenRnn::published(device, folder)?,
    };
    let prefix = &options.prefix;
    ensure!(network.lacks(prefix) == 0, "{prefix:?} has characters that the network lacks");
    let mut rng = rng::manual_seed(options.seed);
    if let Some(path) = &options.train {
        let saved = options.save.clone().unwrap_or_else(|| path.with_extension("safetensors"));
        ensure!(
            options.save.is_some() || !saved.exists(),
            "{} is there: say by --save where to keep the network",
            saved.display()
        );
        let folder = saved.parent().filter(|folder| !folder.as_os_str().is_empty());
        ensure!(folder.is_none_or(Path::is_dir), "{} is to be kept in a folder that is not there", saved.display());
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let unknown: usize = lines.iter().map(|line| network.lacks(line)).sum();
        if unknown > 0 {
            writeln!(std::io::stderr(), "warning: left out are {unknown} characters that the network lacks")?;
        }
        network.fine_tune(&lines, options.epochs, &mut rng, |epoch, loss| {
            Ok(writeln!(out, "epoch {epoch}: loss {loss:.3}")?)
        })?;
        network.save(&saved)?;
        writeln!(out, "kept as {}", saved.display())?;
    }
    for line in network.write(prefix, options.lines, options.length, options.temperature, &mut rng)? {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

pub struct TextGenRnn {
    embedding: Embedding,
    lstms: [Lstm; 2],
    attention: Linear,
    output: Linear,
    parameters: Parameters,
    /// By token: padding, characters, and last what stands before and after a text.
    characters: Vec<String>,
    metadata: Metadata,
}

impl TextGenRnn {
    pub fn published(device: &Device, folder: &Path) -> Result<Self> {
        Self::open(device, &fetched(folder, "textgenrnn.safetensors")?)
    }

    pub fn open(device: &Device, path: &Path) -> Result<Self> {
        let file = ModelFile::open(path)?;
        let init = &mut Init::from_file(&file);
        let embedding = Embedding::from_file(init, "embedding")?;
        let lstms = [Lstm::from_file(init, "rnn_1")?, Lstm::from_file(init, "rnn_2")?];
        let [attention, output] = [Linear::from_file(init, "attention")?, Linear::from_file(init, "output")?];
        let metadata = file.metadata().clone();
        let characters = metadata.get("characters").with_context(|| format!("{} has no characters", path.display()))?;
        let characters: Vec<String> =
            serde_json::from_str(characters).with_context(|| format!("the characters of {}", path.display()))?;
        let rows = file.shape("output.weight").map_or(0, |shape| shape[0]);
        ensure!(characters.len() == rows, "{} names {} characters, but has {rows}", path.display(), characters.len());
        Ok(Self { embedding, lstms, attention, output, parameters: init.upload(device)?, characters, metadata })
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(io::save(path, &self.parameters, self.metadata.clone())?)
    }

    /// Tokens of the characters that it has, the others left out.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let token = |c: char| self.characters.iter().position(|known| known.chars().eq([c]));
        text.chars().filter_map(|c| Some(token(c)? as u32)).collect()
    }

    /// How many characters it has no tokens for.
    fn lacks(&self, text: &str) -> usize {
        text.chars().count() - self.encode(text).len()
    }

    /// What stands before and after a text.
    fn end(&self) -> u32 {
        self.characters.len() as u32 - 1
    }

    /// The last characters of these, as many as it sees.
    fn window(tokens: &[u32]) -> Vec<u32> {
        let seen = &tokens[tokens.len().saturating_sub(WINDOW)..];
        [&vec![PADDING; WINDOW - seen.len()], seen].concat()
    }

    /// Of each character of a line and its end, the window before it, and itself.
    pub fn lesson(&self, line: &str) -> Vec<(Vec<u32>, u32)> {
        let tokens = [&[self.end()], &self.encode(line)[..], &[self.end()]].concat();
        (1..tokens.len()).map(|at| (Self::window(&tokens[..at]), tokens[at])).collect()
    }

    /// `[T, B]`
    pub fn batch(&self, windows: &[Vec<u32>]) -> elman::Result<Array> {
        Array::tokens("windows", &[windows.len(), WINDOW], windows.concat(), self.characters.len())?.swap_axes()
    }

    /// Windows `[T, B]` to the logits of what comes next, `[B, V]`.
    fn logits(&self, g: &mut Graph, windows: &Tensor) -> elman::Result<Var> {
        let embedded = self.embedding.forward(g, windows)?;
        let first = self.lstms[0].forward(g, embedded, InitialState::Zero)?.output;
        let second = self.lstms[1].forward(g, first, InitialState::Zero)?.output;
        let x = concat(g, &[embedded, first, second], -1)?;
        let scores = self.attention.forward(g, x)?; // [T, B, 1]
        let scores = transpose(g, scores, 0, 2)?;
        let shares = softmax(g, scores)?; // over time
        let shares = transpose(g, shares, 0, 2)?;
        let weighted = mul(g, x, shares)?;
        let average = sum_axis(g, weighted, 0)?;
        self.output.forward(g, average)
    }

    /// Windows `[T, B]` to how likely each token is to come next, `[B, V]`.
    pub fn predictor(&self) -> Predictor<'_, 1, 1> {
        Predictor::new(&self.parameters, |g, [windows]| {
            let logits = self.logits(g, windows)?;
            Ok([softmax(g, logits)?])
        })
    }

    /// Lines that begin so, all at once, each to its end or this many characters.
    pub fn write(
        &self,
        prefix: &str,
        lines: usize,
        length: usize,
        temperature: f64,
        rng: &mut Rng,
    ) -> Result<Vec<String>> {
        let mut predictor = self.predictor();
        let start = [&[self.end()], &self.encode(prefix)[..]].concat();
        let mut texts = vec![start; lines];
        let is_done = |text: &Vec<u32>| text.len() > length || (text.len() > 1 && text.last() == Some(&self.end()));
        while !texts.iter().all(is_done) {
            let windows: Vec<_> = texts.iter().map(|text| Self::window(text)).collect();
            let [probabilities] = predictor.run(&[self.batch(&windows)?])?;
            for (text, probabilities) in texts.iter_mut().zip(probabilities.values().chunks(self.characters.len())) {
                if !is_done(text) {
                    text.push(draw(probabilities, temperature, rng));
                }
            }
        }
        let is_character = |&&token: &&u32| token != self.end();
        let text = |tokens: &Vec<u32>| {
            tokens.iter().filter(is_character).map(|&token| &self.characters[token as usize][..]).collect()
        };
        Ok(texts.iter().map(text).collect())
    }

    /// Learns lines; `each` is told the mean loss of every epoch, which are the result.
    pub fn fine_tune(
        &self,
        lines: &[impl AsRef<str>],
        epochs: usize,
        rng: &mut Rng,
        mut each: impl FnMut(usize, f32) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let lessons: Vec<_> = lines.iter().flat_map(|line| self.lesson(line.as_ref())).collect();
        ensure!(!lessons.is_empty(), "there are no lines to learn");
        let mut trainer = Trainer::on_batches(&self.parameters, Adam::new(LR), |g, [windows, targets]| {
            let logits = self.logits(g, windows)?;
            cross_entropy(g, logits, targets, Reduction::Mean)
        })?;
        let mut means = Vec::new();
        for epoch in 0..epochs {
            trainer.set_lr(LR * (1.0 - epoch as f64 / epochs as f64))?;
            let batches = data::batches(rng, lessons.len(), BATCH);
            for rows in &batches {
                let (windows, targets): (Vec<_>, Vec<_>) = data::pick(&lessons, rows).into_iter().cloned().unzip();
                let targets = Array::targets("targets", &[rows.len()], targets, self.characters.len())?;
                trainer.step_on(&[self.batch(&windows)?, targets])?;
            }
            let losses = trainer.losses()?;
            let sum: f32 = losses.iter().zip(&batches).map(|(loss, rows)| loss * rows.len() as f32).sum();
            means.push(sum / lessons.len() as f32);
            each(epoch + 1, means[epoch])?;
        }
        Ok(means)
    }
}

/// A token by its probability, at this temperature; padding is never drawn.
fn draw(probabilities: &[f32], temperature: f64, rng: &mut Rng) -> u32 {
    let best =
        (2..probabilities.len()).fold(1, |best, i| if probabilities[i] > probabilities[best] { i } else { best });
    if temperature == 0.0 {
        return best as u32;
    }
    let weight = |&p: &f32| (f64::from(p) / f64::from(probabilities[best])).powf(temperature.recip());
    let mut left = f64::from(rng.rand(1)[0]) * probabilities[1..].iter().map(weight).sum::<f64>();
    let is_drawn = |p: &f32| {
        left -= weight(p);
        left < 0.0
    };
    probabilities[1..].iter().position(is_drawn).map_or(best, |i| i + 1) as u32
}
