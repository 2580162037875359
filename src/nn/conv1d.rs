//! `nn.Conv1d`.

use super::functional::{self, Conv1dOptions};
use super::sizes_in_file;
use crate::error::{Error, Result};
use crate::graph::{Graph, Init, ParameterId, Var, name_in};

/// Convolution over time (`torch.nn.Conv1d`): parameters `weight` `[O, C / groups, K]` and `bias` `[O]` from U(-1/√F, 1/√F), F =
/// C K / groups.
///
/// ```
/// use elman::nn::functional::Conv1dOptions;
/// use elman::{Device, Graph, nn, rng};
///
/// let device = Device::cpu();
/// let mut init = nn::Init::new(rng::manual_seed(0));
/// let conv = nn::Conv1d::new(&mut init, "conv", 2, 3, 5, Conv1dOptions { padding: 2, ..Default::default() })?;
/// let parameters = init.upload(&device)?;
/// let mut g = Graph::inference(&parameters);
/// let x = g.input(&device.upload("x", &[1, 2, 10], &[0.5; 20])?)?; // [N, C, L]
/// let y = conv.forward(&mut g, x)?;
/// assert_eq!(g.shape(y), [1, 3, 10]);
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Conv1d {
    name: String,
    weight: ParameterId,
    bias: Option<ParameterId>,
    options: Conv1dOptions,
}

impl Conv1d {
    /// Draws the parameters `<name>.weight` and `<name>.bias`, of a kernel of `width` steps.
    ///
    /// # Errors
    /// A size of 0, groups that do not divide the channels, or the name is taken.
    pub fn new(
        init: &mut Init,
        name: &str,
        inputs: usize,
        outputs: usize,
        width: usize,
        options: Conv1dOptions,
    ) -> Result<Self> {
        let mut layer = Self::without_bias(init, name, inputs, outputs, width, options)?;
        let terms = inputs / options.groups * width;
        layer.bias = Some(init.uniform(name_in(name, "bias"), &[outputs], 1.0 / (terms as f64).sqrt())?);
        Ok(layer)
    }

    /// [`Self::new`] with `bias=False`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_bias(
        init: &mut Init,
        name: &str,
        inputs: usize,
        outputs: usize,
        width: usize,
        options: Conv1dOptions,
    ) -> Result<Self> {
        if options.groups == 0 || !inputs.is_multiple_of(options.groups) || !outputs.is_multiple_of(options.groups) {
            let expected = format!("of groups that divide {inputs} and {outputs} channels");
            return Err(Error::argument("conv1d", "options", expected, options.groups).in_module(name));
        }
        let of_group = inputs / options.groups;
        // As of a linear layer on a window.
        let terms = of_group.saturating_mul(width) as f64;
        let bound = 3f64.sqrt() * ((2f64 / (1.0 + 5.0)).sqrt() / terms.sqrt());
        let weight = init.uniform(name_in(name, "weight"), &[outputs, of_group, width], bound)?;
        Ok(Self { name: name.into(), weight, bias: None, options })
    }

    /// With the sizes and the values that the file of [`Init::from_file`] has under this name, and a bias if it has one. The options, groups
    /// among them, are not in the file.
    ///
    /// # Errors
    /// The file has no such layer; `init` has no file; the name is taken.
    pub fn from_file(init: &mut Init, name: &str, options: Conv1dOptions) -> Result<Self> {
        let ([outputs, of_group, width], has_bias) = sizes_in_file(init, name)?;
        let inputs = of_group.saturating_mul(options.groups);
        let make = if has_bias { Self::new } else { Self::without_bias };
        make(init, name, inputs, outputs, width, options)
    }

    /// `x` `[N, C, L]` to `[N, O, L']`; see [`functional::conv1d`].
    ///
    /// # Errors
    /// The shapes do not fit, or the sequence is shorter than the kernel.
    pub fn forward(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let weight = g.parameter(self.weight)?;
        let bias = self.bias.map(|bias| g.parameter(bias)).transpose()?;
        let y = functional::conv1d(g, x, weight, bias, self.options).map_err(|error| error.in_module(&self.name))?;
        g.set_name(y, &self.name);
        Ok(y)
    }
}
