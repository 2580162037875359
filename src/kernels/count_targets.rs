//! `1 / n` for the mean over the `n` rows whose target counts.

use super::expect_len;
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32, ignore_index: u32 }

/// See `shaders/count_targets.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "count_targets",
    source: wgsl!("count_targets", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads_u32("targets"), writes("scale")],
    twin: twin!(twin),
};

/// Records `scale = 1 / number of targets below v` other than `ignore_index`, 0 if there is none. `targets` u32,
/// `scale` `[1]`.
///
/// # Errors
/// `scale` has more than one element.
pub fn count_targets(
    r: &mut Recorder,
    targets: &Tensor,
    v: usize,
    ignore_index: Option<u32>,
    scale: &Tensor,
) -> Result<()> {
    expect_len("count_targets", scale, 1)?;
    r.check_turns(targets, targets.len().div_ceil(256))?;
    let params = Params { R: targets.len() as u32, V: v as u32, ignore_index: ignore_index.unwrap_or(u32::MAX) };
    r.dispatch(&KERNEL, &[], params, &[targets, scale], [1, 1, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [targets, scale] = args.all();
    let count = targets.read_u32().iter().filter(|&&target| target < p.V && target != p.ignore_index).count();
    scale.write()[0] = if count == 0 { F::zero() } else { F::of(1.0 / count as f64) };
}
