//! The state after each entry's last step.

use super::{expect_len, expect_lengths, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { D: u32, T: u32, B: u32, H: u32 }

/// See `shaders/last_step.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "last_step",
    source: wgsl!("last_step"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("h"), reads_u32("lengths"), writes("y")],
    twin: twin!(twin, alone),
};

/// Records `y[d, b] = h[d, lengths[b], b]`. `h` `[D, T + 1, B, H]`, `lengths` `[B]` from [`crate::Device::lengths`] of at
/// most T, `y` of `D B H` elements.
///
/// # Errors
/// The shapes do not fit.
pub fn last_step(r: &mut Recorder, h: &Tensor, lengths: &Tensor, y: &Tensor) -> Result<()> {
    let &[directions, slots, batch, hidden] = h.shape() else {
        return Err(Error::shape("last_step", h.name(), "[D, T + 1, B, H]", h.shape()));
    };
    expect_lengths("last_step", lengths, batch, slots - 1)?;
    expect_len("last_step", y, directions * batch * hidden)?;
    let params = Params { D: directions as u32, T: slots as u32 - 1, B: batch as u32, H: hidden as u32 };
    r.dispatch(&KERNEL, &[], params, &[h, lengths, y], striding_grid(y.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [h, lengths, y] = args.all();
    let (h, lengths, batch, hidden) = (h.read(), lengths.read_u32(), p.B as usize, p.H as usize);
    for (row, y) in y.write().chunks_exact_mut(hidden).enumerate() {
        let (d, b) = (row / batch, row % batch);
        let slot = d * (p.T as usize + 1) + lengths[b] as usize;
        y.copy_from_slice(&h[(slot * batch + b) * hidden..][..hidden]);
    }
}
