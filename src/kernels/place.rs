//! A block of columns, from one matrix into another: concatenation and its gradient.

use super::striding_grid;
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { rows: u32, columns: u32, x_stride: u32, x_offset: u32, y_stride: u32, y_offset: u32 }

/// See `shaders/place.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "place",
    source: wgsl!("place"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Records `y[.., y_offset..][..columns] = x[.., x_offset..][..columns]`. `x` and `y` have as many rows.
///
/// # Errors
/// The block does not lie within both.
pub fn place(
    r: &mut Recorder,
    (x, x_offset): (&Tensor, usize),
    (y, y_offset): (&Tensor, usize),
    columns: usize,
) -> Result<()> {
    let ((rows, x_stride), (y_rows, y_stride)) = (x.rows_and_columns(), y.rows_and_columns());
    let [x_end, y_end] = [x_offset, y_offset].map(|offset| offset.saturating_add(columns));
    if rows != y_rows || x_end > x_stride || y_end > y_stride {
        let expected = format!("of {rows} rows with columns {y_offset} to {y_end}");
        return Err(Error::shape("place", y.name(), expected, y.shape()));
    }
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        x_stride: x_stride as u32,
        x_offset: x_offset as u32,
        y_stride: y_stride as u32,
        y_offset: y_offset as u32,
    };
    r.dispatch(&KERNEL, &[], params, &[x, y], striding_grid(rows * columns))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let rows = x.read().chunks_exact(p.x_stride as usize).zip(y.write().chunks_exact_mut(p.y_stride as usize));
    for (x, y) in rows {
        let columns = p.columns as usize;
        y[p.y_offset as usize..][..columns].copy_from_slice(&x[p.x_offset as usize..][..columns]);
    }
}
