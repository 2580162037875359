//! Learning-rate schedules and early stopping, with PyTorch's formulas and defaults.
//!
//! A [`Schedule`] knows the learning rate of each step beforehand: given to an optimizer,
//! `Adam::default().schedule(..)`, it sets the learning rate of every step of a [`crate::Trainer`]. [`ReduceOnPlateau`]
//! and [`EarlyStopping`] are told a metric after each epoch and react to it. What comes out is a number or a `bool`;
//! setting the learning rate and leaving the loop stay with the caller.
//!
//! ```
//! use elman::optim::Adam;
//! use elman::schedule::{CosineAnnealing, EarlyStopping, Mode, Schedule};
//!
//! let steps_per_epoch = 100;
//! let schedule = CosineAnnealing::new(1e-2, 50, 0.0)?.every(steps_per_epoch)?;
//! let optimizer = Adam::default().schedule(schedule); // for `Trainer::new`
//! let mut stopping = EarlyStopping::new(Mode::Min, 3, 0.0)?;
//! let mut epochs = 0;
//! for epoch in 0..50 {
//!     // Train for an epoch.
//!     let validation_loss = [5.0, 4.0, 3.0][epoch.min(2)];
//!     epochs += 1;
//!     if stopping.stop(validation_loss) {
//!         break;
//!     }
//! }
//! assert_eq!((epochs, stopping.best(), stopping.best_epoch()), (7, Some(3.0), Some(2)));
//! # let _ = optimizer;
//! # Ok::<(), elman::Error>(())
//! ```

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A learning rate that depends on the step alone.
pub trait Schedule {
    /// The learning rate of step `step`, counted from 0.
    ///
    /// A step is what PyTorch calls `scheduler.step()` after: an epoch or an update, as the caller likes.
    fn lr(&self, step: usize) -> f64;

    /// This schedule with a step every `steps` steps: counted in epochs of so many updates, in an optimizer that counts
    /// updates.
    ///
    /// ```
    /// use elman::schedule::{Schedule, Step};
    ///
    /// let by_epoch = Step::new(0.1, 1, 0.5)?.every(100)?;
    /// assert_eq!([0, 99, 100, 200].map(|step| by_epoch.lr(step)), [0.1, 0.1, 0.05, 0.025]);
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// `steps` is 0.
    fn every(self, steps: usize) -> Result<Every<Self>>
    where
        Self: Sized,
    {
        not_zero("every", "steps", steps)?;
        Ok(Every { schedule: self, steps })
    }
}

/// A schedule whose steps are several of an optimizer's; see [`Schedule::every`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Every<S> {
    schedule: S,
    steps: usize,
}

impl<S: Schedule> Schedule for Every<S> {
    fn lr(&self, step: usize) -> f64 {
        self.schedule.lr(step / self.steps)
    }
}

/// Lowers the learning rate at regular intervals (`torch.optim.lr_scheduler.StepLR`):
/// `lr * gamma^floor(step / step_size)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    lr: f64,
    step_size: usize,
    gamma: f64,
}

impl Step {
    /// Starts at `lr`; a factor of `gamma` (PyTorch's default is 0.1) every `step_size` steps.
    ///
    /// # Errors
    /// `lr` is not a finite number of 0 or above, `step_size` is 0, or `gamma` is not a finite number above 0.
    pub fn new(lr: f64, step_size: usize, gamma: f64) -> Result<Self> {
        not_negative("Step", "lr", lr)?;
        not_zero("Step", "step_size", step_size)?;
        positive("Step", "gamma", gamma)?;
        Ok(Self { lr, step_size, gamma })
    }
}

impl Schedule for Step {
    fn lr(&self, step: usize) -> f64 {
        self.lr * self.gamma.powf((step / self.step_size) as f64)
    }
}

/// Lowers the learning rate at every step (`torch.optim.lr_scheduler.ExponentialLR`): `lr * gamma^step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exponential {
    lr: f64,
    gamma: f64,
}

impl Exponential {
    /// Starts at `lr`; a factor of `gamma` every step.
    ///
    /// # Errors
    /// `lr` is not a finite number of 0 or above, or `gamma` is not a finite number above 0.
    pub fn new(lr: f64, gamma: f64) -> Result<Self> {
        not_negative("Exponential", "lr", lr)?;
        positive("Exponential", "gamma", gamma)?;
        Ok(Self { lr, gamma })
    }
}

impl Schedule for Exponential {
    fn lr(&self, step: usize) -> f64 {
        self.lr * self.gamma.powf(step as f64)
    }
}

/// Half a cosine down, half a cosine up, and so on (`torch.optim.lr_scheduler.CosineAnnealingLR`):
/// `eta_min + (lr - eta_min) * (1 + cos(pi * step / t_max)) / 2`.
///
/// The learning rate is `eta_min` at step `t_max`, and `lr` again at step `2 * t_max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineAnnealing {
    lr: f64,
    t_max: usize,
    eta_min: f64,
}

impl CosineAnnealing {
    /// From `lr` to `eta_min` (PyTorch's default is 0) in `t_max` steps.
    ///
    /// # Errors
    /// `lr` or `eta_min` is not a finite number of 0 or above, or `t_max` is 0.
    pub fn new(lr: f64, t_max: usize, eta_min: f64) -> Result<Self> {
        not_negative("CosineAnnealing", "lr", lr)?;
        not_zero("CosineAnnealing", "t_max", t_max)?;
        not_negative("CosineAnnealing", "eta_min", eta_min)?;
        Ok(Self { lr, t_max, eta_min })
    }
}

impl Schedule for CosineAnnealing {
    fn lr(&self, step: usize) -> f64 {
        cosine(self.lr, self.eta_min, PI * step as f64 / self.t_max as f64)
    }
}

/// The shape of a [`OneCycle`], with PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneCycleOptions {
    /// The part of all steps in which the learning rate rises: 0.3.
    pub pct_start: f64,
    /// What `max_lr` is divided by to get the first learning rate: 25.
    pub div_factor: f64,
    /// What the first learning rate is divided by to get the last: 1e4.
    pub final_div_factor: f64,
}

impl Default for OneCycleOptions {
    fn default() -> Self {
        Self { pct_start: 0.3, div_factor: 25.0, final_div_factor: 1e4 }
    }
}

/// Half a cosine up, then half a cosine down to almost nothing (`torch.optim.lr_scheduler.OneCycleLR` with
/// `anneal_strategy="cos"`, `three_phase=False` and `cycle_momentum=False`).
///
/// With `first = max_lr / div_factor`, `last = first / final_div_factor` and `peak = pct_start * total_steps - 1`, the
/// learning rate goes from `first` to `max_lr` in the steps `0..=peak` and from there to `last` at step
/// `total_steps - 1`, each time as `to + (from - to) * (1 + cos(pi * done)) / 2` with `done` from 0 to 1. It stays at
/// `last` afterwards, where PyTorch runs past the end by one step and then raises an error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneCycle {
    max_lr: f64,
    total_steps: usize,
    options: OneCycleOptions,
}

impl OneCycle {
    /// A cycle of `total_steps` steps that rises to `max_lr`.
    ///
    /// # Errors
    /// `max_lr` is not a finite number of 0 or above, `total_steps` is 0, `pct_start` is not between 0 and 1, or a
    /// factor is not a finite number above 0. Also if `pct_start * total_steps` is exactly 1: such a rise begins and
    /// ends in step 0, for which PyTorch divides by zero.
    pub fn new(max_lr: f64, total_steps: usize, options: OneCycleOptions) -> Result<Self> {
        let OneCycleOptions { pct_start, div_factor, final_div_factor } = options;
        not_negative("OneCycle", "max_lr", max_lr)?;
        not_zero("OneCycle", "total_steps", total_steps)?;
        let expected = "between 0 and 1, and not 1 / total_steps";
        let ok = pct_start > 0.0 && pct_start < 1.0 && pct_start * total_steps as f64 != 1.0;
        check(ok, "OneCycle", "pct_start", expected, pct_start)?;
        positive("OneCycle", "div_factor", div_factor)?;
        positive("OneCycle", "final_div_factor", final_div_factor)?;
        Ok(Self { max_lr, total_steps, options })
    }
}

impl Schedule for OneCycle {
    fn lr(&self, step: usize) -> f64 {
        let OneCycleOptions { pct_start, div_factor, final_div_factor } = self.options;
        let first = self.max_lr / div_factor;
        let peak = pct_start * self.total_steps as f64 - 1.0;
        let end = (self.total_steps - 1) as f64;
        let step = (step as f64).min(end);
        if step <= peak {
            cosine(first, self.max_lr, PI * (step / peak))
        } else {
            cosine(self.max_lr, first / final_div_factor, PI * ((step - peak) / (end - peak)))
        }
    }
}

/// Which metrics are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Small ones, as of a loss.
    Min,
    /// Large ones, as of an accuracy.
    Max,
}

/// By how much a metric must beat the best one so far to count as an improvement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Threshold {
    /// By more than this part of the best: `metric < best * (1 - t)`, or `metric > best * (1 + t)`.
    ///
    /// As in PyTorch, this is meant for metrics above 0: a negative one improves even where it gets a bit worse.
    Relative(f64),
    /// By more than this, in the metric's unit: `metric < best - t`, or `metric > best + t`.
    Absolute(f64),
}

/// The best metric so far and how long ago it came; what [`ReduceOnPlateau`] and [`EarlyStopping`] have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Best {
    mode: Mode,
    threshold: Threshold,
    /// None before the first.
    metric: Option<f64>,
    bad_epochs: usize,
}

impl Best {
    fn new(mode: Mode, threshold: Threshold) -> Self {
        Self { mode, threshold, metric: None, bad_epochs: 0 }
    }

    /// Whether this metric is an improvement. NaN is none, as no comparison with it holds.
    fn update(&mut self, metric: f64) -> bool {
        let worst = if self.mode == Mode::Min { f64::INFINITY } else { f64::NEG_INFINITY };
        let best = self.metric.unwrap_or(worst);
        let better = match (self.mode, self.threshold) {
            (Mode::Min, Threshold::Relative(t)) => metric < best * (1.0 - t),
            (Mode::Min, Threshold::Absolute(t)) => metric < best - t,
            (Mode::Max, Threshold::Relative(t)) => metric > best * (1.0 + t),
            (Mode::Max, Threshold::Absolute(t)) => metric > best + t,
        };
        if better {
            self.metric = Some(metric);
            self.bad_epochs = 0;
        } else {
            self.bad_epochs = self.bad_epochs.saturating_add(1);
        }
        better
    }
}

/// How a [`ReduceOnPlateau`] reacts, with PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlateauOptions {
    /// Which metrics are good: small ones.
    pub mode: Mode,
    /// What the learning rate is multiplied by: 0.1.
    pub factor: f64,
    /// How many epochs without improvement are put up with; one more lowers the learning rate: 10.
    pub patience: usize,
    /// What counts as an improvement: one by more than 1e-4 of the best metric.
    pub threshold: Threshold,
    /// For how many epochs after a reduction epochs without improvement are not counted: 0.
    pub cooldown: usize,
    /// The learning rate is not lowered below this: 0.
    pub min_lr: f64,
    /// A reduction by this or less is left out: 1e-8.
    pub eps: f64,
}

impl Default for PlateauOptions {
    fn default() -> Self {
        Self {
            mode: Mode::Min,
            factor: 0.1,
            patience: 10,
            threshold: Threshold::Relative(1e-4),
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

/// Lowers the learning rate when a metric no longer improves (`torch.optim.lr_scheduler.ReduceLROnPlateau`):
/// after more than `patience` epochs without improvement, to `max(lr * factor, min_lr)`.
///
/// What serde keeps of it, in a [`crate::Checkpoint`] say, goes on as it would have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReduceOnPlateau {
    options: PlateauOptions,
    lr: f64,
    best: Best,
    cooldown_left: usize,
}

impl ReduceOnPlateau {
    /// Starts at `lr`.
    ///
    /// # Errors
    /// `lr`, `min_lr`, `eps` or the threshold is not a finite number of 0 or above, a relative threshold is not below
    /// 1, or `factor` is not between 0 and 1.
    pub fn new(lr: f64, options: PlateauOptions) -> Result<Self> {
        let op = "ReduceOnPlateau";
        not_negative(op, "lr", lr)?;
        check(options.factor > 0.0 && options.factor < 1.0, op, "factor", "between 0 and 1", options.factor)?;
        match options.threshold {
            // From 1 on, no metric above 0 would ever be an improvement.
            Threshold::Relative(t) => check((0.0..1.0).contains(&t), op, "threshold", "0 or above, below 1", t)?,
            Threshold::Absolute(t) => not_negative(op, "threshold", t)?,
        }
        not_negative(op, "min_lr", options.min_lr)?;
        not_negative(op, "eps", options.eps)?;
        Ok(Self { options, lr, best: Best::new(options.mode, options.threshold), cooldown_left: 0 })
    }

    /// Takes the metric of the epoch that has ended and returns the learning rate of the next one.
    ///
    /// A NaN is no improvement.
    pub fn step(&mut self, metric: f64) -> f64 {
        self.best.update(metric);
        if self.cooldown_left > 0 {
            self.cooldown_left -= 1;
            self.best.bad_epochs = 0;
        }
        if self.best.bad_epochs > self.options.patience {
            let lower = (self.lr * self.options.factor).max(self.options.min_lr);
            if self.lr - lower > self.options.eps {
                self.lr = lower;
            }
            self.cooldown_left = self.options.cooldown;
            self.best.bad_epochs = 0;
        }
        self.lr
    }

    /// The learning rate of the next epoch.
    pub fn lr(&self) -> f64 {
        self.lr
    }
}

/// Says when to stop because a metric no longer improves.
///
/// PyTorch has no such thing; patience is counted as its `ReduceLROnPlateau` counts: `patience` epochs without
/// improvement are put up with, one more is not.
///
/// What serde keeps of it, in a [`crate::Checkpoint`] say, goes on as it would have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    patience: usize,
    best: Best,
    best_epoch: Option<usize>,
    epochs: usize,
}

impl EarlyStopping {
    /// An improvement is a metric better than the best by more than `min_delta`, in the metric's unit.
    ///
    /// # Errors
    /// `min_delta` is not a finite number of 0 or above.
    pub fn new(mode: Mode, patience: usize, min_delta: f64) -> Result<Self> {
        not_negative("EarlyStopping", "min_delta", min_delta)?;
        Ok(Self { patience, best: Best::new(mode, Threshold::Absolute(min_delta)), best_epoch: None, epochs: 0 })
    }

    /// Takes the metric of the epoch that has ended; whether the last improvement was more than `patience` epochs ago.
    ///
    /// A NaN is no improvement.
    pub fn stop(&mut self, metric: f64) -> bool {
        if self.best.update(metric) {
            self.best_epoch = Some(self.epochs);
        }
        self.epochs = self.epochs.saturating_add(1);
        self.best.bad_epochs > self.patience
    }

    /// The metric of the last improvement; `None` before the first.
    pub fn best(&self) -> Option<f64> {
        self.best.metric
    }

    /// The epoch of the last improvement, counted from 0; `None` before the first.
    pub fn best_epoch(&self) -> Option<usize> {
        self.best_epoch
    }
}

/// Half a cosine: `from` at angle 0, `to` at angle pi.
fn cosine(from: f64, to: f64, angle: f64) -> f64 {
    to + (from - to) / 2.0 * (1.0 + angle.cos())
}

fn check(ok: bool, op: &'static str, argument: &'static str, expected: &str, got: impl ToString) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::argument(op, argument, expected, got)) }
}

fn not_zero(op: &'static str, argument: &'static str, value: usize) -> Result<()> {
    check(value > 0, op, argument, "at least 1", value)
}

fn not_negative(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    check(value >= 0.0 && value.is_finite(), op, argument, "finite, 0 or above", value)
}

fn positive(op: &'static str, argument: &'static str, value: f64) -> Result<()> {
    check(value > 0.0 && value.is_finite(), op, argument, "finite, above 0", value)
}
