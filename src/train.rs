//! Training steps as plans: forward, backward, update.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Header, OPTIMIZER};
use crate::data::Array;
use crate::error::{Error, Result};
use crate::graph::{Graph, Loss, ParameterId, Parameters};
use crate::io::NOT_PARAMETERS;
use crate::log::{Appenders, Log, Losses};
use crate::optim::{Memory, Optimizer};
use crate::plan::{Plan, Recorder};
use crate::plans::Plans;
use crate::tensor::Tensor;

/// Repeats a training step: forward, backward, update.
///
/// The loss of every step is appended to a log on the device; [`Trainer::losses`] reads what has come since the last
/// call. Nothing else is read back.
///
/// * [`Trainer::new`] has one plan, over tensors that the user fills or that are cut from a corpus on the device: a step uploads
///   nothing.
/// * [`Trainer::on_batches`] takes batches of any shape from the host, [`Trainer::step_on`], and has a plan for each shape. All of
///   them share the parameters, the optimizer's moments, its learning rate, the count of steps and the log, as they do in
///   PyTorch.
pub struct Trainer<P = Plan> {
    plan: P,
    parameters: Parameters,
    /// As it was when the trainer was made.
    frozen: BTreeSet<ParameterId>,
    optimizer: Memory,
    log: Log,
}

impl Trainer {
    /// Builds the step. `build` records inputs, the network and the loss, forward only.
    ///
    /// # Errors
    /// Whatever `build` refuses; an optimizer setting out of range; a tensor larger than the device allows.
    pub fn new(
        parameters: &Parameters,
        optimizer: impl Into<Optimizer>,
        build: impl FnOnce(&mut Graph) -> Result<Loss>,
    ) -> Result<Self> {
        pollster::block_on(Self::new_async(parameters, optimizer, build))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(
        parameters: &Parameters,
        optimizer: impl Into<Optimizer>,
        build: impl FnOnce(&mut Graph) -> Result<Loss>,
    ) -> Result<Self> {
        let (g, mut log, optimizer) = record(parameters, optimizer.into(), build)?;
        let frozen = parameters.frozen();
        let (inputs, parts) = g.suspects();
        let plan = g.finish_async().await?;
        inputs.iter().for_each(Tensor::refuse_nan);
        log.set_suspects((inputs, parts));
        Ok(Self { plan, parameters: parameters.clone(), frozen, optimizer, log })
    }

    /// What [`Self::new`] would make a plan of, recorded and no more: to see what a step will be, and need
    /// ([`Recorder::memory`]). With parameters of [`crate::nn::Init::without_values`] it takes next to no memory.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn record(
        parameters: &Parameters,
        optimizer: impl Into<Optimizer>,
        build: impl FnOnce(&mut Graph) -> Result<Loss>,
    ) -> Result<Recorder> {
        Ok(record(parameters, optimizer.into(), build)?.0.into_recorder())
    }

    /// Runs one step. On a GPU this returns when it is submitted.
    ///
    /// # Errors
    /// The device was lost, or [`crate::Error::NotFinite`] if the log had to be read and holds such a loss.
    pub fn step(&mut self) -> Result<()> {
        pollster::block_on(self.step_async())
    }

    /// [`Self::step`] without blocking.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub async fn step_async(&mut self) -> Result<()> {
        self.step_up_to_async(1).await.map(|_| ())
    }

    /// Runs as many steps as one submission to a GPU shall have, at least one and at most `most`, and gives how many. They are
    /// the steps that as many calls of [`Self::step`] run with nothing written to a tensor in between; the host takes part in them
    /// once. On the CPU, and in a browser, it is one; all have one learning rate, so where a schedule changes it in every step it is
    /// one too.
    ///
    /// A submission takes some hundredths of a second: how long a step takes is known from when the losses were read last.
    ///
    /// ```no_run
    /// # fn train(trainer: &mut elman::Trainer) -> elman::Result<()> {
    /// let mut left = 1000;
    /// while left > 0 {
    ///     left -= trainer.step_up_to(left)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Self::step`]; `most` is 0.
    pub fn step_up_to(&mut self, most: usize) -> Result<usize> {
        pollster::block_on(self.step_up_to_async(most))
    }

    /// [`Self::step_up_to`] without blocking.
    ///
    /// # Errors
    /// As [`Self::step_up_to`].
    pub async fn step_up_to_async(&mut self, most: usize) -> Result<usize> {
        let most = self.optimizer.prepare(self.log.written(), most)?;
        self.log.step_up_to(&self.plan, most).await
    }

    /// The plan of a step. To run it, by [`Plan::profile`] say, is to train.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl<'a, const N: usize> Trainer<Plans<'a, N, Loss>> {
    /// A trainer of batches of `N` arrays each, of any shape. `build` records the network and the loss for one shape, forward only;
    /// it is called when the first batch of a shape comes, and the plan is kept ([`Plans`]). It is called again where a plan had to
    /// go, so it must record the same each time, but for the weights of losses, which may depend on the shape.
    ///
    /// ```
    /// use elman::data::Array;
    /// use elman::nn::functional::{InitialState, Reduction, cross_entropy};
    /// use elman::nn::{Embedding, Gru, Init, Linear, RnnOptions};
    /// use elman::{Device, Trainer, optim::Adam, rng};
    ///
    /// let mut init = Init::new(rng::manual_seed(777));
    /// let embedding = Embedding::new(&mut init, "embedding", 10, 8)?;
    /// let gru = Gru::new(&mut init, "gru", RnnOptions::new(8, 16).bidirectional(true))?;
    /// let output = Linear::new(&mut init, "output", 32, 3)?;
    /// let parameters = init.upload(&Device::cpu())?;
    /// let mut trainer = Trainer::on_batches(&parameters, Adam::new(1e-2), |g, [words, tags, lengths]| {
    ///     let x = embedding.forward(g, words)?; // [T, B, E]
    ///     let out = gru.forward_with_lengths(g, x, InitialState::Zero, lengths)?;
    ///     let logits = output.forward(g, out.output)?; // [T, B, 3]
    ///     cross_entropy(g, logits, tags, Reduction::Mean)
    /// })?;
    /// for words in [vec![vec![1, 2, 3], vec![4, 5]], vec![vec![6, 7, 8, 9, 1]]] {
    ///     let tags: Vec<Vec<u32>> = words.iter().map(|words| words.iter().map(|word| word % 3).collect()).collect();
    ///     trainer.step_on(&[
    ///         Array::pad_tokens("words", &words, 0, 10)?,
    ///         Array::pad_targets("tags", &tags, 3)?,
    ///         Array::lengths_of("lengths", &words)?,
    ///     ])?;
    /// }
    /// assert_eq!((trainer.losses()?.len(), trainer.plans().len()), (2, 2));
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// An optimizer setting out of range; moments larger than the device allows.
    pub fn on_batches(
        parameters: &Parameters,
        optimizer: impl Into<Optimizer>,
        build: impl Fn(&mut Graph, &[Tensor; N]) -> Result<Loss> + Send + 'a,
    ) -> Result<Self> {
        let mut log = Log::new(parameters.device(), Appenders::Many)?;
        log.set_suspects((Vec::new(), parameters.iter().map(|(_, tensor)| tensor).collect()));
        let optimizer = Memory::new(optimizer.into(), parameters)?;
        log.set_watch(optimizer.watch(parameters));
        let (plan, frozen) = (Plans::new(parameters, build), parameters.frozen());
        Ok(Self { plan, parameters: parameters.clone(), frozen, optimizer, log })
    }

    /// Runs one step on this batch, of arrays or references to such. On a GPU this returns when it is submitted.
    ///
    /// # Errors
    /// As [`Trainer::step`], where [`crate::Error::NotFinite`] is of earlier steps and this one is done; values outside their bounds,
    /// NaN or infinite; whatever `build` refuses, for a new shape.
    pub fn step_on(&mut self, batch: &[impl Borrow<Array>; N]) -> Result<()> {
        pollster::block_on(self.step_on_async(batch))
    }

    /// [`Self::step_on`] without blocking.
    ///
    /// # Errors
    /// As [`Self::step_on`].
    pub async fn step_on_async(&mut self, batch: &[impl Borrow<Array>; N]) -> Result<()> {
        let Self { plan, parameters, frozen, optimizer, log } = self;
        let batch = batch.each_ref().map(Borrow::borrow);
        batch.iter().try_for_each(|array| array.check_finite())?;
        let clock = log.clock().clone();
        let record = |g: &mut Graph, loss| complete(g, loss, optimizer, log, parameters).map(|()| Vec::new());
        let kept = plan.load(batch, |parameters| graph(parameters, &clock, frozen), record).await?;
        optimizer.prepare(log.written(), 1)?;
        log.step_up_to(&kept.plan, 1).await.map(|_| ())
    }

    /// The plans, one for each shape that has come.
    pub fn plans(&self) -> &Plans<'a, N, Loss> {
        &self.plan
    }

    /// [`Self::plans`], to say how much memory they may hold.
    pub fn plans_mut(&mut self) -> &mut Plans<'a, N, Loss> {
        &mut self.plan
    }
}

impl<P> Trainer<P> {
    /// The losses of the steps since the last call, oldest first. Waits for the device.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] names the first step whose loss is NaN or infinite, once: the next call gives the losses that
    /// are finite.
    pub fn losses(&mut self) -> Result<Vec<f32>> {
        pollster::block_on(self.losses_async())
    }

    /// [`Self::losses`] without blocking.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub async fn losses_async(&mut self) -> Result<Vec<f32>> {
        self.log.take().await.map(|losses| losses.total)
    }

    /// [`Self::losses`], and the terms that they are the weighted sums of: a loss is read by one of the two, not by both.
    ///
    /// ```no_run
    /// # fn read(trainer: &mut elman::Trainer) -> elman::Result<()> {
    /// let losses = trainer.losses_by_name()?; // of `main + 0.3 * aux.named("aux")`
    /// println!("{:?}, of which {:?}", losses.total, losses.get("aux"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub fn losses_by_name(&mut self) -> Result<Losses> {
        pollster::block_on(self.losses_by_name_async())
    }

    /// [`Self::losses_by_name`] without blocking.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub async fn losses_by_name_async(&mut self) -> Result<Losses> {
        self.log.take().await
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.log.written()
    }

    /// Starts a pass over the data: the next step takes the first batch. Without it, the first follows the last.
    ///
    /// # Errors
    /// The device failed.
    pub fn start_epoch(&mut self) -> Result<()> {
        self.log.start_epoch()
    }

    /// The learning rate of the steps to come.
    ///
    /// # Errors
    /// Not a finite number of 0 or above, or the optimizer has a schedule, which sets it.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        self.optimizer.set_lr(lr)
    }

    /// The learning rate of the next step.
    pub fn lr(&self) -> f64 {
        self.optimizer.lr(self.log.written())
    }

    /// All that the training is now: parameters, moments, learning rate, the count of steps. The program adds what is its own.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`]: the training has stopped at a bad step ([`crate::optim::NotFinite`]), and nobody was told. The
    /// device failed.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        pollster::block_on(self.checkpoint_async())
    }

    /// [`Self::checkpoint`] without blocking.
    ///
    /// # Errors
    /// As [`Self::checkpoint`].
    pub async fn checkpoint_async(&self) -> Result<Checkpoint> {
        let (seen, lr) = (self.optimizer.seen().await?, self.optimizer.lr(self.log.written()));
        if let Some(trouble) = seen.trouble().filter(|_| self.optimizer.stops()) {
            return Err(self.log.error(trouble).await?);
        }
        let mut checkpoint = Checkpoint::new(self.log.clock_async().await?, seen.updates(), lr);
        let blocks = [("", self.parameters.values())].into_iter().chain(self.optimizer.blocks());
        for (block, tensor) in blocks {
            let mut values = tensor.to_vec_async().await?;
            if self.optimizer.is_spent(block, checkpoint.header.clock[0], seen.updates()) {
                // It may be of a bad step, and not finite.
                values.fill(0.0);
            }
            for (name, view) in self.parameters.iter() {
                if let Some(start) = NOT_PARAMETERS.iter().find(|start| name.starts_with(**start)) {
                    let expected = format!("another name, since `{start}` begins those of what is no parameter");
                    return Err(Error::argument("checkpoint", "parameter", expected, name));
                }
                let values = &values[view.elements()];
                checkpoint.put(in_checkpoint(block, name), view.shape(), values);
            }
        }
        Ok(checkpoint)
    }

    /// Writes [`Self::checkpoint`] to a file, whole or not at all. [`crate::Autosave`] does so as the training goes.
    ///
    /// # Errors
    /// As there; the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.checkpoint()?.save(path)
    }

    /// Goes on from what [`Self::save`] wrote: [`Self::restore`].
    ///
    /// # Errors
    /// As there; the file is damaged, or cannot be read.
    pub fn resume(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.restore(&Checkpoint::load(path)?)
    }

    /// Goes on from a checkpoint, as if the training had never been interrupted: losses that were not read are dropped. Settings of
    /// the optimizer are those that this trainer was made with, but for the learning rate, which is the checkpoint's unless this
    /// trainer has a schedule. It is the same to the bit on the same device in f32.
    ///
    /// # Errors
    /// The checkpoint is of other parameters, or of an optimizer that remembers something else; then nothing is changed.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let blocks: Vec<_> = [("", self.parameters.values())].into_iter().chain(self.optimizer.blocks()).collect();
        let names = |block| self.parameters.names().map(move |name| in_checkpoint(block, name));
        let ours: BTreeSet<_> = blocks.iter().flat_map(|(block, _)| names(*block)).collect();
        let theirs: BTreeSet<_> = checkpoint.trained().map(str::to_owned).collect();
        if ours != theirs {
            let (missing, others) = (ours.difference(&theirs), theirs.difference(&ours));
            let expected = format!("one with {:?}", missing.collect::<Vec<_>>());
            let got = format!("one with {:?} in their place", others.collect::<Vec<_>>());
            return Err(Error::argument("restore", "checkpoint", expected, got));
        }
        let mut values = Vec::new();
        for (block, tensor) in &blocks {
            let mut all = vec![0.0; tensor.len()];
            for (name, view) in self.parameters.iter() {
                let new = checkpoint.get_f32(&in_checkpoint(block, name), view.shape())?;
                all[view.elements()].copy_from_slice(&new);
            }
            values.push(all);
        }
        let Header { clock, updates, lr, .. } = checkpoint.header;
        self.optimizer.rates(lr)?;
        // A count that goes round would be taken for that of the first update.
        if updates[0] > clock[0] {
            let got = format!("{} in {} steps", updates[0], clock[0]);
            return Err(Error::argument("restore", "updates", "at most one in each step", got));
        }
        blocks.iter().zip(values).try_for_each(|((_, tensor), values)| tensor.write(&values))?;
        self.optimizer.restore(lr, updates)?;
        self.log.restore(clock)
    }

    /// The parameters that it trains.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The exponential moving average of the parameters, where the optimizer keeps one ([`Optimizer::average`]): for an
    /// [`crate::Evaluator`], a [`crate::generate::Generator`], [`crate::io::save`].
    pub fn averaged(&self) -> Option<&Parameters> {
        self.optimizer.average()
    }

    /// The norm of the gradient of the last step, all parameters together, before it was clipped (what
    /// `torch.nn.utils.clip_grad_norm_` returns); of the steps for one update so far, where there are several
    /// ([`Optimizer::accumulate`]). Waits for the device.
    ///
    /// # Errors
    /// The device failed.
    pub fn gradient_norm(&self) -> Result<f32> {
        pollster::block_on(self.optimizer.gradient_norm())
    }

    /// Updates that were left out since a loss or a gradient was not finite ([`crate::optim::NotFinite`]). Waits for the device.
    ///
    /// # Errors
    /// The device failed.
    pub fn updates_left_out(&self) -> Result<u64> {
        Ok(pollster::block_on(self.optimizer.seen())?.updates()[1].into())
    }
}

/// What a block's values of a parameter are called in a checkpoint.
fn in_checkpoint(block: &str, name: &str) -> String {
    if block.is_empty() { name.into() } else { format!("{OPTIMIZER}{block}.{name}") }
}

/// A step of one plan, with what it appends to and what the optimizer remembers.
fn record(
    parameters: &Parameters,
    optimizer: Optimizer,
    build: impl FnOnce(&mut Graph) -> Result<Loss>,
) -> Result<(Graph, Log, Memory)> {
    let optimizer = Memory::new(optimizer, parameters)?;
    let mut log = Log::new(parameters.device(), Appenders::One)?;
    log.set_watch(optimizer.watch(parameters));
    let mut g = graph(parameters, log.clock(), &parameters.frozen());
    let loss = build(&mut g)?;
    complete(&mut g, loss, &optimizer, &mut log, parameters)?;
    Ok((g, log, optimizer))
}

/// A graph to be differentiated, of which a log's clock counts the steps.
fn graph(parameters: &Parameters, clock: &Tensor, frozen: &BTreeSet<ParameterId>) -> Graph {
    let mut g = Graph::new(parameters);
    g.set_frozen(frozen.clone());
    g.set_clock(clock.clone());
    g.set_closure_of("Trainer");
    g
}

/// Records what comes after the loss: the backward pass, the log, which advances the clock, and the update.
fn complete(g: &mut Graph, loss: Loss, optimizer: &Memory, log: &mut Log, parameters: &Parameters) -> Result<()> {
    g.differentiate(&[&loss], &[])?;
    let history = log.record(g, &[loss])?;
    optimizer.record(g, parameters, &history)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::CAPACITY;

    /// A full log that could not be read is read before the next step, not in place of it; and no step is more than the clock
    /// counts.
    #[test]
    fn a_step_is_run_after_a_read_that_failed() -> Result<()> {
        let device = crate::Device::cpu();
        let mut init = crate::nn::Init::new(crate::rng::manual_seed(1));
        let layer = crate::nn::Linear::new(&mut init, "layer", 2, 2)?;
        let parameters = init.upload(&device)?;
        let [x, y] = ["x", "y"].map(|name| device.upload(name, &[1, 2], &[0.5, -0.5]));
        let (x, y) = (x?, y?);
        let mut trainer = Trainer::new(&parameters, crate::optim::Sgd::new(0.1), |g| {
            let x = g.input(&x)?;
            let output = layer.forward(g, x)?;
            crate::nn::functional::mse_loss(g, output, &y, crate::nn::functional::Reduction::Mean)
        })?;
        trainer.log.fill();
        assert_eq!(trainer.step_up_to(5)?, 1);
        assert_eq!(trainer.steps(), CAPACITY as u64 + 1);
        // The clock does not go round: an optimizer would take the step for one before the first.
        trainer.log.restore([u32::MAX - 1, 0])?;
        trainer.step()?;
        assert!(trainer.step().unwrap_err().to_string().contains("fewer than 4294967295"));
        // Nor does the count of updates.
        let before = trainer.checkpoint()?;
        let mut damaged = before.clone();
        (damaged.header.clock, damaged.header.updates[0]) = ([7, 0], 8);
        assert!(trainer.restore(&damaged).unwrap_err().to_string().contains("at most one in each step"));
        assert_eq!(trainer.checkpoint()?, before);
        assert!(trainer.losses()?[0].is_finite());
        Ok(())
    }
}
