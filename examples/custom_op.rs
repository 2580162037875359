//! An operation of one's own, kernels and all: a leaky sum over time, `y[t] = a y[t-1] + x[t]`, which no operation of elements is,
//! and its gradient, the same backwards. Checked, compared with its twin and with differences, and learned with.

mod common;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use common::{DeviceArgs, announce, mean, say};
use elman::custom::{Args, Field, Kernel, Real, reads, twin, writes};
use elman::nn::functional::{Reduction, mse_loss};
use elman::nn::{Init, Linear};
use elman::{DType, Device, Graph, Trainer, Var, optim::Adam, rng};

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Training steps
    #[arg(long, default_value_t = 400)]
    steps: usize,
}

/// `y[t] = a y[t-1] + x[t]`, t from the first step on, or from the last backwards: `x`, `y` `[T, C]`.
static LEAKY_SUM: Kernel = Kernel {
    name: "leaky_sum",
    source: include_str!("custom_op.wgsl"),
    constants: &[],
    params: &[
        Field { name: "steps", ty: "u32" },
        Field { name: "columns", ty: "u32" },
        Field { name: "backwards", ty: "u32" },
        Field { name: "keep", ty: "f32" },
    ],
    bindings: &[reads("x"), writes("y")],
    twin: twin!(leaky_sum_twin),
};

fn leaky_sum_twin<F: Real>(params: &[u32], args: Args<'_, F>) {
    let [steps, columns, backwards] = [0, 1, 2].map(|i| params[i] as usize);
    let keep = F::of(f32::from_bits(params[3]).into());
    let [x, y] = args.all();
    let (x, y) = (x.read(), y.write());
    for c in 0..columns {
        let mut sum = F::zero();
        for t in 0..steps {
            let at = if backwards == 1 { steps - 1 - t } else { t } * columns + c;
            sum = sum * keep + x[at];
            y[at] = sum;
        }
    }
}

/// `x` `[T, ..]`.
fn leaky_sum(g: &mut Graph, x: Var, keep: f32) -> elman::Result<Var> {
    let from = g.tensor(x)?;
    let (steps, columns) = (from.shape()[0], from.len() / from.shape()[0]);
    let record = move |g: &mut Graph, from: &_, to: &_, backwards: u32| {
        let params = [steps as u32, columns as u32, backwards, keep.to_bits()];
        g.dispatch(&LEAKY_SUM, &[], params, &[from, to], [columns.div_ceil(64), 1, 1])
    };
    let to = g.zeros("leaky sum", from.shape())?;
    record(g, &from, &to, 0)?;
    let y = g.result(to, &[x]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y).filter(|_| g.is_differentiable(x)) else { return Ok(()) };
        let dx = g.zeros("d leaky sum", dy.shape())?;
        record(g, &dy, &dx, 1)?;
        g.add_gradient(x, &dx, false)
    });
    Ok(y)
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    elman::custom::check(&LEAKY_SUM, &[])?;
    say!("the WGSL has the parameters and bindings that the host gives it");
    compare(&device)?;
    learn(&device, options.steps)
}

/// The kernel beside its twin in f64, and the gradient beside differences.
fn compare(device: &Device) -> Result<()> {
    let values: Vec<f32> = (0..30).map(|i| (1.3 * i as f32).sin()).collect();
    let x = device.upload("x", &[10, 3], &values)?;
    let seed = device.upload("seed", &[10, 3], &values)?;
    let mut g = Graph::without_parameters(device);
    let input = g.input_with_gradient(&x)?;
    let y = leaky_sum(&mut g, input, 0.8)?;
    let result = g.tensor(y)?;
    g.backward(&[], &[(y, &seed)])?;
    let gradient = g.gradient(input).expect("y depends on x");
    let plan = g.finish()?;
    let worst = plan.compare_with_twins()?.iter().map(|command| command.error).fold(0.0, f64::max);
    say!("the kernel and its twin in f64: {worst:.1e} apart at most");
    plan.run()?;
    let gradient = gradient.to_vec()?;
    let objective = |x_values: &[f32]| -> Result<f64> {
        x.write(x_values)?;
        plan.run()?;
        Ok(result.to_vec()?.iter().zip(&values).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum())
    };
    let mut moved = values.clone();
    moved[4] += 0.5;
    let above = objective(&moved)?;
    moved[4] -= 1.0;
    let difference = above - objective(&moved)?;
    say!("a gradient of {:.5}, by differences {difference:.5}", gradient[4]);
    ensure!((f64::from(gradient[4]) - difference).abs() < 1e-4, "the gradient is wrong");
    Ok(())
}

/// A weighted sum of leaky sums learns to foresee a slow wave from a noisy one.
fn learn(device: &Device, steps: usize) -> Result<ExitCode> {
    let (length, batch) = (64, 16);
    let mut rng = rng::manual_seed(777);
    let phases = rng.uniform(batch, 0.0, 6.3);
    let noise = rng.randn(length * batch);
    let wave = |t: usize, b: usize| (0.2 * t as f32 + phases[b]).sin();
    let at = |i: usize| (i / batch, i % batch);
    let noisy: Vec<f32> = (0..length * batch).map(|i| wave(at(i).0, at(i).1) + 0.5 * noise[i]).collect();
    let next: Vec<f32> = (0..length * batch).map(|i| wave(at(i).0 + 1, at(i).1)).collect();
    let x = device.upload("x", &[length, batch, 1], &noisy)?;
    let target = device.zeros("target", &[length, batch, 1], DType::F32)?;
    target.write(&next)?;
    let mut init = Init::new(rng::manual_seed(777));
    let (spread, output) = (Linear::new(&mut init, "spread", 1, 24)?, Linear::new(&mut init, "output", 24, 1)?);
    let parameters = init.upload(device)?;
    let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
        let x = g.input(&x)?;
        let mut features = spread.forward(g, x)?;
        for keep in [0.5, 0.9] {
            let memory = leaky_sum(g, features, keep)?;
            features = elman::nn::functional::tanh(g, memory)?;
        }
        let y = output.forward(g, features)?;
        mse_loss(g, y, &target, Reduction::Mean)
    })?;
    for _ in 0..steps {
        trainer.step()?;
    }
    let losses = trainer.losses()?;
    let last = mean(&losses[losses.len().saturating_sub(10)..]);
    say!("learned with: mean squared error {:.4} -> {last:.4} in {} steps", losses[0], losses.len());
    Ok(ExitCode::SUCCESS)
}
