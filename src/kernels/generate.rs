//! Several tokens of every lane from a recurrent network, in one dispatch.

use super::cell::Cell;
use super::sample::{Draw, Lanes, turns_of_a_draw};
use super::sequence::Generated;
use super::{expect, expect_indices, expect_len, matmul, pack, product};
use crate::device::WORKGROUP_BYTES;
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes, writes_u32};
use crate::plan::{Precision, Recorder};
use crate::real::Real;
use crate::tensor::Tensor;

params! { B: u32, V: u32, H: u32, L: u32, cell: u32, steps: u32, capacity: u32 }

/// See `shaders/generate.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "generate",
    source: wgsl!("generate", "draw", "threefry", "reduce", "math"),
    constants: &["THREADS", "GATES", "BLOCKS", "VECTORS", "STATE_VECTORS", "SUM_VECTORS"],
    params: FIELDS,
    bindings: &[
        reads("weights"),
        reads("shape"),
        reads_u32("control"),
        writes_u32("history"),
        writes_u32("tokens"),
        writes_u32("ring"),
        writes("h"),
        writes("c"),
    ],
    twin: twin!(twin),
};

const THREADS: usize = 256;

/// What `lib/draw` and `lib/reduce` take of the workgroup's memory: 64 sums, 256 parts of one, and a token.
const DRAW_BYTES: usize = 4 * (4 * 64 + THREADS + 1);

/// The sizes of a network of an embedding, recurrent layers and a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// What happens at each step.
    pub cell: Cell,
    /// L
    pub layers: usize,
    /// V
    pub vocabulary: usize,
    /// H
    pub hidden: usize,
}

/// Its parameters, as PyTorch shapes them.
#[derive(Clone, Debug)]
pub struct Network {
    /// What happens at each step.
    pub cell: Cell,
    /// `[V, E]`
    pub embedding: Tensor,
    /// From the lowest on.
    pub layers: Vec<Layer>,
    /// `[V, H]`
    pub weight: Tensor,
    /// `[V]`
    pub bias: Tensor,
}

/// The parameters of a recurrent layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// `[G H, E]`, and `[G H, H]` above the first layer.
    pub weight_ih: Tensor,
    /// `[G H, H]`
    pub weight_hh: Tensor,
    /// `[G H]`
    pub bias_ih: Tensor,
    /// `[G H]`
    pub bias_hh: Tensor,
}

impl Sizes {
    fn padded(&self) -> usize {
        self.hidden.next_multiple_of(4)
    }

    fn vectors(&self) -> usize {
        self.padded() / 4
    }

    /// One for each gate; the GRU sums the two halves of its last gate apart.
    fn blocks(&self) -> usize {
        self.cell.gates() + usize::from(self.cell.kind().separate_bias)
    }

    /// The vectors that a sum of so many columns takes, in all its slices.
    fn sum_vectors(&self, columns: usize) -> usize {
        columns * (THREADS / columns.max(1)).clamp(1, self.vectors().max(1))
    }

    fn state_and_sum_vectors(&self) -> (usize, usize) {
        let (gates, logits) = (self.blocks() * self.vectors(), self.vocabulary.div_ceil(4));
        (self.layers * self.vectors(), self.sum_vectors(gates).max(self.sum_vectors(logits)))
    }

    /// The workgroup memory that the kernel takes.
    pub fn workgroup_bytes(&self) -> usize {
        let (state, sums) = self.state_and_sum_vectors();
        16 * (state + sums) + DRAW_BYTES
    }

    /// Turns of a thread's loops for a token that is drawn with every bound.
    pub(crate) fn turns(&self) -> usize {
        let of_product = |columns: usize| {
            let slices = (THREADS / columns.max(1)).clamp(1, self.vectors().max(1));
            (columns * slices).div_ceil(THREADS) * (1 + self.vectors().div_ceil(slices)) + slices
        };
        let of_layer = 2 * of_product(self.blocks() * self.vectors());
        self.layers * of_layer + of_product(self.vocabulary.div_ceil(4)) + turns_of_a_draw(self.vocabulary, true, true)
    }

    fn constants(&self) -> [(&'static str, u32); 6] {
        let (state, sums) = self.state_and_sum_vectors();
        [
            ("THREADS", THREADS as u32),
            ("GATES", self.cell.gates() as u32),
            ("BLOCKS", self.blocks() as u32),
            ("VECTORS", self.vectors() as u32),
            ("STATE_VECTORS", state as u32),
            ("SUM_VECTORS", sums as u32),
        ]
    }

    /// Elements of the token table, of a matrix of a layer with its bias, and of the last matrix with its bias.
    fn parts(&self) -> [usize; 3] {
        let row = self.cell.gates() * self.padded();
        let columns = self.vocabulary.next_multiple_of(4);
        [self.vocabulary * row, (self.padded() + 1) * row, (self.padded() + 1) * columns]
    }

    fn weights(&self) -> usize {
        let [table, matrix, logits] = self.parts();
        table + (2 * self.layers - 1) * matrix + logits
    }
}

impl Network {
    /// Its sizes.
    pub fn sizes(&self) -> Sizes {
        let (vocabulary, hidden) = self.weight.rows_and_columns();
        Sizes { cell: self.cell, layers: self.layers.len(), vocabulary, hidden }
    }

    /// Records the table and the matrices in the form that the kernel streams; see `shaders/generate.wgsl`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn pack(&self, r: &mut Recorder) -> Result<Tensor> {
        let sizes = self.sizes();
        let Sizes { cell, layers, vocabulary, hidden } = sizes;
        let (gates, padded) = (cell.gates(), sizes.padded());
        let Some(lowest) = self.layers.first() else {
            return Err(Error::argument("generate", "layers", "at least 1", layers));
        };
        for layer in &self.layers {
            expect("generate", &layer.weight_hh, &[gates * hidden, hidden])?;
        }
        let table = r.zeros("token table", &[vocabulary, gates * hidden])?;
        let weight_ih = matmul::t(&lowest.weight_ih);
        matmul::matmul(r, &self.embedding, weight_ih, Some(&lowest.bias_ih), &table, false)?;
        let weights = r.zeros("weights", &[sizes.weights() / 4, 4])?;
        let mut at = pack::pack(
            r,
            &table.reshape(&[vocabulary * gates, hidden])?,
            &weights,
            0,
            [vocabulary * gates, 1, padded],
            false,
            Precision::F32,
        )?;
        let mut linear = |r: &mut Recorder, gates: usize, weight: &Tensor, bias: &Tensor, columns: usize| {
            at = pack::pack(r, weight, &weights, at, [gates, padded, columns], true, Precision::F32)?;
            let bias = bias.reshape(&[gates, bias.len() / gates])?;
            at = pack::pack(r, &bias, &weights, at, [gates, 1, columns], false, Precision::F32)?;
            Ok::<_, Error>(())
        };
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                linear(r, gates, &layer.weight_ih, &layer.bias_ih, padded)?;
            }
            linear(r, gates, &layer.weight_hh, &layer.bias_hh, padded)?;
        }
        linear(r, 1, &self.weight, &self.bias, vocabulary.next_multiple_of(4))?;
        Ok(weights)
    }
}

/// Records `steps` draws of every lane. `weights` as [`Network::pack`] makes them; the states `[L, B, H]`, `c` for the LSTM.
///
/// # Errors
/// The shapes do not fit, or the network does not fit into a workgroup's memory.
pub fn generate(
    r: &mut Recorder,
    sizes: Sizes,
    weights: &Tensor,
    draw: Draw<'_>,
    (h, c): (&Tensor, Option<&Tensor>),
    steps: usize,
) -> Result<()> {
    let Sizes { cell, layers, vocabulary, hidden } = sizes;
    let (capacity, lanes) = draw.check("generate", vocabulary)?;
    // The token table is read at them.
    expect_indices("generate", draw.tokens, vocabulary)?;
    if [layers, vocabulary, hidden, steps].contains(&0) {
        return Err(Error::argument("generate", "sizes", "at least 1 each", format!("{steps} steps of {sizes:?}")));
    }
    expect_len("generate", weights, sizes.weights())?;
    let Some(kind) = cell.kind().generated else {
        return Err(Error::argument("generate", "cell", "one that this kernel knows", format!("{cell:?}")));
    };
    let bytes = sizes.workgroup_bytes();
    // One token is always few enough.
    if steps > 1 && steps > r.most_terms((sizes.turns(), 1), 1) {
        let expected = format!("at most {} for these sizes", r.most_terms((sizes.turns(), 1), 1));
        return Err(Error::argument("generate", "steps", expected, steps));
    }
    if bytes > WORKGROUP_BYTES {
        let expected = format!("sizes that take at most {WORKGROUP_BYTES} bytes of workgroup memory");
        return Err(Error::argument("generate", "sizes", expected, format!("{bytes} for {sizes:?}")));
    }
    for state in [Some(h), c].into_iter().flatten() {
        expect("generate", state, &[layers, lanes, hidden])?;
    }
    if cell.states() == 2 && c.is_none() {
        return Err(Error::shape("generate", "c", format!("[{layers}, {lanes}, {hidden}]"), &[]));
    }
    let params = Params {
        B: lanes as u32,
        V: vocabulary as u32,
        H: hidden as u32,
        L: layers as u32,
        cell: kind as u32,
        steps: steps as u32,
        capacity: capacity as u32,
    };
    let nowhere = r.zeros("nowhere", &[4])?;
    let Draw { shape, control, history, tokens, ring } = draw;
    let tensors = [weights, shape, control, history, tokens, ring, h, c.unwrap_or(&nowhere)];
    r.dispatch(&KERNEL, &sizes.constants(), params, &tensors, [lanes, 1, 1])?;
    // All matrices for every token of every lane.
    let matrices = weights.len() - sizes.parts()[0];
    r.cost(product(&[2, steps, lanes, matrices]), product(&[4, steps * lanes - 1, matrices]));
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [weights, shape, control, history, tokens, ring, h, c] = args.all();
    let (shape, control) = (shape.read(), control.read_u32());
    let (history, tokens, ring) = (history.write_u32(), tokens.write_u32(), ring.write_u32());
    let (mut lanes, h, c) = (Lanes { shape, control, history, tokens, ring }, h.write(), c.write());
    let [batch, vocabulary, hidden, layers] = [p.B, p.V, p.H, p.L].map(|n| n as usize);
    let step = |cell: Cell| cell.kind().generated.filter(|&step| step as u32 == p.cell);
    let known = Cell::ALL.iter().find_map(|&cell| Some((cell, step(cell)?)));
    let (cell, step) = known.expect("a cell that was there when this was recorded");
    let sizes = Sizes { cell, layers, vocabulary, hidden };
    let (gates, padded, [table, matrix, _]) = (cell.gates(), sizes.padded(), sizes.parts());
    let (table, matrices) = weights.read().split_at(table);
    let matrix = |i: usize| &matrices[i * matrix..];
    let sigmoid = |x: F| F::one() / (F::one() + (-x).exp());
    for lane in 0..batch {
        for _ in 0..p.steps {
            let token = lanes.tokens[lane] as usize;
            let mut x = Vec::new();
            for layer in 0..layers {
                let start = (layer * batch + lane) * hidden;
                let before = h[start..][..hidden].to_vec();
                let all_gates =
                    |i, x: &[F]| (0..gates).map(|gate| affine(matrix(i), [gates, padded, padded], gate, x)).collect();
                let below: Vec<Vec<F>> = match layer {
                    0 => table[token * gates * padded..].chunks(padded).take(gates).map(<[F]>::to_vec).collect(),
                    _ => all_gates(2 * layer - 1, &x),
                };
                let recurrent: Vec<Vec<F>> = all_gates(2 * layer, &before);
                x = (0..hidden)
                    .map(|unit| {
                        let sum = |gate: usize| below[gate][unit] + recurrent[gate][unit];
                        match step {
                            Generated::Tanh => sum(0).tanh(),
                            Generated::Relu => {
                                if sum(0) < F::zero() {
                                    F::zero()
                                } else {
                                    sum(0)
                                }
                            }
                            Generated::Gru => {
                                let (r, z) = (sigmoid(sum(0)), sigmoid(sum(1)));
                                let n = (below[2][unit] + r * recurrent[2][unit]).tanh();
                                (F::one() - z) * n + z * before[unit]
                            }
                            Generated::Lstm => {
                                let c = &mut c[start + unit];
                                *c = sigmoid(sum(1)) * *c + sigmoid(sum(0)) * sum(2).tanh();
                                sigmoid(sum(3)) * c.tanh()
                            }
                        }
                    })
                    .collect();
                h[start..][..hidden].copy_from_slice(&x);
            }
            let logits = affine(matrix(2 * layers - 1), [1, padded, vocabulary.next_multiple_of(4)], 0, &x);
            lanes.draw(lane, &logits[..vocabulary]);
        }
    }
}

/// `x Wᵀ + b` of one gate: `packed` has Wᵀ, `[gates, rows, columns]`, and its bias behind it.
fn affine<F: Real>(packed: &[F], [gates, rows, columns]: [usize; 3], gate: usize, x: &[F]) -> Vec<F> {
    let (matrix, bias) = packed.split_at(gates * rows * columns);
    let mut y = bias[gate * columns..][..columns].to_vec();
    for (row, &x) in matrix[gate * rows * columns..].chunks(columns).zip(x) {
        y.iter_mut().zip(row).for_each(|(y, &w)| *y = *y + x * w);
    }
    y
}
