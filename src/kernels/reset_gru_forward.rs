//! The gated recurrent unit with reset before the product, forward.

use super::sequence::forward::{self, Params};
use super::sequence::twin::{Below, Resets, Weights, add_in_place};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::{Real, Scratch};

/// See `shaders/reset_gru_forward.wgsl`.
pub static KERNEL: Kernel = forward::kernel(
    "reset_gru_forward",
    wgsl!("reset_gru_forward", "rows", "forward", "activations", "math"),
    false,
    twin!(twin, alone),
);

/// Whether each of a step's two parts is to be done.
pub(super) fn parts(variant: u32) -> [bool; 2] {
    [variant != 2, variant != 1]
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, biases, states, saved] = args.all();
    let (x, index, lengths, w, states) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), states.write());
    let (sizes, span) = p.sizes(w, 3, 1);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let (hidden, one) = (sizes.hidden, F::one());
    let (parts, functions) = (parts(p.variant), p.functions());
    let below = Below::new(sizes, span, (x, index), (states, w, biases.read()));
    let weights = Weights::new(w, sizes, span);
    let [h, saved] =
        [(states, hidden), (saved.write(), 4 * hidden)].map(|(values, width)| weights.tiles(values, width));
    weights.for_each_tile(h.into_iter().zip(saved), |direction, start, (mut slots, mut saved)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let (mut copy, has_state) = (Vec::new(), |t| t > 0 || p.has_h_0 != 0);
        let [mut r, mut z]: [Scratch<F>; 2] = [0, 1].map(|_| Scratch::zeros(slots[0].len()));
        let mut product = Scratch::zeros(r.len());
        // What comes into a gate: `rows` W_gᵀ beside what comes from below.
        let input = |sum: &mut [F], t: usize, gate: usize, rows: &[F]| {
            weights.product((direction, gate), sum, has_state(t).then_some(rows));
            for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
                add_in_place(sum, below.row(direction, t, start + row, gate));
            }
        };
        let activate = |which: usize, values: &mut [F]| match functions {
            Some(functions) => values.iter_mut().for_each(|x| *x = functions.apply(which, *x)),
            None if which == 2 => F::tanh_in_place(values),
            None => F::sigmoid_in_place(values),
        };
        let is_over = |t: usize, row: usize| t >= lengths[start + row] as usize;
        for t in steps {
            let (past, future) = slots.split_at_mut(t + 1);
            let next = &mut *future[0];
            let before = resets.before((direction, t, start), &*past[t], &mut copy);
            // Into a block of H columns of what is saved, or out of one.
            let save = |saved: &mut [F], block: usize, values: &[F]| {
                for (row, values) in values.chunks_exact(hidden).enumerate().filter(|(row, _)| !is_over(t, *row)) {
                    saved[(row * 4 + block) * hidden..][..hidden].copy_from_slice(values);
                }
            };
            let load = |saved: &[F], block: usize, values: &mut [F]| {
                for (row, values) in values.chunks_exact_mut(hidden).enumerate() {
                    values.copy_from_slice(&saved[(row * 4 + block) * hidden..][..hidden]);
                }
            };
            if parts[0] {
                for (which, gate) in [(0, &mut r), (1, &mut z)] {
                    input(gate, t, which, before);
                    if functions.is_some() {
                        save(saved[t], which, gate);
                    }
                    activate(which, gate);
                    if functions.is_none() {
                        save(saved[t], which, gate);
                    }
                }
                product.iter_mut().zip(&r[..]).zip(before).for_each(|((product, &r), &h)| *product = r * h);
                save(saved[t], 3, &product);
            }
            if parts[1] {
                load(saved[t], 1, &mut z);
                load(saved[t], 3, &mut product);
                if functions.is_some() {
                    activate(1, &mut z);
                }
                input(next, t, 2, &product);
                if functions.is_some() {
                    save(saved[t], 2, next);
                }
                activate(2, next);
                if functions.is_none() {
                    save(saved[t], 2, next);
                }
                for (row, next) in next.chunks_exact_mut(hidden).enumerate() {
                    let here = row * hidden..(row + 1) * hidden;
                    if is_over(t, row) {
                        next.fill(F::zero());
                        saved[t][(row * 4 + 3) * hidden..][..hidden].fill(F::zero());
                        continue;
                    }
                    let gates = next.iter_mut().zip(&z[here.clone()]).zip(&before[here]);
                    F::vectorize(|| gates.for_each(|((next, &z), &h)| *next = (one - z) * *next + z * h));
                }
            }
        }
    });
}
