//! Recurrences over a whole sequence: what is the same for all cells.
//!
//! A cell has a forward and a backward kernel ([`CellKind`]), with the recurrent product inside. Each runs in one of two
//! ways: *fused*, all steps in one dispatch, where a workgroup can hold the state of four batch entries and read all
//! weights in every step; or *stepwise*, a dispatch for each step. The D directions of a layer are side by side: one
//! dispatch is of them all. Stepwise, D stacked layers can be too, as a wavefront: each is a step behind the one below,
//! whose states it multiplies itself.
//!
//! `path` chooses the way, `tile` lays batch entries over workgroups, `forward` and `backward` record, and `twin` has what
//! the cells' twins share.

pub(super) mod backward;
mod form;
pub(super) mod forward;
mod launch;
mod path;
mod tile;
pub(super) mod twin;

pub use backward::backward;
pub use form::{Activation, Form, MOST_FUNCTIONS};
pub use forward::forward;
pub(crate) use path::{fits, shall_stack};
use tile::Holds;
pub(super) use tile::RowTile;

use super::{expect, expect_indices, expect_len, expect_lengths};
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::plan::{Precision, Recorder};
use crate::tensor::Tensor;

/// What a cell is to the code that all cells share.
pub struct CellKind {
    /// In plans.
    pub name: &'static str,
    /// G: blocks of H columns in the input and in the recurrent matrix.
    pub gates: usize,
    /// S: tensors of the carried state: h, and c.
    pub states: usize,
    /// Blocks of H columns that the forward pass saves for the backward pass, beside the states. Past an entry's length they may be left as
    /// they are, and then nothing may read them: other values may have been there.
    pub saved: usize,
    /// Whether `b_hh` is apart from the input, inside a product that a gate scales. The backward pass then leaves the
    /// gradient of `h Wᵀ + b_hh` in the first G H columns of `saved`, where it is `dx` for other cells.
    pub separate_bias: bool,
    /// Which of the forms that its kernels have.
    pub variant: u32,
    /// Parts of a step of which each needs all columns of the one before it: where a dispatch is of one step, it is of one part. Numbered
    /// from 1 on, they are variants of its kernels; 0 is all of them. Of two, what is saved is there without a backward pass too, and its
    /// fourth block is what gate n multiplies in place of h.
    pub parts: usize,
    /// What it applies, if nothing else is asked for: to its gates, and then, if it has one, to c.
    pub functions: &'static [Activation],
    /// Some steps of the forward pass.
    pub forward: &'static Kernel,
    /// Some steps of the backward pass.
    pub backward: &'static Kernel,
    /// Its step in the kernel that generates many tokens, if it is there.
    pub generated: Option<Generated>,
}

/// The steps in `shaders/generate.wgsl`, by their number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the cells of these names")]
pub enum Generated {
    Tanh,
    Relu,
    Gru,
    Lstm,
}

/// The tensors of a recurrence in D directions, or of D stacked layers.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// `[D, N, G H]`: what comes in from below; with all biases, but for the GRU, whose `b_hh` is separate. Of stacked
    /// layers, `[1, N, G H]`: what comes into the first.
    pub x: Tensor,
    /// `[D, T, B]` u32, each below N: the row of x for each step and entry; `[1, T, B]` of stacked layers.
    pub index: Tensor,
    /// `[B]` u32, from [`crate::Device::lengths`].
    pub lengths: Tensor,
    /// `[B + D T B]` u32, if states become 0 before some steps: the lengths, and behind them, other than 0, the marks of those steps
    /// ([`super::resets`] makes it); `[B + T B]` of stacked layers.
    pub resets: Option<Tensor>,
    /// `[G H, H]`, of each direction or layer.
    pub w: Vec<Tensor>,
    /// `[G H, H]`, of each of stacked layers but the first; none of directions.
    pub w_ih: Vec<Tensor>,
    /// `[.., G H]`, if there are any: the GRU's `b_hh`, D of them; then, of each stacked layer but the first, the biases that x
    /// has in it.
    pub biases: Option<Tensor>,
    /// `[D, S, T + 1, B, H]`, S = 2 for the LSTM: h, and c, with the incoming state in slot 0; past an entry's length, 0.
    pub states: Tensor,
    /// `[D, T, B, ..]`, of [`Self::saved_blocks`]: gates, for the backward pass, if there is to be one.
    pub saved: Option<Tensor>,
    /// What the cell is asked for, if it is not as it is.
    pub form: Option<Form>,
    /// `[D, 3 H]`, of a form of the LSTM that has them: what c is multiplied by on its way into gates i, f and o.
    pub peepholes: Option<Tensor>,
    /// Whether the incoming state may be other than 0; if not, the first step needs no product.
    pub has_h_0: bool,
    /// How the weights are stored where every step reads them, forward and backward.
    pub precision: Precision,
}

/// The gradients of a recurrence.
#[derive(Clone, Debug)]
pub struct SequenceGradients {
    /// `[D, T, B, H]`: of every step's output, if there is one; `[1, T, B, H]`, of the top one, of stacked layers.
    pub dy: Option<Tensor>,
    /// `[D, S, B, H]`: of the last states, if there is one.
    pub dend: Option<Tensor>,
    /// To be written: `[D, T, B, G H]`, of the rows of x, and behind it, from a multiple of 64 elements on, `[D, S, B, H]`, of the
    /// incoming states.
    pub dx: Tensor,
    /// Whether the gradient of the incoming states is wanted; if not, what stands there in the end means nothing.
    pub wants_dstart: bool,
}

impl SequenceGradients {
    /// For these gradients of the results.
    ///
    /// # Errors
    /// The device cannot hold theirs.
    pub fn new(
        r: &Recorder,
        cell: &CellKind,
        s: &Sequence,
        (dy, dend): (Option<Tensor>, Option<Tensor>),
        wants_dstart: bool,
    ) -> Result<Self> {
        let sizes = check(cell, s)?;
        let dx = r.zeros("d recurrence", &[start_of_dstart(sizes.of_dx()) + sizes.of_dstart()])?;
        Ok(Self { dy, dend, dx, wants_dstart })
    }

    /// The two parts of `dx`, each flat.
    pub fn parts(&self, s: &Sequence) -> [Tensor; 2] {
        let (steps, width) = (s.states.shape()[2] - 1, s.x.rows_and_columns().1);
        let of_dstart = s.states.len() / (steps + 1);
        let of_dx = s.w.len() * steps * s.lengths.len() * width;
        [self.dx.view("dx", 0, &[of_dx]), self.dx.view("dstart", start_of_dstart(of_dx), &[of_dstart])]
    }
}

/// D, N, T, B and H, and what they are sizes of.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub directions: usize,
    /// Whether these are stacked layers.
    pub stacked: bool,
    pub rows: usize,
    pub steps: usize,
    pub batch: usize,
    pub hidden: usize,
    pub gates: usize,
    pub states: usize,
    pub precision: Precision,
}

impl Sizes {
    /// Elements of one state.
    fn state(self) -> usize {
        self.batch * self.hidden
    }

    /// Elements of the gradient of the rows of x.
    fn of_dx(self) -> usize {
        self.directions * self.steps * self.gates * self.state()
    }

    /// Elements of the gradient of the incoming states.
    fn of_dstart(self) -> usize {
        self.directions * self.states * self.state()
    }

    /// Elements of a padded matrix of all gates.
    fn matrix(self) -> usize {
        self.gates * self.hidden.next_multiple_of(4).pow(2)
    }
}

impl CellKind {
    /// Gates whose products are made at once, forward.
    fn at_once(&self) -> usize {
        if self.parts == 1 { self.gates } else { 1 }
    }

    /// What a thread holds for each of its rows in the forward pass: sums of all gates, or of those of the first part.
    fn forward_holds(&self) -> Holds {
        Holds { at_once: self.at_once(), sums: if self.parts == 1 { self.gates } else { self.gates - 1 }, carried: 0 }
    }

    /// In the backward pass: sums, and beside them the gradients of all states. That of one gate is added up where the sums are.
    fn backward_holds(&self) -> Holds {
        Holds { at_once: 1, sums: 1, carried: if self.gates == 1 { 0 } else { self.states } }
    }

    /// What the dispatches of the same steps are: of all parts, or each of one.
    fn parts_of(&self, fused: bool) -> std::ops::RangeInclusive<usize> {
        if fused || self.parts == 1 { 0..=0 } else { 1..=self.parts }
    }
}

impl Sequence {
    /// What the kernels bind as lengths.
    fn lengths_and_resets(&self) -> &Tensor {
        self.resets.as_ref().unwrap_or(&self.lengths)
    }

    /// What shapes the kernels beside their tile.
    fn constants(&self) -> [(&'static str, u32); 2] {
        let functions = self.form.as_ref().map_or(0, Form::functions);
        [("RESETS", self.resets.is_some().into()), ("ACTIVATIONS", functions)]
    }

    /// The bits of its form.
    fn variant(&self) -> u32 {
        let coupled = self.form.is_some_and(|form| form.coupled);
        [(self.peepholes.is_some(), Form::PEEPHOLES), (coupled, Form::COUPLED)]
            .into_iter()
            .filter_map(|(is_so, bit)| is_so.then_some(bit))
            .sum()
    }

    /// Blocks of H columns that are saved for the backward pass: of a form, what comes into its functions.
    pub fn saved_blocks(&self, cell: &CellKind) -> usize {
        if self.form.is_some() { cell.saved.max(cell.gates) } else { cell.saved }
    }
}

/// Where the gradient of the incoming states begins behind so many elements of dx: where every device can bind it;
/// `at_dstart` in `shaders/lib/backward.wgsl`.
pub(crate) fn start_of_dstart(of_dx: usize) -> usize {
    of_dx.next_multiple_of(64)
}

/// Where [`backward`] leaves the gradient of `h Wᵀ`, `[D, T, B, columns]`, the first G H columns (behind it there may be more),
/// and its columns.
pub(crate) fn recurrent_gradient<'a>(
    cell: &CellKind,
    s: &'a Sequence,
    d: &'a SequenceGradients,
) -> (&'a Tensor, usize) {
    match &s.saved {
        Some(saved) if cell.separate_bias => (saved, saved.rows_and_columns().1),
        _ => (&d.dx, s.x.rows_and_columns().1),
    }
}

/// Checks all shapes.
fn check(cell: &CellKind, s: &Sequence) -> Result<Sizes> {
    let (&[_, steps, batch], &[_, rows, _], &[.., hidden]) = (s.index.shape(), s.x.shape(), s.states.shape()) else {
        let expected = "[D, T, B], with x [D, N, G H]";
        return Err(Error::shape("recurrence", s.index.name(), expected, s.index.shape()));
    };
    let (gates, states, directions) = (cell.gates, cell.states, s.w.len());
    let (stacked, width) = (!s.w_ih.is_empty(), gates * hidden);
    if stacked && directions != s.w_ih.len() + 1 {
        let expected = "a recurrent matrix for each stacked layer, and an input matrix for each but the first";
        return Err(Error::argument("recurrence", "weights", expected, format!("{directions} and {}", s.w_ih.len())));
    }
    for w in s.w.iter().chain(&s.w_ih) {
        expect("recurrence", w, &[width, hidden])?;
    }
    let inputs = if stacked { 1 } else { directions };
    expect("recurrence", &s.x, &[inputs, rows, width])?;
    expect("recurrence", &s.index, &[inputs, steps, batch])?;
    expect_indices("recurrence", &s.index, rows)?;
    expect_lengths("recurrence", &s.lengths, batch, steps)?;
    if let Some(resets) = &s.resets {
        expect_len("recurrence", resets, batch + inputs * steps * batch)?;
    }
    expect("recurrence", &s.states, &[directions, states, steps + 1, batch, hidden])?;
    match (&s.biases, if cell.separate_bias { directions } else { 0 } + s.w_ih.len()) {
        (Some(biases), of) => expect_len("recurrence", biases, of * width)?,
        (None, 0) => {}
        (None, of) => return Err(Error::shape("recurrence", "biases", format!("[{of}, {width}]"), &[])),
    }
    if let Some(saved) = &s.saved {
        expect("recurrence", saved, &[directions, steps, batch, s.saved_blocks(cell) * hidden])?;
    }
    if cell.parts > 1 && s.saved.is_none() {
        return Err(Error::shape("recurrence", "saved", "that of gates, without a backward pass too", &[]));
    }
    let is_lstm = cell.forward.bindings.len() == 8;
    let asks_lstm = s.peepholes.is_some() || s.form.is_some_and(|form| form.coupled);
    if asks_lstm && (s.form.is_none() || !is_lstm) {
        return Err(Error::argument(
            "recurrence",
            "form",
            "one of the LSTM for peepholes and coupled gates",
            cell.name,
        ));
    }
    if let Some(peepholes) = &s.peepholes {
        expect_len("recurrence", peepholes, directions * 3 * hidden)?;
    }
    Ok(Sizes { directions, stacked, rows, steps, batch, hidden, gates, states, precision: s.precision })
}
