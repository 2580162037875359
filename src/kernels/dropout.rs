//! Dropout, its own gradient.

use rayon::prelude::*;

use super::{expect_len, striding_grid};
use crate::error::{Error, Result};
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;
use crate::rng::threefry2x32_each;
use crate::tensor::Tensor;

params! { n: u32, seed: u32, threshold: u32, scale: f32 }

/// See `shaders/dropout.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "dropout",
    source: wgsl!("dropout", "threefry"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads_u32("clock"), writes("y")],
    twin: twin!(twin),
};

/// Records `y = x / (1 - rate)` where the draw keeps it, 0 elsewhere. `x` and `y` of one size, `clock` `[2]` u32.
///
/// # Errors
/// The sizes differ, or `rate` is not in [0, 1).
pub fn dropout(r: &mut Recorder, x: &Tensor, y: &Tensor, rate: f64, seed: u32, clock: &Tensor) -> Result<()> {
    if !(0.0..1.0).contains(&rate) {
        return Err(Error::argument("dropout", "rate", "at least 0 and below 1", rate));
    }
    expect_len("dropout", y, x.len())?;
    expect_len("dropout", clock, 2)?;
    let threshold = (rate * 2f64.powi(32)) as u32;
    let params = Params { n: x.len() as u32, seed, threshold, scale: (1.0 / (1.0 - rate)) as f32 };
    r.dispatch(&KERNEL, &[], params, &[x, clock, y], striding_grid(x.len()))?;
    r.overwrites(y);
    Ok(())
}

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

/// Elements whose bits are made at once.
const LANES: usize = 16;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, clock, y] = args.all();
    let (step, scale) = (clock.read_u32()[0], F::of(p.scale.into()));
    let chunks = y.write().par_chunks_mut(CHUNK).zip(x.read().par_chunks(CHUNK)).enumerate();
    chunks.for_each(|(chunk, (y, x))| {
        F::vectorize(|| {
            for (i, (y, x)) in y.chunks_mut(LANES).zip(x.chunks(LANES)).enumerate() {
                let first = (CHUNK * chunk + LANES * i) as u32;
                let counters = std::array::from_fn(|lane| first.wrapping_add(lane as u32));
                let [words, _] = threefry2x32_each([p.seed, step], [counters, [0; LANES]]);
                for ((y, &x), word) in y.iter_mut().zip(x).zip(words) {
                    *y = if word < p.threshold { F::zero() } else { scale * x };
                }
            }
        });
    });
}
