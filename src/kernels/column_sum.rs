//! `y[j] = Σ_i x[i, j]`: bias gradients, and the second half of every sum cut into slices.

use super::{expect_len, folded_grid, slices};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { rows: u32, columns: u32, stride: u32, slice: u32, first: u32, copies: u32, accumulate: u32 }

/// See `shaders/column_sum.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "column_sum",
    source: wgsl!("column_sum"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Records the sum over all dimensions but the last. `x` `[.., columns]`, `y` of `columns` elements; `accumulate` adds
/// to what is there.
///
/// # Errors
/// `y` does not have as many elements as `x` has columns.
pub fn column_sum(r: &mut Recorder, x: &Tensor, y: &Tensor, accumulate: bool) -> Result<()> {
    let (_, columns) = x.rows_and_columns();
    expect_len("column_sum", y, columns)?;
    first_columns(r, x, y, accumulate)
}

/// [`column_sum`] of the first columns of `x`, as many as `y` has elements.
///
/// # Errors
/// `y` has more elements than `x` has columns.
pub fn first_columns(r: &mut Recorder, x: &Tensor, y: &Tensor, accumulate: bool) -> Result<()> {
    sum(r, x, (1, y.len()), y, accumulate)
}

/// [`column_sum`] into each row of `y` `[.., columns]`.
///
/// # Errors
/// `y` has not as many columns as `x`.
pub fn into_each_row(r: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
    let (copies, columns) = (y.rows_and_columns().0, x.rows_and_columns().1);
    expect_len("column_sum", y, copies * columns)?;
    sum(r, x, (copies, columns), y, false)
}

fn sum(r: &mut Recorder, x: &Tensor, (copies, columns): (usize, usize), y: &Tensor, accumulate: bool) -> Result<()> {
    let (rows, stride) = x.rows_and_columns();
    if columns > stride {
        return Err(Error::shape("column_sum", y.name(), format!("of at most {stride} elements"), y.shape()));
    }
    let slices = if rows <= 512 { 1 } else { slices(r.is_wide(), columns.div_ceil(64), rows) };
    // Four threads share the rows.
    let slice = rows.div_ceil(slices).min(r.terms_at_once((1, 4), 1));
    let params = |first: usize, accumulate: bool| Params {
        rows: rows as u32,
        columns: columns as u32,
        stride: stride as u32,
        slice: slice as u32,
        first: first as u32,
        copies: copies as u32,
        accumulate: accumulate.into(),
    };
    let (gx, gy) = folded_grid(columns.div_ceil(64));
    if slices == 1 {
        return (0..rows.div_ceil(slice)).try_for_each(|first| {
            r.dispatch(&KERNEL, &[], params(first, accumulate || first > 0), &[x, y], [gx, gy, 1])
        });
    }
    let slices = rows.div_ceil(slice);
    let parts = r.zeros(&format!("{} in slices", y.name()), &[slices, columns])?;
    r.dispatch(&KERNEL, &[], Params { copies: 1, ..params(0, false) }, &[x, &parts], [gx, gy, slices])?;
    let of_parts =
        Params { rows: slices as u32, stride: columns as u32, slice: slices as u32, ..params(0, accumulate) };
    r.dispatch(&KERNEL, &[], of_parts, &[&parts, y], [gx, gy, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let (columns, stride, slice) = (p.columns as usize, p.stride as usize, p.slice as usize);
    let y = y.write();
    if p.accumulate == 0 {
        y.fill(F::zero());
    }
    let x = &x.read()[p.first as usize * slice * stride..];
    // Copies are of the same rows.
    let slices = x.chunks(slice * stride).flat_map(|rows| std::iter::repeat_n(rows, p.copies as usize));
    for (y, x) in y.chunks_exact_mut(columns).zip(slices) {
        for row in x.chunks_exact(stride) {
            for (y, &x) in y.iter_mut().zip(row) {
                *y = *y + x;
            }
        }
    }
}
