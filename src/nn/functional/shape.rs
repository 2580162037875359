//! The same values in another order or shape, and parts and joins of them.

use super::axis::{self, axis_of};
use super::result_of_one;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::map::{Operand, copy};
use crate::kernels::{reverse as reverse_kernel, reverse_index};
use crate::map::{Layout, Program};
use crate::tensor::Tensor;

/// The same values, through which no gradient flows (`Tensor.detach`): the edge of truncated back-propagation.
///
/// # Errors
/// The device cannot hold the result.
pub fn detach(g: &mut Graph, x: Var) -> Result<Var> {
    let tensor = g.tensor(x)?;
    g.input(&tensor)
}

/// Two axes exchanged (`torch.transpose(x, a, b)`): between batch first and time first, say. Below 0, axes are counted from the last.
///
/// # Errors
/// There are no such axes.
pub fn transpose(g: &mut Graph, x: Var, a: isize, b: isize) -> Result<Var> {
    let [a, b] = [axis_of(g, "transpose", x, a)?, axis_of(g, "transpose", x, b)?];
    let mut axes: Vec<_> = (0..g.shape(x).len()).collect();
    axes.swap(a, b);
    permuted(g, "transpose", x, &axes)
}

/// The axes in another order (`torch.permute(x, axes)`): axis i of the result is axis `axes[i]` of `x`.
///
/// # Errors
/// The axes are not those of `x`, each once.
pub fn permute(g: &mut Graph, x: Var, axes: &[usize]) -> Result<Var> {
    g.check([x])?;
    let mut sorted = axes.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..g.shape(x).len()) {
        let expected = format!("each of 0..{}, once", g.shape(x).len());
        return Err(Error::argument("permute", "axes", expected, format!("{axes:?}")));
    }
    permuted(g, "permute", x, axes)
}

fn permuted(g: &mut Graph, op: &'static str, x: Var, axes: &[usize]) -> Result<Var> {
    let shape: Vec<_> = axes.iter().map(|&axis| g.shape(x)[axis]).collect();
    // Where the axes longer than 1 stay in order, nothing moves.
    let long = axes.iter().filter(|&&axis| g.shape(x)[axis] != 1);
    if long.is_sorted() {
        return reshape(g, x, &shape);
    }
    let x_tensor = g.tensor(x)?;
    let y_tensor = g.zeros(&format!("{op}({})", x_tensor.name()), &shape)?;
    let dense = Layout::dense(x_tensor.shape());
    let layout = Layout { offset: 0, strides: axes.iter().map(|&axis| dense.strides[axis]).collect() };
    copy(g, &shape, Operand::strided(&x_tensor, layout.clone()), (&y_tensor).into(), false)?;
    Ok(result_of_one(g, x, y_tensor, move |r, dy, dx| {
        copy(r, dy.shape(), dy.into(), Operand::strided(dx, layout), false)
    }))
}

/// The same values repeated along axes of size 1, and along new ones before them (`torch.Tensor.expand`).
///
/// # Errors
/// The shape is not one that `x` broadcasts to.
pub fn expand(g: &mut Graph, x: Var, shape: &[usize]) -> Result<Var> {
    g.check([x])?;
    if Layout::broadcast(g.shape(x), shape).is_none() || shape.contains(&0) {
        return Err(Error::shape("expand", g.name(x), format!("one that broadcasts to {shape:?}"), g.shape(x)));
    }
    g.map("expand", Program::new(|[x]| x), &[x], shape)
}

/// These entries of an axis, in this order, some of them several times or never (`torch.index_select`). Below 0, axes are counted from
/// the last.
///
/// # Errors
/// There is no such axis or entry, or no entry is asked for.
pub fn index_select(g: &mut Graph, x: Var, axis: isize, indices: &[usize]) -> Result<Var> {
    let axis = axis_of(g, "index_select", x, axis)?;
    let shape = g.shape(x).to_vec();
    let size = shape[axis];
    if let Some(index) = indices.iter().find(|&&index| index >= size) {
        return Err(Error::argument(
            "index_select",
            "indices",
            format!("below {size}, the size of axis {axis}"),
            index,
        ));
    }
    if indices.is_empty() {
        return Err(Error::argument("index_select", "indices", "at least one", 0));
    }
    // The axis first, whose entries are rows of a table then.
    let mut order: Vec<_> = (0..shape.len()).collect();
    order.remove(axis);
    order.insert(0, axis);
    let table = permuted(g, "index_select", x, &order)?;
    let columns = shape.iter().product::<usize>() / size;
    let table = reshape(g, table, &[size, columns])?;
    let index = g.device().tokens("indices", &[indices.len()], size)?;
    index.write_u32(&indices.iter().map(|&index| index as u32).collect::<Vec<_>>())?;
    let rows = g.rows(table, &index);
    let mut moved: Vec<_> = order.iter().map(|&axis| shape[axis]).collect();
    moved[0] = indices.len();
    let rows = reshape(g, rows, &moved)?;
    let mut back: Vec<_> = (1..shape.len()).collect();
    back.insert(axis, 0);
    permuted(g, "index_select", rows, &back)
}

/// The same values in another shape (`torch.reshape`); rows of a table that are not looked up yet stay so, if their axis stays.
///
/// # Errors
/// The number of elements differs.
pub fn reshape(g: &mut Graph, x: Var, shape: &[usize]) -> Result<Var> {
    if let Some((table, index)) = g.as_rows(x)
        && let Some((columns, rows)) = shape.split_last()
        && Some(columns) == g.shape(x).last()
        && !rows.is_empty()
        && let Ok(index) = index.reshape(rows)
    {
        return Ok(g.rows(table, &index));
    }
    let y_tensor = g.tensor(x)?.reshape(shape)?;
    let y = g.result(y_tensor, &[x]);
    g.on_backward(move |g| g.gradient(y).map_or(Ok(()), |dy| g.add_gradient(x, &dy, true)));
    Ok(y)
}

/// `length` entries of an axis from `start` on (`torch.narrow(x, axis, start, length)`): one step, the last step, the state of one
/// layer, a gate. Below 0, axes are counted from the last.
///
/// # Errors
/// There is no such axis, or the range does not lie within it.
pub fn narrow(g: &mut Graph, x: Var, axis: isize, start: usize, length: usize) -> Result<Var> {
    narrow_as(g, "narrow", x, axis, start, length)
}

fn narrow_as(g: &mut Graph, op: &'static str, x: Var, axis: isize, start: usize, length: usize) -> Result<Var> {
    let axis = axis_of(g, op, x, axis)?;
    let x_tensor = g.tensor(x)?;
    let mut shape = x_tensor.shape().to_vec();
    let size = shape[axis];
    if length == 0 || start.saturating_add(length) > size {
        let least = format!("at least {}", start.saturating_add(length.max(1)));
        let sizes = shape.iter().enumerate().map(|(i, size)| if i == axis { least.clone() } else { size.to_string() });
        let expected = format!("[{}]", sizes.collect::<Vec<_>>().join(", "));
        return Err(Error::shape(op, x_tensor.name(), expected, &shape));
    }
    shape[axis] = length;
    let layout = part_of(x_tensor.shape(), axis, start);
    let name = format!("{}[{start}..]", x_tensor.name());
    let y_tensor = if is_first(&shape, axis) {
        g.view(&x_tensor, &name, layout.offset, &shape)?
    } else {
        let y_tensor = g.zeros(&name, &shape)?;
        copy(g, &shape, Operand::strided(&x_tensor, layout.clone()), (&y_tensor).into(), false)?;
        y_tensor
    };
    let y = g.result(y_tensor, &[x]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y).filter(|_| g.is_differentiable(x)) else { return Ok(()) };
        let parts = [(dy, layout)];
        scatter(g, x, &parts)
    });
    Ok(y)
}

/// Whether an axis has nothing but sizes of 1 before it, so that a part of it is a range of the memory.
fn is_first(shape: &[usize], axis: usize) -> bool {
    shape[..axis].iter().all(|&size| size == 1)
}

/// The layout of what starts at an entry of an axis.
fn part_of(shape: &[usize], axis: usize, start: usize) -> Layout {
    let dense = Layout::dense(shape);
    Layout { offset: start * dense.strides[axis], ..dense }
}

/// Gives a value the gradients of parts of it, none of which overlap.
fn scatter(g: &mut Graph, x: Var, parts: &[(Tensor, Layout)]) -> Result<()> {
    if g.gradient(x).is_some() {
        let Some((dx, adds)) = g.gradient_target(x)? else { return Ok(()) };
        return parts
            .iter()
            .try_for_each(|(dy, layout)| copy(g, dy.shape(), dy.into(), Operand::strided(&dx, layout.clone()), adds));
    }
    // Each run writes the parts, and the rest stays 0: so nothing else may be added to this tensor.
    let (name, shape) = (g.gradient_name(x), g.shape(x).to_vec());
    let dx = g.zeros(&name, &shape)?;
    for (dy, layout) in parts {
        if layout.strides == Layout::dense(dy.shape()).strides && !std::sync::Arc::ptr_eq(dy.buffer(), dx.buffer()) {
            g.copy(dy, &dx.view("range", layout.offset, dy.shape()))?;
        } else {
            copy(g, dy.shape(), dy.into(), Operand::strided(&dx, layout.clone()), false)?;
        }
    }
    g.add_gradient(x, &dx, true)
}

/// One entry of an axis, which goes (`torch.select(x, axis, index)`): one step of a sequence.
///
/// # Errors
/// There is no such axis or entry, or `x` has one dimension.
pub fn select(g: &mut Graph, x: Var, axis: isize, index: usize) -> Result<Var> {
    select_as(g, "select", x, axis, index)
}

fn select_as(g: &mut Graph, op: &'static str, x: Var, axis: isize, index: usize) -> Result<Var> {
    let at = axis_of(g, op, x, axis)?;
    let mut rest = g.shape(x).to_vec();
    rest.remove(at);
    if rest.is_empty() {
        return Err(Error::shape(op, g.name(x), "of at least two dimensions", g.shape(x)));
    }
    let entry = narrow_as(g, op, x, axis, index, 1)?;
    reshape(g, entry, &rest)
}

/// The last entry of the first axis, which goes (`x[-1]`): the last step of a sequence.
///
/// # Errors
/// `x` has one dimension.
pub fn last(g: &mut Graph, x: Var) -> Result<Var> {
    g.check([x])?;
    let entries = g.shape(x)[0];
    select_as(g, "last", x, 0, entries - 1)
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
        let part =
            |(i, &y): (usize, &Var)| Some((g.gradient(y)?, Layout { offset: i * inner, ..Layout::dense(&rest) }));
        let parts: Vec<_> = entries.iter().enumerate().filter_map(part).collect();
        if !g.is_differentiable(x) || parts.is_empty() {
            return Ok(());
        }
        scatter(g, x, &parts)
    });
    Ok(ys)
}

/// One after the other along an axis (`torch.cat(xs, axis)`): states of layers, steps of a sequence; along the last, side by side,
/// as the two directions of a layer. Below 0, axes are counted from the last.
///
/// # Errors
/// No values, no such axis, or their other axes differ.
pub fn concat(g: &mut Graph, xs: &[Var], axis: isize) -> Result<Var> {
    let tensors = xs.iter().map(|&x| g.tensor(x)).collect::<Result<Vec<_>>>()?;
    let (Some(first), &[x, ..]) = (tensors.first(), xs) else {
        return Err(Error::argument("concat", "values", "at least one", 0));
    };
    let axis = axis_of(g, "concat", x, axis)?;
    if xs.len() == 1 {
        return Ok(x);
    }
    let mut shape = first.shape().to_vec();
    let fits = |tensor: &Tensor| {
        let is_equal = |(i, (a, b)): (usize, (&usize, &usize))| i == axis || a == b;
        tensor.shape().len() == shape.len() && tensor.shape().iter().zip(&shape).enumerate().all(is_equal)
    };
    if let Some(odd) = tensors.iter().find(|tensor| !fits(tensor)) {
        let expected = format!("{shape:?}, but for axis {axis}");
        return Err(Error::shape("concat", odd.name(), expected, odd.shape()));
    }
    shape[axis] = tensors.iter().map(|tensor| tensor.shape()[axis]).sum();
    let y_tensor = g.zeros("joined", &shape)?;
    let mut at = 0;
    let mut parts = Vec::new();
    for tensor in &tensors {
        let layout = part_of(&shape, axis, at);
        match is_first(&shape, axis) {
            true => g.copy(tensor, &y_tensor.view("part", layout.offset, tensor.shape()))?,
            false => copy(g, tensor.shape(), tensor.into(), Operand::strided(&y_tensor, layout.clone()), false)?,
        }
        at += tensor.shape()[axis];
        parts.push(layout);
    }
    let y = g.result(y_tensor, xs);
    let xs = xs.to_vec();
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        for ((&x, tensor), layout) in xs.iter().zip(&tensors).zip(parts) {
            if !g.is_differentiable(x) {
                continue;
            }
            if is_first(dy.shape(), axis) {
                let part = g.view(&dy, "part of a gradient", layout.offset, tensor.shape())?;
                g.add_gradient(x, &part, true)?;
            } else if let Some((dx, adds)) = g.gradient_target(x)? {
                copy(g, tensor.shape(), Operand::strided(&dy, layout), (&dx).into(), adds)?;
            }
        }
        Ok(())
    });
    Ok(y)
}

/// One after the other along a new axis (`torch.stack(xs, axis)`): the outputs of steps as a sequence. Below 0, axes are counted from the
/// last of the result.
///
/// # Errors
/// No values, no such axis, or their shapes differ.
pub fn stack(g: &mut Graph, xs: &[Var], axis: isize) -> Result<Var> {
    g.check(xs.iter().copied())?;
    let Some(&first) = xs.first() else {
        return Err(Error::argument("stack", "values", "at least one", 0));
    };
    let mut shape = g.shape(first).to_vec();
    let rank = shape.len() + 1;
    let at = axis::number(rank, axis).ok_or_else(|| Error::argument("stack", "axis", axis::range(rank), axis))?;
    if let Some(&odd) = xs.iter().find(|&&x| g.shape(x) != shape) {
        return Err(Error::shape("stack", g.name(odd), format!("{shape:?}"), g.shape(odd)));
    }
    shape.insert(at, 1);
    let xs = xs.iter().map(|&x| reshape(g, x, &shape)).collect::<Result<Vec<_>>>()?;
    concat(g, &xs, axis)
}

/// What [`reverse`] does to the input of a recurrence, whose own lengths make what lies past them irrelevant: rows of a
/// table stay rows, in the other order.
pub(crate) fn reverse_input(g: &mut Graph, x: Var, lengths: &Tensor) -> Result<Var> {
    let Some((table, index)) = g.as_rows(x) else { return reverse(g, x, lengths) };
    let vocabulary = g.shape(table)[0];
    let reversed = g.tokens(&format!("{} reversed", index.name()), index.shape(), vocabulary)?;
    reverse_index::reverse_index(g, &index, lengths, &reversed)?;
    Ok(g.rows(table, &reversed))
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
