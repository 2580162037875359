//! Stochastic gradient descent.

use super::{Rule, not_negative, require};
use crate::error::Result;
use crate::kernels::Update;
use crate::kernels::sgd::{KERNEL, Params};
use crate::plan::Recorder;

/// Stochastic gradient descent (`torch.optim.SGD`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// How much of the last step's direction is kept.
    pub momentum: f64,
    /// How much of the gradient the momentum leaves out.
    pub dampening: f64,
    /// Factor of the parameter that is added to its gradient.
    pub weight_decay: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
}

impl Sgd {
    /// PyTorch's defaults at this learning rate: no momentum, no weight decay.
    pub fn new(lr: f64) -> Self {
        Self { lr, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

impl Rule for Sgd {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self) -> Result<()> {
        let Self { momentum, dampening, weight_decay, nesterov, .. } = *self;
        not_negative("momentum", momentum)?;
        not_negative("weight_decay", weight_decay)?;
        require("dampening", dampening, |value| !nesterov || value == 0.0, "finite, and 0 with nesterov")?;
        require("momentum", momentum, |value| !nesterov || value > 0.0, "above 0 with nesterov")
    }

    fn moments(&self) -> Vec<(&'static str, bool)> {
        vec![("momentum_buffer", self.momentum != 0.0)]
    }

    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()> {
        let params = Params {
            n: update.len() as u32,
            momentum: self.momentum as f32,
            dampening: self.dampening as f32,
            weight_decay: self.weight_decay as f32,
            nesterov: self.nesterov.into(),
        };
        update.record(r, &KERNEL, params, &self.moments())
    }
}
