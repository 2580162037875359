//! The recurrence of `tanh` and `relu`, forward.

use super::sequence::{Forward, RowTile, Sizes, add_product, for_each_tile, of_direction, tiles};
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
    bindings: &[reads("x"), reads_u32("index"), reads_u32("lengths"), reads("w"), writes("h")],
    twin: twin!(twin),
};

/// Records some steps; [`super::sequence::forward`] checks shapes and says which.
pub(super) fn rnn_forward(g: &mut Graph, forward: Forward<'_>, relu: bool) -> Result<()> {
    let Forward { launch, s, w, .. } = forward;
    let Sizes { directions, rows, steps, batch, hidden } = launch.sizes;
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
    g.dispatch(&KERNEL, &launch.constants, params, &[&s.x, &s.index, &s.lengths, w, &s.h], launch.grid)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, h] = args.all();
    let (x, index, lengths, w) = (x.read(), index.read_u32(), lengths.read_u32(), w.read());
    let (directions, batch, hidden) = (p.D as usize, p.B as usize, p.H as usize);
    let per_tile = tiles(h.write(), directions, batch, hidden).into_iter();
    for_each_tile(per_tile, batch, |direction, start, mut slots| {
        let [x, w] = of_direction([x, w], direction, directions);
        let [index] = of_direction([index], direction, directions);
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        for t in p.first as usize..p.last as usize {
            let (past, future) = slots.split_at_mut(t + 1);
            let (previous, next) = (&*past[t], &mut *future[0]);
            for (row, &i) in next.chunks_exact_mut(hidden).zip(&index[t * batch + start..]) {
                row.copy_from_slice(&x[i as usize * hidden..][..hidden]);
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
