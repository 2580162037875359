//! Losses, whose gradients are computed on the way, and metrics.

use crate::error::{Error, Result};
use crate::graph::{Graph, Loss, Var};
use crate::kernels::cross_entropy::ClassLoss;
use crate::kernels::mse_loss::ElementLoss;
use crate::kernels::row_weights::{self, RowWeights};
use crate::kernels::weigh::weigh;
use crate::kernels::{self, count_targets};
use crate::plan::Recorder;
use crate::tensor::Tensor;

/// How the losses of the rows become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Their mean over the rows that count.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// This one, over the rows whose target is another class (PyTorch's `ignore_index`): padding, say.
    pub fn ignoring<'a>(self, class: u32) -> ClassReduction<'a> {
        WeightedReduction::from(self).ignoring(class)
    }

    /// This one, with weights `w` of 0 or above, f32: the mean is `Σ w l / Σ w`, the sum `Σ w l`. A weight counts for
    /// all that it is not given for: `weights` have the shape of the rows, `[T, B]`, or of their leading axes, or are
    /// one for each entry of the batch, `[B]`, where `x` is `[B, ..]` of up to two axes, or `[T, B, ..]`. Of a loss of
    /// each element, the mean is over all elements, each with the weight of its row.
    ///
    /// What has weight 0 counts neither in the loss nor in the gradient, whatever stands there; if all have, both are
    /// 0.
    ///
    /// ```
    /// # use elman::{Device, Graph, nn::functional::{Reduction, mse_loss}};
    /// # let device = Device::cpu();
    /// # let mut g = Graph::without_parameters(&device);
    /// let x = g.input(&device.upload("x", &[2, 3], &[1., 1., 1., 2., 2., 2.])?)?;
    /// let targets = device.upload("targets", &[2, 3], &[0.0; 6])?;
    /// let weights = device.upload("weights", &[2], &[3.0, 1.0])?;
    /// mse_loss(&mut g, x, &targets, Reduction::Mean.weighted(&weights))?; // (3 · 1 + 1 · 4) / (3 + 1)
    /// # Ok::<(), elman::Error>(())
    /// ```
    pub fn weighted(self, weights: &Tensor) -> WeightedReduction<'_> {
        WeightedReduction::from(self).weighted(weights)
    }

    /// This one, over the steps of each sequence up to its length: `lengths` `[B]` from [`crate::Device::lengths`],
    /// where `x` is time first, `[T, B, ..]` ([`super::transpose`] makes it so). What stands past a length counts
    /// neither in the loss nor in the gradient.
    ///
    /// ```
    /// # use elman::{Device, Graph, nn::functional::{Reduction, cross_entropy}};
    /// # let device = Device::cpu();
    /// # let mut g = Graph::without_parameters(&device);
    /// let logits = g.input(&device.upload("logits", &[5, 2, 4], &[0.0; 40])?)?; // [T, B, V]
    /// let targets = device.targets("targets", &[5, 2], 4)?;
    /// let lengths = device.lengths("lengths", 2, 5)?;
    /// lengths.write_u32(&[5, 3])?;
    /// cross_entropy(&mut g, logits, &targets, Reduction::Mean.up_to(&lengths))?; // of 8 rows
    /// # Ok::<(), elman::Error>(())
    /// ```
    pub fn up_to(self, lengths: &Tensor) -> WeightedReduction<'_> {
        WeightedReduction::from(self).up_to(lengths)
    }
}

/// A [`Reduction`], perhaps with [weights](Reduction::weighted), and perhaps [up to lengths](Reduction::up_to).
#[derive(Clone, Copy, Debug, Default)]
pub struct WeightedReduction<'a> {
    reduction: Reduction,
    weights: Option<&'a Tensor>,
    lengths: Option<&'a Tensor>,
}

impl<'a> WeightedReduction<'a> {
    /// [`Reduction::ignoring`].
    pub fn ignoring(self, class: u32) -> ClassReduction<'a> {
        ClassReduction { weighted: self, ignore_index: Some(class) }
    }

    /// [`Reduction::weighted`].
    pub fn weighted(self, weights: &'a Tensor) -> Self {
        Self { weights: Some(weights), ..self }
    }

    /// [`Reduction::up_to`].
    pub fn up_to(self, lengths: &'a Tensor) -> Self {
        Self { lengths: Some(lengths), ..self }
    }

    /// The weight of each row, and the scale of the whole, if rows differ. Rows are the elements of the first `axes`
    /// axes of `x`, or, if it does not say, of as few as the weights are given for.
    fn rows(
        self,
        g: &mut Graph,
        op: &'static str,
        x: &Tensor,
        axes: Option<usize>,
        targets: Option<(&Tensor, usize, Option<u32>)>,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let (Self { reduction, weights, lengths }, shape) = (self, x.shape());
        if weights.is_none() && lengths.is_none() {
            return Ok(None);
        }
        let most = axes.unwrap_or(shape.len());
        // The axes that weights are given for: from the first on, or that of the batch alone.
        let batch = if lengths.is_some() || shape.len() > 2 { 1 } else { 0 };
        let of_weights = match weights {
            None => 0,
            Some(weights) if batch < most && weights.shape() == [shape[batch]] => batch + 1,
            Some(weights) if weights.shape().len() > batch && shape[..most].starts_with(weights.shape()) => {
                weights.shape().len()
            }
            Some(weights) => {
                let expected = match shape[..most].get(batch) {
                    Some(batch) => format!("{:?} or the first of these axes, or [{batch}]", &shape[..most]),
                    None => format!("{:?}", &shape[..most]),
                };
                return Err(Error::shape(op, weights.name(), expected, weights.shape()));
            }
        };
        let of_lengths = match lengths {
            None => 0,
            Some(_) if most < 2 => {
                let expected = if axes.is_some() { "[T, B, .., V], time first," } else { "[T, B, ..], time first," };
                return Err(Error::shape(op, x.name(), format!("{expected} where there are lengths"), shape));
            }
            Some(lengths) => {
                kernels::expect_lengths(op, lengths, shape[1], shape[0])?;
                2
            }
        };
        let axes = axes.unwrap_or(of_weights.max(of_lengths));
        let after = |first: usize| shape[first..axes].iter().product::<usize>();
        let (w, scale) = (g.zeros("row weights", &[after(0)])?, g.zeros("scale", &[1])?);
        let columns = if targets.is_some() { 1 } else { shape[axes..].iter().product() };
        let rows = RowWeights {
            weights: weights.map(|weights| (weights, after(of_weights))),
            lengths: lengths.map(|lengths| (lengths, after(of_lengths))),
            targets,
            columns,
            mean: reduction == Reduction::Mean,
        };
        row_weights::row_weights(g, rows, &w, &scale)?;
        Ok(Some((w, scale)))
    }
}

impl From<Reduction> for WeightedReduction<'_> {
    fn from(reduction: Reduction) -> Self {
        Self { reduction, ..Self::default() }
    }
}

/// How the losses of rows with a class each become one number: a [`Reduction`], perhaps [`Reduction::ignoring`] a
/// class, perhaps [`Reduction::weighted`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ClassReduction<'a> {
    weighted: WeightedReduction<'a>,
    ignore_index: Option<u32>,
}

impl<'a> ClassReduction<'a> {
    /// [`Reduction::weighted`].
    pub fn weighted(self, weights: &'a Tensor) -> Self {
        Self { weighted: self.weighted.weighted(weights), ..self }
    }

    /// [`Reduction::up_to`].
    pub fn up_to(self, lengths: &'a Tensor) -> Self {
        Self { weighted: self.weighted.up_to(lengths), ..self }
    }
}

impl From<Reduction> for ClassReduction<'_> {
    fn from(reduction: Reduction) -> Self {
        WeightedReduction::from(reduction).into()
    }
}

impl<'a> From<WeightedReduction<'a>> for ClassReduction<'a> {
    fn from(weighted: WeightedReduction<'a>) -> Self {
        Self { weighted, ignore_index: None }
    }
}

/// Softmax and negative log-likelihood, from logits (`torch.nn.functional.cross_entropy`): `logits` `[.., V]`, `targets`
/// one for each row, from [`crate::Device::targets`]. A row whose target is [`crate::NO_TARGET`] does not count, nor one
/// whose class is ignored: `Reduction::Mean.ignoring(0)`. If no row counts, the mean is 0 (PyTorch's is NaN).
///
/// Its gradient is computed on the way; [`Graph::backward`] goes on from it if the loss is named there.
///
/// # Errors
/// The targets' shape is neither that of the rows, axes of size 1 aside, nor flat; targets may be V or more; or weights
/// or lengths do not fit.
pub fn cross_entropy<'a>(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::cross_entropy::cross_entropy, counts: true, is_metric: false };
    class_loss(g, "cross_entropy", kernel, logits, targets, reduction.into())
}

/// Negative log-likelihood, from log-probabilities (`torch.nn.functional.nll_loss`): as [`cross_entropy`], of what
/// [`super::log_softmax`] gives.
///
/// # Errors
/// As [`cross_entropy`].
pub fn nll_loss<'a>(
    g: &mut Graph,
    log_probabilities: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::nll_loss::nll_loss, counts: false, is_metric: false };
    class_loss(g, "nll_loss", kernel, log_probabilities, targets, reduction.into())
}

/// The share of the rows whose greatest logit, the first of several, is that of the target: a metric, for the log of an
/// [`crate::Evaluator`], or of a [`crate::Trainer`] beside a loss, `loss + 0.0 * accuracy`. It takes what
/// [`cross_entropy`] takes, and counts the rows that it counts.
///
/// ```
/// # use elman::nn::{Init, Linear, functional::{Reduction, accuracy}};
/// # use elman::{Device, Evaluator, rng};
/// # let device = Device::cpu();
/// # let mut init = Init::new(rng::manual_seed(1));
/// # let layer = Linear::new(&mut init, "layer", 3, 4)?;
/// # let parameters = init.upload(&device)?;
/// # let x = device.upload("x", &[2, 3], &[0.0; 6])?;
/// # let targets = device.targets("targets", &[2], 4)?;
/// let mut evaluator = Evaluator::new(&parameters, |g| {
///     let x = g.input(&x)?;
///     let logits = layer.forward(g, x)?;
///     accuracy(g, logits, &targets, Reduction::Mean)
/// })?;
/// assert!((0.0..=1.0).contains(&evaluator.losses(1)?[0]));
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// As [`cross_entropy`]. To differentiate it is an error of [`Graph::backward`].
pub fn accuracy<'a>(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    let record = |r: &mut Recorder, loss: ClassLoss<'_>| {
        kernels::accuracy::accuracy(r, loss.x, loss.targets, loss.ignore_index, loss.losses)
    };
    class_loss(g, "accuracy", ClassKernel { record, counts: false, is_metric: true }, logits, targets, reduction.into())
}

/// A kernel that makes a loss over classes.
struct ClassKernel {
    record: fn(&mut Recorder, ClassLoss<'_>) -> Result<()>,
    /// Whether it can count the rows itself.
    counts: bool,
    is_metric: bool,
}

/// Up to here, each workgroup of a loss counts all rows that count: cheaper than a dispatch.
const MOST_ROWS_COUNTED_BY_EACH: usize = 1024;

fn class_loss(
    g: &mut Graph,
    op: &'static str,
    kernel: ClassKernel,
    x: Var,
    targets: &Tensor,
    ClassReduction { weighted, ignore_index }: ClassReduction<'_>,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    let (count, v) = x_tensor.rows_and_columns();
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|&size| size > 1).collect::<Vec<_>>();
    let rows = &x_tensor.shape()[..x_tensor.shape().len() - 1];
    if targets.len() != count || (targets.shape().len() > 1 && without_ones(targets.shape()) != without_ones(rows)) {
        return Err(Error::shape(op, targets.name(), format!("{rows:?}, or [{count}]"), targets.shape()));
    }
    kernels::expect_targets(op, targets, v)?;
    let weights = weighted.rows(g, op, &x_tensor, Some(rows.len()), Some((targets, v, ignore_index)))?;
    let is_mean = weighted.reduction == Reduction::Mean && weights.is_none();
    // A kernel of few rows counts them itself.
    let counts = is_mean && kernel.counts && count <= MOST_ROWS_COUNTED_BY_EACH;
    let scale = match &weights {
        Some((_, scale)) => scale.clone(),
        None if is_mean => g.zeros("scale", &[1])?,
        None => g.device().upload("scale", &[1], &[1.0])?,
    };
    if is_mean && !counts {
        count_targets::count_targets(g, targets, v, ignore_index, &scale)?;
    }
    let losses = g.zeros("losses", &[count])?;
    let wants_dx = g.is_differentiable(x) && !kernel.is_metric;
    let dx = wants_dx.then(|| g.zeros("d logits", x_tensor.shape())).transpose()?;
    let tensors =
        ClassLoss { x: &x_tensor, targets, ignore_index, counts, scale: &scale, losses: &losses, dx: dx.as_ref() };
    (kernel.record)(g, tensors)?;
    weigh_rows(g, weights.as_ref(), &losses, dx.as_ref())?;
    Ok(match kernel.is_metric {
        true => Loss::metric(g, op, x, losses, scale),
        false => Loss::new(g, op, x, losses, scale, dx),
    })
}

/// Weighs losses and a gradient that is scaled already.
fn weigh_rows(g: &mut Graph, weights: Option<&(Tensor, Tensor)>, losses: &Tensor, dx: Option<&Tensor>) -> Result<()> {
    let Some((weights, _)) = weights else { return Ok(()) };
    let one = g.constant(1.0)?;
    std::iter::once(losses).chain(dx).try_for_each(|tensor| weigh(g, weights, &one, tensor))
}

/// Squared error of each element (`torch.nn.functional.mse_loss`): `x` and `targets` of one shape.
///
/// # Errors
/// The shapes differ, or weights or lengths do not fit.
pub fn mse_loss<'a>(
    g: &mut Graph,
    x: Var,
    targets: &Tensor,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    element_loss(g, "mse_loss", kernels::mse_loss::mse_loss, x, targets, reduction.into())
}

/// Absolute error of each element (`torch.nn.functional.l1_loss`): `x` and `targets` of one shape. As a metric of an
/// [`crate::Evaluator`], the mean absolute error; as a loss, its gradient is the sign of the error.
///
/// # Errors
/// As [`mse_loss`].
pub fn absolute_error<'a>(
    g: &mut Graph,
    x: Var,
    targets: &Tensor,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    element_loss(g, "absolute_error", kernels::absolute_error::absolute_error, x, targets, reduction.into())
}

/// Binary cross-entropy of each element, from logits (`torch.nn.functional.binary_cross_entropy_with_logits`): `logits`
/// and `targets` (probabilities, 0 to 1) of one shape.
///
/// # Errors
/// As [`mse_loss`].
pub fn binary_cross_entropy_with_logits<'a>(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    let op = "binary_cross_entropy_with_logits";
    element_loss(g, op, kernels::bce_with_logits::bce_with_logits, logits, targets, reduction.into())
}

fn element_loss(
    g: &mut Graph,
    op: &'static str,
    kernel: fn(&mut Recorder, ElementLoss<'_>) -> Result<()>,
    x: Var,
    targets: &Tensor,
    weighted: WeightedReduction<'_>,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    if targets.shape() != x_tensor.shape() {
        return Err(Error::shape(op, targets.name(), format!("{:?}", x_tensor.shape()), targets.shape()));
    }
    let weights = weighted.rows(g, op, &x_tensor, None, None)?;
    let scale = scale_of_elements(g, weighted, weights.as_ref(), x_tensor.len())?;
    let losses = g.zeros("losses", &[x_tensor.len()])?;
    let dx = g.is_differentiable(x).then(|| g.zeros("d loss", x_tensor.shape())).transpose()?;
    kernel(g, ElementLoss { x: &x_tensor, targets, scale: &scale, losses: &losses, dx: dx.as_ref() })?;
    weigh_rows(g, weights.as_ref(), &losses, dx.as_ref())?;
    Ok(Loss::new(g, op, x, losses, scale, dx))
}

/// What the sum of `n` losses is multiplied with.
fn scale_of_elements(
    g: &mut Graph,
    weighted: WeightedReduction<'_>,
    weights: Option<&(Tensor, Tensor)>,
    n: usize,
) -> Result<Tensor> {
    let factor = match (weights, weighted.reduction) {
        (Some((_, scale)), _) => return Ok(scale.clone()),
        (None, Reduction::Sum) => 1.0,
        (None, Reduction::Mean) => 1.0 / n as f64,
    };
    let scale = g.zeros("scale", &[1])?;
    scale.write_f64(&[factor])?;
    Ok(scale)
}

/// The mean of all elements of a value (`torch.mean`): what keeps a value small, as of its square,
/// `loss + 0.01 * mean(g, square)?`.
///
/// # Errors
/// The device cannot hold the result.
pub fn mean(g: &mut Graph, x: Var) -> Result<Loss> {
    reduce(g, x, Reduction::Mean)
}

/// The mean of all elements of a value, or their sum (`torch.mean`, `torch.sum`): the value is a loss of each element
/// already.
///
/// # Errors
/// Weights or lengths do not fit, or the device cannot hold the result.
pub fn reduce<'a>(g: &mut Graph, x: Var, reduction: impl Into<WeightedReduction<'a>>) -> Result<Loss> {
    let weighted = reduction.into();
    let op = if weighted.reduction == Reduction::Mean { "mean" } else { "sum" };
    let x_tensor = g.tensor(x)?;
    let weights = weighted.rows(g, op, &x_tensor, None, None)?;
    let scale = scale_of_elements(g, weighted, weights.as_ref(), x_tensor.len())?;
    // A copy: later commands may write the value, if it is a carried state.
    let losses = g.zeros("losses", &[x_tensor.len()])?;
    g.copy(&x_tensor, &losses)?;
    let mut dx = None;
    if g.is_differentiable(x) {
        let (gradient, ones) = (g.zeros("d loss", x_tensor.shape())?, g.zeros("ones", x_tensor.shape())?);
        ones.write_f64(&vec![1.0; ones.len()])?;
        g.copy(&ones, &gradient)?;
        let one = g.constant(1.0)?;
        weigh(g, &one, &scale, &gradient)?;
        dx = Some(gradient);
    }
    weigh_rows(g, weights.as_ref(), &losses, dx.as_ref())?;
    Ok(Loss::new(g, op, x, losses, scale, dx))
}
