//! The Elman network, with tanh or relu, as a cell.

use super::sequence::CellKind;
use super::{rnn_backward, rnn_forward};

/// `h = tanh(x + h Wᵀ)`
pub(super) static TANH: CellKind = CellKind {
    gates: 1,
    states: 1,
    saved: 0,
    separate_bias: false,
    forward: |g, forward| rnn_forward::rnn_forward(g, forward, false),
    backward: |g, backward| rnn_backward::rnn_backward(g, backward, false),
};

/// `h = max(0, x + h Wᵀ)`
pub(super) static RELU: CellKind = CellKind {
    forward: |g, forward| rnn_forward::rnn_forward(g, forward, true),
    backward: |g, backward| rnn_backward::rnn_backward(g, backward, true),
    ..TANH
};
