//! What the gates of a network were at every step, from the states that it had: products over many rows at once, on its device.

use anyhow::{Context as _, Result};
use elman::data::Array;
use elman::nn::functional::{add, embedding, linear, mul, narrow, sigmoid, tanh};
use elman::nn::{Cell, ParameterId, Parameters};
use elman::{Graph, Predictor, Var};

use super::See;
use crate::cli::model::Model;

/// Steps of a dispatch.
const ROWS: usize = 1024;

/// What is computed as a gate is, and is none but what the gates let in.
pub const CANDIDATES: [&str; 2] = ["n", "g"];

/// The gates of a cell, in the order of its weights, candidates too.
pub fn names(cell: Cell) -> &'static [&'static str] {
    match cell {
        Cell::Gru => &["r", "z", "n"],
        Cell::Lstm => &["i", "f", "g", "o"],
        _ => &[],
    }
}

/// The gates of a layer at each token, `[tokens, H]`, as [`names`] has them.
pub fn of_layer(model: &Model, seen: &See, layer: usize) -> Result<Vec<Vec<f32>>> {
    match model.config.sizes.cell {
        Cell::Gru => compute::<3>(model, seen, layer),
        Cell::Lstm => compute::<4>(model, seen, layer),
        _ => Ok(Vec::new()),
    }
}

fn compute<const M: usize>(model: &Model, seen: &See, layer: usize) -> Result<Vec<Vec<f32>>> {
    let (sizes, weights) = (model.config.sizes, Weights::of(&model.parameters, layer)?);
    let hidden = sizes.hidden;
    let mut predictor = Predictor::new(&model.parameters, |g, [x, h]| {
        let x = match layer {
            0 => {
                let table = g.parameter(weights.embedding)?;
                embedding(g, table, x)?
            }
            _ => g.input(x)?,
        };
        let h = g.input(h)?;
        let gates = weights.gates(g, sizes.cell, hidden, x, h)?;
        Ok(<[Var; M]>::try_from(gates).expect("as many gates as names"))
    });
    let below = layer.checked_sub(1).map(|below| seen.layer("h", below));
    let mut h = seen.before("h", layer).to_vec();
    h.extend(&seen.layer("h", layer)[..(seen.tokens.len() - 1) * hidden]);
    let mut gates = vec![Vec::with_capacity(h.len()); M];
    for (i, tokens) in seen.tokens.chunks(ROWS).enumerate() {
        let rows = tokens.len();
        let block = |values: &[f32]| values[i * ROWS * hidden..][..rows * hidden].to_vec();
        let x = match &below {
            None => Array::tokens("tokens", &[rows], tokens.to_vec(), sizes.vocabulary)?,
            Some(below) => Array::new("h of the layer below", &[rows, hidden], block(below))?,
        };
        let h = Array::new("h before", &[rows, hidden], block(&h))?;
        for (all, some) in gates.iter_mut().zip(predictor.run(&[x, h])?) {
            all.extend(some.values());
        }
    }
    Ok(gates)
}

/// The parameters of a layer.
struct Weights {
    embedding: ParameterId,
    /// Of the input, and of the state.
    weights: [ParameterId; 2],
    biases: [ParameterId; 2],
}

impl Weights {
    fn of(parameters: &Parameters, layer: usize) -> Result<Self> {
        let find = |name: String| {
            let found = parameters.names().zip(parameters.ids()).find(|(other, _)| *other == name);
            found.map(|(_, id)| id).with_context(|| format!("the model has no parameter {name}"))
        };
        let of_layer = |kind: &str| find(format!("rnn.{kind}_l{layer}"));
        Ok(Self {
            embedding: find("embedding_layer.weight".into())?,
            weights: [of_layer("weight_ih")?, of_layer("weight_hh")?],
            biases: [of_layer("bias_ih")?, of_layer("bias_hh")?],
        })
    }

    /// From what comes in, `[rows, I]`, and the state before, `[rows, H]`.
    fn gates(&self, g: &mut Graph, cell: Cell, hidden: usize, x: Var, h: Var) -> elman::Result<Vec<Var>> {
        let product = |g: &mut Graph, gate: usize, side: usize| {
            let (weight, bias) = (g.parameter(self.weights[side])?, g.parameter(self.biases[side])?);
            let weight = narrow(g, weight, 0, gate * hidden, hidden)?;
            let bias = narrow(g, bias, 0, gate * hidden, hidden)?;
            linear(g, [x, h][side], weight, Some(bias))
        };
        let mut gates = Vec::new();
        for (gate, &name) in names(cell).iter().enumerate() {
            let (of_x, mut of_h) = (product(g, gate, 0)?, product(g, gate, 1)?);
            if name == "n" {
                // What is reset is the product.
                of_h = mul(g, gates[0], of_h)?;
            }
            let sum = add(g, of_x, of_h)?;
            gates.push(if CANDIDATES.contains(&name) { tanh(g, sum)? } else { sigmoid(g, sum)? });
        }
        Ok(gates)
    }
}

#[cfg(test)]
mod tests {
    use elman::nn::{CharRnn, CharRnnOptions, Init};
    use elman::{Device, rng};

    use super::*;
    use crate::cli::model::Config;
    use crate::cli::tokens::Tokens;

    /// The recurrence, from these gates and the states before, gives the states that were recorded.
    #[test]
    fn gates_make_the_states() -> Result<()> {
        for (cell, before) in [(Cell::Gru, 0), (Cell::Gru, 7), (Cell::Lstm, 0), (Cell::Lstm, 7)] {
            let (device, hidden) = (Device::cpu(), 9);
            let sizes = CharRnnOptions::new(256, 5, hidden).cell(cell).num_layers(2);
            let mut init = Init::new(rng::manual_seed(7));
            let network = CharRnn::new(&mut init, sizes)?;
            let parameters = init.upload(&device)?;
            let config = Config::new(sizes, 1, &Tokens::Bytes);
            let model = Model { config, tokens: Tokens::Bytes, network, parameters };
            let mut draw = rng::manual_seed(8);
            let mut tokens = |n: usize| (0..n).map(|_| draw.next_u32() % 256).collect::<Vec<_>>();
            let earlier = tokens(before);
            let seen = See::of(&model, &device, &earlier, tokens(ROWS + 50))?;
            for layer in 0..2 {
                let gates = of_layer(&model, &seen, layer)?;
                let with_before = |name: &str| [seen.before(name, layer), &seen.layer(name, layer)].concat();
                let h = with_before("h");
                let c = if cell == Cell::Lstm { with_before("c") } else { h.clone() };
                for i in 0..seen.tokens.len() * hidden {
                    let gate = |k: usize| gates[k][i];
                    let now = i + hidden;
                    let (want_h, want_c) = match cell {
                        Cell::Gru => ((1.0 - gate(1)) * gate(2) + gate(1) * h[i], c[now]),
                        _ => (gate(3) * c[now].tanh(), gate(1) * c[i] + gate(0) * gate(2)),
                    };
                    assert!((want_h - h[now]).abs() < 1e-5, "{cell:?} h {layer} {i}: {want_h} {}", h[now]);
                    assert!((want_c - c[now]).abs() < 1e-5, "{cell:?} c {layer} {i}: {want_c} {}", c[now]);
                }
            }
        }
        Ok(())
    }
}
