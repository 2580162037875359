//! The gradient of the log-probabilities.

use rayon::prelude::*;

use super::{expect_len, folded_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32 }

/// See `shaders/log_softmax_backward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "log_softmax_backward",
    source: wgsl!("log_softmax_backward", "reduce", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("y"), reads("dy"), writes("dx")],
    twin: twin!(twin),
};

/// Records `dx = dy - exp(y) Σ dy` over the last axis. All `[.., V]`; `y` are the log-probabilities.
///
/// # Errors
/// The sizes differ.
pub fn log_softmax_backward(r: &mut Recorder, y: &Tensor, dy: &Tensor, dx: &Tensor) -> Result<()> {
    expect_len("log_softmax_backward", dy, y.len())?;
    expect_len("log_softmax_backward", dx, y.len())?;
    let (rows, v) = y.rows_and_columns();
    r.check_turns(y, 2 * v.div_ceil(64))?;
    let (across, down) = folded_grid(rows);
    r.dispatch(&KERNEL, &[], Params { R: rows as u32, V: v as u32 }, &[y, dy, dx], [across, down, 1])?;
    r.overwrites(dx);
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [y, dy, dx] = args.all();
    let v = p.V as usize;
    let rows = y.read().par_chunks_exact(v).zip(dy.read().par_chunks_exact(v));
    dx.write().par_chunks_exact_mut(v).zip(rows).for_each(|(dx, (y, dy))| {
        let sum: F = dy.iter().copied().sum();
        for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = dy - y.exp() * sum;
        }
    });
}
