//! Cells of one's own: a GRU written in operations, which has `Gru`'s numbers and gradients, and one with layer norm inside.

mod common;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use common::{DeviceArgs, announce, mean, say};
use elman::nn::functional::{
    InitialState, Reduction, cross_entropy, layer_norm, linear, map, narrow, reshape, scan, select,
};
use elman::nn::{Gru, Init, Linear, ParameterId, Parameters, RnnOptions};
use elman::optim::{Adam, Clip};
use elman::{DType, Device, Graph, Tensor, Trainer, Var, rng};

const STEPS: usize = 12;
const BATCH: usize = 64;
const INPUTS: usize = 8;
const HIDDEN: usize = 32;

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    device: DeviceArgs,
    /// Seed of the data and the initial weights
    #[arg(long, default_value_t = 777)]
    seed: u32,
    /// Training steps of each cell
    #[arg(long, default_value_t = 300)]
    steps: usize,
}

/// PyTorch's GRU, with its parameters' names:
/// `r, z = σ(W x + b + U h + c)`, `n = tanh(W x + b + r (U h + c))`, `h ← (1 - z) n + z h`.
struct OwnGru {
    weights: [ParameterId; 2],
    biases: [ParameterId; 2],
    /// Of each gate's sum, normalized before it is squashed: weight and bias `[3 H]`.
    norm: Option<[ParameterId; 2]>,
}

impl OwnGru {
    fn new(init: &mut Init, name: &str, is_normed: bool) -> Result<Self> {
        let bound = 1.0 / (HIDDEN as f64).sqrt();
        let mut draw = |kind: &str, shape: &[usize]| init.uniform(format!("{name}.{kind}_l0"), shape, bound);
        let weights = [draw("weight_ih", &[3 * HIDDEN, INPUTS])?, draw("weight_hh", &[3 * HIDDEN, HIDDEN])?];
        let biases = [draw("bias_ih", &[3 * HIDDEN])?, draw("bias_hh", &[3 * HIDDEN])?];
        let mut add =
            |kind: &str, value: f32| init.add(format!("{name}.{kind}"), &[3 * HIDDEN], vec![value; 3 * HIDDEN]);
        let norm = if is_normed { Some([add("norm.weight", 1.0)?, add("norm.bias", 0.0)?]) } else { None };
        Ok(Self { weights, biases, norm })
    }

    /// `x` `[T, B, I]` to all states `[T, B, H]` and the last `[B, H]`.
    fn forward(&self, g: &mut Graph, x: Var) -> elman::Result<(Var, Var)> {
        let [w, u] = [g.parameter(self.weights[0])?, g.parameter(self.weights[1])?];
        let [b, c] = [g.parameter(self.biases[0])?, g.parameter(self.biases[1])?];
        let norm = match self.norm {
            Some([weight, bias]) => Some((g.parameter(weight)?, g.parameter(bias)?)),
            None => None,
        };
        // Of all steps at once.
        let below = linear(g, x, w, Some(b))?;
        let zeros = g.zeros("h_0", &[BATCH, HIDDEN])?;
        let start = g.input(&zeros)?;
        let (all, [last]) = scan(g, below, [start], |g, below, [h]| {
            let mut beside = linear(g, h, u, Some(c))?;
            if let Some(affine) = norm {
                beside = layer_norm(g, beside, Some(affine), 1e-5)?;
            }
            let gate = |g: &mut Graph, x: Var, i: usize| narrow(g, x, -1, i * HIDDEN, HIDDEN);
            let [xr, xz, xn] = [gate(g, below, 0)?, gate(g, below, 1)?, gate(g, below, 2)?];
            let [hr, hz, hn] = [gate(g, beside, 0)?, gate(g, beside, 1)?, gate(g, beside, 2)?];
            let n = map(g, [xr, hr, xn, hn], |[xr, hr, xn, hn]| (xn + (xr + hr).sigmoid() * hn).tanh())?;
            let h = map(g, [xz, hz, n, h], |[xz, hz, n, h]| {
                let z = (xz + hz).sigmoid();
                (1.0 - z) * n + z * h
            })?;
            Ok((h, [h]))
        })?;
        Ok((all, last))
    }
}

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<ExitCode> {
    let options = Options::parse();
    let Some(device) = options.device.open()? else { return Ok(ExitCode::SUCCESS) };
    announce(&device)?;
    // Which of the letters was the first?
    let mut rng = rng::manual_seed(options.seed.into());
    let letters: Vec<u32> = (0..STEPS * BATCH).map(|_| rng.next_u32() % INPUTS as u32).collect();
    let one_hot = letters.iter().flat_map(|&letter| (0..INPUTS as u32).map(move |i| f32::from(u8::from(i == letter))));
    let x = device.upload("x", &[STEPS, BATCH, INPUTS], &one_hot.collect::<Vec<_>>())?;
    let targets = device.targets("first", &[BATCH], INPUTS)?;
    targets.write_u32(&letters[..BATCH])?;

    compare(&device, &x, options.seed)?;
    for is_normed in [false, true] {
        let mut init = Init::new(rng::manual_seed(options.seed.into()));
        let (cell, output) =
            (OwnGru::new(&mut init, "gru", is_normed)?, Linear::new(&mut init, "output", HIDDEN, INPUTS)?);
        let parameters = init.upload(&device)?;
        let mut trainer = Trainer::new(&parameters, Adam::new(5e-3).clip(Clip::Norm(1.0)), |g| {
            let x = g.input(&x)?;
            let (_, last) = cell.forward(g, x)?;
            let logits = output.forward(g, last)?;
            cross_entropy(g, logits, &targets, Reduction::Mean)
        })?;
        for _ in 0..options.steps {
            trainer.step()?;
        }
        let losses = trainer.losses()?;
        let name = if is_normed { "with layer norm" } else { "as it is" };
        let (first, last) =
            (losses.first().copied().unwrap_or(f32::NAN), mean(&losses[losses.len().saturating_sub(10)..]));
        say!("a GRU of operations, {name}: loss {first:.4} -> {last:.4} in {} steps", losses.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// The same results and gradients as `Gru`'s, from the same weights.
fn compare(device: &Device, x: &Tensor, seed: u32) -> Result<()> {
    let mut init = Init::new(rng::manual_seed(seed.into()));
    let gru = Gru::new(&mut init, "gru", RnnOptions::new(INPUTS, HIDDEN))?;
    let theirs = results(&init.upload(device)?, x, |g, x| {
        let out = gru.forward(g, x, InitialState::Zero)?;
        Ok((out.output, select(g, out.h_n, 0, 0)?))
    })?;
    let mut init = Init::new(rng::manual_seed(seed.into()));
    let own = OwnGru::new(&mut init, "gru", false)?;
    let ours = results(&init.upload(device)?, x, |g, x| own.forward(g, x))?;
    for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        let scale = theirs.iter().fold(0f32, |most, x| most.max(x.abs()));
        let off = theirs.iter().zip(ours).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / scale;
        say!("{name}: {} values, {off:.1e} of the largest apart", theirs.len());
        ensure!(off < 1e-4, "{name} differs");
    }
    Ok(())
}

/// Outputs, the last state, and the gradient of each parameter, for gradients of the outputs that are all different.
fn results(
    parameters: &Parameters,
    x: &Tensor,
    forward: impl FnOnce(&mut Graph, Var) -> elman::Result<(Var, Var)>,
) -> Result<Vec<(String, Vec<f32>)>> {
    let device = parameters.device();
    let mut g = Graph::new(parameters);
    let x = g.input(x)?;
    let (all, last) = forward(&mut g, x)?;
    let (output, state) = (g.tensor(all)?, g.tensor(last)?);
    let seed = device.zeros("seed", &[STEPS, BATCH, HIDDEN], DType::F32)?;
    seed.write(&(0..seed.len()).map(|i| (0.7 * i as f32).sin()).collect::<Vec<_>>())?;
    let all = reshape(&mut g, all, &[STEPS, BATCH, HIDDEN])?;
    g.backward(&[], &[(all, &seed)])?;
    g.finish()?.run()?;
    let mut results = vec![("output".to_owned(), output.to_vec()?), ("h_n".to_owned(), state.to_vec()?)];
    for name in parameters.names() {
        let gradient = parameters.get_gradient(name).map(|gradient| gradient.to_vec()).transpose()?;
        results.push((format!("gradient of {name}"), gradient.unwrap_or_default()));
    }
    Ok(results)
}
