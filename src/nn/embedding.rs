//! `nn.Embedding`.

use super::{functional, sizes_in_file};
use crate::error::{Error, Result};
use crate::graph::{Graph, Init, ParameterId, Var, name_in};
use crate::tensor::Tensor;

/// A lookup table (`torch.nn.Embedding`): parameter `weight` `[V, E]` from N(0, 1).
#[derive(Clone, Debug)]
pub struct Embedding {
    name: String,
    pub(super) weight: ParameterId,
    padding_idx: Option<usize>,
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
        let weight = init.normal(name_in(name, "weight"), &[vocabulary, dim])?;
        Ok(Self { name: name.into(), weight, padding_idx: None })
    }

    /// With the sizes and the values that the file of [`Init::from_file`] has under this name.
    ///
    /// # Errors
    /// The file has no such table; `init` has no file; the name is taken.
    pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
        let ([vocabulary, dim], _) = sizes_in_file(init, name)?;
        Self::new(init, name, vocabulary, dim)
    }

    /// [`Self::new`] with `padding_idx`: the row of this token starts at 0, and no gradient comes to it from what is looked up
    /// ([`functional::without_gradient_of_row`]).
    ///
    /// # Errors
    /// As [`Self::new`], or there is no such token.
    pub fn with_padding(
        init: &mut Init,
        name: &str,
        vocabulary: usize,
        dim: usize,
        padding_idx: usize,
    ) -> Result<Self> {
        if padding_idx >= vocabulary {
            let expected = format!("below {vocabulary}, the number of tokens");
            return Err(Error::argument("embedding", "padding_idx", expected, padding_idx));
        }
        let weight = init.normal_but_for_row(name_in(name, "weight"), [vocabulary, dim], padding_idx)?;
        Ok(Self { name: name.into(), weight, padding_idx: Some(padding_idx) })
    }

    /// `tokens` `[..]` from [`crate::Device::tokens`] to `[.., E]`.
    ///
    /// # Errors
    /// The tokens may exceed the vocabulary.
    pub fn forward(&self, g: &mut Graph, tokens: &Tensor) -> Result<Var> {
        let mut weight = g.parameter(self.weight)?;
        if let Some(row) = self.padding_idx {
            weight = functional::without_gradient_of_row(g, weight, row)?;
        }
        let y = functional::embedding(g, weight, tokens).map_err(|error| error.in_module(&self.name))?;
        g.set_name(y, &self.name);
        Ok(y)
    }
}
