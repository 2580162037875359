//! RNNoise (Valin 2018) with the weights of the crate `nnnoiseless` 0.5.2 (BSD-3): three GRUs with relu, which reset before their product,
//! hear 42 features of every 10 ms and say how much of each of 22 bands is speech. What makes features of a recording and applies the gains to
//! it is signal processing, and the crate's.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use elman::data::Array;
use elman::io::ModelFile;
use elman::nn::functional::{InitialState, concat, sigmoid, tanh};
use elman::nn::{Activation, Gru, Init, Linear, Parameters, RnnOptions, State};
use elman::{Device, Graph, Predictor, Stream, Tensor, Var};

use crate::fetched::fetched;

#[derive(Args)]
pub struct Options {
    /// Features of a recording's frames, as `tests/fixtures/published/rnnoise` writes them [default: those of the folder]
    features: Option<PathBuf>,
    /// Frame by frame, as they would come from a microphone, rather than in blocks: the same numbers, later
    #[arg(long)]
    one_by_one: bool,
}

/// For each frame, its second, the probability of speech and the 22 gains, from low to high.
pub fn run(device: &Device, folder: &Path, options: &Options) -> Result<()> {
    let features = match &options.features {
        Some(path) => path.clone(),
        None => fetched(folder, "rnnoise_frames.safetensors")?,
    };
    let (network, parameters) = RnNoise::read(device, &fetched(folder, "rnnoise.safetensors")?)?;
    let states = network.states(device)?;
    let features = ModelFile::open(features)?;
    let is_fit = matches!(features.shape("features"), None | Some(&[_, FEATURES]));
    ensure!(is_fit, "the `features` of {} must be [T, {FEATURES}]", features.path().display());
    let path = features.path();
    let (seconds, features) = (features.values("seconds")?, features.values("features")?);
    let frames = features.len() / FEATURES;
    ensure!(seconds.len() == frames, "{} has {} `seconds` of {frames} frames", path.display(), seconds.len());
    let (gains, speech) = match options.one_by_one {
        false => in_blocks(&mut network.predictor(&parameters, &states), &features)?,
        true => one_by_one(&mut network.stream(&parameters, states)?, &features)?,
    };
    let mut out = std::io::stdout().lock();
    for ((second, gains), speech) in seconds.iter().zip(gains.chunks(BANDS)).zip(speech) {
        let gains: Vec<_> = gains.iter().map(|gain| format!("{gain:.3}")).collect();
        writeln!(out, "{second:.2}\t{speech:.3}\t{}", gains.join("\t"))?;
    }
    Ok(())
}

pub const FEATURES: usize = 42;
pub const BANDS: usize = 22;
/// Frames in a run of a plan.
const BLOCK: usize = 512;

pub struct RnNoise {
    dense: Linear,
    vad: Gru,
    noise: Gru,
    denoise: Gru,
    speech: Linear,
    gains: Linear,
}

impl RnNoise {
    pub fn read(device: &Device, path: &Path) -> elman::Result<(Self, Parameters)> {
        let file = ModelFile::open(path)?;
        let mut init = Init::from_file(&file);
        let mut gru = |name: &str| {
            let options = RnnOptions::from_file(&file, name)?.reset_after(false);
            let gates = [Activation::Sigmoid, Activation::Sigmoid, Activation::Relu];
            Gru::new(&mut init, name, options.activations(&gates))
        };
        let (vad, noise, denoise) = (gru("vad_gru")?, gru("noise_gru")?, gru("denoise_gru")?);
        let mut linear = |name: &str| Linear::from_file(&mut init, name);
        let (dense, speech, gains) = (linear("input_dense")?, linear("vad_output")?, linear("denoise_output")?);
        let parameters = init.upload(device)?;
        Ok((Self { dense, vad, noise, denoise, speech, gains }, parameters))
    }

    pub fn states(&self, device: &Device) -> elman::Result<[State; 3]> {
        Ok([self.vad.state(device, 1)?, self.noise.state(device, 1)?, self.denoise.state(device, 1)?])
    }

    /// Features `[T, 1, 42]` to gains `[T, 1, 22]` and the probability of speech `[T, 1, 1]`; the states move on.
    fn record(&self, g: &mut Graph, x: &Tensor, states: &[State; 3]) -> elman::Result<[Var; 2]> {
        let x = g.input(x)?;
        let [of_vad, of_noise, of_denoise] = states.each_ref().map(InitialState::Carried);
        let dense = self.dense.forward(g, x)?;
        let dense = tanh(g, dense)?;
        let vad = self.vad.forward(g, dense, of_vad)?.output;
        let heard = concat(g, &[dense, vad, x], -1)?;
        let noise = self.noise.forward(g, heard, of_noise)?.output;
        let heard = concat(g, &[vad, noise, x], -1)?;
        let denoise = self.denoise.forward(g, heard, of_denoise)?.output;
        let gains = self.gains.forward(g, denoise)?;
        let speech = self.speech.forward(g, vad)?;
        Ok([sigmoid(g, gains)?, sigmoid(g, speech)?])
    }

    /// Takes blocks of any size.
    pub fn predictor<'a>(&'a self, parameters: &Parameters, states: &'a [State; 3]) -> Predictor<'a, 1, 2> {
        Predictor::new(parameters, move |g, [x]| self.record(g, x, states))
    }

    /// Takes frame by frame.
    pub fn stream(&self, parameters: &Parameters, states: [State; 3]) -> elman::Result<Stream<3, 2>> {
        Stream::new(parameters, [1, FEATURES], states, |g, x, states| self.record(g, x, states))
    }
}

/// Gains and probabilities of all frames.
pub fn in_blocks(predictor: &mut Predictor<'_, 1, 2>, features: &[f32]) -> elman::Result<(Vec<f32>, Vec<f32>)> {
    let (mut gains, mut speech) = (Vec::new(), Vec::new());
    for block in features.chunks(BLOCK * FEATURES) {
        let block = Array::new("features", &[block.len() / FEATURES, 1, FEATURES], block.to_vec())?;
        let [of_gains, of_speech] = predictor.run(&[block])?;
        gains.extend_from_slice(of_gains.values());
        speech.extend_from_slice(of_speech.values());
    }
    Ok((gains, speech))
}

/// The same, each frame by itself.
pub fn one_by_one(stream: &mut Stream<3, 2>, features: &[f32]) -> elman::Result<(Vec<f32>, Vec<f32>)> {
    let (mut gains, mut speech) = (Vec::new(), Vec::new());
    for frame in features.chunks(FEATURES) {
        let [of_gains, of_speech] = stream.push(frame)?;
        gains.extend_from_slice(of_gains);
        speech.extend_from_slice(of_speech);
    }
    Ok((gains, speech))
}
