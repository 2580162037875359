//! Evaluations as plans over the parameters of a training.

use std::borrow::Borrow;

use crate::data::Array;
use crate::error::{Error, Result};
use crate::graph::{Graph, Loss, Parameters};
use crate::log::{Appenders, Log, Losses};
use crate::plan::Plan;
use crate::plans::Plans;
use crate::tensor::Tensor;

/// Computes losses without touching parameters or any training state, with the parameters as they are when it runs: it is made
/// once, before training say, and used after every epoch.
///
/// * [`Evaluator::new`] has one plan, over windows that are cut from a corpus on the device, or tensors that the user fills.
/// * [`Evaluator::on_batches`] takes batches of any shape from the host, and gives the means over all of them.
pub struct Evaluator<P = Plan> {
    plan: P,
    log: Log,
}

impl Evaluator {
    /// Builds the evaluation of one batch; see [`crate::Trainer::new`].
    ///
    /// # Errors
    /// As [`crate::Trainer::new`].
    pub fn new(parameters: &Parameters, build: impl FnOnce(&mut Graph) -> Result<Loss>) -> Result<Self> {
        pollster::block_on(Self::new_async(parameters, build))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(parameters: &Parameters, build: impl FnOnce(&mut Graph) -> Result<Loss>) -> Result<Self> {
        let mut log = Log::new(parameters.device(), Appenders::One)?;
        let mut g = graph(parameters, log.clock());
        let loss = build(&mut g)?;
        log.record(&mut g, &[loss])?;
        log.set_suspects(g.suspects());
        Ok(Self { plan: g.finish_async().await?, log })
    }

    /// The losses of the first `batches` batches of the data.
    ///
    /// # Errors
    /// As [`crate::Trainer::losses`]; several batches, but the plan cuts none from a corpus and carries no state, so that all would
    /// be the one in its tensors.
    pub fn losses(&mut self, batches: usize) -> Result<Vec<f32>> {
        pollster::block_on(self.losses_async(batches))
    }

    /// [`Self::losses`] without blocking.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub async fn losses_async(&mut self, batches: usize) -> Result<Vec<f32>> {
        self.losses_by_name_async(batches).await.map(|losses| losses.total)
    }

    /// [`Self::losses`], and the terms that they are the weighted sums of.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub fn losses_by_name(&mut self, batches: usize) -> Result<Losses> {
        pollster::block_on(self.losses_by_name_async(batches))
    }

    /// [`Self::losses_by_name`] without blocking.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub async fn losses_by_name_async(&mut self, batches: usize) -> Result<Losses> {
        if batches > 1 && !self.plan.varies() {
            let expected = "1, since every run of this plan takes the same tensors: fill them before each, or hand batches to \
                            `Evaluator::on_batches`";
            return Err(Error::argument("losses", "batches", expected, batches));
        }
        self.log.restart()?;
        let mut left = batches;
        while left > 0 {
            left -= self.log.step_up_to(&self.plan, left).await?;
        }
        self.log.take().await
    }

    /// The plan of a batch.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl<'a, const N: usize, const M: usize> Evaluator<Plans<'a, N, [Loss; M]>> {
    /// An evaluation of batches of `N` arrays each, of any shape. `build` records the network and `M` losses or metrics for one
    /// shape; it is called when the first batch of a shape comes, and again where a plan had to go ([`Plans`]).
    ///
    /// ```
    /// use elman::data::Array;
    /// use elman::nn::functional::{Reduction, mse_loss};
    /// use elman::nn::{Init, Linear};
    /// use elman::{Device, Evaluator, rng};
    ///
    /// let mut init = Init::new(rng::manual_seed(777));
    /// let layer = Linear::new(&mut init, "layer", 2, 1)?;
    /// let parameters = init.upload(&Device::cpu())?;
    /// let mut evaluator = Evaluator::on_batches(&parameters, |g, [x, y]| {
    ///     let x = g.input(x)?;
    ///     let output = layer.forward(g, x)?;
    ///     Ok([mse_loss(g, output, y, Reduction::Mean)?])
    /// })?;
    /// let batch = |rows| -> elman::Result<_> {
    ///     let (x, y) = (vec![0.5; 2 * rows], vec![1.0; rows]);
    ///     Ok([Array::new("x", &[rows, 2], x)?, Array::new("y", &[rows, 1], y)?])
    /// };
    /// let [loss] = evaluator.means([batch(32)?, batch(32)?, batch(7)?])?;
    /// assert!(loss.is_finite());
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// The device failed.
    pub fn on_batches(
        parameters: &Parameters,
        build: impl Fn(&mut Graph, &[Tensor; N]) -> Result<[Loss; M]> + Send + 'a,
    ) -> Result<Self> {
        let mut log = Log::new(parameters.device(), Appenders::Many)?;
        log.set_suspects((Vec::new(), parameters.iter().map(|(_, tensor)| tensor).collect()));
        Ok(Self { plan: Plans::new(parameters, build), log })
    }

    /// The mean of each loss over all that these batches hold: batches of other sizes, and with other numbers of targets that
    /// count, weigh accordingly. Of a loss that is a sum over a batch ([`crate::nn::functional::Reduction::Sum`]), the mean over
    /// the batches.
    ///
    /// # Errors
    /// No batches; a loss that is not finite; values outside their bounds; whatever `build` refuses, for a new shape.
    pub fn means(&mut self, batches: impl IntoIterator<Item: Borrow<[Array; N]>>) -> Result<[f64; M]> {
        pollster::block_on(self.means_async(batches))
    }

    /// [`Self::means`] without blocking.
    ///
    /// # Errors
    /// As [`Self::means`].
    pub async fn means_async(&mut self, batches: impl IntoIterator<Item: Borrow<[Array; N]>>) -> Result<[f64; M]> {
        let Self { plan, log } = self;
        log.restart()?;
        for batch in batches {
            let batch = batch.borrow().each_ref();
            batch.iter().try_for_each(|array| array.check_finite())?;
            let clock = log.clock().clone();
            let record = |g: &mut Graph, losses: [Loss; M]| log.record(g, &losses).map(|_| Vec::new());
            let kept = plan.load(batch, |parameters| graph(parameters, &clock), record).await?;
            log.step_up_to(&kept.plan, 1).await?;
        }
        let means = log.take_means().await?;
        let means = means.ok_or_else(|| Error::argument("means", "batches", "at least one", "none"))?;
        Ok(means.try_into().expect("as many means as losses"))
    }

    /// The plans, one for each shape that has come.
    pub fn plans(&self) -> &Plans<'a, N, [Loss; M]> {
        &self.plan
    }

    /// [`Self::plans`], to say how much memory they may hold.
    pub fn plans_mut(&mut self) -> &mut Plans<'a, N, [Loss; M]> {
        &mut self.plan
    }
}

/// A graph without gradients, of which a log's clock counts the runs.
fn graph(parameters: &Parameters, clock: &Tensor) -> Graph {
    let mut g = Graph::inference(parameters);
    g.set_clock(clock.clone());
    g.set_closure_of("Evaluator");
    g
}
