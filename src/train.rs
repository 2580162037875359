//! A training step as a plan, and an evaluation as another one over the same parameters.

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernels::record_loss;
use crate::nn::Parameters;
use crate::nn::functional::Loss;
use crate::optim::{Memory, Optimizer};
use crate::plan::Plan;
use crate::tensor::{DType, Tensor};

/// Losses kept on the device between reads.
const LOG_CAPACITY: usize = 1024;

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
        let loss = build(&mut g)?;
        g.backward(&[&loss], &[])?;
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
        self.log.step(&self.plan).await
    }

    /// The losses of the steps since the last call, oldest first. Waits for the device.
    ///
    /// # Errors
    /// [`Error::NotFinite`] names the first step whose loss is NaN or infinite.
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
    /// Not a finite number of 0 or above.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        self.optimizer.set_lr(lr)
    }

    /// The learning rate.
    pub fn lr(&self) -> f64 {
        self.optimizer.lr()
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
        self.log.forget();
        self.log.start_epoch()?;
        for _ in 0..batches {
            self.log.step(&self.plan).await?;
        }
        self.log.take().await
    }

    /// The plan of a batch.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// The losses of a plan's runs: a ring on the device that the plan appends to, and what has been read of it.
struct LossLog {
    history: Tensor,
    clock: Tensor,
    written: u64,
    read: u64,
    pending: Vec<f32>,
}

impl LossLog {
    fn record(g: &mut Graph, loss: &Loss) -> Result<Self> {
        let history = g.device().zeros("losses by step", &[LOG_CAPACITY], DType::F32)?;
        let clock = g.clock()?;
        record_loss::record_loss(g, &loss.rows, &loss.scale, &history, &clock)?;
        Ok(Self { history, clock, written: 0, read: 0, pending: Vec::new() })
    }

    fn start_epoch(&self) -> Result<()> {
        self.clock.view("batch", 1, &[1]).write_u32(&[0])
    }

    /// Drops what was not read: after an error, the losses of another evaluation.
    fn forget(&mut self) {
        self.read = self.written;
        self.pending.clear();
    }

    async fn step(&mut self, plan: &Plan) -> Result<()> {
        plan.run()?;
        self.written += 1;
        // The ring is full: read it before it is written over.
        if self.written - self.read == LOG_CAPACITY as u64 { self.drain().await } else { Ok(()) }
    }

    async fn take(&mut self) -> Result<Vec<f32>> {
        self.drain().await?;
        Ok(std::mem::take(&mut self.pending))
    }

    async fn drain(&mut self) -> Result<()> {
        if self.read == self.written {
            return Ok(());
        }
        let history = self.history.to_vec_async().await?;
        // Runs of the plan by hand, a profile say, are steps too; of more than the ring holds, the latest remain.
        self.written = self.written.max(self.clock.to_vec_u32_async().await?[0].into());
        self.read = self.read.max(self.written.saturating_sub(LOG_CAPACITY as u64));
        for step in self.read..self.written {
            let value = history[(step % LOG_CAPACITY as u64) as usize];
            self.read = step + 1;
            if !value.is_finite() {
                return Err(Error::NotFinite { step, value });
            }
            self.pending.push(value);
        }
        Ok(())
    }
}
