//! `x *= weights scale`, by row.

use super::{expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, columns: u32 }

/// See `shaders/weigh.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "weigh",
    source: wgsl!("weigh"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("weights"), reads("scale"), writes("x")],
    twin: twin!(twin),
};

/// Records `x[i, j] = weights[i] scale x[i, j]`, 0 where the weight is 0, whatever stands there: `weights` `[R]`,
/// `scale` `[1]`, `x` of R rows.
///
/// # Errors
/// The sizes do not fit.
pub fn weigh(r: &mut Recorder, weights: &Tensor, scale: &Tensor, x: &Tensor) -> Result<()> {
    expect_len("weigh", scale, 1)?;
    if !x.len().is_multiple_of(weights.len()) {
        return Err(Error::shape("weigh", x.name(), format!("of {} rows", weights.len()), x.shape()));
    }
    let params = Params { n: x.len() as u32, columns: (x.len() / weights.len()) as u32 };
    r.dispatch(&KERNEL, &[], params, &[weights, scale, x], striding_grid(x.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [weights, scale, x] = args.all();
    let scale = scale.read()[0];
    for (&weight, x) in weights.read().iter().zip(x.write().chunks_exact_mut(p.columns as usize)) {
        x.iter_mut().for_each(|x| *x = if weight == F::zero() { F::zero() } else { weight * scale * *x });
    }
}
