//! One to many: a small picture -> a sentence about it, as long as it needs to be.
//!
//! The pictures are drawn here: a shape of some size and colour at some place, off by up to a pixel, in noise. A fifth
//! of all combinations of size, colour, shape and place is held out: the network has seen none of them in training.

mod common;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use common::decoder::Decoder;
use common::{DeviceArgs, announce, say, say_loss};
use elman::data::{self, Array};
use elman::nn::functional::{Reduction, cross_entropy, relu, reshape, tanh};
use elman::nn::{Init, Linear};
use elman::optim::{Adam, AdamW};
use elman::rng::{self, Rng};
use elman::schedule::CosineAnnealing;
use elman::{Graph, Predictor, Tensor, Trainer, Var};

const SIDE: usize = 19;
/// Red, green and blue of each pixel.
const VALUES: usize = SIDE * SIDE * 3;
/// Standard deviation of the noise in each value.
const NOISE: f32 = 0.1;
/// Pixels from the middle of a shape to its edge.
const SIZES: [(&str, i32); 3] = [("small ", 2), ("", 3), ("very large ", 4)];
/// Red, green and blue; on black, so that a shape of any colour shows in all three.
const COLOURS: [(&str, [f32; 3]); 6] = [
    ("red", [1.0, 0.5, 0.5]),
    ("green", [0.5, 1.0, 0.5]),
    ("blue", [0.5, 0.5, 1.0]),
    ("yellow", [1.0, 1.0, 0.5]),
    ("purple", [1.0, 0.5, 1.0]),
    ("white", [1.0, 1.0, 1.0]),
];
/// Whether a shape has the point x, y, for its radius r; its middle is 0, 0, and y points down.
type Covers = fn(i32, i32, i32) -> bool;
const SHAPES: [(&str, Covers); 4] = [
    ("square", |_, _, _| true),
    ("circle", |x, y, r| x * x + y * y <= r * r + 1),
    ("triangle", |x, y, r| 2 * x.abs() <= y + r),
    ("cross", |x, y, _| x == 0 || y == 0),
];
/// As they lie in the picture, four pixels apart.
#[rustfmt::skip]
const PLACES: [&str; 9] = [
    "at the top left",    "at the top",    "at the top right",
    "on the left",        "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
];
/// Held-out scenes are drawn this often, each time anew.
const DRAWINGS: usize = 4;
const BATCH: usize = 64;
const FEATURES: usize = 256;
const EMBEDDING: usize = 16;
const HIDDEN: usize = 128;
const LR: f64 = 3e-3;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Training steps, of 64 pictures each
    #[arg(long, default_value_t = 4000)]
    steps: usize,
    /// Seed of the split, the initial weights and the pictures
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

/// What is in a picture: indices of the tables above.
#[derive(Clone, Copy)]
struct Scene {
    size: usize,
    colour: usize,
    shape: usize,
    place: usize,
}

/// A perceptron reads the picture; what it makes of it is the decoder's initial state.
struct Network {
    pixels: Linear,
    features: Linear,
    decoder: Decoder,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let scenes: Vec<Scene> = (0..SIZES.len() * COLOURS.len() * SHAPES.len() * PLACES.len()).map(Scene::new).collect();
    let (training, held_out) = data::split(&mut init.rng, &scenes, 0.2);
    say!("{} scenes to learn, {} held out", training.len(), held_out.len());
    let held_out = held_out.repeat(DRAWINGS);

    let sentences: Vec<String> = scenes.iter().map(Scene::sentence).collect();
    let words: BTreeSet<&str> = sentences.iter().flat_map(|sentence| sentence.split(' ')).collect();
    let words: Vec<&str> = ["(padding)", "(start)", "(end)"].into_iter().chain(words).collect();
    let tokens = |scene: &Scene| {
        let token = |word| words.iter().position(|&w| w == word).unwrap_or(0) as u32;
        scene.sentence().split(' ').map(token).collect::<Vec<_>>()
    };
    let longest = sentences.iter().map(|sentence| sentence.split(' ').count()).max().unwrap_or(0);
    let network = Network {
        pixels: Linear::new(&mut init, "pixels", VALUES, FEATURES)?,
        features: Linear::new(&mut init, "features", FEATURES, HIDDEN)?,
        decoder: Decoder::new(&mut init, words.len(), EMBEDDING, HIDDEN)?,
    };
    let parameters = init.upload(&device)?;

    // The decay keeps the network from learning the training scenes by heart.
    let schedule = CosineAnnealing::new(LR, options.steps.max(1), 0.0)?;
    let optimizer = AdamW(Adam { weight_decay: 1.0, ..Adam::default() }).schedule(schedule);
    let mut trainer = Trainer::on_batches(&parameters, optimizer, |g, [pictures, input, target]| {
        let h = network.encode(g, pictures)?;
        let [logits, _] = network.decoder.forward(g, input, h)?;
        cross_entropy(g, logits, target, Reduction::Mean)
    })?;
    for _ in 0..options.steps {
        let draw = |_| training[init.rng.randint(training.len() as u32, 1)[0] as usize];
        let batch: Vec<Scene> = (0..BATCH).map(draw).collect();
        let sentences: Vec<_> = batch.iter().map(tokens).collect();
        let [input, target] = network.decoder.lesson(&sentences)?;
        trainer.step_on(&[drawn(&batch, &mut init.rng)?, input, target])?;
        say_loss(&mut trainer, 100, options.steps)?;
    }

    let pictures = drawn(&held_out, &mut init.rng)?;
    let mut encoder = Predictor::new(&parameters, |g, [pictures]| Ok([network.encode(g, pictures)?]));
    let [h] = encoder.run(std::array::from_ref(&pictures))?;
    let said = network.decoder.greedy(&parameters, h, longest)?;
    for (picture, sentence) in pictures.values().chunks(VALUES).zip(&said).take(3) {
        let sentence: Vec<&str> = sentence.iter().map(|&token| words[token as usize]).collect();
        say!("{}\n-> {}", art(picture), sentence.join(" "));
    }
    let right = said.iter().zip(&held_out).filter(|(said, scene)| **said == tokens(scene)).count();
    say!("held-out exact sentences: {:.3}", right as f64 / said.len() as f64);
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// `pictures` `[B, 3 SIDE SIDE]` to the decoder's initial state, `[1, B, H]`.
    fn encode(&self, g: &mut Graph, pictures: &Tensor) -> elman::Result<Var> {
        let x = g.input(pictures)?;
        let x = self.pixels.forward(g, x)?;
        let x = relu(g, x)?;
        let x = self.features.forward(g, x)?;
        let x = tanh(g, x)?;
        reshape(g, x, &[1, pictures.shape()[0], HIDDEN])
    }
}

impl Scene {
    fn new(index: usize) -> Self {
        let (index, size) = (index / SIZES.len(), index % SIZES.len());
        let (index, colour) = (index / COLOURS.len(), index % COLOURS.len());
        Self { size, colour, shape: index / PLACES.len(), place: index % PLACES.len() }
    }

    fn sentence(&self) -> String {
        let (size, colour) = (SIZES[self.size].0, COLOURS[self.colour].0);
        format!("a {size}{colour} {} {}", SHAPES[self.shape].0, PLACES[self.place])
    }

    /// `[SIDE, SIDE, 3]`
    fn draw(&self, rng: &mut Rng) -> Vec<f32> {
        let (radius, colour, covers) = (SIZES[self.size].1, COLOURS[self.colour].1, SHAPES[self.shape].1);
        let [x, y] = [self.place % 3, self.place / 3].map(|at| (4 + 4 * at) as i32 + (rng.next_u32() % 3) as i32);
        let mut picture = rng.randn(VALUES);
        for (i, pixel) in picture.chunks_mut(3).enumerate() {
            let (x, y) = ((i % SIDE) as i32 - x, (i / SIDE) as i32 - y);
            let inside = x.abs() <= radius && y.abs() <= radius && covers(x, y, radius);
            for (value, channel) in pixel.iter_mut().zip(colour) {
                *value = NOISE * *value + if inside { channel } else { 0.0 };
            }
        }
        picture
    }
}

/// A picture of each scene, `[B, 3 SIDE SIDE]`.
fn drawn(scenes: &[Scene], rng: &mut Rng) -> elman::Result<Array> {
    Array::new("pictures", &[scenes.len(), VALUES], scenes.iter().flat_map(|scene| scene.draw(rng)).collect())
}

/// The picture in letters: the first letter of each pixel's colour.
fn art(picture: &[f32]) -> String {
    let letter = |pixel: &[f32]| {
        let near = |&&(_, colour): &&(&str, [f32; 3])| colour.iter().zip(pixel).all(|(a, b)| (a - b).abs() < 0.25);
        COLOURS.iter().find(near).map_or(".", |(name, _)| &name[..1])
    };
    let row = |row: &[f32]| row.chunks(3).map(letter).collect::<Vec<_>>().join(" ");
    picture.chunks(3 * SIDE).map(row).collect::<Vec<_>>().join("\n")
}
