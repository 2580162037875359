//! Modules with PyTorch's semantics, shapes, parameter names and initial values.

mod char_rnn;
mod embedding;
pub mod functional;
mod linear;
mod parameters;
mod recurrent;
mod state;

pub use crate::kernels::sequence::Cell;
pub use char_rnn::{CharRnn, CharRnnOptions, Hidden, LanguageModel};
pub use embedding::Embedding;
pub use linear::Linear;
pub use parameters::{Init, ParameterId, Parameters};
pub use recurrent::{
    Gru, GruCell, Lstm, LstmCell, LstmOutput, Nonlinearity, Recurrent, Rnn, RnnCell, RnnOptions, RnnOutput,
};
pub use state::{Snapshot, State};
