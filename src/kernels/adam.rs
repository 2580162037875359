//! Adam and AdamW over the whole parameter block.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::optim::Adam;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, beta2: f32, rest1: f32, rest2: f32, epsilon: f32, ln_beta1: f32, ln_beta2: f32, weight_decay: f32, decoupled: u32 }

/// See `shaders/adam.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "adam",
    source: wgsl!("adam"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), reads_u32("clock"), writes("w"), writes("m"), writes("v")],
    twin: twin!(twin),
};

/// The tensors of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The gradient, `[n]`.
    pub gradient: &'a Tensor,
    /// The learning rate, `[1]`.
    pub lr: &'a Tensor,
    /// Steps done, this one included: the first element of `[2]` u32.
    pub clock: &'a Tensor,
    /// The parameters, `[n]`.
    pub parameters: &'a Tensor,
    /// The mean of the gradient, `[n]`.
    pub mean: &'a Tensor,
    /// The mean of its square, `[n]`.
    pub square: &'a Tensor,
}

/// Records one update with the constants of `options`; `decoupled` makes its weight decay AdamW's.
///
/// # Errors
/// The sizes differ.
pub fn adam(g: &mut Graph, options: &Adam, decoupled: bool, update: Update<'_>) -> Result<()> {
    let Update { gradient, lr, clock, parameters, mean, square } = update;
    let n = parameters.len();
    for tensor in [gradient, mean, square] {
        expect_len("adam", tensor, n)?;
    }
    let (beta1, beta2) = options.betas;
    let params = Params {
        n: n as u32,
        beta2: beta2 as f32,
        rest1: (1.0 - beta1) as f32,
        rest2: (1.0 - beta2) as f32,
        epsilon: options.eps as f32,
        // Of 0, a number whose power is 0 and that shaders know.
        ln_beta1: beta1.ln().max(-100.0) as f32,
        ln_beta2: beta2.ln().max(-100.0) as f32,
        weight_decay: options.weight_decay as f32,
        decoupled: decoupled.into(),
    };
    g.dispatch(&KERNEL, &[], params, &[gradient, lr, clock, parameters, mean, square], striding_grid(n))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, clock, parameters, mean, square] = args.all();
    let real = |x: f32| F::of(x.into());
    let (lr, t) = (lr.read()[0], F::of(clock.read_u32()[0].into()));
    let step = lr / -(t * real(p.ln_beta1)).exp_m1();
    let root = (-(t * real(p.ln_beta2)).exp_m1()).sqrt();
    let (beta2, rest1, rest2, epsilon, one) = (real(p.beta2), real(p.rest1), real(p.rest2), real(p.epsilon), F::one());
    let decay = real(p.weight_decay);
    let (decay, keep) = if p.decoupled == 0 { (decay, one) } else { (F::zero(), one - lr * decay) };
    let moments = mean.write().par_iter_mut().zip(square.write());
    parameters.write().par_iter_mut().zip(gradient.read()).zip(moments).with_min_len(4096).for_each(
        |((w, &g), (m, v))| {
            let g = g + decay * *w;
            *m = *m + rest1 * (g - *m);
            *v = beta2 * *v + rest2 * g * g;
            *w = keep * *w - step * *m / (v.sqrt() / root + epsilon);
        },
    );
}
