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

    /// The name of each block that it remembers from step to step, and whether its settings have a use for it.
    fn moments(&self) -> Vec<(&'static str, bool)>;

    /// Records one update; the moments are in the order of [`Self::moments`].
    ///
    /// # Errors
    /// The sizes differ.
    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()>;
}

/// Any of the optimizers, and whether the gradient is clipped before.
///
/// ```
/// use elman::optim::{Adam, Clip, Optimizer};
///
/// let optimizer = Optimizer::from(Adam::new(1e-3)).clip(Clip::Norm(5.0));
/// # let _ = optimizer;
/// ```
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: Arc<dyn Rule>,
    clip: Option<Clip>,
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
        Self { rule: Arc::new(rule), clip: None }
    }
}

impl Optimizer {
    /// Clips the gradient before each update.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip: Some(clip), ..self }
    }

    fn check(&self) -> Result<()> {
        check_lr(self.rule.lr())?;
        self.rule.check()?;
        match self.clip {
            Some(Clip::Norm(most)) => positive("clip norm", most),
            Some(Clip::Value(most)) => positive("clip value", most),
            None => Ok(()),
        }
    }
}

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

fn check_lr(lr: f64) -> Result<()> {
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
        let (lr, moments) = (optimizer.rule.lr(), optimizer.rule.moments());
        Ok(Self {
            optimizer,
            lr,
            lr_tensor: device.upload("lr", &[1], &[lr as f32])?,
            moments: moments.into_iter().map(moment).collect::<Result<_>>()?,
        })
    }

    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        check_lr(lr)?;
        self.lr = lr;
        self.lr_tensor.write(&[lr as f32])
    }

    pub fn lr(&self) -> f64 {
        self.lr
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
