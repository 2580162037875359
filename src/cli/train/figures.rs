//! What shows how a training goes: made on the device beside it, a few times a minute, and read.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use elman::generate::{Generator, Sampling};
use elman::nn::functional::{InitialState, Reduction, concat, cross_entropy, map, mean_axis, mul, reshape, sum_axis};
use elman::nn::{CharRnn, LanguageModel as _, Parameters, State};
use elman::{Device, Graph, Plan, Tensor, Trainer};

use super::settings::Recipe;
use crate::cli::streams::Streams;
use crate::cli::text::Text;
use crate::cli::tokens::Tokens;

/// How a training goes.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub step: usize,
    pub steps: usize,
    /// Of each step: nats for each token.
    pub losses: Vec<f32>,
    /// Step and loss of each evaluation.
    pub held_out: Vec<(usize, f64)>,
    /// Step, learning rate and norm of the gradient, whenever they were looked at.
    pub gradients: Vec<(usize, f64, f64)>,
    /// Of the gradient of the last loss of a window in what was read so many tokens before: its share of the norm, 0 tokens before first.
    pub lags: Vec<f64>,
    /// The root of the mean square of the state, and the share of it that is beyond 0.9.
    pub state: Option<(f64, f64)>,
    /// Temperature and text.
    pub samples: Vec<(f32, String)>,
    pub tokens_per_second: f64,
    pub seconds_left: Option<f64>,
    pub unit: &'static str,
}

/// The temperatures of the samples.
const TEMPERATURES: [f32; 3] = [0.5, 0.8, 1.1];

/// Streams that gradients are looked at in.
const STREAMS: usize = 8;

/// Makes the figures.
pub struct Observer<'a> {
    text: &'a Text,
    tokens: Tokens,
    batch: (Tensor, Tensor),
    lags: Plan,
    squares: Tensor,
    /// Of the hidden state: the mean square, and the share beyond 0.9.
    saturation: (Plan, Tensor),
    generator: Generator,
    prompt: Vec<u32>,
    length: usize,
    last: Option<Instant>,
    every: Duration,
}

impl<'a> Observer<'a> {
    pub fn new(
        device: &Device,
        text: &'a Text,
        (network, parameters, kept): (&CharRnn, &Parameters, &Parameters),
        recipe: &Recipe,
        (prompt, state): (&[u32], &State),
        every: Duration,
    ) -> Result<Self> {
        let vocabulary = text.tokens().len();
        let (steps, batch) = (recipe.window, recipe.batch.min(STREAMS));
        let tokens = device.tokens("observed", &[steps, batch], vocabulary)?;
        let targets = device.targets("observed targets", &[1, batch], vocabulary)?;
        // The gradient of the last loss in each token's embedding: its squares, summed over the batch.
        let mut g = Graph::new(parameters);
        let embedded = network.embed(&mut g, &tokens)?;
        let embedded = g.tensor(embedded)?;
        let x = g.input_with_gradient(&embedded)?;
        let hidden = network.hidden_of(&mut g, x, InitialState::Zero)?;
        let logits = network.logits(&mut g, hidden.last)?;
        let loss = cross_entropy(&mut g, logits, &targets, Reduction::Mean)?;
        g.backward(&[&loss], &[])?;
        let gradient = g.gradient(x).context("a loss depends on what was read")?;
        let dx = g.input(&gradient)?;
        let squares = mul(&mut g, dx, dx)?;
        let width = batch * recipe.embedding;
        let squares = reshape(&mut g, squares, &[steps, width])?;
        let sums = sum_axis(&mut g, squares, 1)?;
        let squares = g.tensor(sums)?;
        let lags = g.finish()?;
        let mut g = Graph::without_parameters(device);
        let h = state.get(&mut g, "h")?;
        let units = g.shape(h).iter().product();
        let h = reshape(&mut g, h, &[units])?;
        let (square, beyond) = (map(&mut g, [h], |[h]| h.square())?, map(&mut g, [h], |[h]| h.abs().gt(0.9))?);
        let means = [mean_axis(&mut g, square, 0)?, mean_axis(&mut g, beyond, 0)?];
        let means = concat(&mut g, &means, 0)?;
        let saturation = {
            let means = g.tensor(means)?;
            (g.finish()?, means)
        };
        let mut generator = Generator::new(network, kept, TEMPERATURES.len())?;
        let of = |temperature| Sampling {
            temperature,
            seed: recipe.seed,
            never: text.tokens().never(),
            ..Sampling::default()
        };
        generator.set_sampling_of_lanes(&TEMPERATURES.map(of))?;
        Ok(Self {
            text,
            tokens: text.tokens().clone(),
            batch: (tokens, targets),
            lags,
            squares,
            saturation,
            generator,
            prompt: prompt.to_vec(),
            length: recipe.sample_length.max(1),
            last: None,
            every,
        })
    }

    /// Whether it is time to look again.
    pub fn is_due(&self) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= self.every)
    }

    /// Looks at a training that is at this step of a pass.
    pub fn look(&mut self, figures: &mut Figures, trainer: &Trainer, streams: &Streams, step: usize) -> Result<()> {
        self.last = Some(Instant::now());
        figures.gradients.push((figures.step, trainer.lr(), trainer.gradient_norm()?.into()));
        // The windows that the step is at.
        let &[steps, batch] = self.batch.0.shape() else { unreachable!("made as [T, B]") };
        let (mut tokens, mut targets) = (vec![0; steps * batch], vec![0; batch]);
        for (b, target) in targets.iter_mut().enumerate() {
            let start = streams.start_of(b, step);
            let read = self.text.read(start..start + steps + 1)?;
            (0..steps).for_each(|t| tokens[t * batch + b] = read[t]);
            *target = read[steps];
        }
        self.batch.0.write_u32(&tokens)?;
        self.batch.1.write_u32(&targets)?;
        self.lags.run()?;
        let norms: Vec<f64> = self.squares.to_vec()?.iter().rev().map(|&square| f64::from(square).sqrt()).collect();
        let sum: f64 = norms.iter().sum();
        figures.lags = norms.iter().map(|norm| if sum > 0.0 { norm / sum } else { 0.0 }).collect();
        let (plan, means) = &self.saturation;
        plan.run()?;
        let means = means.to_vec()?;
        figures.state = Some((f64::from(means[0]).sqrt(), means[1].into()));
        Ok(())
    }

    /// Writes at each temperature.
    pub fn sample(&mut self, figures: &mut Figures) -> Result<()> {
        let mut drawn = vec![Vec::new(); TEMPERATURES.len()];
        self.generator.prime(&self.prompt)?;
        self.generator.generate(self.length, |tokens| {
            for row in tokens.chunks_exact(TEMPERATURES.len()) {
                drawn.iter_mut().zip(row).for_each(|(drawn, &token)| drawn.push(token));
            }
            true
        })?;
        let texts = drawn.iter().map(|drawn| self.tokens.text(drawn));
        figures.samples = TEMPERATURES.into_iter().zip(texts).collect();
        Ok(())
    }
}

impl Figures {
    /// The smoothed losses, at most so many points: step and loss.
    pub fn curve(&self, most: usize) -> Vec<(f64, f64)> {
        let each = self.losses.len().div_ceil(most.max(1)).max(1);
        let smoothed = crate::cli::shared::run::smooth(&self.losses).enumerate();
        smoothed.filter(|(step, _)| step % each == each - 1).map(|(step, loss)| ((step + 1) as f64, loss)).collect()
    }

    pub fn loss(&self) -> Option<f64> {
        let recent = &self.losses[self.losses.len().saturating_sub(500)..];
        crate::cli::shared::run::smooth(recent).last()
    }

    /// The number of tokens back within which so much of the gradient lies.
    pub fn reach(&self, share: f64) -> usize {
        let mut sum = 0.0;
        self.lags
            .iter()
            .position(|lag| {
                sum += lag;
                sum >= share
            })
            .unwrap_or(self.lags.len())
    }
}
