//! `elman look`: what a network makes of a text, as one page that opens from disk in any browser.

mod features;
mod gates;
mod page;
mod quantized;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use elman::nn::Snapshot;
use elman::{Device, Reader};

use super::model::Model;
use super::shared::{DeviceArgs, RECOVERIES, say, with_separators};
use super::text::{By, Reading, Text};
use super::tokens::Unknown;
use page::Page;

/// Show what a model makes of a text: a page with its units, its surprise, its gates
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Model file, or a run's folder: the best model there
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Text: a file, or - for standard input
    #[arg(value_name = "TEXT")]
    text: String,
    #[command(flatten)]
    device: DeviceArgs,
    /// The page, one HTML file
    #[arg(short, long, value_name = "FILE", default_value = "look.html")]
    out: PathBuf,
    /// Where to start in the text: so many characters (or bytes) are left out, of which the network reads the last 1,000
    #[arg(long, default_value_t = 0, value_name = "N")]
    from: usize,
    /// Characters (or bytes) to show [default: 20,000, or fewer where those make a page of more than 24 MB]
    #[arg(short = 'n', long, value_name = "N")]
    length: Option<usize>,
    #[command(flatten)]
    reading: Reading,
    /// What becomes of characters that the model does not know
    #[arg(long, value_enum, default_value_t)]
    unknown: Unknown,
}

const EXAMPLES: &str = "\
Examples:
  elman look book chapter.txt -o chapter.html
  elman look book chapter.txt --from 5000 --length 2000

The page needs nothing but itself: no network, no server. It says its keys: press ? there.";

/// What is shown of a long text.
const LENGTH: usize = 20_000;

/// A page of more bytes is slow to open.
const PAGE: usize = 24_000_000;

/// What a page has for each token, beside its states.
const BESIDE_STATES: usize = 64;

/// The most that can be asked for.
const MOST: usize = 200_000;

/// What the network reads before that.
const BEFORE: usize = 1000;

pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let model = Model::load(&options.model, &device)?;
    let names = [options.text.clone()];
    let text = Text::open(&names, &options.reading, By::Given(&model.tokens, options.unknown))?;
    let range = range(options, &model, text.len())?;
    let start = Instant::now();
    let seen = See::new(&model, &device, &text, range.clone())?;
    // A page may be shown to others: the folders are left out.
    let name = match options.text.as_str() {
        "-" => "standard input".into(),
        text => Path::new(text).file_name().map_or(text.into(), |name| name.to_string_lossy()),
    };
    let page = Page::new(&model, &name, text.len(), range.start, &seen)?.html()?;
    elman::io::write_atomically(&options.out, page.as_bytes())
        .with_context(|| format!("the page {} cannot be written", options.out.display()))?;
    let (unit, shown, all) = (model.tokens.unit(), range.len(), text.len());
    let [shown, all] = [shown, all].map(|count| with_separators(count as u64));
    let of = if range.len() < text.len() { format!(" of {all}, from {}", range.start) } else { String::new() };
    let (size, seconds) = (page.len() as f64 / 1e6, start.elapsed().as_secs_f64());
    say!("{}: {shown} {unit}{of}; {size:.1} MB in {seconds:.1} s on {}", options.out.display(), device.describe());
    if range.end < text.len() && options.length.is_none() {
        say!("--from and --length show the rest");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is shown of a text of so many tokens.
fn range(options: &Options, model: &Model, text: usize) -> Result<Range<usize>> {
    let (unit, from) = (model.tokens.unit(), options.from);
    ensure!(from < text, "--from {from} is past the end of the text, which has {text} {unit}: give less");
    let sizes = &model.config.sizes;
    let kinds = if sizes.cell == elman::nn::Cell::Lstm { 2 } else { 1 };
    let bytes = kinds * sizes.num_layers * sizes.hidden + BESIDE_STATES;
    let length = match options.length {
        None => LENGTH.min(PAGE / bytes).max(1),
        Some(length) => {
            ensure!(
                (1..=MOST).contains(&length),
                "--length is {length}, and a page shows 1 to {} {unit}: make several pages, with --from",
                with_separators(MOST as u64)
            );
            length
        }
    };
    Ok(from..text.min(from.saturating_add(length)))
}

/// A stretch of a text, and what a network makes of it.
pub struct See {
    pub tokens: Vec<u32>,
    /// Of what comes after each token, `[tokens, V]`.
    pub logits: Vec<f32>,
    /// The same after the token before the first one, if there is one.
    pub logits_before: Option<Vec<f32>>,
    /// After each token, each `[tokens, L, H]`.
    pub states: Snapshot,
    /// Before the first one, each `[L, H]`.
    pub states_before: Snapshot,
    /// H
    hidden: usize,
}

impl See {
    fn new(model: &Model, device: &Device, text: &Text, range: Range<usize>) -> Result<Self> {
        let before = text.read(range.start.saturating_sub(BEFORE)..range.start)?;
        Self::of(model, device, &before, text.read(range)?)
    }

    /// What is made of tokens, after others have been read.
    pub fn of(model: &Model, device: &Device, before: &[u32], tokens: Vec<u32>) -> Result<Self> {
        let mut reader = Reader::new(&model.network, &model.parameters, 0)?;
        let (logits_before, states_before) = match before.split_last() {
            None => {
                let zero = elman::nn::LanguageModel::state(&model.network, device, 1)?.save_row(0)?;
                (None, zero)
            }
            Some((&last, earlier)) => {
                reader.skip(earlier)?;
                let reading = reader.read_with_states(&[last])?;
                (Some(reading.logits), reading.states)
            }
        };
        let elman::Reading { logits, states } = reader.read_with_states(&tokens)?;
        ensure!(
            logits.iter().all(|logit| logit.is_finite()),
            "the model's predictions are not finite: its training went astray; take an earlier one"
        );
        let hidden = model.config.sizes.hidden;
        Ok(Self { tokens, logits, logits_before, states, states_before, hidden })
    }
}

impl See {
    /// The states of one layer, `[tokens, H]`.
    pub fn layer(&self, name: &str, layer: usize) -> Vec<f32> {
        let layers = self.states_before[name].len() / self.hidden;
        self.states[name].chunks(self.hidden).skip(layer).step_by(layers).flatten().copied().collect()
    }

    /// The state of one layer before the first token, `[H]`.
    pub fn before(&self, name: &str, layer: usize) -> &[f32] {
        &self.states_before[name][layer * self.hidden..][..self.hidden]
    }
}
