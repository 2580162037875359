//! What acts on each element or each row alone: arithmetic, activations, softmax, dropout.

use super::axis::axis_of;
use super::result_of_one;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::{self, dropout as dropout_kernel, log_softmax_backward};
use crate::map::{Expr, Program};
use crate::rng::threefry2x32;

/// Any function of each element of up to six values, in one dispatch, and another for its gradients. Shapes broadcast as in PyTorch:
/// sizes are compared from the last, and one of 1, or a missing one, stands for any.
///
/// ```
/// use elman::nn::functional::map;
/// use elman::{Device, Graph};
///
/// let device = Device::cpu();
/// let mut g = Graph::without_parameters(&device);
/// let x = g.input(&device.upload("x", &[2, 2], &[-1., 0., 1., 2.])?)?;
/// let gate = g.input(&device.upload("gate", &[2], &[0.5, 2.])?)?;
/// let y = map(&mut g, [x, gate], |[x, gate]| gate * x.relu() + 1.0)?;
/// let y = g.tensor(y)?;
/// g.finish()?.run()?;
/// assert_eq!(y.to_vec()?, [1., 1., 1.5, 5.]);
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// The shapes do not broadcast; more than six values, or an expression of more than 128 operations.
pub fn map<const N: usize>(
    g: &mut Graph,
    values: [Var; N],
    expression: impl for<'a> FnOnce([Expr<'a>; N]) -> Expr<'a>,
) -> Result<Var> {
    record(g, "map", Program::new(expression), &values)
}

/// The shape that shapes broadcast to.
pub(super) fn broadcast(g: &Graph, op: &'static str, values: &[Var]) -> Result<Vec<usize>> {
    let mut shape: Vec<usize> = Vec::new();
    for &value in values {
        let other = g.shape(value);
        let missing = other.len().saturating_sub(shape.len());
        shape.splice(0..0, std::iter::repeat_n(1, missing));
        let offset = shape.len() - other.len();
        for (size, &of_other) in shape[offset..].iter_mut().zip(other) {
            if *size != of_other && *size != 1 && of_other != 1 {
                let first = g.shape(values[0]);
                return Err(Error::shape(op, g.name(value), format!("that broadcasts with {first:?}"), other));
            }
            if *size == 1 {
                *size = of_other;
            }
        }
    }
    Ok(shape)
}

/// Records a program of these values.
fn record(g: &mut Graph, op: &'static str, program: Program, values: &[Var]) -> Result<Var> {
    g.check(values.iter().copied())?;
    // What is not read gives the shape alone.
    let shape = broadcast(g, op, values)?;
    g.map(op, program, values, &shape)
}

/// Operations of two values: name, equation, expression.
macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident, $x:ident, $y:ident, $expression:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// Shapes broadcast as those of [`map`].
        ///
        /// # Errors
        /// They do not.
        pub fn $name(g: &mut Graph, x: Var, y: Var) -> Result<Var> {
            record(g, stringify!($name), Program::new(|[$x, $y]| $expression), &[x, y])
        }
    )*};
}

binary! {
    /// `x + y` of each element (`torch.add`).
    add, x, y, x + y;
    /// `x - y` of each element (`torch.sub`).
    sub, x, y, x - y;
    /// `x y` of each element (`torch.mul`): a gate.
    mul, x, y, x * y;
    /// `x / y` of each element (`torch.div`).
    div, x, y, x / y;
    /// The smaller of each two elements (`torch.minimum`); of equals, each has half the gradient.
    minimum, x, y, x.minimum(y);
    /// The larger of each two elements (`torch.maximum`); of equals, each has half the gradient.
    maximum, x, y, x.maximum(y);
    /// 1 where x is less than y, 0 elsewhere (`torch.lt`); no gradient.
    lt, x, y, x.lt(y);
    /// 1 where x is less than y, or equal, 0 elsewhere (`torch.le`); no gradient.
    le, x, y, x.le(y);
    /// 1 where x equals y, 0 elsewhere (`torch.eq`); no gradient.
    eq, x, y, x.eq(y);
}

/// Operations of one value: name, equation, expression.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident $(($($number:ident),*))?, $x:ident, $expression:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// The device cannot hold the result.
        pub fn $name(g: &mut Graph, x: Var $($(, $number: f32)*)?) -> Result<Var> {
            record(g, stringify!($name), Program::new(|[$x]| $expression), &[x])
        }
    )*};
}

unary! {
    /// `-x` of each element (`torch.neg`).
    neg, x, -x;
    /// `factor · x` of each element.
    scale(factor), x, x * factor;
    /// `exp x` of each element (`torch.exp`).
    exp, x, x.exp();
    /// The natural logarithm of each element (`torch.log`).
    log, x, x.log();
    /// `√x` of each element (`torch.sqrt`).
    sqrt, x, x.sqrt();
    /// `|x|` of each element (`torch.abs`); its gradient at 0 is 0.
    abs, x, x.abs();
    /// `x²` of each element (`torch.square`).
    square, x, x.square();
    /// Each element, at least `low` and at most `high` (`torch.clamp`).
    clamp(low, high), x, x.clamp(low, high);
    /// `max(0, x)` of each element (`torch.relu`).
    relu, x, x.relu();
    /// x from 0 on, `slope · x` below it (`torch.nn.functional.leaky_relu`).
    leaky_relu(slope), x, x.leaky_relu(slope);
    /// x above 0, `alpha (exp x - 1)` elsewhere (`torch.nn.functional.elu`; Clevert et al. 2015).
    elu(alpha), x, x.elu(alpha);
    /// `log(1 + exp x)` of each element (`torch.nn.functional.softplus`).
    softplus, x, x.softplus();
    /// `tanh x` of each element (`torch.tanh`).
    tanh, x, x.tanh();
    /// `1 / (1 + exp(-x))` of each element (`torch.sigmoid`).
    sigmoid, x, x.sigmoid();
    /// `x / 6 + 1 / 2`, at least 0 and at most 1 (`torch.nn.functional.hardsigmoid`).
    hard_sigmoid, x, x.hard_sigmoid();
    /// `x σ(x)` of each element (`torch.nn.functional.silu`; Elfwing et al. 2017).
    silu, x, x.silu();
    /// `x Φ(x) = x (1 + erf(x / √2)) / 2` of each element (`torch.nn.functional.gelu`; Hendrycks and Gimpel 2016).
    gelu, x, x.gelu();
}

/// `x` where `condition` is not 0, `y` where it is (`torch.where`). What is not taken has gradient 0. Shapes broadcast as those of [`map`].
///
/// # Errors
/// They do not.
pub fn where_(g: &mut Graph, condition: Var, x: Var, y: Var) -> Result<Var> {
    record(g, "where", Program::new(|[condition, x, y]| condition.then(x, y)), &[condition, x, y])
}

/// `value` where `mask` is not 0, x elsewhere (`Tensor.masked_fill`): before a softmax, -∞ where there is nothing to attend to. Shapes
/// broadcast as those of [`map`].
///
/// # Errors
/// They do not.
pub fn masked_fill(g: &mut Graph, x: Var, mask: Var, value: f32) -> Result<Var> {
    record(g, "masked_fill", Program::new(|[x, mask]| mask.then(value, x)), &[x, mask])
}

/// The last axis as probabilities (`torch.softmax(x, -1)`): `x` `[.., V]`. A row of nothing but -∞ is NaN, as in PyTorch.
///
/// # Errors
/// The device cannot hold the result.
pub fn softmax(g: &mut Graph, x: Var) -> Result<Var> {
    let y = log_softmax(g, x)?;
    exp(g, y)
}

/// Log-probabilities of the last axis (`torch.log_softmax(x, -1)`): `x` `[.., V]`.
///
/// # Errors
/// The device cannot hold the result.
pub fn log_softmax(g: &mut Graph, x: Var) -> Result<Var> {
    let x_tensor = g.tensor(x)?;
    let y_tensor = g.zeros(&format!("log softmax {}", x_tensor.name()), x_tensor.shape())?;
    kernels::log_softmax::log_softmax(g, &x_tensor, &y_tensor)?;
    let y = y_tensor.clone();
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| log_softmax_backward::log_softmax_backward(g, &y, dy, dx)))
}

/// Zeroes each element with probability `rate` and scales the others (`torch.nn.functional.dropout`), anew in every
/// step of a [`crate::Trainer`]; a plan without one draws the same in every run. In a graph that records no gradients ([`Graph::inference`]) it does nothing.
///
/// # Errors
/// `rate` is not in [0, 1).
pub fn dropout(g: &mut Graph, x: Var, rate: f64, seed: u32) -> Result<Var> {
    if !drops(g, "dropout", rate)? {
        return Ok(x);
    }
    // Each dropout of a graph draws for itself, those of one module that is called twice too.
    let seed = threefry2x32([seed, g.next_dropout()], [0, 0])[0];
    let (x_tensor, clock) = (g.tensor(x)?, g.clock()?);
    let y_tensor = g.zeros(&format!("{} dropped", x_tensor.name()), x_tensor.shape())?;
    dropout_kernel::dropout(g, &x_tensor, &y_tensor, rate, seed, &clock)?;
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| dropout_kernel::dropout(g, dy, dx, rate, seed, &clock)))
}

/// [`dropout`] with one mask for all entries of an axis: of a sequence `[T, B, C]` and axis 0, one `[B, C]` for all steps (Gal and
/// Ghahramani 2016; `LockedDropout` of the AWD-LSTM, Merity et al. 2018); of `[N, C, L]` and axis -1, whole channels
/// (`torch.nn.functional.dropout1d`). Below 0, axes are counted from the last.
///
/// ```
/// use elman::nn::functional::locked_dropout;
/// use elman::{Device, Graph};
///
/// let device = Device::cpu();
/// let mut g = Graph::without_parameters(&device);
/// let x = g.input(&device.upload("x", &[3, 2, 4], &[1.0; 24])?)?; // [T, B, C]
/// let y = locked_dropout(&mut g, x, 0, 0.5, 7)?;
/// let y = g.tensor(y)?;
/// g.finish()?.run()?;
/// let y = y.to_vec()?;
/// assert_eq!(y[..8], y[8..16]); // what is 0 at one step is 0 at all of them
/// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// There is no such axis, or `rate` is not in [0, 1).
pub fn locked_dropout(g: &mut Graph, x: Var, axis: isize, rate: f64, seed: u32) -> Result<Var> {
    let axis = axis_of(g, "locked_dropout", x, axis)?;
    if !drops(g, "locked_dropout", rate)? {
        return Ok(x);
    }
    let mut shape = g.shape(x).to_vec();
    shape[axis] = 1;
    let ones = g.zeros("ones", &shape)?;
    ones.write_f64(&vec![1.0; ones.len()])?;
    let ones = g.input(&ones)?;
    let mask = dropout(g, ones, rate, seed)?;
    // What is dropped is 0, be it infinite.
    map(g, [x, mask], |[x, mask]| mask.then(x * mask, 0.0))
}

/// Whether there is anything to drop.
fn drops(g: &Graph, op: &'static str, rate: f64) -> Result<bool> {
    match (0.0..1.0).contains(&rate) {
        true => Ok(rate > 0.0 && g.is_training()),
        false => Err(Error::argument(op, "rate", "at least 0 and below 1", rate)),
    }
}
