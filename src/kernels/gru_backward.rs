//! The gradient of [`super::gru_forward`].

use super::sequence::backward::{self, Params};
use super::sequence::twin::{
    Resets, Weights, add_in_place, carry_in, dy_of, from_above, of_direction, split_gradients, split_mut, to_carry,
};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::Real;

/// See `shaders/gru_backward.wgsl`.
pub static KERNEL: Kernel = backward::kernel(
    "gru_backward",
    wgsl!("gru_backward", "rows", "backward", "activations", "math"),
    false,
    twin!(twin),
);

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, lengths, h, saved, dy, dend, dx] = args.all();
    let (w, lengths, h, dy, dend) = (w.read(), lengths.read_u32(), h.read(), dy.read(), dend.read());
    let (sizes, span) = p.sizes(w, 3, 1);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let (batch, hidden, one) = (sizes.batch, sizes.hidden, F::one());
    let (functions, weights) = (p.functions(), Weights::new(w, sizes, span));
    let (dx, dstart) = split_gradients(dx.write(), sizes);
    let above = from_above(sizes, span, dx, w);
    let [dx, saved, dstart] = [(dx, 3 * hidden), (saved.write(), 4 * hidden), (dstart, hidden)]
        .map(|(values, width)| weights.tiles(values, width).into_iter());
    weights.for_each_tile(dx.zip(saved).zip(dstart), |direction, start, ((mut dx, mut saved), mut dstart)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let [h, dend] = of_direction([h, dend], direction, sizes);
        let dy = dy_of(sizes, p.has_dy, dy, direction);
        let (mut copy, mut row_copy) = (Vec::new(), Vec::new());
        let carried = to_carry(p, &mut *dstart[0], &mut copy);
        let next = saved.get(steps.end).map(|next| &**next);
        carry_in(
            carried,
            (next, p.pending),
            (3, &weights),
            above.get(direction),
            (resets, (direction, steps.end, start)),
        );
        for t in steps.clone().rev() {
            for (row, carried) in carried.chunks_exact_mut(hidden).enumerate() {
                let (entry, length) = (start + row, lengths[start + row] as usize);
                let saved = &mut saved[t][row * 4 * hidden..][..4 * hidden];
                let dx = &mut dx[t][row * 3 * hidden..][..3 * hidden];
                if t >= length {
                    dx.fill(F::zero());
                    carried.fill(F::zero());
                    saved[..3 * hidden].fill(F::zero());
                    continue;
                }
                let at = (t * batch + entry) * hidden;
                if p.has_dend != 0 && t + 1 == length {
                    add_in_place(carried, &dend[entry * hidden..]);
                }
                if let Some(dy) = dy {
                    add_in_place(carried, &dy[at..]);
                }
                let h = resets.before((direction, t, entry), &h[at..][..hidden], &mut row_copy);
                let ([r, z, n, m], [dr, dz, dn]) = (split_mut(saved, hidden), split_mut(dx, hidden));
                // What was saved makes place for the gradient of the recurrent product.
                if let Some(functions) = functions {
                    for j in 0..hidden {
                        let (dh, [a_r, a_z, a_n]) = (carried[j], [r[j], z[j], n[j]]);
                        let gates = [(0, a_r), (1, a_z), (2, a_n)].map(|(which, a)| functions.apply(which, a));
                        let slope = |which, a| functions.slope(which, a, gates[which]);
                        dn[j] = dh * (one - gates[1]) * slope(2, a_n);
                        dz[j] = dh * (h[j] - gates[2]) * slope(1, a_z);
                        dr[j] = dn[j] * m[j] * slope(0, a_r);
                        carried[j] = dh * gates[1];
                        (r[j], z[j], n[j]) = (dr[j], dz[j], dn[j] * gates[0]);
                    }
                    continue;
                }
                F::vectorize(|| {
                    for j in 0..hidden.min(carried.len()) {
                        let dh = carried[j];
                        dn[j] = dh * (one - z[j]) * (one - n[j] * n[j]);
                        dz[j] = dh * (h[j] - n[j]) * z[j] * (one - z[j]);
                        dr[j] = dn[j] * m[j] * r[j] * (one - r[j]);
                        carried[j] = dh * z[j];
                        (n[j], z[j]) = (dn[j] * r[j], dz[j]);
                        r[j] = dr[j];
                    }
                });
            }
            if t > steps.start || p.complete != 0 {
                weights.add_gradients(direction, 0..3, carried, saved[t]);
            }
            resets.clear((direction, t, start), carried);
        }
    });
}
