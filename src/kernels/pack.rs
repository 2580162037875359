//! Recurrent matrices in the form that the sequence kernels stream: one for each gate, transposed or not, padded.

use super::{expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::real::Real;
use crate::tensor::Tensor;

params! { G: u32, H: u32, HP: u32, first: u32, transpose: u32 }

/// See `shaders/pack.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "pack",
    source: wgsl!("pack"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), writes("y")],
    twin: twin!(twin),
};

/// Records `y[first + g] = x[g]`, or its transpose, padded with zeros. `x` `[G H, H]`, `y` `[.., HP, HP]` with HP at least
/// H.
///
/// # Errors
/// The shapes do not fit.
pub fn pack(g: &mut Graph, x: &Tensor, y: &Tensor, first: usize, transpose: bool) -> Result<()> {
    let (&[rows, hidden], &[.., padded]) = (x.shape(), y.shape()) else {
        return Err(Error::shape("pack", x.name(), "[G H, H]", x.shape()));
    };
    let (gates, all) = (rows / hidden, y.len() / padded / padded);
    expect_len("pack", x, gates * hidden * hidden)?;
    expect_len("pack", y, all * padded * padded)?;
    if padded < hidden || first + gates > all {
        let expected = format!("at least [{}, {hidden}, {hidden}]", first + gates);
        return Err(Error::shape("pack", y.name(), expected, y.shape()));
    }
    let params = Params {
        G: gates as u32,
        H: hidden as u32,
        HP: padded as u32,
        first: first as u32,
        transpose: transpose.into(),
    };
    g.dispatch(&KERNEL, &[], params, &[x, y], striding_grid(gates * padded * padded))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, y] = args.all();
    let (hidden, padded) = (p.H as usize, p.HP as usize);
    let y = y.write().chunks_exact_mut(padded * padded).skip(p.first as usize);
    for (x, y) in x.read().chunks_exact(hidden * hidden).zip(y) {
        for (i, row) in y.chunks_exact_mut(padded).enumerate() {
            for (j, y) in row.iter_mut().enumerate() {
                let (from_row, from_column) = if p.transpose != 0 { (j, i) } else { (i, j) };
                *y = if i < hidden && j < hidden { x[from_row * hidden + from_column] } else { F::zero() };
            }
        }
    }
}
