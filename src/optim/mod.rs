//! Optimizers, with PyTorch's formulas and defaults.

mod adagrad;
mod adam;
mod memory;
mod rms_prop;
mod sgd;

use std::fmt;
use std::sync::Arc;

pub use adagrad::Adagrad;
pub use adam::{Adam, AdamW};
pub(crate) use memory::{Memory, Trouble, Updates, Watch};
pub use rms_prop::RmsProp;
pub use sgd::Sgd;

use crate::error::{Error, Result};
use crate::kernels::Update;
use crate::plan::Recorder;
use crate::schedule::Schedule;

/// How a step moves the parameters: what each file of this folder has, and all that an optimizer is. Its kernel is one of the
/// crate's own.
pub trait Rule: fmt::Debug + Send + Sync + 'static {
    /// The learning rate to start with.
    fn lr(&self) -> f64;

    /// Refuses settings out of range.
    ///
    /// # Errors
    /// Names the setting.
    fn check(&self) -> Result<()>;

    /// The name of each block that it remembers from step to step, PyTorch's, and whether its settings have a use for it.
    fn moments(&self) -> Vec<(&'static str, bool)>;

    /// Records one update; the moments are in the order of [`Self::moments`].
    ///
    /// # Errors
    /// The sizes differ.
    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()>;
}

/// Any of the optimizers, and what is done around its updates.
///
/// ```
/// use elman::optim::{AdamW, Clip, NotFinite};
/// use elman::schedule::CosineAnnealing;
///
/// let optimizer = AdamW::default()
///     .clip(Clip::Norm(5.0))
///     .schedule(CosineAnnealing::new(1e-3, 10_000, 0.0)?)
///     .group(&["embedding"], AdamW::new(1e-4))
///     .accumulate(4)
///     .average(0.999)
///     .not_finite(NotFinite::Skip);
/// # let _ = optimizer;
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone)]
pub struct Optimizer {
    rule: Arc<dyn Rule>,
    groups: Vec<Group>,
    clip: Option<Clip>,
    schedule: Option<Arc<dyn Schedule + Send + Sync>>,
    accumulate: usize,
    average: Option<f64>,
    not_finite: NotFinite,
}

/// Parameters with a rule of their own.
#[derive(Clone, Debug)]
struct Group {
    names: Vec<String>,
    rule: Arc<dyn Rule>,
}

/// What a [`crate::Trainer`] does where a loss, or the norm of the gradient, is not finite. An update that overflows by itself, of a
/// gradient that was finite, shows in the step after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotFinite {
    /// From that step on nothing is updated, until the losses are read, which gives [`Error::NotFinite`]: parameters and moments are
    /// those of before the step.
    #[default]
    Stop,
    /// That one update is left out ([`crate::Trainer::updates_left_out`]); its loss is among the losses as it is. A state that is carried
    /// ([`crate::nn::State`]) and that the step has left not finite stays so until it is zeroed.
    Skip,
}

impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, groups, clip, schedule, accumulate, average, not_finite } = self;
        let mut f = f.debug_struct("Optimizer");
        f.field("rule", rule).field("groups", groups).field("clip", clip).field("scheduled", &schedule.is_some());
        f.field("accumulate", accumulate).field("average", average).field("not_finite", not_finite).finish()
    }
}

/// How the gradient is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Clip {
    /// Scaled so that the norm of all gradients together is at most this (`torch.nn.utils.clip_grad_norm_`).
    Norm(f64),
    /// Each element kept within this distance from 0 (`torch.nn.utils.clip_grad_value_`).
    Value(f64),
}

impl<R: Rule> From<R> for Optimizer {
    fn from(rule: R) -> Self {
        Self {
            rule: Arc::new(rule),
            groups: Vec::new(),
            clip: None,
            schedule: None,
            accumulate: 1,
            average: None,
            not_finite: NotFinite::Stop,
        }
    }
}

impl Optimizer {
    /// Clips the gradient before each update.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip: Some(clip), ..self }
    }

    /// Takes the learning rate of each step of a [`crate::Trainer`] from a schedule, in place of that of the optimizer.
    pub fn schedule(self, schedule: impl Schedule + Send + Sync + 'static) -> Self {
        Self { schedule: Some(Arc::new(schedule)), ..self }
    }

    /// Trains some parameters by settings of their own (PyTorch's parameter groups). A name is a parameter's, or a module's: then it
    /// stands for all of its parameters. The last group that names a parameter has it. A schedule, or [`crate::Trainer::set_lr`],
    /// moves all learning rates in proportion.
    pub fn group(mut self, names: &[&str], rule: impl Rule) -> Self {
        self.groups.push(Group { names: names.iter().map(|&name| name.into()).collect(), rule: Arc::new(rule) });
        self
    }

    /// Updates once in so many steps, by the mean of their gradients: batches larger than memory. Schedules count updates. The mean is
    /// of the steps' losses, each as it is.
    pub fn accumulate(self, steps: usize) -> Self {
        Self { accumulate: steps, ..self }
    }

    /// Keeps an exponential moving average of the parameters beside them, [`crate::Trainer::averaged`]: after each update, the average
    /// goes `1 - decay` of the way to them (PyTorch's `AveragedModel` with `get_ema_multi_avg_fn(decay)`).
    pub fn average(self, decay: f64) -> Self {
        Self { average: Some(decay), ..self }
    }

    /// What to do where a loss or the gradient is not finite, if not [`NotFinite::Stop`].
    pub fn not_finite(self, not_finite: NotFinite) -> Self {
        Self { not_finite, ..self }
    }

    /// The learning rate of a step, if nobody sets another.
    fn lr(&self, step: u64) -> f64 {
        let update = step / self.accumulate as u64;
        self.schedule.as_ref().map_or(self.rule.lr(), |schedule| schedule.lr(update as usize))
    }

    /// The rules: of what no group names, then of each group.
    fn rules(&self) -> impl Iterator<Item = &dyn Rule> {
        std::iter::once(&self.rule).chain(self.groups.iter().map(|group| &group.rule)).map(|rule| &**rule)
    }

    /// What all rules remember, and whether one of them has a use for it.
    fn moments(&self) -> Vec<(&'static str, bool)> {
        let mut all = self.rule.moments();
        for rule in self.rules() {
            all.iter_mut().zip(rule.moments()).for_each(|((_, used), (_, here))| *used |= here);
        }
        all
    }

    fn check(&self) -> Result<()> {
        if self.accumulate == 0 || u32::try_from(self.accumulate).is_err() {
            return Err(Error::argument("optimizer", "accumulate", "from 1 to 2³² - 1", self.accumulate));
        }
        check_lr(self.lr(0))?;
        let names = |rule: &dyn Rule| rule.moments().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let ours = names(&*self.rule);
        for rule in self.rules() {
            check_lr(rule.lr())?;
            rule.check()?;
            if names(rule) != ours {
                let expected = format!("one that remembers {ours:?}, as {:?} does", self.rule);
                return Err(Error::argument("optimizer", "group", expected, format!("{rule:?}")));
            }
        }
        if let Some(decay) = self.average {
            require("average", decay, |decay| (0.0..1.0).contains(&decay), "at least 0 and below 1")?;
        }
        match self.clip {
            Some(Clip::Norm(most)) => positive("clip norm", most),
            Some(Clip::Value(most)) => positive("clip value", most),
            None => Ok(()),
        }
    }
}

/// What [`Optimizer`] has, for each rule; and PyTorch's default learning rate.
macro_rules! optimizers {
    ($($rule:ty: $lr:literal),* $(,)?) => {
        $(
            impl $rule {
                /// [`Optimizer::clip`].
                pub fn clip(self, clip: Clip) -> Optimizer {
                    Optimizer::from(self).clip(clip)
                }

                /// [`Optimizer::schedule`].
                pub fn schedule(self, schedule: impl Schedule + Send + Sync + 'static) -> Optimizer {
                    Optimizer::from(self).schedule(schedule)
                }

                /// [`Optimizer::group`].
                pub fn group(self, names: &[&str], rule: impl Rule) -> Optimizer {
                    Optimizer::from(self).group(names, rule)
                }

                /// [`Optimizer::accumulate`].
                pub fn accumulate(self, steps: usize) -> Optimizer {
                    Optimizer::from(self).accumulate(steps)
                }

                /// [`Optimizer::average`].
                pub fn average(self, decay: f64) -> Optimizer {
                    Optimizer::from(self).average(decay)
                }

                /// [`Optimizer::not_finite`].
                pub fn not_finite(self, not_finite: NotFinite) -> Optimizer {
                    Optimizer::from(self).not_finite(not_finite)
                }
            }

            /// PyTorch's defaults, those of the learning rate too.
            impl Default for $rule {
                fn default() -> Self {
                    Self::new($lr)
                }
            }
        )*
    };
}

optimizers!(Adagrad: 1e-2, Adam: 1e-3, AdamW: 1e-3, RmsProp: 1e-2, Sgd: 1e-3);

/// Checks a setting as what kernels take, an f32: in f64, 1e-46 is above 0 and 1e39 finite.
fn require(name: &'static str, value: f64, ok: impl FnOnce(f32) -> bool, expected: &str) -> Result<()> {
    let as_f32 = value as f32;
    if as_f32.is_finite() && ok(as_f32) {
        return Ok(());
    }
    Err(Error::argument("optimizer", name, format!("{expected}, as an f32"), value))
}

fn not_negative(name: &'static str, value: f64) -> Result<()> {
    require(name, value, |value| value >= 0.0, "finite, 0 or above")
}

fn positive(name: &'static str, value: f64) -> Result<()> {
    require(name, value, |value| value > 0.0, "finite, above 0")
}

pub(crate) fn check_lr(lr: f64) -> Result<()> {
    not_negative("lr", lr)
}
