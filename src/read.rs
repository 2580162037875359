//! A text, read token by token: what a network makes of each.

use crate::error::{Error, Result};
use crate::graph::{Graph, Parameters};
use crate::nn::functional::InitialState;
use crate::nn::{LanguageModel, Snapshot, State};
use crate::plan::{Plan, Recorder};
use crate::tensor::{DType, Tensor};

/// How many tokens a plan reads: of the plans, each is taken as often as what is left has so many.
const SIZES: [usize; 3] = [MOST, 8, 1];

/// The most tokens in one submission and one read.
const MOST: usize = 64;

/// Reads a text with the state carried, and says what the network makes of it: the logits of what comes next, and the state, after
/// each token. Its state is its own.
///
/// What it knows after each of the latest tokens stays on the device, so that it can go back there without reading again
/// ([`Self::rewind`]), and a [`crate::Generator`] can go on from where it stands ([`crate::Generator::go_on_from`]).
///
/// ```
/// use elman::nn::{CharRnn, CharRnnOptions, Init};
/// use elman::{Device, Reader, rng};
///
/// let mut init = Init::new(rng::manual_seed(777));
/// let model = CharRnn::new(&mut init, CharRnnOptions::new(10, 4, 8))?;
/// let parameters = init.upload(&Device::cpu())?;
/// let mut reader = Reader::new(&model, &parameters, 1000)?;
/// let logits = reader.read(&[1, 2, 3])?; // [3, 10]
/// reader.rewind(2)?;
/// assert_eq!(reader.logits()?, logits[10..20]);
/// let reading = reader.read_with_states(&[3])?;
/// assert_eq!((&reading.logits[..], reading.states["h"].len()), (&logits[20..], 8));
/// # Ok::<(), elman::Error>(())
/// ```
pub struct Reader {
    /// What depends on the parameters alone.
    constants: Plan,
    /// For each of [`SIZES`].
    plans: Vec<(usize, Plan)>,
    /// What the plans read.
    tokens: Tensor,
    /// What they leave, after each of these tokens.
    latest: Slots,
    /// After the last token.
    state: State,
    /// What is known after the q-th token of the text is in slot q - 1, modulo their number.
    kept: Slots,
    text: Vec<u32>,
    /// The first q whose slot has not been taken by another.
    oldest: usize,
}

/// What a network makes of tokens, after each of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Of the next token, `[tokens, V]`.
    pub logits: Vec<f32>,
    /// By name (`h`; an LSTM has `c` too), each `[tokens, L, H]`.
    pub states: Snapshot,
}

/// States, each an entry of the batch, and logits `[slots, V]`.
struct Slots {
    states: State,
    logits: Tensor,
}

impl Slots {
    fn new(model: &dyn LanguageModel, parameters: &Parameters, slots: usize) -> Result<Self> {
        let device = parameters.device();
        let logits = device.zeros("logits", &[slots, model.vocabulary()], DType::F32)?;
        Ok(Self { states: model.state(device, slots)?, logits })
    }

    fn len(&self) -> usize {
        self.logits.shape()[0]
    }

    fn logits(&self, start: usize, count: usize) -> Tensor {
        let vocabulary = self.logits.shape()[1];
        self.logits.view("logits", start * vocabulary, &[count, vocabulary])
    }

    /// Where so many slots lie that come after `before` others in a ring: up to its end, and from its beginning on.
    fn pieces(&self, before: usize, count: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let start = before % self.len();
        let up_to_end = count.min(self.len() - start);
        [(start, up_to_end), (0, count - up_to_end)].into_iter().filter(|&(_, count)| count > 0)
    }
}

impl Reader {
    /// A reader at the beginning of a text. It can take back at least `kept` tokens without reading again.
    ///
    /// # Errors
    /// The device cannot hold what is kept after so many tokens.
    pub fn new(model: &dyn LanguageModel, parameters: &Parameters, kept: usize) -> Result<Self> {
        pollster::block_on(Self::new_async(model, parameters, kept))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(model: &dyn LanguageModel, parameters: &Parameters, kept: usize) -> Result<Self> {
        let (device, vocabulary) = (parameters.device(), model.vocabulary());
        // Beside the first that is taken back, the one before it, which a generator goes on from.
        let slots = kept.saturating_add(2).checked_next_multiple_of(MOST).unwrap_or(usize::MAX);
        let [latest, kept] = [MOST, slots].map(|slots| Slots::new(model, parameters, slots));
        let (latest, kept, state) = (latest?, kept?, model.state(device, 1)?);
        let tokens = device.tokens("tokens", &[MOST], vocabulary)?;
        let token = device.tokens("token", &[1, 1], vocabulary)?;
        let mut g = Graph::inference(parameters);
        g.set_repeated();
        let logits = model.forward(&mut g, &token, InitialState::Carried(&state))?;
        let logits = g.tensor(logits)?;
        let (constants, step) = g.split(parameters);
        let constants = constants.finish_async().await?;
        let mut plans = Vec::new();
        for size in SIZES {
            let mut r = Recorder::new(device);
            for i in 0..size {
                r.copy(&tokens.view("tokens", i, &[1]), &token)?;
                r.extend(&step);
                latest.states.record_copy(&mut r, i, &state, 0, 1)?;
                r.copy(&logits, &latest.logits(i, 1))?;
            }
            plans.push((size, r.finish_async().await?));
        }
        Ok(Self { constants, plans, tokens, latest, state, kept, text: Vec::new(), oldest: 1 })
    }

    /// Reads on. Gives the logits of what comes after each of these tokens, `[tokens, V]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, of which nothing is read then, or the device failed.
    pub fn read(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        pollster::block_on(self.read_async(tokens))
    }

    /// [`Self::read`] without blocking.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_async(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.start(tokens)?;
        let mut logits = Vec::new();
        for tokens in tokens.chunks(MOST) {
            self.advance(tokens)?;
            self.add_logits(tokens.len(), &mut logits).await?;
        }
        Ok(logits)
    }

    /// Reads on. Gives the logits and the states after each of these tokens.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_with_states(&mut self, tokens: &[u32]) -> Result<Reading> {
        pollster::block_on(self.read_with_states_async(tokens))
    }

    /// [`Self::read_with_states`] without blocking.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_with_states_async(&mut self, tokens: &[u32]) -> Result<Reading> {
        self.start(tokens)?;
        let names = self.state.iter().map(|(name, _)| (name.to_owned(), Vec::new()));
        let mut reading = Reading { logits: Vec::new(), states: names.collect() };
        let gathered = self.latest.states.zeros_like(None)?;
        for tokens in tokens.chunks(MOST) {
            self.advance(tokens)?;
            self.add_logits(tokens.len(), &mut reading.logits).await?;
            let (mut r, mut row) = (Recorder::new(self.tokens.device()), 0);
            for (start, count) in self.kept.pieces(self.text.len() - tokens.len(), tokens.len()) {
                gathered.record_copy(&mut r, row, &self.kept.states, start, count)?;
                row += count;
            }
            r.finish_async().await?.run()?;
            let saved = gathered.save_async().await?;
            for ((name, tensor), all) in self.state.iter().zip(reading.states.values_mut()) {
                // From [L, MOST, H].
                let hidden = tensor.rows_and_columns().1;
                for token in 0..tokens.len() {
                    let layers = saved[name].chunks(MOST * hidden);
                    all.extend(layers.flat_map(|layer| &layer[token * hidden..][..hidden]));
                }
            }
        }
        Ok(reading)
    }

    /// Reads on, and tells nothing.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn skip(&mut self, tokens: &[u32]) -> Result<()> {
        self.start(tokens)?;
        self.advance(tokens)
    }

    /// The logits of what comes after all that was read, `[V]`.
    ///
    /// # Errors
    /// Nothing was read, or the device failed.
    pub fn logits(&self) -> Result<Vec<f32>> {
        pollster::block_on(self.logits_async())
    }

    /// [`Self::logits`] without blocking.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub async fn logits_async(&self) -> Result<Vec<f32>> {
        if self.text.is_empty() {
            return Err(Error::argument("Reader", "text", "at least one token", "empty"));
        }
        let mut logits = Vec::new();
        self.add_logits(1, &mut logits).await?;
        Ok(logits)
    }

    /// Goes back to where so many tokens had been read: at once if what was known there is still kept, and by reading from the
    /// beginning if not, with the parameters as they are now.
    ///
    /// # Errors
    /// Fewer tokens have been read, or the device failed.
    pub fn rewind(&mut self, to: usize) -> Result<()> {
        if to > self.text.len() {
            let expected = format!("at most {}, the tokens read", self.text.len());
            return Err(Error::argument("Reader", "to", expected, to));
        }
        let is_kept = |to: usize| to == 0 || to >= self.oldest;
        if to > 0 && is_kept(to) && is_kept(to - 1) {
            self.copy_state(to, &self.state, 0)?;
            self.text.truncate(to);
            return Ok(());
        }
        let text = std::mem::take(&mut self.text);
        self.oldest = 1;
        self.state.zero()?;
        self.skip(&text[..to])
    }

    /// All that was read.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.kept.logits.shape()[1]
    }

    /// Copies the state after so many tokens, that before the last one or later.
    pub(crate) fn copy_state(&self, after: usize, to: &State, row: usize) -> Result<()> {
        match after {
            0 => to.zero_row(row),
            _ => to.copy_row(row, &self.kept.states, (after - 1) % self.kept.len()),
        }
    }

    /// Checks tokens, and makes what depends on the parameters.
    fn start(&self, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.vocabulary();
        if let Some(position) = tokens.iter().position(|&token| token as usize >= vocabulary) {
            return Err(Error::Token { token: tokens[position], position, tensor: "tokens".into(), vocabulary });
        }
        if tokens.is_empty() { Ok(()) } else { self.constants.run() }
    }

    /// Reads tokens, and keeps what is known after each.
    fn advance(&mut self, mut tokens: &[u32]) -> Result<()> {
        while let Some((size, plan)) = self.plans.iter().find(|(size, _)| *size <= tokens.len()) {
            let (now, later) = tokens.split_at(*size);
            self.tokens.view("tokens", 0, &[*size]).write_u32(now)?;
            let (mut keep, mut row) = (Recorder::new(self.tokens.device()), 0);
            for (start, count) in self.kept.pieces(self.text.len(), *size) {
                self.kept.states.record_copy(&mut keep, start, &self.latest.states, row, count)?;
                keep.copy(&self.latest.logits(row, count), &self.kept.logits(start, count))?;
                row += count;
            }
            keep.finish()?.run_after(Some(plan), 1)?;
            self.text.extend(now);
            self.oldest = self.oldest.max((self.text.len() + 1).saturating_sub(self.kept.len()));
            tokens = later;
        }
        Ok(())
    }

    /// Those after each of the latest tokens, of so many.
    async fn add_logits(&self, count: usize, all: &mut Vec<f32>) -> Result<()> {
        for (start, count) in self.kept.pieces(self.text.len() - count, count) {
            all.extend(self.kept.logits(start, count).to_vec_async().await?);
        }
        Ok(())
    }
}
