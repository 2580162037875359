//! Long short-term memory, forward.

use super::sequence::Form;
use super::sequence::forward::{self, Params};
use super::sequence::twin::{Below, Resets, Weights, of_direction};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::{Real, Scratch};

/// See `shaders/lstm_forward.wgsl`.
pub static KERNEL: Kernel = forward::kernel(
    "lstm_forward",
    wgsl!("lstm_forward", "rows", "forward", "before", "activations", "math"),
    true,
    twin!(twin, alone),
);

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, biases, states, saved, peepholes] = args.all();
    let (x, index, lengths, w, states) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), states.write());
    let (sizes, span) = p.sizes(w, 4, 2);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let hidden = sizes.hidden;
    let below = Below::new(sizes, span, (x, index), (states, w, biases.read()));
    let (functions, peepholes, weights) = (p.functions(), peepholes.read(), Weights::new(w, sizes, span));
    let [has_peepholes, is_coupled] = [Form::PEEPHOLES, Form::COUPLED].map(|bit| p.variant & bit != 0);
    let [states, saved] =
        [(states, hidden), (saved.write(), 4 * hidden)].map(|(values, width)| weights.tiles(values, width).into_iter());
    weights.for_each_tile(states.zip(saved), |direction, start, (mut states, mut saved)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let (h, c) = states.split_at_mut(sizes.steps + 1);
        let peepholes = if has_peepholes { of_direction([peepholes], direction, sizes)[0] } else { &[] };
        let mut copy = Vec::new();
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        let mut gates: [Scratch<F>; 4] = [0, 1, 2, 3].map(|_| Scratch::zeros(h[0].len()));
        for t in steps {
            let (past, future) = h.split_at_mut(t + 1);
            let next = &mut *future[0];
            let previous = resets.before((direction, t, start), &*past[t], &mut copy);
            for (gate, sum) in gates.iter_mut().enumerate() {
                weights.product((direction, gate), sum, has_state(t).then_some(previous));
                for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
                    let sums = sum.iter_mut().zip(below.row(direction, t, start + row, gate));
                    match gate {
                        _ if functions.is_some() => sums.for_each(|(sum, &x)| *sum = *sum + x),
                        2 => F::widest(|| sums.for_each(|(sum, &x)| *sum = (*sum + x).fast_tanh())),
                        _ => F::widest(|| sums.for_each(|(sum, &x)| *sum = (*sum + x).sigmoid())),
                    }
                }
            }
            let (past, future) = c.split_at_mut(t + 1);
            let cell = &mut *future[0];
            let before = resets.before((direction, t, start), &*past[t], &mut copy);
            for (row, cell) in cell.chunks_exact_mut(hidden).enumerate() {
                let at = row * hidden..(row + 1) * hidden;
                let [i, f, g, o] = std::array::from_fn(|gate| &gates[gate][at.clone()]);
                let (before, next) = (&before[at.clone()], &mut next[at.clone()]);
                if t >= lengths[start + row] as usize {
                    cell.fill(F::zero());
                    next.fill(F::zero());
                    continue;
                }
                if let Some(functions) = functions {
                    let mut saved = saved.get_mut(t).map(|saved| &mut saved[4 * at.start..4 * at.end]);
                    let peephole = |which: usize, j: usize| peepholes.get(which * hidden + j).map_or(F::zero(), |&p| p);
                    for j in 0..hidden {
                        let (was, a_g) = (before[j], g[j]);
                        let (a_i, a_f) = (i[j] + peephole(0, j) * was, f[j] + peephole(1, j) * was);
                        let input = functions.apply(0, a_i);
                        let forget = if is_coupled { F::one() - input } else { functions.apply(1, a_f) };
                        cell[j] = forget * was + input * functions.apply(2, a_g);
                        let a_o = o[j] + peephole(2, j) * cell[j];
                        next[j] = functions.apply(3, a_o) * functions.apply(4, cell[j]);
                        if let Some(saved) = &mut saved {
                            let inputs = [a_i, a_f, a_g, a_o];
                            inputs.into_iter().enumerate().for_each(|(block, a)| saved[block * hidden + j] = a);
                        }
                    }
                    continue;
                }
                if let Some(saved) = saved.get_mut(t) {
                    let saved = saved[4 * at.start..4 * at.end].chunks_exact_mut(hidden);
                    saved.zip([i, f, g, o]).for_each(|(saved, gate)| saved.copy_from_slice(gate));
                }
                F::vectorize(|| {
                    for ((((cell, &c), &i), &f), &g) in cell.iter_mut().zip(before).zip(i).zip(f).zip(g) {
                        *cell = f * c + i * g;
                    }
                });
                let states = next.iter_mut().zip(&*cell).zip(o);
                F::widest(|| states.for_each(|((next, &c), &o)| *next = o * c.fast_tanh()));
            }
        }
    });
}
