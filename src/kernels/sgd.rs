//! Stochastic gradient descent over the whole parameter block.

use rayon::prelude::*;

use super::{Update, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;

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

/// The numbers of an update.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much of the last step's direction is kept.
    pub momentum: f64,
    /// How much of the gradient the momentum leaves out.
    pub dampening: f64,
    /// λ
    pub weight_decay: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
}

/// Records one update. The moment is PyTorch's momentum buffer, of no use without momentum.
///
/// # Errors
/// The sizes differ.
pub fn sgd(r: &mut Recorder, settings: Settings, update: Update<'_>) -> Result<()> {
    let Update { gradient, lr, clock, parameters, .. } = update;
    let [velocity] = update.moments("sgd", [settings.momentum != 0.0])?;
    let n = parameters.len();
    let params = Params {
        n: n as u32,
        momentum: settings.momentum as f32,
        dampening: settings.dampening as f32,
        weight_decay: settings.weight_decay as f32,
        nesterov: settings.nesterov.into(),
    };
    r.dispatch(&KERNEL, &[], params, &[gradient, lr, clock, parameters, velocity], striding_grid(n))
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
