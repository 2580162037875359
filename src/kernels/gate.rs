//! Decides whether a step updates the parameters.

use super::expect_len;
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, reads_u32, twin, wgsl, writes, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { n: u32, capacity: u32, R: u32, K: u32, accumulate: u32, stops: u32 }

/// See `shaders/gate.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "gate",
    source: wgsl!("gate", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[
        reads("norm2"),
        reads("gradient"),
        reads("history"),
        reads_u32("clock"),
        reads("lr"),
        writes_u32("state"),
        writes("rate"),
    ],
    twin: twin!(twin),
};

/// Elements from the learning rate of one group of parameters to that of the next: each is bound by itself.
pub const STRIDE: usize = 64;

/// What a gate looks at, and what it decides.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// `[1]`: the squared norm of the gradient.
    pub norm2: &'a Tensor,
    /// `[n]`.
    pub gradient: &'a Tensor,
    /// `[R, capacity]`: the losses of the latest steps.
    pub history: &'a Tensor,
    /// `[2]` u32: steps done, this one included, and batches.
    pub clock: &'a Tensor,
    /// `[64 K]`: the learning rate of each group.
    pub lr: &'a Tensor,
    /// `[64]` u32: updates, this one included, and what was bad, as `shaders/gate.wgsl` has it.
    pub state: &'a Tensor,
    /// `[64 K]`: the learning rates, or -1 where nothing is updated.
    pub rate: &'a Tensor,
}

impl Gate<'_> {
    /// Records the decision: an update after each `accumulate` steps; where it `stops`, none after a bad step.
    ///
    /// # Errors
    /// The sizes differ.
    pub fn record(self, r: &mut Recorder, accumulate: usize, stops: bool) -> Result<()> {
        let Self { norm2, gradient, history, clock, lr, state, rate } = self;
        let (losses, capacity) = history.rows_and_columns();
        for (tensor, len) in [(norm2, 1), (clock, 2), (state, STRIDE), (rate, lr.len())] {
            expect_len("gate", tensor, len)?;
        }
        let params = Params {
            n: gradient.len() as u32,
            capacity: capacity as u32,
            R: losses as u32,
            K: (lr.len() / STRIDE) as u32,
            accumulate: accumulate as u32,
            stops: stops.into(),
        };
        r.dispatch(&KERNEL, &[], params, &[norm2, gradient, history, clock, lr, state, rate], [1, 1, 1])?;
        // The gradient is searched where it is bad alone.
        r.touches(|tensor| match tensor {
            _ if tensor.is(gradient) => Some(0),
            _ if tensor.is(history) => Some(losses),
            _ => None,
        });
        Ok(())
    }
}

/// Elements of a gradient that are searched for the first that is not finite.
const SEARCHED: usize = 1 << 24;

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [norm2, gradient, history, clock, lr, state, rate] = args.all();
    let (norm2, t, state) = (norm2.read()[0], clock.read_u32()[0], state.write_u32());
    let column = (t.wrapping_sub(1) % p.capacity) as usize;
    let losses = history.read().chunks_exact(p.capacity as usize).map(|ring| ring[column]);
    let bad = losses.chain([norm2]).any(|x| !x.is_finite());
    if bad && state[1] == 0 {
        let place = gradient.read().iter().take(SEARCHED).position(|x| !x.is_finite());
        let norm2 = norm2.to_f32().unwrap_or(f32::NAN);
        (state[1], state[2], state[5]) = (t, place.map_or(u32::MAX, |place| place as u32), norm2.to_bits());
    }
    state[4] |= u32::from(bad);
    let stopped = p.stops != 0 && state[1] != 0;
    let due = t % p.accumulate == 0;
    let updates = due && state[4] == 0 && !stopped;
    state[0] = state[0].wrapping_add(updates.into());
    state[3] = state[3].wrapping_add((due && !updates).into());
    if due {
        state[4] = 0;
    }
    let rates = rate.write().iter_mut().zip(lr.read()).step_by(STRIDE);
    rates.for_each(|(rate, &lr)| *rate = if updates { lr } else { -F::one() });
}
