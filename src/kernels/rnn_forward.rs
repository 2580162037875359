//! The recurrence of `tanh` and `relu`, forward.

use super::sequence::{Below, Forward, RowTile, Sizes, add_product, for_each_tile, matrix, tiles};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { D: u32, N: u32, T: u32, B: u32, H: u32, first: u32, last: u32, has_h_0: u32, relu: u32 }

/// See `shaders/rnn_forward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rnn_forward",
    source: wgsl!("rnn_forward", "rows", "forward", "math"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("index"), reads_u32("lengths"), reads("w"), reads("bias_below"), writes("h")],
    twin: twin!(twin),
};

/// Records some steps; [`super::sequence::forward`] checks shapes and says which.
pub(super) fn rnn_forward(g: &mut Graph, forward: Forward<'_>, relu: bool) -> Result<()> {
    let Forward { launch, s, w, none, .. } = forward;
    let Sizes { directions, rows, steps, batch, hidden, .. } = launch.sizes;
    let params = Params {
        D: directions as u32,
        N: rows as u32,
        T: steps as u32,
        B: batch as u32,
        H: hidden as u32,
        first: launch.first as u32,
        last: launch.last as u32,
        has_h_0: s.has_h_0.into(),
        relu: relu.into(),
    };
    g.dispatch(
        &KERNEL,
        &launch.constants,
        params,
        &[&s.x, &s.index, &s.lengths, w, s.bias_below(none), &s.h],
        launch.grid,
    )
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, bias_below, h] = args.all();
    let (x, index, lengths, w, h) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), h.write());
    let (sizes, span) = (Sizes::of_twin([p.D, p.N, p.T, p.B, p.H], w, 1), (p.first as usize, p.last as usize));
    let Sizes { directions, batch, hidden, .. } = sizes;
    let below = Below::new((sizes, 1, span), (x, index), (h, w, bias_below.read()));
    let per_tile = tiles(h, directions, batch, hidden).into_iter();
    for_each_tile(per_tile, batch, |direction, start, mut slots| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let w = matrix(w, direction, 1, hidden);
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        for t in steps {
            let (past, future) = slots.split_at_mut(t + 1);
            let (previous, next) = (&*past[t], &mut *future[0]);
            for (row, next) in next.chunks_exact_mut(hidden).enumerate() {
                next.copy_from_slice(below.row(direction, t, start + row, 0));
            }
            if has_state(t) {
                add_product(next, previous, w, 0, hidden);
            }
            if p.relu != 0 {
                // Not `max`, which hides a NaN.
                next.iter_mut().filter(|next| **next < F::zero()).for_each(|next| *next = F::zero());
            } else {
                F::tanh_in_place(next);
            }
            for (row, &length) in next.chunks_exact_mut(hidden).zip(&lengths[start..]) {
                if t >= length as usize {
                    row.fill(F::zero());
                }
            }
        }
    });
}
