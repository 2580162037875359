//! The gated recurrent unit as a cell.

use crate::kernels::sequence::Activation::{Sigmoid, Tanh};
use crate::kernels::sequence::{CellKind, Generated};
use crate::kernels::{gru_backward, gru_forward};

/// Gates r, z, n; saved are they and the product that r scales.
pub(super) static GRU: CellKind = CellKind {
    name: "Gru",
    gates: 3,
    states: 1,
    saved: 4,
    separate_bias: true,
    variant: 0,
    functions: &[Sigmoid, Sigmoid, Tanh],
    forward: &gru_forward::KERNEL,
    backward: &gru_backward::KERNEL,
    generated: Some(Generated::Gru),
};
