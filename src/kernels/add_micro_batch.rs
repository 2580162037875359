//! Gradients of several steps, as that of one update.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, accumulate: u32 }

/// See `shaders/add_micro_batch.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "add_micro_batch",
    source: wgsl!("add_micro_batch"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads_u32("clock"), writes("sum"), writes("g")],
    twin: twin!(twin),
};

/// Records `sum = g / accumulate + sum`, without `sum` in the first of `accumulate` steps, and `g = sum`. `clock` `[2]` u32.
///
/// # Errors
/// The sizes differ.
pub fn add_micro_batch(r: &mut Recorder, clock: &Tensor, sum: &Tensor, g: &Tensor, accumulate: usize) -> Result<()> {
    expect_len("add_micro_batch", clock, 2)?;
    expect_len("add_micro_batch", sum, g.len())?;
    let params = Params { n: g.len() as u32, accumulate: accumulate as u32 };
    r.dispatch(&KERNEL, &[], params, &[clock, sum, g], striding_grid(g.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [clock, sum, g] = args.all();
    let is_first = clock.read_u32()[0].wrapping_sub(1) % p.accumulate == 0;
    let steps = F::of(p.accumulate.into());
    sum.write().par_iter_mut().zip(g.write()).with_min_len(4096).for_each(|(sum, g)| {
        *sum = *g / steps + if is_first { F::zero() } else { *sum };
        *g = *sum;
    });
}
