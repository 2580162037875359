//! Modules with PyTorch's semantics, shapes, parameter names and initial values.

mod char_rnn;
mod conv1d;
mod embedding;
pub mod functional;
mod layer_norm;
mod linear;
mod recurrent;
mod state;

pub use crate::graph::{Init, ParameterId, Parameters};
pub use crate::kernels::cell::{Cell, CellForm};
pub use crate::kernels::sequence::{Activation, Form};
pub use char_rnn::{CharRnn, CharRnnOptions, Hidden, LanguageModel};
pub use conv1d::Conv1d;
pub use embedding::Embedding;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use recurrent::{
    Activations, Gru, GruCell, Lstm, LstmCell, LstmOutput, Nonlinearity, Recurrent, Rnn, RnnCell, RnnOptions, RnnOutput,
};
pub use state::{Snapshot, State};

use crate::error::Result;
use crate::graph::name_in;

/// The sizes of a module's weight in the file of [`Init::from_file`], and whether there is a bias.
fn sizes_in_file<const N: usize>(init: &Init, name: &str) -> Result<([usize; N], bool)> {
    let (file, weight) = (init.file()?, name_in(name, "weight"));
    let shape = file.shape(&weight).ok_or_else(|| file.lacks(&weight))?;
    let misfit = || file.problem(format!("`{weight}` must have {N} dimensions, but has shape {shape:?}"));
    Ok((shape.try_into().map_err(|_| misfit())?, file.shape(&name_in(name, "bias")).is_some()))
}
