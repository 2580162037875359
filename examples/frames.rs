//! Many to many: a label for every frame of a film, by a bidirectional LSTM.
//!
//! A dot moves over a small, noisy picture, and a frame's label is what the dot does next. The frames so far do not
//! tell when it turns: reading forward alone, an LSTM gets two labels of three. The direction that reads
//! backwards knows.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use common::{DeviceArgs, announce, argmax, say};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Init, Linear, Lstm, RnnOptions};
use elman::optim::Adam;
use elman::rng::{self, Rng};
use elman::{DType, Device, Graph, NO_TARGET, Tensor, Trainer, Var};

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

struct Frame {
    pixels: [f32; PIXELS],
    /// What the dot does next: an index of `MOVES`.
    label: u32,
}

/// Films of different lengths on a device.
struct Batch {
    /// `[T, B, PIXELS]`, padded with 0
    frames: Tensor,
    /// `[B]`
    lengths: Tensor,
    /// `[T, B]`, padded with `NO_TARGET`
    labels: Tensor,
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
    let (training, held_out) = (Batch::new(&device, BATCH)?, Batch::new(&device, HELD_OUT)?);
    let films: Vec<_> = (0..HELD_OUT).map(|_| film(&mut init.rng)).collect();
    held_out.write(&films)?;

    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let logits = network.forward(g, &training)?;
        cross_entropy(g, logits, &training.labels, Reduction::Mean)
    })?;
    let mut g = Graph::inference(&parameters);
    let logits = network.forward(&mut g, &held_out)?;
    let logits = g.tensor(logits)?;
    let evaluation = g.finish()?;

    for step in 1..=options.steps {
        training.write(&(0..BATCH).map(|_| film(&mut init.rng)).collect::<Vec<_>>())?;
        trainer.step()?;
        if step % 100 == 0 || step == options.steps {
            let losses = trainer.losses()?;
            say!("step {step}: loss {:.4}", losses.iter().sum::<f32>() / losses.len() as f32);
        }
    }

    evaluation.run()?;
    let predicted: Vec<_> = logits.to_vec()?.chunks(MOVES.len()).map(|row| argmax(row) as u32).collect();
    let labels = held_out.labels.to_vec_u32()?;
    let real = labels.iter().filter(|&&label| label != NO_TARGET).count();
    let right = labels.iter().zip(&predicted).filter(|(label, predicted)| label == predicted).count();
    // The first film is every HELD_OUT-th entry.
    let print = |labels: &[u32]| -> String {
        let first = labels.iter().step_by(HELD_OUT).take(films[0].len());
        first.map(|&label| MOVES[label as usize].0).collect()
    };
    say!("a held-out film: {}", print(&labels));
    say!("the network says: {}", print(&predicted));
    say!("held-out frame accuracy: {:.3}", right as f64 / real as f64);
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// `[T, B, 5]`: each frame's output is both directions' side by side, the past and the future of that frame.
    fn forward(&self, g: &mut Graph, batch: &Batch) -> elman::Result<Var> {
        let x = g.input(&batch.frames)?;
        let out = self.lstm.forward_with_lengths(g, x, InitialState::Zero, &batch.lengths)?;
        self.output.forward(g, out.output)
    }
}

impl Batch {
    fn new(device: &Device, films: usize) -> elman::Result<Self> {
        let steps = FRAMES[1];
        Ok(Self {
            frames: device.zeros("frames", &[steps, films, PIXELS], DType::F32)?,
            lengths: device.lengths("lengths", films, steps)?,
            labels: device.targets("labels", &[steps, films], MOVES.len())?,
        })
    }

    /// Puts the films side by side, time first.
    fn write(&self, films: &[Vec<Frame>]) -> elman::Result<()> {
        let frames = (0..FRAMES[1]).flat_map(|t| films.iter().map(move |film| film.get(t)));
        let pixels = frames.clone().flat_map(|frame| frame.map_or([0.0; PIXELS], |frame| frame.pixels));
        let labels = frames.map(|frame| frame.map_or(NO_TARGET, |frame| frame.label));
        self.frames.write(&pixels.collect::<Vec<_>>())?;
        self.labels.write_u32(&labels.collect::<Vec<_>>())?;
        self.lengths.write_u32(&films.iter().map(|film| film.len() as u32).collect::<Vec<_>>())
    }
}

/// Stretches of random length and direction, until the film is full. What would leave the picture is drawn again.
fn film(rng: &mut Rng) -> Vec<Frame> {
    let [shortest, longest] = FRAMES;
    let length = shortest + below(rng, longest - shortest + 1);
    let mut dot = [below(rng, SIDE), below(rng, SIDE)];
    let mut film = Vec::new();
    let (mut label, mut left) = (REST, 0);
    while film.len() < length {
        let mut pixels = [0.0; PIXELS];
        pixels.iter_mut().zip(rng.randn(PIXELS)).for_each(|(pixel, noise)| *pixel = NOISE * noise);
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
        film.push(Frame { pixels, label });
        (dot, left) = (next, left - 1);
    }
    // What comes after the last frame is not in the film: there the dot rests.
    film[length - 1].label = REST;
    film
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
