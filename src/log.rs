//! Losses that the runs of plans leave on the device.

use std::time::Instant;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Loss};
use crate::kernels::record_loss;
use crate::optim::{Trouble, Watch};
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

/// How many plans append to a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appenders {
    One,
    Many,
}

/// The terms of some losses in each run of some plans: a ring on the device for each, which the plans append to, one clock that
/// counts their runs, and what has been read.
pub(crate) struct Log {
    /// The names of the terms of each loss.
    names: Vec<Vec<String>>,
    /// Of the terms, where one plan alone appends: known when it is recorded.
    weights: Option<Vec<f64>>,
    /// `[R, CAPACITY]`, a ring for the value of each term; where there are many plans, also for its scale and its weight, which may
    /// differ from plan to plan. None before a plan is recorded.
    history: Option<Tensor>,
    clock: Tensor,
    suspects: Suspects,
    /// Of a training: what says that it stands still.
    watch: Option<Watch>,
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
    /// For one plan, or for many.
    pub fn new(device: &Device, plans: Appenders) -> Result<Self> {
        let clock = device.zeros("clock", &[2], DType::U32)?;
        Ok(Self {
            names: Vec::new(),
            weights: (plans == Appenders::One).then(Vec::new),
            history: None,
            clock,
            suspects: Suspects::default(),
            watch: None,
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

    /// What a loss that is not finite may come from: inputs that the user fills, and parameters.
    pub fn set_suspects(&mut self, (inputs, parameters): (Vec<Tensor>, Vec<Tensor>)) {
        self.suspects = Suspects { inputs, parameters };
    }

    /// What says at which step a training stopped to update.
    pub fn set_watch(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    /// Records in a plan that it appends the terms of these losses, which have the same names in every plan, and goes on by one step.
    /// Gives the rings, `[R, CAPACITY]`.
    pub fn record(&mut self, g: &mut Graph, losses: &[Loss]) -> Result<Tensor> {
        losses.iter().try_for_each(|loss| g.check_loss(loss))?;
        let terms = || losses.iter().flat_map(Loss::terms);
        let names: Vec<Vec<_>> =
            losses.iter().map(|loss| loss.terms().iter().map(|term| term.name.clone()).collect()).collect();
        let one = g.constant(1.0)?;
        let mut numbers = Vec::new();
        for term in terms() {
            numbers.push((term.rows.clone(), term.scale.clone()));
            if self.weights.is_none() {
                numbers.push((term.scale.clone(), one.clone()));
                numbers.push((g.constant(term.weight)?, one.clone()));
            }
        }
        let history = match &self.history {
            None => {
                self.pending = vec![Vec::new(); numbers.len()];
                self.names = names;
                let history = g.device().zeros("losses by step", &[numbers.len(), CAPACITY], DType::F32)?;
                self.history.insert(history).clone()
            }
            Some(_) if self.names != names => {
                let expected = format!("of the same terms for every shape: {:?}", self.names);
                return Err(Error::argument("plan", "loss", expected, format!("{names:?}")));
            }
            Some(history) => history.clone(),
        };
        if let Some(weights) = &mut self.weights {
            *weights = terms().map(|term| term.weight).collect();
        }
        for (i, (rows, scale)) in numbers.iter().enumerate() {
            let ring = history.view(history.name(), i * CAPACITY, &[CAPACITY]);
            record_loss::record_loss(g, rows, scale, &ring, &self.clock, i + 1 == numbers.len())?;
        }
        Ok(history)
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
        // The clock counts in 32 bits.
        let room = self.room().min(u64::from(u32::MAX).saturating_sub(self.written) as usize);
        if room == 0 {
            return Err(Error::argument("step", "steps", format!("fewer than {}", u32::MAX), self.written));
        }
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
        if self.room() == 0 {
            self.drain().await?;
        }
        Ok(steps)
    }

    /// Rings of a term.
    fn each(&self) -> usize {
        if self.weights.is_some() { 1 } else { 3 }
    }

    /// The weighted sum of the terms of a step, from the values of all rings; of one term of weight 1, that term, in its bits.
    fn total(&self, values: &[f32]) -> f32 {
        let weight = |term: usize| match &self.weights {
            Some(weights) => weights[term],
            None => f64::from(values[3 * term + 2]),
        };
        let terms = values.iter().step_by(self.each()).enumerate();
        let weighted = terms.map(|(term, &value)| weight(term) * f64::from(value));
        weighted.reduce(|sum, value| sum + value).unwrap_or(0.0) as f32
    }

    /// The losses since the last call, of a log of one loss.
    pub async fn take(&mut self) -> Result<Losses> {
        let values = self.take_all().await?;
        let steps = values.first().map_or(0, Vec::len);
        let of_step = |step: usize| values.iter().map(|values| values[step]).collect::<Vec<_>>();
        let total = (0..steps).map(|step| self.total(&of_step(step))).collect();
        let terms = values.into_iter().step_by(self.each());
        Ok(Losses { total, terms: self.names.concat().into_iter().zip(terms).collect() })
    }

    /// Of a log of many plans: the mean of each loss since the last call, over all that counted; None if nothing ran.
    pub async fn take_means(&mut self) -> Result<Option<Vec<f64>>> {
        let values = self.take_all().await?;
        if values.first().is_none_or(Vec::is_empty) {
            return Ok(None);
        }
        let mut terms = values.chunks_exact(3);
        let mut mean = || terms.next().map_or(0.0, |rings| weighted_mean(&rings[0], &rings[1], &rings[2]));
        Ok(Some(self.names.iter().map(|names| names.iter().map(|_| mean()).sum()).collect()))
    }

    /// The values since the last call, by ring, oldest first.
    async fn take_all(&mut self) -> Result<Vec<Vec<f32>>> {
        self.drain().await?;
        Ok(self.pending.iter_mut().map(std::mem::take).collect())
    }

    /// What a bad step may come from.
    async fn cause(&self, trouble: Option<Trouble>) -> Result<String> {
        let place = self.watch.as_ref().zip(trouble).map(|(watch, trouble)| watch.place(trouble));
        Ok(place.unwrap_or_default() + &self.suspects.cause().await?)
    }

    /// That a bad step has stopped the training.
    pub async fn error(&self, trouble: Trouble) -> Result<Error> {
        let cause = self.cause(Some(trouble)).await?;
        Ok(Error::NotFinite { step: trouble.step, what: "gradient's norm", value: trouble.norm, cause })
    }

    async fn drain(&mut self) -> Result<()> {
        if self.read == self.written {
            return Ok(());
        }
        let Some(history) = &self.history else { return Ok(()) };
        let history = history.to_vec_async().await?;
        if let Some((since, before)) = self.since.take() {
            self.seconds = Some(since.elapsed().as_secs_f64() / (self.written - before) as f64);
        }
        // Runs of the plan by hand, a profile say, are steps too; of more than the rings hold, the latest remain.
        self.written = self.written.max(self.clock.to_vec_u32_async().await?[0].into());
        self.read = self.read.max(self.written.saturating_sub(CAPACITY as u64));
        let trouble = match &self.watch {
            Some(watch) => watch.trouble().await?,
            None => None,
        };
        let skips = self.watch.as_ref().is_some_and(Watch::skips);
        let of_step = |step: u64| history.iter().copied().skip((step % CAPACITY as u64) as usize).step_by(CAPACITY);
        let steps = std::mem::replace(&mut self.read, self.written)..self.written;
        // One error for all that are not finite: where one is NaN, those after it are too. Steps after trouble updated nothing.
        let mut first = None;
        for step in steps.take_while(|&step| trouble.is_none_or(|trouble| step < trouble.step)) {
            let values: Vec<_> = of_step(step).collect();
            let total = self.total(&values);
            match values.iter().copied().chain([total]).find(|value| !value.is_finite()) {
                Some(value) if !skips => first = first.or(Some((step, value))),
                _ => self.pending.iter_mut().zip(values).for_each(|(pending, value)| pending.push(value)),
            }
        }
        let (step, what, value) = match (first, trouble) {
            (None, None) => return Ok(()),
            (Some((step, value)), _) => (step, "loss", value),
            (None, Some(Trouble { step, norm, .. })) => {
                let loss = of_step(step).find(|value| !value.is_finite());
                (step, if loss.is_some() { "loss" } else { "gradient's norm" }, loss.unwrap_or(norm))
            }
        };
        let cause = self.cause(trouble).await?;
        if let Some(watch) = &self.watch {
            watch.forget().await?;
        }
        Err(Error::NotFinite { step, what, value, cause })
    }

    #[cfg(test)]
    pub fn fill(&mut self) {
        self.written = CAPACITY as u64;
    }
}

/// The mean of all from the mean of each batch, one over what counts in it (0: nothing does), and what it is multiplied by.
fn weighted_mean(means: &[f32], scales: &[f32], weights: &[f32]) -> f64 {
    let (mut sum, mut all) = (0.0, 0.0);
    for ((&mean, &scale), &weight) in means.iter().zip(scales).zip(weights).filter(|((_, scale), _)| **scale != 0.0) {
        let counts = 1.0 / f64::from(scale);
        sum += f64::from(mean) * f64::from(weight) * counts;
        all += counts;
    }
    if all == 0.0 { 0.0 } else { sum / all }
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
            Some(found) => format!("the parameter {found}: {cure}"),
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
