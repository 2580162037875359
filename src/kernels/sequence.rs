//! Recurrences over a whole sequence: what is the same for all cells.
//!
//! A cell has a forward and a backward kernel ([`Cell`]), with the recurrent product inside. Each runs in one of two
//! ways: *fused*, all steps in one dispatch, where a workgroup can hold the state of four batch entries and read all
//! weights in every step; or *stepwise*, a dispatch for each step. The D directions of a layer are side by side: one
//! dispatch is of them all. Stepwise, D stacked layers can be too, as a wavefront: each is a step behind the one below,
//! whose states it multiplies itself.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{LARGE_TILE_FLOPS, expect, expect_indices, expect_len, expect_lengths, gru, lstm, pack, rnn};
use crate::device::{Limits, WORKGROUP_BYTES};
use crate::error::{Error, Result};
use crate::graph::{Graph, Precision};
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
    /// A dummy to be read.
    pub(super) none: &'a Tensor,
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

/// The tensors of a recurrence in D directions, or of D stacked layers.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[D, N, G H]`: what comes in from below; with all biases, but for the GRU, whose `b_hh` is separate. Of stacked
    /// layers, `[1, N, G H]`: what comes into the first.
    pub x: Tensor,
    /// `[D, T, B]` u32, each below N: the row of x for each step and entry; `[1, T, B]` of stacked layers.
    pub index: Tensor,
    /// If given, these are stacked layers.
    pub stack: Option<Stack>,
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
    /// How the weights are stored where every step reads them, forward and backward.
    pub precision: Precision,
}

/// What stacked layers have in place of x, each but the first.
#[derive(Clone, Debug)]
pub struct Stack {
    /// `[G H, H]`, of each.
    pub w_ih: Vec<Tensor>,
    /// `[D - 1, G H]`: the biases that x has in it.
    pub biases: Tensor,
}

/// The gradients of a recurrence.
#[derive(Clone, Debug)]
pub struct SequenceGradients {
    /// `[D, T, B, H]`: of every step's output, if there is one; `[1, T, B, H]`, of the top one, of stacked layers.
    pub dy: Option<Tensor>,
    /// `[D, S, B, H]`: of the last states (S = 2 for the LSTM), if there is one.
    pub dend: Option<Tensor>,
    /// `[D, T, B, G H]`: of the rows of x, to be written.
    pub dx: Tensor,
    /// `[D, S, B, H]`: of the incoming states, to be written.
    pub dstart: Tensor,
    /// Whether `dstart` is wanted; if not, what it holds in the end means nothing.
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
    /// Groups of such threads in a slice of the sums.
    groups: usize,
    /// Slices in a workgroup.
    slices: usize,
    precision: Precision,
    /// Whether the slices of a sum are neighbours in a subgroup.
    subgroups: bool,
    /// Whether a workgroup keeps the weights in its memory.
    keeps_weights: bool,
    /// Why there is a dispatch for each step, if not one for all.
    stepwise: Option<String>,
}

/// Values of a workgroup's memory.
const TILE_VALUES: usize = WORKGROUP_BYTES / 4;

/// The most bytes of weights that one workgroup of a GPU reads in every step. From cache it gets some hundred GB/s, so that these
/// take 10 microseconds, two or three times what a dispatch costs. By calculation, not measured.
const MOST_WEIGHT_BYTES_OF_A_WORKGROUP: usize = 1 << 20;

/// From so many bytes of weights on, a GPU's core takes them, in every step, from the cache that all cores share, whose bandwidth
/// half of the cores exhaust: of a large batch fewer workgroups, of twice the entries each, read half as much (W1's 128 would
/// read 235 MB in its 7 products). Where subgroups add up the slices: through workgroup memory there would be fewer of them. By
/// calculation, not measured.
const FEWEST_WEIGHT_BYTES_TO_SHARE: usize = 128 << 10;

/// Workgroups of twice the entries that are enough for that.
const ENOUGH_SHARING_WORKGROUPS: usize = 64;

/// Why a recurrence takes a dispatch for each step, if it does.
fn why_stepwise(g: &Graph, Sizes { stacked, steps, hidden, precision, .. }: Sizes, gates: usize) -> Option<String> {
    let (most, weights) = (TILE_VALUES / 4, gates * hidden * hidden);
    if hidden > most {
        return Some(format!("all steps in one need H <= {most}"));
    }
    let most = MOST_WEIGHT_BYTES_OF_A_WORKGROUP / precision.bytes();
    let too_many = g.is_wide() && steps > 1 && weights > most;
    match g.stepwise() {
        None if too_many => {
            Some(format!("each workgroup of one would read {weights} weights a step, more than {most}"))
        }
        Some(true) => Some("it was asked for".into()),
        _ => stacked.then(|| "the layers are stacked".into()),
    }
}

/// Workgroups that keep a large GPU busy.
const ENOUGH_WORKGROUPS: usize = 128;

/// The most values of h that a layer of a wavefront may have: from there on each layer fills a GPU by itself, and its input's
/// product is better made for all steps at once. By calculation, not measured.
const MOST_STATES_OF_A_STACKED_LAYER: usize = 1 << 18;

/// Whether stacked layers of one size, the first on so many rows, shall be a wavefront. They never are on a software driver,
/// which gains nothing.
pub(crate) fn shall_stack(g: &mut Graph, cell: Cell, layers: usize, rows: usize, size: [usize; 3]) -> bool {
    let [steps, batch, hidden] = size;
    let sizes = Sizes { directions: 1, stacked: false, rows, steps, batch, hidden, precision: g.precision() };
    let small = batch * hidden <= MOST_STATES_OF_A_STACKED_LAYER;
    let is_wanted = g.is_wide() && layers > 1 && steps > 1 && small;
    if !is_wanted || why_stepwise(g, sizes, cell.gates()).is_none() {
        return false;
    }
    let fits = fits(g.device().limits(), g.is_training(), cell, (layers, 2 * layers - 1), rows, size);
    if !fits {
        g.note(format!(
            "{cell:?}, H {hidden}: layers one after the other, since together they pass the device's limits"
        ));
    }
    fits
}

/// Whether so many recurrences side by side, on so many rows each, with so many matrices, have tensors that a kernel can bind.
pub(crate) fn fits(
    limits: Limits,
    training: bool,
    cell: Cell,
    (recurrences, matrices): (usize, usize),
    rows: usize,
    [steps, batch, hidden]: [usize; 3],
) -> bool {
    let (state, gates) = (recurrences * batch * hidden, cell.gates());
    let of_training = if training { steps * state * gates.max(cell.saved()) } else { 0 };
    let inputs = recurrences * rows * gates * hidden;
    let largest = [(steps + 1) * state, of_training, inputs, matrices * matrix_len(gates, hidden)].into_iter().max();
    4 * largest.unwrap_or(0) as u64 <= limits.tensor_bytes()
}

/// The most slices of a sum: what puts them together reads one after the other.
const MOST_SLICES: usize = 32;

/// Into how many slices sums over so many vectors of four are cut: of four vectors each or nearly, and so that the slices
/// share the rows of a thread, or each row is one slice's, of a power of 2 slices: subgroups add them up by halves.
fn slices_of(rows: usize, vectors: usize, most: usize) -> usize {
    let most = most.max(1).min(vectors.div_ceil(4)).min(MOST_SLICES);
    let halves = 1 << most.ilog2();
    if halves >= rows { halves } else { (1..=most).rev().find(|slices| rows.is_multiple_of(*slices)).unwrap_or(1) }
}

/// Fewer steps do not pay for the copy. By calculation, not measured, like the gain: a core's own cache may hold them as well.
const FEWEST_STEPS_TO_KEEP_WEIGHTS: usize = 4;

/// Whether subgroups can add up so many slices of the sums of so many rows.
fn has_subgroups(g: &Graph, rows: usize, slices: usize, slice_threads: usize) -> bool {
    let Some((least, most)) = g.device().limits().subgroups.filter(|_| !g.is_baseline()) else { return false };
    let halves = slices.is_power_of_two() && rows.min(slices).is_power_of_two();
    slices > 1 && slices <= least && halves && (slices * slice_threads).is_multiple_of(most)
}

impl RowTile {
    pub const CONSTANTS: &[&str] = &[
        "HP",
        "ROWS",
        "COLUMNS",
        "GROUPS",
        "WIDTH",
        "SLICES",
        "FUSED",
        "STACKED",
        "DEPTH",
        "SUBGROUPS",
        "KEPT",
        "F16",
    ];

    /// The layout for these sizes. A thread multiplies with `gates` gates at once.
    ///
    /// A GPU gets 4 x 4 sums a gate and thread (8 x 4 where workgroups are many and weights too), as many slices of them as make
    /// 256 threads, and groups only to fill 64 of them: that makes the most workgroups, and the most loads under way at a time.
    /// By calculation, not measured. On a software driver a load costs hundreds of products, so a thread gets up to 16 x 16 sums.
    fn new(g: &Graph, sizes: Sizes, gates: usize, cell_gates: usize) -> Self {
        let Sizes { directions, steps, batch, hidden, precision, .. } = sizes;
        let padded = hidden.next_multiple_of(4);
        let (vectors, fit) = (padded / 4, TILE_VALUES / padded);
        if let Some(why) = why_stepwise(g, sizes, cell_gates) {
            return Self::stepwise(g, sizes, why);
        }
        let flops = 2 * directions * steps * batch * cell_gates * hidden * hidden;
        let large = !g.is_wide() && flops >= LARGE_TILE_FLOPS;
        let weights = cell_gates * padded * padded * precision.bytes();
        let adds_up = has_subgroups(g, 8, slices_of(8, vectors, 256 / vectors.min(256)), vectors.min(256));
        let shares = adds_up && weights >= FEWEST_WEIGHT_BYTES_TO_SHARE && batch / 8 >= ENOUGH_SHARING_WORKGROUPS;
        let (rows, columns) = match (large, shares) {
            (true, _) => (fit.min(16), vectors.min(4 / gates)),
            (false, true) => (fit.min(8), 1),
            (false, false) => (4, 1),
        };
        let rows = rows.min(batch);
        let width = vectors.div_ceil(columns).min(256);
        let mut slices = 1;
        if g.is_wide() {
            slices = slices_of(rows, vectors, 256 / width);
            if !has_subgroups(g, rows, slices, width) {
                // Added up through workgroup memory.
                slices = slices_of(rows, vectors, (TILE_VALUES / 4 / rows).min(256) / width);
            }
        }
        let groups = if large { 1 } else { (64 / (width * slices)).clamp(1, batch.div_ceil(rows)) };
        let mut tile = Self::of(g, sizes, [rows, columns, width, groups, slices], None);
        tile.keeps_weights = g.is_wide()
            && !g.is_baseline()
            && steps >= FEWEST_STEPS_TO_KEEP_WEIGHTS
            && tile.bytes() + weights <= g.device().limits().workgroup_bytes;
        tile
    }

    fn of(
        g: &Graph,
        sizes: Sizes,
        [rows, columns, width, groups, slices]: [usize; 5],
        stepwise: Option<String>,
    ) -> Self {
        let subgroups = has_subgroups(g, rows, slices, groups * width);
        let (padded, precision) = (sizes.hidden.next_multiple_of(4), sizes.precision);
        Self { padded, rows, columns, width, groups, slices, precision, subgroups, keeps_weights: false, stepwise }
    }

    /// A dispatch for each step, whose workgroups share the columns too.
    ///
    /// A GPU gets workgroups of up to 256 threads: 32 batch entries, for each of which a row of workgroups reads all weights,
    /// so few columns that there are enough workgroups, and slices of the sums for the rest. By calculation, not measured.
    fn stepwise(g: &Graph, sizes: Sizes, why: String) -> Self {
        let Sizes { directions, batch, hidden, .. } = sizes;
        let (vectors, rows) = (hidden.div_ceil(4), batch.min(4));
        let groups = batch.div_ceil(rows);
        let (groups, width, slices) = if g.is_wide() {
            let groups = groups.min(8);
            let workgroups = |width| directions * batch.div_ceil(groups * rows) * vectors.div_ceil(width);
            let width = [16, 8, 4].into_iter().find(|&width| workgroups(width) >= ENOUGH_WORKGROUPS).unwrap_or(2);
            (groups, width, slices_of(rows, vectors, 256 / (groups * width)))
        } else {
            let groups = groups.min(4);
            (groups, vectors.min(64 / groups), 1)
        };
        Self::of(g, sizes, [rows, 1, width, groups, slices], Some(why))
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

    /// Of workgroup memory, without weights.
    fn bytes(&self) -> usize {
        let threads = self.slices * self.groups * self.width;
        let scratch = if self.slices > 1 && !self.subgroups { self.rows * threads } else { 0 };
        16 * scratch.max(self.entries() * self.depth())
    }

    fn constants(&self, sizes: Sizes) -> [(&'static str, u32); 12] {
        let of = |name, value: usize| (name, value as u32);
        [
            of("HP", self.padded),
            of("ROWS", self.rows),
            of("COLUMNS", self.columns),
            of("GROUPS", self.groups),
            of("WIDTH", self.width),
            of("SLICES", self.slices),
            of("FUSED", self.fused().into()),
            of("STACKED", sizes.stacked.into()),
            of("DEPTH", self.depth()),
            of("SUBGROUPS", self.subgroups.into()),
            of("KEPT", self.keeps_weights.into()),
            of("F16", self.precision.is_f16().into()),
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
    /// Whether these are stacked layers.
    pub stacked: bool,
    pub rows: usize,
    pub steps: usize,
    pub batch: usize,
    pub hidden: usize,
    pub precision: Precision,
}

/// Everything but the tensors of a dispatch of one of the sequence kernels.
pub(super) struct Launch {
    pub sizes: Sizes,
    /// The steps it computes.
    pub first: usize,
    pub last: usize,
    pub constants: [(&'static str, u32); 12],
    pub grid: [usize; 3],
    /// Bytes of a weight.
    pub weight_bytes: usize,
    /// Whether a workgroup reads them once, not for each step.
    pub keeps_weights: bool,
    /// Backward: whether the product of the first step is made too.
    pub complete: bool,
}

/// A tensor, the elements of a slot of it, and how many slots a dispatch of these steps touches.
type OfSteps<'a> = (&'a Tensor, usize, &'a dyn Fn(&Range<usize>) -> usize);

impl Launch {
    fn new(sizes: Sizes, (first, last): (usize, usize), tile: &RowTile, complete: bool) -> Self {
        Self {
            sizes,
            first,
            last,
            constants: tile.constants(sizes),
            grid: tile.grid(sizes),
            weight_bytes: tile.precision.bytes(),
            keeps_weights: tile.keeps_weights,
            complete,
        }
    }

    /// Of the dispatch just recorded: `products` of a direction and its steps, with all of whose weights every row of workgroups
    /// multiplies; and of the tensors `with_steps` those of its steps.
    fn cost(
        &self,
        g: &mut Graph,
        gates: usize,
        (s, w): (&Sequence, &Tensor),
        products: impl Fn(usize, &Range<usize>) -> usize,
        with_steps: &[OfSteps<'_>],
    ) {
        let Sizes { directions, batch, hidden, .. } = self.sizes;
        let of = |direction| Some((direction, self.sizes.steps_of(direction, (self.first, self.last))?));
        let spans: Vec<_> = (0..directions).filter_map(of).collect();
        let products: usize = spans.iter().map(|(direction, of)| products(*direction, of)).sum();
        let (weights, matrices) = (gates * hidden * hidden, s.matrices());
        let reads = self.grid[0] * if self.keeps_weights { matrices } else { products };
        let rereads = self.weight_bytes * reads.saturating_sub(matrices) * weights;
        g.cost(2 * products * batch * weights, rereads);
        g.touches(|tensor| {
            if tensor.is(w) {
                return Some(w.len() * self.weight_bytes / 4);
            }
            let (_, each, slots) = with_steps.iter().find(|(other, ..)| other.is(tensor))?;
            Some(spans.iter().map(|(_, of)| slots(of) * each).sum::<usize>().min(tensor.len()))
        });
    }
}

/// Records the recurrence.
///
/// # Errors
/// The shapes do not fit.
pub fn forward(g: &mut Graph, cell: Cell, s: &Sequence) -> Result<()> {
    let sizes @ Sizes { directions, steps, batch, hidden, .. } = check(cell, s)?;
    g.check_precision(s.precision)?;
    let gates = cell.gates();
    let mut tile = RowTile::new(g, sizes, gates, gates);
    if g.is_wide() && steps == 1 && !sizes.stacked {
        let spread = RowTile::stepwise(g, sizes, "more workgroups share its one step".into());
        if spread.workgroups(sizes) > tile.workgroups(sizes) {
            tile = spread;
        }
    }
    let (none, nowhere) = (g.zeros("none", &[4])?, g.zeros("nowhere", &[4])?);
    let side_by_side = match directions {
        1 => String::new(),
        layers if sizes.stacked => format!(" of {layers} layers, each a step behind the one below"),
        directions => format!(" of {directions} directions side by side"),
    };
    let how = match &tile.stepwise {
        None => {
            format!("all {steps} steps{side_by_side} in one dispatch, {} batch entries a workgroup", tile.entries())
        }
        Some(why) => format!("a dispatch for each step{side_by_side}, since {why}"),
    };
    let with = [
        (tile.precision.is_f16(), ", weights in f16"),
        (tile.keeps_weights, ", weights kept in workgroup memory"),
        (tile.subgroups, ", sums added up in subgroups"),
    ];
    let with: String = with.into_iter().filter_map(|(is_so, what)| is_so.then_some(what)).collect();
    g.note(format!("{cell:?}, H {hidden}: {how}, {} workgroups{with}", tile.workgroups(sizes)));
    let w_t = packed(g, s, &tile, gates, true)?;
    let (state, rows_of_x) = (batch * hidden, sizes.rows.min(batch));
    let (each, and_incoming) = (|of: &Range<usize>| of.len(), |of: &Range<usize>| of.len() + 1);
    // The GRU multiplies the incoming state with a gate, be it 0.
    let reads_h = |of: &Range<usize>| of.len() + usize::from(of.start > 0 || s.has_h_0 || cell == Cell::Gru);
    let mut with_steps: Vec<OfSteps<'_>> =
        vec![(&s.h, state, &reads_h), (&s.x, rows_of_x * gates * hidden, &each), (&s.index, batch, &each)];
    with_steps.extend(s.c.as_ref().map(|c| (c, state, &and_incoming as _)));
    with_steps.extend(s.saved.as_ref().map(|saved| (saved, cell.saved() * state, &each as _)));
    for span in dispatches(&tile, sizes) {
        let launch = Launch::new(sizes, span, &tile, false);
        (cell.kind().forward)(g, Forward { launch: &launch, s, w: &w_t, none: &none, nowhere: &nowhere })?;
        let products = |direction, steps: &Range<usize>| {
            let of_zeros = usize::from(steps.start == 0 && !s.has_h_0);
            steps.len() - of_zeros + usize::from(sizes.stacked && direction > 0)
        };
        launch.cost(g, gates, (s, &w_t), products, &with_steps);
    }
    Ok(())
}

impl Sequence {
    /// The biases of stacked layers' inputs, or this dummy.
    pub(super) fn bias_below<'a>(&'a self, none: &'a Tensor) -> &'a Tensor {
        self.stack.as_ref().map_or(none, |stack| &stack.biases)
    }

    /// Recurrent matrices, and input matrices of stacked layers.
    fn matrices(&self) -> usize {
        self.w.len() + self.stack.as_ref().map_or(0, |stack| stack.w_ih.len())
    }
}

/// All matrices, `[D G, HP, HP]`, and those of stacked layers' inputs behind them.
fn packed(g: &mut Graph, s: &Sequence, tile: &RowTile, gates: usize, transpose: bool) -> Result<Tensor> {
    let name = format!("{}{}", s.w[0].name(), if transpose { "ᵀ" } else { ", padded" });
    let packed = g.zeros(&name, &[s.matrices() * gates, tile.padded, tile.padded])?;
    let mut at = 0;
    for w in s.w.iter().chain(s.stack.iter().flat_map(|stack| &stack.w_ih)) {
        at = pack::pack(g, w, &packed, at, [gates, tile.padded, tile.padded], transpose, tile.precision)?;
    }
    Ok(packed)
}

/// The steps of each dispatch, of the first one of stacked layers.
fn dispatches(tile: &RowTile, Sizes { directions, steps, stacked, .. }: Sizes) -> Vec<(usize, usize)> {
    if tile.fused() {
        return vec![(0, steps)];
    }
    let waves = if stacked { steps + directions - 1 } else { steps };
    (0..waves).map(|step| (step, step + 1)).collect()
}

/// Records the gradients of [`forward`]. For the GRU, the first 3 H columns of `saved` become the gradient of `h Wᵀ + b`;
/// for the other cells that is `dx`.
///
/// # Errors
/// The shapes do not fit.
pub fn backward(g: &mut Graph, cell: Cell, s: &Sequence, d: &SequenceGradients) -> Result<()> {
    let sizes @ Sizes { directions, steps, batch, hidden, .. } = check(cell, s)?;
    g.check_precision(s.precision)?;
    let gates = cell.gates();
    expect("recurrence", &d.dx, &[directions, steps, batch, gates * hidden])?;
    expect("recurrence", &d.dstart, &[directions, cell.states(), batch, hidden])?;
    let outputs = if s.stack.is_some() { 1 } else { directions };
    for (given, count, slots) in [(&d.dy, outputs, steps), (&d.dend, directions, cell.states())] {
        if let Some(given) = given {
            expect("recurrence", given, &[count, slots, batch, hidden])?;
        }
    }
    if cell.saved() > 0 && s.saved.is_none() {
        return Err(Error::shape("recurrence", "saved", "the gates of the forward pass", &[]));
    }
    let tile = RowTile::new(g, sizes, 1, gates);
    let none = g.zeros("none", &[4])?;
    let w = match s.w.as_slice() {
        [only] if tile.padded == hidden && !tile.precision.is_f16() => only.clone(),
        _ => packed(g, s, &tile, gates, false)?,
    };
    let state = batch * hidden;
    let (each, and_one) = (|of: &Range<usize>| of.len(), |of: &Range<usize>| of.len() + 1);
    let complete = tile.fused() && d.wants_dstart;
    let mut with_steps: Vec<OfSteps<'_>> = vec![(&s.h, state, &each), (&d.dx, gates * state, &and_one)];
    with_steps.extend(s.c.as_ref().map(|c| (c, state, &and_one as _)));
    with_steps.extend(d.dy.as_ref().map(|dy| (dy, state, &each as _)));
    with_steps.extend((tile.fused() && !complete).then_some((&d.dstart, 0, &each as _)));
    let of_saved: &dyn Fn(&Range<usize>) -> usize = if cell.kind().separate_bias { &and_one } else { &each };
    with_steps.extend(s.saved.as_ref().map(|saved| (saved, cell.saved() * state, of_saved)));
    let mut spans = dispatches(&tile, sizes);
    spans.reverse();
    if !tile.fused() && d.wants_dstart {
        // The product of the first step needs all columns of its dx.
        spans.push((0, 0));
    }
    for span in spans {
        let launch = Launch::new(sizes, span, &tile, complete);
        (cell.kind().backward)(g, Backward { launch: &launch, s, d, w: &w, none: &none })?;
        let products = |direction, of: &Range<usize>| {
            let from_above = sizes.stacked && direction + 1 < directions && !of.is_empty();
            of.len().saturating_sub(1) + [of.end < steps, complete, from_above].map(usize::from).iter().sum::<usize>()
        };
        launch.cost(g, gates, (s, &w), products, &with_steps);
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
    let (&[_, steps, batch], &[_, rows, _], &[_, _, _, hidden]) = (s.index.shape(), s.x.shape(), s.h.shape()) else {
        let expected = "[D, T, B], with x [D, N, G H] and h [D, T + 1, B, H]";
        return Err(Error::shape("recurrence", s.index.name(), expected, s.index.shape()));
    };
    let (gates, directions) = (cell.gates(), s.w.len());
    let inputs = if s.stack.is_some() { 1 } else { directions };
    if let Some(Stack { w_ih, .. }) = &s.stack
        && (w_ih.is_empty() || directions != w_ih.len() + 1)
    {
        let expected = "a recurrent matrix for each stacked layer, and an input matrix for each but the first";
        return Err(Error::argument("recurrence", "weights", expected, format!("{directions} and {}", w_ih.len())));
    }
    for w in &s.w {
        expect("recurrence", w, &[gates * hidden, hidden])?;
    }
    if let Some(Stack { w_ih, biases }) = &s.stack {
        w_ih.iter().try_for_each(|w| expect("recurrence", w, &[gates * hidden, hidden]))?;
        expect("recurrence", biases, &[w_ih.len(), gates * hidden])?;
    }
    expect("recurrence", &s.x, &[inputs, rows, gates * hidden])?;
    expect("recurrence", &s.index, &[inputs, steps, batch])?;
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
    Ok(Sizes { directions, stacked: s.stack.is_some(), rows, steps, batch, hidden, precision: s.precision })
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

impl Sizes {
    /// From a twin's parameters D, N, T, B, H and its matrices.
    pub(super) fn of_twin<F>([d, n, t, b, h]: [u32; 5], w: &[F], gates: usize) -> Self {
        let [directions, rows, steps, batch, hidden] = [d, n, t, b, h].map(|size| size as usize);
        let stacked = w.len() > directions * matrix_len(gates, hidden);
        // What the twin reads is rounded already.
        Self { directions, stacked, rows, steps, batch, hidden, precision: Precision::F32 }
    }

    /// The steps of a direction in a dispatch, those of a stacked layer behind those of the one below; `steps_of` and
    /// `is_idle` in `shaders/lib/rows.wgsl`.
    pub(super) fn steps_of(self, direction: usize, (first, last): (usize, usize)) -> Option<Range<usize>> {
        let behind = if self.stacked && first < last { direction } else { 0 };
        let first = first.checked_sub(behind)?;
        (first < self.steps).then(|| first..last - behind)
    }

    /// The stacked layers that have one below.
    fn layers_above(self) -> Range<usize> {
        1..if self.stacked { self.directions } else { 1 }
    }
}

/// The length of a padded matrix of all gates.
fn matrix_len(gates: usize, hidden: usize) -> usize {
    gates * hidden.next_multiple_of(4).pow(2)
}

/// The i-th matrix of all gates.
pub(super) fn matrix<F>(w: &[F], i: usize, gates: usize, hidden: usize) -> &[F] {
    let len = matrix_len(gates, hidden);
    &w[i * len..][..len]
}

/// What comes in from below, in the twin of a forward kernel.
pub(super) struct Below<'a, F> {
    sizes: Sizes,
    gates: usize,
    x: &'a [F],
    index: &'a [u32],
    /// Of each stacked layer but the first, `[G, B, H]`: the product with what the layer below made in the dispatch before,
    /// and the biases.
    stacked: Vec<Vec<F>>,
}

impl<'a, F: Real> Below<'a, F> {
    /// `h` so far, all matrices and `biases` are for stacked layers.
    pub(super) fn new(
        (sizes, gates, span): (Sizes, usize, (usize, usize)),
        (x, index): (&'a [F], &'a [u32]),
        (h, w, biases): (&[F], &[F], &[F]),
    ) -> Self {
        let Sizes { directions, steps, batch, hidden, .. } = sizes;
        let of_layer = |layer: usize| {
            let mut made = vec![F::zero(); gates * batch * hidden];
            if let Some(of) = sizes.steps_of(layer, span) {
                let h = &h[((layer - 1) * (steps + 1) + of.end) * batch * hidden..][..batch * hidden];
                let w = matrix(w, directions + layer - 1, gates, hidden);
                for (gate, sum) in made.chunks_exact_mut(batch * hidden).enumerate() {
                    let bias = &biases[((layer - 1) * gates + gate) * hidden..][..hidden];
                    sum.chunks_exact_mut(hidden).for_each(|row| row.copy_from_slice(bias));
                    add_product(sum, h, w, gate, hidden);
                }
            }
            made
        };
        let stacked = sizes.layers_above().map(of_layer).collect();
        Self { sizes, gates, x, index, stacked }
    }

    /// `[H]`
    pub(super) fn row(&self, direction: usize, t: usize, entry: usize, gate: usize) -> &[F] {
        let Sizes { rows, steps, batch, hidden, .. } = self.sizes;
        if let Some(made) = direction.checked_sub(1).and_then(|below| self.stacked.get(below)) {
            return &made[(gate * batch + entry) * hidden..][..hidden];
        }
        let row = direction * rows + self.index[(direction * steps + t) * batch + entry] as usize;
        &self.x[(row * self.gates + gate) * hidden..][..hidden]
    }
}

/// What each of stacked layers gets from the one above, `[B, H]`, in the twin of a backward kernel.
pub(super) fn from_above<F: Real>(sizes: Sizes, span: (usize, usize), dx: &[F], w: &[F], gates: usize) -> Vec<Vec<F>> {
    let Sizes { directions, steps, batch, hidden, .. } = sizes;
    let of_layer = |layer: usize| {
        let of = sizes.steps_of(layer, span).filter(|of| !of.is_empty())?;
        let mut sum = vec![F::zero(); batch * hidden];
        let each = batch * gates * hidden;
        let dx = &dx[((layer + 1) * steps + of.start) * each..][..each];
        add_gradients(&mut sum, dx, gates, matrix(w, directions + layer, gates, hidden), hidden);
        Some(sum)
    };
    sizes.layers_above().map(|above| of_layer(above - 1).unwrap_or_default()).collect()
}

/// What the twin of a backward kernel starts with, for the rows of a tile from `start` on: the product of `next`, d of the step
/// after those it computes, if there is one, and what comes from the layer above, if any does ([`from_above`]).
pub(super) fn carry_in<F: Real>(
    carried: &mut [F],
    next: Option<&[F]>,
    (gates, w): (usize, &[F]),
    (above, start): (Option<&Vec<F>>, usize),
    hidden: usize,
) {
    match next {
        Some(next) => add_gradients(carried, next, gates, w, hidden),
        None => carried.fill(F::zero()),
    }
    if let Some(above) = above.and_then(|above| above.get(start * hidden..)) {
        add_in_place(carried, above);
    }
}

/// The gradient of a direction's outputs, `[T, B, H]`, if there is any: of stacked layers the top one has it.
pub(super) fn dy_of<F>(sizes: Sizes, has_dy: u32, dy: &[F], direction: usize) -> Option<&[F]> {
    let Sizes { directions, stacked, .. } = sizes;
    match (has_dy, stacked) {
        (0, _) => None,
        (_, true) => (direction + 1 == directions).then_some(dy),
        (_, false) => Some(of_direction([dy], direction, directions)[0]),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn side_by_side_within_limits() {
        let limits = |bytes: u64| Limits {
            binding_bytes: bytes,
            buffer_bytes: 1 << 40,
            workgroups_per_dimension: 65_535,
            offset_alignment: 256,
            workgroup_bytes: WORKGROUP_BYTES,
            f16: true,
            subgroups: None,
        };
        // Three packed matrices of 64 MiB; everything else is less.
        let lstm = |bytes: u64, both| fits(limits(bytes), true, Cell::Lstm, both, 15, [3, 5, 2048]);
        assert!(
            lstm(3 << 26, (2, 3)) && !lstm((3 << 26) - 1, (2, 3)) && lstm(1 << 27, (2, 2)) && !lstm(1 << 26, (2, 2))
        );
        // In training the gates that are saved, 4 to a state; otherwise the states, or the rows of a long table.
        let gru = |bytes: u64, training, rows| fits(limits(bytes), training, Cell::Gru, (2, 2), rows, [255, 64, 32]);
        let saved = 4 * 2 * 255 * 64 * 32 * 4;
        assert!(gru(saved, true, 9) && !gru(saved - 1, true, 9));
        assert!(gru(1 << 22, false, 9) && !gru((1 << 22) - 1, false, 9));
        assert!(gru(4 * 2 * 10_000 * 96, false, 10_000) && !gru(4 * 2 * 10_000 * 96 - 1, false, 10_000));
    }
}
