//! Appends a step's loss to a log on the device; the last of a step advances the plan's clock.

use super::{MOST_OF_ONE_WORKGROUP, column_sum, expect_len};
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes, writes_u32};
use crate::plan::Recorder;
use crate::real::Real;
use crate::tensor::Tensor;

params! { R: u32, capacity: u32, advances: u32 }

/// See `shaders/record_loss.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "record_loss",
    source: wgsl!("record_loss", "reduce"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("losses"), reads("scale"), writes("history"), writes_u32("clock")],
    twin: twin!(twin),
};

/// Records `history[clock[0] mod capacity] = scale Σ losses`, and, if this `advances` the clock, `clock += 1`. `losses`
/// `[R]`, `scale` `[1]`, `history` `[capacity]`, `clock` `[2]` u32.
///
/// # Errors
/// `scale` or `clock` have another size.
pub fn record_loss(
    r: &mut Recorder,
    losses: &Tensor,
    scale: &Tensor,
    history: &Tensor,
    clock: &Tensor,
    advances: bool,
) -> Result<()> {
    expect_len("record_loss", scale, 1)?;
    expect_len("record_loss", clock, 2)?;
    let sum;
    let losses = if losses.len() <= MOST_OF_ONE_WORKGROUP {
        losses
    } else {
        sum = r.zeros("sum of losses", &[1])?;
        column_sum::column_sum(r, &losses.reshape(&[losses.len(), 1])?, &sum, false)?;
        &sum
    };
    let params = Params { R: losses.len() as u32, capacity: history.len() as u32, advances: advances.into() };
    r.dispatch(&KERNEL, &[], params, &[losses, scale, history, clock], [1, 1, 1])
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [losses, scale, history, clock] = args.all();
    let (history, clock) = (history.write(), clock.write_u32());
    history[(clock[0] % p.capacity) as usize] = scale.read()[0] * losses.read().iter().copied().sum();
    for counter in clock {
        *counter = counter.wrapping_add(p.advances);
    }
}
