//! What a training is made of: the command line before a file of settings before what suits the text.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use elman::nn::{Cell, CharRnnOptions};
use elman::optim::{Adagrad, Adam, AdamW, Clip, Optimizer, RmsProp, Sgd};
use elman::schedule::Schedule;
use serde::{Deserialize, Serialize};

use crate::cli::model::Model;
use crate::cli::shared::at_least_one;
use crate::cli::text::{By, Reading, Text};
use crate::cli::tokens::{Tokens, Unknown};

/// What a network reads, and its sizes.
pub type Network = (Tokens, CharRnnOptions);

/// Settings of a training, each of which may be left out.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Learn bytes, of texts in any encoding or of none, in place of characters
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = TEXT)]
    bytes: Option<bool>,
    /// Encoding of the texts, where it is not UTF-8: windows-1252, utf-16le, shift_jis, any of the WHATWG's labels
    #[arg(long, value_name = "LABEL", help_heading = TEXT)]
    encoding: Option<String>,
    /// Make a line feed of every CR LF and every CR
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = TEXT)]
    normalize_newlines: Option<bool>,
    /// What becomes of characters that the model of --init-from does not know [default: error]
    #[arg(long, value_enum, help_heading = TEXT)]
    unknown: Option<Unknown>,
    /// The share of the text, at its end, that is held out to see how well the network does [default: 0.1, at most a million tokens]
    #[arg(long, value_name = "SHARE", help_heading = TEXT)]
    held_out: Option<f64>,
    /// Recurrent cell [default: gru]
    #[arg(long, value_enum, help_heading = NETWORK)]
    cell: Option<CellName>,
    /// Recurrent layers
    #[arg(long, value_parser = at_least_one, value_name = "N", help_heading = NETWORK)]
    layers: Option<usize>,
    /// Hidden units of a layer
    #[arg(long, value_parser = at_least_one, value_name = "N", help_heading = NETWORK)]
    hidden: Option<usize>,
    /// Values that stand for a token
    #[arg(long, value_parser = at_least_one, value_name = "N", help_heading = NETWORK)]
    embedding: Option<usize>,
    /// Rate of dropout between recurrent layers, of which it takes two
    #[arg(long, value_name = "RATE", help_heading = NETWORK)]
    dropout: Option<f64>,
    /// Tokens that a step goes back: back-propagation through time is truncated there, the state is carried on
    #[arg(long, value_parser = at_least_one, value_name = "N", help_heading = TRAINING)]
    window: Option<usize>,
    /// Streams of the text that are read at the same time
    #[arg(long, value_parser = at_least_one, value_name = "N", help_heading = TRAINING)]
    batch: Option<usize>,
    /// Passes over the text, at most. More of them, given to a run that goes on, stretch its schedule
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    epochs: Option<usize>,
    /// Steps, at most, whatever the passes
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    max_steps: Option<usize>,
    /// Evaluations without a lower held-out loss that are put up with before the training stops; 0: it never stops early
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    patience: Option<usize>,
    /// Steps between evaluations [default: a pass, or an even part of it of at most 2,000]
    #[arg(long, value_parser = at_least_one, value_name = "STEPS", help_heading = TRAINING)]
    eval_every: Option<usize>,
    /// [default: adam]
    #[arg(long, value_enum, help_heading = TRAINING)]
    optimizer: Option<OptimizerName>,
    /// Learning rate
    #[arg(long, allow_negative_numbers = true, help_heading = TRAINING)]
    lr: Option<f64>,
    /// What becomes of the learning rate over all steps [default: cosine]
    #[arg(long, value_enum, help_heading = TRAINING)]
    schedule: Option<ScheduleName>,
    /// Steps over which the learning rate rises to its value [default: a hundredth of all]
    #[arg(long, value_name = "STEPS", help_heading = TRAINING)]
    warmup: Option<usize>,
    /// Weight decay of the optimizer
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = TRAINING)]
    weight_decay: Option<f64>,
    /// The most that the norm of the gradient may be; 0: anything [default: 5]
    #[arg(long, value_name = "NORM", allow_negative_numbers = true, help_heading = TRAINING)]
    clip: Option<f64>,
    /// Steps whose gradients are averaged for one update
    #[arg(long, value_parser = at_least_one, value_name = "STEPS", help_heading = TRAINING)]
    accumulate: Option<usize>,
    /// Keep an exponential moving average of the weights with this decay, 0.999 say, and evaluate, write and save that
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true, help_heading = TRAINING)]
    average: Option<f64>,
    /// Seed of everything random: initial weights, dropout, samples [default: 777]
    #[arg(long, help_heading = TRAINING)]
    seed: Option<u32>,
    /// Start from the parameters of this model, of the same sizes, and with its vocabulary
    #[arg(long, value_name = "MODEL", help_heading = TRAINING)]
    pub init_from: Option<PathBuf>,
    /// What the samples start with [default: a piece of the text]
    #[arg(long, value_name = "TEXT", help_heading = TRAINING)]
    pub prompt: Option<String>,
    /// Tokens of a sample after each evaluation; 0: none [default: 200]
    #[arg(long, value_name = "N", help_heading = TRAINING)]
    sample_length: Option<usize>,
    /// How bold the samples are [default: 0.8]
    #[arg(long, value_name = "T", allow_negative_numbers = true, help_heading = TRAINING)]
    temperature: Option<f32>,
}

const TEXT: &str = "Text";
const NETWORK: &str = "Network";
const TRAINING: &str = "Training";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CellName {
    Rnn,
    Relu,
    Gru,
    Lstm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    Adam,
    #[value(name = "adamw")]
    AdamW,
    Sgd,
    #[value(name = "rmsprop")]
    RmsProp,
    Adagrad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Stays as it is
    Constant,
    /// Falls as half a cosine, to a twentieth
    Cosine,
    /// Falls in a line, to a twentieth
    Linear,
}

/// The settings of a training, none left open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recipe {
    pub bytes: bool,
    /// Tokens.
    pub held_out: usize,
    pub cell: CellName,
    pub layers: usize,
    pub hidden: usize,
    pub embedding: usize,
    pub dropout: f64,
    pub window: usize,
    pub batch: usize,
    pub epochs: usize,
    pub max_steps: Option<usize>,
    pub patience: usize,
    pub eval_every: Option<usize>,
    pub optimizer: OptimizerName,
    pub lr: f64,
    pub schedule: ScheduleName,
    pub warmup: Option<usize>,
    pub weight_decay: f64,
    pub clip: f64,
    pub accumulate: usize,
    pub average: Option<f64>,
    pub seed: u32,
    pub sample_length: usize,
    pub temperature: f32,
}

/// What suits a text of so many tokens at most (`benches/README.md`).
struct Suited {
    tokens: usize,
    hidden: usize,
    embedding: usize,
    layers: usize,
    dropout: f64,
    window: usize,
    batch: usize,
    lr: f64,
    epochs: usize,
}

const SUITED: [Suited; 3] = [
    Suited {
        tokens: 200_000,
        hidden: 256,
        embedding: 32,
        layers: 2,
        dropout: 0.3,
        window: 64,
        batch: 8,
        lr: 2e-3,
        epochs: 16,
    },
    Suited {
        tokens: 4_000_000,
        hidden: 256,
        embedding: 48,
        layers: 1,
        dropout: 0.0,
        window: 64,
        batch: 32,
        lr: 3e-3,
        epochs: 20,
    },
    Suited {
        tokens: usize::MAX,
        hidden: 512,
        embedding: 64,
        layers: 1,
        dropout: 0.0,
        window: 96,
        batch: 64,
        lr: 2e-3,
        epochs: 2,
    },
];

/// The share of a text that is held out, and the most tokens that is, if nothing else is said.
const HELD_OUT: f64 = 0.1;
const MOST_HELD_OUT: usize = 1_000_000;

impl Settings {
    pub fn unknown(&self) -> Unknown {
        self.unknown.unwrap_or_default()
    }

    /// What a model that is started from reads, and its sizes.
    pub fn init_network(&self) -> Result<Option<Network>> {
        let Some(path) = &self.init_from else { return Ok(None) };
        let (config, tokens) = Model::config_of(path)?;
        Ok(Some((tokens, config.sizes)))
    }

    /// The texts, read as a network that is there does, as bytes if these are asked for, or by the characters that they have; and what
    /// suits them.
    pub fn text(&self, texts: &[String], network: Option<&Network>) -> Result<(Text, Recipe)> {
        let known = network.map(|(tokens, _)| tokens);
        if let (Some(tokens), Some(bytes)) = (known, self.bytes) {
            let is_bytes = *tokens == Tokens::Bytes;
            ensure!(
                bytes == is_bytes,
                "the model is of {}, which --bytes={bytes} contradicts: leave that out",
                tokens.unit()
            );
        }
        let known = known.or(self.is_bytes().then_some(&Tokens::Bytes));
        let by = known.map_or(By::ItsCharacters, |tokens| By::Given(tokens, self.unknown()));
        let normalize_newlines = self.normalize_newlines.unwrap_or(false);
        let text = Text::open(texts, &Reading { encoding: self.encoding.clone(), normalize_newlines }, by)?;
        let recipe = self.recipe(text.len(), network.map(|(_, sizes)| sizes))?;
        let bytes = *text.tokens() == Tokens::Bytes;
        Ok((text, Recipe { bytes, ..recipe }))
    }

    /// What goes on where these were, with these passes: a number of steps that ended them ends no more.
    pub fn going_on(&self, more: &Self) -> Self {
        let ends = more.epochs.is_some() && more.max_steps.is_none();
        Self { max_steps: self.max_steps.filter(|_| !ends), ..self.clone() }
    }

    /// These before those of a file, before those of a run that goes on.
    pub fn or(self, file: &Self) -> Result<Self> {
        let mut all = serde_json::to_value(file)?;
        let serde_json::Value::Object(mine) = serde_json::to_value(self)? else { unreachable!("a struct") };
        for (key, value) in mine {
            if !value.is_null() {
                all[key] = value;
            }
        }
        Ok(serde_json::from_value(all)?)
    }

    /// Those of a TOML file.
    pub fn read(file: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("the settings {} cannot be read", file.display()))?;
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            anyhow::anyhow!("line {line} of the settings {}: {}", file.display(), error.message().replace('\n', " "))
        })
    }

    pub fn is_bytes(&self) -> bool {
        self.bytes.unwrap_or(false)
    }

    /// With what was left open, for a text of so many tokens; of a network that is there, its sizes.
    pub fn recipe(&self, tokens: usize, from: Option<&CharRnnOptions>) -> Result<Recipe> {
        let suited = SUITED.iter().find(|suited| tokens <= suited.tokens).expect("one is for any text");
        let share = self.held_out.unwrap_or(HELD_OUT);
        ensure!(share > 0.0 && share < 1.0, "--held-out must be above 0 and below 1, not {share}");
        let most = if self.held_out.is_some() { usize::MAX } else { MOST_HELD_OUT };
        let held_out = ((tokens as f64 * share) as usize).min(most);
        let layers = self.layers.or(from.map(|from| from.num_layers)).unwrap_or(suited.layers);
        let window = self.window.unwrap_or(suited.window);
        // Of a short text, streams of at least some windows each.
        let most_streams = ((tokens - held_out) / (8 * window).max(1)).max(1);
        let lr = match self.optimizer {
            Some(OptimizerName::Sgd) => 1.0,
            Some(OptimizerName::Adagrad) => 2e-2,
            _ => suited.lr,
        };
        let recipe = Recipe {
            bytes: self.is_bytes(),
            held_out,
            cell: self.cell.or(from.map(|from| CellName::of(from.cell))).unwrap_or(CellName::Gru),
            layers,
            hidden: self.hidden.or(from.map(|from| from.hidden)).unwrap_or(suited.hidden),
            embedding: self.embedding.or(from.map(|from| from.embedding)).unwrap_or(suited.embedding),
            dropout: self.dropout.unwrap_or(if layers > 1 { suited.dropout.max(0.1) } else { 0.0 }),
            window,
            batch: self.batch.unwrap_or(suited.batch.min(most_streams)),
            epochs: self.epochs.unwrap_or(suited.epochs),
            max_steps: self.max_steps,
            patience: self.patience.unwrap_or(4),
            eval_every: self.eval_every,
            optimizer: self.optimizer.unwrap_or(OptimizerName::Adam),
            lr: self.lr.unwrap_or(lr),
            schedule: self.schedule.unwrap_or(ScheduleName::Cosine),
            warmup: self.warmup,
            weight_decay: self.weight_decay.unwrap_or(0.0),
            clip: self.clip.unwrap_or(5.0),
            accumulate: self.accumulate.unwrap_or(1),
            average: self.average,
            seed: self.seed.unwrap_or(777),
            sample_length: self.sample_length.unwrap_or(200),
            temperature: self.temperature.unwrap_or(0.8),
        };
        recipe.check()?;
        Ok(recipe)
    }
}

impl Recipe {
    fn check(&self) -> Result<()> {
        let sizes = [("layers", self.layers), ("hidden", self.hidden), ("embedding", self.embedding)];
        let counts = [("window", self.window), ("batch", self.batch), ("accumulate", self.accumulate)];
        for (name, value) in sizes.into_iter().chain(counts) {
            ensure!(value > 0, "--{name} must be at least 1");
        }
        ensure!(self.eval_every != Some(0), "--eval-every must be at least 1 step");
        ensure!(self.lr > 0.0 && self.lr.is_finite(), "--lr must be above 0, not {}", self.lr);
        ensure!(self.clip >= 0.0, "--clip must be 0 or above, not {}", self.clip);
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "--temperature must be 0 or above, not {}",
            self.temperature
        );
        if self.dropout > 0.0 && self.layers == 1 {
            bail!("--dropout lies between layers, and there is one: add --layers 2, or leave it out");
        }
        Ok(())
    }

    pub fn sizes(&self, vocabulary: usize) -> CharRnnOptions {
        let sizes = CharRnnOptions::new(vocabulary, self.embedding, self.hidden);
        sizes.cell(self.cell.into()).num_layers(self.layers).dropout(self.dropout)
    }

    /// The optimizer of a training of so many steps.
    pub fn optimizer(&self, steps: usize) -> Optimizer {
        let (lr, optimizer) = (self.lr, self.optimizer.with(self.lr, self.weight_decay));
        // A schedule counts updates.
        let steps = steps.div_ceil(self.accumulate);
        let warmup = self.warmup.map_or(steps / 100, |warmup| warmup.div_ceil(self.accumulate));
        let optimizer =
            optimizer.schedule(Rate { schedule: self.schedule, lr, warmup, steps }).accumulate(self.accumulate);
        let optimizer = if self.clip > 0.0 { optimizer.clip(Clip::Norm(self.clip)) } else { optimizer };
        match self.average {
            Some(decay) => optimizer.average(decay),
            None => optimizer,
        }
    }
}

impl OptimizerName {
    pub fn with(self, lr: f64, weight_decay: f64) -> Optimizer {
        match self {
            Self::Adam => Adam { weight_decay, ..Adam::new(lr) }.into(),
            Self::AdamW => AdamW(Adam { weight_decay, ..Adam::new(lr) }).into(),
            Self::Sgd => Sgd { weight_decay, ..Sgd::new(lr) }.into(),
            Self::RmsProp => RmsProp { weight_decay, ..RmsProp::new(lr) }.into(),
            Self::Adagrad => Adagrad { weight_decay, ..Adagrad::new(lr) }.into(),
        }
    }
}

impl CellName {
    pub fn of(cell: Cell) -> Self {
        match cell {
            Cell::Relu => Self::Relu,
            Cell::Gru => Self::Gru,
            Cell::Lstm => Self::Lstm,
            _ => Self::Rnn,
        }
    }
}

impl From<CellName> for Cell {
    fn from(name: CellName) -> Self {
        match name {
            CellName::Rnn => Self::Tanh,
            CellName::Relu => Self::Relu,
            CellName::Gru => Self::Gru,
            CellName::Lstm => Self::Lstm,
        }
    }
}

/// The learning rate: it rises for a while, then does as its schedule says.
struct Rate {
    schedule: ScheduleName,
    lr: f64,
    warmup: usize,
    steps: usize,
}

/// What is left of the learning rate at the end.
const LEAST: f64 = 0.05;

impl Schedule for Rate {
    fn lr(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let done = ((step - self.warmup) as f64 / (self.steps.saturating_sub(self.warmup)).max(1) as f64).min(1.0);
        let share = match self.schedule {
            ScheduleName::Constant => 1.0,
            ScheduleName::Linear => 1.0 - (1.0 - LEAST) * done,
            ScheduleName::Cosine => LEAST + (1.0 - LEAST) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        };
        self.lr * share
    }
}
