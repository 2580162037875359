//! A GRU learns to foresee a noisy series; a second process loads it and follows the series value by value:
//! `cargo run --release --example stream`, then `cargo run --release --example stream -- --follow < target/stream.txt`

mod common;

use anyhow::{Context as _, Result};
use clap::Parser;
use common::{DeviceArgs, announce, say};
use elman::data::{self, Array};
use elman::nn::functional::{InitialState, Reduction, mse_loss};
use elman::nn::{Gru, Init, Linear, Parameters, RnnOptions};
use elman::schedule::{EarlyStopping, Mode};
use elman::{Device, Evaluator, Graph, Predictor, Tensor, Trainer, Var, io, optim::Adam, rng};
use std::{path::PathBuf, process::ExitCode};

const STEPS: usize = 6000;
const HELD_OUT: usize = 5000;
const WINDOW: usize = 128;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Foresee each next value of the series on standard input, with the model and the state that earlier runs left
    #[arg(long)]
    follow: bool,
    /// File for the model; the held-out series (.txt) and the state (.state) lie beside it
    #[arg(long, default_value = "target/stream.safetensors", value_name = "FILE")]
    model: PathBuf,
}

type Network = (Gru, Linear, Parameters);
fn network(device: &Device, hidden: usize) -> elman::Result<Network> {
    let mut init = Init::new(rng::manual_seed(777));
    let gru = Gru::new(&mut init, "gru", RnnOptions::new(1, hidden).num_layers(2))?;
    Ok((gru, Linear::new(&mut init, "output", hidden, 1)?, init.upload(device)?))
}

fn forward((gru, output, _): &Network, g: &mut Graph, x: &Tensor, initial: InitialState<'_>) -> elman::Result<Var> {
    let x = g.input(x)?;
    let out = gru.forward(g, x, initial)?;
    output.forward(g, out.output)
}

fn main() -> ExitCode {
    let options = Options::parse();
    let run = |device: &Device| if options.follow { follow(device, &options) } else { train(device, &options) };
    let done = options.device.open().and_then(|device| device.as_ref().map_or(Ok(()), run));
    common::exit_code(done.map(|()| ExitCode::SUCCESS))
}

fn train(device: &Device, Options { model, .. }: &Options) -> Result<()> {
    announce(device)?;
    let mut rng = rng::manual_seed(1);
    let wave = |t: usize, period: f32| (std::f32::consts::TAU * t as f32 / period).sin();
    let noise = rng.randn(STEPS);
    let series: Vec<f32> = (0..STEPS).map(|t| wave(t, 25.0) * wave(t, 310.0) + 0.1 * noise[t]).collect();
    let lines: String = series[HELD_OUT..].iter().map(|value| format!("{value}\n")).collect();
    io::write_atomically(model.with_extension("txt"), lines.as_bytes())?;
    let _ = std::fs::remove_file(model.with_extension("state")); // of another model
    let batch = |starts: &[usize]| -> elman::Result<[Array; 2]> {
        let windows = |name, from| Array::windows(name, &series, 1, starts, from..from + WINDOW);
        Ok([windows("x", 0)?, windows("y", 1)?])
    };
    let network = network(device, 32)?;
    let loss = |g: &mut Graph, [x, y]: &[Tensor; 2]| {
        let foreseen = forward(&network, g, x, InitialState::Zero)?;
        mse_loss(g, foreseen, y, Reduction::Mean)
    };
    let mut trainer = Trainer::on_batches(&network.2, Adam::new(5e-3), loss)?;
    let mut evaluator = Evaluator::on_batches(&network.2, |g, batch| Ok([loss(g, batch)?]))?;
    let held_out = batch(&(HELD_OUT..STEPS - WINDOW).step_by(WINDOW / 2).collect::<Vec<_>>())?;
    let mut stopping = EarlyStopping::new(Mode::Min, 5, 0.0)?;
    loop {
        let batches = data::batches(&mut rng, HELD_OUT - WINDOW, 64);
        batches.iter().step_by(3).try_for_each(|starts| trainer.step_on(&batch(starts)?))?;
        let [loss] = evaluator.means([&held_out])?;
        say!("after {} steps: held-out error {:.4}; the noise alone: 0.1", trainer.steps(), loss.sqrt());
        if stopping.stop(loss) {
            return Ok(());
        } else if stopping.best() == Some(loss) {
            io::save_with_config(model, &network.2, &32)?;
        }
    }
}

fn follow(device: &Device, Options { model, .. }: &Options) -> Result<()> {
    let network = network(device, io::config(model)?)?;
    io::load(model, &network.2)?;
    let (state, file) = (network.0.state(device, 1)?, model.with_extension("state"));
    file.exists().then(|| io::load_state(&file, &state)).transpose()?;
    let build = |g: &mut Graph, [x]: &[Tensor; 1]| Ok([forward(&network, g, x, InitialState::Carried(&state))?]);
    let mut predictor = Predictor::new(&network.2, build);
    for line in std::io::stdin().lines() {
        let value = line?.trim().parse().context("a line of the series must be a number")?;
        let [foreseen] = predictor.run(&[Array::new("x", &[1, 1, 1], vec![value])?])?;
        say!("{value:8.4}, and next {:8.4}", foreseen.values()[0]);
    }
    Ok(io::save_state(&file, &state)?)
}
