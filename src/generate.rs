//! Text from a trained network: the next token is drawn on the device and fed back there.

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernels::sample::{self, Draw};
use crate::nn::functional::InitialState;
use crate::nn::{LanguageModel, Parameters, State};
use crate::plan::Plan;
use crate::tensor::{DType, Tensor};

/// Tokens drawn between reads: one submission, one read.
const RING: usize = 64;

/// Draws one token at a time with the hidden state carried. Its state is its own: training goes on undisturbed.
pub struct Generator {
    /// What depends on the parameters alone: run once for each text, or piece of one.
    constants: Plan,
    plan: Plan,
    state: State,
    lanes: Lanes,
    /// Tokens drawn on each lane since it was primed: what `counter` is on the device.
    drawn: usize,
}

/// The tensors of the draw.
struct Lanes {
    tokens: Tensor,
    temperature: Tensor,
    seed: Tensor,
    counter: Tensor,
    ring: Tensor,
}

impl Lanes {
    fn new(parameters: &Parameters, lanes: usize, ring: usize, vocabulary: usize) -> Result<Self> {
        let device = parameters.device();
        Ok(Self {
            tokens: device.tokens("tokens", &[1, lanes], vocabulary)?,
            temperature: device.zeros("temperature", &[lanes], DType::F32)?,
            seed: device.zeros("seed", &[lanes], DType::U32)?,
            counter: device.zeros("counter", &[lanes], DType::U32)?,
            ring: device.zeros("ring", &[ring, lanes], DType::U32)?,
        })
    }

    fn record(&self, g: &mut Graph, logits: &Tensor) -> Result<()> {
        let Self { tokens, temperature, seed, counter, ring } = self;
        sample::sample(g, Draw { logits, temperature, seed, counter, tokens, ring })
    }
}

impl Generator {
    /// A generator of `lanes` texts at once, greedy (temperature 0) until told otherwise.
    ///
    /// # Errors
    /// No lanes, or more than the device can hold.
    pub fn new(model: &dyn LanguageModel, parameters: &Parameters, lanes: usize) -> Result<Self> {
        pollster::block_on(Self::new_async(model, parameters, lanes))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(model: &dyn LanguageModel, parameters: &Parameters, lanes: usize) -> Result<Self> {
        let state = model.state(parameters.device(), lanes)?;
        let draw = Lanes::new(parameters, lanes, RING, model.vocabulary())?;
        let mut g = Graph::inference(parameters);
        g.set_repeated();
        let logits = model.forward(&mut g, &draw.tokens, InitialState::Carried(&state))?;
        let logits = g.tensor(logits)?;
        draw.record(&mut g, &logits)?;
        let (constants, plan) = g.finish_in_two_async().await?;
        Ok(Self { constants, plan, state, lanes: draw, drawn: 0 })
    }

    /// How bold the draws are: 0 takes the most likely token, 1 draws from the network's distribution.
    ///
    /// # Errors
    /// Negative or not finite.
    pub fn set_temperature(&mut self, temperature: f32) -> Result<()> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::argument("Generator", "temperature", "finite, 0 or above", temperature));
        }
        self.lanes.temperature.write(&vec![temperature; self.lanes.temperature.len()])
    }

    /// The seed of the draws; each lane has draws of its own all the same.
    ///
    /// # Errors
    /// The device failed.
    pub fn set_seed(&mut self, seed: u32) -> Result<()> {
        self.lanes.seed.write_u32(&vec![seed; self.lanes.seed.len()])
    }

    /// Forgets everything, then reads a prompt on every lane.
    ///
    /// # Errors
    /// An empty prompt, or a token outside the vocabulary.
    pub fn prime(&mut self, prompt: &[u32]) -> Result<()> {
        let Some((&last, before)) = prompt.split_last() else {
            return Err(Error::argument("Generator", "prompt", "at least one token", "empty"));
        };
        let lanes = self.lanes.tokens.len();
        let vocabulary = self.lanes.tokens.vocabulary().unwrap_or(0);
        if let Some(position) = prompt.iter().position(|&token| token as usize >= vocabulary) {
            return Err(Error::Token { token: prompt[position], position, vocabulary });
        }
        self.state.zero()?;
        let mut first = Some(&self.constants);
        for &token in before {
            self.lanes.tokens.write_u32(&vec![token; lanes])?;
            self.plan.run_after(first.take(), 1)?;
        }
        self.lanes.tokens.write_u32(&vec![last; lanes])?;
        self.drawn = 0;
        self.lanes.counter.write_u32(&vec![0; lanes])
    }

    /// Draws `length` tokens on every lane, handing each chunk to `each` as it comes: the tokens of all lanes, step by
    /// step. `each` returns whether to go on.
    ///
    /// # Errors
    /// The device failed.
    pub fn generate(&mut self, length: usize, each: impl FnMut(&[u32]) -> bool) -> Result<()> {
        pollster::block_on(self.generate_async(length, each))
    }

    /// [`Self::generate`] without blocking.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn generate_async(&mut self, length: usize, mut each: impl FnMut(&[u32]) -> bool) -> Result<()> {
        let lanes = self.lanes.tokens.len();
        let mut left = length;
        let mut first = Some(&self.constants);
        while left > 0 {
            let steps = left.min(RING);
            self.plan.run_after(first.take(), steps)?;
            let ring = self.lanes.ring.to_vec_u32_async().await?;
            let drawn = (self.drawn..self.drawn + steps).flat_map(|step| &ring[step % RING * lanes..][..lanes]);
            self.drawn += steps;
            left -= steps;
            if !each(&drawn.copied().collect::<Vec<_>>()) {
                break;
            }
        }
        Ok(())
    }

    /// The plan of one step. What depends on the parameters alone is not in it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// The tutorials' `get_next`: the most likely token after a window, from a zero state each time.
pub struct SlidingWindow {
    plan: Plan,
    window: Tensor,
    lanes: Lanes,
}

impl SlidingWindow {
    /// For windows of `window` tokens.
    ///
    /// # Errors
    /// A window of 0.
    pub fn new(model: &dyn LanguageModel, parameters: &Parameters, window: usize) -> Result<Self> {
        pollster::block_on(Self::new_async(model, parameters, window))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(model: &dyn LanguageModel, parameters: &Parameters, window: usize) -> Result<Self> {
        let tokens = parameters.device().tokens("window", &[window, 1], model.vocabulary())?;
        let lanes = Lanes::new(parameters, 1, 1, model.vocabulary())?;
        let mut g = Graph::inference(parameters);
        let logits = model.forward(&mut g, &tokens, InitialState::Zero)?;
        let logits = g.tensor(logits)?;
        lanes.record(&mut g, &logits)?;
        Ok(Self { plan: g.finish_async().await?, window: tokens, lanes })
    }

    /// The most likely token after these.
    ///
    /// # Errors
    /// Not as many tokens as the window has, or one outside the vocabulary.
    pub fn next(&mut self, tokens: &[u32]) -> Result<u32> {
        pollster::block_on(self.next_async(tokens))
    }

    /// [`Self::next`] without blocking.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn next_async(&mut self, tokens: &[u32]) -> Result<u32> {
        self.window.write_u32(tokens)?;
        self.plan.run()?;
        Ok(self.lanes.ring.to_vec_u32_async().await?[0])
    }

    /// `get_next_n`: the tokens given, and `n` more, each predicted from the latest window.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn extend(&mut self, tokens: &[u32], n: usize) -> Result<Vec<u32>> {
        let mut all = tokens.to_vec();
        for _ in 0..n {
            let next = self.next(&all[all.len() - tokens.len()..])?;
            all.push(next);
        }
        Ok(all)
    }
}
