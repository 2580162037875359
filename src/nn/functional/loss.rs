//! Losses, whose gradients are computed on the way.

use crate::error::{Error, Result};
use crate::graph::{Graph, Loss, Var};
use crate::kernels::cross_entropy::ClassLoss;
use crate::kernels::mse_loss::ElementLoss;
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
    pub fn ignoring(self, class: u32) -> ClassReduction {
        ClassReduction { reduction: self, ignore_index: Some(class) }
    }
}

/// How the losses of rows with a class each become one number: a [`Reduction`], perhaps [`Reduction::ignoring`] a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassReduction {
    reduction: Reduction,
    ignore_index: Option<u32>,
}

impl From<Reduction> for ClassReduction {
    fn from(reduction: Reduction) -> Self {
        Self { reduction, ignore_index: None }
    }
}

/// Softmax and negative log-likelihood, from logits (`torch.nn.functional.cross_entropy`): `logits` `[.., V]`, `targets`
/// one for each row, from [`crate::Device::targets`]. A row whose target is [`crate::NO_TARGET`] does not count, nor one
/// whose class is ignored: `Reduction::Mean.ignoring(0)`. If no row counts, the mean is 0 (PyTorch's is NaN).
///
/// Its gradient is computed on the way; [`Graph::backward`] goes on from it if the loss is named there.
///
/// # Errors
/// The targets' shape is neither that of the rows, axes of size 1 aside, nor flat; or targets may be V or more.
pub fn cross_entropy(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::cross_entropy::cross_entropy, counts: true };
    class_loss(g, "cross_entropy", kernel, logits, targets, reduction.into())
}

/// Negative log-likelihood, from log-probabilities (`torch.nn.functional.nll_loss`): as [`cross_entropy`], of what
/// [`super::log_softmax`] gives.
///
/// # Errors
/// As [`cross_entropy`].
pub fn nll_loss(
    g: &mut Graph,
    log_probabilities: Var,
    targets: &Tensor,
    reduction: impl Into<ClassReduction>,
) -> Result<Loss> {
    let kernel = ClassKernel { record: kernels::nll_loss::nll_loss, counts: false };
    class_loss(g, "nll_loss", kernel, log_probabilities, targets, reduction.into())
}

/// A kernel that makes a loss over classes.
struct ClassKernel {
    record: fn(&mut Recorder, ClassLoss<'_>) -> Result<()>,
    /// Whether it can count the rows itself.
    counts: bool,
}

/// Up to here, each workgroup of a loss counts all rows that count: cheaper than a dispatch.
const MOST_ROWS_COUNTED_BY_EACH: usize = 1024;

fn class_loss(
    g: &mut Graph,
    op: &'static str,
    kernel: ClassKernel,
    x: Var,
    targets: &Tensor,
    ClassReduction { reduction, ignore_index }: ClassReduction,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    let (count, v) = x_tensor.rows_and_columns();
    let without_ones = |shape: &[usize]| shape.iter().copied().filter(|&size| size > 1).collect::<Vec<_>>();
    let rows = &x_tensor.shape()[..x_tensor.shape().len() - 1];
    if targets.len() != count || (targets.shape().len() > 1 && without_ones(targets.shape()) != without_ones(rows)) {
        return Err(Error::shape(op, targets.name(), format!("{rows:?}, or [{count}]"), targets.shape()));
    }
    kernels::expect_targets(op, targets, v)?;
    // A kernel of few rows counts them itself.
    let counts = reduction == Reduction::Mean && kernel.counts && count <= MOST_ROWS_COUNTED_BY_EACH;
    let scale = match reduction {
        Reduction::Sum => g.device().upload("scale", &[1], &[1.0])?,
        Reduction::Mean => g.zeros("scale", &[1])?,
    };
    if reduction == Reduction::Mean && !counts {
        count_targets::count_targets(g, targets, v, ignore_index, &scale)?;
    }
    let losses = g.zeros("losses", &[count])?;
    let dx = g.is_differentiable(x).then(|| g.zeros("d logits", x_tensor.shape())).transpose()?;
    let tensors =
        ClassLoss { x: &x_tensor, targets, ignore_index, counts, scale: &scale, losses: &losses, dx: dx.as_ref() };
    (kernel.record)(g, tensors)?;
    Ok(Loss::new(g, x, losses, scale, dx))
}

/// Squared error of each element (`torch.nn.functional.mse_loss`): `x` and `targets` of one shape.
///
/// # Errors
/// The shapes differ.
pub fn mse_loss(g: &mut Graph, x: Var, targets: &Tensor, reduction: Reduction) -> Result<Loss> {
    element_loss(g, "mse_loss", kernels::mse_loss::mse_loss, x, targets, reduction)
}

/// Binary cross-entropy of each element, from logits (`torch.nn.functional.binary_cross_entropy_with_logits`): `logits`
/// and `targets` (probabilities, 0 to 1) of one shape.
///
/// # Errors
/// The shapes differ.
pub fn binary_cross_entropy_with_logits(
    g: &mut Graph,
    logits: Var,
    targets: &Tensor,
    reduction: Reduction,
) -> Result<Loss> {
    let op = "binary_cross_entropy_with_logits";
    element_loss(g, op, kernels::bce_with_logits::bce_with_logits, logits, targets, reduction)
}

fn element_loss(
    g: &mut Graph,
    op: &'static str,
    kernel: fn(&mut Recorder, ElementLoss<'_>) -> Result<()>,
    x: Var,
    targets: &Tensor,
    reduction: Reduction,
) -> Result<Loss> {
    let x_tensor = g.tensor(x)?;
    if targets.shape() != x_tensor.shape() {
        return Err(Error::shape(op, targets.name(), format!("{:?}", x_tensor.shape()), targets.shape()));
    }
    let factor = match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean => 1.0 / x_tensor.len() as f64,
    };
    let scale = g.zeros("scale", &[1])?;
    scale.write_f64(&[factor])?;
    let losses = g.zeros("losses", &[x_tensor.len()])?;
    let dx = g.is_differentiable(x).then(|| g.zeros("d loss", x_tensor.shape())).transpose()?;
    kernel(g, ElementLoss { x: &x_tensor, targets, scale: &scale, losses: &losses, dx: dx.as_ref() })?;
    Ok(Loss::new(g, x, losses, scale, dx))
}
