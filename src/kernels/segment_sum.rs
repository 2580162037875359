//! `dtable[v, :] = Σ_{i: index[i] = v} dy[i, :]`: the gradient of [`super::gather`].

use rayon::prelude::*;

use super::{column_sum, expect_indices, expect_len, slices};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { rows: u32, columns: u32, V: u32, slice: u32, first: u32, accumulate: u32, tokens: u32 }

/// `TOKENS` of the kernel: as many sums of 64 columns as 8 KiB of workgroup memory hold.
const MOST_TOKENS: usize = 32;

/// See `shaders/segment_sum.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "segment_sum",
    source: wgsl!("segment_sum"),
    constants: &["MANY"],
    params: FIELDS,
    bindings: &[reads("dy"), reads_u32("index"), writes("dtable")],
    twin: twin!(twin),
};

/// Records the sum. `dy` `[.., columns]`, `index` `[..]` u32, `dtable` `[V, columns]`; `accumulate` adds to what is there.
///
/// # Errors
/// `dtable` is not a matrix, the index may exceed it, or `dy` does not have a row for each index.
pub fn segment_sum(r: &mut Recorder, dy: &Tensor, index: &Tensor, dtable: &Tensor, accumulate: bool) -> Result<()> {
    let &[v, columns] = dtable.shape() else {
        return Err(Error::shape("segment_sum", dtable.name(), "[V, columns]", dtable.shape()));
    };
    expect_indices("segment_sum", index, v)?;
    expect_len("segment_sum", dy, index.len() * columns)?;
    // All rows are looked through for so many tokens at once: of a vocabulary of words, some hundred workgroups do that.
    let tokens = (v / 256).clamp(1, MOST_TOKENS);
    let many = [("MANY", u32::from(tokens > 1))];
    let blocks = v.div_ceil(tokens);
    let slices = slices(r.is_wide(), blocks * columns.div_ceil(64), index.len());
    // A thread looks through all rows, 256 in 13 turns, for each block that it has, and takes a turn for each row of one.
    let passes = blocks.div_ceil(65_535);
    let slice = index.len().div_ceil(slices).min(r.terms_at_once((256 + 13 * passes, 256), 1));
    let params = |first: usize, accumulate: bool| Params {
        rows: index.len() as u32,
        columns: columns as u32,
        V: v as u32,
        slice: slice as u32,
        first: first as u32,
        accumulate: accumulate.into(),
        tokens: tokens as u32,
    };
    let grid = |slices: usize| [columns.div_ceil(64), blocks.min(65_535), slices];
    if slices == 1 {
        return (0..index.len().div_ceil(slice)).try_for_each(|first| {
            r.dispatch(&KERNEL, &many, params(first, accumulate || first > 0), &[dy, index, dtable], grid(1))
        });
    }
    let slices = index.len().div_ceil(slice);
    let parts = r.zeros(&format!("{} in slices", dtable.name()), &[slices, v, columns])?;
    r.dispatch(&KERNEL, &many, params(0, false), &[dy, index, &parts], grid(slices))?;
    column_sum::column_sum(r, &parts.reshape(&[slices, v * columns])?, dtable, accumulate)
}

/// Parts of a table that threads of the twin may take.
const PARTS: usize = 4;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [dy, index, dtable] = args.all();
    let (dy, index, dtable, columns) = (dy.read(), index.read_u32(), dtable.write(), p.columns as usize);
    let (slice, start) = (p.slice as usize, p.first as usize * p.slice as usize);
    let rows = dy[start * columns..].chunks(slice * columns).zip(index[start..].chunks(slice));
    let per_slice =
        dtable.chunks_exact_mut(p.V as usize * columns).zip(rows).map(|(table, (dy, index))| ((table, dy), index));
    for ((dtable, dy), index) in per_slice {
        // Each part of the table looks through all rows for its own.
        let each = (p.V as usize).div_ceil(PARTS);
        dtable.par_chunks_mut(each * columns).enumerate().for_each(|(part, sums)| {
            if p.accumulate == 0 {
                sums.fill(F::zero());
            }
            for (dy, &v) in dy.chunks_exact(columns).zip(index) {
                let Some(v) = (v as usize).checked_sub(part * each).filter(|&v| v < sums.len() / columns) else {
                    continue;
                };
                for (sum, &d) in sums[v * columns..][..columns].iter_mut().zip(dy) {
                    *sum = *sum + d;
                }
            }
        });
    }
}
