//! The gradient of [`super::lstm_forward`].

use rayon::prelude::*;

use super::sequence::{Launch, RowTile, Sequence, SequenceGradients, Steps, TWIN_ROWS, matrix_of, tiles};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::product::{Matrix, product};
use crate::real::Real;
use crate::tensor::Tensor;

params! { T: u32, B: u32, H: u32, first: u32, last: u32, fused: u32, has_dy: u32, has_dend: u32 }

/// See `shaders/lstm_backward.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "lstm_backward",
    source: wgsl!("lstm_backward", "rows", "backward", "math"),
    constants: RowTile::CONSTANTS,
    params: FIELDS,
    bindings: &[
        reads("w"),
        reads_u32("lengths"),
        reads("c"),
        reads("saved"),
        reads("dy"),
        reads("dend"),
        writes("dx"),
        writes("dstart"),
    ],
    twin: twin!(twin),
};

/// Records some steps; [`super::sequence::backward`] checks shapes and says which.
pub(super) fn lstm_backward(
    g: &mut Graph,
    launch: &Launch,
    s: &Sequence,
    d: &SequenceGradients,
    w: &Tensor,
    none: &Tensor,
) -> Result<()> {
    let Steps { steps, batch, hidden, first, last, fused } = launch.steps;
    let params = Params {
        T: steps as u32,
        B: batch as u32,
        H: hidden as u32,
        first: first as u32,
        last: last as u32,
        fused: fused.into(),
        has_dy: d.dy.is_some().into(),
        has_dend: d.dend.is_some().into(),
    };
    let (Some(c), Some(saved)) = (&s.c, &s.saved) else { unreachable!("`sequence` checks that they are there") };
    let (dy, dend) = (d.dy.as_ref().unwrap_or(none), d.dend.as_ref().unwrap_or(none));
    let tensors = [w, &s.lengths, c, saved, dy, dend, &d.dx, &d.dstart];
    g.dispatch(&KERNEL, &launch.constants, params, &tensors, launch.grid)
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [w, lengths, c, saved, dy, dend, dx, dstart] = args.all();
    let (w, lengths, c, saved) = (w.read(), lengths.read_u32(), c.read(), saved.read());
    let (dy, dend, one) = (dy.read(), dend.read(), F::one());
    let (batch, hidden) = (p.B as usize, p.H as usize);
    let per_tile = tiles(dx.write(), batch, 4 * hidden).into_par_iter().zip(tiles(dstart.write(), batch, hidden));
    per_tile.enumerate().for_each(|(tile, (mut dx, mut dstart))| {
        let [carried, carried_c] = &mut dstart[..] else { unreachable!("two states") };
        if p.last == p.T {
            carried.fill(F::zero());
            carried_c.fill(F::zero());
        }
        let start = tile * TWIN_ROWS;
        let mut gates = [0, 1, 2, 3].map(|_| vec![F::zero(); carried.len()]);
        let mut u = vec![F::zero(); carried.len()];
        for t in (p.first as usize..p.last as usize).rev() {
            u.copy_from_slice(&c[((t + 1) * batch + start) * hidden..][..carried.len()]);
            F::tanh_in_place(&mut u);
            for row in 0..carried.len() / hidden {
                let (entry, length) = (start + row, lengths[start + row] as usize);
                for j in 0..hidden {
                    let (at, here) = ((t * batch + entry) * hidden + j, row * hidden + j);
                    let mut d = [F::zero(); 4];
                    if t < length {
                        let (mut dh, mut dc) = (carried[here], carried_c[here]);
                        if p.has_dend != 0 && t + 1 == length {
                            dh = dh + dend[entry * hidden + j];
                            dc = dc + dend[(batch + entry) * hidden + j];
                        }
                        if p.has_dy != 0 {
                            dh = dh + dy[at];
                        }
                        let [i, f, g, o] =
                            [0, 1, 2, 3].map(|gate| saved[((t * batch + entry) * 4 + gate) * hidden + j]);
                        let u = u[here];
                        dc = dc + dh * o * (one - u * u);
                        d = [
                            dc * g * i * (one - i),
                            dc * c[at] * f * (one - f),
                            dc * i * (one - g * g),
                            dh * u * o * (one - o),
                        ];
                        carried_c[here] = dc * f;
                    }
                    for gate in 0..4 {
                        gates[gate][here] = d[gate];
                        dx[t][(row * 4 + gate) * hidden + j] = d[gate];
                    }
                }
            }
            carried.fill(F::zero());
            if p.fused != 0 {
                for (gate, d) in gates.iter().enumerate() {
                    product(carried, Matrix::new(d, d.len() / hidden, hidden), matrix_of(w, gate, hidden), true, false);
                }
            }
        }
    });
}
