//! RMSprop over the whole parameter block.

use super::{Update, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;

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

/// The numbers of an update.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Decay of the mean square.
    pub alpha: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// λ
    pub weight_decay: f64,
    /// How much of the last step's direction is kept.
    pub momentum: f64,
    /// Whether the gradient is divided by its deviation in place of its mean square.
    pub centered: bool,
}

/// Records one update. The moments are the mean of the gradient's square; its mean, of no use if not centered; and PyTorch's
/// momentum buffer, of no use without momentum.
///
/// # Errors
/// The sizes differ.
pub fn rms_prop(r: &mut Recorder, settings: Settings, update: Update<'_>) -> Result<()> {
    let Update { gradient, lr, parameters, .. } = update;
    let used = [true, settings.centered, settings.momentum != 0.0];
    let [square, mean, velocity] = update.moments("rms_prop", used)?;
    let n = parameters.len();
    let params = Params {
        n: n as u32,
        alpha: settings.alpha as f32,
        rest: (1.0 - settings.alpha) as f32,
        epsilon: settings.eps as f32,
        weight_decay: settings.weight_decay as f32,
        momentum: settings.momentum as f32,
        centered: settings.centered.into(),
    };
    r.dispatch(&KERNEL, &[], params, &[gradient, lr, parameters, square, mean, velocity], striding_grid(n))
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
