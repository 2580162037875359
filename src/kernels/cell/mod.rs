//! The list of cells; each says in its file what it is to the code that all share.

mod gru;
mod lstm;
mod rnn;

use serde::{Deserialize, Serialize};

use super::sequence::{CellKind, Form};

/// What happens at a step of a recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cell {
    /// `h = tanh(x + h Wᵀ)`
    Tanh,
    /// `h = max(0, x + h Wᵀ)`
    Relu,
    /// The gated recurrent unit, reset after the product.
    Gru,
    /// Long short-term memory.
    Lstm,
}

/// A cell, as it is or as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellForm {
    /// Which.
    pub cell: Cell,
    /// What is asked for in place of its own functions.
    pub form: Option<Form>,
    /// Of the GRU: whether r scales `h W_nᵀ + b_hn`, or h before that product.
    pub reset_after: bool,
}

impl CellForm {
    /// All that is the cell's own.
    pub fn kind(self) -> &'static CellKind {
        match self.cell {
            Cell::Gru if !self.reset_after => &gru::RESET_BEFORE,
            cell => cell.kind(),
        }
    }
}

impl From<Cell> for CellForm {
    fn from(cell: Cell) -> Self {
        Self { cell, form: None, reset_after: true }
    }
}

impl Cell {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Tanh, Self::Relu, Self::Gru, Self::Lstm];

    /// All that is the cell's own.
    pub fn kind(self) -> &'static CellKind {
        match self {
            Self::Tanh => &rnn::TANH,
            Self::Relu => &rnn::RELU,
            Self::Gru => &gru::GRU,
            Self::Lstm => &lstm::LSTM,
        }
    }

    /// G: blocks of H columns in the input and in the recurrent matrix.
    pub fn gates(self) -> usize {
        self.kind().gates
    }

    /// S: tensors of the carried state: h, and c.
    pub fn states(self) -> usize {
        self.kind().states
    }

    /// Blocks of H columns that the forward pass saves for the backward pass, beside the states.
    pub fn saved(self) -> usize {
        self.kind().saved
    }
}
