//! RMSprop over the whole parameter block.

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::optim::RmsProp;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, alpha: f32, rest: f32, epsilon: f32, weight_decay: f32, momentum: f32, centered: u32 }

/// See `shaders/rms_prop.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "rms_prop",
    source: wgsl!("rms_prop"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), writes("w"), writes("v"), writes("m"), writes("b")],
    twin: twin!(twin),
};

/// The tensors of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The gradient, `[n]`.
    pub gradient: &'a Tensor,
    /// The learning rate, `[1]`.
    pub lr: &'a Tensor,
    /// The parameters, `[n]`.
    pub parameters: &'a Tensor,
    /// The mean of the gradient's square, `[n]`.
    pub square: &'a Tensor,
    /// The mean of the gradient, `[n]`; of any size if not centered.
    pub mean: &'a Tensor,
    /// PyTorch's momentum buffer, `[n]`; of any size without momentum.
    pub velocity: &'a Tensor,
}

/// Records one update with the constants of `options`.
///
/// # Errors
/// The sizes differ.
pub fn rms_prop(g: &mut Graph, options: &RmsProp, update: Update<'_>) -> Result<()> {
    let Update { gradient, lr, parameters, square, mean, velocity } = update;
    let n = parameters.len();
    expect_len("rms_prop", gradient, n)?;
    expect_len("rms_prop", square, n)?;
    if options.centered {
        expect_len("rms_prop", mean, n)?;
    }
    if options.momentum != 0.0 {
        expect_len("rms_prop", velocity, n)?;
    }
    let params = Params {
        n: n as u32,
        alpha: options.alpha as f32,
        rest: (1.0 - options.alpha) as f32,
        epsilon: options.eps as f32,
        weight_decay: options.weight_decay as f32,
        momentum: options.momentum as f32,
        centered: options.centered.into(),
    };
    g.dispatch(&KERNEL, &[], params, &[gradient, lr, parameters, square, mean, velocity], striding_grid(n))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, parameters, square, mean, velocity] = args.all();
    let real = |x: f32| F::of(x.into());
    let (lr, alpha, epsilon) = (lr.read()[0], real(p.alpha), real(p.epsilon));
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
