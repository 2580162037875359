//! The gated recurrent unit, forward.

use super::sequence::{
    Below, Forward, RowTile, Sizes, add_in_place, add_product, for_each_tile, matrix, of_direction, tiles,
};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { D: u32, N: u32, T: u32, B: u32, H: u32, first: u32, last: u32, has_h_0: u32, save: u32 }

/// See `shaders/gru_forward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "gru_forward",
    source: wgsl!("gru_forward", "rows", "forward", "math"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[
        reads("x"),
        reads_u32("index"),
        reads_u32("lengths"),
        reads("w"),
        reads("bias_below"),
        reads("bias"),
        writes("h"),
        writes("saved"),
    ],
    twin: twin!(twin),
};

/// Records some steps; [`super::sequence::forward`] checks shapes and says which.
pub(super) fn gru_forward(g: &mut Graph, forward: Forward<'_>) -> Result<()> {
    let Forward { launch, s, w, none, nowhere } = forward;
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
        save: s.saved.is_some().into(),
    };
    let Some(bias) = &s.bias else { unreachable!("`sequence` checks that it is there") };
    let saved = s.saved.as_ref().unwrap_or(nowhere);
    let tensors = [&s.x, &s.index, &s.lengths, w, s.bias_below(none), bias, &s.h, saved];
    g.dispatch(&KERNEL, &launch.constants, params, &tensors, launch.grid)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, bias_below, bias, h, saved] = args.all();
    let (x, index, lengths, w, h) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), h.write());
    let (sizes, span) = (Sizes::of_twin([p.D, p.N, p.T, p.B, p.H], w, 3), (p.first as usize, p.last as usize));
    let (Sizes { directions, batch, hidden, .. }, bias, one) = (sizes, bias.read(), F::one());
    let below = Below::new((sizes, 3, span), (x, index), (h, w, bias_below.read()));
    let [h, saved] =
        [(h, hidden), (saved.write(), 4 * hidden)].map(|(values, width)| tiles(values, directions, batch, width));
    for_each_tile(h.into_iter().zip(saved), batch, |direction, start, (mut slots, mut saved)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let (w, [bias]) = (matrix(w, direction, 3, hidden), of_direction([bias], direction, directions));
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        let mut gates = [0, 1, 2].map(|_| vec![F::zero(); slots[0].len()]);
        for t in steps {
            let (past, future) = slots.split_at_mut(t + 1);
            let (previous, next) = (&*past[t], &mut *future[0]);
            for (gate, sum) in gates.iter_mut().enumerate() {
                for row in sum.chunks_exact_mut(hidden) {
                    row.copy_from_slice(&bias[gate * hidden..][..hidden]);
                }
                if has_state(t) {
                    add_product(sum, previous, w, gate, hidden);
                }
            }
            let [r, z, m] = &mut gates;
            let below = |row: usize, gate: usize| below.row(direction, t, start + row, gate);
            for (gate, sum) in [(0, &mut *r), (1, &mut *z)] {
                for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
                    add_in_place(sum, below(row, gate));
                }
                F::sigmoid_in_place(sum);
            }
            // n, where the next state will be.
            for (row, n) in next.chunks_exact_mut(hidden).enumerate() {
                let here = row * hidden..(row + 1) * hidden;
                let gates = n.iter_mut().zip(below(row, 2)).zip(&r[here.clone()]).zip(&m[here]);
                F::vectorize(|| gates.for_each(|(((n, &x), &r), &m)| *n = x + r * m));
            }
            F::tanh_in_place(next);
            for (row, next) in next.chunks_exact_mut(hidden).enumerate() {
                if t >= lengths[start + row] as usize {
                    next.fill(F::zero());
                    continue;
                }
                let here = row * hidden..(row + 1) * hidden;
                let (z, h) = (&z[here.clone()], &previous[here.clone()]);
                if let Some(saved) = saved.get_mut(t) {
                    let saved = saved[4 * here.start..4 * here.end].chunks_exact_mut(hidden);
                    let gates = [&r[here.clone()], z, next, &m[here]];
                    saved.zip(gates).for_each(|(saved, gate)| saved.copy_from_slice(gate));
                }
                let gates = next.iter_mut().zip(z).zip(h);
                F::vectorize(|| gates.for_each(|((next, &z), &h)| *next = (one - z) * *next + z * h));
            }
        }
    });
}
