//! The gradient of [`super::rnn_forward`] over a whole sequence.

use rayon::prelude::*;

use super::rnn_forward::{RowTile, TWIN_ROWS, tiles};
use super::{expect, matmul, rnn_step_backward, swap_axes};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

params! { T: u32, B: u32, H: u32, has_dy: u32, has_dh_n: u32 }

/// See `shaders/rnn_backward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rnn_backward",
    source: wgsl!("rnn_backward", "rows"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[reads("w"), reads("h"), reads("dy"), reads("dh_n"), writes("dx"), writes("dh_0")],
    twin: twin!(twin),
};

/// What flows back into a recurrence: gradients of every step's output and of the last state, where there are any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incoming<'a> {
    /// `[T, B, H]`
    pub dy: Option<&'a Tensor>,
    /// `[B, H]`
    pub dh_n: Option<&'a Tensor>,
}

/// Records the gradient: one dispatch for all steps if the hidden size allows, one per step otherwise.
///
/// `w` `[H, H]`, `h` `[T + 1, B, H]` as the forward pass left it, `dx` `[T, B, H]`, `dh_0` `[B, H]`.
///
/// # Errors
/// The shapes do not fit.
pub fn rnn_backward(
    g: &mut Graph,
    w: &Tensor,
    h: &Tensor,
    incoming: Incoming<'_>,
    dx: &Tensor,
    dh_0: &Tensor,
) -> Result<()> {
    let &[steps, batch, hidden] = dx.shape() else {
        return Err(Error::shape("rnn_backward", dx.name(), "[T, B, H]", dx.shape()));
    };
    expect("rnn_backward", w, &[hidden, hidden])?;
    expect("rnn_backward", h, &[steps + 1, batch, hidden])?;
    expect("rnn_backward", dh_0, &[batch, hidden])?;
    if let Some(dy) = incoming.dy {
        expect("rnn_backward", dy, &[steps, batch, hidden])?;
    }
    if let Some(dh_n) = incoming.dh_n {
        expect("rnn_backward", dh_n, &[batch, hidden])?;
    }
    let Some(tile) = RowTile::new(g.is_wide(), batch, hidden) else {
        for t in (0..steps).rev() {
            rnn_step_backward::rnn_step_backward(g, t, w, h, incoming, dx)?;
        }
        let first = g.view(dx, "dx[0]", 0, &[batch, hidden])?;
        return matmul::matmul(g, &first, w, None, dh_0, false);
    };
    let padded = tile.padded;
    let w = if padded == hidden {
        w.clone()
    } else {
        let w_t = g.zeros(&format!("{}ᵀ", w.name()), &[padded, padded])?;
        let w_padded = g.zeros(&format!("{}, padded", w.name()), &[padded, padded])?;
        swap_axes::swap_axes(g, w, &w_t)?;
        swap_axes::swap_axes(g, &w_t, &w_padded)?;
        w_padded
    };
    let params = Params {
        T: steps as u32,
        B: batch as u32,
        H: hidden as u32,
        has_dy: incoming.dy.is_some().into(),
        has_dh_n: incoming.dh_n.is_some().into(),
    };
    let tensors = [&w, h, incoming.dy.unwrap_or(h), incoming.dh_n.unwrap_or(h), dx, dh_0];
    g.dispatch(&KERNEL, &tile.constants(), params, &tensors, [batch.div_ceil(tile.entries()), 1, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, h, dy, dh_n, dx, dh_0] = args.all();
    let (w, h, dy, dh_n) = (w.read(), h.read(), dy.read(), dh_n.read());
    let (steps, batch, hidden) = (p.T as usize, p.B as usize, p.H as usize);
    let w = Matrix::strided(w, hidden, hidden, hidden.next_multiple_of(4));
    let per_tile = tiles(dx.write(), batch, hidden).into_par_iter().zip(tiles(dh_0.write(), batch, hidden));
    per_tile.enumerate().for_each(|(tile, (mut dx, mut dh_0))| {
        // `carried` is dh[t + 1] less dy[t]; it ends as dh_0.
        let carried = &mut *dh_0[0];
        let first = tile * TWIN_ROWS * hidden;
        if p.has_dh_n != 0 {
            carried.copy_from_slice(&dh_n[first..][..carried.len()]);
        } else {
            carried.fill(F::zero());
        }
        for t in (0..steps).rev() {
            let at = t * batch * hidden + first;
            if p.has_dy != 0 {
                for (dh, &dy) in carried.iter_mut().zip(&dy[at..]) {
                    *dh = *dh + dy;
                }
            }
            let y = &h[at + batch * hidden..];
            for ((dx, &dh), &y) in dx[t].iter_mut().zip(&*carried).zip(y) {
                *dx = dh * (F::one() - y * y);
            }
            product(carried, Matrix::new(dx[t], dx[t].len() / hidden, hidden), w, false, false);
        }
    });
}
