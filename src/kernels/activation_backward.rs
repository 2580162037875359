//! The gradient of an activation, from its result.

use rayon::prelude::*;

use super::activation::Activation;
use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, kind: u32 }

/// See `shaders/activation_backward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "activation_backward",
    source: wgsl!("activation_backward"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("y"), reads("dy"), writes("dx")],
    twin: twin!(twin),
};

/// Records `dx = f'(x) dy` where `y = f(x)`: three tensors of one size.
///
/// # Errors
/// The sizes differ.
pub fn activation_backward(r: &mut Recorder, f: Activation, y: &Tensor, dy: &Tensor, dx: &Tensor) -> Result<()> {
    expect_len("activation_backward", dy, y.len())?;
    expect_len("activation_backward", dx, y.len())?;
    r.dispatch(&KERNEL, &[], Params { n: y.len() as u32, kind: f as u32 }, &[y, dy, dx], striding_grid(y.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [y, dy, dx] = args.all();
    let (one, zero) = (F::one(), F::zero());
    dx.write().par_iter_mut().zip(y.read()).zip(dy.read()).with_min_len(4096).for_each(|((dx, &y), &dy)| {
        *dx = match p.kind {
            0 => {
                if y <= zero {
                    zero
                } else {
                    dy
                }
            }
            1 => (one - y * y) * dy,
            _ => y * (one - y) * dy,
        };
    });
}
