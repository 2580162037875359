//! Adam and AdamW over the whole parameter block.

use rayon::prelude::*;

use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::real::Real;

params! { pub(crate) n: u32, beta2: f32, rest1: f32, rest2: f32, epsilon: f32, ln_beta1: f32, ln_beta2: f32, weight_decay: f32, decoupled: u32 }

/// See `shaders/adam.wgsl`; [`super::Update`] records it.
pub static KERNEL: Kernel = Kernel {
    name: "adam",
    source: wgsl!("adam", "math"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), reads_u32("clock"), writes("w"), writes("m"), writes("v")],
    twin: twin!(twin),
};

/// Elements that a thread takes at a time.
const CHUNK: usize = 4096;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, clock, parameters, mean, square] = args.all();
    let real = |x: f32| F::of(x.into());
    let (lr, t) = (lr.read()[0], F::of(clock.read_u32()[0].into()));
    if lr < F::zero() {
        return;
    }
    let step = lr / -(t * real(p.ln_beta1)).exp_m1();
    let root = (-(t * real(p.ln_beta2)).exp_m1()).sqrt();
    let (beta2, rest1, rest2, epsilon, one) = (real(p.beta2), real(p.rest1), real(p.rest2), real(p.epsilon), F::one());
    let decay = real(p.weight_decay);
    let (decay, keep) = if p.decoupled == 0 { (decay, one) } else { (F::zero(), one - lr * decay) };
    let moments = mean.write().par_chunks_mut(CHUNK).zip(square.write().par_chunks_mut(CHUNK));
    let chunks = parameters.write().par_chunks_mut(CHUNK).zip(gradient.read().par_chunks(CHUNK)).zip(moments);
    chunks.for_each(|((w, g), (m, v))| {
        F::vectorize(
            #[inline(always)]
            || {
                for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                    let g = g + decay * *w;
                    *m = *m + rest1 * (g - *m);
                    *v = beta2 * *v + rest2 * g * g;
                    *w = keep * *w - step * *m / (v.sqrt() / root + epsilon);
                }
            },
        );
    });
}
