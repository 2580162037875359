//! Differentiable operations: each records its forward kernels and leaves its backward kernels on the tape.

mod axis;
mod convolution;
mod elementwise;
mod loss;
mod normalization;
mod product;
mod recurrence;
mod reduction;
mod scan;
mod shape;

pub use convolution::*;
pub use elementwise::*;
pub use loss::*;
pub use normalization::*;
pub use product::*;
pub use recurrence::*;
pub use reduction::{mean_axis, sum_axis};
pub use scan::scan;
pub use shape::*;

use crate::device::gpu::WasmNotSend;
use crate::error::Result;
pub use crate::graph::Loss;
use crate::graph::{Graph, Var};
use crate::plan::Recorder;
use crate::tensor::Tensor;

/// The result of an operation on one value, whose `backward` records the kernel from dy to dx.
fn result_of_one(
    g: &mut Graph,
    x: Var,
    result: Tensor,
    backward: impl FnOnce(&mut Recorder, &Tensor, &Tensor) -> Result<()> + WasmNotSend + 'static,
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
