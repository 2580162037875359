//! Adam, and AdamW.

use super::{Rule, not_negative, positive, require};
use crate::error::Result;
use crate::kernels::Update;
use crate::kernels::adam::{KERNEL, Params};
use crate::plan::Recorder;

/// Adam (`torch.optim.Adam`; Kingma and Ba 2015).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Factor of the parameter that is added to its gradient.
    pub weight_decay: f64,
}

impl Adam {
    /// PyTorch's defaults at this learning rate: betas 0.9 and 0.999, eps 1e-8, no weight decay.
    pub fn new(lr: f64) -> Self {
        Self { lr, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0 }
    }

    fn update(&self, r: &mut Recorder, update: Update<'_>, decoupled: bool) -> Result<()> {
        let (beta1, beta2) = self.betas;
        let params = Params {
            n: update.len() as u32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            epsilon: self.eps as f32,
            // Of 0, a number whose power is 0 and that shaders know.
            ln_beta1: beta1.ln().max(-100.0) as f32,
            ln_beta2: beta2.ln().max(-100.0) as f32,
            weight_decay: self.weight_decay as f32,
            decoupled: decoupled.into(),
        };
        update.record(r, &KERNEL, params, &self.moments())
    }
}

impl Rule for Adam {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn check(&self) -> Result<()> {
        for beta in [self.betas.0, self.betas.1] {
            require("betas", beta, |beta| (0.0..1.0).contains(&beta), "at least 0 and below 1")?;
        }
        positive("eps", self.eps)?;
        not_negative("weight_decay", self.weight_decay)
    }

    fn moments(&self) -> Vec<(&'static str, bool)> {
        vec![("exp_avg", true), ("exp_avg_sq", true)]
    }

    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()> {
        self.update(r, update, false)
    }
}

/// Adam with decoupled weight decay (`torch.optim.AdamW`; Loshchilov and Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW(
    /// Its settings; here the weight decay, times the learning rate, is taken from the parameter itself.
    pub Adam,
);

impl AdamW {
    /// PyTorch's defaults at this learning rate: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01.
    pub fn new(lr: f64) -> Self {
        Self(Adam { weight_decay: 0.01, ..Adam::new(lr) })
    }
}

impl Rule for AdamW {
    fn lr(&self) -> f64 {
        self.0.lr()
    }

    fn check(&self) -> Result<()> {
        self.0.check()
    }

    fn moments(&self) -> Vec<(&'static str, bool)> {
        self.0.moments()
    }

    fn record(&self, r: &mut Recorder, update: Update<'_>) -> Result<()> {
        self.0.update(r, update, true)
    }
}
