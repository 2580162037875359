//! `y[b, a, :] = x[a, b, :]`: batch first to time first and back, and matrix transposes.

use super::striding_grid;
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { A: u32, B: u32, C: u32 }

/// See `shaders/swap_axes.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "swap_axes",
    source: wgsl!("swap_axes"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Records the exchange of the first two axes. `x` `[A, B]` or `[A, B, C]`, `y` `[B, A]` or `[B, A, C]`.
///
/// # Errors
/// `y` has another shape.
pub fn swap_axes(r: &mut Recorder, x: &Tensor, y: &Tensor) -> Result<()> {
    let axes = |tensor: &Tensor| match *tensor.shape() {
        [a, b] => Ok([a, b, 1]),
        [a, b, c] => Ok([a, b, c]),
        _ => Err(Error::shape("swap_axes", tensor.name(), "[A, B] or [A, B, C]", tensor.shape())),
    };
    let [a, b, c] = axes(x)?;
    if axes(y)? != [b, a, c] {
        return Err(Error::shape("swap_axes", y.name(), format!("[{b}, {a}, {c}]"), y.shape()));
    }
    let params = Params { A: a as u32, B: b as u32, C: c as u32 };
    r.dispatch(&KERNEL, &[], params, &[x, y], striding_grid(y.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let x = x.read();
    let (a, b, c) = (p.A as usize, p.B as usize, p.C as usize);
    for (i, y) in y.write().chunks_exact_mut(c).enumerate() {
        y.copy_from_slice(&x[(i % a * b + i / a) * c..][..c]);
    }
}
