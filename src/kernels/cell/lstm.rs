//! Long short-term memory as a cell.

use crate::kernels::sequence::Activation::{Sigmoid, Tanh};
use crate::kernels::sequence::{CellKind, Generated};
use crate::kernels::{lstm_backward, lstm_forward};

/// Gates i, f, g, o, which are saved.
pub(super) static LSTM: CellKind = CellKind {
    name: "Lstm",
    gates: 4,
    states: 2,
    saved: 4,
    separate_bias: false,
    variant: 0,
    parts: 1,
    functions: &[Sigmoid, Sigmoid, Tanh, Sigmoid, Tanh],
    forward: &lstm_forward::KERNEL,
    backward: &lstm_backward::KERNEL,
    generated: Some(Generated::Lstm),
};
