//! One step of the gradient of the tanh recurrence.

use super::rnn_backward::Incoming;
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

params! { t: u32, B: u32, H: u32, last: u32, has_dy: u32, has_dh_n: u32 }

/// See `shaders/rnn_step_backward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rnn_step_backward",
    source: wgsl!("rnn_step_backward", "tile"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("w"), reads("h"), reads("dy"), reads("dh_n"), writes("dx")],
    twin: twin!(twin),
};

/// Records step `t`; the tensors are those of [`super::rnn_backward::rnn_backward`], which checks their shapes.
///
/// # Errors
/// As every dispatch: aliasing or limits.
pub(crate) fn rnn_step_backward(
    g: &mut Graph,
    t: usize,
    w: &Tensor,
    h: &Tensor,
    incoming: Incoming<'_>,
    dx: &Tensor,
) -> Result<()> {
    let &[steps, batch, hidden] = dx.shape() else { unreachable!("`rnn_backward` checks dx") };
    let params = Params {
        t: t as u32,
        B: batch as u32,
        H: hidden as u32,
        last: (t + 1 == steps).into(),
        has_dy: incoming.dy.is_some().into(),
        has_dh_n: incoming.dh_n.is_some().into(),
    };
    let tensors = [w, h, incoming.dy.unwrap_or(h), incoming.dh_n.unwrap_or(h), dx];
    g.dispatch(&KERNEL, &[], params, &tensors, [hidden.div_ceil(64), batch.div_ceil(64), 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, h, dy, dh_n, dx] = args.all();
    let (w, h, dy, dh_n, dx) = (w.read(), h.read(), dy.read(), dh_n.read(), dx.write());
    let (t, batch, hidden) = (p.t as usize, p.B as usize, p.H as usize);
    let slot = batch * hidden;
    let (now, after) = dx[t * slot..].split_at_mut(slot);
    if p.last == 0 {
        product(now, Matrix::new(&after[..slot], batch, hidden), Matrix::new(w, hidden, hidden), false, true);
    } else if p.has_dh_n != 0 {
        now.copy_from_slice(&dh_n[..slot]);
    } else {
        now.fill(F::zero());
    }
    for (i, dx) in now.iter_mut().enumerate() {
        let y = h[(t + 1) * slot + i];
        let dy = if p.has_dy != 0 { dy[t * slot + i] } else { F::zero() };
        *dx = (*dx + dy) * (F::one() - y * y);
    }
}
