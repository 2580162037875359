//! Softmax, negative log-likelihood and its gradient in one kernel, from logits.

use rayon::prelude::*;

use super::{expect_len, folded_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32, ignore_index: u32, gradient: u32, counts: u32, weighted: u32, smoothing: f32 }

/// See `shaders/cross_entropy.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    source: wgsl!("cross_entropy", "reduce", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[
        reads("logits"),
        reads_u32("targets"),
        reads("class_weights"),
        writes("scale"),
        writes("losses"),
        writes("dlogits"),
    ],
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
    /// What `cross_entropy` weighs each class with, `[V]`, if there is anything.
    pub class_weights: Option<&'a Tensor>,
    /// What of a target `cross_entropy` gives to all classes alike, 0 to 1.
    pub label_smoothing: f64,
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
    loss.class_weights.map_or(Ok(()), |weights| expect_len(op, weights, v))?;
    Ok((rows, v))
}

/// Records the loss of each row, not scaled, but with class weights and smoothing, and the gradient of their sum times `scale`. `loss.x`
/// holds logits.
///
/// # Errors
/// The sizes do not fit.
pub fn cross_entropy(r: &mut Recorder, loss: ClassLoss<'_>) -> Result<()> {
    let (rows, v) = check_class_loss("cross_entropy", &loss)?;
    let ClassLoss { x, targets, ignore_index, class_weights, label_smoothing, counts, scale, losses, dx } = loss;
    let [dummy, no_weights] = ["no gradient", "no weights"].map(|name| r.zeros(name, &[1]));
    let (dummy, no_weights) = (dummy?, no_weights?);
    let params = Params {
        R: rows as u32,
        V: v as u32,
        ignore_index: ignore_index.unwrap_or(u32::MAX),
        gradient: dx.is_some().into(),
        counts: counts.into(),
        weighted: class_weights.is_some().into(),
        smoothing: label_smoothing as f32,
    };
    let passes = if label_smoothing > 0.0 { 4 } else { 3 };
    r.check_turns(x, passes * v.div_ceil(64) + if counts { rows.div_ceil(64) } else { 0 })?;
    let (across, down) = folded_grid(rows);
    let class_weights = class_weights.unwrap_or(&no_weights);
    let tensors = [x, targets, class_weights, scale, losses, dx.unwrap_or(&dummy)];
    r.dispatch(&KERNEL, &[], params, &tensors, [across, down, 1])?;
    [Some(losses), dx].into_iter().flatten().for_each(|written| r.overwrites(written));
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, targets, class_weights, scale, losses, dlogits] = args.all();
    let (v, targets, scale, class_weights) = (p.V as usize, targets.read_u32(), scale.write(), class_weights.read());
    let weight_of = |class: usize| if p.weighted == 0 { F::one() } else { class_weights[class] };
    let smoothing = F::of(p.smoothing.into());
    let rest = smoothing / F::of(p.V.into());
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
        if !counts {
            *loss = F::zero();
            d.fill(F::zero());
            return;
        }
        let log_of = |class: usize| sum.ln() + (most - z[class]);
        let own = (F::one() - smoothing) * weight_of(target);
        let mut mass = own;
        *loss = own * log_of(target);
        if p.smoothing != 0.0 {
            mass = mass + rest * (0..v).map(weight_of).sum();
            *loss = *loss + rest * (0..v).map(|class| weight_of(class) * log_of(class)).sum();
        }
        let factor = mass * scale / sum;
        d.iter_mut().for_each(|d| *d = *d * factor);
        if p.smoothing != 0.0 {
            d.iter_mut().enumerate().for_each(|(class, d)| *d = *d - scale * rest * weight_of(class));
        }
        if let Some(d) = d.get_mut(target) {
            *d = *d - scale * own;
        }
    };
    if p.gradient == 0 {
        rows.for_each(|((z, &target), loss)| row(z, target, loss, &mut []));
    } else {
        let rows = rows.zip(dlogits.write().par_chunks_exact_mut(v));
        rows.for_each(|(((z, &target), loss), d)| row(z, target, loss, d));
    }
}
