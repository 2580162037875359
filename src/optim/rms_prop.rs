//! RMSprop.

use super::{Rule, not_negative, positive, require};
use crate::error::Result;
use crate::kernels::Update;
use crate::kernels::rms_prop::{KERNEL, Params};
use crate::plan::Recorder;

/// RMSprop (`torch.optim.RMSprop`; Hinton 2012).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean square.
    pub alpha: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Factor of the parameter that is added to its gradient.
    pub weight_decay: f64,
    /// How much of the last step's direction is kept.
    pub momentum: f64,
    /// Whether the gradient is divided by its deviation in place of its mean square.
    pub centered: bool,
}

impl RmsProp {
    /// PyTorch's defaults at this learning rate: alpha 0.99, eps 1e-8, no weight decay, no momentum, not centered.
    pub fn new(lr: f64) -> Self {
        Self { lr, alpha: 0.99, eps: 1e-8, weight_decay: 0.0, momentum: 0.0, centered: false }
    }
}

impl Rule for RmsProp {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self) -> Result<()> {
        require("alpha", self.alpha, |alpha| (0.0..=1.0).contains(&alpha), "from 0 to 1")?;
        positive("eps", self.eps)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("momentum", self.momentum)
    }

    fn moments(&self) -> Vec<(&'static str, bool)> {
        vec![("square_avg", true), ("grad_avg", self.centered), ("momentum_buffer", self.momentum != 0.0)]
    }

    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()> {
        let params = Params {
            n: update.len() as u32,
            alpha: self.alpha as f32,
            rest: (1.0 - self.alpha) as f32,
            epsilon: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            momentum: self.momentum as f32,
            centered: self.centered.into(),
        };
        update.record(r, &KERNEL, params, &self.moments())
    }
}
