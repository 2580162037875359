//! The gradient of [`super::rnn_forward`].

use super::sequence::{
    Backward, RowTile, Sizes, add_gradients, add_in_place, carry_in, dy_of, for_each_tile, from_above, matrix,
    of_direction, tiles,
};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { D: u32, T: u32, B: u32, H: u32, first: u32, last: u32, complete: u32, relu: u32, has_dy: u32, has_dend: u32 }

/// See `shaders/rnn_backward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rnn_backward",
    source: wgsl!("rnn_backward", "rows", "backward"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[
        reads("w"),
        reads_u32("lengths"),
        reads("h"),
        reads("dy"),
        reads("dend"),
        writes("dx"),
        writes("dstart"),
    ],
    twin: twin!(twin),
};

/// Records some steps; [`super::sequence::backward`] checks shapes and says which.
pub(super) fn rnn_backward(g: &mut Graph, backward: Backward<'_>, relu: bool) -> Result<()> {
    let Backward { launch, s, d, w, none } = backward;
    let Sizes { directions, steps, batch, hidden, .. } = launch.sizes;
    let params = Params {
        D: directions as u32,
        T: steps as u32,
        B: batch as u32,
        H: hidden as u32,
        first: launch.first as u32,
        last: launch.last as u32,
        complete: launch.complete.into(),
        has_dy: d.dy.is_some().into(),
        has_dend: d.dend.is_some().into(),
        relu: relu.into(),
    };
    let (dy, dend) = (d.dy.as_ref().unwrap_or(none), d.dend.as_ref().unwrap_or(none));
    let tensors = [w, &s.lengths, &s.h, dy, dend, &d.dx, &d.dstart];
    g.dispatch(&KERNEL, &launch.constants, params, &tensors, launch.grid)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, lengths, h, dy, dend, dx, dstart] = args.all();
    let (w, lengths, h, dy, dend) = (w.read(), lengths.read_u32(), h.read(), dy.read(), dend.read());
    let (sizes, span) = (Sizes::of_twin([p.D, 0, p.T, p.B, p.H], w, 1), (p.first as usize, p.last as usize));
    let (Sizes { directions, batch, hidden, .. }, dx) = (sizes, dx.write());
    let above = from_above(sizes, span, dx, w, 1);
    let [dx, dstart] = [dx, dstart.write()].map(|values| tiles(values, directions, batch, hidden).into_iter());
    for_each_tile(dx.zip(dstart), batch, |direction, start, (mut dx, mut dstart)| {
        let Some(steps) = sizes.steps_of(direction, span) else { return };
        let [h, dend] = of_direction([h, dend], direction, directions);
        let (w, dy) = (matrix(w, direction, 1, hidden), dy_of(sizes, p.has_dy, dy, direction));
        // What is carried back to h[t + 1]; it ends as the gradient of the incoming state.
        let carried = &mut *dstart[0];
        let next = dx.get(steps.end).map(|next| &**next);
        carry_in(carried, next, (1, w), (above.get(direction), start), hidden);
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
                if p.relu != 0 {
                    F::vectorize(|| steps.for_each(|((d, &dh), &y)| *d = if y > F::zero() { dh } else { F::zero() }));
                } else {
                    F::vectorize(|| steps.for_each(|((d, &dh), &y)| *d = dh * (F::one() - y * y)));
                }
            }
            carried.fill(F::zero());
            if t > steps.start || p.complete != 0 {
                add_gradients(carried, dx[t], 1, w, hidden);
            }
        }
    });
}
