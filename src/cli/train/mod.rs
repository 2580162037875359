//! `elman train`: a network of characters or bytes learns the user's own text.

mod dashboard;
mod figures;
mod live;
mod session;
pub mod settings;
mod view;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use elman::text::Vocabulary;
use serde::{Deserialize, Serialize};
use session::Session;
use settings::{Network, Recipe, Settings};

use super::shared::run::BEST;
use super::shared::{DeviceArgs, RECOVERIES};
use super::text::Text;
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

/// What config.json has: all that a run goes on with.
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
    /// Of the run in a folder.
    fn read(out: &Path) -> Result<Self> {
        let file = out.join("config.json");
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!("there is no run to go on with in {}: {} cannot be read", out.display(), file.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is not that of a run of `elman train`", file.display()))
    }

    fn network(&self) -> Result<Network> {
        let tokens = match &self.vocabulary {
            None => Tokens::Bytes,
            Some(vocabulary) => Tokens::Characters(
                Vocabulary::try_from(vocabulary.clone())
                    .map_err(|problem| anyhow::anyhow!("the run's vocabulary is damaged: {problem}"))?,
            ),
        };
        let sizes = self.recipe.sizes(tokens.len());
        Ok((tokens, sizes))
    }

    /// A run goes on with the text, the network and the order of its steps that it was started with.
    fn check_resumed(&self, recipe: &Recipe, text: &Text) -> Result<()> {
        ensure!(
            self.fingerprint == text.fingerprint,
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
        if fixed(&self.recipe) != fixed(recipe) {
            let (theirs, ours) = (serde_json::to_string(&self.recipe)?, serde_json::to_string(recipe)?);
            bail!("the run was started with {theirs}, and cannot go on with {ours}");
        }
        Ok(())
    }
}

/// What is to be done, with nothing left open.
struct Job {
    out: PathBuf,
    text: Text,
    started: Started,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let job = Job::settle(options)?;
    let mut session = Session::build(options, &job, &device)?;
    if options.resume {
        session.resume()?;
    }
    session.introduce()?;
    session.watch(&options.watch)?;
    let trained = session.train();
    session.end(trained)
}

impl Job {
    fn settle(options: &Options) -> Result<Self> {
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
        let before = options.resume.then(|| Started::read(&out)).transpose()?;
        if let Some(before) = &before {
            let theirs = before.settings.going_on(&settings);
            settings = settings.or(&theirs)?;
            if texts.is_empty() {
                texts.clone_from(&before.texts);
            }
        }
        let network = before.as_ref().map_or_else(|| settings.init_network(), |before| before.network().map(Some))?;
        let (text, recipe) = settings.text(&texts, network.as_ref())?;
        if let Some(before) = &before {
            before.check_resumed(&recipe, &text)?;
        }
        let vocabulary = match text.tokens() {
            Tokens::Characters(vocabulary) => Some(vocabulary.to_string()),
            Tokens::Bytes => None,
        };
        let fingerprint = text.fingerprint.clone();
        let started = Started { texts: absolute(texts), settings, recipe, fingerprint, vocabulary };
        Ok(Self { out, text, started })
    }
}

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
