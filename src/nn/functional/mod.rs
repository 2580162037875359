//! Differentiable operations: each records its forward kernels and leaves its backward kernels on the tape.

mod elementwise;
mod loss;
mod product;
mod recurrence;
mod shape;

pub use elementwise::{add, dropout, log_softmax, relu, sigmoid, tanh};
pub use loss::{ClassReduction, Reduction, binary_cross_entropy_with_logits, cross_entropy, mse_loss, nll_loss};
pub use product::{embedding, linear};
pub(crate) use product::{linear_shape, linear_with_biases};
pub(crate) use recurrence::{Above, check_states, input_rows, stacked_recurrence};
pub use recurrence::{Direction, InitialState, States, recurrence, recurrences};
pub(crate) use shape::reverse_input;
pub use shape::{concat_first, concat_last, detach, last, narrow, reshape, reverse, select, swap_axes, unbind};

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
    backward: impl FnOnce(&mut Recorder, &Tensor, &Tensor) -> Result<()> + 'static,
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
