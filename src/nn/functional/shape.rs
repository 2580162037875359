//! The same values in another order or shape, and parts and joins of them.

use super::product::rows;
use super::result_of_one;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::{place, reverse as reverse_kernel, reverse_index, swap_axes as swap_axes_kernel};
use crate::tensor::Tensor;

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
    narrow_as(g, "narrow", x, start, length)
}

fn narrow_as(g: &mut Graph, op: &'static str, x: Var, start: usize, length: usize) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let mut shape = x_tensor.shape().to_vec();
    if length == 0 || start.saturating_add(length) > shape[0] {
        return Err(Error::shape(
            op,
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
    select_as(g, "select", x, index)
}

fn select_as(g: &mut Graph, op: &'static str, x: Var, index: usize) -> Result<Var> {
    g.check([x])?;
    let Some((_, rest)) = g.shape(x).split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Error::shape(op, g.name(x), "of at least two dimensions", g.shape(x)));
    };
    let rest = rest.to_vec();
    let entry = narrow_as(g, op, x, index, 1)?;
    reshape(g, entry, &rest)
}

/// The last entry of the first axis, which goes (`x[-1]`): the last step of a sequence.
///
/// # Errors
/// `x` has one dimension.
pub fn last(g: &mut Graph, x: Var) -> Result<Var> {
    g.check([x])?;
    let entries = g.shape(x)[0];
    select_as(g, "last", x, entries - 1)
}

/// Every entry of the first axis, which goes (`torch.unbind(x)`): the steps of a sequence, for a loop over them.
///
/// # Errors
/// `x` has one dimension.
pub fn unbind(g: &mut Graph, x: Var) -> Result<Vec<Var>> {
    let x_tensor = g.tensor(x)?;
    let Some((&entries, rest)) = x_tensor.shape().split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Error::shape("unbind", x_tensor.name(), "of at least two dimensions", x_tensor.shape()));
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
    let reversed = g.tokens(&format!("{} reversed", index.name()), index.shape(), vocabulary)?;
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
