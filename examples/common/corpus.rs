//! The text to train on: the user's, the cached, the published, or the one that ships with the example.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use directories::ProjectDirs;
use elman::Device;
use elman::text::{self, TextFile, Vocabulary};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};

use super::data::LARGE;
use super::warn;

/// Where the text is published; tests serve it themselves through `ELMAN_CORPUS_URL`.
const URL: &str = "https://s3.amazonaws.com/text-datasets/nietzsche.txt";
const SHA_256: &str = "23cf69874ab69d3d256099ab530ea4be24d47d9675b673bcc67cbcd6298ec647";
const BYTES: u64 = 600_901;

/// A download ends here, whatever the server sends.
const MOST_BYTES: u64 = 16 * BYTES;

/// Original prose written for this project, in the public domain (see the README beside it).
const SHIPPED: &str = include_str!("../corpus/prose.txt");

/// Where a text came from.
pub enum Origin {
    File(PathBuf),
    Cache(PathBuf),
    Download { kept: Option<PathBuf> },
    Shipped { because: String },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Cache(path) => write!(f, "Nietzsche, from {} (kept by an earlier run)", path.display()),
            Self::Download { kept: Some(path) } => write!(f, "Nietzsche, downloaded and kept as {}", path.display()),
            Self::Download { kept: None } => write!(f, "Nietzsche, downloaded (the cache folder cannot be written)"),
            Self::Shipped { because } => write!(f, "the prose that ships with the example, because {because}"),
        }
    }
}

/// What there is to train on.
pub struct Corpus {
    pub text: Text,
    pub origin: Origin,
    /// Whether it is the tutorials' text, byte for byte.
    pub published: bool,
}

/// A text: loaded, or, if it is large, mapped.
pub enum Text {
    Loaded(String),
    Mapped(TextFile),
}

impl Text {
    pub fn vocabulary(&self) -> Vocabulary {
        match self {
            Self::Loaded(text) => Vocabulary::of(text),
            Self::Mapped(file) => file.vocabulary().clone(),
        }
    }

    /// Its tokens, on the device.
    pub fn upload(&self, device: &Device, vocabulary: &Vocabulary) -> elman::Result<text::Corpus> {
        match self {
            Self::Loaded(text) => text::Corpus::new(device, &vocabulary.encode(text)?, vocabulary.len()),
            Self::Mapped(file) => text::Corpus::of_file(device, file),
        }
    }

    /// What tells it from another: a hash, or of a large file its size.
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Loaded(text) => hash(text.as_bytes()),
            Self::Mapped(file) => format!("{} bytes, {} characters", file.len(), file.characters()),
        }
    }

    /// The first characters.
    pub fn start(&self, characters: usize) -> String {
        match self {
            Self::Loaded(text) => text.chars().take(characters).collect(),
            Self::Mapped(file) => file.text_at(0, characters),
        }
    }
}

/// The text, and where it came from. What is surely not meant as text is a warning.
pub fn find(path: Option<&Path>, normalize_newlines: bool, quiet: bool) -> Result<Corpus> {
    let corpus = if let Some(path) = path
        && path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() >= LARGE)
    {
        if normalize_newlines {
            bail!("--normalize-newlines is for a corpus below {} MiB: convert this one first", LARGE >> 20);
        }
        Corpus { text: Text::Mapped(TextFile::open(path)?), origin: Origin::File(path.into()), published: false }
    } else {
        let (mut text, origin) = find_small(path, quiet)?;
        if normalize_newlines {
            text = text.replace("\r\n", "\n").replace('\r', "\n");
        }
        Corpus { published: hash(text.as_bytes()) == SHA_256, text: Text::Loaded(text), origin }
    };
    let vocabulary = corpus.text.vocabulary();
    if vocabulary.encode("\r").is_ok() {
        warn(
            "the corpus has carriage returns, which are characters to learn; --normalize-newlines makes line feeds of \
             them",
        );
    }
    if vocabulary.encode("\u{feff}").is_ok() {
        warn("the corpus has byte-order marks (U+FEFF) inside, which are characters to learn");
    }
    Ok(corpus)
}

fn find_small(path: Option<&Path>, quiet: bool) -> Result<(String, Origin)> {
    if let Some(path) = path {
        let bytes = std::fs::read(path).with_context(|| format!("the corpus {} cannot be read", path.display()))?;
        return Ok((decode(&bytes, &path.display().to_string())?, Origin::File(path.into())));
    }
    let cache = ProjectDirs::from("", "", "elman").map(|dirs| dirs.cache_dir().join("nietzsche.txt"));
    if let Some(path) = &cache
        && let Ok(bytes) = std::fs::read(path)
        && let Ok(text) = decode(&bytes, "the cached corpus")
    {
        warn_of_another_text(&bytes, &format!("{}; delete it to download the text again", path.display()));
        return Ok((text, Origin::Cache(path.clone())));
    }
    match download(quiet).and_then(|bytes| Ok((decode(&bytes, URL)?, bytes))) {
        Ok((text, bytes)) => {
            let kept = cache.filter(|path| keep(path, &bytes).is_ok());
            Ok((text, Origin::Download { kept }))
        }
        Err(error) => {
            let because = format!("the published text cannot be downloaded ({error:#})");
            Ok((SHIPPED.into(), Origin::Shipped { because }))
        }
    }
}

fn decode(bytes: &[u8], name: &str) -> Result<String> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{name} is not UTF-8 text; convert it first"))?;
    let text = text
        .strip_prefix('\u{feff}')
        .inspect(|_| warn(format_args!("{name}: the byte-order mark at its start is left out")))
        .unwrap_or(text);
    if text.is_empty() {
        bail!("{name} is empty; the corpus must be a UTF-8 text");
    }
    Ok(text.into())
}

fn download(quiet: bool) -> Result<Vec<u8>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into();
    let url = std::env::var("ELMAN_CORPUS_URL").unwrap_or_else(|_| URL.into());
    let response = agent.get(&url).call()?;
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(BYTES) };
    bar.set_style(ProgressStyle::with_template("downloading {bar:40} {bytes}/{total_bytes} {eta}")?);
    let mut bytes = Vec::new();
    bar.wrap_read(response.into_body().into_reader()).take(MOST_BYTES).read_to_end(&mut bytes)?;
    bar.finish_and_clear();
    warn_of_another_text(&bytes, &url);
    Ok(bytes)
}

/// Another text than the published one is a warning, not a stop.
fn warn_of_another_text(bytes: &[u8], origin: &str) {
    let hash = hash(bytes);
    if hash != SHA_256 {
        warn(format_args!("this is not the published text (SHA-256 {hash}, expected {SHA_256}): {origin}"));
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keep(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a cache file has a folder")?)?;
    elman::io::write_atomically(path, bytes)?;
    Ok(())
}
