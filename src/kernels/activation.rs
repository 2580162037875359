//! ReLU, tanh and the logistic function.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, kind: u32 }

/// See `shaders/activation.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "activation",
    source: wgsl!("activation", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, x)`
    Relu,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
}

/// Records `y = f(x)`, two tensors of one size.
///
/// # Errors
/// The sizes differ.
pub fn activation(r: &mut Recorder, f: Activation, x: &Tensor, y: &Tensor) -> Result<()> {
    expect_len("activation", y, x.len())?;
    r.dispatch(&KERNEL, &[], Params { n: x.len() as u32, kind: f as u32 }, &[x, y], striding_grid(x.len()))
}

/// Elements that a thread takes at a time.
const SHARE: usize = 4096;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    y.write().par_chunks_mut(SHARE).zip(x.read().par_chunks(SHARE)).for_each(|(y, x)| {
        y.copy_from_slice(x);
        match p.kind {
            0 => y.iter_mut().for_each(|y| *y = if *y < F::zero() { F::zero() } else { *y }),
            1 => F::tanh_in_place(y),
            _ => F::sigmoid_in_place(y),
        }
    });
}
