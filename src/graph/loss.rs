//! What a backward pass starts from.

use std::ops::{Add, Mul};

use super::{Graph, Var};
use crate::error::{Error, Result};
use crate::kernels::weigh;
use crate::tensor::Tensor;

/// A loss to be minimised, or a sum of weighted ones, or a metric to be looked at.
///
/// ```
/// use elman::nn::functional::{Loss, Reduction, mean, mse_loss};
/// use elman::{Device, Graph};
///
/// let device = Device::cpu();
/// let mut g = Graph::without_parameters(&device);
/// let x = g.input_with_gradient(&device.upload("x", &[2], &[1.0, 3.0])?)?;
/// let targets = device.upload("targets", &[2], &[0.0, 0.0])?;
/// let loss: Loss = mse_loss(&mut g, x, &targets, Reduction::Mean)? + 0.5 * mean(&mut g, x)?.named("size");
/// g.backward(&[&loss], &[])?;
/// let dx = g.gradient(x).expect("it flows into x");
/// g.finish()?.run()?;
/// assert_eq!(dx.to_vec()?, [1.25, 3.25]); // 2 x / 2 + 0.5 / 2
/// # Ok::<(), elman::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Loss {
    /// At least one.
    terms: Vec<Term>,
}

/// One of the losses that a [`Loss`] is the weighted sum of.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    /// The graph that it is of.
    graph: u64,
    /// Its place there.
    index: usize,
    /// What the log calls it.
    pub name: String,
    /// Its factor in the sum.
    pub weight: f64,
    /// The loss of each row.
    pub rows: Tensor,
    /// `[1]`: what makes their sum one number.
    pub scale: Tensor,
    /// Whether nothing can be differentiated.
    is_metric: bool,
}

impl Loss {
    /// The loss of each row, not scaled, of the first term: valid when the plan has run. Rows that are weighted have
    /// their weights in them.
    pub fn rows(&self) -> &Tensor {
        &self.terms[0].rows
    }

    /// Names the loss in the log of a [`crate::Trainer`] or an [`crate::Evaluator`]; without it, the name is that of
    /// the operation: `"mse_loss"`. The terms of a sum get the name in front of their own: `"name.mse_loss"`.
    pub fn named(mut self, name: &str) -> Self {
        let is_sum = self.terms.len() > 1;
        for term in &mut self.terms {
            term.name = if is_sum { format!("{name}.{}", term.name) } else { name.into() };
        }
        self
    }

    /// What it is the sum of, in order. A term is `weight scale Σ rows`. For a mean, `scale` is one over how many rows
    /// (elements, for a loss of each element) count in this run, or over the sum of their weights, and 0 if none
    /// counts: means of batches of different sizes are averaged exactly with the weights `1 / scale`.
    pub(crate) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// A loss whose gradients, already computed, flow into these values if the backward pass starts from it: each of the shape of its
    /// value, or of one that this is broadcast to.
    pub(crate) fn new(
        g: &mut Graph,
        name: &str,
        rows: Tensor,
        scale: Tensor,
        gradients: impl IntoIterator<Item = (Var, Tensor)>,
    ) -> Self {
        let (graph, index) = g.new_loss();
        for (x, dx) in gradients {
            g.on_backward(move |g| {
                let Some(weight) = g.weight_of_loss(index) else { return Ok(()) };
                if weight != 1.0 {
                    let [one, weight] = [1.0, weight].map(|value| g.constant(value));
                    weigh::weigh(g, &one?, &weight?, &dx)?;
                }
                match dx.shape() == g.shape(x) {
                    true => g.add_gradient(x, &dx, false),
                    false => g.sum_to(&dx, x),
                }
            });
        }
        Self { terms: vec![Term { graph, index, name: name.into(), weight: 1.0, rows, scale, is_metric: false }] }
    }

    /// A number to be logged, that no gradient flows from.
    pub(crate) fn metric(g: &mut Graph, name: &str, rows: Tensor, scale: Tensor) -> Self {
        let mut metric = Self::new(g, name, rows, scale, None);
        metric.terms[0].is_metric = true;
        metric
    }
}

impl Graph {
    /// Refuses a loss of another graph, and weights that are no f32.
    pub(crate) fn check_loss(&self, loss: &Loss) -> Result<()> {
        if loss.terms.iter().any(|term| term.graph != self.id) {
            return Err(super::of_another_graph("loss"));
        }
        match loss.terms.iter().find(|term| !(term.weight as f32).is_finite()) {
            Some(Term { name, weight, .. }) => {
                Err(Error::argument("loss", "weight", "finite, as an f32", format!("{weight} for `{name}`")))
            }
            None => Ok(()),
        }
    }

    /// Refuses metrics, but for those that count 0.
    pub(super) fn check_start(&self, loss: &Loss) -> Result<()> {
        self.check_loss(loss)?;
        match loss.terms.iter().find(|term| term.is_metric && term.weight != 0.0) {
            Some(Term { name, .. }) => {
                let expected =
                    "one with a gradient; a metric is for an `Evaluator`, or beside a loss, `loss + 0.0 * metric`";
                Err(Error::argument("backward", "loss", expected, format!("the metric `{name}`")))
            }
            None => Ok(()),
        }
    }

    /// Says that the backward pass starts from this loss.
    pub(super) fn start_from(&mut self, loss: &Loss) {
        for term in &loss.terms {
            *self.weights_of_losses[term.index].get_or_insert(0.0) += term.weight;
        }
    }
}

/// The sum of losses of one graph, term by term.
impl Add for Loss {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.terms.extend(other.terms);
        self
    }
}

/// A loss whose terms count so much: finite, and any number but 0 only of what has a gradient.
impl Mul<f64> for Loss {
    type Output = Self;

    fn mul(mut self, weight: f64) -> Self {
        self.terms.iter_mut().for_each(|term| term.weight *= weight);
        self
    }
}

impl Mul<Loss> for f64 {
    type Output = Loss;

    fn mul(self, loss: Loss) -> Loss {
        loss * self
    }
}
