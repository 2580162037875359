//! Losses, whose gradients are computed on the way, and metrics.

use super::{detach, reshape};
use crate::error::{Error, Result};
use crate::graph::{Graph, Loss, Var};
use crate::kernels::cross_entropy::ClassLoss;
use crate::kernels::map::Operand;
use crate::kernels::row_weights::{self, RowWeights};
use crate::kernels::weigh::weigh;
use crate::kernels::{self, column_sum, count_targets, matmul};
use crate::map::{Expr, Program};
use crate::plan::Recorder;
use crate::tensor::{DType, Tensor};

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

    /// This one, with a weight for each class, `[V]` f32 of 0 or above (PyTorch's `weight`): a row counts what the class of its target does.
    /// The mean is `Σ w l / Σ w`, w the weight of a row's class.
    ///
    /// ```
    /// # use elman::{Device, Graph, nn::functional::{Reduction, cross_entropy}};
    /// # let device = Device::cpu();
    /// # let mut g = Graph::without_parameters(&device);
    /// let logits = g.input(&device.upload("logits", &[2, 3], &[0.0; 6])?)?;
    /// let targets = device.targets("targets", &[2], 3)?;
    /// let rare = device.upload("weights of classes", &[3], &[1.0, 1.0, 5.0])?;
    /// cross_entropy(&mut g, logits, &targets, Reduction::Mean.class_weights(&rare).label_smoothing(0.1))?;
    /// # Ok::<(), elman::Error>(())
    /// ```
    pub fn class_weights(self, weights: &Tensor) -> ClassReduction<'_> {
        ClassReduction::from(self).class_weights(weights)
    }

    /// This one, with targets that have a share of `1 - smoothing` in their class and of `smoothing` in all classes alike (PyTorch's
    /// `label_smoothing`; Szegedy et al. 2016): of [`cross_entropy`] alone.
    pub fn label_smoothing<'a>(self, smoothing: f64) -> ClassReduction<'a> {
        ClassReduction::from(self).label_smoothing(smoothing)
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
        ClassReduction::from(self).ignoring(class)
    }

    /// [`Reduction::class_weights`].
    pub fn class_weights(self, weights: &'a Tensor) -> ClassReduction<'a> {
        ClassReduction::from(self).class_weights(weights)
    }

    /// [`Reduction::label_smoothing`].
    pub fn label_smoothing(self, smoothing: f64) -> ClassReduction<'a> {
        ClassReduction::from(self).label_smoothing(smoothing)
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
        (name, shape): (&str, &[usize]),
        axes: Option<usize>,
        targets: Option<row_weights::Targets<'_>>,
    ) -> Result<Option<(Tensor, Tensor)>> {
        let Self { reduction, weights, lengths } = self;
        if weights.is_none() && lengths.is_none() && targets.is_none_or(|targets| targets.class_weights.is_none()) {
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
                return Err(Error::shape(op, name, format!("{expected} where there are lengths"), shape));
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
/// class, perhaps [`Reduction::weighted`], with [`Reduction::class_weights`] or [`Reduction::label_smoothing`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ClassReduction<'a> {
    weighted: WeightedReduction<'a>,
    ignore_index: Option<u32>,
    class_weights: Option<&'a Tensor>,
    label_smoothing: f64,
}

impl<'a> ClassReduction<'a> {
    /// [`Reduction::ignoring`].
    pub fn ignoring(self, class: u32) -> Self {
        Self { ignore_index: Some(class), ..self }
    }

    /// [`Reduction::class_weights`].
    pub fn class_weights(self, weights: &'a Tensor) -> Self {
        Self { class_weights: Some(weights), ..self }
    }

    /// [`Reduction::label_smoothing`].
    pub fn label_smoothing(self, label_smoothing: f64) -> Self {
        Self { label_smoothing, ..self }
    }

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
        Self { weighted, ..Self::default() }
    }
}

/// Softmax and negative log-likelihood, from logits (`torch.nn.functional.cross_entropy`): `logits` `[.., V]`, `targets`
/// one for each row, from [`crate::Device::targets`]. A row whose target is [`crate::NO_TARGET`] does not count, nor one
/// whose class is ignored: `Reduction::Mean.ignoring(0)`. If no row counts, the mean is 0 (PyTorch's is NaN).
///
/// With [`Reduction::class_weights`] w and [`Reduction::label_smoothing`] s, the loss of a row of class y is
/// `-Σ w[v] ((1 - s) [v = y] + s / V) log p[v]`, and the mean is divided by `Σ w[y]`, as in PyTorch.
///
/// Its gradient is computed on the way; [`Graph::backward`] goes on from it if the loss is named there. Perplexity is
/// `mean.exp()`, of the mean that an [`crate::Evaluator`] gives over all that it has seen.
///
/// # Errors
/// The targets' shape is neither that of the rows, axes of size 1 aside, nor flat; targets may be V or more; weights
/// or lengths do not fit; or the smoothing is not in [0, 1].
pub fn cross_entropy<'a>(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::cross_entropy::cross_entropy, is_of_logits: true, is_metric: false };
    class_loss(g, "cross_entropy", kernel, logits, targets, reduction.into())
}

/// Negative log-likelihood, from log-probabilities (`torch.nn.functional.nll_loss`): as [`cross_entropy`], of what
/// [`super::log_softmax`] gives.
///
/// # Errors
/// As [`cross_entropy`]; any smoothing.
pub fn nll_loss<'a>(
    g: &mut Graph,
    log_probabilities: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::nll_loss::nll_loss, is_of_logits: false, is_metric: false };
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
/// As [`nll_loss`]. To differentiate it is an error of [`Graph::backward`].
pub fn accuracy<'a>(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    let record = |r: &mut Recorder, loss: ClassLoss<'_>| {
        kernels::accuracy::accuracy(r, loss.x, loss.targets, loss.ignore_index, loss.losses)
    };
    let kernel = ClassKernel { record, is_of_logits: false, is_metric: true };
    class_loss(g, "accuracy", kernel, logits, targets, reduction.into())
}

/// A kernel that makes a loss over classes.
struct ClassKernel {
    record: fn(&mut Recorder, ClassLoss<'_>) -> Result<()>,
    /// Whether it is `cross_entropy`, which can count the rows itself, weighs the classes itself, and smooths targets.
    is_of_logits: bool,
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
    reduction: ClassReduction<'_>,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    let shape = x_tensor.shape();
    let OfRows { weights, scale, counts } =
        of_rows(g, op, &kernel, (x_tensor.name(), shape), kernel.is_of_logits, targets, reduction)?;
    let ClassReduction { ignore_index, class_weights, label_smoothing, .. } = reduction;
    let losses = g.zeros("losses", &[targets.len()])?;
    let wants_dx = g.is_differentiable(x) && !kernel.is_metric;
    let dx = wants_dx.then(|| g.zeros("d logits", shape)).transpose()?;
    let tensors = ClassLoss {
        x: &x_tensor,
        targets,
        ignore_index,
        class_weights,
        label_smoothing,
        counts,
        scale: &scale,
        losses: &losses,
        dx: dx.as_ref(),
    };
    (kernel.record)(g, tensors)?;
    weigh_rows(g, weights.as_ref(), &losses, dx.as_ref())?;
    Ok(match kernel.is_metric {
        true => Loss::metric(g, op, losses, scale),
        false => Loss::new(g, op, losses, scale, dx.map(|dx| (x, dx))),
    })
}

/// What the rows of a loss over classes count.
struct OfRows {
    /// Each, if they differ.
    weights: Option<Tensor>,
    /// `[1]`: what their sum is multiplied with.
    scale: Tensor,
    /// Whether the loss's kernel is to set it.
    counts: bool,
}

/// Checks everything, and records what the rows of logits of this name and shape, `[.., V]`, count, unless the kernel may count itself.
fn of_rows(
    g: &mut Graph,
    op: &'static str,
    kernel: &ClassKernel,
    logits: (&str, &[usize]),
    may_count: bool,
    targets: &Tensor,
    ClassReduction { weighted, ignore_index, class_weights, label_smoothing }: ClassReduction<'_>,
) -> Result<OfRows> {
    let (count, v) = check_classes(op, logits.1, targets)?;
    if let Some(weights) = class_weights.filter(|weights| weights.shape() != [v]) {
        return Err(Error::shape(op, weights.name(), format!("[{v}], a weight for each class,"), weights.shape()));
    }
    let most = if kernel.is_of_logits { 1.0 } else { 0.0 };
    if !(0.0..=most).contains(&label_smoothing) {
        let expected = if kernel.is_of_logits { "at least 0 and at most 1" } else { "0: it is of cross_entropy alone" };
        return Err(Error::argument(op, "label_smoothing", expected, label_smoothing));
    }
    let of_rows = row_weights::Targets { targets, v, ignore_index, class_weights, in_scale_alone: kernel.is_of_logits };
    let weights = weighted.rows(g, op, logits, Some(logits.1.len() - 1), Some(of_rows))?;
    let is_mean = weighted.reduction == Reduction::Mean && weights.is_none();
    // A kernel of few rows counts them itself.
    let counts = is_mean && may_count && count <= MOST_ROWS_COUNTED_BY_EACH;
    let scale = match &weights {
        Some((_, scale)) => scale.clone(),
        None if is_mean => g.zeros("scale", &[1])?,
        None => g.device().upload("scale", &[1], &[1.0])?,
    };
    if is_mean && !counts {
        count_targets::count_targets(g, targets, v, ignore_index, &scale)?;
    }
    Ok(OfRows { weights: weights.map(|(weights, _)| weights), scale, counts })
}

/// Logits that are there at the same time: 128 MiB, or those of 64 rows.
const LOGITS_AT_ONCE: usize = 1 << 25;

/// [`cross_entropy`] of [`super::linear`], without logits for all rows at the same time: for vocabularies of words, whose logits take more
/// memory than all else. Some rows after others have their logits, their losses, their gradients and what these add to those of `x`,
/// `weight` and `bias`. `x` `[.., I]`, `weight` `[V, I]`, `bias` `[V]`; [`crate::nn::Linear::cross_entropy`] has them. The gradient of the
/// weight is summed up in a tensor of its own, which is copied to where gradients are.
///
/// # Errors
/// As of both; the device cannot hold the logits of 64 rows.
pub fn linear_cross_entropy<'a>(
    g: &mut Graph,
    x: Var,
    weight: Var,
    bias: Option<Var>,
    targets: &Tensor,
    reduction: impl Into<ClassReduction<'a>>,
) -> Result<Loss> {
    loss_of_some_rows_after_others(g, x, (weight, bias), targets, reduction.into(), LOGITS_AT_ONCE)
}

fn loss_of_some_rows_after_others(
    g: &mut Graph,
    x: Var,
    (weight, bias): (Var, Option<Var>),
    targets: &Tensor,
    reduction: ClassReduction<'_>,
    most: usize,
) -> Result<Loss> {
    let op = "linear_cross_entropy";
    let (x_tensor, w) = (g.tensor(x)?, g.tensor(weight)?);
    let b = bias.map(|bias| g.tensor(bias)).transpose()?;
    let (rows, inputs) = x_tensor.rows_and_columns();
    let &[v, of_weight] = w.shape() else { return Err(Error::shape(op, w.name(), "[V, I]", w.shape())) };
    if of_weight != inputs {
        return Err(Error::shape(op, x_tensor.name(), format!("[.., {of_weight}]"), x_tensor.shape()));
    }
    if let Some(b) = b.as_ref().filter(|b| b.shape() != [v]) {
        return Err(Error::shape(op, b.name(), format!("[{v}]"), b.shape()));
    }
    let shape = [&x_tensor.shape()[..x_tensor.shape().len() - 1], &[v]].concat();
    let kernel = ClassKernel { record: kernels::cross_entropy::cross_entropy, is_of_logits: true, is_metric: false };
    let OfRows { weights, scale, .. } = of_rows(g, op, &kernel, ("logits", &shape), false, targets, reduction)?;
    let ClassReduction { ignore_index, class_weights, label_smoothing, .. } = reduction;
    // So many that every device can bind a part of x, targets and losses.
    let at_once = (most / v / 64 * 64).max(64).min(rows);
    let losses = g.zeros("losses", &[rows])?;
    let gradient = |var: Var, tensor: &Tensor| match g.is_differentiable(var) {
        true => Ok(Some((var, g.zeros(&format!("d {}", tensor.name()), tensor.shape())?))),
        false => Ok(None),
    };
    let of_bias = bias.zip(b.as_ref()).map_or(Ok(None), |(bias, b)| gradient(bias, b))?;
    let gradients = [gradient(x, &x_tensor)?, gradient(weight, &w)?, of_bias];
    let logits = g.zeros("logits", &[at_once, v])?;
    let wants_any = gradients.iter().any(Option::is_some);
    let dlogits = wants_any.then(|| g.zeros("d logits", &[at_once, v])).transpose()?;
    for first in (0..rows).step_by(at_once) {
        let rows = at_once.min(rows - first);
        let part = |tensor: &Tensor, shape: &[usize]| {
            tensor.view(tensor.name(), first * shape[1..].iter().product::<usize>(), shape)
        };
        let (x, targets, losses) = (part(&x_tensor, &[rows, inputs]), part(targets, &[rows]), part(&losses, &[rows]));
        let weights = weights.as_ref().map(|weights| part(weights, &[rows]));
        let logits = logits.view("logits", 0, &[rows, v]);
        let dlogits = dlogits.as_ref().map(|dlogits| dlogits.view("d logits", 0, &[rows, v]));
        matmul::matmul(g, &x, matmul::t(&w), b.as_ref(), &logits, false)?;
        let tensors = ClassLoss {
            x: &logits,
            targets: &targets,
            ignore_index,
            class_weights,
            label_smoothing,
            counts: false,
            scale: &scale,
            losses: &losses,
            dx: dlogits.as_ref(),
        };
        (kernel.record)(g, tensors)?;
        weigh_rows(g, weights.as_ref(), &losses, dlogits.as_ref())?;
        let (Some(d), [of_x, of_weight, of_bias]) = (&dlogits, &gradients) else { continue };
        if let Some((_, gradient)) = of_x {
            matmul::matmul(g, d, &w, None, &part(gradient, &[rows, inputs]), false)?;
        }
        if let Some((_, gradient)) = of_weight {
            matmul::matmul(g, matmul::t(d), &x, None, gradient, first > 0)?;
        }
        if let Some((_, gradient)) = of_bias {
            column_sum::column_sum(g, d, gradient, first > 0)?;
        }
    }
    Ok(Loss::new(g, op, losses, scale, gradients.into_iter().flatten()))
}

/// The rows and classes of logits `[.., V]` with a target for each row.
fn check_classes(op: &'static str, shape: &[usize], targets: &Tensor) -> Result<(usize, usize)> {
    let v = *shape.last().unwrap_or(&1);
    let count: usize = shape.iter().product::<usize>() / v;
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|&size| size > 1).collect::<Vec<_>>();
    let rows = &shape[..shape.len() - 1];
    if targets.len() != count || (targets.shape().len() > 1 && without_ones(targets.shape()) != without_ones(rows)) {
        return Err(Error::shape(op, targets.name(), format!("{rows:?}, or [{count}]"), targets.shape()));
    }
    kernels::expect_targets(op, targets, v)?;
    Ok((count, v))
}

/// Weighs losses and gradients that are scaled already.
fn weigh_rows<'a>(
    g: &mut Graph,
    weights: Option<&Tensor>,
    losses: &'a Tensor,
    gradients: impl IntoIterator<Item = &'a Tensor>,
) -> Result<()> {
    let Some(weights) = weights else { return Ok(()) };
    let one = g.constant(1.0)?;
    std::iter::once(losses).chain(gradients).try_for_each(|tensor| weigh(g, weights, &one, tensor))
}

/// Counts, for each class of a target and each that is the greatest logit, the first of several, how often the two come together:
/// `counts[t, p] += 1` for each row of target t, predicted p. It takes logits and targets as [`cross_entropy`]; a row whose target is
/// [`crate::NO_TARGET`] does not count, nor one of logits that are all NaN.
///
/// `counts` `[V, V]`, u32, stay on the device and are added to in each run, over all batches of an [`crate::Evaluator`], to be read once
/// after them; they start anew where they are written.
///
/// ```
/// # use elman::data::Array;
/// # use elman::nn::{Init, Linear, functional::{Reduction, confusion, cross_entropy}};
/// # use elman::{DType, Device, Evaluator, rng};
/// # let device = Device::cpu();
/// # let mut init = Init::new(rng::manual_seed(1));
/// # let layer = Linear::new(&mut init, "layer", 3, 4)?;
/// # let parameters = init.upload(&device)?;
/// # let batch = |rows: usize| Ok([Array::new("x", &[rows, 3], vec![0.5; 3 * rows])?, Array::targets("y", &[rows], vec![1; rows], 4)?]);
/// # let batches = [batch(8), batch(3)].into_iter().collect::<elman::Result<Vec<_>>>()?;
/// let counts = device.zeros("confusion", &[4, 4], DType::U32)?;
/// let mut evaluator = Evaluator::on_batches(&parameters, |g, [x, y]| {
///     let x = g.input(x)?;
///     let logits = layer.forward(g, x)?;
///     confusion(g, logits, y, &counts)?;
///     Ok([cross_entropy(g, logits, y, Reduction::Mean)?])
/// })?;
/// counts.write_u32(&[0; 16])?; // before each evaluation but the first
/// evaluator.means(&batches)?;
/// let counts = counts.to_vec_u32()?;
/// assert_eq!(counts[4..8].iter().sum::<u32>(), 11); // all rows are of class 1
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// The shapes do not fit, targets may be V or more, or `counts` are not u32.
pub fn confusion(g: &mut Graph, logits: Var, targets: &Tensor, counts: &Tensor) -> Result<()> {
    let logits = g.tensor(logits)?;
    check_classes("confusion", logits.shape(), targets)?;
    kernels::confusion::confusion(g, &logits, targets, counts)
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
    loss_of_pairs(g, "mse_loss", x, targets, |x, y| (x - y).square(), reduction)
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
    loss_of_pairs(g, "absolute_error", x, targets, |x, y| (x - y).abs(), reduction)
}

/// Half the squared error of each element up to an error of `delta`, and a line from there on, `delta (|x - y| - delta / 2)`
/// (`torch.nn.functional.huber_loss`; Huber 1964): `x` and `targets` of one shape.
///
/// # Errors
/// `delta` is not above 0, or as [`mse_loss`].
pub fn huber_loss<'a>(
    g: &mut Graph,
    x: Var,
    targets: &Tensor,
    delta: f32,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    check_above_0("huber_loss", "delta", delta)?;
    loss_of_pairs(g, "huber_loss", x, targets, |x, y| huber(x - y, delta), reduction)
}

/// [`huber_loss`] divided by its `delta`, here `beta` (`torch.nn.functional.smooth_l1_loss`; Girshick 2015): `|x - y| - beta / 2` from an
/// error of `beta` on, `(x - y)² / (2 beta)` up to there.
///
/// # Errors
/// `beta` is not above 0 ([`absolute_error`] is what 0 would be), or as [`mse_loss`].
pub fn smooth_l1_loss<'a>(
    g: &mut Graph,
    x: Var,
    targets: &Tensor,
    beta: f32,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    check_above_0("smooth_l1_loss", "beta", beta)?;
    loss_of_pairs(g, "smooth_l1_loss", x, targets, |x, y| huber(x - y, beta) / beta, reduction)
}

fn huber(error: Expr<'_>, delta: f32) -> Expr<'_> {
    // Without a branch, of which the one not taken would make NaN of an infinite error.
    let size = error.abs();
    let most = size.minimum(delta);
    most * (size - most * 0.5)
}

/// What makes each of the last axis of `x` a quantile of the target, the pinball loss (Koenker and Bassett 1978):
/// `max(q (y - x), (q - 1) (y - x))`, whose least mean is where a share q of the targets is below x. `x` `[.., Q]`, a column for each of
/// the `quantiles`, `targets` `[..]` or `[.., 1]`. A mean is over all columns of all rows.
///
/// ```
/// # use elman::{Device, Graph, nn::functional::{Reduction, quantile_loss}};
/// # let device = Device::cpu();
/// # let mut g = Graph::without_parameters(&device);
/// let forecasts = g.input(&device.upload("forecasts", &[2, 3], &[1., 2., 3., 1., 2., 3.])?)?;
/// let targets = device.upload("targets", &[2], &[2.5, 0.0])?;
/// let loss = quantile_loss(&mut g, forecasts, &targets, &[0.1, 0.5, 0.9], Reduction::Mean)?;
/// g.finish()?.run()?;
/// let wanted = [0.15, 0.25, 0.05, 0.9, 1.0, 0.3];
/// assert!(loss.rows().to_vec()?.iter().zip(wanted).all(|(loss, wanted)| (loss - wanted).abs() < 1e-6));
/// # Ok::<(), elman::Error>(())
/// ```
///
/// # Errors
/// A quantile is not above 0 and below 1, there are not as many as columns, the shapes do not fit, or weights or lengths do not.
pub fn quantile_loss<'a>(
    g: &mut Graph,
    x: Var,
    targets: &Tensor,
    quantiles: &[f32],
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    let op = "quantile_loss";
    g.check([x])?;
    if let Some(odd) = quantiles.iter().find(|&&q| !(q > 0.0 && q < 1.0)) {
        return Err(Error::argument(op, "quantiles", "each above 0 and below 1", odd));
    }
    let shape = g.shape(x);
    let Some((&columns, rows)) = shape.split_last().filter(|(columns, _)| **columns == quantiles.len()) else {
        let expected = format!("[.., {}], a column for each quantile", quantiles.len());
        return Err(Error::shape(op, g.name(x), expected, shape));
    };
    let targets = of_each_row(op, rows, targets)?;
    let quantiles = g.device().upload("quantiles", &[columns], quantiles)?;
    let (targets, quantiles) = (g.input(&targets)?, g.input(&quantiles)?);
    element_loss(g, op, [x, targets, quantiles], |[x, y, q]| (q * (y - x)).maximum((q - 1.0) * (y - x)), reduction)
}

/// A tensor of one number for each row as one that broadcasts over the rows' columns: `[..]` or `[.., 1]` as `[.., 1]`.
fn of_each_row(op: &'static str, rows: &[usize], tensor: &Tensor) -> Result<Tensor> {
    expect_numbers(op, tensor)?;
    let column = [rows, &[1]].concat();
    if tensor.shape() != rows && tensor.shape() != column {
        return Err(Error::shape(op, tensor.name(), format!("{rows:?} or {column:?}"), tensor.shape()));
    }
    tensor.reshape(&column)
}

/// Negative log-likelihood of each target under a normal distribution whose mean and variance the network says
/// (`torch.nn.functional.gaussian_nll_loss`; Nix and Weigend 1994): `(log v + (x - y)² / v) / 2`, v the variance, but at least `eps`
/// (PyTorch's is 1e-6); with `full`, and `log(2 π) / 2` more. `x` and `targets` of one shape `[.., C]`, `variance` of that too, or one for
/// each row, `[..]` or `[.., 1]`.
///
/// As in PyTorch, the gradient of a variance below `eps` is that of `eps`: it grows. PyTorch refuses a variance below 0, which
/// here is no error, but `eps`; [`super::softplus`] or [`super::exp`] make one that is above.
///
/// # Errors
/// `eps` is not above 0, the shapes do not fit, or weights or lengths do not.
pub fn gaussian_nll_loss<'a>(
    g: &mut Graph,
    x: Var,
    targets: &Tensor,
    variance: Var,
    full: bool,
    eps: f32,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    let op = "gaussian_nll_loss";
    g.check([x, variance])?;
    check_above_0(op, "eps", eps)?;
    let (shape, of_variance) = (g.shape(x).to_vec(), g.shape(variance).to_vec());
    expect_same(op, targets, &shape)?;
    let rows = &shape[..shape.len() - 1];
    let column = [rows, &[1]].concat();
    if of_variance != shape && of_variance != rows && of_variance != column {
        let expected = format!("{shape:?}, {rows:?} or {column:?}");
        return Err(Error::shape(op, g.name(variance), expected, &of_variance));
    }
    let variance = if of_variance == shape { variance } else { reshape(g, variance, &column)? };
    // The bound lets the gradient through: below it, what is added to it is 0, and yet the variance.
    let (targets, fixed) = (g.input(targets)?, detach(g, variance)?);
    let constant = if full { 0.5 * std::f32::consts::TAU.ln() } else { 0.0 };
    let values = [x, targets, variance, fixed];
    element_loss(g, op, values, |values| gaussian_nll(values, eps) + constant, reduction)
}

fn gaussian_nll<'e>([x, y, v, fixed]: [Expr<'e>; 4], eps: f32) -> Expr<'e> {
    let v = fixed.lt(eps).then((v - fixed) + eps, v);
    (v.log() + (x - y).square() / v) * 0.5
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
    // log(1 + exp z) - y z, where exp does not overflow; half the gradient of each at 0 makes σ(0).
    loss_of_pairs(g, op, logits, targets, |z, y| (z.maximum(0.0) - y * z) + (-z.abs()).softplus(), reduction)
}

fn check_above_0(op: &'static str, argument: &'static str, value: f32) -> Result<()> {
    match value > 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::argument(op, argument, "above 0, and finite", value)),
    }
}

fn expect_numbers(op: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 => Ok(()),
        other => Err(Error::argument(op, "dtype", format!("f32 for `{}`", tensor.name()), other)),
    }
}

fn expect_same(op: &'static str, targets: &Tensor, shape: &[usize]) -> Result<()> {
    expect_numbers(op, targets)?;
    match targets.shape() == shape {
        true => Ok(()),
        false => Err(Error::shape(op, targets.name(), format!("{shape:?}"), targets.shape())),
    }
}

/// A loss of each element of `x` and the target that belongs to it.
fn loss_of_pairs<'a>(
    g: &mut Graph,
    op: &'static str,
    x: Var,
    targets: &Tensor,
    of_pair: impl for<'e> FnOnce(Expr<'e>, Expr<'e>) -> Expr<'e>,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    g.check([x])?;
    expect_same(op, targets, g.shape(x))?;
    let targets = g.input(targets)?;
    element_loss(g, op, [x, targets], |[x, y]| of_pair(x, y), reduction)
}

/// A loss of each element of the first of these values, by an expression of all of them, which broadcast to it: in one dispatch with its
/// gradients.
fn element_loss<'a, const N: usize>(
    g: &mut Graph,
    op: &'static str,
    values: [Var; N],
    expression: impl for<'e> FnOnce([Expr<'e>; N]) -> Expr<'e>,
    reduction: impl Into<WeightedReduction<'a>>,
) -> Result<Loss> {
    let weighted = reduction.into();
    let mut inputs = values.iter().map(|&value| g.tensor(value)).collect::<Result<Vec<_>>>()?;
    let shape = inputs[0].shape().to_vec();
    let weights = weighted.rows(g, op, (inputs[0].name(), inputs[0].shape()), None, None)?;
    let scale = match (&weights, weighted.reduction) {
        (Some((_, scale)), _) => scale.clone(),
        (None, Reduction::Sum) => g.constant(1.0)?,
        (None, Reduction::Mean) => g.constant(1.0 / inputs[0].len() as f64)?,
    };
    inputs.push(scale.clone());
    let wanted: Vec<_> = (0..N).filter(|&i| g.is_differentiable(values[i])).collect();
    let (program, places) = Program::new(expression).with_gradients(&wanted);
    let losses = g.zeros("losses", &[inputs[0].len()])?;
    let mut results = vec![losses.reshape(&shape)?];
    let mut gradients = Vec::new();
    for (&i, _) in wanted.iter().zip(places).filter(|(_, place)| place.is_some()) {
        let gradient = g.zeros("d loss", &shape)?;
        results.push(gradient.clone());
        gradients.push((values[i], gradient));
    }
    let (program, read) = program.of_what_it_reads();
    let read: Vec<_> = read.iter().map(|&i| Operand::from(&inputs[i])).collect();
    let outputs: Vec<_> = results.iter().map(|result| (Operand::from(result), false)).collect();
    kernels::map::map(g, &program, &shape, &read, &outputs)?;
    weigh_rows(
        g,
        weights.as_ref().map(|(weights, _)| weights),
        &losses,
        gradients.iter().map(|(_, gradient)| gradient),
    )?;
    Ok(Loss::new(g, op, losses, scale, gradients))
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
/// already, one of your own by [`super::map`], say.
///
/// # Errors
/// Weights or lengths do not fit, or the device cannot hold the result.
pub fn reduce<'a>(g: &mut Graph, x: Var, reduction: impl Into<WeightedReduction<'a>>) -> Result<Loss> {
    let weighted = reduction.into();
    let op = if weighted.reduction == Reduction::Mean { "mean" } else { "sum" };
    element_loss(g, op, [x], |[x]| x, weighted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::nn::functional::linear;
    use crate::rng;

    /// Losses and gradients of x, weight and bias, with logits for all rows, or for 64 after others.
    fn loss_and_gradients(
        device: &Device,
        reduction: ClassReduction<'_>,
        has_bias: bool,
        at_once: Option<usize>,
    ) -> Vec<Vec<f64>> {
        const SIZES: [usize; 4] = [10, 20, 6, 9]; // T, B, I, V
        let [t, b, i, v] = SIZES;
        let mut g = Graph::without_parameters(device);
        let mut input = |seed: u32, shape: &[usize]| {
            let values = rng::manual_seed(seed.into()).randn(shape.iter().product());
            g.input_with_gradient(&device.upload("x", shape, &values).unwrap()).unwrap()
        };
        let (x, weight, bias) = (input(1, &[t, b, i]), input(2, &[v, i]), has_bias.then(|| input(3, &[v])));
        let targets = device.targets("targets", &[t, b], v).unwrap();
        let classes: Vec<u32> =
            (0..(t * b) as u32).map(|i| if i % 11 == 3 { crate::NO_TARGET } else { i * 7 % 9 }).collect();
        targets.write_u32(&classes).unwrap();
        let loss = match at_once {
            Some(rows) => {
                loss_of_some_rows_after_others(&mut g, x, (weight, bias), &targets, reduction, rows * v).unwrap()
            }
            None => {
                let logits = linear(&mut g, x, weight, bias).unwrap();
                cross_entropy(&mut g, logits, &targets, reduction).unwrap()
            }
        };
        g.backward(&[&(0.7 * loss.clone())], &[]).unwrap();
        let results: Vec<_> =
            [Some(x), Some(weight), bias].iter().flatten().map(|&var| g.gradient(var).unwrap()).collect();
        let rows = loss.rows().clone();
        let plan = g.finish().unwrap();
        plan.run().unwrap();
        plan.run().unwrap();
        [rows].iter().chain(&results).map(|tensor| tensor.to_vec_f64().unwrap()).collect()
    }

    #[test]
    fn some_rows_after_others_are_all_rows() {
        let gpu = Device::open("gpu").ok().filter(Device::is_gpu);
        for (device, tolerance) in
            [(Device::reference(), 1e-12), (Device::cpu(), 1e-5)].into_iter().chain(gpu.map(|gpu| (gpu, 1e-5)))
        {
            let values: Vec<f32> = (0..200).map(|i| (i % 5) as f32).collect();
            let weights = device.upload("weights", &[10, 20], &values).unwrap();
            let of_classes = device.upload("classes", &[9], &values[..9]).unwrap();
            let lengths = device.lengths("lengths", 20, 10).unwrap();
            lengths.write_u32(&(0..20).map(|i| 1 + i % 10).collect::<Vec<_>>()).unwrap();
            let reductions: [ClassReduction<'_>; 5] = [
                Reduction::Mean.into(),
                Reduction::Sum.ignoring(4),
                Reduction::Mean.weighted(&weights).into(),
                Reduction::Mean.class_weights(&of_classes).label_smoothing(0.1),
                Reduction::Mean.up_to(&lengths).into(),
            ];
            for (i, reduction) in reductions.into_iter().enumerate() {
                let all = loss_and_gradients(&device, reduction, i != 1, None);
                for at_once in [64, 128, 1000] {
                    let some = loss_and_gradients(&device, reduction, i != 1, Some(at_once));
                    assert_eq!(
                        all.iter().map(Vec::len).collect::<Vec<_>>(),
                        some.iter().map(Vec::len).collect::<Vec<_>>()
                    );
                    for (all, some) in all.iter().flatten().zip(some.iter().flatten()) {
                        assert!(
                            (all - some).abs() < tolerance * (1.0 + all.abs()),
                            "{device:?}, {reduction:?}, {at_once}: {some}, not {all}"
                        );
                    }
                }
            }
        }
    }

    /// Of a table that is looked up, with the weight frozen, and without gradients.
    #[test]
    fn only_what_is_differentiable_has_a_gradient() {
        let device = Device::cpu();
        let [table, weight] =
            [[7, 6], [9, 6]].map(|shape| device.upload("x", &shape, &rng::manual_seed(1).randn(shape[0] * 6)).unwrap());
        let index = device.tokens("index", &[130], 7).unwrap();
        index.write_u32(&(0..130).map(|i| i % 7).collect::<Vec<_>>()).unwrap();
        let targets = device.targets("targets", &[130], 9).unwrap();
        targets.write_u32(&(0..130).map(|i| i % 9).collect::<Vec<_>>()).unwrap();
        let run = |in_parts: bool, is_trained: bool| {
            let mut g = Graph::without_parameters(&device);
            let table = if is_trained { g.input_with_gradient(&table) } else { g.input(&table) }.unwrap();
            let weight = g.input(&weight).unwrap();
            let x = crate::nn::functional::embedding(&mut g, table, &index).unwrap();
            let loss = if in_parts {
                loss_of_some_rows_after_others(&mut g, x, (weight, None), &targets, Reduction::Mean.into(), 64 * 9)
            } else {
                let logits = linear(&mut g, x, weight, None).unwrap();
                cross_entropy(&mut g, logits, &targets, Reduction::Mean)
            };
            let loss = loss.unwrap();
            if is_trained {
                g.backward(&[&loss], &[]).unwrap();
            }
            let (rows, gradient) = (loss.rows().clone(), g.gradient(table));
            assert_eq!((g.gradient(weight).is_none(), gradient.is_some()), (true, is_trained));
            g.finish().unwrap().run().unwrap();
            [Some(rows), gradient].into_iter().flatten().flat_map(|tensor| tensor.to_vec().unwrap()).collect::<Vec<_>>()
        };
        for is_trained in [false, true] {
            let (all, parts) = (run(false, is_trained), run(true, is_trained));
            assert!(all.len() == parts.len() && all.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn what_does_not_fit_leaves_no_command() {
        let device = Device::cpu();
        let mut g = Graph::without_parameters(&device);
        let mut input = |shape: &[usize]| g.input(&device.zeros("x", shape, DType::F32).unwrap()).unwrap();
        let (x, weight, narrow, bias) = (input(&[4, 6]), input(&[9, 6]), input(&[9, 5]), input(&[8]));
        let targets = device.targets("targets", &[4], 9).unwrap();
        let few = device.targets("targets", &[3], 9).unwrap();
        for (weight, bias, targets) in
            [(narrow, None, &targets), (weight, Some(bias), &targets), (weight, None, &few), (bias, None, &targets)]
        {
            let error = linear_cross_entropy(&mut g, x, weight, bias, targets, Reduction::Mean).unwrap_err();
            assert!(error.to_string().contains("linear_cross_entropy"), "{error}");
            assert_eq!(g.len(), 0);
        }
    }
}
