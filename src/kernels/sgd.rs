//! Stochastic gradient descent over the whole parameter block.

use rayon::prelude::*;

use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { pub(crate) n: u32, momentum: f32, dampening: f32, weight_decay: f32, nesterov: u32 }

/// See `shaders/sgd.wgsl`; [`super::Update`] records it.
pub static KERNEL: Kernel = Kernel {
    name: "sgd",
    source: wgsl!("sgd"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), reads_u32("clock"), writes("w"), writes("b")],
    twin: twin!(twin),
};

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, clock, parameters, velocity] = args.all();
    let real = |x: f32| F::of(x.into());
    let (lr, momentum, decay) = (lr.read()[0], real(p.momentum), real(p.weight_decay));
    if lr < F::zero() {
        return;
    }
    let share = if clock.read_u32()[0] == 1 { F::one() } else { F::one() - real(p.dampening) };
    let block = parameters.write().par_iter_mut().zip(gradient.read()).with_min_len(4096);
    if p.momentum == 0.0 {
        return block.for_each(|(w, &g)| *w = *w - lr * (g + decay * *w));
    }
    block.zip(velocity.write()).for_each(|((w, &g), b)| {
        let g = g + decay * *w;
        *b = momentum * *b + share * g;
        *w = *w - lr * if p.nesterov != 0 { g + momentum * *b } else { *b };
    });
}
