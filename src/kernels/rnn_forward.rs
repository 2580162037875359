//! The recurrence of `tanh` and `relu`, forward.

use super::sequence::forward::{self, Params};
use super::sequence::twin::{Below, Resets, Weights, add_in_place};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::Real;

/// See `shaders/rnn_forward.wgsl`.
pub static KERNEL: Kernel = forward::kernel(
    "rnn_forward",
    wgsl!("rnn_forward", "rows", "forward", "before", "activations", "math"),
    false,
    twin!(twin, alone),
);

/// The variant with `max(0, ·)` in place of `tanh`.
pub const RELU: u32 = 1;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, index, lengths, w, biases, states, saved] = args.all();
    let (x, index, lengths, w, states) = (x.read(), index.read_u32(), lengths.read_u32(), w.read(), states.write());
    let (sizes, span) = p.sizes(w, 1, 1);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let hidden = sizes.hidden;
    let below = Below::new(sizes, span, (x, index), (states, w, biases.read()));
    let (functions, weights) = (p.functions(), Weights::new(w, sizes, span));
    let [states, saved] = [states, saved.write()].map(|values| weights.tiles(values, hidden).into_iter());
    weights.for_each_tile(states.zip(saved), |direction, start, (mut slots, mut saved)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let mut copy = Vec::new();
        let has_state = |t| t > 0 || p.has_h_0 != 0;
        for t in steps {
            let (past, future) = slots.split_at_mut(t + 1);
            let next = &mut *future[0];
            let previous = resets.before((direction, t, start), &*past[t], &mut copy);
            weights.product((direction, 0), next, has_state(t).then_some(previous));
            for (row, next) in next.chunks_exact_mut(hidden).enumerate() {
                let below = below.row(direction, t, start + row, 0);
                if let Some(functions) = functions {
                    add_in_place(next, below);
                    if p.save != 0 {
                        saved[t][row * hidden..][..hidden].copy_from_slice(next);
                    }
                    next.iter_mut().for_each(|next| *next = functions.apply(0, *next));
                } else if p.variant == RELU {
                    add_in_place(next, below);
                    // Not `max`, which hides a NaN.
                    next.iter_mut().filter(|next| **next < F::zero()).for_each(|next| *next = F::zero());
                } else {
                    F::widest(|| next.iter_mut().zip(below).for_each(|(next, &x)| *next = (*next + x).fast_tanh()));
                }
                if t >= lengths[start + row] as usize {
                    next.fill(F::zero());
                }
            }
        }
    });
}
