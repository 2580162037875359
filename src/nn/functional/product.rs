//! Products, of a value with a weight or of two values, and embeddings.

use super::transpose;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::matmul::{batched, matmul as matrix_product, matmul_with_biases, t};
use crate::kernels::{self, accumulate, column_sum};
use crate::map::Program;
use crate::product::FEW_ROWS;
use crate::tensor::Tensor;

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

/// The shape of what [`linear`] computes: of the table's product, if it multiplies a table.
pub(crate) fn linear_shape(g: &Graph, x: Var, outputs: usize) -> Vec<usize> {
    let x = g.table_of(x).map_or(x, |(table, _)| table);
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
    g.check([x, weight])?;
    let &[outputs, inputs] = g.shape(weight) else {
        return Err(Error::shape("linear", g.name(weight), "[O, I]", g.shape(weight)));
    };
    if g.shape(x).last() != Some(&inputs) {
        return Err(Error::shape("linear", g.name(x), format!("[.., {inputs}]"), g.shape(x)));
    }
    if let Some((table, index)) = g.table_of(x) {
        let table = linear_with_biases(g, table, weight, biases, place)?;
        return Ok(g.rows(table, &index));
    }
    let (x_tensor, w) = (g.tensor(x)?, g.tensor(weight)?);
    let b = biases.iter().map(|&bias| g.tensor(bias)).collect::<Result<Vec<_>>>()?;
    let y_tensor = match place {
        Some(place) => place,
        None => g.zeros(&format!("{} · {}", x_tensor.name(), w.name()), &linear_shape(g, x, outputs))?,
    };
    let b: Vec<_> = b.iter().collect();
    // Rows of odd lengths, as a vocabulary's, are read faster as W has them.
    let fills_vectors = outputs % 8 == 0;
    if g.keeps_transposes() && fills_vectors && x_tensor.len() / inputs <= FEW_ROWS {
        let transposed = transpose(g, weight, 0, 1)?;
        let transposed = g.tensor(transposed)?;
        matmul_with_biases(g, &x_tensor, &transposed, &b, &y_tensor, false)?;
    } else {
        matmul_with_biases(g, &x_tensor, t(&w), &b, &y_tensor, false)?;
    }
    let parents: Vec<_> = [x, weight].iter().chain(biases).copied().collect();
    let y = g.result(y_tensor, &parents);
    let biases = biases.to_vec();
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        if let Some((dw, accumulate)) = g.gradient_target(weight)? {
            matrix_product(g, t(&dy), &x_tensor, None, &dw, accumulate)?;
        }
        let targets =
            biases.iter().filter_map(|&bias| g.gradient_target(bias).transpose()).collect::<Result<Vec<_>>>()?;
        bias_gradients(g, &dy, outputs, &targets)?;
        if let Some((dx, accumulate)) = g.gradient_target(x)? {
            matrix_product(g, &dy, &w, None, &dx, accumulate)?;
        }
        Ok(())
    });
    Ok(y)
}

/// `x y`, products of the last two axes (`torch.matmul`): `x` `[.., M, K]`, `y` `[.., K, N]`. The axes before are the same in both, or one
/// is a matrix, which then is that of each product.
///
/// # Errors
/// The shapes do not fit.
pub fn matmul(g: &mut Graph, x: Var, y: Var) -> Result<Var> {
    g.check([x, y])?;
    let (of_x, of_y) = (g.shape(x).to_vec(), g.shape(y).to_vec());
    let misfit = |g: &Graph, expected: String| Error::shape("matmul", g.name(y), expected, &of_y);
    let (&[ref x_batch @ .., m, k], &[ref y_batch @ .., ky, n]) = (&of_x[..], &of_y[..]) else {
        return Err(misfit(g, format!("[.., K, N] beside [.., M, K], which {of_x:?} is to be")));
    };
    if ky != k || !(x_batch.is_empty() || y_batch.is_empty() || x_batch == y_batch) {
        return Err(misfit(g, format!("[.., {k}, N] with {x_batch:?}, or nothing, before")));
    }
    let batch = if x_batch.is_empty() { y_batch } else { x_batch };
    let count: usize = batch.iter().product();
    // A matrix on the right is that of all rows.
    let (x_shape, y_shape) = match (x_batch.is_empty(), y_batch.is_empty()) {
        (_, true) => (vec![count * m, k], vec![k, n]),
        (true, false) => (vec![m, k], vec![count, k, n]),
        (false, false) => (vec![count, m, k], vec![count, k, n]),
    };
    let (a, b) = (g.tensor(x)?.reshape(&x_shape)?, g.tensor(y)?.reshape(&y_shape)?);
    let c = g.zeros(&format!("{} · {}", a.name(), b.name()), &[batch, &[m, n]].concat())?;
    batched(g, (&a, false), (&b, false), &c, false)?;
    let z = g.result(c, &[x, y]);
    g.on_backward(move |g| {
        let Some(dz) = g.gradient(z) else { return Ok(()) };
        let dz = if b.shape().len() == 2 { dz.reshape(&[a.shape()[0], n])? } else { dz.reshape(&[count, m, n])? };
        let is_shared = a.shape().len() == 2 && b.shape().len() == 3;
        if g.is_differentiable(x) && is_shared {
            let each = g.zeros(&format!("{} of each", g.gradient_name(x)), &[count, m, k])?;
            batched(g, (&dz, false), (&b, true), &each, false)?;
            g.sum_to(&each, x)?;
        } else if let Some((dx, accumulate)) = g.gradient_target(x)? {
            batched(g, (&dz, false), (&b, true), &dx, accumulate)?;
        }
        if let Some((dy, accumulate)) = g.gradient_target(y)? {
            batched(g, (&a, true), (&dz, false), &dy, accumulate)?;
        }
        Ok(())
    });
    Ok(z)
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
/// [`without_gradient_of_row`] is its `padding_idx`.
///
/// # Errors
/// The table is not a matrix, or the index may hold tokens of V or more.
pub fn embedding(g: &mut Graph, table: Var, index: &Tensor) -> Result<Var> {
    g.check([table])?;
    let &[v, _] = g.shape(table) else {
        return Err(Error::shape("embedding", "weight", "[V, E]", g.shape(table)));
    };
    kernels::expect_indices("embedding", index, v)?;
    Ok(g.rows(table, index))
}

/// The same table `[V, E]`, to whose row `row` no gradient flows: `padding_idx` of `torch.nn.functional.embedding`, where that looks up in
/// it. What else uses the table itself has its gradient, as there.
///
/// ```
/// use elman::nn::functional::{embedding, mean, without_gradient_of_row};
/// use elman::{Device, Graph};
///
/// let device = Device::cpu();
/// let mut g = Graph::without_parameters(&device);
/// let table = g.input_with_gradient(&device.upload("table", &[3, 1], &[0., 1., 2.])?)?;
/// let tokens = device.tokens("tokens", &[4], 3)?;
/// tokens.write_u32(&[2, 1, 0, 0])?;
/// let padded = without_gradient_of_row(&mut g, table, 0)?;
/// let x = embedding(&mut g, padded, &tokens)?;
/// let loss = mean(&mut g, x)?;
/// g.backward(&[&loss], &[])?;
/// let gradient = g.gradient(table).expect("it flows into the table");
/// g.finish()?.run()?;
/// assert_eq!(gradient.to_vec()?, [0., 0.25, 0.25]);
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// The table is not a matrix, or has no such row.
pub fn without_gradient_of_row(g: &mut Graph, table: Var, row: usize) -> Result<Var> {
    let op = "without_gradient_of_row";
    g.check([table])?;
    let &[v, _] = g.shape(table) else {
        return Err(Error::shape(op, g.name(table), "[V, E]", g.shape(table)));
    };
    if row >= v {
        return Err(Error::argument(op, "row", format!("below {v}, the rows of the table"), row));
    }
    let tensor = g.tensor(table)?;
    let y = g.result(tensor, &[table]);
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        let Some((dtable, adds)) = g.gradient_target(table)? else { return Ok(()) };
        let others = g.zeros("other rows", &[v, 1])?;
        others.write_f64(&(0..v).map(|other| if other == row { 0.0 } else { 1.0 }).collect::<Vec<_>>())?;
        let program = Program::new(|[d, is_other]| is_other.then(d, 0.0));
        kernels::map::map(g, &program, dtable.shape(), &[(&dy).into(), (&others).into()], &[((&dtable).into(), adds)])
    });
    Ok(y)
}
