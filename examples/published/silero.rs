//! Silero VAD 6.2.3 (MIT), `silero_vad_16k_sequence.onnx` of PyPI's `silero-vad`: a transform, four convolutions, an LSTM of 128.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use elman::data::Array;
use elman::nn::functional::reshape;
use elman::nn::{Parameters, State};
use elman::onnx::Model;
use elman::{Device, Graph, Predictor, Stream, Var};

use crate::fetched::fetched;

#[derive(Args)]
pub struct Options {
    /// A WAV file of 16 kHz and one channel
    recording: PathBuf,
    /// Frame by frame, as they would come from a microphone, rather than in blocks: the same numbers, later
    #[arg(long)]
    one_by_one: bool,
}

pub fn run(device: &Device, folder: &Path, options: &Options) -> Result<()> {
    let path = fetched(folder, "silero.onnx")?;
    let samples = read_wav(&options.recording)?;
    let model = Model::read(path)?;
    let parameters = model.parameters(device)?;
    let state = state(device)?;
    let frames = frames(&samples);
    let probabilities = match options.one_by_one {
        false => in_blocks(&mut predictor(&model, &parameters, &state), &frames)?,
        true => one_by_one(&mut stream(&model, &parameters, state)?, &frames)?,
    };
    let seconds = |samples: usize| samples as f64 / RATE as f64;
    for Range { start, end } in segments(&probabilities, samples.len()) {
        writeln!(std::io::stdout(), "{:8.3} s to {:8.3} s", seconds(start), seconds(end))?;
    }
    Ok(())
}

/// Samples a second.
const RATE: usize = 16_000;
/// New samples in a frame.
const NEW: usize = 512;
/// Samples of the frame before, in front of them.
const CONTEXT: usize = 64;
/// Samples that the network takes for a frame.
pub const FRAME: usize = CONTEXT + NEW;
/// Frames in a run of a plan.
const BLOCK: usize = 512;

/// The samples of a recording, in -1..1.
pub fn read_wav(path: &Path) -> Result<Vec<f32>> {
    let in_file = || format!("{} cannot be read", path.display());
    let mut reader = hound::WavReader::open(path).with_context(in_file)?;
    let hound::WavSpec { channels, sample_rate, bits_per_sample, sample_format } = reader.spec();
    ensure!(
        channels == 1 && sample_rate as usize == RATE,
        "{} must have one channel of {RATE} Hz, but has {channels} of {sample_rate}",
        path.display()
    );
    let samples: hound::Result<Vec<_>> = match sample_format {
        hound::SampleFormat::Float => reader.samples().collect(),
        hound::SampleFormat::Int => {
            let most = (1u64 << (bits_per_sample - 1)) as f32;
            reader.samples::<i32>().map(|sample| sample.map(|sample| sample as f32 / most)).collect()
        }
    };
    let samples = samples.with_context(in_file)?;
    let is_number = samples.iter().all(|sample| sample.is_finite());
    ensure!(is_number, "{} has samples that are no finite numbers", path.display());
    Ok(samples)
}

/// `[N, 576]`: frames of 512 samples, the last filled up with zeros, each behind the 64 samples before it.
pub fn frames(samples: &[f32]) -> Vec<f32> {
    let mut padded = vec![0.0; CONTEXT];
    padded.extend_from_slice(samples);
    padded.resize(CONTEXT + samples.len().next_multiple_of(NEW), 0.0);
    (CONTEXT..padded.len()).step_by(NEW).flat_map(|at| &padded[at - CONTEXT..at + NEW]).copied().collect()
}

/// What the LSTM carries from frame to frame.
pub fn state(device: &Device) -> elman::Result<State> {
    State::zeros(device, &[("h", [1, 1, 128]), ("c", [1, 1, 128])])
}

/// Frames `[N, 576]` to the probability that somebody speaks in each; the state moves on.
fn record(model: &Model, g: &mut Graph, frames: Var, state: &State) -> elman::Result<Var> {
    let (h, c) = (state.get(g, "h")?, state.get(g, "c")?);
    let out = model.record(g, &[("input", frames.into()), ("h", h.into()), ("c", c.into())])?;
    state.set(g, "h", out.get("hn")?)?;
    state.set(g, "c", out.get("cn")?)?;
    out.get("speech_probs")
}

/// Takes blocks of any size.
pub fn predictor<'a>(model: &'a Model, parameters: &Parameters, state: &'a State) -> Predictor<'a, 1, 1> {
    Predictor::new(parameters, move |g, [frames]| {
        let frames = g.input(frames)?;
        Ok([record(model, g, frames, state)?])
    })
}

pub fn in_blocks(predictor: &mut Predictor<'_, 1, 1>, frames: &[f32]) -> elman::Result<Vec<f32>> {
    let mut probabilities = Vec::new();
    for block in frames.chunks(BLOCK * FRAME) {
        let block = Array::new("frames", &[block.len() / FRAME, FRAME], block.to_vec())?;
        let [of_block] = predictor.run(&[block])?;
        probabilities.extend_from_slice(of_block.values());
    }
    Ok(probabilities)
}

/// Takes frame by frame.
pub fn stream(model: &Model, parameters: &Parameters, state: State) -> elman::Result<Stream<1, 1>> {
    Stream::new(parameters, [1, FRAME], [state], |g, frame, [state]| {
        let frame = g.input(frame)?;
        let frame = reshape(g, frame, &[1, FRAME])?;
        Ok([record(model, g, frame, state)?])
    })
}

pub fn one_by_one(stream: &mut Stream<1, 1>, frames: &[f32]) -> elman::Result<Vec<f32>> {
    let mut probabilities = Vec::new();
    for frame in frames.chunks(FRAME) {
        let [probability] = stream.push(frame)?;
        probabilities.extend_from_slice(probability);
    }
    Ok(probabilities)
}

/// Where there is speech in so many samples, as the package's `get_speech_timestamps` has it by default: from a frame of 0.5 on, until
/// frames below 0.35 come and none of 0.5 for 100 ms; what is longer than 250 ms, with 30 ms before and after it.
pub fn segments(probabilities: &[f32], samples: usize) -> Vec<Range<usize>> {
    let of_milliseconds = |ms| ms * RATE / 1000;
    let (least, silence, pad) = (of_milliseconds(250), of_milliseconds(100), of_milliseconds(30));
    let mut found = Vec::new();
    let (mut start, mut end) = (None, None);
    for (i, &probability) in probabilities.iter().enumerate() {
        let now = i * NEW;
        if probability >= 0.5 {
            start = start.or(Some(now));
            end = None;
        } else if let Some(from) = start
            && f64::from(probability) < 0.35
        {
            let to = *end.get_or_insert(now);
            if now - to >= silence {
                found.push(from..to);
                (start, end) = (None, None);
            }
        }
    }
    found.extend(start.map(|from| from..samples));
    found.retain(|speech| speech.len() > least);
    // The silence between two is longer than both pads.
    found.iter().map(|speech| speech.start.saturating_sub(pad)..samples.min(speech.end + pad)).collect()
}
