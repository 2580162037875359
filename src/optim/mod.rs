//! Optimizers, with PyTorch's formulas and defaults.

mod adagrad;
mod adam;
mod rms_prop;
mod sgd;

use std::fmt;
use std::sync::Arc;

pub use adagrad::Adagrad;
pub use adam::{Adam, AdamW};
pub use rms_prop::RmsProp;
pub use sgd::Sgd;

use crate::error::{Error, Result};
use crate::graph::{Graph, Parameters};
use crate::kernels::{Update, clip};
use crate::plan::Recorder;
use crate::schedule::Schedule;
use crate::tensor::{DType, Tensor};

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

/// Any of the optimizers, whether the gradient is clipped before, and the schedule of the learning rate, if there is
/// one.
///
/// ```
/// use elman::optim::{Adam, Clip};
/// use elman::schedule::CosineAnnealing;
///
/// let optimizer = Adam::default().clip(Clip::Norm(5.0)).schedule(CosineAnnealing::new(1e-3, 10_000, 0.0)?);
/// # let _ = optimizer;
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone)]
pub struct Optimizer {
    rule: Arc<dyn Rule>,
    clip: Option<Clip>,
    schedule: Option<Arc<dyn Schedule + Send + Sync>>,
}

impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, clip, schedule } = self;
        let scheduled = schedule.is_some();
        f.debug_struct("Optimizer").field("rule", rule).field("clip", clip).field("scheduled", &scheduled).finish()
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
        Self { rule: Arc::new(rule), clip: None, schedule: None }
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

    /// The learning rate of a step, if nobody sets another.
    fn lr(&self, step: u64) -> f64 {
        self.schedule.as_ref().map_or(self.rule.lr(), |schedule| schedule.lr(step as usize))
    }

    fn check(&self) -> Result<()> {
        check_lr(self.lr(0))?;
        self.rule.check()?;
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

/// An optimizer's memory on the device: the learning rate of the next step, and its moments.
#[derive(Debug)]
pub(crate) struct Memory {
    optimizer: Optimizer,
    lr: f64,
    lr_tensor: Tensor,
    /// In the order of [`Rule::moments`]; one of no use has one element.
    moments: Vec<Tensor>,
}

impl Memory {
    pub fn new(optimizer: Optimizer, parameters: &Parameters) -> Result<Self> {
        optimizer.check()?;
        let device = parameters.device();
        let moment = |(name, used): (&str, bool)| {
            device.zeros(name, if used { parameters.values().shape() } else { &[1] }, DType::F32)
        };
        let (lr, moments) = (optimizer.lr(0), optimizer.rule.moments());
        Ok(Self {
            optimizer,
            lr,
            lr_tensor: device.upload("lr", &[1], &[lr as f32])?,
            moments: moments.into_iter().map(moment).collect::<Result<_>>()?,
        })
    }

    /// What it remembers from step to step: the name of each block in use, and the block, laid out like the parameters.
    pub fn moments(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let used = self.optimizer.rule.moments().into_iter().zip(&self.moments);
        used.filter(|((_, used), _)| *used).map(|((name, _), tensor)| (name, tensor))
    }

    /// Goes on with a learning rate that an earlier run had.
    pub fn restore_lr(&mut self, lr: f64) -> Result<()> {
        if self.optimizer.schedule.is_some() { Ok(()) } else { self.write_lr(lr) }
    }

    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        if self.optimizer.schedule.is_some() {
            return Err(Error::argument("optimizer", "lr", "left to the schedule that the optimizer has", lr));
        }
        self.write_lr(lr)
    }

    fn write_lr(&mut self, lr: f64) -> Result<()> {
        check_lr(lr)?;
        self.lr_tensor.write(&[lr as f32])?;
        self.lr = lr;
        Ok(())
    }

    /// The learning rate of this step.
    pub fn lr(&self, step: u64) -> f64 {
        if self.optimizer.schedule.is_some() { self.optimizer.lr(step) } else { self.lr }
    }

    /// Sets the learning rate of this step, if a schedule has another than before, and gives how many of `most` steps
    /// from here on have the same, at most 64 where there is a schedule.
    pub fn prepare(&mut self, step: u64, most: usize) -> Result<usize> {
        if self.optimizer.schedule.is_none() {
            return Ok(most);
        }
        let lr = self.optimizer.lr(step);
        if lr != self.lr {
            self.write_lr(lr)?;
        }
        Ok((step..).take(most.min(64)).take_while(|&step| self.optimizer.lr(step) == lr).count())
    }

    /// Records one update of the parameters that a gradient has flowed into; the others stay as they are.
    pub fn record(&self, g: &mut Graph, parameters: &Parameters) -> Result<()> {
        let trained = parameters.stretches(|id| g.has_gradient(id));
        if trained.is_empty() {
            let expected = "one that depends on a parameter that is not frozen";
            return Err(Error::argument(
                "trainer",
                "loss",
                expected,
                "one that depends on none: no gradient reaches any",
            ));
        }
        let (r, gradient): (&mut Recorder, _) = (g, parameters.gradients());
        match self.optimizer.clip {
            Some(Clip::Norm(most)) => clip::clip_norm(r, gradient, most)?,
            Some(Clip::Value(most)) => clip::clip_value(r, gradient, most)?,
            None => {}
        }
        let (lr, clock) = (&self.lr_tensor, &r.clock()?);
        for stretch in trained {
            let of = |block: &Tensor| match block.len() == gradient.len() {
                true => block.view(block.name(), stretch.start, &[stretch.len()]),
                false => block.clone(),
            };
            let moments: Vec<_> = self.moments.iter().map(of).collect();
            let (gradient, parameters) = (&of(gradient), &of(parameters.values()));
            self.optimizer.rule.record(r, Update { gradient, lr, clock, parameters, moments: &moments })?;
        }
        Ok(())
    }
}
