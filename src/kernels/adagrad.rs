//! Adagrad over the whole parameter block.

use rayon::prelude::*;

use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { pub(crate) n: u32, epsilon: f32, weight_decay: f32, lr_decay: f32 }

/// See `shaders/adagrad.wgsl`; [`super::Update`] records it.
pub static KERNEL: Kernel = Kernel {
    name: "adagrad",
    source: wgsl!("adagrad"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), reads_u32("clock"), writes("w"), writes("v")],
    twin: twin!(twin),
};

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, clock, parameters, square] = args.all();
    let (real, lr) = (|x: f32| F::of(x.into()), lr.read()[0]);
    if lr < F::zero() {
        return;
    }
    let (epsilon, decay, before) = (real(p.epsilon), real(p.weight_decay), F::of((clock.read_u32()[0] - 1).into()));
    let step = lr / (F::one() + before * real(p.lr_decay));
    let block = parameters.write().par_iter_mut().zip(gradient.read()).zip(square.write()).with_min_len(4096);
    block.for_each(|((w, &g), v)| {
        let g = g + decay * *w;
        *v = *v + g * g;
        *w = *w - step * g / (v.sqrt() + epsilon);
    });
}
