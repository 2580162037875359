//! Many to one: sentences of different lengths -> positive or negative.

mod common;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use common::decoder::time_major;
use common::{DeviceArgs, announce, argmax, say};
use elman::nn::functional::{InitialState, Reduction, cross_entropy, dropout, reshape, swap_axes};
use elman::nn::{Embedding, Gru, Init, Linear, RnnOptions};
use elman::optim::Adam;
use elman::text::hold_out;
use elman::{Device, Graph, Tensor, Trainer, Var, rng};

/// Reviews written for this project, in the public domain (see the README beside them).
const REVIEWS: &str = include_str!("data/reviews.tsv");
const EMBEDDING: usize = 16;
const HIDDEN: usize = 16;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Passes over the training reviews
    #[arg(long, default_value_t = 60)]
    epochs: usize,
    /// Seed of the split, the initial weights and the dropout
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

/// A bidirectional GRU over the words; its last states, side by side, decide.
struct Network {
    embedding: Embedding,
    gru: Gru,
    output: Linear,
}

/// Reviews of different lengths on a device.
struct Batch {
    /// `[T, B]`, padded with 0
    words: Tensor,
    /// `[B]`
    lengths: Tensor,
    /// `[B]`: 1 is positive
    labels: Vec<u32>,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let reviews = REVIEWS.lines().map(|line| line.split_once('\t').context("a review is label, tab, text"));
    let reviews = reviews.collect::<Result<Vec<_>>>()?;
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let (training, held_out) = hold_out(&init.rng.randperm(reviews.len()), 0.2);
    let pick = |indices: &[u32]| indices.iter().map(|&i| reviews[i as usize]).collect::<Vec<_>>();
    let (training, held_out) = (pick(&training), pick(&held_out));

    // Token 0 stands for padding and for words that the training reviews lack.
    let mut vocabulary = BTreeMap::new();
    for word in training.iter().flat_map(|(_, text)| words(text)) {
        let next = vocabulary.len() as u32 + 1;
        vocabulary.entry(word).or_insert(next);
    }
    let size = vocabulary.len() + 1;
    let network = Network {
        embedding: Embedding::new(&mut init, "embedding", size, EMBEDDING)?,
        gru: Gru::new(&mut init, "gru", RnnOptions::new(EMBEDDING, HIDDEN).bidirectional(true))?,
        output: Linear::new(&mut init, "output", 2 * HIDDEN, 2)?,
    };
    let parameters = init.upload(&device)?;
    let (training, held_out) = (batch(&device, &training, &vocabulary)?, batch(&device, &held_out, &vocabulary)?);
    say!("{} reviews to learn, {} held out, {size} words", training.labels.len(), held_out.labels.len());

    let labels = device.targets("labels", &[training.labels.len()], 2)?;
    labels.write_u32(&training.labels)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let logits = network.forward(g, &training, options.seed)?;
        cross_entropy(g, logits, &labels, Reduction::Mean)
    })?;
    let mut g = Graph::inference(&parameters);
    let logits = network.forward(&mut g, &held_out, 0)?;
    let logits = g.tensor(logits)?;
    let evaluation = g.finish()?;

    for epoch in 1..=options.epochs {
        trainer.step()?;
        if epoch % 10 == 0 || epoch == options.epochs {
            evaluation.run()?;
            let predicted = logits.to_vec()?.chunks(2).map(|row| argmax(row) as u32).collect::<Vec<_>>();
            let right = predicted.iter().zip(&held_out.labels).filter(|(p, l)| p == l).count();
            let loss = trainer.losses()?.last().copied().unwrap_or(f32::NAN);
            say!("epoch {epoch}: loss {loss:.4}, held-out accuracy {:.3}", right as f64 / predicted.len() as f64);
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// `[B, 2]`
    fn forward(&self, g: &mut Graph, batch: &Batch, seed: u32) -> elman::Result<Var> {
        let reviews = batch.labels.len();
        let x = self.embedding.forward(g, &batch.words)?;
        let x = dropout(g, x, 0.5, seed)?;
        let out = self.gru.forward_with_lengths(g, x, InitialState::Zero, &batch.lengths)?;
        // [2, B, H]: the state after each review's last word, and the other direction's after its first.
        let sides = swap_axes(g, out.h_n)?;
        let sides = reshape(g, sides, &[reviews, 2 * HIDDEN])?;
        self.output.forward(g, sides)
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

fn batch(device: &Device, reviews: &[(&str, &str)], vocabulary: &BTreeMap<String, u32>) -> Result<Batch> {
    let token = |word: String| vocabulary.get(&word).copied().unwrap_or(0);
    let rows: Vec<Vec<u32>> = reviews.iter().map(|(_, text)| words(text).map(token).collect()).collect();
    let steps = rows.iter().map(Vec::len).max().unwrap_or(0);
    let tokens = device.tokens("words", &[steps, rows.len()], vocabulary.len() + 1)?;
    tokens.write_u32(&time_major(&rows, steps))?;
    let lengths = device.lengths("lengths", rows.len(), steps)?;
    lengths.write_u32(&rows.iter().map(|row| row.len() as u32).collect::<Vec<_>>())?;
    let labels = reviews.iter().map(|(label, _)| u32::from(*label == "positive")).collect();
    Ok(Batch { words: tokens, lengths, labels })
}
