//! Long short-term memory, forward.

use super::sequence::{Below, Forward, RowTile, Sizes, add_product, for_each_tile, matrix, tiles};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { D: u32, N: u32, T: u32, B: u32, H: u32, first: u32, last: u32, has_h_0: u32, save: u32 }

/// See `shaders/lstm_forward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "lstm_forward",
    source: wgsl!("lstm_forward", "rows", "forward", "math"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[
        reads("x"),
        reads_u32("index"),
        reads_u32("lengths"),
        reads("w"),
        reads("bias_below"),
        writes("h"),
        writes("c"),
        writes("saved"),
    ],
    twin: twin!(twin),
};

/// Records some steps; [`super::sequence::forward`] checks shapes and says which.
pub(super) fn lstm_forward(g: &mut Graph, forward: Forward<'_>) -> Result<()> {
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
    let Some(c) = &s.c else { unreachable!("`sequence` checks that it is there") };
    let saved = s.saved.as_ref().unwrap_or(nowhere);
    let tensors = [&s.x, &s.index, &s.lengths, w, s.bias_below(none), &s.h, c, saved];
    g.dispatch(&KERNEL, &launch.constants, params, &tensors, launch.grid)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, bias_below, h, c, saved] = args.all();
    let (x, index, lengths, w, h) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), h.write());
    let (sizes, span) = (Sizes::of_twin([p.D, p.N, p.T, p.B, p.H], w, 4), (p.first as usize, p.last as usize));
    let Sizes { directions, batch, hidden, .. } = sizes;
    let below = Below::new((sizes, 4, span), (x, index), (h, w, bias_below.read()));
    let [h, c, saved] = [(h, hidden), (c.write(), hidden), (saved.write(), 4 * hidden)]
        .map(|(values, width)| tiles(values, directions, batch, width).into_iter());
    for_each_tile(h.zip(c).zip(saved), batch, |direction, start, ((mut h, mut c), mut saved)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let w = matrix(w, direction, 4, hidden);
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        let mut gates = [0, 1, 2, 3].map(|_| vec![F::zero(); h[0].len()]);
        for t in steps {
            let (past, future) = h.split_at_mut(t + 1);
            let (previous, next) = (&*past[t], &mut *future[0]);
            for (gate, sum) in gates.iter_mut().enumerate() {
                for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
                    sum.copy_from_slice(below.row(direction, t, start + row, gate));
                }
                if has_state(t) {
                    add_product(sum, previous, w, gate, hidden);
                }
                if gate == 2 { F::tanh_in_place(sum) } else { F::sigmoid_in_place(sum) }
            }
            let (past, future) = c.split_at_mut(t + 1);
            let (before, cell) = (&*past[t], &mut *future[0]);
            for (row, cell) in cell.chunks_exact_mut(hidden).enumerate() {
                let at = row * hidden..(row + 1) * hidden;
                let [i, f, g, o] = std::array::from_fn(|gate| &gates[gate][at.clone()]);
                if let Some(saved) = saved.get_mut(t) {
                    let saved = saved[4 * at.start..4 * at.end].chunks_exact_mut(hidden);
                    saved.zip([i, f, g, o]).for_each(|(saved, gate)| saved.copy_from_slice(gate));
                }
                let (before, next) = (&before[at.clone()], &mut next[at]);
                if t >= lengths[start + row] as usize {
                    cell.fill(F::zero());
                    next.fill(F::zero());
                    continue;
                }
                F::vectorize(|| {
                    for ((((cell, &c), &i), &f), &g) in cell.iter_mut().zip(before).zip(i).zip(f).zip(g) {
                        *cell = f * c + i * g;
                    }
                });
                next.copy_from_slice(cell);
                F::tanh_in_place(next);
                F::vectorize(|| next.iter_mut().zip(o).for_each(|(next, &o)| *next = o * *next));
            }
        }
    });
}
