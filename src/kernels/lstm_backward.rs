//! The gradient of [`super::lstm_forward`].

use super::sequence::Form;
use super::sequence::backward::{self, Params};
use super::sequence::twin::{
    Resets, Weights, add_in_place, carry_in, dy_of, from_above, of_direction, split, split_gradients, split_mut,
    to_carry,
};
use crate::kernel::{Args, Kernel, twin, wgsl};
use crate::real::Real;

/// See `shaders/lstm_backward.wgsl`.
pub static KERNEL: Kernel = backward::kernel(
    "lstm_backward",
    wgsl!("lstm_backward", "rows", "backward", "activations", "math"),
    true,
    twin!(twin),
);

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, lengths, states, saved, dy, dend, dx, peepholes] = args.all();
    let (functions, peepholes) = (p.functions(), peepholes.read());
    let [has_peepholes, is_coupled] = [Form::PEEPHOLES, Form::COUPLED].map(|bit| p.variant & bit != 0);
    let (w, lengths, states, saved) = (w.read(), lengths.read_u32(), states.read(), &*saved.write());
    let (dy, dend, one) = (dy.read(), dend.read(), F::one());
    let (sizes, span) = p.sizes(w, 4, 2);
    let (lengths, resets) = Resets::split(lengths, sizes);
    let (batch, hidden) = (sizes.batch, sizes.hidden);
    let weights = Weights::new(w, sizes, span);
    let (dx, dstart) = split_gradients(dx.write(), sizes);
    let above = from_above(sizes, span, dx, w);
    let [dx, dstart] =
        [(dx, 4 * hidden), (dstart, hidden)].map(|(values, width)| weights.tiles(values, width).into_iter());
    weights.for_each_tile(dx.zip(dstart), |direction, start, (mut dx, mut dstart)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let [states, saved, dend] = of_direction([states, saved, dend], direction, sizes);
        let all_c = &states[states.len() / 2..];
        let peepholes = if has_peepholes { of_direction([peepholes], direction, sizes)[0] } else { &[] };
        let dy = dy_of(sizes, p.has_dy, dy, direction);
        let [carried, carried_c] = &mut dstart[..] else { unreachable!("two states") };
        let mut copies = [Vec::new(), Vec::new()];
        let [copy, copy_c] = &mut copies;
        let (carried, carried_c) = (to_carry(p, carried, copy), to_carry(p, carried_c, copy_c));
        let next = dx.get(steps.end).map(|next| &**next);
        if next.is_none() {
            carried_c.fill(F::zero());
        }
        carry_in(
            carried,
            (next, p.pending),
            (4, &weights),
            above.get(direction),
            (resets, (direction, steps.end, start)),
        );
        let (mut u, mut copy) = (vec![F::zero(); carried.len()], Vec::new());
        for t in steps.clone().rev() {
            u.copy_from_slice(&all_c[((t + 1) * batch + start) * hidden..][..carried.len()]);
            F::tanh_in_place(&mut u);
            for (row, u) in u.chunks_exact(hidden).enumerate() {
                let (entry, length) = (start + row, lengths[start + row] as usize);
                let (here, at) = (row * hidden..(row + 1) * hidden, (t * batch + entry) * hidden);
                let d = &mut dx[t][4 * here.start..4 * here.end];
                if t >= length {
                    d.fill(F::zero());
                    continue;
                }
                let (dh, dc) = (&mut carried[here.clone()], &mut carried_c[here]);
                if p.has_dend != 0 && t + 1 == length {
                    add_in_place(dh, &dend[entry * hidden..]);
                    add_in_place(dc, &dend[(batch + entry) * hidden..]);
                }
                if let Some(dy) = dy {
                    add_in_place(dh, &dy[at..]);
                }
                let c = resets.before((direction, t, entry), &all_c[at..][..hidden], &mut copy);
                let [i, f, g, o] = split(&saved[4 * at..], hidden);
                let [di, df, dg, d_o] = split_mut(d, hidden);
                if let Some(functions) = functions {
                    let now = &all_c[at + batch * hidden..];
                    let peephole = |which: usize, j: usize| peepholes.get(which * hidden + j).map_or(F::zero(), |&p| p);
                    for j in 0..hidden {
                        let inputs = [i[j], f[j], g[j], o[j], now[j]];
                        let mut gates: [F; 5] = std::array::from_fn(|which| functions.apply(which, inputs[which]));
                        let slope: [F; 5] =
                            std::array::from_fn(|which| functions.slope(which, inputs[which], gates[which]));
                        if is_coupled {
                            gates[1] = one - gates[0];
                        }
                        let [input, forget, g, o, u] = gates;
                        d_o[j] = dh[j] * u * slope[3];
                        let sum = dc[j] + dh[j] * o * slope[4] + peephole(2, j) * d_o[j];
                        di[j] = sum * (if is_coupled { g - c[j] } else { g }) * slope[0];
                        df[j] = if is_coupled { F::zero() } else { sum * c[j] * slope[1] };
                        dg[j] = sum * input * slope[2];
                        dc[j] = sum * forget + peephole(0, j) * di[j] + peephole(1, j) * df[j];
                    }
                    continue;
                }
                F::vectorize(|| {
                    for j in 0..hidden.min(u.len()).min(dh.len()).min(dc.len()) {
                        let sum = dc[j] + dh[j] * o[j] * (one - u[j] * u[j]);
                        di[j] = sum * g[j] * i[j] * (one - i[j]);
                        df[j] = sum * c[j] * f[j] * (one - f[j]);
                        dg[j] = sum * i[j] * (one - g[j] * g[j]);
                        d_o[j] = dh[j] * u[j] * o[j] * (one - o[j]);
                        dc[j] = sum * f[j];
                    }
                });
            }
            carried.fill(F::zero());
            if t > steps.start || p.complete != 0 {
                weights.add_gradients(direction, 0..4, carried, dx[t]);
            }
            resets.clear((direction, t, start), carried);
            resets.clear((direction, t, start), carried_c);
        }
    });
}
