//! `nn.LayerNorm`.

use super::{functional, sizes_in_file};
use crate::error::Result;
use crate::graph::{Graph, Init, ParameterId, Var, name_in};

/// Normalization of each row (`torch.nn.LayerNorm` of the last dimension): parameters `weight` `[C]`, ones, and `bias` `[C]`, zeros.
///
/// ```
/// use elman::{Device, Graph, nn, rng};
///
/// let device = Device::cpu();
/// let mut init = nn::Init::new(rng::manual_seed(0));
/// let norm = nn::LayerNorm::new(&mut init, "norm", 4)?;
/// let parameters = init.upload(&device)?;
/// let mut g = Graph::inference(&parameters);
/// let x = g.input(&device.upload("x", &[1, 4], &[1., 2., 3., 4.])?)?;
/// let y = norm.forward(&mut g, x)?;
/// let y = g.tensor(y)?;
/// g.finish()?.run()?;
/// assert!((y.to_vec()?[0] + 1.3416).abs() < 1e-3);
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayerNorm {
    name: String,
    weight: ParameterId,
    bias: ParameterId,
    eps: f32,
}

impl LayerNorm {
    /// Adds the parameters `<name>.weight` and `<name>.bias`, with an `eps` of 1e-5.
    ///
    /// # Errors
    /// A size of 0, or the name is taken.
    pub fn new(init: &mut Init, name: &str, channels: usize) -> Result<Self> {
        let mut add = |parameter: &str, value| init.constant(name_in(name, parameter), &[channels], value);
        Ok(Self { weight: add("weight", 1.0)?, bias: add("bias", 0.0)?, name: name.into(), eps: 1e-5 })
    }

    /// With the size and the values that the file of [`Init::from_file`] has under this name.
    ///
    /// # Errors
    /// The file has no such module; `init` has no file; the name is taken.
    pub fn from_file(init: &mut Init, name: &str) -> Result<Self> {
        let ([channels], _) = sizes_in_file(init, name)?;
        Self::new(init, name, channels)
    }

    /// Sets what is added to the variance.
    pub fn eps(self, eps: f32) -> Self {
        Self { eps, ..self }
    }

    /// `x` `[.., C]` to the same shape.
    ///
    /// # Errors
    /// The last dimension of `x` is not C.
    pub fn forward(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let affine = (g.parameter(self.weight)?, g.parameter(self.bias)?);
        let y = functional::layer_norm(g, x, Some(affine), self.eps).map_err(|error| error.in_module(&self.name))?;
        g.set_name(y, &self.name);
        Ok(y)
    }
}
