//! [`super::reverse`] of the index of a lookup.

use super::{expect, expect_indices, expect_lengths, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads_u32, twin, wgsl, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { T: u32, B: u32 }

/// See `shaders/reverse_index.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "reverse_index",
    source: wgsl!("reverse_index"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads_u32("x"), reads_u32("lengths"), writes_u32("y")],
    twin: twin!(twin, alone),
};

/// Records the reversal. `x` and `y` `[T, B]`, `lengths` `[B]` from [`crate::Device::lengths`] of at most T; all u32.
///
/// # Errors
/// The shapes do not fit, or `x` may hold what `y` may not.
pub fn reverse_index(r: &mut Recorder, x: &Tensor, lengths: &Tensor, y: &Tensor) -> Result<()> {
    let &[steps, batch] = x.shape() else {
        return Err(Error::shape("reverse_index", x.name(), "[T, B]", x.shape()));
    };
    expect_lengths("reverse_index", lengths, batch, steps)?;
    expect("reverse_index", y, x.shape())?;
    expect_indices("reverse_index", x, y.vocabulary().unwrap_or(usize::MAX))?;
    let params = Params { T: steps as u32, B: batch as u32 };
    r.dispatch(&KERNEL, &[], params, &[x, lengths, y], striding_grid(y.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, lengths, y] = args.all();
    let (x, lengths, batch) = (x.read_u32(), lengths.read_u32(), p.B as usize);
    for (i, y) in y.write_u32().iter_mut().enumerate() {
        let (t, b) = (i / batch, i % batch);
        *y = x[(lengths[b] as usize).checked_sub(t + 1).unwrap_or(t) * batch + b];
    }
}
