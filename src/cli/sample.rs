//! `elman sample`: text on standard output, and nothing else there.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use elman::Generator;
use elman::generate::Sampling;
use serde_json::json;

use super::model::Model;
use super::sampling::SeededArgs;
use super::shared::{DeviceArgs, INTERRUPTED, RECOVERIES, with_separators};
use super::tokens::{Tokens, Unknown};

/// Write text with a model
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Options {
    /// Model file, or a run's folder: the best model there
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
    /// What the text starts with
    #[arg(short, long, value_name = "TEXT", conflicts_with_all = ["file", "lines"])]
    prompt: Option<String>,
    /// File that has what the text starts with; -: standard input, which is taken too where it is a pipe and nothing else is given
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// File with a prompt on each line: a text for each of them
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    lines: Option<PathBuf>,
    /// Tokens to draw; -1: until it is stopped
    #[arg(short = 'n', long = "length", default_value_t = 500, allow_negative_numbers = true, value_name = "N")]
    length: i64,
    /// Texts at the same time, each with draws of its own; they are printed when all are done
    #[arg(long, value_name = "N")]
    lanes: Option<usize>,
    /// End the text where this would come; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// What becomes of characters of the prompt that the model does not know
    #[arg(long, value_enum, default_value_t)]
    unknown: Unknown,
    /// Leave the prompt out of what is printed
    #[arg(long)]
    no_echo: bool,
    #[command(flatten)]
    sampling: SeededArgs,
    /// One JSON object for each text, in place of the text
    #[arg(long)]
    json: bool,
    /// No closing line on standard error
    #[arg(short, long)]
    quiet: bool,
}

const EXAMPLES: &str = "\
Examples:
  elman sample book -p 'It is' -n 1000
  elman sample book --temp 0.6 --min-p 0.05 --seed 7
  elman sample book -n -1 | less
  head -c 400 letter.txt | elman sample book --stop '\\n\\n'
  elman sample book --lines openings.txt -n 200 --json

In --stop, \\n and \\t are a line feed and a tab.";

static STOPPED: AtomicBool = AtomicBool::new(false);

pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    device.set_recoveries(RECOVERIES)?;
    let length = match options.length {
        -1 => usize::MAX,
        n => usize::try_from(n).ok().context("--length must be 0 or above, or -1 for text without end")?,
    };
    let model = Model::load(&options.model, &device)?;
    let prompts = prompts(options, &model.tokens)?;
    let sampling = options.sampling.sampling(&model.tokens);
    if prompts.len() > 1 || options.json {
        ensure!(length < usize::MAX, "several texts, or --json, need an end: give --length");
    }
    let mut generator = Generator::new(&model.network, &model.parameters, prompts.len())?;
    generator.set_sampling(sampling)?;
    let stops: Vec<Vec<u8>> = options.stop.iter().map(|stop| unescaped(stop).into_bytes()).collect();
    ensure!(stops.iter().all(|stop| !stop.is_empty()), "--stop must have at least one character");
    // Ctrl-C ends the text, not the program before its last line.
    let _ = ctrlc::set_handler(|| {
        if STOPPED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    });
    generator.prime_lanes(&prompts)?;
    let start = Instant::now();
    let mut texts: Vec<Written> = prompts.iter().map(|_| Written::new(&stops)).collect();
    let is_stream = prompts.len() == 1 && !options.json;
    let mut out = io::stdout().lock();
    if is_stream && !options.no_echo {
        out.write_all(&model.tokens.bytes(&prompts[0]))?;
        out.flush()?;
    }
    let mut failed = Ok(());
    let mut drawn = 0;
    generator.generate(length, |tokens| {
        for row in tokens.chunks_exact(texts.len()) {
            for (text, &token) in texts.iter_mut().zip(row).filter(|(text, _)| !text.has_ended) {
                text.add(&model.tokens.bytes(&[token]));
                drawn += 1;
            }
        }
        if is_stream {
            failed = out.write_all(&texts[0].take()).and_then(|()| out.flush());
        }
        failed.is_ok() && !STOPPED.load(Ordering::Relaxed) && !texts.iter().all(|text| text.has_ended)
    })?;
    failed?;
    if is_stream {
        out.write_all(&texts[0].rest())?;
    }
    for (lane, (text, prompt)) in texts.iter_mut().zip(&prompts).enumerate().filter(|_| !is_stream) {
        let (prompt, text) = (model.tokens.bytes(prompt), text.rest());
        if options.json {
            let [prompt, text] = [&prompt, &text].map(|bytes| String::from_utf8_lossy(bytes));
            writeln!(out, "{}", json!({ "lane": lane, "prompt": prompt, "text": text, "seed": sampling.seed }))?;
            continue;
        }
        if !options.no_echo {
            out.write_all(&prompt)?;
        }
        out.write_all(&text)?;
        if lane + 1 < prompts.len() {
            out.write_all(b"\n\n")?;
        }
    }
    // What comes after it on a terminal is on a line of its own; a file has the text alone.
    if !options.json && io::stdout().is_terminal() {
        writeln!(out)?;
    }
    out.flush()?;
    if !options.quiet {
        let seconds = start.elapsed().as_secs_f64();
        let Sampling { seed, .. } = sampling;
        let (count, unit) = (with_separators(drawn as u64), model.tokens.unit());
        let speed = with_separators((drawn as f64 / seconds) as u64);
        let _ = writeln!(
            io::stderr(),
            "{count} {unit} in {seconds:.2} s, {speed} a second; seed {seed}; {}",
            device.describe()
        );
    }
    Ok(if STOPPED.load(Ordering::Relaxed) { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// The tokens that each text starts with.
fn prompts(options: &Options, tokens: &Tokens) -> Result<Vec<Vec<u32>>> {
    let read = |path: &Path| {
        if path == Path::new("-") {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("standard input cannot be read")?;
            return Ok(bytes);
        }
        std::fs::read(path).with_context(|| format!("the prompt {} cannot be read", path.display()))
    };
    let encode = |bytes: &[u8], name: &str| match (tokens, std::str::from_utf8(bytes)) {
        (Tokens::Bytes, _) => Ok(tokens.known(bytes)),
        (_, Ok(text)) => tokens.encode(text, options.unknown).with_context(|| name.to_owned()),
        (_, Err(error)) => bail!("{name} is not UTF-8 text from byte {} on", error.valid_up_to()),
    };
    if let Some(file) = &options.lines {
        let name = file.display().to_string();
        let bytes = read(file)?;
        let mut prompts = Vec::new();
        for (line, bytes) in bytes.split(|&byte| byte == b'\n').enumerate() {
            let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            if !bytes.is_empty() {
                prompts.push(encode(bytes, &format!("line {} of {name}", line + 1))?);
            }
        }
        ensure!(!prompts.is_empty(), "{name} has no line with a prompt");
        if let Some(lanes) = options.lanes {
            ensure!(
                lanes == prompts.len(),
                "{name} has {} prompts, and --lanes says {lanes}: leave it out",
                prompts.len()
            );
        }
        return nonempty(prompts);
    }
    let prompt = match (&options.prompt, &options.file) {
        (Some(prompt), _) => encode(prompt.as_bytes(), "the prompt")?,
        (None, Some(file)) => encode(&read(file)?, &file.display().to_string())?,
        (None, None) => {
            let piped = if io::stdin().is_terminal() { Vec::new() } else { read(Path::new("-"))? };
            match piped.is_empty() {
                // Something has to be there: a line's end, before which anything may have stood.
                true => first(tokens),
                false => encode(&piped, "standard input")?,
            }
        }
    };
    let lanes = options.lanes.unwrap_or(1);
    ensure!(lanes > 0, "--lanes must be at least 1");
    nonempty(vec![prompt; lanes])
}

fn nonempty(prompts: Vec<Vec<u32>>) -> Result<Vec<Vec<u32>>> {
    ensure!(
        prompts.iter().all(|prompt| !prompt.is_empty()),
        "the prompt must have at least one character that the model knows"
    );
    Ok(prompts)
}

/// What a text starts with if nothing is said: a line's end, or whatever the model knows first.
pub fn first(tokens: &Tokens) -> Vec<u32> {
    let known = ["\n", " "].map(|text| tokens.known(text.as_bytes()));
    let other = [u32::from(tokens.never().is_some())].to_vec();
    known.into_iter().find(|tokens| !tokens.is_empty()).unwrap_or(other)
}

fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

/// A text as it comes, up to where it is to stop.
struct Written<'a> {
    stops: &'a [Vec<u8>],
    /// What may be printed only when it is known what follows.
    waiting: Vec<u8>,
    has_ended: bool,
}

impl<'a> Written<'a> {
    fn new(stops: &'a [Vec<u8>]) -> Self {
        Self { stops, waiting: Vec::new(), has_ended: false }
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.has_ended {
            return;
        }
        let known = self.waiting.len();
        self.waiting.extend_from_slice(bytes);
        let end = |stop: &Vec<u8>| {
            let from = known.saturating_sub(stop.len());
            self.waiting[from..].windows(stop.len()).position(|window| window == stop).map(|at| from + at)
        };
        if let Some(end) = self.stops.iter().filter_map(end).min() {
            self.waiting.truncate(end);
            self.has_ended = true;
        }
    }

    /// What can be printed now: all but what may be the beginning of a stop.
    fn take(&mut self) -> Vec<u8> {
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.waiting[*at..]));
        let end = if self.has_ended {
            self.waiting.len()
        } else {
            (0..self.waiting.len()).find(begins).unwrap_or(self.waiting.len())
        };
        self.waiting.drain(..end).collect()
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_found_wherever_it_is_cut() {
        let text = b"one, two; three";
        for stops in [&["two"][..], &["; th", "wo;"], &["x"], &["e, two; threeX", "; three"]] {
            let stops: Vec<Vec<u8>> = stops.iter().map(|stop| stop.as_bytes().to_vec()).collect();
            let find = |stop: &Vec<u8>| text.windows(stop.len()).position(|window| window == stop);
            let want = &text[..stops.iter().filter_map(find).min().unwrap_or(text.len())];
            for piece in 1..text.len() {
                let mut written = Written::new(&stops);
                let mut got = Vec::new();
                for piece in text.chunks(piece) {
                    written.add(piece);
                    got.extend(written.take());
                    assert!(want.starts_with(&got), "what was printed cannot be taken back");
                }
                got.extend(written.rest());
                assert_eq!(got, want, "{stops:?} in pieces of {piece}");
            }
        }
    }
}
