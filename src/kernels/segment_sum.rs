//! `dtable[v, :] = Σ_{i: index[i] = v} dy[i, :]`: the gradient of [`super::gather`].

use super::{column_sum, expect_indices, expect_len, slices};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { rows: u32, columns: u32, V: u32, slice: u32, accumulate: u32 }

/// See `shaders/segment_sum.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "segment_sum",
    source: wgsl!("segment_sum"),
    constants: &[],
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
    let slices = slices(r.is_wide(), v * columns.div_ceil(64), index.len());
    let slice = index.len().div_ceil(slices);
    let params = |accumulate: bool| Params {
        rows: index.len() as u32,
        columns: columns as u32,
        V: v as u32,
        slice: slice as u32,
        accumulate: accumulate.into(),
    };
    let slices = index.len().div_ceil(slice);
    let grid = [columns.div_ceil(64), v.min(65_535), slices];
    if slices == 1 {
        return r.dispatch(&KERNEL, &[], params(accumulate), &[dy, index, dtable], grid);
    }
    let parts = r.zeros(&format!("{} in slices", dtable.name()), &[slices, v, columns])?;
    r.dispatch(&KERNEL, &[], params(false), &[dy, index, &parts], grid)?;
    column_sum::column_sum(r, &parts.reshape(&[slices, v * columns])?, dtable, accumulate)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [dy, index, dtable] = args.all();
    let (dy, index, dtable, columns) = (dy.read(), index.read_u32(), dtable.write(), p.columns as usize);
    let slice = p.slice as usize;
    let slices = (p.rows as usize).div_ceil(slice);
    if p.accumulate == 0 {
        dtable.fill(F::zero());
    }
    let table = dtable.len() / slices;
    let per_slice = dtable.chunks_exact_mut(table).zip(dy.chunks(slice * columns)).zip(index.chunks(slice));
    for ((dtable, dy), index) in per_slice {
        for (dy, &v) in dy.chunks_exact(columns).zip(index) {
            for (sum, &d) in dtable[v as usize * columns..][..columns].iter_mut().zip(dy) {
                *sum = *sum + d;
            }
        }
    }
}
