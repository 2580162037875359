//! Optimizers, with PyTorch's formulas and defaults.

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernels::adam::Update;
use crate::kernels::{adam, squared_norm};
use crate::nn::Parameters;
use crate::tensor::{DType, Tensor};

/// Adam (`torch.optim.Adam`), optionally with the gradient clipped by its global norm
/// (`torch.nn.utils.clip_grad_norm_`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The largest global norm of the gradient.
    pub max_norm: Option<f64>,
}

impl Adam {
    /// PyTorch's defaults at this learning rate: betas 0.9 and 0.999, eps 1e-8, no clipping.
    pub fn new(lr: f64) -> Self {
        Self { lr, betas: (0.9, 0.999), eps: 1e-8, max_norm: None }
    }

    fn check(&self) -> Result<()> {
        let within = |name, value: f64, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(Error::argument("Adam", name, expected, value)) }
        };
        check_lr(self.lr)?;
        for beta in [self.betas.0, self.betas.1] {
            within("betas", beta, beta > 0.0 && beta < 1.0, "between 0 and 1")?;
        }
        within("eps", self.eps, self.eps > 0.0, "above 0")?;
        let max_norm = self.max_norm.unwrap_or(1.0);
        within("max_norm", max_norm, max_norm > 0.0, "above 0")
    }
}

fn check_lr(lr: f64) -> Result<()> {
    if lr >= 0.0 && lr.is_finite() { Ok(()) } else { Err(Error::argument("Adam", "lr", "finite, 0 or above", lr)) }
}

/// An optimizer's memory on the device: its moments, and the learning rate of the next step.
#[derive(Debug)]
pub(crate) struct Optimizer {
    options: Adam,
    lr: Tensor,
    mean: Tensor,
    square: Tensor,
}

impl Optimizer {
    pub fn new(options: Adam, parameters: &Parameters) -> Result<Self> {
        options.check()?;
        let device = parameters.device();
        let moment = |name| device.zeros(name, parameters.values().shape(), DType::F32);
        Ok(Self {
            options,
            lr: device.upload("lr", &[1], &[options.lr as f32])?,
            mean: moment("mean of the gradient")?,
            square: moment("mean of its square")?,
        })
    }

    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        check_lr(lr)?;
        self.options.lr = lr;
        self.lr.write(&[lr as f32])
    }

    pub fn lr(&self) -> f64 {
        self.options.lr
    }

    /// Records one update from the gradients of the graph.
    pub fn record(&self, g: &mut Graph, parameters: &Parameters) -> Result<()> {
        let squared_norm = match self.options.max_norm {
            None => None,
            Some(_) => {
                let norm = g.zeros("squared norm", &[1])?;
                squared_norm::squared_norm(g, parameters.gradients(), &norm)?;
                Some(norm)
            }
        };
        let clock = g.clock()?;
        let update = Update {
            gradient: parameters.gradients(),
            lr: &self.lr,
            squared_norm: squared_norm.as_ref(),
            clock: &clock,
            parameters: parameters.values(),
            mean: &self.mean,
            square: &self.square,
        };
        adam::adam(g, &self.options, update)
    }
}
