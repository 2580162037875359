//! Modules with PyTorch's semantics, shapes, parameter names and initial values.

mod char_rnn;
mod embedding;
pub mod functional;
mod linear;
mod parameters;
mod rnn;
mod state;

pub use char_rnn::{CharRnn, CharRnnOptions, LanguageModel};
pub use embedding::Embedding;
pub use linear::Linear;
pub use parameters::{Init, ParameterId, Parameters};
pub use rnn::{Rnn, RnnOptions, RnnOutput};
pub use state::{Snapshot, State};
