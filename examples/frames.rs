//! Many to many: a label for every frame of a film, by a bidirectional LSTM.
//!
//! A dot moves over a small, noisy picture, and a frame's label is what the dot does next. The frames so far do not
//! tell when it turns: reading forward alone, an LSTM gets two labels of three. The direction that reads
//! backwards knows.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use common::{DeviceArgs, announce, say, say_loss};
use elman::data::Array;
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Init, Linear, Lstm, RnnOptions};
use elman::optim::Adam;
use elman::rng::{self, Rng};
use elman::{Graph, Predictor, Tensor, Trainer, Var};

/// A picture is this wide and this high.
const SIDE: usize = 6;
const PIXELS: usize = SIDE * SIDE;
/// Standard deviation of the noise in each pixel; the dot is 1, the rest of the picture 0.
const NOISE: f32 = 0.1;
/// Frames of the shortest and of the longest film.
const FRAMES: [usize; 2] = [10, 20];
/// What the dot does in a stretch: how it is printed, and by how much the dot moves right and down in a frame.
const MOVES: [(char, [isize; 2]); 5] = [('<', [-1, 0]), ('>', [1, 0]), ('^', [0, -1]), ('v', [0, 1]), ('-', [0, 0])];
const LONGEST_STRETCH: usize = 5;
/// The label past the end of a film: the dot does not move any more.
const REST: u32 = 4;
const HIDDEN: usize = 32;
const BATCH: usize = 32;
const HELD_OUT: usize = 200;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Training steps, each on films of its own
    #[arg(long, default_value_t = 1500)]
    steps: usize,
    /// Seed of the films and of the initial weights
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

struct Network {
    lstm: Lstm,
    output: Linear,
}

struct Film {
    /// `PIXELS` a frame
    frames: Vec<f32>,
    /// What the dot does next: indices of `MOVES`.
    labels: Vec<u32>,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let network = Network {
        lstm: Lstm::new(&mut init, "lstm", RnnOptions::new(PIXELS, HIDDEN).bidirectional(true))?,
        output: Linear::new(&mut init, "output", 2 * HIDDEN, MOVES.len())?,
    };
    let parameters = init.upload(&device)?;
    let mut films = |count| (0..count).map(|_| Film::draw(&mut init.rng)).collect::<Vec<_>>();
    let held_out = films(HELD_OUT);

    let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [frames, lengths, labels]| {
        let logits = network.forward(g, frames, lengths)?;
        cross_entropy(g, logits, labels, Reduction::Mean)
    })?;
    for _ in 0..options.steps {
        trainer.step_on(&batch(&films(BATCH))?)?;
        say_loss(&mut trainer, 100, options.steps)?;
    }

    let mut predictor = Predictor::new(&parameters, |g, [frames, lengths]| Ok([network.forward(g, frames, lengths)?]));
    let [frames, lengths, labels] = batch(&held_out)?;
    let [logits] = predictor.run(&[frames, lengths])?;
    let accuracy = logits.accuracy(&labels)?;
    // Film by film, where the network has them frame by frame.
    let predicted = logits.swap_axes()?.argmax();
    let first = &held_out[0].labels;
    let print = |labels: &[u32]| labels.iter().map(|&label| MOVES[label as usize].0).collect::<String>();
    say!("a held-out film: {}", print(first));
    say!("the network says: {}", print(&predicted[..first.len()]));
    say!("held-out frame accuracy: {accuracy:.3}");
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// `[T, B, 5]`: each frame's output is both directions' side by side, the past and the future of that frame.
    fn forward(&self, g: &mut Graph, frames: &Tensor, lengths: &Tensor) -> elman::Result<Var> {
        let x = g.input(frames)?;
        let out = self.lstm.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
        self.output.forward(g, out.output)
    }
}

/// Films side by side, time first: frames `[T, B, PIXELS]`, lengths `[B]`, labels `[T, B]`.
fn batch(films: &[Film]) -> elman::Result<[Array; 3]> {
    let labels = || films.iter().map(|film| &film.labels);
    Ok([
        Array::pad("frames", films.iter().map(|film| &film.frames), PIXELS)?,
        Array::lengths_of("lengths", labels())?,
        Array::pad_targets("labels", labels(), MOVES.len())?,
    ])
}

impl Film {
    /// Stretches of random length and direction, until the film is full. What would leave the picture is drawn again.
    fn draw(rng: &mut Rng) -> Self {
        let [shortest, longest] = FRAMES;
        let length = shortest + below(rng, longest - shortest + 1);
        let mut dot = [below(rng, SIDE), below(rng, SIDE)];
        let (mut frames, mut labels) = (Vec::new(), Vec::new());
        let (mut label, mut left) = (REST, 0);
        while labels.len() < length {
            let mut pixels: Vec<f32> = rng.randn(PIXELS).into_iter().map(|noise| NOISE * noise).collect();
            pixels[dot[1] * SIDE + dot[0]] += 1.0;
            let next = loop {
                if left == 0 {
                    (label, left) = (below(rng, MOVES.len()) as u32, 1 + below(rng, LONGEST_STRETCH));
                }
                match moved(dot, label) {
                    Some(next) => break next,
                    None => left = 0,
                }
            };
            frames.extend(pixels);
            labels.push(label);
            (dot, left) = (next, left - 1);
        }
        // What comes after the last frame is not in the film: there the dot rests.
        labels[length - 1] = REST;
        Self { frames, labels }
    }
}

/// Where the dot is after a move, if that is in the picture.
fn moved([x, y]: [usize; 2], label: u32) -> Option<[usize; 2]> {
    let [right, down] = MOVES[label as usize].1;
    let next = [x.checked_add_signed(right)?, y.checked_add_signed(down)?];
    next.iter().all(|&at| at < SIDE).then_some(next)
}

/// Uniform in 0..n.
fn below(rng: &mut Rng, n: usize) -> usize {
    rng.randint(n as u32, 1)[0] as usize
}
