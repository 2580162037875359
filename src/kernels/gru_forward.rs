//! The gated recurrent unit, forward.

use super::sequence::forward::{self, Params};
use super::sequence::twin::{Below, Resets, Weights, add_in_place, of_direction};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::{Real, Scratch};

/// See `shaders/gru_forward.wgsl`.
pub static KERNEL: Kernel = forward::kernel(
    "gru_forward",
    wgsl!("gru_forward", "rows", "forward", "before", "activations", "math"),
    false,
    twin!(twin, alone),
);

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, biases, states, saved] = args.all();
    let (x, index, lengths, w, states) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), states.write());
    let (sizes, span) = p.sizes(w, 3, 1);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let (hidden, one) = (sizes.hidden, F::one());
    let (biases, of_inputs) = biases.read().split_at(sizes.directions * 3 * hidden);
    let below = Below::new(sizes, span, (x, index), (states, w, of_inputs));
    let (functions, weights) = (p.functions(), Weights::new(w, sizes, span));
    let [h, saved] =
        [(states, hidden), (saved.write(), 4 * hidden)].map(|(values, width)| weights.tiles(values, width));
    weights.for_each_tile(h.into_iter().zip(saved), |direction, start, (mut slots, mut saved)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let [bias] = of_direction([biases], direction, sizes);
        let mut copy = Vec::new();
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        let mut gates: [Scratch<F>; 3] = [0, 1, 2].map(|_| Scratch::zeros(slots[0].len()));
        for t in steps {
            let (past, future) = slots.split_at_mut(t + 1);
            let next = &mut *future[0];
            let previous = resets.before((direction, t, start), &*past[t], &mut copy);
            for (gate, sum) in gates.iter_mut().enumerate() {
                weights.product((direction, gate), sum, has_state(t).then_some(previous));
                sum.chunks_exact_mut(hidden).for_each(|row| add_in_place(row, &bias[gate * hidden..]));
            }
            let [r, z, m] = &mut gates;
            let below = |row: usize, gate: usize| below.row(direction, t, start + row, gate);
            if let Some(functions) = functions {
                for (row, next) in next.chunks_exact_mut(hidden).enumerate() {
                    let x = [0, 1, 2].map(|gate| below(row, gate));
                    let mut saved = saved.get_mut(t).map(|saved| &mut saved[row * 4 * hidden..][..4 * hidden]);
                    for (j, next) in next.iter_mut().enumerate() {
                        let at = row * hidden + j;
                        let (a_r, a_z) = (x[0][j] + r[at], x[1][j] + z[at]);
                        let (r, z) = (functions.apply(0, a_r), functions.apply(1, a_z));
                        let a_n = x[2][j] + r * m[at];
                        *next = (one - z) * functions.apply(2, a_n) + z * previous[at];
                        if t >= lengths[start + row] as usize {
                            *next = F::zero();
                        } else if let Some(saved) = &mut saved {
                            let inputs = [a_r, a_z, a_n, m[at]];
                            inputs.into_iter().enumerate().for_each(|(block, a)| saved[block * hidden + j] = a);
                        }
                    }
                }
                continue;
            }
            for (gate, sum) in [(0, &mut *r), (1, &mut *z)] {
                for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
                    let sums = sum.iter_mut().zip(below(row, gate));
                    F::widest(|| sums.for_each(|(sum, &x)| *sum = (*sum + x).sigmoid()));
                }
            }
            // n, where the next state will be.
            for (row, n) in next.chunks_exact_mut(hidden).enumerate() {
                let here = row * hidden..(row + 1) * hidden;
                let gates = n.iter_mut().zip(below(row, 2)).zip(&r[here.clone()]).zip(&m[here]);
                F::widest(|| gates.for_each(|(((n, &x), &r), &m)| *n = (x + r * m).fast_tanh()));
            }
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
