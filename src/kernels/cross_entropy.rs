//! Softmax, negative log-likelihood and its gradient in one kernel, from logits.

use rayon::prelude::*;

use super::{expect_len, folded_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32, ignore_index: u32, gradient: u32, counts: u32 }

/// See `shaders/cross_entropy.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    source: wgsl!("cross_entropy", "reduce", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("logits"), reads_u32("targets"), writes("scale"), writes("losses"), writes("dlogits")],
    twin: twin!(twin),
};

/// The tensors of a loss over classes.
#[derive(Clone, Copy, Debug)]
pub struct ClassLoss<'a> {
    /// Logits or log-probabilities, `[.., V]`.
    pub x: &'a Tensor,
    /// One u32 for each row; V or more: the row is ignored.
    pub targets: &'a Tensor,
    /// A class whose rows are ignored too.
    pub ignore_index: Option<u32>,
    /// Whether `cross_entropy` sets `scale` to 1 / the number of rows that count, 0 if none does.
    pub counts: bool,
    /// What the sum of the losses is multiplied with, `[1]`.
    pub scale: &'a Tensor,
    /// The loss of each row, not scaled.
    pub losses: &'a Tensor,
    /// The gradient, like `x`, if it is wanted.
    pub dx: Option<&'a Tensor>,
}

/// Checks the sizes; rows and V.
pub(super) fn check_class_loss(op: &'static str, loss: &ClassLoss<'_>) -> Result<(usize, usize)> {
    let (rows, v) = loss.x.rows_and_columns();
    expect_len(op, loss.targets, rows)?;
    expect_len(op, loss.losses, rows)?;
    expect_len(op, loss.scale, 1)?;
    loss.dx.map_or(Ok(()), |dx| expect_len(op, dx, rows * v))?;
    Ok((rows, v))
}

/// Records the loss of each row, not scaled, and the gradient of their sum times `scale`. `loss.x` holds logits.
///
/// # Errors
/// The sizes do not fit.
pub fn cross_entropy(r: &mut Recorder, loss: ClassLoss<'_>) -> Result<()> {
    let (rows, v) = check_class_loss("cross_entropy", &loss)?;
    let ClassLoss { x, targets, ignore_index, counts, scale, losses, dx } = loss;
    let dummy = r.zeros("no gradient", &[1])?;
    let params = Params {
        R: rows as u32,
        V: v as u32,
        ignore_index: ignore_index.unwrap_or(u32::MAX),
        gradient: dx.is_some().into(),
        counts: counts.into(),
    };
    r.check_turns(x, 3 * v.div_ceil(64) + if counts { rows.div_ceil(64) } else { 0 })?;
    let (across, down) = folded_grid(rows);
    r.dispatch(&KERNEL, &[], params, &[x, targets, scale, losses, dx.unwrap_or(&dummy)], [across, down, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, targets, scale, losses, dlogits] = args.all();
    let (v, targets, scale) = (p.V as usize, targets.read_u32(), scale.write());
    let counts = |target: u32| target < p.V && target != p.ignore_index;
    if p.counts != 0 {
        let count = targets.iter().filter(|&&target| counts(target)).count();
        scale[0] = if count == 0 { F::zero() } else { F::of(1.0 / count as f64) };
    }
    let scale = scale[0];
    let rows = logits.read().par_chunks_exact(v).zip(targets).zip(losses.write());
    let row = |z: &[F], target: u32, loss: &mut F, d: &mut [F]| {
        let (counts, target) = (counts(target), target as usize);
        let most = z.iter().copied().fold(F::neg_infinity(), F::max);
        // The exponentials, where the gradient will be.
        d.iter_mut().zip(z).for_each(|(d, &z)| *d = z - most);
        F::exp_in_place(d);
        let sum: F = if d.is_empty() { z.iter().map(|&z| (z - most).exp()).sum() } else { d.iter().copied().sum() };
        *loss = if counts { sum.ln() + (most - z[target]) } else { F::zero() };
        let factor = if counts { scale / sum } else { F::zero() };
        d.iter_mut().for_each(|d| *d = if counts { *d * factor } else { F::zero() });
        if counts && let Some(d) = d.get_mut(target) {
            *d = *d - scale;
        }
    };
    if p.gradient == 0 {
        rows.for_each(|((z, &target), loss)| row(z, target, loss, &mut []));
    } else {
        let rows = rows.zip(dlogits.write().par_chunks_exact_mut(v));
        rows.for_each(|(((z, &target), loss), d)| row(z, target, loss, d));
    }
}
