//! Each entry's own steps, last first: the other direction of a recurrence.

use super::{expect, expect_lengths, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { T: u32, B: u32, C: u32 }

/// See `shaders/reverse.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "reverse",
    source: wgsl!("reverse"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("lengths"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records the reversal. `x` and `y` `[T, B, C]`, `lengths` `[B]` from [`crate::Device::lengths`] of at most T.
///
/// # Errors
/// The shapes do not fit.
pub fn reverse(r: &mut Recorder, x: &Tensor, lengths: &Tensor, y: &Tensor) -> Result<()> {
    let &[steps, batch, columns] = x.shape() else {
        return Err(Error::shape("reverse", x.name(), "[T, B, C]", x.shape()));
    };
    expect_lengths("reverse", lengths, batch, steps)?;
    expect("reverse", y, x.shape())?;
    let params = Params { T: steps as u32, B: batch as u32, C: columns as u32 };
    r.dispatch(&KERNEL, &[], params, &[x, lengths, y], striding_grid(y.len()))?;
    r.overwrites(y);
    Ok(())
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, lengths, y] = args.all();
    let (x, lengths, batch, columns) = (x.read(), lengths.read_u32(), p.B as usize, p.C as usize);
    for (row, y) in y.write().chunks_exact_mut(columns).enumerate() {
        let (t, b) = (row / batch, row % batch);
        match (lengths[b] as usize).checked_sub(t + 1) {
            Some(from) => y.copy_from_slice(&x[(from * batch + b) * columns..][..columns]),
            None => y.fill(F::zero()),
        }
    }
}
