//! A training step as a plan, and an evaluation as another one over the same parameters.

use std::time::Instant;

use crate::error::{Error, Result};
use crate::graph::{Graph, Loss, Parameters};
use crate::kernels::record_loss;
use crate::optim::{Memory, Optimizer};
use crate::plan::Plan;
use crate::tensor::{DType, Tensor};

/// Losses kept on the device between reads.
const LOG_CAPACITY: usize = 1024;

/// How long a submission of several steps may take: what it costs the host is then little, and a stop still prompt.
const SUBMISSION_SECONDS: f64 = 0.02;

/// The most steps of a submission, whose commands the host holds all at once.
const MOST_STEPS: usize = 64;

/// The steps of a submission, if each takes so long.
fn steps_at_once(seconds: f64) -> usize {
    ((SUBMISSION_SECONDS / seconds) as usize).clamp(1, MOST_STEPS)
}

/// Repeats a training step: forward, backward, update.
///
/// The loss of every step is appended to a log on the device; [`Trainer::losses`] reads what has come since the last
/// call. Nothing else is read back, and a step uploads nothing.
pub struct Trainer {
    plan: Plan,
    optimizer: Memory,
    log: LossLog,
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
        let optimizer = Memory::new(optimizer.into(), parameters)?;
        let mut g = Graph::new(parameters);
        g.set_closure_of("Trainer");
        let loss = build(&mut g)?;
        g.differentiate(&[&loss], &[])?;
        // After the backward pass, which needs the step's own clock.
        let log = LossLog::record(&mut g, &loss)?;
        optimizer.record(&mut g, parameters)?;
        Ok(Self { plan: g.finish_async().await?, optimizer, log })
    }

    /// Runs one step. On a GPU this returns when it is submitted.
    ///
    /// # Errors
    /// The device was lost, or [`Error::NotFinite`] if the log had to be read and holds such a loss.
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

    /// Runs as many steps as one submission to a GPU shall have, at least one and at most `most`, and gives how many.
    /// They are the steps that as many calls of [`Self::step`] run with nothing written to a tensor in between; the
    /// host takes part in them once. On the CPU, and in a browser, it is one; all have one learning rate, so where a
    /// schedule changes it in every step it is one too.
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
        let most = self.optimizer.prepare(self.log.written, most)?;
        self.log.step_up_to(&self.plan, most).await
    }

    /// The losses of the steps since the last call, oldest first. Waits for the device.
    ///
    /// # Errors
    /// [`Error::NotFinite`] names the first step whose loss is NaN or infinite, once: the next call gives the losses that are
    /// finite.
    pub fn losses(&mut self) -> Result<Vec<f32>> {
        pollster::block_on(self.losses_async())
    }

    /// [`Self::losses`] without blocking.
    ///
    /// # Errors
    /// As [`Self::losses`].
    pub async fn losses_async(&mut self) -> Result<Vec<f32>> {
        self.log.take().await
    }

    /// [`Self::losses`], and the terms that they are the weighted sums of: a loss is read by one of the two, not by
    /// both.
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
        self.log.take_all().await
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.log.written
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
        self.optimizer.lr(self.log.written)
    }

    /// The plan of a step. To run it, by [`Plan::profile`] say, is to train.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Computes losses without touching parameters or any training state.
pub struct Evaluator {
    plan: Plan,
    log: LossLog,
}

impl Evaluator {
    /// Builds the evaluation of one batch; see [`Trainer::new`].
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn new(parameters: &Parameters, build: impl FnOnce(&mut Graph) -> Result<Loss>) -> Result<Self> {
        pollster::block_on(Self::new_async(parameters, build))
    }

    /// [`Self::new`] without blocking.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub async fn new_async(parameters: &Parameters, build: impl FnOnce(&mut Graph) -> Result<Loss>) -> Result<Self> {
        let mut g = Graph::inference(parameters);
        g.set_closure_of("Evaluator");
        let loss = build(&mut g)?;
        let log = LossLog::record(&mut g, &loss)?;
        Ok(Self { plan: g.finish_async().await?, log })
    }

    /// The losses of the first `batches` batches of the data.
    ///
    /// # Errors
    /// As [`Trainer::losses`].
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
    /// As [`Trainer::losses`].
    pub fn losses_by_name(&mut self, batches: usize) -> Result<Losses> {
        pollster::block_on(self.losses_by_name_async(batches))
    }

    /// [`Self::losses_by_name`] without blocking.
    ///
    /// # Errors
    /// As [`Trainer::losses`].
    pub async fn losses_by_name_async(&mut self, batches: usize) -> Result<Losses> {
        self.log.restart()?;
        let mut left = batches;
        while left > 0 {
            left -= self.log.step_up_to(&self.plan, left).await?;
        }
        self.log.take_all().await
    }

    /// The plan of a batch.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// The losses of some steps, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Losses {
    /// The weighted sum of the terms: what is minimised.
    pub total: Vec<f32>,
    /// The name of each term and its values, without its weight, in the order of the sum.
    pub terms: Vec<(String, Vec<f32>)>,
}

impl Losses {
    /// The values of the first term of that name.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.terms.iter().find(|(n, _)| n == name).map(|(_, values)| values.as_slice())
    }
}

/// The losses of a plan's runs: a ring on the device for each term, that the plan appends to, and what has been read of
/// them.
struct LossLog {
    /// `[terms, LOG_CAPACITY]`
    history: Tensor,
    weights: Vec<f64>,
    clock: Tensor,
    written: u64,
    read: u64,
    pending: Losses,
    suspects: Suspects,
    /// When the first step since the last read was submitted, and the steps before it.
    since: Option<(Instant, u64)>,
    /// For a step, from one read to the next; at first not known.
    seconds: Option<f64>,
}

impl LossLog {
    fn record(g: &mut Graph, loss: &Loss) -> Result<Self> {
        g.check_loss(loss)?;
        let (terms, clock) = (loss.terms(), g.clock()?);
        let history = g.device().zeros("losses by step", &[terms.len(), LOG_CAPACITY], DType::F32)?;
        for (i, term) in terms.iter().enumerate() {
            let ring = history.view(history.name(), i * LOG_CAPACITY, &[LOG_CAPACITY]);
            record_loss::record_loss(g, &term.rows, &term.scale, &ring, &clock, i + 1 == terms.len())?;
        }
        let pending = terms.iter().map(|term| (term.name.clone(), Vec::new())).collect();
        let (inputs, parameters) = g.suspects();
        Ok(Self {
            history,
            weights: terms.iter().map(|term| term.weight).collect(),
            clock,
            written: 0,
            read: 0,
            pending: Losses { total: Vec::new(), terms: pending },
            suspects: Suspects { inputs, parameters },
            since: None,
            seconds: None,
        })
    }

    fn start_epoch(&self) -> Result<()> {
        self.clock.view("batch", 1, &[1]).write_u32(&[0])
    }

    /// Starts anew: what was not read is dropped, after an error say, and runs of the plan by hand are forgotten.
    fn restart(&mut self) -> Result<()> {
        (self.read, self.written, self.since) = (0, 0, None);
        self.take_pending();
        self.clock.write_u32(&[0, 0])
    }

    /// Steps until the ring is full.
    fn room(&self) -> usize {
        LOG_CAPACITY - (self.written - self.read) as usize
    }

    async fn step_up_to(&mut self, plan: &Plan, most: usize) -> Result<usize> {
        if most == 0 {
            return Err(Error::argument("step", "most", "at least 1", 0));
        }
        if self.room() == 0 {
            // Reading it failed.
            self.drain().await?;
        }
        let room = self.room();
        let steps = match self.seconds {
            Some(seconds) if plan.device().is_gpu() => steps_at_once(seconds),
            _ => 1,
        };
        let steps = steps.min(most).min(room);
        // A browser has no such clock.
        if !cfg!(target_arch = "wasm32") {
            self.since.get_or_insert_with(|| (Instant::now(), self.written));
        }
        plan.run_times(steps)?;
        self.written += steps as u64;
        // The ring is full: read it before it is written over.
        if steps == room {
            self.drain().await?;
        }
        Ok(steps)
    }

    async fn take(&mut self) -> Result<Vec<f32>> {
        self.take_all().await.map(|losses| losses.total)
    }

    async fn take_all(&mut self) -> Result<Losses> {
        self.drain().await?;
        Ok(self.take_pending())
    }

    fn take_pending(&mut self) -> Losses {
        let none = self.pending.terms.iter().map(|(name, _)| (name.clone(), Vec::new())).collect();
        std::mem::replace(&mut self.pending, Losses { total: Vec::new(), terms: none })
    }

    async fn drain(&mut self) -> Result<()> {
        if self.read == self.written {
            return Ok(());
        }
        let history = self.history.to_vec_async().await?;
        if let Some((since, before)) = self.since.take() {
            self.seconds = Some(since.elapsed().as_secs_f64() / (self.written - before) as f64);
        }
        // Runs of the plan by hand, a profile say, are steps too; of more than the ring holds, the latest remain.
        self.written = self.written.max(self.clock.to_vec_u32_async().await?[0].into());
        self.read = self.read.max(self.written.saturating_sub(LOG_CAPACITY as u64));
        let steps = std::mem::replace(&mut self.read, self.written)..self.written;
        // One error for all that are not finite: where one is NaN, those after it are too.
        let mut first = None;
        for step in steps {
            let values = history.chunks_exact(LOG_CAPACITY).map(|ring| ring[(step % LOG_CAPACITY as u64) as usize]);
            let total = self.weights.iter().zip(values.clone()).map(|(weight, value)| weight * f64::from(value));
            // Of one term, that term, in its bits.
            let total = total.reduce(|sum, value| sum + value).unwrap_or(0.0) as f32;
            if total.is_finite() {
                self.pending.total.push(total);
                self.pending.terms.iter_mut().zip(values).for_each(|((_, term), value)| term.push(value));
            } else {
                first.get_or_insert((step, total));
            }
        }
        let Some((step, value)) = first else { return Ok(()) };
        Err(Error::NotFinite { step, value, cause: self.suspects.cause().await? })
    }
}

/// What a loss that is not finite may come from.
struct Suspects {
    /// What plans read and never write, parameters aside.
    inputs: Vec<Tensor>,
    parameters: Vec<Tensor>,
}

impl Suspects {
    /// What is not finite now, and the cure.
    async fn cause(&self) -> Result<String> {
        let cure = "lower the learning rate or clip the gradient, and go on from an earlier model";
        if let Some(found) = not_finite(&self.inputs).await? {
            return Ok(format!("the input {found}: mend the data, and go on from a model that has not seen it"));
        }
        Ok(match not_finite(&self.parameters).await? {
            Some(found) => format!("no input is to blame; the parameter {found}: {cure}"),
            None => format!("the parameters can no longer be trusted: {cure}"),
        })
    }
}

/// The first value that is not finite.
async fn not_finite(tensors: &[Tensor]) -> Result<Option<String>> {
    for tensor in tensors {
        let values = tensor.to_vec_async().await?;
        if let Some(position) = values.iter().position(|value| !value.is_finite()) {
            return Ok(Some(format!("`{}` holds {} at position {position}", tensor.name(), values[position])));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full log that could not be read is read before the next step, not in place of it.
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
        trainer.log.written = LOG_CAPACITY as u64;
        assert_eq!(trainer.step_up_to(5)?, 1);
        assert_eq!(trainer.steps(), LOG_CAPACITY as u64 + 1);
        Ok(())
    }

    #[test]
    fn a_submission_is_short() {
        for (seconds, steps) in [(0.0, 64), (1e-4, 64), (1e-3, 20), (0.011, 1), (0.5, 1), (f64::INFINITY, 1)] {
            assert_eq!(steps_at_once(seconds), steps, "{seconds} s a step");
        }
    }
}
