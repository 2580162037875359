//! Losses that the runs of plans leave on the device.

use std::time::Instant;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Loss};
use crate::kernels::record_loss;
use crate::plan::Plan;
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

/// The terms of some losses in each run of some plans: a ring on the device for each, which the plans append to, one clock that
/// counts their runs, and what has been read.
pub(crate) struct Log {
    /// Name and weight of each ring's term.
    terms: Vec<(String, f64)>,
    rings: Vec<Tensor>,
    clock: Tensor,
    suspects: Suspects,
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
        Ok(Self {
            terms: Vec::new(),
            rings: Vec::new(),
            clock,
            suspects: Suspects::default(),
            written: 0,
            read: 0,
            pending: Vec::new(),
            since: None,
            seconds: None,
        })
    }

    /// The clock of every plan that appends to it.
    pub fn clock(&self) -> &Tensor {
        &self.clock
    }

    /// Runs appended so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What a loss that is not finite may come from: inputs, and parameters.
    pub fn set_suspects(&mut self, (inputs, parameters): (Vec<Tensor>, Vec<Tensor>)) {
        self.suspects = Suspects { inputs, parameters };
    }

    /// Records in a plan that it appends the terms of these losses, the same in every plan, and goes on by one step; with `scales`,
    /// the scale of each term too, in a ring after its own.
    pub fn record(&mut self, g: &mut Graph, losses: &[Loss], scales: bool) -> Result<()> {
        losses.iter().try_for_each(|loss| g.check_loss(loss))?;
        let (mut terms, mut numbers) = (Vec::new(), Vec::new());
        let one = g.constant(1.0)?;
        for term in losses.iter().flat_map(Loss::terms) {
            numbers.push((&term.rows, &term.scale));
            terms.push((term.name.clone(), term.weight));
            if scales {
                numbers.push((&term.scale, &one));
                terms.push((format!("scale of {}", term.name), 0.0));
            }
        }
        if self.rings.is_empty() {
            let ring = |_| g.device().zeros("losses by step", &[CAPACITY], DType::F32);
            self.rings = (0..numbers.len()).map(ring).collect::<Result<_>>()?;
            self.pending = vec![Vec::new(); numbers.len()];
            self.terms = terms;
        } else if self.terms != terms {
            let expected = format!("of the same terms, with the same weights, for every shape: {:?}", self.terms);
            return Err(Error::argument("plan", "loss", expected, format!("{terms:?}")));
        }
        for (i, ((rows, scale), ring)) in numbers.iter().zip(&self.rings).enumerate() {
            record_loss::record_loss(g, rows, scale, ring, &self.clock, i + 1 == numbers.len())?;
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

    /// Steps done, and batches of the epoch.
    pub async fn clock_async(&self) -> Result<[u32; 2]> {
        let clock = self.clock.to_vec_u32_async().await?;
        Ok([clock[0], clock[1]])
    }

    /// Goes on as an earlier run would have.
    pub fn restore(&mut self, clock: [u32; 2]) -> Result<()> {
        self.restart()?;
        self.clock.write_u32(&clock)?;
        (self.written, self.read) = (clock[0].into(), clock[0].into());
        Ok(())
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

    /// The losses since the last call, of a log of one loss without scales.
    pub async fn take(&mut self) -> Result<Losses> {
        let values = self.take_all().await?;
        let steps = values.first().map_or(0, Vec::len);
        let total = (0..steps).map(|step| self.total(values.iter().map(|values| values[step])));
        let total = total.collect();
        Ok(Losses { total, terms: self.terms.iter().map(|(name, _)| name.clone()).zip(values).collect() })
    }

    /// The weighted sum of the terms; of one term of weight 1, that term, in its bits.
    fn total(&self, values: impl Iterator<Item = f32>) -> f32 {
        let weighted = self.terms.iter().zip(values).map(|((_, weight), value)| weight * f64::from(value));
        weighted.reduce(|sum, value| sum + value).unwrap_or(0.0) as f32
    }

    /// The values since the last call, by ring, oldest first.
    pub async fn take_all(&mut self) -> Result<Vec<Vec<f32>>> {
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
        // One error for all that are not finite: where one is NaN, those after it are too.
        let mut first = None;
        for step in steps {
            let values = || rings.iter().map(|ring| ring[(step % CAPACITY as u64) as usize]);
            match values().chain([self.total(values())]).find(|value| !value.is_finite()) {
                None => self.pending.iter_mut().zip(values()).for_each(|(pending, value)| pending.push(value)),
                Some(value) => first = first.or(Some((step, value))),
            }
        }
        let Some((step, value)) = first else { return Ok(()) };
        Err(Error::NotFinite { step, value, cause: self.suspects.cause().await? })
    }

    #[cfg(test)]
    pub fn fill(&mut self) {
        self.written = CAPACITY as u64;
    }
}

/// What a loss that is not finite may come from.
#[derive(Default)]
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
    use super::steps_at_once;

    #[test]
    fn a_submission_is_short() {
        for (seconds, steps) in [(0.0, 64), (1e-4, 64), (1e-3, 20), (0.011, 1), (0.5, 1), (f64::INFINITY, 1)] {
            assert_eq!(steps_at_once(seconds), steps, "{seconds} s a step");
        }
    }
}
