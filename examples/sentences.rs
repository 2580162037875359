//! Completes a sentence from its first characters, after three sentences of training.

mod common;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use common::{DeviceArgs, announce, argmax, say};
use elman::nn::functional::{InitialState, Reduction, cross_entropy};
use elman::nn::{Init, Linear, Parameters, Rnn, RnnOptions};
use elman::optim::Adam;
use elman::{DType, Graph, Trainer, rng};

const SENTENCES: [&str; 3] = ["hey how are you", "good i am fine", "have a nice day"];
const EPOCHS: usize = 100;
const HIDDEN: usize = 12;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Seed of the initial weights
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    // Padded with blanks to one length; the target is one character ahead of the input.
    let length = SENTENCES.iter().map(|sentence| sentence.len()).max().unwrap_or(0);
    let padded = SENTENCES.map(|sentence| format!("{sentence:length$}"));
    let characters: Vec<char> = SENTENCES.concat().chars().collect::<BTreeSet<_>>().into_iter().collect();
    let token = |character: char| characters.iter().position(|&c| c == character).unwrap_or(0);
    let (steps, size) = (length - 1, characters.len());
    let (mut input, mut target) = (Vec::new(), Vec::new());
    for sentence in &padded {
        say!("Input Sequence: {}\nTarget Sequence: {}", &sentence[..steps], &sentence[1..]);
        input.extend(sentence[..steps].chars().flat_map(|character| one_hot(token(character), size)));
        target.extend(sentence[1..].chars().map(|character| token(character) as u32));
    }
    let shape = [SENTENCES.len(), steps, size];
    say!("Input shape: {shape:?} --> (Batch Size, Sequence Length, One-Hot Encoding Size)");
    let input = device.upload("sentences", &shape, &input)?;
    let next = device.targets("next", &shape[..2], size)?;
    next.write_u32(&target)?;

    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let rnn = Rnn::new(&mut init, "rnn", RnnOptions::new(size, HIDDEN).batch_first(true))?;
    let fc = Linear::new(&mut init, "fc", HIDDEN, size)?;
    let parameters = init.upload(&device)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(0.01), |g| {
        let x = g.input(&input)?;
        let out = rnn.forward(g, x, InitialState::Zero)?;
        let logits = fc.forward(g, out.output)?;
        cross_entropy(g, logits, &next, Reduction::Mean)
    })?;
    for _ in 0..EPOCHS {
        trainer.step()?;
    }
    for (epoch, loss) in (1..).zip(trainer.losses()?).filter(|(epoch, _)| epoch % 10 == 0) {
        say!("Epoch: {epoch}/{EPOCHS}............. Loss: {loss:.4}");
    }
    for start in ["good", "hey", "have"] {
        let start: Vec<usize> = start.chars().map(token).collect();
        let text = sample(&parameters, &rnn, &fc, &start, length, size)?;
        say!("{:?}", text.iter().map(|&token| characters[token]).collect::<String>());
    }
    Ok(ExitCode::SUCCESS)
}

fn one_hot(token: usize, size: usize) -> impl Iterator<Item = f32> {
    (0..size).map(move |i| if i == token { 1.0 } else { 0.0 })
}

/// Continues `start` to `length` characters, each the most likely one, with the state carried.
fn sample(p: &Parameters, rnn: &Rnn, fc: &Linear, start: &[usize], length: usize, size: usize) -> Result<Vec<usize>> {
    let character = p.device().zeros("character", &[1, 1, size], DType::F32)?;
    let state = rnn.state(p.device(), 1)?;
    let mut g = Graph::inference(p);
    let x = g.input(&character)?;
    let out = rnn.forward(&mut g, x, InitialState::Carried(&state))?;
    let logits = fc.forward(&mut g, out.output)?;
    let logits = g.tensor(logits)?;
    let plan = g.finish()?;
    let mut text = start.to_vec();
    for i in 0..length - 1 {
        character.write(&one_hot(text[i], size).collect::<Vec<_>>())?;
        plan.run()?;
        if i + 1 == text.len() {
            text.push(argmax(&logits.to_vec()?));
        }
    }
    Ok(text)
}
