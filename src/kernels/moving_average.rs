//! An exponential moving average of the parameters.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, rest: f32 }

/// See `shaders/moving_average.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "moving_average",
    source: wgsl!("moving_average"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("rate"), reads_u32("clock"), reads("w"), writes("average")],
    twin: twin!(twin),
};

/// Records `average += (1 - decay) (w - average)`, unless `rate` `[1]` is below 0; after the first update, by `clock` u32, `average = w`.
///
/// # Errors
/// The sizes differ.
pub fn moving_average(
    r: &mut Recorder,
    rate: &Tensor,
    clock: &Tensor,
    w: &Tensor,
    average: &Tensor,
    decay: f64,
) -> Result<()> {
    expect_len("moving_average", rate, 1)?;
    expect_len("moving_average", average, w.len())?;
    let params = Params { n: w.len() as u32, rest: (1.0 - decay) as f32 };
    r.dispatch(&KERNEL, &[], params, &[rate, clock, w, average], striding_grid(w.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [rate, clock, w, average] = args.all();
    if rate.read()[0] < F::zero() {
        return;
    }
    let (is_first, rest) = (clock.read_u32()[0] == 1, F::of(p.rest.into()));
    let block = average.write().par_iter_mut().zip(w.read()).with_min_len(4096);
    block.for_each(|(average, &w)| *average = if is_first { w } else { *average + rest * (w - *average) });
}
