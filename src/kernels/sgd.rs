//! Stochastic gradient descent over the whole parameter block.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::optim::Sgd;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, momentum: f32, dampening: f32, weight_decay: f32, nesterov: u32 }

/// See `shaders/sgd.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "sgd",
    source: wgsl!("sgd"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("g"), reads("lr"), reads_u32("clock"), writes("w"), writes("b")],
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
    /// PyTorch's momentum buffer, `[n]`; of any size without momentum.
    pub velocity: &'a Tensor,
}

/// Records one update with the constants of `options`.
///
/// # Errors
/// The sizes differ.
pub fn sgd(g: &mut Graph, options: &Sgd, update: Update<'_>) -> Result<()> {
    let Update { gradient, lr, clock, parameters, velocity } = update;
    let n = parameters.len();
    expect_len("sgd", gradient, n)?;
    if options.momentum != 0.0 {
        expect_len("sgd", velocity, n)?;
    }
    let params = Params {
        n: n as u32,
        momentum: options.momentum as f32,
        dampening: options.dampening as f32,
        weight_decay: options.weight_decay as f32,
        nesterov: options.nesterov.into(),
    };
    g.dispatch(&KERNEL, &[], params, &[gradient, lr, clock, parameters, velocity], striding_grid(n))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [gradient, lr, clock, parameters, velocity] = args.all();
    let real = |x: f32| F::of(x.into());
    let (lr, momentum, decay) = (lr.read()[0], real(p.momentum), real(p.weight_decay));
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
