//! The Elman network, with tanh or relu, as a cell.

use crate::kernels::sequence::Activation::{Relu, Tanh};
use crate::kernels::sequence::{CellKind, Generated};
use crate::kernels::{rnn_backward, rnn_forward};

/// `h = tanh(x + h Wᵀ)`
pub(super) static TANH: CellKind = CellKind {
    name: "Tanh",
    gates: 1,
    states: 1,
    saved: 0,
    separate_bias: false,
    variant: 0,
    parts: 1,
    functions: &[Tanh],
    forward: &rnn_forward::KERNEL,
    backward: &rnn_backward::KERNEL,
    generated: Some(Generated::Tanh),
};

/// `h = max(0, x + h Wᵀ)`
pub(super) static RELU: CellKind =
    CellKind { name: "Relu", variant: rnn_forward::RELU, functions: &[Relu], generated: Some(Generated::Relu), ..TANH };
