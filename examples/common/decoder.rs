//! A decoder: from an initial hidden state to a sequence of tokens, which it ends itself.

use elman::data::Array;
use elman::nn::functional::InitialState;
use elman::nn::{Embedding, Gru, Init, Linear, Parameters, RnnOptions};
use elman::{Graph, Predictor, Tensor, Var};

/// Comes after a sequence that is shorter than others.
const PAD: u32 = 0;
/// The first input.
const START: u32 = 1;
/// The last target.
const END: u32 = 2;

/// Embedding, GRU, linear layer.
pub struct Decoder {
    embedding: Embedding,
    gru: Gru,
    output: Linear,
    vocabulary: usize,
}

impl Decoder {
    pub fn new(init: &mut Init, vocabulary: usize, embedding: usize, hidden: usize) -> elman::Result<Self> {
        Ok(Self {
            embedding: Embedding::new(init, "decoder.embedding", vocabulary, embedding)?,
            gru: Gru::new(init, "decoder.gru", RnnOptions::new(embedding, hidden))?,
            output: Linear::new(init, "decoder.output", hidden, vocabulary)?,
            vocabulary,
        })
    }

    /// `tokens` `[T, B]` from the state `[1, B, H]`: the logits of what comes after each, `[T, B, V]`, and the state then.
    pub fn forward(&self, g: &mut Graph, tokens: &Tensor, h: Var) -> elman::Result<[Var; 2]> {
        let x = self.embedding.forward(g, tokens)?;
        let out = self.gru.forward(g, x, InitialState::Given(h.into()))?;
        Ok([self.output.forward(g, out.output)?, out.h_n])
    }

    /// Teacher forcing: the decoder reads the right sequence from START on and has to say what comes next, to END. The
    /// tokens and the targets, `[T, B]`.
    pub fn lesson(&self, sequences: &[Vec<u32>]) -> elman::Result<[Array; 2]> {
        let input = sequences.iter().map(|sequence| [&[START], &sequence[..]].concat());
        let target = sequences.iter().map(|sequence| [&sequence[..], &[END]].concat());
        Ok([
            Array::pad_tokens("input", input, PAD, self.vocabulary)?,
            Array::pad_targets("target", target, self.vocabulary)?,
        ])
    }

    /// Decodes greedily, all sequences at once, from the state `[1, B, H]`: the most likely token of each step is the
    /// input of the next. The sequences, without END; one that has not ended after `longest` tokens is cut after one more.
    pub fn greedy(&self, parameters: &Parameters, mut h: Array, longest: usize) -> elman::Result<Vec<Vec<u32>>> {
        let mut step = Predictor::new(parameters, |g, [tokens, h]| {
            let h = g.input(h)?;
            self.forward(g, tokens, h)
        });
        let mut tokens = vec![START; h.shape()[1]];
        let mut sequences = vec![Vec::new(); tokens.len()];
        for _ in 0..=longest {
            let input = Array::tokens("input", &[1, tokens.len()], tokens, self.vocabulary)?;
            let [logits, next] = step.run(&[input, h])?;
            (tokens, h) = (logits.argmax(), next);
            sequences.iter_mut().zip(&tokens).for_each(|(sequence, &token)| sequence.push(token));
        }
        let until_end = |sequence: Vec<u32>| sequence.into_iter().take_while(|&token| token != END).collect();
        Ok(sequences.into_iter().map(until_end).collect())
    }
}
