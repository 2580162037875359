//! `nn.RNN`.

use super::functional::{self, InitialState};
use super::{Init, ParameterId, State};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};

/// The Elman network (`torch.nn.RNN`, one layer, tanh):
/// `h_t = tanh(x_t W_ihᵀ + b_ih + h_{t-1} W_hhᵀ + b_hh)`.
///
/// Parameters `weight_ih_l0` `[H, I]`, `weight_hh_l0` `[H, H]`, `bias_ih_l0` `[H]`, `bias_hh_l0` `[H]`, all from
/// U(-1/√H, 1/√H).
///
/// ```
/// use elman::{Device, Graph, nn, rng};
///
/// let device = Device::cpu();
/// let mut init = nn::Init::new(rng::manual_seed(0));
/// let rnn = nn::Rnn::new(&mut init, "rnn", nn::RnnOptions::new(4, 7))?;
/// let parameters = init.upload(&device)?;
///
/// let mut g = Graph::new(&parameters);
/// let x = g.input(&device.upload("x", &[5, 3, 4], &[0.5; 60])?)?; // [T, B, I]
/// let out = rnn.forward(&mut g, x, InitialState::Zero)?;
/// # use elman::nn::functional::InitialState;
/// assert_eq!(g.shape(out.output), [5, 3, 7]); // [T, B, H]
/// assert_eq!(g.shape(out.h_n), [1, 3, 7]); // [D * L, B, H]
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rnn {
    options: RnnOptions,
    layer: Layer,
}

/// The arguments of `torch.nn.RNN`, with its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RnnOptions {
    /// I
    pub input_size: usize,
    /// H
    pub hidden_size: usize,
    /// Whether there are biases.
    pub bias: bool,
    /// Whether sequences are taken and returned as `[B, T, ..]`.
    pub batch_first: bool,
}

impl RnnOptions {
    /// With biases, time first.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        Self { input_size, hidden_size, bias: true, batch_first: false }
    }

    /// Sets whether there are biases.
    pub fn bias(self, bias: bool) -> Self {
        Self { bias, ..self }
    }

    /// Sets whether sequences are taken and returned as `[B, T, ..]`.
    pub fn batch_first(self, batch_first: bool) -> Self {
        Self { batch_first, ..self }
    }
}

/// The parameters of one layer in one direction.
#[derive(Clone, Debug)]
struct Layer {
    weight_ih: ParameterId,
    weight_hh: ParameterId,
    /// `bias_ih`, `bias_hh`.
    biases: Option<[ParameterId; 2]>,
}

impl Layer {
    /// Draws `<name>.weight_ih<suffix>` and so on, in PyTorch's order.
    fn new(init: &mut Init, name: &str, suffix: &str, input: usize, hidden: usize, bias: bool) -> Result<Self> {
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut draw = |kind: &str, shape: &[usize]| init.uniform(format!("{name}.{kind}{suffix}"), shape, bound);
        Ok(Self {
            weight_ih: draw("weight_ih", &[hidden, input])?,
            weight_hh: draw("weight_hh", &[hidden, hidden])?,
            biases: if bias { Some([draw("bias_ih", &[hidden])?, draw("bias_hh", &[hidden])?]) } else { None },
        })
    }

    /// `x W_ihᵀ` with both biases, for all steps at once; then the recurrence.
    fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<RnnOutput> {
        let bias = match self.biases {
            None => None,
            Some([b_ih, b_hh]) => {
                let (b_ih, b_hh) = (g.parameter(b_ih)?, g.parameter(b_hh)?);
                Some(functional::add(g, b_ih, b_hh)?)
            }
        };
        let weight_ih = g.parameter(self.weight_ih)?;
        let projected = functional::linear(g, x, weight_ih, bias)?;
        let weight_hh = g.parameter(self.weight_hh)?;
        functional::tanh_recurrence(g, projected, weight_hh, initial)
    }
}

/// What a recurrent module returns.
#[derive(Clone, Copy, Debug)]
pub struct RnnOutput {
    /// The state after every step: `[T, B, H]`, or `[B, T, H]` if the module is batch first.
    pub output: Var,
    /// The state after the last step, `[D * L, B, H]` whatever `batch_first` says.
    pub h_n: Var,
}

impl Rnn {
    /// Draws the parameters `<name>.weight_ih_l0` and so on.
    ///
    /// # Errors
    /// A size of 0, or the name is taken.
    pub fn new(init: &mut Init, name: &str, options: RnnOptions) -> Result<Self> {
        let RnnOptions { input_size, hidden_size, bias, .. } = options;
        Ok(Self { options, layer: Layer::new(init, name, "_l0", input_size, hidden_size, bias)? })
    }

    /// A zero state for `batch` sequences, to carry from window to window.
    ///
    /// # Errors
    /// A batch of 0.
    pub fn state(&self, device: &Device, batch: usize) -> Result<State> {
        State::zeros(device, &[("h", [1, batch, self.options.hidden_size])])
    }

    /// `x` `[T, B, I]` (`[B, T, I]` if batch first).
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<RnnOutput> {
        let batch_first = self.options.batch_first;
        if g.shape(x).len() != 3 {
            let expected = if batch_first { "[B, T, I]" } else { "[T, B, I]" };
            return Err(Error::shape("rnn", "input", expected, g.shape(x)));
        }
        let x = if batch_first { functional::swap_axes(g, x)? } else { x };
        let RnnOutput { output, h_n } = self.layer.forward(g, x, initial)?;
        let output = if batch_first { functional::swap_axes(g, output)? } else { output };
        Ok(RnnOutput { output, h_n })
    }
}
