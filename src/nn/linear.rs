//! `nn.Linear`.

use super::functional::{self, ClassReduction, Loss};
use super::sizes_in_file;
use crate::error::Result;
use crate::graph::{Graph, Init, ParameterId, Var, name_in};
use crate::tensor::Tensor;

/// `y = x Wᵀ + b` (`torch.nn.Linear`): parameters `weight` `[O, I]` and `bias` `[O]` from U(-1/√I, 1/√I).
#[derive(Clone, Debug)]
pub struct Linear {
    name: String,
    pub(super) weight: ParameterId,
    pub(super) bias: Option<ParameterId>,
}

impl Linear {
    /// What its parameters' names begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has a bias.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// Draws the parameters `<name>.weight` and `<name>.bias`.
    ///
    /// # Errors
    /// A size of 0, or the name is taken.
    pub fn new(init: &mut Init, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        let mut layer = Self::without_bias(init, name, inputs, outputs)?;
        let bound = 1.0 / (inputs as f64).sqrt();
        layer.bias = Some(init.uniform(name_in(name, "bias"), &[outputs], bound)?);
        Ok(layer)
    }

    /// [`Self::new`] with `bias=False`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_bias(init: &mut Init, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        // kaiming_uniform_ with a = √5, in PyTorch's order of operations so that the bound has its bits.
        let bound = 3f64.sqrt() * ((2f64 / (1.0 + 5.0)).sqrt() / (inputs as f64).sqrt());
        let weight = init.uniform(name_in(name, "weight"), &[outputs, inputs], bound)?;
        Ok(Self { name: name.into(), weight, bias: None })
    }

    /// With the sizes and the values that the file of [`Init::from_file`] has under this name, and a bias if it has one.
    ///
    /// # Errors
    /// The file has no such layer; `init` has no file; the name is taken.
    pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
        let ([outputs, inputs], has_bias) = sizes_in_file(init, name)?;
        if has_bias { Self::new(init, name, inputs, outputs) } else { Self::without_bias(init, name, inputs, outputs) }
    }

    /// `x` `[.., I]` to `[.., O]`.
    ///
    /// # Errors
    /// The last dimension of `x` is not I.
    pub fn forward(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let weight = g.parameter(self.weight)?;
        let bias = self.bias.map(|bias| g.parameter(bias)).transpose()?;
        let y = functional::linear(g, x, weight, bias).map_err(|error| error.in_module(&self.name))?;
        g.set_name(y, &self.name);
        Ok(y)
    }

    /// `functional::cross_entropy` of what [`Self::forward`] gives, without all logits at the same time
    /// ([`functional::linear_cross_entropy`]): for vocabularies of words.
    ///
    /// ```
    /// use elman::nn::{Embedding, Init, Linear, functional::Reduction};
    /// use elman::{Device, Trainer, optim::Adam, rng};
    ///
    /// let device = Device::cpu();
    /// let words = device.tokens("words", &[4, 2], 50_000)?;
    /// words.write_u32(&[1, 20_000, 3, 49_999, 5, 6, 7, 8])?;
    /// let next = device.targets("next words", &[4, 2], 50_000)?;
    /// next.write_u32(&[3, 49_999, 5, 6, 7, 8, 9, 10])?;
    /// let mut init = Init::new(rng::manual_seed(777));
    /// let embedding = Embedding::new(&mut init, "embedding", 50_000, 8)?;
    /// let output = Linear::new(&mut init, "output", 8, 50_000)?;
    /// let parameters = init.upload(&device)?;
    /// let mut trainer = Trainer::new(&parameters, Adam::new(1e-2), |g| {
    ///     let x = embedding.forward(g, &words)?; // [T, B, E]
    ///     output.cross_entropy(g, x, &next, Reduction::Mean)
    /// })?;
    /// trainer.step()?;
    /// trainer.step()?;
    /// let losses = trainer.losses()?;
    /// assert!(losses[1] < losses[0]);
    /// # Ok::<(), elman::Error>(())
    /// ```
    ///
    /// # Errors
    /// The last dimension of `x` is not I, or as [`functional::cross_entropy`].
    pub fn cross_entropy<'a>(
        &self,
        g: &mut Graph,
        x: Var,
        targets: &Tensor,
        reduction: impl Into<ClassReduction<'a>>,
    ) -> Result<Loss> {
        let weight = g.parameter(self.weight)?;
        let bias = self.bias.map(|bias| g.parameter(bias)).transpose()?;
        let loss = functional::linear_cross_entropy(g, x, weight, bias, targets, reduction);
        loss.map_err(|error| error.in_module(&self.name))
    }
}
