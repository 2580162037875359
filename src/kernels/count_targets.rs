//! `1 / n` for the mean over the `n` rows whose target counts.

use super::{MOST_OF_ONE_WORKGROUP, column_sum, expect_len, map};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32, ignore_index: u32, parts: u32 }

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
    let record = |r: &mut Recorder, counts: &Tensor| {
        let (parts, ignore_index) = (counts.len(), ignore_index.unwrap_or(u32::MAX));
        let params = Params { R: targets.len() as u32, V: v as u32, ignore_index, parts: parts as u32 };
        r.dispatch(&KERNEL, &[], params, &[targets, counts], [parts, 1, 1])
    };
    let parts = targets.len().div_ceil(MOST_OF_ONE_WORKGROUP);
    if parts == 1 {
        return record(r, scale);
    }
    let (counts, count) = (r.zeros("targets that count, in parts", &[parts, 1])?, r.zeros("targets that count", &[1])?);
    record(r, &counts)?;
    column_sum::column_sum(r, &counts, &count, false)?;
    map::unary(r, |count| count.gt(0.0).then(1.0 / count, 0.0), &count, scale)
}

/// Targets that a workgroup sees at once.
const THREADS: usize = 256;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [targets, scale] = args.all();
    let counts = |target: &&u32| **target < p.V && **target != p.ignore_index;
    let (targets, scale) = (targets.read_u32(), scale.write());
    if let [scale] = scale {
        let count = targets.iter().filter(counts).count();
        *scale = if count == 0 { F::zero() } else { F::of(1.0 / count as f64) };
        return;
    }
    for (part, scale) in scale.iter_mut().enumerate() {
        let of_part = targets.chunks(THREADS).skip(part).step_by(p.parts as usize).flatten();
        *scale = F::of(of_part.filter(counts).count() as f64);
    }
}
