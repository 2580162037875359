//! Adam over the whole parameter block.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::optim::Adam;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, beta1: f32, beta2: f32, epsilon: f32, ln_beta1: f32, ln_beta2: f32, max_norm: f32 }

/// See `shaders/adam.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "adam",
    source: wgsl!("adam"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), reads("norm2"), reads_u32("clock"), writes("w"), writes("m"), writes("v")],
    twin: twin!(twin),
};

/// The tensors of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The gradient, `[n]`.
    pub gradient: &'a Tensor,
    /// The learning rate, `[1]`.
    pub lr: &'a Tensor,
    /// The gradient's squared norm, `[1]`, if it is clipped.
    pub squared_norm: Option<&'a Tensor>,
    /// Steps done, this one included: the first element of `[2]` u32.
    pub clock: &'a Tensor,
    /// The parameters, `[n]`.
    pub parameters: &'a Tensor,
    /// The mean of the gradient, `[n]`.
    pub mean: &'a Tensor,
    /// The mean of its square, `[n]`.
    pub square: &'a Tensor,
}

/// Records one update with the constants of `options`.
///
/// # Errors
/// The sizes differ.
pub fn adam(g: &mut Graph, options: &Adam, update: Update<'_>) -> Result<()> {
    let n = update.parameters.len();
    for tensor in [update.gradient, update.mean, update.square] {
        expect_len("adam", tensor, n)?;
    }
    let (beta1, beta2) = options.betas;
    let params = Params {
        n: n as u32,
        beta1: beta1 as f32,
        beta2: beta2 as f32,
        epsilon: options.eps as f32,
        ln_beta1: beta1.ln() as f32,
        ln_beta2: beta2.ln() as f32,
        max_norm: update.squared_norm.and(options.max_norm).unwrap_or(0.0) as f32,
    };
    let norm2 = update.squared_norm.unwrap_or(update.lr);
    let Update { gradient, lr, clock, parameters, mean, square, .. } = update;
    g.dispatch(&KERNEL, &[], params, &[gradient, lr, norm2, clock, parameters, mean, square], striding_grid(n))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, norm2, clock, parameters, mean, square] = args.all();
    let real = |x: f32| F::of(x.into());
    let t = F::of(clock.read_u32()[0].into());
    let step = lr.read()[0] / -(t * real(p.ln_beta1)).exp_m1();
    let root = (-(t * real(p.ln_beta2)).exp_m1()).sqrt();
    let clip = if p.max_norm > 0.0 {
        F::one().min(real(p.max_norm) / (norm2.read()[0].sqrt() + F::of(1e-6)))
    } else {
        F::one()
    };
    let (beta1, beta2, epsilon, one) = (real(p.beta1), real(p.beta2), real(p.epsilon), F::one());
    let moments = mean.write().par_iter_mut().zip(square.write());
    parameters.write().par_iter_mut().zip(gradient.read()).zip(moments).with_min_len(4096).for_each(
        |((w, &g), (m, v))| {
            let g = clip * g;
            *m = *m + (one - beta1) * (g - *m);
            *v = beta2 * *v + (one - beta2) * g * g;
            *w = *w - step * *m / (v.sqrt() / root + epsilon);
        },
    );
}
