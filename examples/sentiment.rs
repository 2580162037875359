//! Many to one: sentences of different lengths -> positive or negative.

mod common;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use common::{DeviceArgs, announce, mean, say};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Reduction, cross_entropy, dropout, reshape, transpose};
use elman::nn::{Embedding, Gru, Init, Linear, RnnOptions};
use elman::optim::Adam;
use elman::{Graph, Predictor, Tensor, Trainer, Var, rng};

/// Reviews written for this project, in the public domain (see the README beside them).
const REVIEWS: &str = include_str!("data/reviews.tsv");
const EMBEDDING: usize = 16;
const HIDDEN: usize = 16;
const BATCH: usize = 32;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Passes over the training reviews
    #[arg(long, default_value_t = 30)]
    epochs: usize,
    /// Seed of the split, the initial weights, the batches and the dropout
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

/// A bidirectional GRU over the words; its last states, side by side, decide.
struct Network {
    embedding: Embedding,
    gru: Gru,
    output: Linear,
}

/// Tokens, and the label: 1 is positive.
type Review = (Vec<u32>, u32);

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
    let (training, held_out) = data::split(&mut init.rng, &reviews, 0.2);
    // Token 0 stands for padding and for words that the training reviews lack.
    let mut vocabulary = BTreeMap::new();
    for word in training.iter().flat_map(|(_, text)| words(text)) {
        let next = vocabulary.len() as u32 + 1;
        vocabulary.entry(word).or_insert(next);
    }
    let size = vocabulary.len() + 1;
    let token = |word: String| vocabulary.get(&word).copied().unwrap_or(0);
    let review = |(label, text): &(&str, &str)| (words(text).map(token).collect(), u32::from(*label == "positive"));
    let [training, held_out] = [training, held_out].map(|part| part.iter().map(review).collect::<Vec<Review>>());
    let network = Network {
        embedding: Embedding::new(&mut init, "embedding", size, EMBEDDING)?,
        gru: Gru::new(&mut init, "gru", RnnOptions::new(EMBEDDING, HIDDEN).bidirectional(true))?,
        output: Linear::new(&mut init, "output", 2 * HIDDEN, 2)?,
    };
    let parameters = init.upload(&device)?;
    say!("{} reviews to learn, {} held out, {size} words", training.len(), held_out.len());

    let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [words, lengths, labels]| {
        let logits = network.forward(g, words, lengths, options.seed)?;
        cross_entropy(g, logits, labels, Reduction::Mean)
    })?;
    let mut predictor = Predictor::new(&parameters, |g, [words, lengths]| Ok([network.forward(g, words, lengths, 0)?]));
    let [words, lengths, labels] = batch(&held_out, size)?;
    let held_out = [words, lengths];
    let lengths: Vec<usize> = training.iter().map(|(words, _)| words.len()).collect();
    for epoch in 1..=options.epochs {
        for rows in data::batches_by_length(&mut init.rng, &lengths, BATCH) {
            trainer.step_on(&batch(data::pick(&training, &rows), size)?)?;
        }
        if epoch % 5 == 0 || epoch == options.epochs {
            let [logits] = predictor.run(&held_out)?;
            let accuracy = logits.accuracy(&labels)?;
            say!("epoch {epoch}: loss {:.4}, held-out accuracy {accuracy:.3}", mean(&trainer.losses()?));
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Network {
    /// `[B, 2]`
    fn forward(&self, g: &mut Graph, words: &Tensor, lengths: &Tensor, seed: u32) -> elman::Result<Var> {
        let x = self.embedding.forward(g, words)?;
        let x = dropout(g, x, 0.5, seed)?;
        let out = self.gru.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
        // [2, B, H]: the state after each review's last word, and the other direction's after its first.
        let sides = transpose(g, out.h_n, 0, 1)?;
        let sides = reshape(g, sides, &[lengths.len(), 2 * HIDDEN])?;
        self.output.forward(g, sides)
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Words `[T, B]`, lengths `[B]` and labels `[B]`.
fn batch<'a>(reviews: impl IntoIterator<Item = &'a Review>, size: usize) -> elman::Result<[Array; 3]> {
    let (texts, labels): (Vec<_>, Vec<_>) = reviews.into_iter().map(|(words, label)| (words, *label)).unzip();
    Ok([
        Array::pad_tokens("words", &texts, 0, size)?,
        Array::lengths_of("lengths", &texts)?,
        Array::targets("labels", &[texts.len()], labels, 2)?,
    ])
}
