//! The gradient, clipped in place.

use rayon::prelude::*;

use super::{squared_norm, striding_grid};
use crate::error::Result;
use crate::graph::Graph;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::optim::Clip;
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

/// Records the clip of `gradient`, and of its norm before if that is what is clipped.
///
/// # Errors
/// The device cannot hold the norm.
pub fn clip(g: &mut Graph, clip: Clip, gradient: &Tensor) -> Result<()> {
    let n = gradient.len() as u32;
    let norm2 = g.zeros("squared norm", &[1])?;
    let params = match clip {
        Clip::Norm(max_norm) => {
            squared_norm::squared_norm(g, gradient, &norm2)?;
            Params { n, max_norm: max_norm as f32, max_value: 0.0 }
        }
        Clip::Value(max_value) => Params { n, max_norm: 0.0, max_value: max_value as f32 },
    };
    g.dispatch(&KERNEL, &[], params, &[&norm2, gradient], striding_grid(gradient.len()))
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
