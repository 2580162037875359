//! Sums and means over axes.

use super::axis::axis_of;
use crate::error::Result;
use crate::graph::{Graph, Var};
use crate::kernels;

/// The sum over an axis, which goes (`torch.sum(x, axis)`); below 0, axes are counted from the last.
///
/// # Errors
/// There is no such axis.
pub fn sum_axis(g: &mut Graph, x: Var, axis: isize) -> Result<Var> {
    reduce(g, "sum_axis", x, axis, |_| 1.0)
}

/// The mean over an axis, which goes (`torch.mean(x, axis)`); below 0, axes are counted from the last.
///
/// # Errors
/// There is no such axis.
pub fn mean_axis(g: &mut Graph, x: Var, axis: isize) -> Result<Var> {
    reduce(g, "mean_axis", x, axis, |size| 1.0 / size as f64)
}

fn reduce(g: &mut Graph, op: &'static str, x: Var, axis: isize, scale: fn(usize) -> f64) -> Result<Var> {
    let axis = axis_of(g, op, x, axis)?;
    let x_tensor = g.tensor(x)?;
    let mut shape = x_tensor.shape().to_vec();
    let size = shape.remove(axis);
    if shape.is_empty() {
        shape.push(1);
    }
    let sizes = kernels::sum::around(x_tensor.shape(), axis..axis + 1);
    let y_tensor = g.zeros(&format!("{op}({})", x_tensor.name()), &shape)?;
    kernels::sum::sum(g, &x_tensor, sizes, scale(size), &y_tensor, false)?;
    let y = g.result(y_tensor, &[x]);
    let mut kept = x_tensor.shape().to_vec();
    kept[axis] = 1;
    g.on_backward(move |g| {
        let Some(dy) = g.gradient(y) else { return Ok(()) };
        let Some((dx, adds)) = g.gradient_target(x)? else { return Ok(()) };
        let program = crate::map::Program::new(|[d]| d * scale(size) as f32);
        let dy = dy.reshape(&kept)?;
        kernels::map::map(g, &program, dx.shape(), &[(&dy).into()], &[((&dx).into(), adds)])
    });
    Ok(y)
}
