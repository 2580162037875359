//! 'hello' through a recurrent layer: letter by letter, as a sequence, as a batch, time first. The numbers are the same.

mod common;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use common::cell::Kind;
use common::{DeviceArgs, say};
use elman::nn::functional::{InitialState, States, narrow, transpose};
use elman::nn::{Cell, Init, Parameters, Recurrent, RnnOptions};
use elman::{Device, Graph, Tensor, Var, rng};

/// h, e, l, o as one-hot rows.
const LETTERS: &str = "helo";

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// The recurrent layer
    #[arg(long, value_enum, default_value = "rnn")]
    cell: Kind,
    /// Seed of the weights and of the incoming state
    #[arg(long, default_value_t = 777)]
    seed: u32,
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    let mut init = Init::new(rng::manual_seed(options.seed.into()));
    // One layer, input 4 -> hidden 2; sequences come as [batch, letters, 4].
    let cell = Recurrent::new(&mut init, "cell", options.cell.into(), RnnOptions::new(4, 2).batch_first(true))?;
    let time_first = RnnOptions::new(4, 2);
    let parameters = init.upload(&device)?;
    let words = ["hello", "eolll", "lleel"];
    let states = [init.rng.randn(6), init.rng.randn(6)];

    say!("one letter at a time");
    let mut carried = [states[0][..2].to_vec(), states[1][..2].to_vec()];
    let mut letter_by_letter = Vec::new();
    for letter in words[0].chars() {
        let out = forward(&parameters, &cell, &[&letter.to_string()], &carried)?;
        say!("  {letter}: input [1, 1, 4], output {:?} = {:?}", out.shape, out.output);
        letter_by_letter.extend(&out.output);
        carried = out.states;
    }

    let sequence = forward(&parameters, &cell, &words[..1], &[states[0][..2].to_vec(), states[1][..2].to_vec()])?;
    say!("one sequence: input [1, 5, 4], output {:?} = {:?}", sequence.shape, sequence.output);
    let batch = forward(&parameters, &cell, &words, &states)?;
    say!("a batch of three: input [3, 5, 4], output {:?} = {:?}", batch.shape, batch.output);

    check("letter by letter equals the sequence", &letter_by_letter, &sequence.output)?;
    check("the sequence equals its row of the batch", &sequence.output, &batch.output[..10])?;
    check("the last output equals the hidden state", &last_outputs(&batch.output), &batch.states[0])?;

    // The same weights, read as a layer that is time first.
    let mut again = Init::new(rng::manual_seed(options.seed.into()));
    let time_first = Recurrent::new(&mut again, "cell", options.cell.into(), time_first)?;
    let swapped = time_first_output(&again.upload(&device)?, &time_first, &words, &states)?;
    say!("time first: input [5, 3, 4], output [5, 3, 2]");
    check("time first equals batch first", &swapped, &batch.output)?;
    Ok(ExitCode::SUCCESS)
}

/// What a forward pass leaves.
struct Output {
    shape: Vec<usize>,
    output: Vec<f32>,
    /// h, and c of an LSTM.
    states: [Vec<f32>; 2],
}

fn forward(parameters: &Parameters, cell: &Recurrent, words: &[&str], states: &[Vec<f32>; 2]) -> Result<Output> {
    let mut g = Graph::inference(parameters);
    let x = g.input(&one_hot(parameters.device(), words)?)?;
    let start = start(&mut g, cell, words.len(), states)?;
    let (output, end) = cell.forward(&mut g, x, InitialState::Given(start))?;
    let shape = g.shape(output).to_vec();
    let tensors = [Some(output), Some(end.h), end.c].map(|var| var.map(|var| g.tensor(var)).transpose());
    let [output, h, c] = tensors;
    g.finish()?.run()?;
    let read = |tensor: Option<Tensor>| tensor.map_or(Ok(Vec::new()), |tensor| tensor.to_vec());
    Ok(Output { shape, output: read(output?)?, states: [read(h?)?, read(c?)?] })
}

/// The output of a time-first layer, as [batch, letters, 2].
fn time_first_output(p: &Parameters, cell: &Recurrent, words: &[&str], states: &[Vec<f32>; 2]) -> Result<Vec<f32>> {
    let mut g = Graph::inference(p);
    let x = g.input(&one_hot(p.device(), words)?)?;
    let x = transpose(&mut g, x, 0, 1)?;
    let start = start(&mut g, cell, words.len(), states)?;
    let (output, _) = cell.forward(&mut g, x, InitialState::Given(start))?;
    let first = narrow(&mut g, output, 0, 0, 1)?;
    ensure!(g.shape(first) == [1, words.len(), 2], "one step of the output is [1, batch, 2]");
    let output = transpose(&mut g, output, 0, 1)?;
    let output = g.tensor(output)?;
    g.finish()?.run()?;
    Ok(output.to_vec()?)
}

fn start(g: &mut Graph, cell: &Recurrent, batch: usize, states: &[Vec<f32>; 2]) -> elman::Result<States> {
    let device = g.device().clone();
    let mut state = |name: &str, values: &[f32]| -> elman::Result<Var> {
        g.input(&device.upload(name, &[1, batch, 2], &values[..2 * batch])?)
    };
    let h = state("h_0", &states[0])?;
    let c = if cell.cell() == Cell::Lstm { Some(state("c_0", &states[1])?) } else { None };
    Ok(States { h, c })
}

/// `[batch, letters, 4]`
fn one_hot(device: &Device, words: &[&str]) -> elman::Result<Tensor> {
    let rows = words.iter().flat_map(|word| word.chars());
    let values = rows.flat_map(|letter| LETTERS.chars().map(move |l| if l == letter { 1.0 } else { 0.0 }));
    device.upload("words", &[words.len(), words[0].len(), 4], &values.collect::<Vec<_>>())
}

/// `out[:, -1]` of [3, 5, 2]
fn last_outputs(output: &[f32]) -> Vec<f32> {
    output.chunks(10).flat_map(|word| &word[8..]).copied().collect()
}

fn check(what: &str, left: &[f32], right: &[f32]) -> Result<()> {
    let equal = left.len() == right.len() && left.iter().zip(right).all(|(l, r)| (l - r).abs() <= 1e-6);
    ensure!(equal, "{what}: no, {left:?} and {right:?}");
    say!("{what}: yes");
    Ok(())
}
