//! A decoder: from an initial hidden state to a sequence of tokens, which it ends itself.

use elman::nn::functional::InitialState;
use elman::nn::{Embedding, Gru, Init, Linear, Parameters, RnnOptions};
use elman::{Device, Graph, Plan, Tensor, Var};

use super::argmax;

/// Comes after a sequence that is shorter than others; no loss counts it.
pub const PAD: u32 = 0;
/// The first input.
pub const START: u32 = 1;
/// The last target.
pub const END: u32 = 2;

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

    /// `tokens` `[T, B]` to the logits of what comes after each of them, `[T, B, V]`; the state is `[1, B, H]`.
    pub fn forward(&self, g: &mut Graph, tokens: &Tensor, initial: InitialState<'_>) -> elman::Result<Var> {
        let x = self.embedding.forward(g, tokens)?;
        let out = self.gru.forward(g, x, initial)?;
        self.output.forward(g, out.output)
    }
}

/// Teacher forcing: the decoder reads the right sequence from START on and has to say what comes next, to END.
pub struct Teacher {
    /// `[T, B]`
    pub input: Tensor,
    /// `[T, B]`
    pub target: Tensor,
}

impl Teacher {
    /// For `batch` sequences of up to `longest` tokens.
    pub fn new(device: &Device, longest: usize, batch: usize, vocabulary: usize) -> elman::Result<Self> {
        let shape = [longest + 1, batch];
        let input = device.tokens("input", &shape, vocabulary)?;
        Ok(Self { input, target: device.targets("target", &shape, vocabulary)? })
    }

    pub fn write(&self, sequences: &[Vec<u32>]) -> elman::Result<()> {
        let steps = self.input.shape()[0];
        let inputs: Vec<_> = sequences.iter().map(|sequence| [&[START], &sequence[..]].concat()).collect();
        let targets: Vec<_> = sequences.iter().map(|sequence| [&sequence[..], &[END]].concat()).collect();
        self.input.write_u32(&time_major(&inputs, steps))?;
        self.target.write_u32(&time_major(&targets, steps))
    }
}

/// Sequences as `[T, B]`, padded.
pub fn time_major(sequences: &[Vec<u32>], steps: usize) -> Vec<u32> {
    let at = |t| sequences.iter().map(move |sequence| sequence.get(t).copied().unwrap_or(PAD));
    (0..steps).flat_map(at).collect()
}

/// Decodes greedily, several sequences at once: the most likely token of each step is the input of the next.
pub struct Greedy {
    encoder: Plan,
    step: Plan,
    /// `[1, B]`
    token: Tensor,
    /// `[1, B, V]`
    logits: Tensor,
}

impl Greedy {
    /// For `batch` sequences; `encode` records the encoder and returns the decoder's initial state, `[1, B, H]`.
    pub fn new(
        parameters: &Parameters,
        decoder: &Decoder,
        batch: usize,
        encode: impl FnOnce(&mut Graph) -> elman::Result<Var>,
    ) -> elman::Result<Self> {
        let device = parameters.device();
        let state = decoder.gru.state(device, batch)?;
        let mut g = Graph::inference(parameters);
        let h = encode(&mut g)?;
        state.set(&mut g, "h", h)?;
        let encoder = g.finish()?;

        let token = device.tokens("token", &[1, batch], decoder.vocabulary)?;
        let mut g = Graph::inference(parameters);
        let logits = decoder.forward(&mut g, &token, InitialState::Carried(&state))?;
        let logits = g.tensor(logits)?;
        Ok(Self { encoder, step: g.finish()?, token, logits })
    }

    /// The sequences, without END; one that has not ended after `longest` tokens is cut after one more.
    pub fn decode(&self, longest: usize) -> elman::Result<Vec<Vec<u32>>> {
        let batch = self.token.len();
        let mut sequences = vec![Vec::new(); batch];
        let mut tokens = vec![START; batch];
        self.encoder.run()?;
        for _ in 0..=longest {
            self.token.write_u32(&tokens)?;
            self.step.run()?;
            let logits = self.logits.to_vec()?;
            let next: Vec<_> = logits.chunks(logits.len() / batch).map(|row| argmax(row) as u32).collect();
            for ((sequence, token), next) in sequences.iter_mut().zip(&mut tokens).zip(next) {
                // What has ended stays so.
                *token = if *token == END { END } else { next };
                if *token != END {
                    sequence.push(*token);
                }
            }
        }
        Ok(sequences)
    }
}
