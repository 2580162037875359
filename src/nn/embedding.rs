//! `nn.Embedding`.

use super::functional;
use crate::error::Result;
use crate::graph::{Graph, Init, ParameterId, Var};
use crate::tensor::Tensor;

/// A lookup table (`torch.nn.Embedding`): parameter `weight` `[V, E]` from N(0, 1).
#[derive(Clone, Debug)]
pub struct Embedding {
    name: String,
    pub(super) weight: ParameterId,
}

impl Embedding {
    /// What its parameter's name begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Draws the parameters `<name>.weight`.
    ///
    /// # Errors
    /// A size of 0, or the name is taken.
    pub fn new(init: &mut Init, name: &str, vocabulary: usize, dim: usize) -> Result<Self> {
        Ok(Self { name: name.into(), weight: init.normal(format!("{name}.weight"), &[vocabulary, dim])? })
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
