//! `y[i, :] = table[index[i], :]`: an embedding's lookup.

use super::{expect_indices, expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { rows: u32, columns: u32 }

/// See `shaders/gather.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "gather",
    source: wgsl!("gather"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("table"), reads_u32("index"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records the lookup. `table` `[V, columns]`, `index` `[..]` u32, each below V, `y` `[.., columns]`.
///
/// # Errors
/// `table` is not a matrix, the index may exceed it, or `y` does not have a row for each index.
pub fn gather(r: &mut Recorder, table: &Tensor, index: &Tensor, y: &Tensor) -> Result<()> {
    let &[v, columns] = table.shape() else {
        return Err(Error::shape("gather", table.name(), "[V, columns]", table.shape()));
    };
    expect_indices("gather", index, v)?;
    expect_len("gather", y, index.len() * columns)?;
    let params = Params { rows: index.len() as u32, columns: columns as u32 };
    r.dispatch(&KERNEL, &[], params, &[table, index, y], striding_grid(y.len()))?;
    r.overwrites(y);
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [table, index, y] = args.all();
    let (table, columns) = (table.read(), p.columns as usize);
    for (y, &i) in y.write().chunks_exact_mut(columns).zip(index.read_u32()) {
        y.copy_from_slice(&table[i as usize * columns..][..columns]);
    }
}
