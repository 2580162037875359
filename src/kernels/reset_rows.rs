//! States, 0 where a step begins anew.

use super::{expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::{DType, Tensor};

params! { n: u32, columns: u32, first: u32 }

/// See `shaders/reset_rows.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "reset_rows",
    source: wgsl!("reset_rows"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("marks"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records `y = x`, 0 in the rows that are marked: the marks u32, from the `first` on; the rows are those of the last axis.
///
/// # Errors
/// The sizes do not fit.
pub fn reset_rows(r: &mut Recorder, x: &Tensor, marks: &Tensor, first: usize, y: &Tensor) -> Result<()> {
    expect_len("reset_rows", y, x.len())?;
    let (rows, columns) = x.rows_and_columns();
    if marks.dtype() != DType::U32 || marks.len() < first + rows {
        let expected = format!("u32, of at least {} elements", first + rows);
        return Err(Error::shape("reset_rows", marks.name(), expected, marks.shape()));
    }
    let params = Params { n: x.len() as u32, columns: columns as u32, first: first as u32 };
    r.dispatch(&KERNEL, &[], params, &[x, marks, y], striding_grid(x.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, marks, y] = args.all();
    let columns = p.columns as usize;
    let rows = x.read().chunks_exact(columns).zip(y.write().chunks_exact_mut(columns));
    for ((x, y), &mark) in rows.zip(&marks.read_u32()[p.first as usize..]) {
        if mark == 0 { y.copy_from_slice(x) } else { y.fill(F::zero()) }
    }
}
