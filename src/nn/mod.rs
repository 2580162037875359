//! Modules with PyTorch's semantics, shapes, parameter names and initial values.

mod char_rnn;
mod embedding;
pub mod functional;
mod linear;
mod recurrent;
mod state;

pub use crate::graph::{Init, ParameterId, Parameters};
pub use crate::kernels::cell::{Cell, CellForm};
pub use crate::kernels::sequence::{Activation, Form};
pub use char_rnn::{CharRnn, CharRnnOptions, Hidden, LanguageModel};
pub use embedding::Embedding;
pub use linear::Linear;
pub use recurrent::{
    Activations, Gru, GruCell, Lstm, LstmCell, LstmOutput, Nonlinearity, Recurrent, Rnn, RnnCell, RnnOptions, RnnOutput,
};
pub use state::{Snapshot, State};
