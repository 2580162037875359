//! Log-probabilities from logits.

use rayon::prelude::*;

use super::{expect_len, folded_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32 }

/// See `shaders/log_softmax.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "log_softmax",
    source: wgsl!("log_softmax", "reduce", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Records `y = x - log Σ exp(x)` over the last axis. `x` and `y` `[.., V]`.
///
/// # Errors
/// The sizes differ.
pub fn log_softmax(r: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
    expect_len("log_softmax", y, x.len())?;
    let (rows, v) = x.rows_and_columns();
    r.check_turns(x, 3 * v.div_ceil(64))?;
    let (across, down) = folded_grid(rows);
    r.dispatch(&KERNEL, &[], Params { R: rows as u32, V: v as u32 }, &[x, y], [across, down, 1])?;
    r.overwrites(y);
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let v = p.V as usize;
    y.write().par_chunks_exact_mut(v).zip(x.read().par_chunks_exact(v)).for_each(|(y, x)| {
        let most = x.iter().copied().fold(F::neg_infinity(), F::max);
        let log_sum = x.iter().map(|&x| (x - most).exp()).sum::<F>().ln();
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - most) - log_sum;
        }
    });
}
