//! How often each class is taken for each.

use super::{expect, expect_len, folded_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { first: u32, R: u32, V: u32 }

/// See `shaders/confusion.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "confusion",
    source: wgsl!("confusion", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("logits"), reads_u32("targets"), writes_u32("counts")],
    twin: twin!(twin),
};

/// Records `counts[t, p] += 1` for each row of `logits` `[.., V]` whose target is t, and the first greatest of it that of p. `targets` u32,
/// one each; V or more: the row does not count. `counts` `[V, V]` u32.
///
/// # Errors
/// The sizes do not fit, or `counts` are not u32.
pub fn confusion(r: &mut Recorder, logits: &Tensor, targets: &Tensor, counts: &Tensor) -> Result<()> {
    let (rows, v) = logits.rows_and_columns();
    expect_len("confusion", targets, rows)?;
    expect("confusion", counts, &[v, v])?;
    // A workgroup looks at every row, and all but one through those of its own.
    let most = r.terms_at_once((1 + v.div_ceil(64), 1), 1).max(1);
    let (across, down) = folded_grid(v);
    for first in (0..rows).step_by(most) {
        let params = Params { first: first as u32, R: rows.min(first + most) as u32, V: v as u32 };
        r.dispatch(&KERNEL, &[], params, &[logits, targets, counts], [across, down, 1])?;
    }
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [logits, targets, counts] = args.all();
    let (v, counts) = (p.V as usize, counts.write_u32());
    let rows = logits.read().chunks_exact(v).zip(targets.read_u32());
    for (z, &target) in rows.take(p.R as usize).skip(p.first as usize).filter(|(_, target)| **target < p.V) {
        let mut most: Option<(usize, F)> = None;
        for (class, &z) in z.iter().enumerate().filter(|(_, z)| !z.is_nan()) {
            if most.is_none_or(|(_, most)| z > most) {
                most = Some((class, z));
            }
        }
        if let Some((class, _)) = most {
            counts[target as usize * v + class] += 1;
        }
    }
}
