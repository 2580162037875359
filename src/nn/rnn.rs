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
/// let rnn = nn::Rnn::new(&mut init, "rnn", 4, 7)?;
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
    hidden: usize,
    batch_first: bool,
    layers: Vec<Layer>,
}

/// The parameters of one layer in one direction.
#[derive(Clone, Debug)]
struct Layer {
    weight_ih: ParameterId,
    weight_hh: ParameterId,
    /// `bias_ih`, `bias_hh`.
    biases: Option<[ParameterId; 2]>,
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
    pub fn new(init: &mut Init, name: &str, input: usize, hidden: usize) -> Result<Self> {
        Self::with_bias(init, name, input, hidden, true)
    }

    /// [`Self::new`] with `bias=False`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_bias(init: &mut Init, name: &str, input: usize, hidden: usize) -> Result<Self> {
        Self::with_bias(init, name, input, hidden, false)
    }

    fn with_bias(init: &mut Init, name: &str, input: usize, hidden: usize, bias: bool) -> Result<Self> {
        let bound = 1.0 / (hidden as f64).sqrt();
        let mut draw = |kind: &str, shape: &[usize]| init.uniform(format!("{name}.{kind}_l0"), shape, bound);
        let weight_ih = draw("weight_ih", &[hidden, input])?;
        let weight_hh = draw("weight_hh", &[hidden, hidden])?;
        let biases = if bias { Some([draw("bias_ih", &[hidden])?, draw("bias_hh", &[hidden])?]) } else { None };
        Ok(Self { hidden, batch_first: false, layers: vec![Layer { weight_ih, weight_hh, biases }] })
    }

    /// Takes and returns sequences as `[B, T, ..]`.
    pub fn batch_first(self, batch_first: bool) -> Self {
        Self { batch_first, ..self }
    }

    /// A zero state for `batch` sequences, to carry from window to window.
    ///
    /// # Errors
    /// A batch of 0.
    pub fn state(&self, device: &Device, batch: usize) -> Result<State> {
        State::zeros(device, &[("h", [self.layers.len(), batch, self.hidden])])
    }

    /// `x` `[T, B, I]` (`[B, T, I]` if batch first).
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(&self, g: &mut Graph, x: Var, initial: InitialState<'_>) -> Result<RnnOutput> {
        if g.shape(x).len() != 3 {
            let expected = if self.batch_first { "[B, T, I]" } else { "[T, B, I]" };
            return Err(Error::shape("rnn", "input", expected, g.shape(x)));
        }
        let mut x = if self.batch_first { functional::swap_axes(g, x)? } else { x };
        let mut h_n = None;
        for layer in &self.layers {
            let weight_ih = g.parameter(layer.weight_ih);
            let bias = match layer.biases {
                None => None,
                Some(biases) => {
                    let [b_ih, b_hh] = biases.map(|bias| g.parameter(bias));
                    Some(functional::add(g, b_ih, b_hh)?)
                }
            };
            let projected = functional::linear(g, x, weight_ih, bias)?;
            let weight_hh = g.parameter(layer.weight_hh);
            let out = functional::tanh_recurrence(g, projected, weight_hh, initial)?;
            (x, h_n) = (out.output, Some(out.h_n));
        }
        let h_n = h_n.expect("a module has a layer");
        let output = if self.batch_first { functional::swap_axes(g, x)? } else { x };
        Ok(RnnOutput { output, h_n })
    }
}
