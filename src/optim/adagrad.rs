//! Adagrad.

use super::{Rule, not_negative, positive};
use crate::error::Result;
use crate::kernels::Update;
use crate::kernels::adagrad::{KERNEL, Params};
use crate::plan::Recorder;

/// Adagrad (`torch.optim.Adagrad`; Duchi, Hazan and Singer 2011).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adagrad {
    /// Learning rate.
    pub lr: f64,
    /// The learning rate of step t is divided by `1 + (t - 1) lr_decay`.
    pub lr_decay: f64,
    /// Factor of the parameter that is added to its gradient.
    pub weight_decay: f64,
    /// Added to the root of the sum of squares.
    pub eps: f64,
}

impl Adagrad {
    /// PyTorch's defaults at this learning rate: eps 1e-10, no decay of either kind.
    pub fn new(lr: f64) -> Self {
        Self { lr, lr_decay: 0.0, weight_decay: 0.0, eps: 1e-10 }
    }
}

impl Rule for Adagrad {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self) -> Result<()> {
        not_negative("lr_decay", self.lr_decay)?;
        not_negative("weight_decay", self.weight_decay)?;
        positive("eps", self.eps)
    }

    fn moments(&self) -> Vec<(&'static str, bool)> {
        vec![("sum", true)]
    }

    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()> {
        let params = Params {
            n: update.len() as u32,
            epsilon: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            lr_decay: self.lr_decay as f32,
        };
        update.record(r, &KERNEL, params, &self.moments())
    }
}
