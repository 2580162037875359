//! The gradient of [`super::rnn_forward`].

use super::rnn_forward::RELU;
use super::sequence::backward::{self, Params};
use super::sequence::twin::{
    Resets, Weights, add_in_place, carry_in, dy_of, from_above, of_direction, split_gradients, to_carry,
};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::Real;

/// See `shaders/rnn_backward.wgsl`.
pub static KERNEL: Kernel = backward::kernel(
    "rnn_backward",
    wgsl!("rnn_backward", "rows", "backward", "activations", "math"),
    false,
    twin!(twin),
);

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, lengths, h, saved, dy, dend, dx] = args.all();
    let saved = &*saved.write();
    let (w, lengths, h, dy, dend) = (w.read(), lengths.read_u32(), h.read(), dy.read(), dend.read());
    let (sizes, span) = p.sizes(w, 1, 1);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let (batch, hidden) = (sizes.batch, sizes.hidden);
    let (functions, weights) = (p.functions(), Weights::new(w, sizes, span));
    let (dx, dstart) = split_gradients(dx.write(), sizes);
    let above = from_above(sizes, span, dx, w);
    let [dx, dstart] = [dx, dstart].map(|values| weights.tiles(values, hidden).into_iter());
    weights.for_each_tile(dx.zip(dstart), |direction, start, (mut dx, mut dstart)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let [h, dend] = of_direction([h, dend], direction, sizes);
        let dy = dy_of(sizes, p.has_dy, dy, direction);
        // What is carried back to h[t + 1]; it ends as the gradient of the incoming state.
        let mut copy = Vec::new();
        let carried = to_carry(p, &mut *dstart[0], &mut copy);
        let next = dx.get(steps.end).map(|next| &**next);
        carry_in(
            carried,
            (next, p.pending),
            (1, &weights),
            above.get(direction),
            (resets, (direction, steps.end, start)),
        );
        for t in steps.clone().rev() {
            for (row, carried) in carried.chunks_exact_mut(hidden).enumerate() {
                let (entry, length) = (start + row, lengths[start + row] as usize);
                let d = &mut dx[t][row * hidden..][..hidden];
                if t >= length {
                    d.fill(F::zero());
                    continue;
                }
                let at = (t * batch + entry) * hidden;
                if p.has_dend != 0 && t + 1 == length {
                    add_in_place(carried, &dend[entry * hidden..]);
                }
                if let Some(dy) = dy {
                    add_in_place(carried, &dy[at..]);
                }
                let y = &h[at + batch * hidden..][..hidden];
                let steps = d.iter_mut().zip(&*carried).zip(y);
                if let Some(functions) = functions {
                    let inputs = &saved[((direction * sizes.steps + t) * batch + entry) * hidden..];
                    steps.zip(inputs).for_each(|(((d, &dh), &y), &x)| *d = dh * functions.slope(0, x, y));
                } else if p.variant == RELU {
                    F::vectorize(|| steps.for_each(|((d, &dh), &y)| *d = if y > F::zero() { dh } else { F::zero() }));
                } else {
                    F::vectorize(|| steps.for_each(|((d, &dh), &y)| *d = dh * (F::one() - y * y)));
                }
            }
            carried.fill(F::zero());
            if t > steps.start || p.complete != 0 {
                weights.add_gradients(direction, 0..1, carried, dx[t]);
            }
            resets.clear((direction, t, start), carried);
        }
    });
}
