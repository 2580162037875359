//! Recurrences over a sequence, alone, side by side, or stacked.

use super::result_of_one;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::cell::{Cell, CellForm};
use crate::kernels::map::{Operand, copy};
use crate::kernels::matmul::{Factor, matmul};
use crate::kernels::sequence::{self, CellKind, Form, Sequence, SequenceGradients, start_of_dstart};
use crate::kernels::{column_sum, expect_indices, expect_len, last_step, peephole_products, reset_rows, resets};
use crate::map::Layout;
use crate::nn::State;
use crate::tensor::{DType, Tensor};

/// The incoming state of a recurrence, and its last one: `h`, and `c` for the LSTM, each `[1, B, H]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// The hidden state.
    pub h: Var,
    /// The LSTM's cell.
    pub c: Option<Var>,
}

impl States {
    /// h, and c if there is one.
    pub(crate) fn vars(self) -> impl Iterator<Item = Var> {
        std::iter::once(self.h).chain(self.c)
    }
}

impl From<Var> for States {
    fn from(h: Var) -> Self {
        Self { h, c: None }
    }
}

/// Where a recurrent module starts.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum InitialState<'a> {
    /// At zero.
    Zero,
    /// At these values, `[D * L, B, H]`, or `[D * L, H]` for a sequence alone; their gradients are computed if they are differentiable.
    Given(States),
    /// Where the last run of the plan ended. No gradient crosses from window to window.
    Carried(&'a State),
}

/// What a recurrence runs with, beside its input and its incoming state.
///
/// ```
/// use elman::nn::functional::{InitialState, RunOptions};
/// use elman::{Device, Graph, nn, rng};
///
/// // Four steps of two streams; in the first one, an episode ends after two of them.
/// let device = Device::cpu();
/// let mut init = nn::Init::new(rng::manual_seed(0));
/// let gru = nn::Gru::new(&mut init, "gru", nn::RnnOptions::new(3, 5))?;
/// let parameters = init.upload(&device)?;
/// let resets = device.upload_u32("resets", &[4, 2], &[0, 0, 0, 0, 1, 0, 0, 0])?;
///
/// let mut g = Graph::inference(&parameters);
/// let x = g.input(&device.upload("x", &[4, 2, 3], &[0.5; 24])?)?;
/// let out = gru.forward_with(&mut g, x, InitialState::Zero, RunOptions::new().resets(&resets))?;
/// let y = g.tensor(out.output)?;
/// g.finish()?.run()?;
/// // The same input, from zero: what came out of the first step comes out of the third.
/// let y = y.to_vec()?;
/// assert_eq!(y[..5], y[2 * 10..][..5]);
/// assert_ne!(y[5..10], y[2 * 10 + 5..][..5]);
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RunOptions<'a> {
    /// The lengths of the sequences; all of them have all steps without.
    pub lengths: Option<&'a Tensor>,
    /// The steps before which states become 0.
    pub resets: Option<&'a Tensor>,
}

impl<'a> RunOptions<'a> {
    /// All steps, nothing reset.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the lengths of the sequences, in any order: `[B]` u32 from [`crate::Device::lengths`]. Equal to PyTorch's
    /// `pack_padded_sequence(enforce_sorted=False)`: outputs past a sequence's length are 0, its last state is that of its last step,
    /// the reverse direction starts there, and no gradient comes from padding. What the padding holds does not matter, but it
    /// must be finite.
    pub fn lengths(self, lengths: &'a Tensor) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// Sets marks `[T, B]` u32 (of modules that are batch first too): where other than 0, something begins at that step, an episode
    /// or a stream. The states of that entry, h and c, become 0 before it, and no gradient crosses; at the first step, the incoming
    /// state is left out. The reverse direction is cut at the same places: what begins there is run as if it were alone. The marks
    /// may be written anew before each run.
    pub fn resets(self, resets: &'a Tensor) -> Self {
        Self { resets: Some(resets), ..self }
    }

    /// Refuses marks of another shape or type.
    pub(crate) fn check_resets(self, op: &'static str, steps: usize, batch: usize) -> Result<()> {
        match self.resets {
            Some(resets) if resets.dtype() != DType::U32 || resets.shape() != [steps, batch] => {
                let expected = format!("[{steps}, {batch}], of u32");
                Err(Error::shape(op, resets.name(), expected, resets.shape()))
            }
            _ => Ok(()),
        }
    }
}

impl<'a> From<Option<&'a Tensor>> for RunOptions<'a> {
    fn from(lengths: Option<&'a Tensor>) -> Self {
        Self { lengths, resets: None }
    }
}

/// The state of some cells is h and c, the others' h alone.
pub(crate) fn check_states(cell: &CellKind, states: States) -> Result<()> {
    let (expected, got) = match (cell.states, states.c) {
        (2, None) => ("h and c", "h alone"),
        (1, Some(_)) => ("h alone", "h and c"),
        _ => return Ok(()),
    };
    Err(Error::argument("rnn", "initial state", expected, got))
}

/// A recurrence over a sequence, `[T, B, G H]` to the states after every step, `[T, B, H]`, and the last states.
///
/// `x` has all biases in it, but for the GRU, whose `b_hh` is `bias`. `weight` is `[G H, H]`. With `lengths` (`[B]` u32
/// from [`crate::Device::lengths`]), outputs past an entry's length are 0 and its last state is that of its last step.
///
/// # Errors
/// The shapes do not fit.
pub fn recurrence(
    g: &mut Graph,
    cell: Cell,
    x: Var,
    weight: Var,
    bias: Option<Var>,
    start: Option<States>,
    lengths: Option<&Tensor>,
) -> Result<(Var, States)> {
    let results = recurrences(g, cell, &[Direction { bias, start, ..Direction::new(x, weight) }], lengths)?;
    Ok(results[0])
}

/// What [`recurrence`] takes, of one of the directions that [`recurrences`] runs side by side.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    /// `[T, B, G H]`
    pub x: Var,
    /// `[G H, H]`
    pub weight: Var,
    /// `[G H]`, of the GRU alone.
    pub bias: Option<Var>,
    /// `[3 H]`, of an LSTM with peepholes: what c is multiplied by on its way into gates i, f and o.
    pub peepholes: Option<Var>,
    /// The incoming state; 0 if there is none.
    pub start: Option<States>,
    /// Whether `x` was reversed ([`super::reverse`]): marks of [`RunOptions::resets`] then are at the same places of the sequence.
    pub reversed: bool,
}

impl Direction {
    /// Without a bias of its own, from zero, not reversed.
    pub fn new(x: Var, weight: Var) -> Self {
        Self { x, weight, bias: None, peepholes: None, start: None, reversed: false }
    }
}

/// [`recurrence`] in several directions of the same shapes, lengths and resets, side by side: all in one dispatch, or in one for
/// each step. Each direction is from first step to last; see [`super::reverse`].
///
/// # Errors
/// The shapes do not fit.
pub fn recurrences<'a>(
    g: &mut Graph,
    cell: impl Into<CellForm>,
    directions: &[Direction],
    run: impl Into<RunOptions<'a>>,
) -> Result<Vec<(Var, States)>> {
    let (cell, run) = (cell.into(), run.into());
    let count = directions.len();
    g.check(directions.iter().flat_map(|direction| [direction.x, direction.weight]))?;
    if let [Direction { x, weight, .. }, others @ ..] = directions
        && !others.is_empty()
        && let (&[steps, batch, _], &[_, hidden]) = (g.shape(*x), g.shape(*weight))
        && others.iter().all(|other| g.shape(other.x) == g.shape(*x))
        && let rows = input_rows(g, *x)
        && !sequence::fits(
            g.device().limits(),
            g.is_training(),
            cell.kind(),
            (count, count),
            rows,
            [steps, batch, hidden],
        )
    {
        let limits = "directions one after the other, since together they pass the device's limits";
        g.note(format!("{:?}, H {hidden}: {limits}", cell.cell));
        let alone = |direction: &Direction| Ok(Together::new(g, cell, &[*direction], &[])?.record(g, run)?[0]);
        return directions.iter().map(alone).collect();
    }
    Together::new(g, cell, directions, &[])?.record(g, run)
}

/// The rows that a recurrence on `x` `[T, B, G H]` reads: of a table, or all.
pub(crate) fn input_rows(g: &Graph, x: Var) -> usize {
    match g.as_rows(x) {
        Some((table, _)) => g.shape(table)[0],
        None => g.shape(x)[0] * g.shape(x)[1],
    }
}

/// A stacked layer on the states of the one below it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above {
    /// `[G H, H]`
    pub weight_ih: Var,
    /// `[G H]`: the biases of what comes in from below, if there are any: those that x of a [`Direction`] has in it.
    pub bias_below: Option<Var>,
    /// `[G H, H]`
    pub weight: Var,
    /// `[G H]`, of the GRU alone.
    pub bias: Option<Var>,
    /// `[3 H]`, of an LSTM with peepholes.
    pub peepholes: Option<Var>,
    /// The incoming state; 0 if there is none.
    pub start: Option<States>,
}

/// [`recurrence`] of stacked layers as a wavefront, each a step behind the one below: the outputs of the top one, and every
/// layer's last states.
///
/// # Errors
/// The shapes do not fit.
pub(crate) fn stacked_recurrence(
    g: &mut Graph,
    cell: CellForm,
    lowest: Direction,
    above: &[Above],
    run: RunOptions<'_>,
) -> Result<(Var, Vec<States>)> {
    let results = Together::new(g, cell, &[lowest], above)?.record(g, run)?;
    Ok((results[above.len()].0, results.into_iter().map(|(_, end)| end).collect()))
}

/// What each recurrence has of its own.
#[derive(Clone, Copy)]
struct Own {
    /// `[G H, H]`
    weight: Var,
    /// The GRU's `b_hh`.
    bias: Option<Var>,
    peepholes: Option<Var>,
    start: Option<States>,
}

/// Recurrences of one size: directions side by side, or one with layers stacked on it, of whose outputs only the top ones then
/// have a gradient.
struct Together {
    cell: &'static CellKind,
    form: Option<Form>,
    inputs: Vec<Direction>,
    above: Vec<Above>,
    steps: usize,
    batch: usize,
    hidden: usize,
}

impl Together {
    fn new(g: &Graph, cell: CellForm, inputs: &[Direction], above: &[Above]) -> Result<Self> {
        let (cell, form) = (cell.kind(), cell.form);
        let Some(&Direction { x, weight, .. }) = inputs.first() else {
            return Err(Error::argument("recurrence", "directions", "at least one", 0));
        };
        let (&[steps, batch, width], &[_, hidden]) = (g.shape(x), g.shape(weight)) else {
            return Err(Error::shape("recurrence", "input", "[T, B, G H], with a weight [G H, H]", g.shape(x)));
        };
        if let Some(odd) = inputs.iter().find(|direction| g.shape(direction.x) != [steps, batch, width]) {
            return Err(Error::shape("recurrence", "input", format!("{:?}", g.shape(x)), g.shape(odd.x)));
        }
        let mut together = Self { cell, form, inputs: inputs.into(), above: above.into(), steps, batch, hidden };
        if !cell.separate_bias && together.own().any(|own| own.bias.is_some()) {
            return Err(Error::argument("recurrence", "bias", "part of the input, but for the GRU", "given"));
        }
        if together.own().any(|own| own.peepholes.is_some()) {
            together.form.get_or_insert(Form::new(cell.functions));
        }
        Ok(together)
    }

    /// Of each direction, or layer.
    fn own(&self) -> impl Iterator<Item = Own> {
        let of_inputs = self.inputs.iter().map(|&Direction { weight, bias, peepholes, start, .. }| Own {
            weight,
            bias,
            peepholes,
            start,
        });
        of_inputs.chain(self.above.iter().map(|&Above { weight, bias, peepholes, start, .. }| Own {
            weight,
            bias,
            peepholes,
            start,
        }))
    }

    fn count(&self) -> usize {
        self.inputs.len() + self.above.len()
    }

    fn is_stacked(&self) -> bool {
        !self.above.is_empty()
    }

    /// G H
    fn width(&self) -> usize {
        self.cell.gates * self.hidden
    }

    fn state_shape(&self) -> [usize; 3] {
        [1, self.batch, self.hidden]
    }

    /// Where slot `slot` of the i-th state, h or c of a direction, is in all states.
    fn slot(&self, i: usize, slot: usize) -> usize {
        (i * (self.steps + 1) + slot) * self.batch * self.hidden
    }

    /// Records the recurrences, and leaves their backward pass on the tape: the outputs and the last states of each.
    fn record(self, g: &mut Graph, run: RunOptions<'_>) -> Result<Vec<(Var, States)>> {
        run.check_resets("recurrence", self.steps, self.batch)?;
        let s = self.sequence(g, run)?;
        self.start(g, &s)?;
        sequence::forward(g, self.cell, &s)?;
        let results = self.results(g, &s, run.lengths)?;
        let ends = results.clone();
        g.on_backward(move |g| self.backward(g, &s, &ends));
        Ok(results)
    }

    /// The tensors of the recurrences.
    fn sequence(&self, g: &mut Graph, run: RunOptions<'_>) -> Result<Sequence> {
        let (count, steps, batch) = (self.count(), self.steps, self.batch);
        let (x, index) = self.rows(g)?;
        let biases = self.biases(g)?;
        let tensors = |g: &mut Graph, vars: &mut dyn Iterator<Item = Var>| {
            vars.map(|var| g.tensor(var)).collect::<Result<Vec<_>>>()
        };
        let w = tensors(g, &mut self.own().map(|own| own.weight))?;
        let lengths = run.lengths.cloned().map_or_else(|| g.device().lengths("all steps", batch, steps), Ok)?;
        let resets = run.resets.map(|marks| self.resets(g, &lengths, marks)).transpose()?;
        let peepholes = self.peepholes(g)?;
        let mut s = Sequence {
            x,
            index,
            lengths,
            resets,
            w_ih: tensors(g, &mut self.above.iter().map(|layer| layer.weight_ih))?,
            biases,
            states: g.zeros(
                &format!("states({})", w[0].name()),
                &[count, self.cell.states, steps + 1, batch, self.hidden],
            )?,
            saved: None,
            w,
            form: self.form,
            peepholes,
            has_h_0: self.own().any(|own| own.start.is_some()),
            precision: g.precision(),
        };
        let blocks = s.saved_blocks(self.cell);
        if blocks > 0 && (g.is_training() || self.cell.parts > 1) {
            s.saved = Some(g.zeros("gates", &[count, steps, batch, blocks * self.hidden])?);
        }
        Ok(s)
    }

    /// The marks of each direction, behind the lengths.
    fn resets(&self, g: &mut Graph, lengths: &Tensor, marks: &Tensor) -> Result<Tensor> {
        let reversed: Vec<_> = self.inputs.iter().map(|direction| direction.reversed).collect();
        let all = self.batch * (1 + reversed.len() * self.steps);
        let made = g.device().reserve("lengths and resets", &[all], DType::U32)?;
        resets::resets(g, lengths, marks, &reversed, &made)?;
        Ok(made)
    }

    /// What comes in from below, and the row of it for each step and entry. Rows of tables are left to the kernel to look up.
    fn rows(&self, g: &mut Graph) -> Result<(Tensor, Tensor)> {
        let (inputs, steps, batch) = (self.inputs.len(), self.steps, self.batch);
        let (mut xs, mut indices, mut rows) = (Vec::new(), Vec::new(), steps * batch);
        let tables: Option<Vec<_>> = self.inputs.iter().map(|direction| g.as_rows(direction.x)).collect();
        match tables.filter(|tables| tables.iter().all(|&(table, _)| g.shape(table) == g.shape(tables[0].0))) {
            Some(tables) => {
                for (table, index) in tables {
                    rows = g.shape(table)[0];
                    expect_indices("recurrence", &index, rows)?;
                    xs.push(Some(g.tensor(table)?));
                    indices.push(Some(index));
                }
            }
            None => {
                let every_row = g.tokens("every row", &[inputs, steps, batch], rows)?;
                every_row.write_u32(&(0..rows as u32).collect::<Vec<_>>().repeat(inputs))?;
                indices.push(Some(every_row));
                for direction in &self.inputs {
                    xs.push(Some(g.tensor(direction.x)?));
                }
            }
        }
        let one_each = "there is a tensor for each direction";
        let x = g.stack("inputs", &xs, &[inputs, rows, self.width()])?.expect(one_each);
        Ok((x, g.stack("indices", &indices, &[inputs, steps, batch])?.expect(one_each)))
    }

    /// The biases that are not in what comes in from below.
    fn biases(&self, g: &mut Graph) -> Result<Option<Tensor>> {
        let of_products = self.own().map(|own| own.bias).filter(|_| self.cell.separate_bias);
        let all = of_products.chain(self.above.iter().map(|layer| layer.bias_below));
        let all = all.map(|bias| bias.map(|bias| g.tensor(bias)).transpose()).collect::<Result<Vec<_>>>()?;
        let shape = [all.len(), self.width()];
        match g.stack("biases", &all, &shape)? {
            None if !all.is_empty() => g.zeros("no biases", &shape).map(Some),
            biases => Ok(biases),
        }
    }

    /// What c is multiplied by on its way into gates, 0 where there is none.
    fn peepholes(&self, g: &mut Graph) -> Result<Option<Tensor>> {
        let all = self.own().map(|own| own.peepholes.map(|peepholes| g.tensor(peepholes)).transpose());
        let all = all.collect::<Result<Vec<_>>>()?;
        for given in all.iter().flatten() {
            expect_len("recurrence", given, 3 * self.hidden)?;
        }
        g.stack("peepholes", &all, &[all.len(), 3 * self.hidden])
    }

    /// Copies the incoming states to where the recurrences start.
    fn start(&self, g: &mut Graph, s: &Sequence) -> Result<()> {
        let (states, shape) = (self.cell.states, self.state_shape());
        for (d, start) in self.own().enumerate().filter_map(|(d, own)| Some((d, own.start?))) {
            check_states(self.cell, start)?;
            for (k, value) in start.vars().enumerate() {
                let tensor = g.tensor(value)?;
                if tensor.shape() != shape {
                    return Err(Error::shape("recurrence", tensor.name(), format!("{shape:?}"), tensor.shape()));
                }
                g.copy(&tensor, &s.states.view("incoming state", self.slot(d * states + k, 0), &shape))?;
            }
        }
        Ok(())
    }

    /// The last states, h and c of each.
    fn last_states(&self, g: &mut Graph, s: &Sequence, lengths: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let (all, shape) = (self.count() * self.cell.states, self.state_shape());
        let name = |i: usize| ["h_n", "c_n"][i % self.cell.states];
        let Some(lengths) = lengths else {
            return (0..all).map(|i| g.view(&s.states, name(i), self.slot(i, self.steps), &shape)).collect();
        };
        let last = g.zeros("last states", &[all, self.batch, self.hidden])?;
        let states = s.states.reshape(&[all, self.steps + 1, self.batch, self.hidden])?;
        last_step::last_step(g, &states, lengths, &last)?;
        (0..all).map(|i| g.view(&last, name(i), i * self.batch * self.hidden, &shape)).collect()
    }

    /// The outputs and the last states of each.
    fn results(&self, g: &mut Graph, s: &Sequence, lengths: Option<&Tensor>) -> Result<Vec<(Var, States)>> {
        let ends = self.last_states(g, s, lengths)?;
        let (mut results, mut parents) = (Vec::new(), Vec::new());
        for (d, (Own { weight, bias, peepholes, start }, end)) in
            self.own().zip(ends.chunks(self.cell.states)).enumerate()
        {
            // A stacked layer has the parents of those below it too.
            if !self.is_stacked() {
                parents.clear();
            }
            match self.inputs.get(d) {
                Some(direction) => parents.push(direction.x),
                None => {
                    let below = &self.above[d - 1];
                    parents.extend(Some(below.weight_ih).into_iter().chain(below.bias_below));
                }
            }
            parents.extend(
                Some(weight).into_iter().chain(bias).chain(peepholes).chain(start.into_iter().flat_map(States::vars)),
            );
            let shape = [self.steps, self.batch, self.hidden];
            let output = g.view(&s.states, "output", self.slot(d * self.cell.states, 1), &shape)?;
            let output = g.result(output, &parents);
            let mut end = end.iter().map(|end| g.result(end.clone(), &parents));
            results.push((output, States { h: end.next().expect("every cell has h"), c: end.next() }));
        }
        Ok(results)
    }

    /// Records the backward pass, from the gradients of the results.
    fn backward(&self, g: &mut Graph, s: &Sequence, results: &[(Var, States)]) -> Result<()> {
        let outputs = &results[if self.is_stacked() { results.len() - 1 } else { 0 }..];
        let dy: Vec<_> = outputs.iter().map(|&(output, _)| g.gradient(output)).collect();
        let dend: Vec<_> = results.iter().flat_map(|(_, end)| end.vars()).map(|state| g.gradient(state)).collect();
        let (steps, batch, hidden) = (self.steps, self.batch, self.hidden);
        let dy = g.stack("d outputs", &dy, &[outputs.len(), steps, batch, hidden])?;
        let dend = g.stack("d last states", &dend, &[self.count(), self.cell.states, batch, hidden])?;
        if dy.is_none() && dend.is_none() {
            return Ok(());
        }
        let starts = self.own().filter_map(|own| own.start);
        let wants_dstart = starts.flat_map(States::vars).any(|start| g.is_differentiable(start));
        let d = SequenceGradients::new(g, self.cell, s, (dy, dend), wants_dstart)?;
        sequence::backward(g, self.cell, s, &d)?;
        for (i, own) in self.own().enumerate() {
            self.own_gradients(g, i, own, s, &d)?;
            match i.checked_sub(self.inputs.len()) {
                None if !g.is_differentiable(self.inputs[i].x) => {}
                None => {
                    let dx = self.dx(g, i, &d)?;
                    g.add_gradient(self.inputs[i].x, &dx, true)?;
                }
                Some(above) => self.gradients_between(g, i, &self.above[above], results[i - 1].0, &d)?,
            }
        }
        Ok(())
    }

    /// Of what comes into the i-th from below.
    fn dx(&self, g: &mut Graph, i: usize, d: &SequenceGradients) -> Result<Tensor> {
        let (rows, width) = (self.steps * self.batch, self.width());
        g.view(&d.dx, "d recurrence", i * rows * width, &[self.steps, self.batch, width])
    }

    /// The states that steps of the i-th start with, but for the `first` rows.
    fn before(&self, g: &mut Graph, i: usize, s: &Sequence, first: usize) -> Result<Tensor> {
        let start = self.slot(i * self.cell.states, 0) + first * self.hidden;
        let before = g.view(&s.states, "h[..T]", start, &[self.steps * self.batch - first, self.hidden])?;
        let Some(marks) = &s.resets else { return Ok(before) };
        let after = g.zeros("h[..T], reset", before.shape())?;
        reset_rows::reset_rows(g, &before, marks, self.first_mark(i) + first, &after)?;
        Ok(after)
    }

    /// The gradient of a weight of whose gates r and z multiply h, and n what is saved behind the gates.
    fn gradient_of_two_parts(&self, g: &mut Graph, i: usize, s: &Sequence, d: &SequenceGradients) -> Result<Tensor> {
        let (rows, hidden, width) = (self.steps * self.batch, self.hidden, self.width());
        let dw = g.zeros("d weight", &[width, hidden])?;
        let saved = s.saved.as_ref().expect("a cell of two parts saves");
        let saved = g.view(saved, "gates", i * rows * 4 * hidden, &[rows, 4 * hidden])?;
        let scaled = g.zeros("r h", &[rows, hidden])?;
        let last = Layout { offset: 3 * hidden, strides: vec![4 * hidden, 1] };
        copy(g, &[rows, hidden], Operand::strided(&saved, last), (&scaled).into(), false)?;
        let mut at = 0;
        for (gates, factor) in [(2, self.before(g, i, s, 0)?), (1, scaled)] {
            let part = g.zeros("d gates", &[gates * hidden, hidden])?;
            let of_gates = Factor::block(&d.dx, i * rows * width + at * hidden, rows, gates * hidden, width);
            matmul(g, of_gates.t(), &factor, None, &part, false)?;
            g.copy(&part, &dw.view("gates", at * hidden * hidden, part.shape()))?;
            at += gates;
        }
        Ok(dw)
    }

    /// Where the marks of the i-th are, behind the lengths.
    fn first_mark(&self, i: usize) -> usize {
        self.batch * (1 + self.steps * if self.is_stacked() { 0 } else { i })
    }

    /// Of the weight, bias, peepholes and incoming state of the i-th.
    fn own_gradients(
        &self,
        g: &mut Graph,
        i: usize,
        Own { weight, bias, peepholes, start }: Own,
        s: &Sequence,
        d: &SequenceGradients,
    ) -> Result<()> {
        let (rows, width, state) = (self.steps * self.batch, self.width(), self.batch * self.hidden);
        let (gradient, stride) = sequence::recurrent_gradient(self.cell, s, d);
        let start_of_product = i * rows * stride;
        if self.cell.parts > 1 && g.is_differentiable(weight) {
            let dw = self.gradient_of_two_parts(g, i, s, d)?;
            g.add_gradient(weight, &dw, false)?;
        } else if let Some((dw, accumulate)) = g.gradient_target(weight)? {
            let h = self.slot(i * self.cell.states, 0);
            // The first step adds nothing if it starts at 0; leaving it out is worth no copy.
            let skips = !s.has_h_0 && self.steps > 1 && g.can_view(h + state);
            let first = if skips { self.batch } else { 0 };
            let count = rows - first;
            let before = self.before(g, i, s, first)?;
            let rows = Factor::block(gradient, start_of_product + first * stride, count, width, stride);
            matmul(g, rows.t(), &before, None, &dw, accumulate)?;
        }
        if let Some(bias) = bias
            && let Some((db, accumulate)) = g.gradient_target(bias)?
        {
            let product = g.view(gradient, "d product", start_of_product, &[rows, stride])?;
            column_sum::first_columns(g, &product, &db, accumulate)?;
        }
        if let Some(peepholes) = peepholes
            && let Some((dp, accumulate)) = g.gradient_target(peepholes)?
        {
            let (d, at) = (self.dx(g, i, d)?, self.slot(i * self.cell.states + 1, 0));
            let c = g.view(&s.states, "c", at, &[self.steps + 1, self.batch, self.hidden])?;
            let products = g.zeros("products of peepholes", &[self.steps, self.batch, 3 * self.hidden])?;
            let marks = s.resets.as_ref().map(|marks| (marks, self.first_mark(i)));
            peephole_products::peephole_products(g, (&d, &c), marks, &products)?;
            column_sum::column_sum(g, &products, &dp, accumulate)?;
        }
        for (k, value) in start.into_iter().flat_map(States::vars).enumerate() {
            if g.is_differentiable(value) {
                let dstart = start_of_dstart(self.count() * rows * width) + (i * self.cell.states + k) * state;
                let part = g.view(&d.dx, "d incoming state", dstart, &self.state_shape())?;
                g.add_gradient(value, &part, true)?;
            }
        }
        Ok(())
    }

    /// Of the matrix and the bias between the i-th of stacked layers and the one below, with these outputs.
    fn gradients_between(
        &self,
        g: &mut Graph,
        i: usize,
        layer: &Above,
        below: Var,
        d: &SequenceGradients,
    ) -> Result<()> {
        let (rows, width) = (self.steps * self.batch, self.width());
        if let Some((dw, accumulate)) = g.gradient_target(layer.weight_ih)? {
            let dx = Factor::block(&d.dx, i * rows * width, rows, width, width);
            let below = g.tensor(below)?.reshape(&[rows, self.hidden])?;
            matmul(g, dx.t(), &below, None, &dw, accumulate)?;
        }
        if let Some(bias) = layer.bias_below
            && let Some((db, accumulate)) = g.gradient_target(bias)?
        {
            let dx = self.dx(g, i, d)?;
            column_sum::column_sum(g, &dx, &db, accumulate)?;
        }
        Ok(())
    }
}

/// A state `[1, B, H]`, 0 where the first of these steps is marked.
pub(crate) fn reset_state(g: &mut Graph, h: Var, marks: &Tensor) -> Result<Var> {
    let before = g.tensor(h)?;
    let after = g.zeros(&format!("{}, reset", before.name()), before.shape())?;
    reset_rows::reset_rows(g, &before, marks, 0, &after)?;
    let marks = marks.clone();
    Ok(result_of_one(g, h, after, move |r, dy, dx| reset_rows::reset_rows(r, dy, &marks, 0, dx)))
}
