//! The gated recurrent unit as a cell.

use crate::kernels::sequence::Activation::{Sigmoid, Tanh};
use crate::kernels::sequence::{CellKind, Generated};
use crate::kernels::{gru_backward, gru_forward, reset_gru_backward, reset_gru_forward};

/// Gates r, z, n; saved are they and the product that r scales.
pub(super) static GRU: CellKind = CellKind {
    name: "Gru",
    gates: 3,
    states: 1,
    saved: 4,
    separate_bias: true,
    variant: 0,
    parts: 1,
    functions: &[Sigmoid, Sigmoid, Tanh],
    forward: &gru_forward::KERNEL,
    backward: &gru_backward::KERNEL,
    generated: Some(Generated::Gru),
};

/// Reset before the product: saved are the gates and r h, which is multiplied in the second part of a step.
pub(super) static RESET_BEFORE: CellKind = CellKind {
    name: "Gru, reset before the product",
    separate_bias: false,
    parts: 2,
    forward: &reset_gru_forward::KERNEL,
    backward: &reset_gru_backward::KERNEL,
    generated: None,
    ..GRU
};
