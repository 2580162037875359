//! Whether the greatest logit of each row is that of its target.

use super::{expect_len, folded_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, V: u32, ignore_index: u32 }

/// See `shaders/accuracy.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "accuracy",
    source: wgsl!("accuracy", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("logits"), reads_u32("targets"), writes("hits")],
    twin: twin!(twin),
};

/// Records for each row of `logits` `[.., V]` 1 if the first greatest of them is that of its target, 0 if not, or if
/// the target is V or more, or `ignore_index`: `targets` u32, `hits`, one each.
///
/// # Errors
/// The sizes do not fit.
pub fn accuracy(
    r: &mut Recorder,
    logits: &Tensor,
    targets: &Tensor,
    ignore_index: Option<u32>,
    hits: &Tensor,
) -> Result<()> {
    let (rows, v) = logits.rows_and_columns();
    expect_len("accuracy", targets, rows)?;
    expect_len("accuracy", hits, rows)?;
    r.check_turns(logits, v.div_ceil(64))?;
    let params = Params { R: rows as u32, V: v as u32, ignore_index: ignore_index.unwrap_or(u32::MAX) };
    let (across, down) = folded_grid(rows);
    r.dispatch(&KERNEL, &[], params, &[logits, targets, hits], [across, down, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, targets, hits] = args.all();
    let rows = logits.read().chunks_exact(p.V as usize).zip(targets.read_u32());
    for ((z, &target), hit) in rows.zip(hits.write()) {
        let counts = target < p.V && target != p.ignore_index;
        let beats = |v: usize, other: F, own: F| other > own || (other == own && v < target as usize);
        // A NaN is no hit.
        let is_beaten = || {
            let own = z[target as usize];
            own.is_nan() || z.iter().enumerate().any(|(v, &other)| beats(v, other, own))
        };
        *hit = if counts && !is_beaten() { F::one() } else { F::zero() };
    }
}
