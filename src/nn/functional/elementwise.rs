//! What acts on each element or each row alone: sums, activations, dropout.

use super::product::{rows, table_of};
use super::result_of_one;
use crate::error::{Error, Result};
use crate::graph::{Graph, Var};
use crate::kernels::activation::{self, Activation};
use crate::kernels::{
    self, accumulate, activation_backward, dropout as dropout_kernel, log_softmax_backward, multiply,
};
use crate::rng::threefry2x32;
use crate::tensor::Tensor;

/// The tensors of two values that must have one shape.
fn of_one_shape(g: &mut Graph, op: &'static str, x: Var, y: Var) -> Result<(Tensor, Tensor)> {
    let (x, y) = (g.tensor(x)?, g.tensor(y)?);
    if x.shape() != y.shape() {
        return Err(Error::shape(op, y.name(), format!("{:?}", x.shape()), y.shape()));
    }
    Ok((x, y))
}

/// `z = x + y`, two values of one shape.
///
/// # Errors
/// The shapes differ.
pub fn add(g: &mut Graph, x: Var, y: Var) -> Result<Var> {
    let (x_tensor, y_tensor) = of_one_shape(g, "add", x, y)?;
    let z_tensor = g.zeros(&format!("{} + {}", x_tensor.name(), y_tensor.name()), x_tensor.shape())?;
    g.copy(&x_tensor, &z_tensor)?;
    accumulate::accumulate(g, &y_tensor, &z_tensor)?;
    let z = g.result(z_tensor, &[x, y]);
    g.on_backward(move |g| {
        let Some(dz) = g.gradient(z) else { return Ok(()) };
        g.add_gradient(x, &dz, true)?;
        g.add_gradient(y, &dz, true)
    });
    Ok(z)
}

/// `z = x y` of each element (`torch.mul`), two values of one shape: a gate.
///
/// # Errors
/// The shapes differ.
pub fn mul(g: &mut Graph, x: Var, y: Var) -> Result<Var> {
    let (x_tensor, y_tensor) = of_one_shape(g, "mul", x, y)?;
    let z_tensor = g.zeros(&format!("{} {}", x_tensor.name(), y_tensor.name()), x_tensor.shape())?;
    multiply::multiply(g, &x_tensor, &y_tensor, &z_tensor)?;
    let z = g.result(z_tensor, &[x, y]);
    g.on_backward(move |g| {
        let Some(dz) = g.gradient(z) else { return Ok(()) };
        for (factor, other) in [(x, &y_tensor), (y, &x_tensor)] {
            if g.is_differentiable(factor) {
                let d = g.zeros(&g.gradient_name(factor), other.shape())?;
                multiply::multiply(g, &dz, other, &d)?;
                g.add_gradient(factor, &d, false)?;
            }
        }
        Ok(())
    });
    Ok(z)
}

/// `max(0, x)` of each element (`torch.relu`).
///
/// # Errors
/// The device cannot hold the result.
pub fn relu(g: &mut Graph, x: Var) -> Result<Var> {
    activate(g, Activation::Relu, x)
}

/// `tanh x` of each element (`torch.tanh`).
///
/// # Errors
/// The device cannot hold the result.
pub fn tanh(g: &mut Graph, x: Var) -> Result<Var> {
    activate(g, Activation::Tanh, x)
}

/// `1 / (1 + exp(-x))` of each element (`torch.sigmoid`).
///
/// # Errors
/// The device cannot hold the result.
pub fn sigmoid(g: &mut Graph, x: Var) -> Result<Var> {
    activate(g, Activation::Sigmoid, x)
}

/// If `x` is rows of a table with fewer rows, the table is activated instead.
fn activate(g: &mut Graph, f: Activation, x: Var) -> Result<Var> {
    if let Some((table, index)) = table_of(g, x) {
        let table = activate(g, f, table)?;
        return Ok(rows(g, table, &index));
    }
    let x_tensor = g.tensor(x)?;
    let y_tensor = g.zeros(&format!("{f:?} {}", x_tensor.name()), x_tensor.shape())?;
    activation::activation(g, f, &x_tensor, &y_tensor)?;
    let y = y_tensor.clone();
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| activation_backward::activation_backward(g, f, &y, dy, dx)))
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
    if !(0.0..1.0).contains(&rate) {
        return Err(Error::argument("dropout", "rate", "at least 0 and below 1", rate));
    }
    if rate == 0.0 || !g.is_training() {
        return Ok(x);
    }
    // Each dropout of a graph draws for itself, those of one module that is called twice too.
    let seed = threefry2x32([seed, g.next_dropout()], [0, 0])[0];
    let (x_tensor, clock) = (g.tensor(x)?, g.clock()?);
    let y_tensor = g.zeros(&format!("{} dropped", x_tensor.name()), x_tensor.shape())?;
    dropout_kernel::dropout(g, &x_tensor, &y_tensor, rate, seed, &clock)?;
    Ok(result_of_one(g, x, y_tensor, move |g, dy, dx| dropout_kernel::dropout(g, dy, dx, rate, seed, &clock)))
}
