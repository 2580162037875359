//! Many to many: the part of speech of every word, in sentences of any length, by a bidirectional LSTM.
//!
//! Half of the words are ambiguous: the word before tells a noun from a verb, the word after an adjective from an adverb.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use common::{DeviceArgs, announce, mean, say};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Reduction, accuracy, cross_entropy};
use elman::nn::{Embedding, Init, Linear, Lstm, RnnOptions};
use elman::rng::{self, Rng};
use elman::{Evaluator, Graph, Tensor, Trainer, Var, optim::Adam};

/// Words that may be a determiner, an adjective, a noun, an adverb, a verb, a conjunction; 0 is padding.
const WORDS: [[u32; 2]; 6] = [[1, 10], [10, 700], [700, 1500], [400, 800], [1100, 1990], [1990, 2000]];
const VOCABULARY: usize = 2000;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Seed of the sentences, their order and the initial weights
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

/// Words and tags: noun phrase, perhaps adverbs, verb, noun phrase; and so on, up to four times.
fn sentence(rng: &mut Rng) -> (Vec<u32>, Vec<u32>) {
    let mut tags = Vec::new();
    for clause in 0..=rng.next_u32() % 4 {
        tags.extend([5].iter().filter(|_| clause > 0));
        for end in [4, 5] {
            let some = |rng: &mut Rng, tag| vec![tag; (rng.next_u32() % 4 / 2 * (1 + rng.next_u32() % 3)) as usize];
            tags.extend([vec![0], some(rng, 1), vec![2], some(rng, 3)].concat());
            tags.extend([4].iter().filter(|&&verb| verb == end));
        }
    }
    let word = |&tag: &u32| WORDS[tag as usize][0] + rng.next_u32() % (WORDS[tag as usize][1] - WORDS[tag as usize][0]);
    (tags.iter().map(word).collect(), tags)
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let sentences: Vec<_> = (0..5000).map(|_| sentence(&mut init.rng)).collect();
    let (training, held_out) = sentences.split_at(4000);
    let embedding = Embedding::new(&mut init, "embedding", VOCABULARY, 32)?;
    let lstm = Lstm::new(&mut init, "lstm", RnnOptions::new(32, 32).bidirectional(true))?;
    let output = Linear::new(&mut init, "output", 64, WORDS.len())?;
    let parameters = init.upload(&device)?;
    let logits = |g: &mut Graph, words: &Tensor, lengths: &Tensor| -> elman::Result<Var> {
        let x = embedding.forward(g, words)?;
        let out = lstm.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
        output.forward(g, out.output) // [T, B, 6]
    };
    let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [words, tags, lengths]| {
        let logits = logits(g, words, lengths)?;
        cross_entropy(g, logits, tags, Reduction::Mean)
    })?;
    let mut evaluator = Evaluator::on_batches(&parameters, |g, [words, tags, lengths]| {
        let logits = logits(g, words, lengths)?;
        Ok([cross_entropy(g, logits, tags, Reduction::Mean)?, accuracy(g, logits, tags, Reduction::Mean)?])
    })?;
    let batch = |sentences: &[&(Vec<u32>, Vec<u32>)]| -> elman::Result<[Array; 3]> {
        let (words, tags): (Vec<_>, Vec<_>) = sentences.iter().map(|sentence| (&sentence.0, &sentence.1)).unzip();
        let lengths = Array::lengths_of("lengths", &words)?;
        Ok([Array::pad_tokens("words", words, 0, VOCABULARY)?, Array::pad_targets("tags", tags, WORDS.len())?, lengths])
    };
    let lengths: Vec<usize> = training.iter().map(|(words, _)| words.len()).collect();
    let held_out: Vec<_> =
        held_out.chunks(32).map(|some| batch(&some.iter().collect::<Vec<_>>())).collect::<Result<_, _>>()?;
    for epoch in 1..=4 {
        let order = data::batches_by_length(&mut init.rng, &lengths, 32);
        let batches = order.iter().map(|rows| batch(&data::pick(training, rows)));
        data::ahead(batches, |mut batches| batches.try_for_each(|batch| trainer.step_on(&batch?)))?;
        let (loss, [held_out_loss, accuracy]) = (mean(&trainer.losses()?), evaluator.means(&held_out)?);
        say!("epoch {epoch}: loss {loss:.4}, held-out loss {held_out_loss:.4}, accuracy {accuracy:.4}");
    }
    Ok(ExitCode::SUCCESS)
}
