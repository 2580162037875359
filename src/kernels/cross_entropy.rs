//! Softmax, negative log-likelihood and its gradient in one kernel, from logits.

use rayon::prelude::*;

use super::{expect_len, folded_grid};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32, gradient: u32 }

/// See `shaders/cross_entropy.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "cross_entropy",
    source: wgsl!("cross_entropy", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("logits"), reads_u32("targets"), reads("scale"), writes("losses"), writes("dlogits")],
    twin: twin!(twin),
};

/// Records the loss of each row, not scaled, and the gradient of their sum times `scale`.
///
/// `logits` `[.., V]`, `targets` one u32 a row (V or more: the row is ignored), `scale` `[1]`, `losses` one a row,
/// `dlogits` like `logits`.
///
/// # Errors
/// The sizes do not fit.
pub fn cross_entropy(
    g: &mut Graph,
    logits: &Tensor,
    targets: &Tensor,
    scale: &Tensor,
    losses: &Tensor,
    dlogits: Option<&Tensor>,
) -> Result<()> {
    let (rows, v) = logits.rows_and_columns();
    expect_len("cross_entropy", targets, rows)?;
    expect_len("cross_entropy", losses, rows)?;
    expect_len("cross_entropy", scale, 1)?;
    let dummy = g.zeros("no gradient", &[1])?;
    if let Some(dlogits) = dlogits {
        expect_len("cross_entropy", dlogits, rows * v)?;
    }
    let params = Params { R: rows as u32, V: v as u32, gradient: dlogits.is_some().into() };
    let (x, y) = folded_grid(rows);
    g.dispatch(&KERNEL, &[], params, &[logits, targets, scale, losses, dlogits.unwrap_or(&dummy)], [x, y, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, targets, scale, losses, dlogits] = args.all();
    let (v, scale) = (p.V as usize, scale.read()[0]);
    let rows = logits.read().par_chunks_exact(v).zip(targets.read_u32()).zip(losses.write());
    let row = |z: &[F], target: usize, loss: &mut F, d: &mut [F]| {
        let most = z.iter().copied().fold(F::neg_infinity(), F::max);
        let sum: F = z.iter().map(|&z| (z - most).exp()).sum();
        *loss = if target < v { sum.ln() + (most - z[target]) } else { F::zero() };
        for (i, (d, &z)) in d.iter_mut().zip(z).enumerate() {
            let hit = if i == target { F::one() } else { F::zero() };
            *d = if target < v { ((z - most).exp() / sum - hit) * scale } else { F::zero() };
        }
    };
    if p.gradient == 0 {
        rows.for_each(|((z, &target), loss)| row(z, target as usize, loss, &mut []));
    } else {
        let rows = rows.zip(dlogits.write().par_chunks_exact_mut(v));
        rows.for_each(|(((z, &target), loss), d)| row(z, target as usize, loss, d));
    }
}
