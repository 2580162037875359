//! What a backward pass starts from.

use super::{Graph, Var};
use crate::tensor::Tensor;

/// A loss to be minimised: the losses of the rows, and the factor that makes them one number.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The graph that it is of.
    pub(crate) graph: u64,
    /// Its place there.
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
    pub(crate) fn new(g: &mut Graph, x: Var, rows: Tensor, scale: Tensor, dx: Option<Tensor>) -> Self {
        let (graph, index) = g.new_loss();
        if let Some(dx) = dx {
            g.on_backward(move |g| if g.is_wanted(index) { g.add_gradient(x, &dx, false) } else { Ok(()) });
        }
        Self { graph, index, rows, scale }
    }
}
