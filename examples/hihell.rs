//! Teaches 'hihell' -> 'ihello', in five ways: `cargo run --release --example hihell -- --model linear`.

mod common;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use common::cell::Kind;
use common::{DeviceArgs, argmax, say};
use elman::nn::functional::{InitialState, Reduction, concat, cross_entropy, narrow};
use elman::nn::{Embedding, Init, Linear, Recurrent, RnnOptions};
use elman::optim::Adam;
use elman::{Device, Graph, Tensor, Trainer, Var, rng};

const CHARACTERS: [char; 5] = ['h', 'i', 'e', 'l', 'o'];
/// hihell
const INPUT: [u32; 6] = [0, 1, 0, 2, 3, 3];
/// ihello
const TARGET: [u32; 6] = [1, 0, 2, 3, 3, 4];

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// What the network is
    #[arg(long, value_enum, default_value = "hidden")]
    model: Model,
    /// Its recurrence
    #[arg(long, value_enum, default_value = "rnn")]
    cell: Kind,
    /// Seed of the initial weights
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Model {
    /// The hidden state is the prediction: Adam 0.1, 100 epochs
    Hidden,
    /// Hidden 4 and a linear layer: Adam 0.1, 15 epochs
    Linear,
    /// One character at a time, losses summed: Adam 0.005, 100 epochs
    StepByStep,
    /// The whole sequence: Adam 0.05, 100 epochs
    Sequence,
    /// Embedding 10 and a linear layer: Adam 0.1, 100 epochs
    Embedding,
}

impl Model {
    /// Input size, hidden size, learning rate, epochs.
    fn settings(self) -> (usize, usize, f64, usize) {
        match self {
            Self::Hidden => (5, 5, 0.1, 100),
            Self::Linear => (5, 4, 0.1, 15),
            Self::StepByStep => (5, 5, 0.005, 100),
            Self::Sequence => (5, 5, 0.05, 100),
            Self::Embedding => (10, 5, 0.1, 100),
        }
    }
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    let (input, hidden, lr, epochs) = options.model.settings();
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    let embedding = match options.model {
        Model::Embedding => Some(Embedding::new(&mut init, "embedding", 5, input)?),
        _ => None,
    };
    let cell = Recurrent::new(&mut init, "rnn", options.cell.into(), RnnOptions::new(input, hidden))?;
    let linear = match options.model {
        Model::Linear | Model::Embedding => Some(Linear::new(&mut init, "linear", hidden, 5)?),
        _ => None,
    };
    let parameters = init.upload(&device)?;
    let targets = device.targets("ihello", &[6], 5)?;
    targets.write_u32(&TARGET)?;

    let mut logits = None;
    let mut trainer = Trainer::new(&parameters, Adam::new(lr), |g| {
        let x = match &embedding {
            Some(embedding) => embedding.forward(g, &letters(&device)?)?,
            None => g.input(&one_hot(&device)?)?,
        };
        let (mut y, reduction) = match options.model {
            Model::StepByStep => (step_by_step(g, &cell, x)?, Reduction::Sum),
            _ => (cell.forward(g, x, InitialState::Zero)?.0, Reduction::Mean),
        };
        if let Some(linear) = &linear {
            y = linear.forward(g, y)?;
        }
        logits = Some(g.tensor(y)?);
        cross_entropy(g, y, &targets, reduction)
    })?;
    let logits = logits.expect("the network was recorded");
    for epoch in 1..=epochs {
        trainer.step()?;
        let loss = trainer.losses()?[0];
        say!("epoch: {epoch}, loss: {loss:.3}");
        say!("Predicted string: {}", predicted(&logits)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// `[T, B]`
fn letters(device: &Device) -> elman::Result<Tensor> {
    let letters = device.tokens("hihell", &[6, 1], 5)?;
    letters.write_u32(&INPUT)?;
    Ok(letters)
}

/// `[T, B, 5]`
fn one_hot(device: &Device) -> elman::Result<Tensor> {
    let rows = INPUT.iter().flat_map(|&letter| (0..5).map(move |i| if i == letter { 1.0 } else { 0.0 }));
    device.upload("hihell", &[6, 1, 5], &rows.collect::<Vec<_>>())
}

/// Each character in a call of its own, with the state of the call before.
fn step_by_step(g: &mut Graph, cell: &Recurrent, x: Var) -> elman::Result<Var> {
    let (mut outputs, mut state) = (Vec::new(), InitialState::Zero);
    for step in 0..INPUT.len() {
        let letter = narrow(g, x, 0, step, 1)?;
        let (output, states) = cell.forward(g, letter, state)?;
        outputs.push(output);
        state = InitialState::Given(states);
    }
    concat(g, &outputs, 0)
}

/// The most likely character after each.
fn predicted(logits: &Tensor) -> elman::Result<String> {
    Ok(logits.to_vec()?.chunks(5).map(|row| CHARACTERS[argmax(row)]).collect())
}
