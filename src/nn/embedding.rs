//! `nn.Embedding`.

use super::{functional, sizes_in_file};
use crate::error::Result;
use crate::graph::{Graph, Init, ParameterId, Var, name_in};
use crate::tensor::Tensor;

/// A lookup table (`torch.nn.Embedding`): parameter `weight` `[V, E]` from N(0, 1).
#[derive(Clone, Debug)]
pub struct Embedding {
    name: String,
    pub(super) weight: ParameterId,
}

impl Embedding {
    /// Draws the parameters `<name>.weight`.
    ///
    /// # Errors
    /// A size of 0, or the name is taken.
    pub fn new(init: &mut Init, name: &str, vocabulary: usize, dim: usize) -> Result<Self> {
        Ok(Self { name: name.into(), weight: init.normal(name_in(name, "weight"), &[vocabulary, dim])? })
    }

    /// With the sizes and the values that the file of [`Init::from_file`] has under this name.
    ///
    /// # Errors
    /// The file has no such table; `init` has no file; the name is taken.
    pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
        let ([vocabulary, dim], _) = sizes_in_file(init, name)?;
        Self::new(init, name, vocabulary, dim)
    }

    /// `tokens` `[..]` from [`crate::Device::tokens`] to `[.., E]`.
    ///
    /// # Errors
    /// The tokens may exceed the vocabulary.
    pub fn forward(&self, g: &mut Graph, tokens: &Tensor) -> Result<Var> {
        let weight = g.parameter(self.weight)?;
        let y = functional::embedding(g, weight, tokens).map_err(|error| error.in_module(&self.name))?;
        g.set_name(y, &self.name);
        Ok(y)
    }
}
