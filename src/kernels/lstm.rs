//! Long short-term memory as a cell.

use super::sequence::CellKind;
use super::{lstm_backward, lstm_forward};

/// Gates i, f, g, o, which are saved.
pub(super) static LSTM: CellKind = CellKind {
    gates: 4,
    states: 2,
    saved: 4,
    separate_bias: false,
    forward: lstm_forward::lstm_forward,
    backward: lstm_backward::lstm_backward,
};
