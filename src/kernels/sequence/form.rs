//! What a cell is asked for in place of its own functions.

use super::{backward, forward};
use crate::real::Real;

/// A function of a gate, of those that ONNX names.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `alpha x + beta`
    #[allow(missing_docs, reason = "the numbers of the equation")]
    Affine { alpha: f32, beta: f32 },
    /// `max(0, x)`
    Relu,
    /// `x`, or `alpha x` where x is below 0.
    #[allow(missing_docs, reason = "the number of the equation")]
    LeakyRelu { alpha: f32 },
    /// `x`, or 0 where x is not above alpha.
    #[allow(missing_docs, reason = "the number of the equation")]
    ThresholdedRelu { alpha: f32 },
    /// `tanh x`
    Tanh,
    /// `alpha tanh(beta x)`
    #[allow(missing_docs, reason = "the numbers of the equation")]
    ScaledTanh { alpha: f32, beta: f32 },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `max(0, min(1, alpha x + beta))`
    #[allow(missing_docs, reason = "the numbers of the equation")]
    HardSigmoid { alpha: f32, beta: f32 },
    /// `x`, or `alpha (exp(x) - 1)` where x is below 0.
    #[allow(missing_docs, reason = "the number of the equation")]
    Elu { alpha: f32 },
    /// `x / (1 + |x|)`
    Softsign,
    /// `log(1 + exp(x))`
    Softplus,
}

impl Activation {
    /// Its number in `shaders/lib/activations.wgsl`, alpha and beta.
    pub(crate) fn parts(self) -> (u32, [f32; 2]) {
        match self {
            Self::Affine { alpha, beta } => (1, [alpha, beta]),
            Self::Relu => (2, [0.0; 2]),
            Self::LeakyRelu { alpha } => (3, [alpha, 0.0]),
            Self::ThresholdedRelu { alpha } => (4, [alpha, 0.0]),
            Self::Tanh => (5, [0.0; 2]),
            Self::ScaledTanh { alpha, beta } => (6, [alpha, beta]),
            Self::Sigmoid => (7, [0.0; 2]),
            Self::HardSigmoid { alpha, beta } => (8, [alpha, beta]),
            Self::Elu { alpha } => (9, [alpha, 0.0]),
            Self::Softsign => (10, [0.0; 2]),
            Self::Softplus => (11, [0.0; 2]),
        }
    }
}

/// The most functions that a cell has.
pub const MOST_FUNCTIONS: usize = 5;

/// What a cell is asked for. Its kernels save what comes into its functions, where those of a cell as it is save what comes out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// In the order of [`super::CellKind::functions`]; those behind a cell's own are not looked at.
    pub activations: [Activation; MOST_FUNCTIONS],
    /// What comes into a function is bound by this on both sides; infinite if it is not.
    pub clip: f32,
    /// Whether the forget gate is 1 - i, of the LSTM.
    pub coupled: bool,
}

impl Form {
    /// Whether c reaches the gates, of the LSTM.
    pub const PEEPHOLES: u32 = 1;
    /// Whether the forget gate is 1 - i.
    pub const COUPLED: u32 = 2;

    /// A cell's functions as they are.
    pub fn new(own: &[Activation]) -> Self {
        let activation = |i: usize| own.get(i).copied().unwrap_or(Activation::Tanh);
        Self { activations: std::array::from_fn(activation), clip: f32::INFINITY, coupled: false }
    }

    /// The functions by their numbers, four bits for each.
    pub(super) fn functions(&self) -> u32 {
        self.activations.iter().rev().fold(0, |all, activation| all << 4 | activation.parts().0)
    }
}

/// The functions of a form, as its twins apply them.
#[derive(Clone, Copy)]
pub struct Functions<F> {
    kinds: u32,
    clip: F,
    numbers: [[F; 2]; MOST_FUNCTIONS],
}

/// What the parameters of both passes say of a form.
macro_rules! of_params {
    ($module:ident) => {
        impl $module::Params {
            /// These parameters, of this form.
            pub(super) fn of_form(self, form: Option<&Form>) -> Self {
                let Some(form) = form else { return self };
                let [a, b, c, d, e] = form.activations.map(|activation| activation.parts().1);
                Self {
                    activations: form.functions(),
                    clip: form.clip,
                    alpha_0: a[0],
                    beta_0: a[1],
                    alpha_1: b[0],
                    beta_1: b[1],
                    alpha_2: c[0],
                    beta_2: c[1],
                    alpha_3: d[0],
                    beta_3: d[1],
                    alpha_4: e[0],
                    beta_4: e[1],
                    ..self
                }
            }

            /// The functions that are asked for, if the cell's own are not all.
            pub fn functions<F: Real>(&self) -> Option<Functions<F>> {
                let numbers = [
                    [self.alpha_0, self.beta_0],
                    [self.alpha_1, self.beta_1],
                    [self.alpha_2, self.beta_2],
                    [self.alpha_3, self.beta_3],
                    [self.alpha_4, self.beta_4],
                ];
                let numbers = numbers.map(|numbers| numbers.map(|number| F::of(number.into())));
                let functions = Functions { kinds: self.activations, clip: F::of(self.clip.into()), numbers };
                (self.activations != 0).then_some(functions)
            }
        }
    };
}
of_params!(forward);
of_params!(backward);

impl<F: Real> Functions<F> {
    fn of(&self, which: usize) -> (u32, [F; 2]) {
        (self.kinds >> (4 * which) & 15, self.numbers[which])
    }

    /// What the function gives.
    pub fn apply(&self, which: usize, x: F) -> F {
        let (zero, one) = (F::zero(), F::one());
        // Comparisons, for `min` and `max` hide a NaN.
        let x = if x > self.clip {
            self.clip
        } else if x < -self.clip {
            -self.clip
        } else {
            x
        };
        let (kind, [alpha, beta]) = self.of(which);
        match kind {
            1 => alpha * x + beta,
            2 => {
                if x < zero {
                    zero
                } else {
                    x
                }
            }
            3 => {
                if x < zero {
                    alpha * x
                } else {
                    x
                }
            }
            4 => {
                if x <= alpha {
                    zero
                } else {
                    x
                }
            }
            5 => x.tanh(),
            6 => alpha * (beta * x).tanh(),
            7 => one / (one + (-x).exp()),
            8 => {
                let y = alpha * x + beta;
                if y < zero {
                    zero
                } else if y > one {
                    one
                } else {
                    y
                }
            }
            9 => {
                if x < zero {
                    alpha * x.exp_m1()
                } else {
                    x
                }
            }
            10 => x / (one + x.abs()),
            _ => (if x < zero { zero } else { x }) + (-x.abs()).exp().ln_1p(),
        }
    }

    /// Its derivative where `x` comes in and `y` comes out: 0 beyond the clip; where there is none, PyTorch's.
    pub fn slope(&self, which: usize, x: F, y: F) -> F {
        let (zero, one) = (F::zero(), F::one());
        if x.abs() > self.clip {
            return zero;
        }
        let step = |passes: bool, otherwise: F| if passes { one } else { otherwise };
        let (kind, [alpha, beta]) = self.of(which);
        match kind {
            1 => alpha,
            2 => step(x > zero, zero),
            3 => step(x > zero, alpha),
            4 => step(x > alpha, zero),
            5 => one - y * y,
            6 => {
                let inner = (beta * x).tanh();
                alpha * beta * (one - inner * inner)
            }
            7 => y * (one - y),
            8 => {
                let y = alpha * x + beta;
                if y >= zero && y <= one { alpha } else { zero }
            }
            9 => step(x > zero, y + alpha),
            10 => (one + x.abs()).recip().powi(2),
            _ => one / (one + (-x).exp()),
        }
    }
}
