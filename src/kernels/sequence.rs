//! Recurrences over a whole sequence: what is the same for all cells.
//!
//! A cell has a forward and a backward kernel ([`Cell`]), with the recurrent product inside. Each runs in one of two
//! ways: *fused*, all steps in one dispatch, where a workgroup can hold the state of four batch entries and read all
//! weights in every step; or *stepwise*, a dispatch for each step. The D directions of a layer are side by side: one
//! dispatch is of them all.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    LARGE_TILE_FLOPS, WORKGROUP_BYTES, expect, expect_indices, expect_len, expect_lengths, gru, lstm, pack, rnn,
};
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
    /// The recurrent matrices, transposed by `pack`.
    pub(super) w: &'a Tensor,
    /// A dummy to be written.
    pub(super) nowhere: &'a Tensor,
}

/// What a backward kernel is recorded with.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    pub(super) launch: &'a Launch,
    pub(super) s: &'a Sequence,
    pub(super) d: &'a SequenceGradients,
    /// The recurrent matrices, padded.
    pub(super) w: &'a Tensor,
    /// A dummy to be read.
    pub(super) none: &'a Tensor,
}

/// The tensors of a recurrence in D directions.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[D, N, G H]`: what comes in from below; with all biases, but for the GRU, whose `b_hh` is separate.
    pub x: Tensor,
    /// `[D, T, B]` u32, each below N: the row of x for each step and entry.
    pub index: Tensor,
    /// `[B]` u32, from [`crate::Device::lengths`].
    pub lengths: Tensor,
    /// `[G H, H]`, of each direction.
    pub w: Vec<Tensor>,
    /// `[D, G H]`: the GRU's `b_hh`.
    pub bias: Option<Tensor>,
    /// `[D, T + 1, B, H]`, slot 0 the incoming state; past an entry's length, 0.
    pub h: Tensor,
    /// The same for the LSTM's cell.
    pub c: Option<Tensor>,
    /// `[D, T, B, 4 H]`: gates, for the backward pass, if there is to be one.
    pub saved: Option<Tensor>,
    /// Whether the incoming state may be other than 0; if not, the first step needs no product.
    pub has_h_0: bool,
}

/// The gradients of a recurrence.
#[derive(Clone, Debug)]
pub struct SequenceGradients {
    /// `[D, T, B, H]`: of every step's output, if there is one.
    pub dy: Option<Tensor>,
    /// `[D, S, B, H]`: of the last states (S = 2 for the LSTM), if there is one.
    pub dend: Option<Tensor>,
    /// `[D, T, B, G H]`: of the rows of x, to be written.
    pub dx: Tensor,
    /// `[D, S, B, H]`: of the incoming states, to be written.
    pub dstart: Tensor,
    /// Whether `dstart` is wanted; if not, what it holds in the end is not the whole gradient.
    pub wants_dstart: bool,
}

/// How `shaders/lib/rows.wgsl` lays batch entries over workgroups.
pub(super) struct RowTile {
    padded: usize,
    /// Batch entries of a thread.
    rows: usize,
    /// Vectors of four columns of a thread, of each gate.
    columns: usize,
    /// Threads that share their batch entries.
    width: usize,
    /// Groups of such threads in a workgroup.
    groups: usize,
    /// Why there is a dispatch for each step, if not one for all.
    stepwise: Option<String>,
}

/// Values of a workgroup's memory.
const TILE_VALUES: usize = WORKGROUP_BYTES / 4;

/// The most weights, 4 MiB of them, that one workgroup of a GPU reads in every step. From cache it gets some hundred GB/s,
/// so that these take 40 microseconds, several times what a dispatch costs. By calculation, not measured.
const MOST_WEIGHTS_OF_A_WORKGROUP: usize = 1 << 20;

/// Why a recurrence takes a dispatch for each step, if it does.
fn stepwise(g: &Graph, Sizes { steps, hidden, .. }: Sizes, gates: usize) -> Option<String> {
    let (most, weights) = (TILE_VALUES / 4, gates * hidden * hidden);
    if hidden > most {
        return Some(format!("all steps in one need H <= {most}"));
    }
    if g.is_wide() && steps > 1 && weights > MOST_WEIGHTS_OF_A_WORKGROUP {
        let most = MOST_WEIGHTS_OF_A_WORKGROUP;
        return Some(format!("each workgroup of one dispatch would read {weights} weights a step, more than {most}"));
    }
    g.is_stepwise().then(|| "it was asked for".into())
}

impl RowTile {
    pub const CONSTANTS: &[&str] = &["HP", "ROWS", "COLUMNS", "GROUPS", "WIDTH", "FUSED", "DEPTH"];

    /// The layout for these sizes. A thread multiplies with `gates` gates at once.
    ///
    /// A GPU gets 4 x 4 sums a gate and thread, and just enough groups to fill a workgroup of 64 threads: that makes the
    /// most workgroups. On a software driver a load costs hundreds of products, so a thread gets up to 16 x 16 sums.
    fn new(g: &Graph, sizes: Sizes, gates: usize, cell_gates: usize) -> Self {
        let Sizes { directions, steps, batch, hidden, .. } = sizes;
        let padded = hidden.next_multiple_of(4);
        let (vectors, fit) = (padded / 4, TILE_VALUES / padded);
        if let Some(why) = stepwise(g, sizes, cell_gates) {
            return Self::stepwise(sizes, why);
        }
        let flops = 2 * directions * steps * batch * cell_gates * hidden * hidden;
        let large = !g.is_wide() && flops >= LARGE_TILE_FLOPS;
        let (rows, columns) = if large { (fit.min(16), vectors.min(4 / gates)) } else { (4, 1) };
        let rows = rows.min(batch);
        let width = vectors.div_ceil(columns).min(256);
        let groups = if large { 1 } else { (64 / width).clamp(1, batch.div_ceil(rows)) };
        Self { padded, rows, columns, width, groups, stepwise: None }
    }

    /// A dispatch for each step, whose workgroups share the columns too.
    fn stepwise(sizes: Sizes, why: String) -> Self {
        let padded = sizes.hidden.next_multiple_of(4);
        let rows = sizes.batch.min(4);
        let groups = sizes.batch.div_ceil(rows).min(4);
        let width = (padded / 4).min(64 / groups);
        Self { padded, rows, columns: 1, width, groups, stepwise: Some(why) }
    }

    fn fused(&self) -> bool {
        self.stepwise.is_none()
    }

    fn entries(&self) -> usize {
        self.rows * self.groups
    }

    /// Vectors of four columns of the rows in workgroup memory.
    fn depth(&self) -> usize {
        let vectors = self.padded / 4;
        if self.fused() { vectors } else { vectors.min(TILE_VALUES / 4 / self.entries()) }
    }

    fn constants(&self) -> [(&'static str, u32); 7] {
        let of = |name, value: usize| (name, value as u32);
        [
            of("HP", self.padded),
            of("ROWS", self.rows),
            of("COLUMNS", self.columns),
            of("GROUPS", self.groups),
            of("WIDTH", self.width),
            of("FUSED", self.fused().into()),
            of("DEPTH", self.depth()),
        ]
    }

    fn workgroups(&self, sizes: Sizes) -> usize {
        self.grid(sizes).iter().product()
    }

    fn grid(&self, sizes: Sizes) -> [usize; 3] {
        let columns = if self.fused() { 1 } else { (self.padded / 4).div_ceil(self.columns * self.width) };
        [sizes.batch.div_ceil(self.entries()), columns, sizes.directions]
    }
}

/// D, N, T, B and H.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub directions: usize,
    pub rows: usize,
    pub steps: usize,
    pub batch: usize,
    pub hidden: usize,
}

/// Everything but the tensors of a dispatch of one of the sequence kernels.
pub(super) struct Launch {
    pub sizes: Sizes,
    /// The steps it computes.
    pub first: usize,
    pub last: usize,
    pub constants: [(&'static str, u32); 7],
    pub grid: [usize; 3],
    /// Backward: whether the product of the first step is made too.
    pub complete: bool,
}

impl Launch {
    fn new(sizes: Sizes, (first, last): (usize, usize), tile: &RowTile, complete: bool) -> Self {
        Self { sizes, first, last, constants: tile.constants(), grid: tile.grid(sizes), complete }
    }

    /// So many recurrent products in each direction, for each of which every row of workgroups reads all its weights.
    fn cost(&self, g: &mut Graph, gates: usize, products: usize) {
        let Sizes { directions, batch, hidden, .. } = self.sizes;
        let weights = directions * gates * hidden * hidden;
        g.cost(2 * products * batch * weights, 4 * (self.grid[0] * products).saturating_sub(1) * weights);
    }
}

/// Records the recurrence.
///
/// # Errors
/// The shapes do not fit.
pub fn forward(g: &mut Graph, cell: Cell, s: &Sequence) -> Result<()> {
    let sizes @ Sizes { directions, steps, hidden, .. } = check(cell, s)?;
    let gates = cell.gates();
    let mut tile = RowTile::new(g, sizes, gates, gates);
    if g.is_wide() && steps == 1 {
        let spread = RowTile::stepwise(sizes, "more workgroups share its one step".into());
        if spread.workgroups(sizes) > tile.workgroups(sizes) {
            tile = spread;
        }
    }
    let nowhere = g.zeros("nowhere", &[4])?;
    let side_by_side =
        if directions == 1 { String::new() } else { format!(" of {directions} directions side by side") };
    let how = match &tile.stepwise {
        None => {
            format!("all {steps} steps{side_by_side} in one dispatch, {} batch entries a workgroup", tile.entries())
        }
        Some(why) => format!("a dispatch for each step{side_by_side}, since {why}"),
    };
    g.note(format!("{cell:?}, H {hidden}: {how}, {} workgroups", tile.workgroups(sizes)));
    let w_t = packed(g, s, &tile, gates, true)?;
    for (first, last) in dispatches(&tile, steps) {
        let launch = Launch::new(sizes, (first, last), &tile, false);
        (cell.kind().forward)(g, Forward { launch: &launch, s, w: &w_t, nowhere: &nowhere })?;
        launch.cost(g, gates, last - first - usize::from(first == 0 && !s.has_h_0));
    }
    Ok(())
}

/// The recurrent matrices of all directions, `[D G, HP, HP]`.
fn packed(g: &mut Graph, s: &Sequence, tile: &RowTile, gates: usize, transpose: bool) -> Result<Tensor> {
    let name = format!("{}{}", s.w[0].name(), if transpose { "ᵀ" } else { ", padded" });
    let packed = g.zeros(&name, &[s.w.len() * gates, tile.padded, tile.padded])?;
    let mut at = 0;
    for w in &s.w {
        at = pack::pack(g, w, &packed, at, [gates, tile.padded, tile.padded], transpose)?;
    }
    Ok(packed)
}

/// The steps of each dispatch.
fn dispatches(tile: &RowTile, steps: usize) -> Vec<(usize, usize)> {
    if tile.fused() { vec![(0, steps)] } else { (0..steps).map(|step| (step, step + 1)).collect() }
}

/// Records the gradients of [`forward`]. For the GRU, the first 3 H columns of `saved` become the gradient of `h Wᵀ + b`;
/// for the other cells that is `dx`.
///
/// # Errors
/// The shapes do not fit.
pub fn backward(g: &mut Graph, cell: Cell, s: &Sequence, d: &SequenceGradients) -> Result<()> {
    let sizes @ Sizes { directions, steps, batch, hidden, .. } = check(cell, s)?;
    let gates = cell.gates();
    expect("recurrence", &d.dx, &[directions, steps, batch, gates * hidden])?;
    expect("recurrence", &d.dstart, &[directions, cell.states(), batch, hidden])?;
    for (given, slots) in [(&d.dy, steps), (&d.dend, cell.states())] {
        if let Some(given) = given {
            expect("recurrence", given, &[directions, slots, batch, hidden])?;
        }
    }
    if cell.saved() > 0 && s.saved.is_none() {
        return Err(Error::shape("recurrence", "saved", "the gates of the forward pass", &[]));
    }
    let tile = RowTile::new(g, sizes, 1, gates);
    let none = g.zeros("none", &[4])?;
    let w = match s.w.as_slice() {
        [only] if tile.padded == hidden => only.clone(),
        _ => packed(g, s, &tile, gates, false)?,
    };
    let mut spans = dispatches(&tile, steps);
    spans.reverse();
    if !tile.fused() && d.wants_dstart {
        // The product of the first step needs all columns of its dx.
        spans.push((0, 0));
    }
    for (first, last) in spans {
        let complete = tile.fused() && d.wants_dstart;
        let launch = Launch::new(sizes, (first, last), &tile, complete);
        (cell.kind().backward)(g, Backward { launch: &launch, s, d, w: &w, none: &none })?;
        let within = (last - first).saturating_sub(1);
        launch.cost(g, gates, within + usize::from(last < steps) + usize::from(complete));
    }
    Ok(())
}

/// Where [`backward`] leaves the gradient of `h Wᵀ` (the first G H columns), `[D, T, B, columns]`, and its columns.
pub(crate) fn recurrent_gradient<'a>(cell: Cell, s: &'a Sequence, d: &'a SequenceGradients) -> (&'a Tensor, usize) {
    let tensor = match &s.saved {
        Some(saved) if cell.kind().separate_bias => saved,
        _ => &d.dx,
    };
    (tensor, tensor.rows_and_columns().1)
}

/// Checks all shapes.
fn check(cell: Cell, s: &Sequence) -> Result<Sizes> {
    let (&[directions, steps, batch], &[_, rows, _], &[_, _, _, hidden]) = (s.index.shape(), s.x.shape(), s.h.shape())
    else {
        let expected = "[D, T, B], with x [D, N, G H] and h [D, T + 1, B, H]";
        return Err(Error::shape("recurrence", s.index.name(), expected, s.index.shape()));
    };
    let gates = cell.gates();
    if s.w.len() != directions {
        return Err(Error::argument("recurrence", "weights", format!("{directions}"), s.w.len()));
    }
    for w in &s.w {
        expect("recurrence", w, &[gates * hidden, hidden])?;
    }
    expect("recurrence", &s.x, &[directions, rows, gates * hidden])?;
    expect_indices("recurrence", &s.index, rows)?;
    expect_lengths("recurrence", &s.lengths, batch, steps)?;
    expect("recurrence", &s.h, &[directions, steps + 1, batch, hidden])?;
    let missing = |name: &str| Error::shape("recurrence", name, "the tensor that this cell needs", &[]);
    if cell.kind().separate_bias {
        expect_len("recurrence", s.bias.as_ref().ok_or_else(|| missing("bias"))?, directions * gates * hidden)?;
    }
    if cell.states() == 2 {
        expect("recurrence", s.c.as_ref().ok_or_else(|| missing("c"))?, s.h.shape())?;
    }
    if let Some(saved) = &s.saved {
        expect("recurrence", saved, &[directions, steps, batch, cell.saved() * hidden])?;
    }
    Ok(Sizes { directions, rows, steps, batch, hidden })
}

/// Batch entries that one thread of a twin takes through all steps, their states and W in its cache: few enough that a
/// small batch keeps several threads busy. It depends on the batch alone, so that the threads there are do not change
/// the result.
fn twin_rows(batch: usize) -> usize {
    (batch / 4).clamp(16, 64)
}

/// `[D, slots, batch, width]` cut into tiles of [`twin_rows`] batch entries, direction by direction: for each tile, its
/// part of every slot; of a dummy, none.
pub(super) fn tiles<F>(values: &mut [F], directions: usize, batch: usize, width: usize) -> Vec<Vec<&mut [F]>> {
    let rows = twin_rows(batch);
    let slots = (values.len() / (batch * width)).div_ceil(directions);
    let per_direction = batch.div_ceil(rows);
    let mut tiles: Vec<_> = (0..directions * per_direction).map(|_| Vec::new()).collect();
    for (i, slot) in values.chunks_exact_mut(batch * width).enumerate() {
        for (tile, part) in tiles[i / slots * per_direction..].iter_mut().zip(slot.chunks_mut(rows * width)) {
            tile.push(part);
        }
    }
    tiles
}

/// Runs a twin on each tile, given its direction and its first batch entry, on all threads; a single tile without waking
/// any.
pub(super) fn for_each_tile<T: Send>(
    tiles: impl Iterator<Item = T>,
    batch: usize,
    work: impl Fn(usize, usize, T) + Sync,
) {
    let rows = twin_rows(batch);
    let per_direction = batch.div_ceil(rows);
    let work = |i: usize, tile| work(i / per_direction, i % per_direction * rows, tile);
    let mut tiles: Vec<_> = tiles.collect();
    match tiles.len() {
        1 => tiles.drain(..).for_each(|tile| work(0, tile)),
        _ => tiles.into_par_iter().enumerate().for_each(|(i, tile)| work(i, tile)),
    }
}

/// The part of a direction, of tensors `[D, ..]`.
pub(super) fn of_direction<F, const N: usize>(values: [&[F]; N], direction: usize, directions: usize) -> [&[F]; N] {
    values.map(|values| {
        let each = values.len() / directions;
        &values[direction * each..][..each]
    })
}

/// The recurrent matrix of one gate, as [`pack`] laid it out: `W_gᵀ` forward, `W_g` backward.
fn matrix_of<F: Real>(w: &[F], gate: usize, hidden: usize) -> Matrix<'_, F> {
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

/// `sum += h W_gᵀ` of one gate, for the rows of a tile; w as [`pack`] transposed it.
pub(super) fn add_product<F: Real>(sum: &mut [F], h: &[F], w: &[F], gate: usize, hidden: usize) {
    let h = Matrix::new(h, h.len() / hidden, hidden);
    product(sum, h, matrix_of(w, gate, hidden), true, false);
}

/// `sum += d_g W_g` of so many gates, for the rows of a tile: `d` is `[rows, gates, H]`, or has more columns after these.
pub(super) fn add_gradients<F: Real>(sum: &mut [F], d: &[F], gates: usize, w: &[F], hidden: usize) {
    let rows = sum.len() / hidden;
    for gate in 0..gates {
        let d = Matrix::strided(&d[gate * hidden..], rows, hidden, d.len() / rows);
        product(sum, d, matrix_of(w, gate, hidden), true, false);
    }
}
