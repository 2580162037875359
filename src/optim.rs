//! Optimizers, with PyTorch's formulas and defaults.

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernels::{adam, clip, rms_prop, sgd};
use crate::nn::Parameters;
use crate::tensor::{DType, Tensor};

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

/// Any of the optimizers, and whether the gradient is clipped before.
///
/// ```
/// use elman::optim::{Adam, Clip, Optimizer};
///
/// let optimizer = Optimizer::from(Adam::new(1e-3)).clip(Clip::Norm(5.0));
/// # let _ = optimizer;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    rule: Rule,
    clip: Option<Clip>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Sgd(Sgd),
    Adam(Adam),
    AdamW(Adam),
    RmsProp(RmsProp),
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

impl From<Sgd> for Optimizer {
    fn from(sgd: Sgd) -> Self {
        Self { rule: Rule::Sgd(sgd), clip: None }
    }
}

impl From<Adam> for Optimizer {
    fn from(adam: Adam) -> Self {
        Self { rule: Rule::Adam(adam), clip: None }
    }
}

impl From<AdamW> for Optimizer {
    fn from(AdamW(adam): AdamW) -> Self {
        Self { rule: Rule::AdamW(adam), clip: None }
    }
}

impl From<RmsProp> for Optimizer {
    fn from(rms_prop: RmsProp) -> Self {
        Self { rule: Rule::RmsProp(rms_prop), clip: None }
    }
}

impl Optimizer {
    /// Clips the gradient before each update.
    pub fn clip(self, clip: Clip) -> Self {
        Self { clip: Some(clip), ..self }
    }

    fn lr(&self) -> f64 {
        match self.rule {
            Rule::Sgd(Sgd { lr, .. }) | Rule::RmsProp(RmsProp { lr, .. }) => lr,
            Rule::Adam(Adam { lr, .. }) | Rule::AdamW(Adam { lr, .. }) => lr,
        }
    }

    fn check(&self) -> Result<()> {
        check_lr(self.lr())?;
        let require = |name, value: f64, ok: bool, expected: &str| {
            if ok && value.is_finite() { Ok(()) } else { Err(Error::argument("optimizer", name, expected, value)) }
        };
        let not_negative = |name, value: f64| require(name, value, value >= 0.0, "finite, 0 or above");
        let positive = |name, value: f64| require(name, value, value > 0.0, "finite, above 0");
        match self.rule {
            Rule::Sgd(Sgd { momentum, dampening, weight_decay, nesterov, .. }) => {
                not_negative("momentum", momentum)?;
                not_negative("weight_decay", weight_decay)?;
                require("dampening", dampening, !nesterov || dampening == 0.0, "finite, and 0 with nesterov")?;
                require("momentum", momentum, !nesterov || momentum > 0.0, "above 0 with nesterov")?;
            }
            Rule::Adam(Adam { betas, eps, weight_decay, .. }) | Rule::AdamW(Adam { betas, eps, weight_decay, .. }) => {
                for beta in [betas.0, betas.1] {
                    require("betas", beta, (0.0..1.0).contains(&beta), "at least 0 and below 1")?;
                }
                positive("eps", eps)?;
                not_negative("weight_decay", weight_decay)?;
            }
            Rule::RmsProp(RmsProp { alpha, eps, weight_decay, momentum, .. }) => {
                require("alpha", alpha, (0.0..=1.0).contains(&alpha), "from 0 to 1")?;
                positive("eps", eps)?;
                not_negative("weight_decay", weight_decay)?;
                not_negative("momentum", momentum)?;
            }
        }
        match self.clip {
            Some(Clip::Norm(most)) => positive("clip norm", most),
            Some(Clip::Value(most)) => positive("clip value", most),
            None => Ok(()),
        }
    }
}

fn check_lr(lr: f64) -> Result<()> {
    let expected = "finite, 0 or above";
    if lr >= 0.0 && lr.is_finite() { Ok(()) } else { Err(Error::argument("optimizer", "lr", expected, lr)) }
}

/// An optimizer's memory on the device: the learning rate of the next step, and its moments.
#[derive(Debug)]
pub(crate) struct Memory {
    optimizer: Optimizer,
    lr: f64,
    lr_tensor: Tensor,
    /// By rule: none or the velocity; mean and mean square; mean square, mean, velocity. One of no use has one element.
    moments: Vec<Tensor>,
}

impl Memory {
    pub fn new(optimizer: Optimizer, parameters: &Parameters) -> Result<Self> {
        optimizer.check()?;
        let device = parameters.device();
        let moments: &[(&str, bool)] = match optimizer.rule {
            Rule::Sgd(sgd) => &[("velocity", sgd.momentum != 0.0)],
            Rule::Adam(_) | Rule::AdamW(_) => &[("mean of the gradient", true), ("mean of its square", true)],
            Rule::RmsProp(rms) => &[("mean square", true), ("mean", rms.centered), ("velocity", rms.momentum != 0.0)],
        };
        let moment = |&(name, used): &(&str, bool)| {
            device.zeros(name, if used { parameters.values().shape() } else { &[1] }, DType::F32)
        };
        let lr = optimizer.lr();
        Ok(Self {
            optimizer,
            lr,
            lr_tensor: device.upload("lr", &[1], &[lr as f32])?,
            moments: moments.iter().map(moment).collect::<Result<_>>()?,
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

    /// Records one update from the gradients of the graph.
    pub fn record(&self, g: &mut Graph, parameters: &Parameters) -> Result<()> {
        let (gradient, lr, clock) = (parameters.gradients(), &self.lr_tensor, &g.clock()?);
        let parameters = parameters.values();
        if let Some(how) = self.optimizer.clip {
            clip::clip(g, how, gradient)?;
        }
        match (self.optimizer.rule, self.moments.as_slice()) {
            (Rule::Sgd(options), [velocity]) => {
                sgd::sgd(g, &options, sgd::Update { gradient, lr, clock, parameters, velocity })
            }
            (Rule::Adam(options), [mean, square]) => {
                adam::adam(g, &options, false, adam::Update { gradient, lr, clock, parameters, mean, square })
            }
            (Rule::AdamW(options), [mean, square]) => {
                adam::adam(g, &options, true, adam::Update { gradient, lr, clock, parameters, mean, square })
            }
            (Rule::RmsProp(options), [square, mean, velocity]) => {
                rms_prop::rms_prop(g, &options, rms_prop::Update { gradient, lr, parameters, square, mean, velocity })
            }
            _ => unreachable!("`new` has made the moments of the rule"),
        }
    }
}
