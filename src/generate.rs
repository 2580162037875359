//! Text from a trained network: the next token is drawn on the device and fed back there.

use std::time::Instant;

use crate::device::Device;
use crate::device::WORKGROUP_BYTES;
use crate::error::{Error, Result};
use crate::graph::{Graph, NextToken, Parameters};
use crate::kernels::generate::generate;
use crate::kernels::sample::{Draw, FIRST_PLACE, MOST_TURNS_OF_A_DRAW, sample, turns_of_a_draw};
use crate::nn::functional::InitialState;
use crate::nn::{LanguageModel, Snapshot, State};
use crate::plan::{Plan, Recorder};
use crate::read::Reader;
use crate::tensor::{DType, NO_TARGET, Tensor};

/// The most tokens drawn between reads: one submission, one read.
const RING: usize = 64;

/// The most lanes that are drawn in one dispatch. Each is a workgroup that reads all weights by itself: so many run at the
/// same time even on a small GPU, while the chain's products share the weights between lanes.
const MOST_LANES: usize = 16;

/// The same on a software driver, which runs them one after the other (lavapipe, W4: 1.1 ms a token and lane, the chain
/// 5.6 ms for one lane and 7.2 ms for 16).
const MOST_LANES_OF_SOFTWARE: usize = 4;

/// How long a submission may take: a system resets a device that one has kept busy for too long, Windows after 2 s.
const SUBMISSION_SECONDS: f64 = 0.5;

/// Bytes and operations a second, together, before anything is measured: few for the slowest adapter.
const SLOWEST: f64 = 1e9;

/// The tokens of a submission, if each takes so long.
fn tokens_at_once(seconds: f64) -> usize {
    ((SUBMISSION_SECONDS / seconds) as usize).clamp(1, RING)
}

/// Draws tokens with the hidden state carried. Its state is its own: training goes on undisturbed.
///
/// Each of its lanes is a text of its own: with a prompt ([`Self::prime_lanes`]) and settings ([`Self::set_sampling_of_lanes`]) of its
/// own, it can be saved and put back, which rewinds it, forked, or begun where a [`Reader`] stands, while the others stay where they are.
///
/// ```
/// use elman::generate::Sampling;
/// use elman::nn::{CharRnn, CharRnnOptions, Init};
/// use elman::{Device, Generator, rng};
///
/// let mut init = Init::new(rng::manual_seed(777));
/// let model = CharRnn::new(&mut init, CharRnnOptions::new(10, 4, 8))?;
/// let parameters = init.upload(&Device::cpu())?;
/// let mut generator = Generator::new(&model, &parameters, 2)?;
/// generator.set_sampling(Sampling { temperature: 1.0, seed: 1, draws_of: Some(0), ..Sampling::default() })?;
/// generator.prime_lanes(&[vec![1, 2, 3], vec![4]])?;
/// let start = generator.save_lane(0)?;
/// let mut text = |generator: &mut Generator| -> elman::Result<Vec<u32>> {
///     let mut text = Vec::new();
///     generator.generate(20, |tokens| {
///         text.extend_from_slice(tokens);
///         true
///     })?;
///     Ok(text)
/// };
/// let first: Vec<u32> = text(&mut generator)?.into_iter().step_by(2).collect();
/// generator.restore_lane(0, &start)?;
/// generator.fork_lane(0, 1)?; // and with the draws of the same lane it writes the same
/// let both = text(&mut generator)?;
/// assert!(both.chunks(2).zip(&first).all(|(pair, &token)| pair == [token, token]));
/// # Ok::<(), elman::Error>(())
/// ```
pub struct Generator {
    /// What depends on the parameters alone: run once for each text, or piece of one.
    constants: Plan,
    plan: Plan,
    /// Many tokens in one dispatch, and how many, where that is possible.
    chunk: Option<(Plan, usize)>,
    /// For a token of every lane: estimated, then measured.
    seconds: f64,
    state: State,
    lanes: Lanes,
    /// Tokens drawn on each lane since it was primed: what is first in `history` on the device.
    drawn: Vec<usize>,
    /// The stop token of each lane.
    stops: Vec<Option<u32>>,
}

/// A lane's text at one time, on the host: the state, the last token, how many were drawn, and where each token was last. How its
/// tokens are drawn is not in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    state: Snapshot,
    token: u32,
    drawn: usize,
    places: Vec<u32>,
}

/// How a lane's tokens are drawn.
///
/// ```
/// use elman::generate::Sampling;
///
/// let bold = Sampling { temperature: 1.2, min_p: Some(0.05), repeat_penalty: 1.1, seed: 3, ..Sampling::default() };
/// assert_eq!(Sampling::default().temperature, 0.0); // greedy
/// # let _ = bold;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// How bold the draws are: 0 takes the most likely token, 1 draws from the network's distribution.
    pub temperature: f32,
    /// Draws among so many of the most likely tokens, and those as likely as the last of them.
    pub top_k: Option<usize>,
    /// Draws among the fewest of the most likely tokens that have this share of the probability (nucleus sampling,
    /// Holtzman et al. 2020), after `top_k`.
    pub top_p: Option<f32>,
    /// Draws among the tokens that are, at this temperature, at least so many times as likely as the most likely one (Nguyen et al.
    /// 2024), after `top_k` and `top_p`.
    pub min_p: Option<f32>,
    /// The logit of a token that was read or drawn lately is divided by it if it is above 0, and multiplied by it if not (Keskar et al.
    /// 2019), also where the most likely token is taken: 1 changes nothing, more makes repetitions less likely.
    pub repeat_penalty: f32,
    /// How many of the latest tokens, prompt included, `repeat_penalty` is for; `usize::MAX`: all.
    pub repeat_last_n: usize,
    /// The seed of the draws; each lane has draws of its own all the same.
    pub seed: u32,
    /// The lane whose draws these are: if it is not this one, a fork of that, or a text in another generator, goes on as that lane does.
    pub draws_of: Option<u32>,
    /// The token that ends the text: a lane that has drawn it draws nothing else.
    pub stop: Option<u32>,
    /// A token that is never drawn: the padding of a [`crate::text::Vocabulary`], say, which no text has.
    pub never: Option<u32>,
}

impl Default for Sampling {
    /// Greedy, without a penalty or a stop token; a penalty is for the latest 64 tokens.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
            draws_of: None,
            stop: None,
            never: None,
        }
    }
}

impl Sampling {
    fn check(&self, vocabulary: usize, is_gpu: bool) -> Result<()> {
        let refuse = |name, expected: &str, got: String| Err(Error::argument("Sampling", name, expected, got));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", "finite, 0 or above", self.temperature.to_string());
        }
        if self.top_k == Some(0) {
            return refuse("top_k", "at least 1", "0".into());
        }
        if let Some(top_p) = self.top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            return refuse("top_p", "above 0, at most 1", top_p.to_string());
        }
        if let Some(min_p) = self.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return refuse("min_p", "from 0 to 1", min_p.to_string());
        }
        if !(self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite()) {
            return refuse("repeat_penalty", "finite, above 0", self.repeat_penalty.to_string());
        }
        let bounds_share = self.top_p.is_some_and(|top_p| top_p < 1.0);
        let turns = turns_of_a_draw(vocabulary, self.top_k.is_some(), bounds_share);
        if is_gpu && turns > MOST_TURNS_OF_A_DRAW {
            let expected = "none of so many tokens on a GPU, or at most one of both; or use `--device cpu`";
            return refuse("top_k and top_p", expected, format!("a bound for {vocabulary} tokens"));
        }
        if self.never.is_some() && vocabulary == 1 {
            return refuse("never", "None, where there is one token", "that token".into());
        }
        for (name, token) in [("stop", self.stop), ("never", self.never)] {
            if let Some(token) = token.filter(|&token| token as usize >= vocabulary) {
                return refuse(name, &format!("a token below {vocabulary}"), token.to_string());
            }
        }
        Ok(())
    }
}

/// The tensors of the draw.
struct Lanes {
    tokens: Tensor,
    shape: Tensor,
    control: Tensor,
    history: Tensor,
    ring: Tensor,
}

impl Lanes {
    fn new(parameters: &Parameters, lanes: usize, ring: usize, vocabulary: usize) -> Result<Self> {
        let device = parameters.device();
        Ok(Self {
            tokens: device.tokens("tokens", &[1, lanes], vocabulary)?,
            shape: device.zeros("shape of the draw", &[lanes, 4], DType::F32)?,
            control: device.zeros("control of the draw", &[lanes, 6], DType::U32)?,
            history: device.zeros("history", &[1 + vocabulary, lanes], DType::U32)?,
            ring: device.zeros("ring", &[ring, lanes], DType::U32)?,
        })
    }

    fn draw(&self) -> Draw<'_> {
        let Self { tokens, shape, control, history, ring } = self;
        Draw { shape, control, history, tokens, ring }
    }

    fn set(&self, sampling: &[Sampling]) -> Result<()> {
        let shape = sampling
            .iter()
            .flat_map(|s| [s.temperature, s.top_p.unwrap_or(1.0), s.min_p.unwrap_or(0.0), s.repeat_penalty]);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let token = |token: Option<u32>| token.unwrap_or(NO_TARGET);
        let control = sampling.iter().zip(0..).flat_map(|(s, lane)| {
            let last_n = if s.repeat_penalty == 1.0 { 0 } else { count(s.repeat_last_n) };
            [s.seed, s.draws_of.unwrap_or(lane), count(s.top_k.unwrap_or(0)), token(s.stop), token(s.never), last_n]
        });
        self.shape.write(&shape.collect::<Vec<_>>())?;
        self.control.write_u32(&control.collect::<Vec<_>>())
    }

    /// How many tokens each lane has drawn.
    fn set_drawn(&self, drawn: &[usize]) -> Result<()> {
        let drawn: Vec<_> = drawn.iter().map(|&drawn| drawn as u32).collect();
        self.history.view("draws", 0, &[drawn.len()]).write_u32(&drawn)
    }

    /// A lane's last token, and where each token was last.
    fn lane(&self, lane: usize) -> (Tensor, Tensor) {
        let vocabulary = self.history.shape()[0] - 1;
        let places = self.history.view("places", self.tokens.len() + lane * vocabulary, &[vocabulary]);
        (self.tokens.view("token", lane, &[1]), places)
    }
}

/// Where each token of a text was last, before anything is drawn.
fn places(text: &[u32], vocabulary: usize) -> Vec<u32> {
    let mut places = vec![0; vocabulary];
    for (&token, back) in text.iter().rev().zip(1..FIRST_PLACE) {
        if let Some(place @ 0) = places.get_mut(token as usize) {
            *place = FIRST_PLACE - back;
        }
    }
    places
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
        let Recorded { g, chunk, state, draw } = Recorded::new(model, parameters, lanes)?;
        let chunk = match chunk {
            Some((chunk, tokens)) => Some((chunk.finish_async().await?, tokens)),
            None => None,
        };
        let (constants, plan) = g.finish_in_two_async(parameters).await?;
        draw.set(&vec![Sampling::default(); lanes])?;
        let count = plan.count();
        let seconds = (count.bytes + count.rereads + count.flops) as f64 / SLOWEST;
        Ok(Self {
            constants,
            plan,
            chunk,
            seconds,
            state,
            lanes: draw,
            drawn: vec![0; lanes],
            stops: vec![None; lanes],
        })
    }

    /// What [`Self::new`] would make plans of, recorded and no more: what runs for a token, after what runs once for each piece of
    /// text. As [`crate::Trainer::record`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn record(model: &dyn LanguageModel, parameters: &Parameters, lanes: usize) -> Result<Recorder> {
        Ok(Recorded::new(model, parameters, lanes)?.g.into_recorder())
    }

    /// How all lanes draw their tokens.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn set_sampling(&mut self, sampling: Sampling) -> Result<()> {
        self.set_sampling_of_lanes(&vec![sampling; self.lanes.tokens.len()])
    }

    /// How each lane draws its tokens.
    ///
    /// # Errors
    /// A setting out of range, or not one for each lane.
    pub fn set_sampling_of_lanes(&mut self, sampling: &[Sampling]) -> Result<()> {
        let (lanes, vocabulary) = (self.lanes.tokens.len(), self.lanes.tokens.vocabulary().unwrap_or(0));
        if sampling.len() != lanes {
            return Err(Error::argument(
                "Generator",
                "sampling",
                format!("one for each of {lanes} lanes"),
                sampling.len(),
            ));
        }
        let is_gpu = self.plan.device().is_gpu();
        sampling.iter().try_for_each(|sampling| sampling.check(vocabulary, is_gpu))?;
        self.lanes.set(sampling)?;
        self.stops = sampling.iter().map(|sampling| sampling.stop).collect();
        Ok(())
    }

    /// Forgets everything, then reads a prompt on every lane.
    ///
    /// # Errors
    /// An empty prompt, or a token outside the vocabulary.
    pub fn prime(&mut self, prompt: &[u32]) -> Result<()> {
        self.prime_lanes(&vec![prompt; self.lanes.tokens.len()])
    }

    /// Forgets everything, then reads a prompt on each lane, of any length: the text of a lane is that of its prompt alone.
    ///
    /// # Errors
    /// Not a prompt for each lane, an empty one, or a token outside the vocabulary.
    pub fn prime_lanes(&mut self, prompts: &[impl AsRef<[u32]>]) -> Result<()> {
        let (lanes, vocabulary) = (self.lanes.tokens.len(), self.lanes.tokens.vocabulary().unwrap_or(0));
        let prompts: Vec<&[u32]> = prompts.iter().map(AsRef::as_ref).collect();
        if prompts.len() != lanes {
            let expected = format!("one for each of {lanes} lanes");
            return Err(Error::argument("Generator", "prompts", expected, prompts.len()));
        }
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(Error::argument("Generator", "prompt", "at least one token", "empty"));
            }
            if let Some(position) = prompt.iter().position(|&token| token as usize >= vocabulary) {
                return Err(Error::Token { token: prompt[position], position, tensor: "prompt".into(), vocabulary });
            }
        }
        // They end together; a lane whose prompt has not begun reads something, and starts from zeros when it has.
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let mut first = Some(&self.constants);
        self.state.zero()?;
        for step in 0..longest {
            let at = |prompt: &[u32]| (step + prompt.len()).checked_sub(longest);
            for (lane, _) in prompts.iter().enumerate().filter(|(_, prompt)| step > 0 && at(prompt) == Some(0)) {
                self.state.zero_row(lane)?;
            }
            let tokens: Vec<_> = prompts.iter().map(|prompt| at(prompt).map_or(0, |at| prompt[at])).collect();
            self.lanes.tokens.write_u32(&tokens)?;
            // The last one is read where the text begins.
            if step + 1 < longest {
                self.plan.run_after(first.take(), 1)?;
            }
        }
        self.drawn = vec![0; lanes];
        let places = prompts.iter().flat_map(|prompt| places(prompt, vocabulary));
        self.lanes.history.write_u32(&vec![0; lanes].into_iter().chain(places).collect::<Vec<_>>())
    }

    /// A lane's text as it is now: [`Self::restore_lane`] goes back to it.
    ///
    /// # Errors
    /// There is no such lane, or the device failed.
    pub fn save_lane(&self, lane: usize) -> Result<Lane> {
        pollster::block_on(self.save_lane_async(lane))
    }

    /// [`Self::save_lane`] without blocking.
    ///
    /// # Errors
    /// As [`Self::save_lane`].
    pub async fn save_lane_async(&self, lane: usize) -> Result<Lane> {
        self.check_lane(lane)?;
        let (token, places) = self.lanes.lane(lane);
        let state = self.state.zeros_like(Some(1))?;
        let words = self.device().zeros("lane", &[1 + places.len()], DType::U32)?;
        let mut r = Recorder::new(self.device());
        state.record_copy(&mut r, 0, &self.state, lane, 1)?;
        r.copy(&token, &words.view("token", 0, &[1]))?;
        r.copy(&places, &words.view("places", 1, &[places.len()]))?;
        r.finish_async().await?.run()?;
        let (state, mut places) = (state.save_async().await?, words.to_vec_u32_async().await?);
        Ok(Lane { state, token: places.remove(0), drawn: self.drawn[lane], places })
    }

    /// Puts a saved text back, on any lane of any generator of the same network; it goes on as it would have then, with the draws of
    /// this lane ([`Sampling::draws_of`]).
    ///
    /// # Errors
    /// There is no such lane, the text is of a network of other sizes, or the device failed.
    pub fn restore_lane(&mut self, lane: usize, saved: &Lane) -> Result<()> {
        self.check_lane(lane)?;
        let (token, places) = self.lanes.lane(lane);
        if saved.places.len() != places.len() {
            let expected = format!("a text of {} tokens", places.len());
            return Err(Error::argument("Generator", "saved", expected, saved.places.len()));
        }
        self.state.restore_row(lane, &saved.state)?;
        token.write_u32(&[saved.token])?;
        places.write_u32(&saved.places)?;
        self.drawn[lane] = saved.drawn;
        Ok(())
    }

    /// Makes the text of a lane that of another too, on the device. It then goes on by the settings and the draws of its own lane:
    /// as the original does if it is greedy, or has the same settings and the draws of that lane ([`Sampling::draws_of`]).
    ///
    /// # Errors
    /// There is no such lane, or the device failed.
    pub fn fork_lane(&mut self, from: usize, to: usize) -> Result<()> {
        self.check_lane(from)?;
        self.check_lane(to)?;
        if from == to {
            return Ok(());
        }
        let ((token, places), (to_token, to_places)) = (self.lanes.lane(from), self.lanes.lane(to));
        let mut r = Recorder::new(self.device());
        self.state.record_copy(&mut r, to, &self.state, from, 1)?;
        r.copy_within(&token, &to_token)?;
        r.copy_within(&places, &to_places)?;
        r.finish()?.run()?;
        self.drawn[to] = self.drawn[from];
        Ok(())
    }

    /// Begins a lane's text anew: with all that a [`Reader`] of the same network has read as its prompt, which is not read again. The
    /// reader stays as it is.
    ///
    /// # Errors
    /// There is no such lane, the reader has read nothing, its network has other sizes or is on another device, or the device failed.
    pub fn go_on_from(&mut self, lane: usize, reader: &Reader) -> Result<()> {
        self.check_lane(lane)?;
        let (token, places_of_lane) = self.lanes.lane(lane);
        if reader.vocabulary() != places_of_lane.len() {
            let expected = format!("one of {} tokens", places_of_lane.len());
            return Err(Error::argument("Generator", "reader", expected, reader.vocabulary()));
        }
        let Some((&last, before)) = reader.text().split_last() else {
            return Err(Error::argument("Generator", "reader", "one that has read something", "at the beginning"));
        };
        reader.copy_state(before.len(), &self.state, lane)?;
        token.write_u32(&[last])?;
        places_of_lane.write_u32(&places(reader.text(), places_of_lane.len()))?;
        self.drawn[lane] = 0;
        Ok(())
    }

    fn check_lane(&self, lane: usize) -> Result<()> {
        match self.drawn.len() {
            lanes if lane < lanes => Ok(()),
            lanes => Err(Error::argument("Generator", "lane", format!("below {lanes}"), lane)),
        }
    }

    fn device(&self) -> &Device {
        self.plan.device()
    }

    /// Draws `length` tokens on every lane, handing each chunk to `each` as it comes: the tokens of all lanes, step by
    /// step. `each` returns whether to go on. It ends early, after a chunk, when every lane has drawn its stop token.
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
        // Priming, a run of the plan by hand, or one whose tokens could not be read, has moved it on.
        self.lanes.set_drawn(&self.drawn)?;
        while left > 0 {
            let steps = left.min(tokens_at_once(self.seconds));
            // Not of the first, which makes the constants, and for which some drivers compile. A browser has no such clock.
            let start = (first.is_none() && !cfg!(target_arch = "wasm32")).then(Instant::now);
            let mut rest = steps;
            if let Some((chunk, tokens)) = self.chunk.as_ref().filter(|(_, tokens)| steps >= *tokens) {
                chunk.run_after(first.take(), steps / tokens)?;
                rest %= tokens;
            }
            if rest > 0 {
                self.plan.run_after(first.take(), rest)?;
            }
            let ring = self.lanes.ring.to_vec_u32_async().await?;
            if let Some(start) = start {
                self.seconds = start.elapsed().as_secs_f64() / steps as f64;
            }
            let of_lane = |step: usize, (lane, drawn): (usize, &usize)| ring[(drawn + step) % RING * lanes + lane];
            let drawn: Vec<u32> = (0..steps)
                .flat_map(|step| self.drawn.iter().enumerate().map(move |lane| of_lane(step, lane)))
                .collect();
            self.drawn.iter_mut().for_each(|drawn| *drawn += steps);
            left -= steps;
            let last = &drawn[drawn.len() - lanes..];
            let ended = last.iter().zip(&self.stops).all(|(&token, &stop)| Some(token) == stop);
            if !each(&drawn) || ended {
                break;
            }
        }
        Ok(())
    }

    /// The plan of one token. What depends on the parameters alone is not in it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// A generator's commands: for a token, and, where that is possible, for many in one dispatch, and how many.
struct Recorded {
    g: Graph,
    chunk: Option<(Graph, usize)>,
    state: State,
    draw: Lanes,
}

impl Recorded {
    fn new(model: &dyn LanguageModel, parameters: &Parameters, lanes: usize) -> Result<Self> {
        let device = parameters.device();
        let state = model.state(device, lanes)?;
        let draw = Lanes::new(parameters, lanes, RING, model.vocabulary())?;
        let mut g = Graph::inference(parameters);
        g.set_repeated();
        // Its two plans find what one of them has left in the other's runs.
        g.set_sharing(false);
        let logits = model.forward(&mut g, &draw.tokens, InitialState::Carried(&state))?;
        // The network alone, fed by the tokens drawn and the state carried.
        let is_all = |next: &&NextToken| {
            next.tokens.is(&draw.tokens) && state.is(&next.h, next.c.as_ref()) && next.commands == (0..g.len())
        };
        let known = g.next_token(logits).filter(is_all).cloned();
        let chunk = match in_one_dispatch(known, device, lanes) {
            Ok(NextToken { network, h, c, .. }) => {
                g = Graph::inference(parameters);
                let (weights, sizes, states) = (network.pack(&mut g)?, network.sizes(), (&h, c.as_ref()));
                generate(&mut g, sizes, &weights, draw.draw(), states, 1)?;
                let mut chunk = Graph::inference(parameters);
                let tokens = chunk.most_terms((sizes.turns(), 1), 1).min(RING);
                generate(&mut chunk, sizes, &weights, draw.draw(), states, tokens)?;
                g.note(format!("generation: {tokens} tokens in one dispatch, a workgroup for each of {lanes} lanes"));
                Some((chunk, tokens))
            }
            Err(needed) => {
                g.note(format!("generation: dispatches for each token; {RING} tokens in one need {needed}"));
                let logits = g.tensor(logits)?;
                sample(&mut g, &logits, draw.draw())?;
                None
            }
        };
        Ok(Self { g, chunk, state, draw })
    }
}

/// The network whose tokens can be drawn many in one dispatch, or what that would need.
fn in_one_dispatch(known: Option<NextToken>, device: &Device, lanes: usize) -> std::result::Result<NextToken, String> {
    if !device.plans_as_gpu() {
        return Err("a GPU".into());
    }
    let most = if device.is_wide() { MOST_LANES } else { MOST_LANES_OF_SOFTWARE };
    if lanes > most {
        return Err(format!("at most {most} lanes, not {lanes}"));
    }
    let known = known
        .filter(|known| known.network.cell.kind().generated.is_some())
        .ok_or("a `CharRnn`, of a cell that the kernel has")?;
    match known.network.sizes().workgroup_bytes() {
        bytes if bytes <= WORKGROUP_BYTES => Ok(known),
        bytes => Err(format!("at most {WORKGROUP_BYTES} bytes of workgroup memory, not {bytes}")),
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
        lanes.set(&[Sampling::default()])?;
        let mut g = Graph::inference(parameters);
        let logits = model.forward(&mut g, &tokens, InitialState::Zero)?;
        let logits = g.tensor(logits)?;
        sample(&mut g, &logits, lanes.draw())?;
        Ok(Self { plan: g.finish_async().await?, window: tokens, lanes })
    }

    /// Sets a token that is never drawn; see [`Sampling::never`].
    ///
    /// # Errors
    /// The device failed.
    pub fn set_never(&mut self, never: Option<u32>) -> Result<()> {
        self.lanes.set(&[Sampling { never, ..Sampling::default() }])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_keeps_to_its_time() {
        for (seconds, tokens) in [(0.0, 64), (1e-3, 64), (0.5 / 64.5, 64), (0.01, 50), (0.1, 5), (0.4, 1), (3.0, 1)] {
            assert_eq!(tokens_at_once(seconds), tokens, "{seconds} s a token");
            assert!(tokens == 1 || tokens as f64 * seconds <= SUBMISSION_SECONDS);
        }
        assert_eq!(tokens_at_once(f64::INFINITY), 1);
    }
}
