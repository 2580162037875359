//! Differentiable operations: each records its forward kernels and leaves its backward kernels on the tape.

use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::matmul::{matmul, t};
use crate::kernels::rnn_backward::Incoming;
use crate::kernels::{
    self, accumulate, column_sum, count_targets, cross_entropy as cross_entropy_kernel, rnn_backward, rnn_forward,
    segment_sum, swap_axes as swap_axes_kernel,
};
use crate::nn::{RnnOutput, State};
use crate::tensor::Tensor;

/// `y = x Wᵀ + b` (`torch.nn.functional.linear`): `x` `[.., I]`, `weight` `[O, I]`, `bias` `[O]`, `y` `[.., O]`.
///
/// If `x` is an embedding with fewer tokens than rows, the table is multiplied instead, once per token.
///
/// # Errors
/// The shapes do not fit.
pub fn linear(g: &mut Graph, x: Var, weight: Var, bias: Option<Var>) -> Result<Var> {
    if let Some((table, index)) = g.as_rows(x)
        && g.shape(table)[0] < index.len()
    {
        let table = linear(g, table, weight, bias)?;
        return Ok(rows(g, table, &index));
    }
    let (x_tensor, w) = (g.tensor(x)?, g.tensor(weight)?);
    let b = bias.map(|bias| g.tensor(bias)).transpose()?;
    let &[outputs, inputs] = w.shape() else {
        return Err(Error::shape("linear", w.name(), "[O, I]", w.shape()));
    };
    let mut shape = x_tensor.shape().to_vec();
    if shape.pop() != Some(inputs) {
        return Err(Error::shape("linear", x_tensor.name(), format!("[.., {inputs}]"), x_tensor.shape()));
    }
    shape.push(outputs);
    let y_tensor = g.zeros(&format!("{} · {}", x_tensor.name(), w.name()), &shape)?;
    matmul(g, &x_tensor, t(&w), b.as_ref(), &y_tensor, false)?;
    let parents: Vec<_> = [x, weight].into_iter().chain(bias).collect();
    let y = g.result(y_tensor, &parents);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        if let Some((dw, accumulate)) = g.gradient_target(weight)? {
            matmul(g, t(&dy), &x_tensor, None, &dw, accumulate)?;
        }
        if let Some(bias) = bias
            && let Some((db, accumulate)) = g.gradient_target(bias)?
        {
            column_sum::column_sum(g, &dy, &db, accumulate)?;
        }
        if let Some((dx, accumulate)) = g.gradient_target(x)? {
            matmul(g, &dy, &w, None, &dx, accumulate)?;
        }
        Ok(())
    });
    Ok(y)
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
    let y = g.result(y_tensor, &[x]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        if !g.is_differentiable(x) {
            return Ok(());
        }
        let dx = g.zeros(&format!("{} swapped", dy.name()), x_tensor.shape())?;
        swap_axes_kernel::swap_axes(g, &dy, &dx)?;
        g.add_gradient(x, &dx, false)
    });
    Ok(y)
}

/// Where a recurrence starts.
#[derive(Clone, Copy, Debug)]
pub enum InitialState<'a> {
    /// At zero.
    Zero,
    /// At this value, `[1, B, H]`; its gradient is computed if it is differentiable.
    Given(Var),
    /// Where the last run of the plan ended. No gradient crosses from window to window.
    Carried(&'a State),
}

/// The tanh recurrence `h[t + 1] = tanh(x[t] + h[t] Wᵀ)`: `x` `[T, B, H]` with all biases in it, `weight` `[H, H]`.
///
/// # Errors
/// The shapes do not fit.
pub fn tanh_recurrence(g: &mut Graph, x: Var, weight: Var, initial: InitialState<'_>) -> Result<RnnOutput> {
    let &[steps, batch, hidden] = g.shape(x) else {
        return Err(Error::shape("rnn", "input", "[T, B, H]", g.shape(x)));
    };
    let w = g.tensor(weight)?;
    let (rows, index) = match g.as_rows(x) {
        Some((table, index)) => (g.tensor(table)?, index.reshape(&[steps, batch])?),
        None => {
            let dense = g.tensor(x)?.reshape(&[steps * batch, hidden])?;
            let identity: Vec<u32> = (0..(steps * batch) as u32).collect();
            let every_row = g.device().tokens("every row", &[steps, batch], steps * batch)?;
            every_row.write_u32(&identity)?;
            (dense, every_row)
        }
    };
    let h = g.zeros(&format!("h({})", w.name()), &[steps + 1, batch, hidden])?;
    let slot = batch * hidden;
    let state_shape = [1, batch, hidden];
    let first = h.view("h[0]", 0, &state_shape);
    let mut parents = vec![x, weight];
    let mut given = None;
    match initial {
        InitialState::Zero => {}
        InitialState::Given(h_0) => {
            let h_0_tensor = g.tensor(h_0)?;
            if h_0_tensor.shape() != state_shape {
                let got = h_0_tensor.shape();
                return Err(Error::shape("rnn", h_0_tensor.name(), format!("{state_shape:?}"), got));
            }
            g.copy(&h_0_tensor, &first)?;
            parents.push(h_0);
            given = Some(h_0);
        }
        InitialState::Carried(state) => g.copy(&state.tensor("h", &state_shape)?, &first)?,
    }
    rnn_forward::rnn_forward(g, &rows, &index, &w, &h)?;
    if let InitialState::Carried(state) = initial {
        g.copy(&h.view("h[T]", steps * slot, &state_shape), &state.tensor("h", &state_shape)?)?;
    }
    let output = g.view(&h, "output", slot, &[steps, batch, hidden])?;
    let h_n = g.view(&h, "h_n", steps * slot, &state_shape)?;
    let (output, h_n) = (g.result(output, &parents), g.result(h_n, &parents));
    g.on_backward(move |g| {
        let (dy, dh_n) = (g.gradient(output), g.gradient(h_n));
        if dy.is_none() && dh_n.is_none() {
            return Ok(());
        }
        let dx = g.zeros("d recurrence", &[steps, batch, hidden])?;
        let dh_0 = g.zeros("d h_0", &[batch, hidden])?;
        let dh_n = dh_n.map(|dh_n| dh_n.reshape(&[batch, hidden])).transpose()?;
        let incoming = Incoming { dy: dy.as_ref(), dh_n: dh_n.as_ref() };
        rnn_backward::rnn_backward(g, &w, &h, incoming, &dx, &dh_0)?;
        if let Some((dw, accumulate)) = g.gradient_target(weight)? {
            let before = h.view("h[..T]", 0, &[steps * batch, hidden]);
            matmul(g, t(&dx), &before, None, &dw, accumulate)?;
        }
        if let Some(h_0) = given {
            g.add_gradient(h_0, &dh_0, false)?;
        }
        if g.is_differentiable(x) { g.add_gradient(x, &dx, false) } else { Ok(()) }
    });
    Ok(RnnOutput { output, h_n })
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
}

/// Softmax and negative log-likelihood, from logits (`torch.nn.functional.cross_entropy`, which equals `nll_loss` of
/// `log_softmax`): `logits` `[.., V]`, `targets` one u32 for each row. A row whose target is V or more does not count.
///
/// Its gradient is computed on the way; [`Graph::backward`] goes on from it if the loss is named there.
///
/// # Errors
/// There is not one target for each row.
pub fn cross_entropy(g: &mut Graph, logits: Var, targets: &Tensor, reduction: Reduction) -> Result<Loss> {
    let z = g.tensor(logits)?;
    let (count, v) = z.rows_and_columns();
    let scale = match reduction {
        Reduction::Sum => g.device().upload("scale", &[1], &[1.0])?,
        Reduction::Mean => {
            let scale = g.zeros("scale", &[1])?;
            count_targets::count_targets(g, targets, v, &scale)?;
            scale
        }
    };
    let losses = g.zeros("losses", &[count])?;
    let gradient = g.is_differentiable(logits).then(|| g.zeros("d logits", z.shape())).transpose()?;
    cross_entropy_kernel::cross_entropy(g, &z, targets, &scale, &losses, gradient.as_ref())?;
    let index = g.new_loss();
    if let Some(gradient) = gradient {
        g.on_backward(move |g| if g.is_wanted(index) { g.add_gradient(logits, &gradient, false) } else { Ok(()) });
    }
    Ok(Loss { index, rows: losses, scale })
}
