//! The gradient, clipped in place.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, max_norm: f32, max_value: f32 }

/// See `shaders/clip.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "clip",
    source: wgsl!("clip"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("norm2"), writes("g")],
    twin: twin!(twin),
};

/// Records the scaling of `gradient`, whose squared norm is `norm2` `[1]`, that makes its norm at most `max_norm`.
///
/// # Errors
/// `norm2` has more than one element.
pub fn clip_norm(r: &mut Recorder, gradient: &Tensor, norm2: &Tensor, max_norm: f64) -> Result<()> {
    expect_len("clip", norm2, 1)?;
    clip(r, gradient, norm2, [max_norm, 0.0])
}

/// Records the clip of each element of `gradient` to within `max_value` of 0.
///
/// # Errors
/// The device cannot hold the norm.
pub fn clip_value(r: &mut Recorder, gradient: &Tensor, max_value: f64) -> Result<()> {
    let norm2 = r.zeros("no norm", &[1])?;
    clip(r, gradient, &norm2, [0.0, max_value])
}

fn clip(r: &mut Recorder, gradient: &Tensor, norm2: &Tensor, most: [f64; 2]) -> Result<()> {
    let [max_norm, max_value] = most.map(|most| most as f32);
    let params = Params { n: gradient.len() as u32, max_norm, max_value };
    r.dispatch(&KERNEL, &[], params, &[norm2, gradient], striding_grid(gradient.len()))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [norm2, g] = args.all();
    let (one, most) = (F::one(), F::of(p.max_value.into()));
    let ratio = F::of(p.max_norm.into()) / (norm2.read()[0].sqrt() + F::of(1e-6));
    let scale = if p.max_norm == 0.0 || ratio > one { one } else { ratio };
    g.write().par_iter_mut().with_min_len(4096).for_each(|g| {
        *g = scale * *g;
        if p.max_value > 0.0 {
            *g = if *g > most { most } else { *g };
            *g = if *g < -most { -most } else { *g };
        }
    });
}
