//! `y += x`.

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32 }

/// See `shaders/accumulate.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "accumulate",
    source: wgsl!("accumulate"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Records `y += x`, two tensors of one size.
///
/// # Errors
/// The sizes differ.
pub fn accumulate(r: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
    expect_len("accumulate", x, y.len())?;
    r.dispatch(&KERNEL, &[], Params { n: y.len() as u32 }, &[x, y], striding_grid(y.len()))
}

fn twin<F: Real>(_: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    for (y, &x) in y.write().iter_mut().zip(x.read()) {
        *y = *y + x;
    }
}
