//! RMSprop over the whole parameter block.

use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::real::Real;

params! { pub(crate) n: u32, alpha: f32, rest: f32, epsilon: f32, weight_decay: f32, momentum: f32, centered: u32 }

/// See `shaders/rms_prop.wgsl`; [`super::Update`] records it.
pub static KERNEL: Kernel = Kernel {
    name: "rms_prop",
    source: wgsl!("rms_prop"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), writes("w"), writes("v"), writes("m"), writes("b")],
    twin: twin!(twin),
};

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, parameters, square, mean, velocity] = args.all();
    let real = |x: f32| F::of(x.into());
    let (lr, alpha, epsilon) = (lr.read()[0], real(p.alpha), real(p.epsilon));
    if lr < F::zero() {
        return;
    }
    let (decay, momentum, rest) = (real(p.weight_decay), real(p.momentum), real(p.rest));
    let (square, mean, velocity) = (square.write(), mean.write(), velocity.write());
    for (i, (w, &g)) in parameters.write().iter_mut().zip(gradient.read()).enumerate() {
        let g = g + decay * *w;
        square[i] = alpha * square[i] + rest * g * g;
        let mut variance = square[i];
        if p.centered != 0 {
            mean[i] = mean[i] + rest * (g - mean[i]);
            variance = variance - mean[i] * mean[i];
        }
        let mut direction = g / (variance.sqrt() + epsilon);
        if p.momentum != 0.0 {
            direction = direction + momentum * velocity[i];
            velocity[i] = direction;
        }
        *w = *w - lr * direction;
    }
}
