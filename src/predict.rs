//! Predictions: values in, values out.

use std::borrow::Borrow;

use crate::data::Array;
use crate::error::Result;
use crate::graph::{Graph, Parameters, Var};
use crate::plans::Plans;
use crate::tensor::Tensor;

/// Runs a network on values of any shape: arrays in, arrays out.
///
/// It has a plan for each shape that has come ([`Plans`]), and takes the parameters as they are when it runs: made before a
/// training, it predicts with what the training has reached. A network that carries its state ([`crate::nn::State`], whose batch
/// size is fixed) goes on where the last call ended, whatever the number of steps of each.
///
/// ```
/// use elman::data::Array;
/// use elman::nn::{Gru, Init, Linear, RnnOptions, functional::InitialState};
/// use elman::{Device, Predictor, rng};
///
/// let device = Device::cpu();
/// let mut init = Init::new(rng::manual_seed(777));
/// let gru = Gru::new(&mut init, "gru", RnnOptions::new(3, 8))?;
/// let output = Linear::new(&mut init, "output", 8, 2)?;
/// let parameters = init.upload(&device)?;
/// let state = gru.state(&device, 1)?;
/// let mut predictor = Predictor::new(&parameters, |g, [x]| {
///     let x = g.input(x)?;
///     let out = gru.forward(g, x, InitialState::Carried(&state))?;
///     Ok([output.forward(g, out.output)?])
/// });
/// let x = |steps: usize| Array::new("x", &[steps, 1, 3], vec![0.5; 3 * steps]);
/// let [whole] = predictor.run(&[x(5)?])?; // [5, 1, 2]
/// state.zero()?;
/// predictor.run(&[x(4)?])?;
/// let [fifth] = predictor.run(&[x(1)?])?;
/// assert_eq!(fifth.values(), &whole.values()[8..]);
/// # Ok::<(), elman::Error>(())
/// ```
pub struct Predictor<'a, const N: usize, const M: usize> {
    plans: Plans<'a, N, [Var; M]>,
}

impl<'a, const N: usize, const M: usize> Predictor<'a, N, M> {
    /// `build` records the network for one shape; it is called when the first batch of a shape comes, and again
    /// where a plan had to go.
    pub fn new(
        parameters: &Parameters,
        build: impl Fn(&mut Graph, &[Tensor; N]) -> Result<[Var; M]> + Send + 'a,
    ) -> Self {
        Self { plans: Plans::new(parameters, build) }
    }

    /// The network's values for these, arrays or references to such. Waits for the device.
    ///
    /// # Errors
    /// Values outside their bounds; whatever `build` refuses, for a new shape; the device failed.
    pub fn run(&mut self, batch: &[impl Borrow<Array>; N]) -> Result<[Array; M]> {
        pollster::block_on(self.run_async(batch))
    }

    /// [`Self::run`] without blocking.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_async(&mut self, batch: &[impl Borrow<Array>; N]) -> Result<[Array; M]> {
        let tensors = |g: &mut Graph, values: [Var; M]| values.into_iter().map(|value| g.tensor(value)).collect();
        let kept = self.plans.load(batch.each_ref().map(Borrow::borrow), Graph::inference, tensors).await?;
        kept.plan.run()?;
        let mut arrays = Vec::new();
        for tensor in &kept.results {
            arrays.push(Array::read(tensor).await?);
        }
        Ok(arrays.try_into().expect("as many arrays as tensors"))
    }

    /// The plans, one for each shape that has come.
    pub fn plans(&self) -> &Plans<'a, N, [Var; M]> {
        &self.plans
    }

    /// [`Self::plans`], to say how much memory they may hold.
    pub fn plans_mut(&mut self) -> &mut Plans<'a, N, [Var; M]> {
        &mut self.plans
    }
}
