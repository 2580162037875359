//! The gradient of [`super::reset_gru_forward`].

use super::reset_gru_forward::parts;
use super::sequence::backward::{self, Params};
use super::sequence::twin::{
    Resets, Weights, add_in_place, carry_in, dy_of, from_above, of_direction, split, split_gradients, split_mut,
    to_carry,
};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::Real;

/// See `shaders/reset_gru_backward.wgsl`.
pub static KERNEL: Kernel = backward::kernel(
    "reset_gru_backward",
    wgsl!("reset_gru_backward", "rows", "backward", "activations", "math"),
    false,
    twin!(twin),
);

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, lengths, h, saved, dy, dend, dx] = args.all();
    let (w, lengths, h, dy, dend) = (w.read(), lengths.read_u32(), h.read(), dy.read(), dend.read());
    let saved = &*saved.write();
    let (sizes, span) = p.sizes(w, 3, 1);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let (batch, hidden, one) = (sizes.batch, sizes.hidden, F::one());
    let (parts, functions) = (parts(p.variant), p.functions::<F>());
    let (dx, dstart) = split_gradients(dx.write(), sizes);
    let (above, weights) = (from_above(sizes, span, dx, w), Weights::new(w, sizes, span));
    let [dx, dstart] =
        [(dx, 3 * hidden), (dstart, hidden)].map(|(values, width)| weights.tiles(values, width).into_iter());
    weights.for_each_tile(dx.zip(dstart), |direction, start, (mut dx, mut dstart)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let [h, saved, dend] = of_direction([h, saved, dend], direction, sizes);
        let dy = dy_of(sizes, p.has_dy, dy, direction);
        let (mut copy, mut row_copy) = (Vec::new(), Vec::new());
        let carried = to_carry(p, &mut *dstart[0], &mut copy);
        if parts[0] {
            let next = dx.get(steps.end).map(|next| &**next);
            carry_in(
                carried,
                (next, p.pending),
                (2, &weights),
                above.get(direction),
                (resets, (direction, steps.end, start)),
            );
        }
        let mut q = vec![F::zero(); carried.len()];
        // What comes out of a gate, and its derivative.
        let gate = |which: usize, a: F| match functions {
            Some(functions) => {
                let y = functions.apply(which, a);
                (y, functions.slope(which, a, y))
            }
            None if which == 2 => (a, one - a * a),
            None => (a, a * (one - a)),
        };
        for t in steps.clone().rev() {
            for (row, carried) in carried.chunks_exact_mut(hidden).enumerate().filter(|_| parts[0]) {
                let (entry, length) = (start + row, lengths[start + row] as usize);
                let at = (t * batch + entry) * hidden;
                let [_, dz, dn] = split_mut(&mut dx[t][row * 3 * hidden..][..3 * hidden], hidden);
                if t >= length {
                    [dz, dn, carried].into_iter().for_each(|d| d.fill(F::zero()));
                    continue;
                }
                if p.has_dend != 0 && t + 1 == length {
                    add_in_place(carried, &dend[entry * hidden..]);
                }
                if let Some(dy) = dy {
                    add_in_place(carried, &dy[at..]);
                }
                let h = resets.before((direction, t, entry), &h[at..][..hidden], &mut row_copy);
                let [_, a_z, a_n] = split(&saved[4 * at..], hidden);
                for j in 0..hidden {
                    let (dh, (z, of_z), (n, of_n)) = (carried[j], gate(1, a_z[j]), gate(2, a_n[j]));
                    dn[j] = dh * (one - z) * of_n;
                    dz[j] = dh * (h[j] - n) * of_z;
                    carried[j] = dh * z;
                }
            }
            resets.clear((direction, t, start), carried);
            if !parts[1] {
                continue;
            }
            q.fill(F::zero());
            weights.add_gradients(direction, 2..3, &mut q, dx[t]);
            resets.clear((direction, t, start), &mut q);
            for (row, carried) in carried.chunks_exact_mut(hidden).enumerate() {
                let (entry, length) = (start + row, lengths[start + row] as usize);
                let at = (t * batch + entry) * hidden;
                let dr = &mut dx[t][row * 3 * hidden..][..hidden];
                if t >= length {
                    dr.fill(F::zero());
                    continue;
                }
                let h = resets.before((direction, t, entry), &h[at..][..hidden], &mut row_copy);
                let (q, a_r) = (&q[row * hidden..][..hidden], &saved[4 * at..][..hidden]);
                for j in 0..hidden {
                    let (r, of_r) = gate(0, a_r[j]);
                    dr[j] = q[j] * h[j] * of_r;
                    carried[j] = carried[j] + q[j] * r;
                }
            }
            if t > steps.start || p.complete != 0 {
                weights.add_gradients(direction, 0..2, carried, dx[t]);
            }
            resets.clear((direction, t, start), carried);
        }
    });
}
