//! One step of the tanh recurrence: the path for hidden sizes that [`super::rnn_forward`] cannot hold.

use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

params! { t: u32, B: u32, H: u32 }

/// See `shaders/rnn_step_forward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rnn_step_forward",
    source: wgsl!("rnn_step_forward", "tile", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("index"), reads("w"), writes("h")],
    twin: twin!(twin),
};

/// Records step `t`; the tensors are those of [`super::rnn_forward::rnn_forward`], which checks their shapes.
///
/// # Errors
/// As every dispatch: aliasing or limits.
pub(crate) fn rnn_step_forward(
    g: &mut Graph,
    t: usize,
    x: &Tensor,
    index: &Tensor,
    w: &Tensor,
    h: &Tensor,
) -> Result<()> {
    let &[_, batch, hidden] = h.shape() else { unreachable!("`rnn_forward` checks h") };
    let params = Params { t: t as u32, B: batch as u32, H: hidden as u32 };
    g.dispatch(&KERNEL, &[], params, &[x, index, w, h], [hidden.div_ceil(64), batch.div_ceil(64), 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, w, h] = args.all();
    let (x, index, w, h) = (x.read(), index.read_u32(), w.read(), h.write());
    let (t, batch, hidden) = (p.t as usize, p.B as usize, p.H as usize);
    let (past, future) = h.split_at_mut((t + 1) * batch * hidden);
    let (previous, next) = (&past[t * batch * hidden..], &mut future[..batch * hidden]);
    for (row, &i) in next.chunks_exact_mut(hidden).zip(&index[t * batch..]) {
        row.copy_from_slice(&x[i as usize * hidden..][..hidden]);
    }
    product(next, Matrix::new(previous, batch, hidden), Matrix::new(w, hidden, hidden).t(), true, true);
    F::tanh_in_place(next);
}
