//! Differentiable operations: each records its forward kernels and leaves its backward kernels on the tape.

use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::activation::{self, Activation};
use crate::kernels::cross_entropy::ClassLoss;
use crate::kernels::matmul::{Factor, matmul, matmul_with_biases, t};
use crate::kernels::mse_loss::ElementLoss;
use crate::kernels::sequence::{self, Cell, Sequence, SequenceGradients, Stack};
use crate::kernels::{
    self, accumulate, activation_backward, column_sum, count_targets, dropout as dropout_kernel, log_softmax_backward,
    place, reverse as reverse_kernel, reverse_index, segment_sum, swap_axes as swap_axes_kernel,
};
use crate::nn::State;
use crate::rng::threefry2x32;
use crate::tensor::{DType, Tensor};

/// `y = x Wᵀ + b` (`torch.nn.functional.linear`): `x` `[.., I]`, `weight` `[O, I]`, `bias` `[O]`, `y` `[.., O]`.
///
/// If `x` is an embedding with fewer tokens than rows, the table is multiplied instead, once per token.
///
/// # Errors
/// The shapes do not fit.
pub fn linear(g: &mut Graph, x: Var, weight: Var, bias: Option<Var>) -> Result<Var> {
    let biases: Vec<_> = bias.into_iter().collect();
    linear_with_biases(g, x, weight, &biases, None)
}

/// The table to act on in place of `x`, if that is rows of one and there is less to do so; and the index of the rows.
fn table_of(g: &Graph, x: Var) -> Option<(Var, Tensor)> {
    g.as_rows(x).filter(|(table, index)| g.prefers_table(*table, index))
}

/// The shape of what [`linear`] computes: of the table's product, if it multiplies a table.
pub(crate) fn linear_shape(g: &Graph, x: Var, outputs: usize) -> Vec<usize> {
    let x = table_of(g, x).map_or(x, |(table, _)| table);
    let mut shape = g.shape(x).to_vec();
    shape.pop();
    shape.push(outputs);
    shape
}

/// [`linear`] with up to two biases, a recurrent layer's `b_ih` and `b_hh`, computed in a `place` of [`linear_shape`].
pub(crate) fn linear_with_biases(
    g: &mut Graph,
    x: Var,
    weight: Var,
    biases: &[Var],
    place: Option<Tensor>,
) -> Result<Var> {
    if let Some((table, index)) = table_of(g, x) {
        let table = linear_with_biases(g, table, weight, biases, place)?;
        return Ok(rows(g, table, &index));
    }
    let (x_tensor, w) = (g.tensor(x)?, g.tensor(weight)?);
    let b = biases.iter().map(|&bias| g.tensor(bias)).collect::<Result<Vec<_>>>()?;
    let &[outputs, inputs] = w.shape() else {
        return Err(Error::shape("linear", w.name(), "[O, I]", w.shape()));
    };
    if x_tensor.shape().last() != Some(&inputs) {
        return Err(Error::shape("linear", x_tensor.name(), format!("[.., {inputs}]"), x_tensor.shape()));
    }
    let y_tensor = match place {
        Some(place) => place,
        None => g.zeros(&format!("{} · {}", x_tensor.name(), w.name()), &linear_shape(g, x, outputs))?,
    };
    matmul_with_biases(g, &x_tensor, t(&w), &b.iter().collect::<Vec<_>>(), &y_tensor, false)?;
    let parents: Vec<_> = [x, weight].iter().chain(biases).copied().collect();
    let y = g.result(y_tensor, &parents);
    let biases = biases.to_vec();
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        if let Some((dw, accumulate)) = g.gradient_target(weight)? {
            matmul(g, t(&dy), &x_tensor, None, &dw, accumulate)?;
        }
        let targets =
            biases.iter().filter_map(|&bias| g.gradient_target(bias).transpose()).collect::<Result<Vec<_>>>()?;
        bias_gradients(g, &dy, outputs, &targets)?;
        if let Some((dx, accumulate)) = g.gradient_target(x)? {
            matmul(g, &dy, &w, None, &dx, accumulate)?;
        }
        Ok(())
    });
    Ok(y)
}

/// Sums dy `[.., O]` into the gradients of biases that share it, each to be added to or not.
fn bias_gradients(g: &mut Graph, dy: &Tensor, outputs: usize, targets: &[(Tensor, bool)]) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    if let [(db, accumulate)] = targets {
        return column_sum::column_sum(g, dy, db, *accumulate);
    }
    let fresh: Vec<_> = targets.iter().filter(|(_, accumulate)| !accumulate).map(|(db, _)| db.clone()).collect();
    if fresh.len() == targets.len()
        && let Some(all) = Tensor::joined(&fresh, &[fresh.len(), outputs])
    {
        return column_sum::into_each_row(g, dy, &all);
    }
    let sum = g.zeros("d biases", &[outputs])?;
    column_sum::column_sum(g, dy, &sum, false)?;
    targets.iter().try_for_each(|(db, accumulate)| match accumulate {
        true => accumulate::accumulate(g, &sum, db),
        false => g.copy(&sum, db),
    })
}

/// `y[i] = table[index[i]]` (`torch.nn.functional.embedding`): `table` `[V, E]`, `index` `[..]` from
/// [`crate::Device::tokens`], `y` `[.., E]`. Looked up only where a dense tensor is needed.
///
/// # Errors
/// The table is not a matrix, or the index may hold tokens of V or more.
pub fn embedding(g: &mut Graph, table: Var, index: &Tensor) -> Result<Var> {
    let &[v, _] = g.shape(table) else {
        return Err(Error::shape("embedding", "weight", "[V, E]", g.shape(table)));
    };
    kernels::expect_indices("embedding", index, v)?;
    Ok(rows(g, table, index))
}

fn rows(g: &mut Graph, table: Var, index: &Tensor) -> Var {
    let y = g.rows(table, index);
    let index = index.clone();
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        let Some((dtable, accumulate)) = g.gradient_target(table)? else { return Ok(()) };
        segment_sum::segment_sum(g, &dy, &index, &dtable, accumulate)
    });
    y
}

/// The result of an operation on one value, whose `backward` records the kernel from dy to dx.
fn result_of_one(
    g: &mut Graph,
    x: Var,
    result: Tensor,
    backward: impl FnOnce(&mut Graph, &Tensor, &Tensor) -> Result<()> + 'static,
) -> Var {
    let y = g.result(result, &[x]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y).filter(|_| g.is_differentiable(x)) else { return Ok(()) };
        let (name, shape) = (g.gradient_name(x), g.shape(x).to_vec());
        let dx = g.zeros(&name, &shape)?;
        backward(g, &dy, &dx)?;
        g.add_gradient(x, &dx, false)
    });
    y
}

/// `z = x + y`, two values of one shape.
///
/// # Errors
/// The shapes differ.
pub fn add(g: &mut Graph, x: Var, y: Var) -> Result<Var> {
    let (x_tensor, y_tensor) = (g.tensor(x)?, g.tensor(y)?);
    if x_tensor.shape() != y_tensor.shape() {
        return Err(Error::shape("add", y_tensor.name(), format!("{:?}", x_tensor.shape()), y_tensor.shape()));
    }
    let z_tensor = g.zeros(&format!("{} + {}", x_tensor.name(), y_tensor.name()), x_tensor.shape())?;
    g.copy(&x_tensor, &z_tensor)?;
    accumulate::accumulate(g, &y_tensor, &z_tensor)?;
    let z = g.result(z_tensor, &[x, y]);
    g.on_backward(move |g| {
        let Some(dz) = g.gradient(z) else { return Ok(()) };
        g.add_gradient(x, &dz, true)?;
        g.add_gradient(y, &dz, true)
    });
    Ok(z)
}

/// `max(0, x)` of each element (`torch.relu`).
///
/// # Errors
/// The device cannot hold the result.
pub fn relu(g: &mut Graph, x: Var) -> Result<Var> {
    activate(g, Activation::Relu, x)
}

/// `tanh x` of each element (`torch.tanh`).
///
/// # Errors
/// The device cannot hold the result.
pub fn tanh(g: &mut Graph, x: Var) -> Result<Var> {
    activate(g, Activation::Tanh, x)
}

/// `1 / (1 + exp(-x))` of each element (`torch.sigmoid`).
///
/// # Errors
/// The device cannot hold the result.
pub fn sigmoid(g: &mut Graph, x: Var) -> Result<Var> {
    activate(g, Activation::Sigmoid, x)
}

/// If `x` is rows of a table with fewer rows, the table is activated instead.
fn activate(g: &mut Graph, f: Activation, x: Var) -> Result<Var> {
    if let Some((table, index)) = table_of(g, x) {
        let table = activate(g, f, table)?;
        return Ok(rows(g, table, &index));
    }
    let x_tensor = g.tensor(x)?;
    let y_tensor = g.zeros(&format!("{f:?} {}", x_tensor.name()), x_tensor.shape())?;
    activation::activation(g, f, &x_tensor, &y_tensor)?;
    let y = y_tensor.clone();
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| activation_backward::activation_backward(g, f, &y, dy, dx)))
}

/// Log-probabilities of the last axis (`torch.log_softmax(x, -1)`): `x` `[.., V]`.
///
/// # Errors
/// The device cannot hold the result.
pub fn log_softmax(g: &mut Graph, x: Var) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let y_tensor = g.zeros(&format!("log softmax {}", x_tensor.name()), x_tensor.shape())?;
    kernels::log_softmax::log_softmax(g, &x_tensor, &y_tensor)?;
    let y = y_tensor.clone();
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| log_softmax_backward::log_softmax_backward(g, &y, dy, dx)))
}

/// The same values, through which no gradient flows (`Tensor.detach`): the edge of truncated back-propagation.
///
/// # Errors
/// The device cannot hold the result.
pub fn detach(g: &mut Graph, x: Var) -> Result<Var> {
    let tensor = g.tensor(x)?;
    g.input(&tensor)
}

/// `y[b, a] = x[a, b]` (`torch.transpose(x, 0, 1)`): between batch first and time first.
///
/// # Errors
/// `x` has not two or three dimensions.
pub fn swap_axes(g: &mut Graph, x: Var) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let mut shape = x_tensor.shape().to_vec();
    if shape.len() >= 2 {
        shape.swap(0, 1);
    }
    let y_tensor = g.zeros(&format!("{} swapped", x_tensor.name()), &shape)?;
    swap_axes_kernel::swap_axes(g, &x_tensor, &y_tensor)?;
    Ok(result_of_one(g, x, y_tensor, swap_axes_kernel::swap_axes))
}

/// The same values in another shape (`torch.reshape`).
///
/// # Errors
/// The number of elements differs.
pub fn reshape(g: &mut Graph, x: Var, shape: &[usize]) -> Result<Var> {
    let y_tensor = g.tensor(x)?.reshape(shape)?;
    let y = g.result(y_tensor, &[x]);
    g.on_backward(move |g| g.gradient(y).map_or(Ok(()), |dy| g.add_gradient(x, &dy, true)));
    Ok(y)
}

/// `length` entries of the first axis from `start` on (`torch.narrow(x, 0, start, length)`): one step, the last step, the
/// state of one layer.
///
/// # Errors
/// The range does not lie within the axis.
pub fn narrow(g: &mut Graph, x: Var, start: usize, length: usize) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let mut shape = x_tensor.shape().to_vec();
    if length == 0 || start.saturating_add(length) > shape[0] {
        return Err(Error::shape(
            "narrow",
            x_tensor.name(),
            format!("[at least {}, ..]", start.saturating_add(length.max(1))),
            &shape,
        ));
    }
    let inner = x_tensor.len() / shape[0];
    shape[0] = length;
    let y_tensor = g.view(&x_tensor, &format!("{}[{start}..]", x_tensor.name()), start * inner, &shape)?;
    let y = g.result(y_tensor, &[x]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        if !g.is_differentiable(x) {
            return Ok(());
        }
        // Each run writes the range, and the rest stays 0: so nothing else may be added to this tensor.
        let dx = g.zeros(&format!("d {}", x_tensor.name()), x_tensor.shape())?;
        g.copy(&dy, &dx.view("range", start * inner, &shape))?;
        g.add_gradient(x, &dx, true)
    });
    Ok(y)
}

/// One entry of the first axis, which goes (`torch.select(x, 0, index)`, `x[index]`): one step of a sequence that is time first; [`swap_axes`] makes one so.
///
/// # Errors
/// There is no such entry, or `x` has one dimension.
pub fn select(g: &mut Graph, x: Var, index: usize) -> Result<Var> {
    let Some((_, rest)) = g.shape(x).split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Error::shape("select", "input", "at least two dimensions", g.shape(x)));
    };
    let rest = rest.to_vec();
    let entry = narrow(g, x, index, 1)?;
    reshape(g, entry, &rest)
}

/// The last entry of the first axis, which goes (`x[-1]`): the last step of a sequence.
///
/// # Errors
/// `x` has one dimension.
pub fn last(g: &mut Graph, x: Var) -> Result<Var> {
    let entries = g.shape(x)[0];
    select(g, x, entries - 1)
}

/// Every entry of the first axis, which goes (`torch.unbind(x)`): the steps of a sequence, for a loop over them.
///
/// # Errors
/// `x` has one dimension.
pub fn unbind(g: &mut Graph, x: Var) -> Result<Vec<Var>> {
    let x_tensor = g.tensor(x)?;
    let Some((&entries, rest)) = x_tensor.shape().split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Error::shape("unbind", x_tensor.name(), "at least two dimensions", x_tensor.shape()));
    };
    let (inner, rest) = (x_tensor.len() / entries, rest.to_vec());
    let mut ys = Vec::new();
    for i in 0..entries {
        let entry = g.view(&x_tensor, &format!("{}[{i}]", x_tensor.name()), i * inner, &rest)?;
        ys.push(g.result(entry, &[x]));
    }
    let entries = ys.clone();
    g.on_backward(move |g| {
        let gradients: Vec<_> = entries.iter().map(|&y| g.gradient(y)).collect();
        if !g.is_differentiable(x) || gradients.iter().all(Option::is_none) {
            return Ok(());
        }
        let dx = g.zeros(&format!("d {}", x_tensor.name()), x_tensor.shape())?;
        for (i, dy) in gradients.iter().enumerate() {
            if let Some(dy) = dy {
                g.copy(dy, &dx.view("entry", i * inner, &rest))?;
            }
        }
        // Entries without a gradient stay 0 only if nothing else is added to this tensor.
        g.add_gradient(x, &dx, true)
    });
    Ok(ys)
}

/// One after the other along the first axis (`torch.cat(xs, 0)`): states of layers, steps of a sequence.
///
/// # Errors
/// No values, or their other axes differ.
pub fn concat_first(g: &mut Graph, xs: &[Var]) -> Result<Var> {
    let tensors = xs.iter().map(|&x| g.tensor(x)).collect::<Result<Vec<_>>>()?;
    let Some(first) = tensors.first() else {
        return Err(Error::argument("concat_first", "values", "at least one", 0));
    };
    if let &[only] = xs {
        return Ok(only);
    }
    if let Some(odd) = tensors.iter().find(|tensor| tensor.shape()[1..] != first.shape()[1..]) {
        return Err(Error::shape("concat_first", odd.name(), format!("_ by {:?}", &first.shape()[1..]), odd.shape()));
    }
    let mut shape = first.shape().to_vec();
    shape[0] = tensors.iter().map(|tensor| tensor.shape()[0]).sum();
    let y_tensor = g.zeros("stacked", &shape)?;
    let mut at = 0;
    for tensor in &tensors {
        g.copy(tensor, &y_tensor.view("part", at, tensor.shape()))?;
        at += tensor.len();
    }
    let y = g.result(y_tensor, xs);
    let xs = xs.to_vec();
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        let mut at = 0;
        for (&x, tensor) in xs.iter().zip(&tensors) {
            if g.is_differentiable(x) {
                let part = g.view(&dy, "part of a gradient", at, tensor.shape())?;
                g.add_gradient(x, &part, true)?;
            }
            at += tensor.len();
        }
        Ok(())
    });
    Ok(y)
}

/// Side by side along the last axis (`torch.cat(xs, -1)`): the two directions of a layer.
///
/// # Errors
/// No values, or their other axes differ.
pub fn concat_last(g: &mut Graph, xs: &[Var]) -> Result<Var> {
    let tensors = xs.iter().map(|&x| g.tensor(x)).collect::<Result<Vec<_>>>()?;
    let Some((last, rest)) = tensors.first().and_then(|tensor| tensor.shape().split_last()) else {
        return Err(Error::argument("concat_last", "values", "at least one, with an axis", xs.len()));
    };
    if let &[only] = xs {
        return Ok(only);
    }
    if let Some(odd) = tensors.iter().find(|tensor| &tensor.shape()[..tensor.shape().len() - 1] != rest) {
        return Err(Error::shape("concat_last", odd.name(), format!("{rest:?} and {last} or any other"), odd.shape()));
    }
    let mut shape = rest.to_vec();
    shape.push(tensors.iter().map(|tensor| tensor.rows_and_columns().1).sum());
    let y_tensor = g.zeros("side by side", &shape)?;
    let mut at = 0;
    for tensor in &tensors {
        let columns = tensor.rows_and_columns().1;
        place::place(g, (tensor, 0), (&y_tensor, at), columns)?;
        at += columns;
    }
    let y = g.result(y_tensor, xs);
    let xs = xs.to_vec();
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        let mut at = 0;
        for (&x, tensor) in xs.iter().zip(&tensors) {
            let columns = tensor.rows_and_columns().1;
            if g.is_differentiable(x) {
                let dx = g.zeros(&format!("d {}", tensor.name()), tensor.shape())?;
                place::place(g, (&dy, at), (&dx, 0), columns)?;
                g.add_gradient(x, &dx, false)?;
            }
            at += columns;
        }
        Ok(())
    });
    Ok(y)
}

/// What [`reverse`] does to the input of a recurrence, whose own lengths make what lies past them irrelevant: rows of a
/// table stay rows, in the other order.
pub(crate) fn reverse_input(g: &mut Graph, x: Var, lengths: &Tensor) -> Result<Var> {
    let Some((table, index)) = g.as_rows(x) else { return reverse(g, x, lengths) };
    let vocabulary = g.shape(table)[0];
    let reversed = g.device().tokens(&format!("{} reversed", index.name()), index.shape(), vocabulary)?;
    reverse_index::reverse_index(g, &index, lengths, &reversed)?;
    Ok(rows(g, table, &reversed))
}

/// Each entry's own steps, last first: `x` `[T, B, C]`, `lengths` `[B]` u32. Past an entry's length, 0.
///
/// # Errors
/// The shapes do not fit.
pub fn reverse(g: &mut Graph, x: Var, lengths: &Tensor) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let y_tensor = g.zeros(&format!("{} reversed", x_tensor.name()), x_tensor.shape())?;
    reverse_kernel::reverse(g, &x_tensor, lengths, &y_tensor)?;
    let lengths = lengths.clone();
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| reverse_kernel::reverse(g, dy, &lengths, dx)))
}

/// Zeroes each element with probability `rate` and scales the others (`torch.nn.functional.dropout`), anew in every
/// step of a [`crate::Trainer`]; a plan without one draws the same in every run. In a graph that records no gradients ([`Graph::inference`]) it does nothing.
///
/// # Errors
/// `rate` is not in [0, 1).
pub fn dropout(g: &mut Graph, x: Var, rate: f64, seed: u32) -> Result<Var> {
    if !(0.0..1.0).contains(&rate) {
        return Err(Error::argument("dropout", "rate", "at least 0 and below 1", rate));
    }
    if rate == 0.0 || !g.is_training() {
        return Ok(x);
    }
    // Each dropout of a graph draws for itself, those of one module that is called twice too.
    let seed = threefry2x32([seed, g.next_dropout()], [0, 0])[0];
    let (x_tensor, clock) = (g.tensor(x)?, g.clock()?);
    let y_tensor = g.zeros(&format!("{} dropped", x_tensor.name()), x_tensor.shape())?;
    dropout_kernel::dropout(g, &x_tensor, &y_tensor, rate, seed, &clock)?;
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| dropout_kernel::dropout(g, dy, dx, rate, seed, &clock)))
}

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
    /// At these values, `[D * L, B, H]`; their gradients are computed if they are differentiable.
    Given(States),
    /// Where the last run of the plan ended. No gradient crosses from window to window.
    Carried(&'a State),
}

/// An LSTM's state is h and c, the others' h alone.
pub(crate) fn check_states(cell: Cell, states: States) -> Result<()> {
    let (expected, got) = match (cell.states(), states.c) {
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
    let results = recurrences(g, cell, &[Direction { x, weight, bias, start }], lengths)?;
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
    /// The incoming state; 0 if there is none.
    pub start: Option<States>,
}

/// [`recurrence`] in several directions of the same shapes and lengths, side by side: all in one dispatch, or in one for
/// each step. Each direction is from first step to last; see [`reverse`].
///
/// # Errors
/// The shapes do not fit.
pub fn recurrences(
    g: &mut Graph,
    cell: Cell,
    directions: &[Direction],
    lengths: Option<&Tensor>,
) -> Result<Vec<(Var, States)>> {
    let count = directions.len();
    if let [Direction { x, weight, .. }, others @ ..] = directions
        && !others.is_empty()
        && let (&[steps, batch, _], &[_, hidden]) = (g.shape(*x), g.shape(*weight))
        && others.iter().all(|other| g.shape(other.x) == g.shape(*x))
        && let rows = input_rows(g, *x)
        && !sequence::fits(g.device().limits(), g.is_training(), cell, (count, count), rows, [steps, batch, hidden])
    {
        let limits = "directions one after the other, since together they pass the device's limits";
        g.note(format!("{cell:?}, H {hidden}: {limits}"));
        let alone =
            |direction: &Direction| Ok(side_by_side(g, cell, std::slice::from_ref(direction), &[], lengths)?[0]);
        return directions.iter().map(alone).collect();
    }
    side_by_side(g, cell, directions, &[], lengths)
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
    cell: Cell,
    lowest: Direction,
    above: &[Above],
    lengths: Option<&Tensor>,
) -> Result<(Var, Vec<States>)> {
    let results = side_by_side(g, cell, &[lowest], above, lengths)?;
    Ok((results[above.len()].0, results.into_iter().map(|(_, end)| end).collect()))
}

/// [`recurrences`], or one with layers stacked on it: no gradient then comes from outputs but the last.
fn side_by_side(
    g: &mut Graph,
    cell: Cell,
    inputs: &[Direction],
    above: &[Above],
    lengths: Option<&Tensor>,
) -> Result<Vec<(Var, States)>> {
    let Some(&Direction { x, weight, .. }) = inputs.first() else {
        return Err(Error::argument("recurrence", "directions", "at least one", 0));
    };
    let (&[steps, batch, width], &[_, hidden]) = (g.shape(x), g.shape(weight)) else {
        return Err(Error::shape("recurrence", "input", "[T, B, G H], with a weight [G H, H]", g.shape(x)));
    };
    if let Some(odd) = inputs.iter().find(|direction| g.shape(direction.x) != [steps, batch, width]) {
        return Err(Error::shape("recurrence", "input", format!("{:?}", g.shape(x)), g.shape(odd.x)));
    }
    // All recurrences, side by side or stacked: recurrent weight and bias, incoming state.
    let of_inputs = inputs.iter().map(|direction| (direction.weight, direction.bias, direction.start));
    let all: Vec<_> = of_inputs.chain(above.iter().map(|layer| (layer.weight, layer.bias, layer.start))).collect();
    let (device, count, stacked) = (g.device().clone(), all.len(), !above.is_empty());
    let (is_lstm, saved, states) = (cell.states() == 2, cell.saved(), cell.states());

    // Rows of tables are left to the kernel to look up.
    let tables: Option<Vec<_>> = inputs.iter().map(|direction| g.as_rows(direction.x)).collect();
    let (mut xs, mut indices, mut rows) = (Vec::new(), Vec::new(), steps * batch);
    match tables.filter(|tables| tables.iter().all(|&(table, _)| g.shape(table) == g.shape(tables[0].0))) {
        Some(tables) => {
            for (table, index) in tables {
                rows = g.shape(table)[0];
                kernels::expect_indices("recurrence", &index, rows)?;
                xs.push(Some(g.tensor(table)?));
                indices.push(Some(index));
            }
        }
        None => {
            let every_row = device.tokens("every row", &[inputs.len(), steps, batch], rows)?;
            every_row.write_u32(&(0..rows as u32).collect::<Vec<_>>().repeat(inputs.len()))?;
            indices.push(Some(every_row));
            for direction in inputs {
                xs.push(Some(g.tensor(direction.x)?));
            }
        }
    }
    let (mut ws, mut biases) = (Vec::new(), Vec::new());
    for &(weight, bias, _) in &all {
        if bias.is_some() && !cell.kind().separate_bias {
            return Err(Error::argument("recurrence", "bias", "part of the input, but for the GRU", "given"));
        }
        ws.push(g.tensor(weight)?);
        biases.push(bias.map(|bias| g.tensor(bias)).transpose()?);
    }
    let one_each = "there is a tensor for each direction";
    let stack = if stacked {
        let shape = [above.len(), width];
        let w_ih = above.iter().map(|layer| g.tensor(layer.weight_ih)).collect::<Result<_>>()?;
        let of_layer = |layer: &Above| layer.bias_below.map(|bias| g.tensor(bias)).transpose();
        let biases = above.iter().map(of_layer).collect::<Result<Vec<_>>>()?;
        let biases = g.stack("biases of inputs", &biases, &shape)?.map_or_else(|| g.zeros("no biases", &shape), Ok)?;
        Some(Stack { w_ih, biases })
    } else {
        None
    };
    let chain =
        |name: &str| device.zeros(&format!("{name}({})", ws[0].name()), &[count, steps + 1, batch, hidden], DType::F32);
    let (h, c) = (chain("h")?, is_lstm.then(|| chain("c")).transpose()?);
    let has_gates = saved > 0 && g.is_training();
    let s = Sequence {
        x: g.stack("inputs", &xs, &[inputs.len(), rows, width])?.expect(one_each),
        index: g.stack("indices", &indices, &[inputs.len(), steps, batch])?.expect(one_each),
        stack,
        lengths: lengths.cloned().map_or_else(|| device.lengths("all steps", batch, steps), Ok)?,
        w: ws,
        bias: match g.stack("biases", &biases, &[count, width])? {
            None if cell.kind().separate_bias => Some(g.zeros("no bias", &[count, width])?),
            bias => bias,
        },
        h,
        c,
        saved: has_gates.then(|| g.zeros("gates", &[count, steps, batch, saved * hidden])).transpose()?,
        has_h_0: all.iter().any(|(_, _, start)| start.is_some()),
        precision: g.precision(),
    };

    let (state, state_shape) = (batch * hidden, [1, batch, hidden]);
    // Where slot `slot` of a direction is in h, and in c.
    let slot = move |d: usize, slot: usize| (d * (steps + 1) + slot) * state;
    for (d, start) in all.iter().enumerate().filter_map(|(d, &(_, _, start))| Some((d, start?))) {
        check_states(cell, start)?;
        for (chain, value) in [(Some(&s.h), Some(start.h)), (s.c.as_ref(), start.c)] {
            let (Some(chain), Some(value)) = (chain, value) else { continue };
            let tensor = g.tensor(value)?;
            if tensor.shape() != state_shape {
                return Err(Error::shape("recurrence", tensor.name(), format!("{state_shape:?}"), tensor.shape()));
            }
            g.copy(&tensor, &chain.view("incoming state", slot(d, 0), &state_shape))?;
        }
    }
    sequence::forward(g, cell, &s)?;
    let last = |g: &mut Graph, chain: &Tensor, name: &str| {
        let Some(lengths) = lengths else {
            return (0..count).map(|d| g.view(chain, name, slot(d, steps), &state_shape)).collect();
        };
        let last = g.zeros(name, &[count, batch, hidden])?;
        kernels::last_step::last_step(g, chain, lengths, &last)?;
        (0..count).map(|d| g.view(&last, name, d * state, &state_shape)).collect::<Result<Vec<_>>>()
    };
    let h_n = last(g, &s.h, "h_n")?;
    let c_n = s.c.as_ref().map(|c| last(g, c, "c_n")).transpose()?;
    let (mut results, mut parents) = (Vec::new(), Vec::new());
    for (d, &(weight, bias, start)) in all.iter().enumerate() {
        // A stacked layer has the parents of those below it too.
        if !stacked {
            parents.clear();
        }
        match inputs.get(d) {
            Some(direction) => parents.push(direction.x),
            None => parents.extend(Some(above[d - 1].weight_ih).into_iter().chain(above[d - 1].bias_below)),
        }
        parents.extend(Some(weight).into_iter().chain(bias).chain(start.into_iter().flat_map(States::vars)));
        let output = g.view(&s.h, "output", slot(d, 1), &[steps, batch, hidden])?;
        let output = g.result(output, &parents);
        let c = c_n.as_ref().map(|c_n| g.result(c_n[d].clone(), &parents));
        results.push((output, States { h: g.result(h_n[d].clone(), &parents), c }));
    }

    let (inputs, above, ends) = (inputs.to_vec(), above.to_vec(), results.clone());
    g.on_backward(move |g| {
        let outputs = &ends[if stacked { count - 1 } else { 0 }..];
        let dy: Vec<_> = outputs.iter().map(|&(output, _)| g.gradient(output)).collect();
        let dend = ends.iter().flat_map(|&(_, end)| end.vars());
        let dend: Vec<_> = dend.map(|state| g.gradient(state)).collect();
        let dy = g.stack("d outputs", &dy, &[outputs.len(), steps, batch, hidden])?;
        let dend = g.stack("d last states", &dend, &[count, states, batch, hidden])?;
        if dy.is_none() && dend.is_none() {
            return Ok(());
        }
        let starts = all.iter().filter_map(|&(_, _, start)| start);
        let wants_dstart = starts.flat_map(States::vars).any(|v| g.is_differentiable(v));
        let d = SequenceGradients {
            dy,
            dend,
            dx: g.zeros("d recurrence", &[count, steps, batch, width])?,
            dstart: g.zeros("d incoming states", &[count, states, batch, hidden])?,
            wants_dstart,
        };
        sequence::backward(g, cell, &s, &d)?;
        let (gradient, stride) = sequence::recurrent_gradient(cell, &s, &d);
        // Of the gradients that are parts of one buffer, none is added to in place.
        let shares = |tensor: &Tensor, part: &Tensor| tensor.len() != part.len();
        let rows = steps * batch;
        for (i, &(weight, bias, start)) in all.iter().enumerate() {
            let start_of_product = i * rows * stride;
            if let Some((dw, accumulate)) = g.gradient_target(weight)? {
                // The first step adds nothing if it starts at 0; leaving it out is worth no copy.
                let skips = !s.has_h_0 && steps > 1 && g.can_view(slot(i, 0) + state);
                let first = if skips { batch } else { 0 };
                let count = rows - first;
                let before = g.view(&s.h, "h[..T]", slot(i, 0) + first * hidden, &[count, hidden])?;
                let rows = Factor::block(gradient, start_of_product + first * stride, count, width, stride);
                matmul(g, rows.t(), &before, None, &dw, accumulate)?;
            }
            if let Some(bias) = bias
                && let Some((db, accumulate)) = g.gradient_target(bias)?
            {
                let product = g.view(gradient, "d product", start_of_product, &[rows, stride])?;
                column_sum::first_columns(g, &product, &db, accumulate)?;
            }
            for (k, value) in start.into_iter().flat_map(States::vars).enumerate() {
                if g.is_differentiable(value) {
                    let part = g.view(&d.dstart, "d incoming state", (i * states + k) * state, &state_shape)?;
                    g.add_gradient(value, &part, shares(&d.dstart, &part))?;
                }
            }
            let dx = |g: &mut Graph| g.view(&d.dx, "d recurrence", i * rows * width, &[steps, batch, width]);
            let Some(layer) = i.checked_sub(1).and_then(|i| above.get(i)) else {
                let x = inputs[i].x;
                if g.is_differentiable(x) {
                    let dx = dx(g)?;
                    g.add_gradient(x, &dx, shares(&d.dx, &dx))?;
                }
                continue;
            };
            if let Some((dw, accumulate)) = g.gradient_target(layer.weight_ih)? {
                let dx = Factor::block(&d.dx, i * rows * width, rows, width, width);
                let below = g.tensor(ends[i - 1].0)?.reshape(&[rows, hidden])?;
                matmul(g, dx.t(), &below, None, &dw, accumulate)?;
            }
            if let Some(bias) = layer.bias_below
                && let Some((db, accumulate)) = g.gradient_target(bias)?
            {
                let dx = dx(g)?;
                column_sum::column_sum(g, &dx, &db, accumulate)?;
            }
        }
        Ok(())
    });
    Ok(results)
}

/// How the losses of the rows become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean over the rows that count.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// This one, over the rows whose target is another class (PyTorch's `ignore_index`): padding, say.
    pub fn ignoring(self, class: u32) -> ClassReduction {
        ClassReduction { reduction: self, ignore_index: Some(class) }
    }
}

/// How the losses of rows with a class each become one number: a [`Reduction`], perhaps [`Reduction::ignoring`] a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassReduction {
    reduction: Reduction,
    ignore_index: Option<u32>,
}

impl From<Reduction> for ClassReduction {
    fn from(reduction: Reduction) -> Self {
        Self { reduction, ignore_index: None }
    }
}

/// A loss to be minimised: the losses of the rows, and the factor that makes them one number.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Its place in the graph.
    pub(crate) index: usize,
    /// One for each row.
    pub(crate) rows: Tensor,
    /// `[1]`
    pub(crate) scale: Tensor,
}

impl Loss {
    /// The loss of each row, not scaled: valid when the plan has run.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// A loss whose gradient, already computed in `dx`, flows into `x` if the backward pass starts from it.
    fn new(g: &mut Graph, x: Var, rows: Tensor, scale: Tensor, dx: Option<Tensor>) -> Self {
        let index = g.new_loss();
        if let Some(dx) = dx {
            g.on_backward(move |g| if g.is_wanted(index) { g.add_gradient(x, &dx, false) } else { Ok(()) });
        }
        Self { index, rows, scale }
    }
}

/// Softmax and negative log-likelihood, from logits (`torch.nn.functional.cross_entropy`): `logits` `[.., V]`, `targets`
/// one for each row, from [`crate::Device::targets`]. A row whose target is [`crate::NO_TARGET`] does not count, nor one
/// whose class is ignored: `Reduction::Mean.ignoring(0)`. If no row counts, the mean is 0 (PyTorch's is NaN).
///
/// Its gradient is computed on the way; [`Graph::backward`] goes on from it if the loss is named there.
///
/// # Errors
/// The targets' shape is neither that of the rows, axes of size 1 aside, nor flat; or targets may be V or more.
pub fn cross_entropy(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::cross_entropy::cross_entropy, counts: true };
    class_loss(g, "cross_entropy", kernel, logits, targets, reduction.into())
}

/// Negative log-likelihood, from log-probabilities (`torch.nn.functional.nll_loss`): as [`cross_entropy`], of what
/// [`log_softmax`] gives.
///
/// # Errors
/// As [`cross_entropy`].
pub fn nll_loss(
    g: &mut Graph,
    log_probabilities: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::nll_loss::nll_loss, counts: false };
    class_loss(g, "nll_loss", kernel, log_probabilities, targets, reduction.into())
}

/// A kernel that makes a loss over classes.
struct ClassKernel {
    record: fn(&mut Graph, ClassLoss<'_>) -> Result<()>,
    /// Whether it can count the rows itself.
    counts: bool,
}

/// Up to here, each workgroup of a loss counts all rows that count: cheaper than a dispatch.
const MOST_ROWS_COUNTED_BY_EACH: usize = 1024;

fn class_loss(
    g: &mut Graph,
    op: &'static str,
    kernel: ClassKernel,
    x: Var,
    targets: &Tensor,
    ClassReduction { reduction, ignore_index }: ClassReduction,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    let (count, v) = x_tensor.rows_and_columns();
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|&size| size > 1).collect::<Vec<_>>();
    let rows = &x_tensor.shape()[..x_tensor.shape().len() - 1];
    if targets.len() != count || (targets.shape().len() > 1 && without_ones(targets.shape()) != without_ones(rows)) {
        return Err(Error::shape(op, targets.name(), format!("{rows:?}, or [{count}]"), targets.shape()));
    }
    kernels::expect_targets(op, targets, v)?;
    // A kernel of few rows counts them itself.
    let counts = reduction == Reduction::Mean && kernel.counts && count <= MOST_ROWS_COUNTED_BY_EACH;
    let scale = match reduction {
        Reduction::Sum => g.device().upload("scale", &[1], &[1.0])?,
        Reduction::Mean => g.zeros("scale", &[1])?,
    };
    if reduction == Reduction::Mean && !counts {
        count_targets::count_targets(g, targets, v, ignore_index, &scale)?;
    }
    let losses = g.zeros("losses", &[count])?;
    let dx = g.is_differentiable(x).then(|| g.zeros("d logits", x_tensor.shape())).transpose()?;
    let tensors =
        ClassLoss { x: &x_tensor, targets, ignore_index, counts, scale: &scale, losses: &losses, dx: dx.as_ref() };
    (kernel.record)(g, tensors)?;
    Ok(Loss::new(g, x, losses, scale, dx))
}

/// Squared error of each element (`torch.nn.functional.mse_loss`): `x` and `targets` of one shape.
///
/// # Errors
/// The shapes differ.
pub fn mse_loss(g: &mut Graph, x: Var, targets: &Tensor, reduction: Reduction) -> Result<Loss> {
    element_loss(g, "mse_loss", kernels::mse_loss::mse_loss, x, targets, reduction)
}

/// Binary cross-entropy of each element, from logits (`torch.nn.functional.binary_cross_entropy_with_logits`): `logits`
/// and `targets` (probabilities, 0 to 1) of one shape.
///
/// # Errors
/// The shapes differ.
pub fn binary_cross_entropy_with_logits(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: Reduction,
) -> Result<Loss> {
    let op = "binary_cross_entropy_with_logits";
    element_loss(g, op, kernels::bce_with_logits::bce_with_logits, logits, targets, reduction)
}

fn element_loss(
    g: &mut Graph,
    op: &'static str,
    kernel: fn(&mut Graph, ElementLoss<'_>) -> Result<()>,
    x: Var,
    targets: &Tensor,
    reduction: Reduction,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    if targets.shape() != x_tensor.shape() {
        return Err(Error::shape(op, targets.name(), format!("{:?}", x_tensor.shape()), targets.shape()));
    }
    let factor = match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean => 1.0 / x_tensor.len() as f64,
    };
    let scale = g.zeros("scale", &[1])?;
    scale.write_f64(&[factor])?;
    let losses = g.zeros("losses", &[x_tensor.len()])?;
    let dx = g.is_differentiable(x).then(|| g.zeros("d loss", x_tensor.shape())).transpose()?;
    kernel(g, ElementLoss { x: &x_tensor, targets, scale: &scale, losses: &losses, dx: dx.as_ref() })?;
    Ok(Loss::new(g, x, losses, scale, dx))
}
