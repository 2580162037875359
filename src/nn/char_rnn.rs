//! The character network of the main job.

use serde::{Deserialize, Serialize};

use super::functional::InitialState;
use super::{Embedding, Init, Linear, Rnn, RnnOptions, State};
use crate::device::Device;
use crate::error::Result;
use crate::graph::{Graph, Var};
use crate::tensor::Tensor;

/// A network that predicts the token after a sequence of tokens.
pub trait LanguageModel {
    /// The number of tokens.
    fn vocabulary(&self) -> usize;

    /// A zero state for `batch` sequences.
    ///
    /// # Errors
    /// A batch of 0.
    fn state(&self, device: &Device, batch: usize) -> Result<State>;

    /// `tokens` `[T, B]` to the logits of what comes after the last of them, `[1, B, V]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    fn forward(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Var>;
}

/// Embedding, Elman network, linear layer on the last step.
#[derive(Clone, Debug)]
pub struct CharRnn {
    options: CharRnnOptions,
    embedding_layer: Embedding,
    rnn: Rnn,
    output_layer: Linear,
}

/// The sizes of a [`CharRnn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CharRnnOptions {
    /// Tokens.
    pub vocabulary: usize,
    /// Values for each token.
    pub embedding: usize,
    /// Hidden size.
    pub hidden: usize,
}

impl CharRnn {
    /// Draws the parameters `embedding_layer.*`, `rnn.*`, `output_layer.*`.
    ///
    /// # Errors
    /// A size of 0.
    pub fn new(init: &mut Init, options: CharRnnOptions) -> Result<Self> {
        let CharRnnOptions { vocabulary, embedding, hidden } = options;
        Ok(Self {
            options,
            embedding_layer: Embedding::new(init, "embedding_layer", vocabulary, embedding)?,
            rnn: Rnn::new(init, "rnn", RnnOptions::new(embedding, hidden))?,
            output_layer: Linear::new(init, "output_layer", hidden, vocabulary)?,
        })
    }

    /// The sizes it was made with.
    pub fn options(&self) -> CharRnnOptions {
        self.options
    }
}

impl LanguageModel for CharRnn {
    fn vocabulary(&self) -> usize {
        self.options.vocabulary
    }

    fn state(&self, device: &Device, batch: usize) -> Result<State> {
        self.rnn.state(device, batch)
    }

    fn forward(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Var> {
        let x = self.embedding_layer.forward(g, tokens)?;
        let out = self.rnn.forward(g, x, initial)?;
        self.output_layer.forward(g, out.h_n)
    }
}
