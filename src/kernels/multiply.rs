//! `z = x y`.

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32 }

/// See `shaders/multiply.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "multiply",
    source: wgsl!("multiply"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads("y"), writes("z")],
    twin: twin!(twin),
};

/// Records `z = x y` of each element, three tensors of one size.
///
/// # Errors
/// The sizes differ.
pub fn multiply(r: &mut Recorder, x: &Tensor, y: &Tensor, z: &Tensor) -> Result<()> {
    expect_len("multiply", x, z.len())?;
    expect_len("multiply", y, z.len())?;
    r.dispatch(&KERNEL, &[], Params { n: z.len() as u32 }, &[x, y, z], striding_grid(z.len()))
}

fn twin<F: Real>(_: &Params, args: Args<'_, F>) {
    let [x, y, z] = args.all();
    for ((z, &x), &y) in z.write().iter_mut().zip(x.read()).zip(y.read()) {
        *z = x * y;
    }
}
