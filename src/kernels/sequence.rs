//! Recurrences over a whole sequence: what is the same for all cells.
//!
//! A cell has a forward and a backward kernel ([`Cell`]). Each runs in one of two ways: *fused*, all steps in one
//! dispatch with the recurrent product inside, where a workgroup can hold the state of four batch entries; or *stepwise*,
//! a matrix product and a dispatch for each step.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::matmul::{Factor, matmul, t};
use super::{expect, expect_indices, expect_len, expect_lengths, gru, lstm, pack, rnn};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

/// What happens at a step of a recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cell {
    /// `h = tanh(x + h Wᵀ)`
    Tanh,
    /// `h = max(0, x + h Wᵀ)`
    Relu,
    /// The gated recurrent unit, reset after the product.
    Gru,
    /// Long short-term memory.
    Lstm,
}

impl Cell {
    /// All that is the cell's own.
    pub(crate) fn kind(self) -> &'static CellKind {
        match self {
            Self::Tanh => &rnn::TANH,
            Self::Relu => &rnn::RELU,
            Self::Gru => &gru::GRU,
            Self::Lstm => &lstm::LSTM,
        }
    }

    /// Blocks of H columns in the input and in the recurrent matrix.
    pub fn gates(self) -> usize {
        self.kind().gates
    }

    /// Tensors of the carried state: h, and c.
    pub fn states(self) -> usize {
        self.kind().states
    }

    /// Blocks of H columns that the forward pass saves for the backward pass, beside the states.
    pub fn saved(self) -> usize {
        self.kind().saved
    }
}

/// What a cell is to the code that all cells share; each has one in its own file, `rnn.rs`, `gru.rs`, `lstm.rs`.
pub(crate) struct CellKind {
    /// See [`Cell::gates`].
    pub gates: usize,
    /// See [`Cell::states`].
    pub states: usize,
    /// See [`Cell::saved`].
    pub saved: usize,
    /// Whether `b_hh` is apart from the input, inside a product that a gate scales. The backward pass then leaves the
    /// gradient of `h Wᵀ + b_hh` in the first G H columns of `saved`, where it is `dx` for other cells.
    pub separate_bias: bool,
    /// Records some steps of the forward pass.
    pub forward: fn(&mut Graph, Forward<'_>) -> Result<()>,
    /// Records some steps of the backward pass.
    pub backward: fn(&mut Graph, Backward<'_>) -> Result<()>,
}

/// What a forward kernel is recorded with.
#[derive(Clone, Copy)]
pub(crate) struct Forward<'a> {
    pub(super) launch: &'a Launch,
    pub(super) s: &'a Sequence,
    /// The recurrent matrix as `pack` laid it out, or a dummy.
    pub(super) w: &'a Tensor,
    /// The recurrent product, or a dummy.
    pub(super) product: &'a Tensor,
    /// A dummy to be written.
    pub(super) nowhere: &'a Tensor,
}

/// What a backward kernel is recorded with.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    pub(super) launch: &'a Launch,
    pub(super) s: &'a Sequence,
    pub(super) d: &'a SequenceGradients,
    /// The recurrent matrix, padded, or a dummy.
    pub(super) w: &'a Tensor,
    /// A dummy to be read.
    pub(super) none: &'a Tensor,
}

/// The tensors of a recurrence.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[N, G H]`: what comes in from below; with all biases, but for the GRU, whose `b_hh` is separate.
    pub x: Tensor,
    /// `[T, B]` u32, each below N: the row of x for each step and entry.
    pub index: Tensor,
    /// `[B]` u32, from [`crate::Device::lengths`].
    pub lengths: Tensor,
    /// `[G H, H]`
    pub w: Tensor,
    /// `[G H]`: the GRU's `b_hh`.
    pub bias: Option<Tensor>,
    /// `[T + 1, B, H]`, slot 0 the incoming state; past an entry's length, 0.
    pub h: Tensor,
    /// The same for the LSTM's cell.
    pub c: Option<Tensor>,
    /// `[T, B, 4 H]`: gates, for the backward pass, if there is to be one.
    pub saved: Option<Tensor>,
}

/// The gradients of a recurrence.
#[derive(Clone, Debug)]
pub struct SequenceGradients {
    /// `[T, B, H]`: of every step's output, if there is one.
    pub dy: Option<Tensor>,
    /// `[S, B, H]`: of the last states (S = 2 for the LSTM), if there is one.
    pub dend: Option<Tensor>,
    /// `[T, B, G H]`: of the rows of x, to be written.
    pub dx: Tensor,
    /// `[S, B, H]`: of the incoming states, to be written.
    pub dstart: Tensor,
}

/// How `shaders/lib/rows.wgsl` lays batch entries over workgroups.
pub(super) struct RowTile {
    padded: usize,
    /// Batch entries of a thread.
    rows: usize,
    /// Vectors of four columns of a thread.
    columns: usize,
    /// Threads that share their batch entries.
    width: usize,
    /// Groups of such threads in a workgroup.
    groups: usize,
    fused: bool,
}

/// 16 KiB of workgroup memory in f32: WebGPU's default limit.
const TILE_VALUES: usize = 4096;

impl RowTile {
    pub const CONSTANTS: &[&str] = &["HP", "ROWS", "COLUMNS", "GROUPS", "WIDTH", "THREADS", "ROW_VECTORS"];

    /// The fused layout for a hidden size, or the stepwise one if not even four entries fit.
    ///
    /// A wide device gets 4 x 4 sums a thread and just enough groups to fill a workgroup of 64 threads: that makes the
    /// most workgroups. A software driver, where a load costs a hundred products, gets 8 x 8 for a cell of one gate; 16 x 16
    /// run faster there (lavapipe, T 8, B 512, H 256: 0.20 s in place of 0.27) but take 10 s to compile in place of 2.
    fn new(g: &Graph, batch: usize, hidden: usize, gates: usize) -> Self {
        let wide = g.is_wide();
        let padded = hidden.next_multiple_of(4);
        let (vectors, fit) = (padded / 4, TILE_VALUES / padded);
        let fused = fit >= 4 && !g.is_stepwise();
        let (rows, columns) = match (fused && !wide, gates) {
            (false, _) => (4, 1),
            (true, 1) => (fit.min(8), vectors.min(2)),
            (true, _) => (4, 1),
        };
        let width = vectors.div_ceil(columns).min(256);
        let groups = if wide && fused { (64 / width).max(1) } else { 1 };
        let rows = rows.min(batch);
        Self { padded, rows, columns, width, groups: groups.min(batch.div_ceil(rows)), fused }
    }

    fn entries(&self) -> usize {
        self.rows * self.groups
    }

    fn constants(&self) -> [(&'static str, u32); 7] {
        let vectors = if self.fused { self.entries() * self.padded / 4 } else { 1 };
        let of = |name, value: usize| (name, value as u32);
        [
            of("HP", self.padded),
            of("ROWS", self.rows),
            of("COLUMNS", self.columns),
            of("GROUPS", self.groups),
            of("WIDTH", self.width),
            of("THREADS", self.groups * self.width),
            of("ROW_VECTORS", vectors),
        ]
    }

    fn grid(&self, batch: usize) -> [usize; 3] {
        [batch.div_ceil(self.entries()), (self.padded / 4).div_ceil(self.columns * self.width), 1]
    }
}

/// What the kernels of all cells take, forward.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub steps: usize,
    pub batch: usize,
    pub hidden: usize,
    pub first: usize,
    pub last: usize,
    pub fused: bool,
}

/// Everything but the tensors of a dispatch of one of the sequence kernels.
pub(super) struct Launch {
    pub steps: Steps,
    pub constants: [(&'static str, u32); 7],
    pub grid: [usize; 3],
}

impl Launch {
    fn new(steps: Steps, tile: &RowTile) -> Self {
        Self { steps, constants: tile.constants(), grid: tile.grid(steps.batch) }
    }

    /// The recurrent products of the steps, for which each workgroup reads all weights in every step.
    fn cost(&self, g: &mut Graph, gates: usize) {
        let Steps { batch, hidden, first, last, fused, .. } = self.steps;
        if fused {
            let weights = gates * hidden * hidden;
            g.cost(2 * (last - first) * batch * weights, 4 * (self.grid[0] * (last - first) - 1) * weights);
        }
    }
}

/// Records the recurrence.
///
/// # Errors
/// The shapes do not fit.
pub fn forward(g: &mut Graph, cell: Cell, s: &Sequence) -> Result<()> {
    let (steps, batch, hidden) = check(cell, s)?;
    let gates = cell.gates();
    let tile = RowTile::new(g, batch, hidden, gates);
    let (none, nowhere) = (g.zeros("none", &[4])?, g.zeros("nowhere", &[4])?);
    let launch = |g: &mut Graph, first: usize, last: usize, w: &Tensor, product: &Tensor| {
        let launch = Launch::new(Steps { steps, batch, hidden, first, last, fused: tile.fused }, &tile);
        (cell.kind().forward)(g, Forward { launch: &launch, s, w, product, nowhere: &nowhere })?;
        launch.cost(g, gates);
        Ok(())
    };
    if tile.fused {
        g.note(format!(
            "{cell:?}, H {hidden}: all {steps} steps in one dispatch, {} batch entries a workgroup, {} workgroups",
            tile.entries(),
            tile.grid(batch)[0]
        ));
        let w_t = g.zeros(&format!("{}ᵀ", s.w.name()), &[gates, tile.padded, tile.padded])?;
        pack::pack(g, &s.w, &w_t, true)?;
        return launch(g, 0, steps, &w_t, &none);
    }
    g.note(format!("{cell:?}, H {hidden}: step by step; all steps in one dispatch need H <= {}", TILE_VALUES / 4));
    let product = g.zeros("h Wᵀ", &[batch, gates * hidden])?;
    for step in 0..steps {
        let h = Factor::block(&s.h, step * batch * hidden, batch, hidden, hidden);
        matmul(g, h, t(&s.w), None, &product, false)?;
        launch(g, step, step + 1, &none, &product)?;
    }
    Ok(())
}

/// Records the gradients of [`forward`]. For the GRU, the first 3 H columns of `saved` become the gradient of `h Wᵀ + b`;
/// for the other cells that is `dx`.
///
/// # Errors
/// The shapes do not fit.
pub fn backward(g: &mut Graph, cell: Cell, s: &Sequence, d: &SequenceGradients) -> Result<()> {
    let (steps, batch, hidden) = check(cell, s)?;
    let gates = cell.gates();
    expect("recurrence", &d.dx, &[steps, batch, gates * hidden])?;
    expect("recurrence", &d.dstart, &[cell.states(), batch, hidden])?;
    for (given, first) in [(&d.dy, steps), (&d.dend, cell.states())] {
        if let Some(given) = given {
            expect("recurrence", given, &[first, batch, hidden])?;
        }
    }
    if cell.saved() > 0 && s.saved.is_none() {
        return Err(Error::shape("recurrence", "saved", "the gates of the forward pass", &[]));
    }
    let tile = RowTile::new(g, batch, hidden, gates);
    let none = g.zeros("none", &[4])?;
    let launch = |g: &mut Graph, first: usize, last: usize, w: &Tensor| {
        let launch = Launch::new(Steps { steps, batch, hidden, first, last, fused: tile.fused }, &tile);
        (cell.kind().backward)(g, Backward { launch: &launch, s, d, w, none: &none })?;
        launch.cost(g, gates);
        Ok(())
    };
    if tile.fused {
        if tile.padded == hidden {
            return launch(g, 0, steps, &s.w);
        }
        let w = g.zeros(&format!("{}, padded", s.w.name()), &[gates, tile.padded, tile.padded])?;
        pack::pack(g, &s.w, &w, false)?;
        return launch(g, 0, steps, &w);
    }
    let dh = d.dstart.view("carried", 0, &[batch, hidden]);
    for step in (0..steps).rev() {
        launch(g, step, step + 1, &none)?;
        let (gradient, columns) = recurrent_gradient(cell, s, d);
        let at = Factor::block(gradient, step * batch * columns, batch, gates * hidden, columns);
        matmul(g, at, &s.w, None, &dh, true)?;
    }
    Ok(())
}

/// Where [`backward`] leaves the gradient of `h Wᵀ` (the first G H columns), and how many columns that tensor has.
pub(crate) fn recurrent_gradient<'a>(cell: Cell, s: &'a Sequence, d: &'a SequenceGradients) -> (&'a Tensor, usize) {
    let tensor = match &s.saved {
        Some(saved) if cell.kind().separate_bias => saved,
        _ => &d.dx,
    };
    (tensor, tensor.rows_and_columns().1)
}

/// Checks all shapes; gives T, B and H.
fn check(cell: Cell, s: &Sequence) -> Result<(usize, usize, usize)> {
    let (&[steps, batch], &[n, _], &[_, hidden]) = (s.index.shape(), s.x.shape(), s.w.shape()) else {
        return Err(Error::shape(
            "recurrence",
            s.index.name(),
            "[T, B], with x [N, G H] and w [G H, H]",
            s.index.shape(),
        ));
    };
    let gates = cell.gates();
    expect("recurrence", &s.w, &[gates * hidden, hidden])?;
    expect("recurrence", &s.x, &[n, gates * hidden])?;
    expect_indices("recurrence", &s.index, n)?;
    expect_lengths("recurrence", &s.lengths, batch, steps)?;
    expect("recurrence", &s.h, &[steps + 1, batch, hidden])?;
    let missing = |name: &str| Error::shape("recurrence", name, "the tensor that this cell needs", &[]);
    if cell.kind().separate_bias {
        expect_len("recurrence", s.bias.as_ref().ok_or_else(|| missing("bias"))?, gates * hidden)?;
    }
    if cell.states() == 2 {
        expect("recurrence", s.c.as_ref().ok_or_else(|| missing("c"))?, &[steps + 1, batch, hidden])?;
    }
    if let Some(saved) = &s.saved {
        expect("recurrence", saved, &[steps, batch, cell.saved() * hidden])?;
    }
    Ok((steps, batch, hidden))
}

/// Batch entries that one thread of a twin takes through all steps, their states and W in its cache: few enough that a
/// small batch keeps several threads busy. It depends on the batch alone, so that the threads there are do not change
/// the result.
pub(super) fn twin_rows(batch: usize) -> usize {
    (batch / 4).clamp(16, 64)
}

/// `[slots, batch, width]` cut into tiles of [`twin_rows`] batch entries: for each tile, its part of every slot.
pub(super) fn tiles<F>(values: &mut [F], batch: usize, width: usize) -> Vec<Vec<&mut [F]>> {
    let rows = twin_rows(batch);
    let mut tiles: Vec<_> = (0..batch.div_ceil(rows)).map(|_| Vec::new()).collect();
    for slot in values.chunks_exact_mut(batch * width) {
        for (tile, part) in tiles.iter_mut().zip(slot.chunks_mut(rows * width)) {
            tile.push(part);
        }
    }
    tiles
}

/// Runs a twin on each tile, on all threads; a single tile without waking any.
pub(super) fn for_each_tile<T: Send>(tiles: impl Iterator<Item = T>, work: impl Fn(usize, T) + Sync) {
    let mut tiles: Vec<_> = tiles.collect();
    match tiles.len() {
        1 => tiles.drain(..).for_each(|tile| work(0, tile)),
        _ => tiles.into_par_iter().enumerate().for_each(|(i, tile)| work(i, tile)),
    }
}

/// The recurrent matrix of one gate, as [`pack`] laid it out: `W_gᵀ` forward, `W_g` backward.
pub(super) fn matrix_of<F: Real>(w: &[F], gate: usize, hidden: usize) -> Matrix<'_, F> {
    let padded = hidden.next_multiple_of(4);
    Matrix::strided(&w[gate * padded * padded..], hidden, hidden, padded)
}

/// `sum += more`, as far as `sum` goes.
pub(super) fn add_in_place<F: Real>(sum: &mut [F], more: &[F]) {
    F::vectorize(|| sum.iter_mut().zip(more).for_each(|(sum, &more)| *sum = *sum + more));
}

/// N slices of a length each, one after the other: gate by gate, say.
pub(super) fn split<F, const N: usize>(values: &[F], each: usize) -> [&[F]; N] {
    std::array::from_fn(|i| &values[i * each..][..each])
}

/// [`split`], to be written.
pub(super) fn split_mut<F, const N: usize>(values: &mut [F], each: usize) -> [&mut [F]; N] {
    let mut parts = values.chunks_exact_mut(each);
    std::array::from_fn(|_| parts.next().expect("as many slices as asked for"))
}

/// Where a twin has the product of the state and the recurrent matrix from.
#[derive(Clone, Copy)]
pub(super) enum Recurrent<'a, F> {
    /// Makes it, with matrices as [`pack`] laid them out.
    Fused(&'a [F]),
    /// A matmul has made it: `[B, G H]`, from the tile's first entry on.
    Made { product: &'a [F], gates: usize },
}

impl<F: Real> Recurrent<'_, F> {
    /// `sum += h W_gᵀ` for the rows of a tile.
    pub fn add_to(self, sum: &mut [F], h: &[F], gate: usize, hidden: usize) {
        match self {
            Self::Fused(w) => {
                let h = Matrix::new(h, h.len() / hidden, hidden);
                product(sum, h, matrix_of(w, gate, hidden), true, false);
            }
            Self::Made { product, gates } => {
                for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
                    let made = &product[(row * gates + gate) * hidden..];
                    add_in_place(sum, made);
                }
            }
        }
    }
}
