//! Negative log-likelihood and its gradient, from log-probabilities.

use super::cross_entropy::{ClassLoss, check_class_loss};
use super::striding_grid;
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;

params! { R: u32, V: u32, ignore_index: u32, gradient: u32 }

/// See `shaders/nll_loss.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "nll_loss",
    source: wgsl!("nll_loss"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("targets"), reads("scale"), writes("losses"), writes("dx")],
    twin: twin!(twin),
};

/// Records the loss of each row, not scaled, and the gradient of their sum times `scale`. `loss.x` holds
/// log-probabilities.
///
/// # Errors
/// The sizes do not fit.
pub fn nll_loss(r: &mut Recorder, loss: ClassLoss<'_>) -> Result<()> {
    let (rows, v) = check_class_loss("nll_loss", &loss)?;
    let ClassLoss { x, targets, ignore_index, scale, losses, dx, .. } = loss;
    let dummy = r.zeros("no gradient", &[1])?;
    let params = Params {
        R: rows as u32,
        V: v as u32,
        ignore_index: ignore_index.unwrap_or(u32::MAX),
        gradient: dx.is_some().into(),
    };
    let work = if dx.is_some() { rows * v } else { rows };
    r.dispatch(&KERNEL, &[], params, &[x, targets, scale, losses, dx.unwrap_or(&dummy)], striding_grid(work))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, targets, scale, losses, dx] = args.all();
    let (x, v, scale, dx) = (x.read(), p.V as usize, scale.read()[0], dx.write());
    if p.gradient != 0 {
        dx.fill(F::zero());
    }
    for (i, (&target, loss)) in targets.read_u32().iter().zip(losses.write()).enumerate() {
        *loss = F::zero();
        if target < p.V && target != p.ignore_index {
            let at = i * v + target as usize;
            *loss = -x[at];
            if p.gradient != 0 {
                dx[at] = -scale;
            }
        }
    }
}
