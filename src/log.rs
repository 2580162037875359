//! Numbers that the runs of plans leave on the device.

use std::time::Instant;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::kernels::record_loss;
use crate::plan::{Plan, Recorder};
use crate::tensor::{DType, Tensor};

/// Runs kept on the device between reads.
pub(crate) const CAPACITY: usize = 1024;

/// How long a submission of several steps may take: what it costs the host is then little, and a stop still prompt.
const SUBMISSION_SECONDS: f64 = 0.02;

/// The most steps of a submission, whose commands the host holds all at once.
const MOST_STEPS: usize = 64;

/// The steps of a submission, if each takes so long.
fn steps_at_once(seconds: f64) -> usize {
    ((SUBMISSION_SECONDS / seconds) as usize).clamp(1, MOST_STEPS)
}

/// What is summed up and multiplied to make a number: `scale Σ rows`.
pub(crate) struct Number<'a> {
    pub rows: &'a Tensor,
    pub scale: &'a Tensor,
}

/// Numbers of each run of some plans, losses say: a ring on the device for each, which the plans append to, one clock that counts
/// their runs, and what has been read.
pub(crate) struct Log {
    rings: Vec<Tensor>,
    clock: Tensor,
    written: u64,
    read: u64,
    /// By ring.
    pending: Vec<Vec<f32>>,
    /// When the first step since the last read was submitted, and the steps before it.
    since: Option<(Instant, u64)>,
    /// For a step, from one read to the next; at first not known.
    seconds: Option<f64>,
}

impl Log {
    pub fn new(device: &Device) -> Result<Self> {
        let clock = device.zeros("clock", &[2], DType::U32)?;
        let (rings, pending) = (Vec::new(), Vec::new());
        Ok(Self { rings, clock, written: 0, read: 0, pending, since: None, seconds: None })
    }

    /// The clock of every plan that appends to it.
    pub fn clock(&self) -> &Tensor {
        &self.clock
    }

    /// Runs appended so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Records in a plan that it appends these numbers, as many as every other plan does, and goes on by one step.
    pub fn record(&mut self, r: &mut Recorder, numbers: &[Number<'_>]) -> Result<()> {
        if self.rings.is_empty() {
            let ring = |_| r.device().zeros("losses by step", &[CAPACITY], DType::F32);
            self.rings = (0..numbers.len()).map(ring).collect::<Result<_>>()?;
            self.pending = vec![Vec::new(); numbers.len()];
        }
        if self.rings.len() != numbers.len() {
            let expected = format!("of {} parts, as for the first shape", self.rings.len());
            return Err(Error::argument("plan", "loss", expected, format!("of {}", numbers.len())));
        }
        for (i, (Number { rows, scale }, ring)) in numbers.iter().zip(&self.rings).enumerate() {
            record_loss::record_loss(r, rows, scale, ring, &self.clock, i + 1 == numbers.len())?;
        }
        Ok(())
    }

    pub fn start_epoch(&self) -> Result<()> {
        self.clock.view("batch", 1, &[1]).write_u32(&[0])
    }

    /// Starts anew: what was not read is dropped, after an error say, and runs of the plan by hand are forgotten.
    pub fn restart(&mut self) -> Result<()> {
        (self.read, self.written, self.since) = (0, 0, None);
        self.pending.iter_mut().for_each(Vec::clear);
        self.clock.write_u32(&[0, 0])
    }

    /// Steps until the rings are full.
    fn room(&self) -> usize {
        CAPACITY - (self.written - self.read) as usize
    }

    /// Runs the plan as often as one submission shall, at most `most` times.
    pub async fn step_up_to(&mut self, plan: &Plan, most: usize) -> Result<usize> {
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
        // The rings are full: read them before they are written over.
        if steps == room {
            self.drain().await?;
        }
        Ok(steps)
    }

    /// The numbers since the last call, by ring, oldest first.
    pub async fn take(&mut self) -> Result<Vec<Vec<f32>>> {
        self.drain().await?;
        Ok(self.pending.iter_mut().map(std::mem::take).collect())
    }

    async fn drain(&mut self) -> Result<()> {
        if self.read == self.written {
            return Ok(());
        }
        let mut rings = Vec::new();
        for ring in &self.rings {
            rings.push(ring.to_vec_async().await?);
        }
        if let Some((since, before)) = self.since.take() {
            self.seconds = Some(since.elapsed().as_secs_f64() / (self.written - before) as f64);
        }
        // Runs of the plan by hand, a profile say, are steps too; of more than the rings hold, the latest remain.
        self.written = self.written.max(self.clock.to_vec_u32_async().await?[0].into());
        self.read = self.read.max(self.written.saturating_sub(CAPACITY as u64));
        let steps = std::mem::replace(&mut self.read, self.written)..self.written;
        let mut first = None;
        for step in steps {
            let values = || rings.iter().map(|ring| ring[(step % CAPACITY as u64) as usize]);
            match values().find(|value| !value.is_finite()) {
                None => self.pending.iter_mut().zip(values()).for_each(|(pending, value)| pending.push(value)),
                Some(value) => first = first.or(Some((step, value))),
            }
        }
        // One error for all of them: where one is NaN, those after it are too.
        first.map_or(Ok(()), |(step, value)| Err(Error::NotFinite { step, value }))
    }

    #[cfg(test)]
    pub fn fill(&mut self) {
        self.written = CAPACITY as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::steps_at_once;

    #[test]
    fn a_submission_is_short() {
        for (seconds, steps) in [(0.0, 64), (1e-4, 64), (1e-3, 20), (0.011, 1), (0.5, 1), (f64::INFINITY, 1)] {
            assert_eq!(steps_at_once(seconds), steps, "{seconds} s a step");
        }
    }
}
