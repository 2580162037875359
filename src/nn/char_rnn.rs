//! The networks that predict the next token, and that of the main job.

use serde::{Deserialize, Serialize};

use super::functional::{self, InitialState};
use super::{Cell, Embedding, Linear, Recurrent, RnnOptions, State};
use crate::device::Device;
use crate::device::gpu::WasmNotSync;
use crate::error::Result;
use crate::graph::{Graph, Init, NextToken, Var};
use crate::kernels::generate::Network;
use crate::tensor::Tensor;

/// A network that predicts the token after a sequence of tokens. It is `Sync`, but for the browser, so that the futures of a
/// [`crate::Generator`] can move between threads.
pub trait LanguageModel: WasmNotSync {
    /// The number of tokens.
    fn vocabulary(&self) -> usize;

    /// A zero state for `batch` sequences.
    ///
    /// # Errors
    /// A batch of 0.
    fn state(&self, device: &Device, batch: usize) -> Result<State>;

    /// `tokens` `[T, B]` to what the network makes of them.
    ///
    /// # Errors
    /// The shapes do not fit.
    fn hidden(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Hidden>;

    /// `[.., H]` to the logits of the next token, `[.., V]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    fn logits(&self, g: &mut Graph, hidden: Var) -> Result<Var>;

    /// `tokens` `[T, B]` to the logits of what comes after the last of them, `[1, B, V]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    fn forward(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Var> {
        let hidden = self.hidden(g, tokens, initial)?;
        self.logits(g, hidden.last)
    }

    /// `tokens` `[T, B]` to the logits of what comes after each of them, `[T, B, V]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    fn forward_every_step(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Var> {
        let hidden = self.hidden(g, tokens, initial)?;
        self.logits(g, hidden.output)
    }
}

/// What a [`LanguageModel`] makes of a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Hidden {
    /// After every token, `[T, B, H]`.
    pub output: Var,
    /// After the last one, `[1, B, H]`.
    pub last: Var,
}

/// Embedding, recurrent layers, linear layer: the tutorials' `CharRnn`, with any cell.
#[derive(Clone, Debug)]
pub struct CharRnn {
    options: CharRnnOptions,
    embedding_layer: Embedding,
    rnn: Recurrent,
    output_layer: Linear,
}

/// The sizes of a [`CharRnn`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CharRnnOptions {
    /// Tokens.
    pub vocabulary: usize,
    /// Values for each token.
    pub embedding: usize,
    /// Hidden size.
    pub hidden: usize,
    /// What happens at each step.
    pub cell: Cell,
    /// Recurrent layers.
    pub num_layers: usize,
    /// Rate of dropout between recurrent layers.
    pub dropout: f64,
}

impl CharRnnOptions {
    /// The tutorials' network of these sizes: one layer of tanh cells.
    pub const fn new(vocabulary: usize, embedding: usize, hidden: usize) -> Self {
        Self { vocabulary, embedding, hidden, cell: Cell::Tanh, num_layers: 1, dropout: 0.0 }
    }

    /// Sets the cell.
    pub fn cell(self, cell: Cell) -> Self {
        Self { cell, ..self }
    }

    /// Sets the number of recurrent layers.
    pub fn num_layers(self, num_layers: usize) -> Self {
        Self { num_layers, ..self }
    }

    /// Sets the rate of dropout between recurrent layers.
    pub fn dropout(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }
}

impl CharRnn {
    /// Embedding, recurrent layers, linear layer.
    pub fn modules(&self) -> (&Embedding, &Recurrent, &Linear) {
        (&self.embedding_layer, &self.rnn, &self.output_layer)
    }

    /// Draws the parameters `embedding_layer.*`, `rnn.*`, `output_layer.*`.
    ///
    /// # Errors
    /// A size of 0.
    pub fn new(init: &mut Init, options: CharRnnOptions) -> Result<Self> {
        let CharRnnOptions { vocabulary, embedding, hidden, cell, num_layers, dropout } = options;
        let layers = RnnOptions::new(embedding, hidden).num_layers(num_layers).dropout(dropout);
        Ok(Self {
            options,
            embedding_layer: Embedding::new(init, "embedding_layer", vocabulary, embedding)?,
            rnn: Recurrent::new(init, "rnn", cell, layers)?,
            output_layer: Linear::new(init, "output_layer", hidden, vocabulary)?,
        })
    }

    /// The sizes it was made with.
    pub fn options(&self) -> CharRnnOptions {
        self.options
    }

    /// `tokens` `[T, B]` to what stands for them, `[T, B, E]`: the first half of [`LanguageModel::hidden`].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn embed(&self, g: &mut Graph, tokens: &Tensor) -> Result<Var> {
        self.embedding_layer.forward(g, tokens)
    }

    /// What stands for tokens, `[T, B, E]`, to what the recurrent layers make of it: the second half of [`LanguageModel::hidden`].
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn hidden_of(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<Hidden> {
        let (output, end) = self.rnn.forward(g, x, initial)?;
        let last = match self.options.num_layers {
            1 => end.h,
            layers => functional::narrow(g, end.h, 0, layers - 1, 1)?,
        };
        Ok(Hidden { output, last })
    }

    /// Its parameters, for the kernel that draws many tokens.
    fn network(&self, g: &mut Graph) -> Result<Network> {
        let layers = self.rnn.parameters(g)?;
        let mut tensor = |id| g.parameter(id).and_then(|var| g.tensor(var));
        Ok(Network {
            cell: self.options.cell,
            embedding: tensor(self.embedding_layer.weight)?,
            layers,
            weight: tensor(self.output_layer.weight)?,
            bias: tensor(self.output_layer.bias.expect("a layer with a bias"))?,
        })
    }
}

impl LanguageModel for CharRnn {
    fn vocabulary(&self) -> usize {
        self.options.vocabulary
    }

    fn state(&self, device: &Device, batch: usize) -> Result<State> {
        self.rnn.state(device, batch)
    }

    fn hidden(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Hidden> {
        let x = self.embed(g, tokens)?;
        self.hidden_of(g, x, initial)
    }

    fn logits(&self, g: &mut Graph, hidden: Var) -> Result<Var> {
        self.output_layer.forward(g, hidden)
    }

    /// A [`crate::Generator`] can draw many tokens of these logits in one dispatch.
    fn forward(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> Result<Var> {
        let start = g.len();
        let hidden = self.hidden(g, tokens, initial)?;
        let logits = self.logits(g, hidden.last)?;
        if let (&[1, _], InitialState::Carried(state)) = (tokens.shape(), initial) {
            let (network, tokens) = (self.network(g)?, tokens.clone());
            let (h, c) = (state.named("h")?.clone(), state.named("c").ok().cloned());
            let commands = start..g.len();
            g.set_next_token(logits, NextToken { network, tokens, h, c, commands });
        }
        Ok(logits)
    }
}
