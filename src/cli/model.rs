//! Model files: a network of characters or bytes, and what it reads and writes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use elman::nn::{CharRnn, CharRnnOptions, Init, Parameters};
use elman::text::Vocabulary;
use elman::{Device, io, rng};
use serde::{Deserialize, Serialize};

use super::shared::run::{BEST, MODEL};
use super::shared::with_separators;
use super::tokens::Tokens;

/// What a model's file says of it, beside its parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Of this form of the configuration.
    #[serde(default = "version")]
    pub version: u32,
    /// As the cell is called: Rnn, Gru, Lstm.
    pub model: String,
    pub sizes: CharRnnOptions,
    /// Tokens that a training step goes back.
    pub window: usize,
    /// That tokens are bytes; otherwise the vocabulary stands beside this.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bytes: bool,
}

const fn version() -> u32 {
    1
}

/// The cells that a [`CharRnn`] may have, as their models are called.
const ARCHITECTURES: [&str; 3] = ["Rnn", "Gru", "Lstm"];

/// A network on a device.
pub struct Model {
    pub config: Config,
    pub tokens: Tokens,
    pub network: CharRnn,
    pub parameters: Parameters,
}

impl Config {
    pub fn new(sizes: CharRnnOptions, window: usize, tokens: &Tokens) -> Self {
        let model = match sizes.cell {
            elman::nn::Cell::Gru => "Gru",
            elman::nn::Cell::Lstm => "Lstm",
            _ => "Rnn",
        };
        Self { version: version(), model: model.into(), sizes, window, bytes: *tokens == Tokens::Bytes }
    }

    /// The metadata of a file.
    pub fn metadata(&self, tokens: &Tokens) -> Result<io::Metadata> {
        let mut metadata = io::Metadata::from([("config".to_owned(), serde_json::to_string(self)?)]);
        if let Tokens::Characters(vocabulary) = tokens {
            metadata.insert("vocabulary".into(), vocabulary.to_string());
        }
        Ok(metadata)
    }

    /// What a file says that its model is.
    pub fn read(file: &Path) -> Result<(Self, Tokens)> {
        let metadata = io::metadata(file)?;
        let name = file.display();
        let config = metadata.get("config").with_context(|| {
            format!("{name} does not say what network it is of (`config`): `elman train` and the example `nietzsche` write such files")
        })?;
        let head: serde_json::Value =
            serde_json::from_str(config).with_context(|| format!("the configuration in {name} is damaged"))?;
        if let Some(later) = head["version"].as_u64().filter(|&later| later > version().into()) {
            bail!(
                "{name} was written by a later version of elman (its configuration is of form {later}): update elman"
            );
        }
        let model = head["model"].as_str().unwrap_or("of no name");
        ensure!(
            ARCHITECTURES.contains(&model),
            "the network in {name} is {model}, and this command knows {}: use the program that wrote it",
            ARCHITECTURES.join(", ")
        );
        let config: Self =
            serde_json::from_value(head).with_context(|| format!("the configuration in {name} is damaged"))?;
        let tokens = match (config.bytes, metadata.get("vocabulary")) {
            (true, _) => Tokens::Bytes,
            (false, Some(vocabulary)) => match Vocabulary::try_from(vocabulary.clone()) {
                Ok(vocabulary) => Tokens::Characters(vocabulary),
                Err(problem) => bail!("the vocabulary in {name} is damaged: {problem}"),
            },
            (false, None) => bail!("{name} has no vocabulary: `elman train` writes one beside the parameters"),
        };
        let (has, needs) = (tokens.len(), config.sizes.vocabulary);
        ensure!(has == needs, "{name} contradicts itself: a network of {needs} tokens, with {has} in its vocabulary");
        Ok((config, tokens))
    }
}

impl Model {
    /// What a model is, without its parameters.
    pub fn config_of(path: &Path) -> Result<(Config, Tokens)> {
        Config::read(&find(path)?)
    }

    /// Loads a file, or that of the best epoch in a run's folder.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let file = find(path)?;
        let (config, tokens) = Config::read(&file)?;
        let mut init = Init::new(rng::manual_seed(0));
        let network = CharRnn::new(&mut init, config.sizes)
            .with_context(|| format!("the network in {} cannot be", file.display()))?;
        let parameters = init.upload(device)?;
        io::load(&file, &parameters)?;
        Ok(Self { config, tokens, network, parameters })
    }

    /// One line that says what it is.
    pub fn describe(&self) -> String {
        describe(&self.config.sizes, &self.parameters)
    }
}

/// A network in a few words.
pub fn describe(sizes: &CharRnnOptions, parameters: &Parameters) -> String {
    let CharRnnOptions { vocabulary, embedding, hidden, cell, num_layers, .. } = sizes;
    let layers = if *num_layers == 1 { "1 layer".into() } else { format!("{num_layers} layers") };
    let count = with_separators(parameters.count() as u64);
    format!("{cell:?}, {layers} of {hidden} units, embedding {embedding}, {vocabulary} tokens: {count} parameters")
        .to_lowercase()
}

/// The model's file, where a run's folder was named.
pub fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let files = [BEST, MODEL].map(|name| path.join(name));
    let found = files.into_iter().find(|file| file.is_file());
    found.with_context(|| {
        format!("the folder {} has neither {BEST} nor {MODEL}: it is no run's, or it has no epoch yet", path.display())
    })
}
