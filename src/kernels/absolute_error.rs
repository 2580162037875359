//! Absolute error and its gradient.

use super::mse_loss::{ElementLoss, check_element_loss};
use super::striding_grid;
use crate::error::Result;
use crate::kernel::{Args, Kernel, params, reads, twin, wgsl, writes};
use crate::plan::Recorder;
use crate::real::Real;

params! { n: u32, gradient: u32 }

/// See `shaders/absolute_error.wgsl`.
pub static KERNEL: Kernel = Kernel {
    name: "absolute_error",
    source: wgsl!("absolute_error"),
    constants: &[],
    params: FIELDS,
    bindings: &[reads("x"), reads("targets"), reads("scale"), writes("losses"), writes("dx")],
    twin: twin!(twin),
};

/// Records the absolute error of each element, and the gradient of their sum times `scale`, 0 where there is no error.
///
/// # Errors
/// The sizes differ.
pub fn absolute_error(r: &mut Recorder, loss: ElementLoss<'_>) -> Result<()> {
    let n = check_element_loss("absolute_error", &loss)?;
    let ElementLoss { x, targets, scale, losses, dx } = loss;
    let dummy = r.zeros("no gradient", &[1])?;
    let params = Params { n: n as u32, gradient: dx.is_some().into() };
    r.dispatch(&KERNEL, &[], params, &[x, targets, scale, losses, dx.unwrap_or(&dummy)], striding_grid(n))
}

fn twin<F: Real>(p: &Params, args: Args<'_, F>) {
    let [x, targets, scale, losses, dx] = args.all();
    let (x, targets, scale, dx) = (x.read(), targets.read(), scale.read()[0], dx.write());
    for (i, loss) in losses.write().iter_mut().enumerate() {
        let error = x[i] - targets[i];
        *loss = error.abs();
        if p.gradient != 0 {
            dx[i] = if error == F::zero() { F::zero() } else { error.signum() * scale };
        }
    }
}
